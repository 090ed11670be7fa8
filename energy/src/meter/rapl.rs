//! RAPL through perf: the processor's own energy counters, extended to 64 bits by the kernel.
//!
//! Facts from the kernel's `arch/x86/events/rapl.c`: counting is system-wide, one event per package, on the CPUs that
//! `cpumask` names; `energy-*.scale` is joules per step. psys ⊃ pkg ⊃ cores, gpu; ram stands beside pkg. On AMD the
//! hardware computes the figure from activity. Under a hypervisor it is whatever the hypervisor makes of it, often nothing.

use std::path::Path;

use super::{Meter, MeterError, MeterInfo, Reading, Scope};
use crate::clock::Now;
use crate::counter::Counter;
use crate::joules::{Joules, Method};
use crate::perf::{PerfCounter, PerfOpen};
use crate::root::{Root, number, text};

/// How far a RAPL of this processor can be trusted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trust {
    /// `measured`, or `hardware_model` on AMD and under a hypervisor.
    pub method: Method,
    /// Declared uncertainty.
    pub rel_uncertainty: f64,
}

impl Trust {
    /// By `/proc/cpuinfo`.
    pub fn of(root: &Root) -> Trust {
        let cpuinfo = text(&root.join("/proc/cpuinfo")).unwrap_or_default();
        let line = |key: &str| cpuinfo.lines().find(|l| l.starts_with(key)).unwrap_or_default().to_owned();
        let virtual_ = line("flags").split_whitespace().any(|flag| flag == "hypervisor");
        let intel = line("vendor_id").ends_with("GenuineIntel");
        match intel && !virtual_ {
            true => Trust { method: Method::Measured, rel_uncertainty: 0.05 },
            false => Trust { method: Method::HardwareModel, rel_uncertainty: 0.10 },
        }
    }
}

/// Scope and parent of a domain, by either source's name of it.
pub(super) fn place(domain: &str, package: &str) -> (Scope, Option<String>) {
    match domain {
        "psys" => (Scope::Node, None),
        "pkg" | "package" => (Scope::Cpu, None),
        "ram" | "dram" => (Scope::Dram, None),
        // Cores, the uncore and the graphics in the package.
        _ => (Scope::Cpu, Some(package.to_owned())),
    }
}

/// One event of one package.
pub struct RaplPerf {
    info: MeterInfo,
    counter: Counter,
    perf: Box<dyn PerfCounter>,
    unit_j: f64,
}

/// Opens all events of the `power` unit, or says why there is none.
pub fn open(root: &Root, perf: &dyn PerfOpen) -> Result<Vec<RaplPerf>, MeterError> {
    let unit = root.join("/sys/bus/event_source/devices/power");
    let kind = number(&unit.join("type"))?;
    let kind = u32::try_from(kind).map_err(|_| MeterError::unreadable(&unit.join("type"), &kind.to_string()))?;
    let cpus = cpus(&unit.join("cpumask"))?;
    let trust = Trust::of(root);
    let mut meters = vec![];
    for name in root.names("/sys/bus/event_source/devices/power/events") {
        let Some(domain) = name.strip_prefix("energy-").filter(|d| !d.contains('.')) else { continue };
        let path = unit.join("events").join(&name);
        let config = event(&path)?;
        let unit_j = scale(&unit.join("events").join(format!("{name}.scale")))?;
        for (package, &cpu) in cpus.iter().enumerate() {
            let counter = perf.open(kind, config, cpu).map_err(|error| refused(root, &name, &error))?;
            meters.push(RaplPerf::new(domain, package, trust, unit_j, counter));
        }
    }
    match meters.is_empty() {
        true => Err(MeterError::Missing(unit.join("events/energy-*").display().to_string())),
        false => Ok(meters),
    }
}

impl RaplPerf {
    fn new(domain: &str, package: usize, trust: Trust, unit_j: f64, perf: Box<dyn PerfCounter>) -> RaplPerf {
        let id = |domain: &str| format!("rapl-{domain}-{package}");
        let (scope, parent) = place(domain, &id("pkg"));
        let info = MeterInfo {
            id: id(domain),
            domain: domain.to_owned(),
            scope,
            method: trust.method,
            source: format!("perf:power/energy-{domain}"),
            profile: None,
            unit_j: Some(unit_j),
            update_period_s: Some(UPDATE_S),
            rel_uncertainty: Some(trust.rel_uncertainty),
            parent,
            counts_in_total: true,
            excluded: None,
        };
        RaplPerf { info, counter: Counter::endless(), perf, unit_j }
    }
}

impl Meter for RaplPerf {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn info_mut(&mut self) -> &mut MeterInfo {
        &mut self.info
    }

    fn read(&mut self, now: Now) -> Result<Reading, MeterError> {
        let failed = |e: std::io::Error| MeterError::Failed { path: self.info.source.clone(), what: e.to_string() };
        let raw = self.perf.read().map_err(failed)?;
        self.counter.advance(raw, now.mono_ns).map_err(|_| MeterError::Reset(self.info.source.clone()))?;
        reading(&self.counter, self.unit_j, now)
    }
}

/// A counter's state as joules.
pub(super) fn reading(counter: &Counter, unit_j: f64, now: Now) -> Result<Reading, MeterError> {
    let total = Joules::new(counter.total() as f64 * unit_j).ok_or_else(|| MeterError::Unsupported("joules".into()))?;
    Ok(Reading {
        at_ns: now.mono_ns,
        total,
        wraps: counter.wraps(),
        holes: counter.holes(),
        ambiguous: counter.ambiguous(),
    })
}

/// `0,64` or `0-1`: the CPUs of a list.
fn cpus(path: &Path) -> Result<Vec<u32>, MeterError> {
    let text = text(path)?;
    let unreadable = || MeterError::unreadable(path, &text);
    let mut cpus = vec![];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) =
            (first.trim().parse().map_err(|_| unreadable())?, last.trim().parse().map_err(|_| unreadable())?);
        if last < first || last - first > MAX_PACKAGES || cpus.len() > MAX_PACKAGES as usize {
            return Err(unreadable());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

/// `event=0x02`.
fn event(path: &Path) -> Result<u64, MeterError> {
    let text = text(path)?;
    let hex = text.strip_prefix("event=0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    hex.ok_or_else(|| MeterError::unreadable(path, &text))
}

/// Joules per step.
fn scale(path: &Path) -> Result<f64, MeterError> {
    let text = text(path)?;
    let scale = text.parse().ok().filter(|s: &f64| s.is_finite() && *s > 0.0);
    scale.ok_or_else(|| MeterError::unreadable(path, &text))
}

fn refused(root: &Root, event: &str, error: &std::io::Error) -> MeterError {
    let path = format!("perf:power/{event}");
    if error.kind() != std::io::ErrorKind::PermissionDenied {
        return MeterError::Failed { path, what: error.to_string() };
    }
    let level = text(&root.join("/proc/sys/kernel/perf_event_paranoid")).unwrap_or_else(|_| "unknown".into());
    let advice = format!("run as root or with CAP_PERFMON, or set kernel.perf_event_paranoid to -1 (it is {level})");
    MeterError::Permission { path, advice }
}

/// About a millisecond (unverified).
pub(super) const UPDATE_S: f64 = 1e-3;

/// More packages than any machine has.
const MAX_PACKAGES: u32 = 256;
