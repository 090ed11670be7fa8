//! Energy between two snapshots: exact joules, or `None` with the reason.
//!
//! Rules that hold here and nowhere else: a counter that did not move is not zero joules; what failed, was reset or may have
//! wrapped unseen at any point of the window is unknown; a total of which one part is unknown is unknown; a sum has the
//! weakest method of its parts.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::clock::seconds;
use crate::conditions::ConditionsWindow;
use crate::joules::{Joules, Method};
use crate::meter::neuron::{NeuronState, Verdict};
use crate::meter::{MeterInfo, Scope};
use crate::snapshot::{Absent, MeterState, SCHEMA, Snapshot};

/// What to know before believing a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// A meter gave nothing for a while.
    MeterGap,
    /// A counter did not move.
    MeterStalled,
    /// A counter may have wrapped more than once between two readings.
    WrapAmbiguous,
    /// Minutes for which the Neuron driver had no data.
    NoDataMinutes,
    /// Too short for the meter: the ends alone are uncertain by more than 1 %.
    ShortWindow,
    /// The wall clock was set.
    NtpStep,
    /// Part of the time has no reading, and the rest was extended over it.
    Extrapolated,
    /// Other guests of the host took CPU time.
    Steal,
    /// Processors were slowed down because they were hot.
    Throttled,
    /// The clock sank, or somebody set another policy.
    ClockChanged,
}

/// Why two snapshots make no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// Another form.
    #[error("schema is {0:?}, this njoule reads {SCHEMA:?}")]
    Schema(String),
    /// The meters were opened anew in between.
    #[error("the snapshots are of two sessions: the agent was started again in between")]
    Session,
    /// The wrong way round, or twice the same.
    #[error("the second snapshot is not later than the first")]
    Order,
}

/// A meter within a window.
#[derive(Clone, Debug, PartialEq)]
pub struct MeterWindow {
    /// Its constants.
    pub info: MeterInfo,
    /// What it counted.
    pub joules: Option<Joules>,
    /// Why that is unknown.
    pub reason: Option<String>,
    /// Joules that may belong before or behind the window's ends.
    pub edge_error_j: Option<f64>,
    /// Readings.
    pub samples: u64,
    /// Wraps.
    pub wraps: u32,
    /// Spans with an unknown amount.
    pub gaps: u32,
}

/// A Neuron device within a window.
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronWindow {
    /// Its number.
    pub device: u32,
    /// Its name, such as `Inferentia2`.
    pub name: Option<String>,
    /// Dies behind its one figure.
    pub dies: Option<u32>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// Utilisation integrated over the covered time.
    pub util_seconds: f64,
    /// Time of the minutes that lie whole in the window and count.
    pub covered_s: f64,
    /// How many these are.
    pub minutes: u32,
    /// Mean, least and most over them.
    pub util: Option<(f64, f64, f64)>,
    /// Whether the figure is the largest of several dies; `None` is unknown.
    pub max_over_dies: Option<bool>,
    /// `valid`, or what is wrong.
    pub status: &'static str,
    /// By the declared watts.
    pub joules: Option<Joules>,
    /// The declared watts.
    pub profile: Option<String>,
    /// Why there are no joules.
    pub reason: Option<String>,
}

/// CPU time within a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuWindow {
    /// Seconds that all CPUs worked.
    pub busy_s: Option<f64>,
    /// Seconds that the hypervisor gave to others.
    pub steal_s: Option<f64>,
    /// CPUs.
    pub vcpus: Option<u32>,
    /// CPU-seconds of the part that was asked for.
    pub part_s: Option<f64>,
}

/// The sum of what counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Total {
    /// `accelerator`, `cpu`, `cpu+dram`, `accelerator+cpu+dram`, `host`, `node`, `wall`, ...
    pub boundary: String,
    /// The weakest of the parts.
    pub method: Option<Method>,
    /// The energy.
    pub joules: Option<Joules>,
    /// Why it is unknown.
    pub reasons: Vec<String>,
}

/// Energy between two moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Monotonic beginning.
    pub start_ns: u64,
    /// Beginning on the wall clock.
    pub start_unix_s: f64,
    /// Length.
    pub duration_s: f64,
    /// The machine.
    pub host: crate::host::Host,
    /// Every meter.
    pub meters: Vec<MeterWindow>,
    /// Every Neuron device.
    pub neuron: Vec<NeuronWindow>,
    /// CPU time.
    pub cpu: CpuWindow,
    /// The sum.
    pub total: Total,
    /// What to know.
    pub flags: BTreeSet<Flag>,
    /// Kinds of meters that are not there.
    pub absent: Vec<Absent>,
    /// CPU-seconds that reading the meters cost.
    pub overhead_s: f64,
    /// Clocks and temperatures, as far as they were read and the machine says.
    pub conditions: ConditionsWindow,
}

impl Window {
    /// What happened between `a` and `b`.
    pub fn between(a: &Snapshot, b: &Snapshot) -> Result<Window, WindowError> {
        for snapshot in [a, b] {
            if snapshot.schema != SCHEMA {
                return Err(WindowError::Schema(snapshot.schema.chars().take(80).collect()));
            }
        }
        if a.session != b.session {
            return Err(WindowError::Session);
        }
        if b.mono_ns <= a.mono_ns {
            return Err(WindowError::Order);
        }
        let mut flags = BTreeSet::new();
        let meters: Vec<MeterWindow> = b.meters.iter().map(|end| metered(a, b, end, &mut flags)).collect();
        let neuron: Vec<NeuronWindow> = b.neuron.iter().map(|device| neuron(a, b, device, &mut flags)).collect();
        if (b.now().offset_s() - a.now().offset_s()).abs() >= 0.5 {
            flags.insert(Flag::NtpStep);
        }
        let cpu = cpu(a, b);
        if let (Some(busy), Some(steal)) = (cpu.busy_s, cpu.steal_s)
            && steal > 0.01 * (busy + steal)
            && steal >= 0.1
        {
            flags.insert(Flag::Steal);
        }
        let conditions = match (&a.conditions, &b.conditions) {
            (Some(before), Some(after)) => before.until(after),
            _ => ConditionsWindow::default(),
        };
        flags.extend(conditions.throttle_events.filter(|events| *events > 0).map(|_| Flag::Throttled));
        flags.extend(conditions.clock_changed.filter(|changed| *changed).map(|_| Flag::ClockChanged));
        let duration_s = seconds(a.mono_ns, b.mono_ns);
        let mut total = total(&meters, &neuron, &b.absent);
        if let Some(trouble) = &b.part_trouble {
            total = Total { method: None, joules: None, reasons: vec![trouble.clone()], ..total };
        } else if b.part_cpu_s.is_some() {
            let accelerated = !neuron.is_empty() || meters.iter().any(|m| m.info.scope == Scope::Accelerator);
            total = part(total, &cpu, duration_s, accelerated);
        }
        Ok(Window {
            start_ns: a.mono_ns,
            start_unix_s: a.unix_s,
            duration_s,
            host: b.host.clone(),
            meters,
            neuron,
            cpu,
            total,
            flags,
            absent: b.absent.clone(),
            overhead_s: (b.overhead.cpu_s - a.overhead.cpu_s).max(0.0),
            conditions,
        })
    }
}

fn metered(a: &Snapshot, b: &Snapshot, end: &MeterState, flags: &mut BTreeSet<Flag>) -> MeterWindow {
    let start = a.meters.iter().find(|m| m.info.id == end.info.id);
    let none = MeterWindow {
        info: end.info.clone(),
        joules: None,
        reason: None,
        edge_error_j: None,
        samples: end.samples - start.map_or(0, |s| s.samples).min(end.samples),
        wraps: end.wraps - start.map_or(0, |s| s.wraps).min(end.wraps),
        gaps: end.holes - start.map_or(0, |s| s.holes).min(end.holes),
    };
    let counts = end.info.counts_in_total;
    let mut unknown = |flag: Option<Flag>, reason: String| {
        flags.extend(flag.filter(|_| counts));
        MeterWindow { reason: Some(reason), ..none.clone() }
    };
    let at_edges = [start.and_then(|s| s.trouble.clone()), end.trouble.clone()];
    if let Some(trouble) = at_edges.into_iter().flatten().next() {
        return unknown(Some(Flag::MeterGap), trouble);
    }
    let (Some(start), Some(then), Some(now)) = (start, start.and_then(|s| s.total), end.total) else {
        return unknown(Some(Flag::MeterGap), "no reading at the beginning".into());
    };
    if none.gaps > 0 {
        return unknown(Some(Flag::MeterGap), format!("{} spans of unknown energy (reset or gap)", none.gaps));
    }
    if end.ambiguous > start.ambiguous {
        return unknown(Some(Flag::WrapAmbiguous), "read too rarely: the counter may have wrapped unseen".into());
    }
    let span = seconds(start.at_ns, end.at_ns);
    let Some(joules) = now.since(then).filter(|_| span > 0.0 && start.at_ns < b.mono_ns) else {
        return unknown(Some(Flag::ShortWindow), "no new reading within the window".into());
    };
    let mean_w = joules.best() / span;
    // A value from behind the end: of its time, the part that lies before is the window's. The rest is in the edge error.
    let joules = match end.at_ns > b.mono_ns {
        true => joules.times(seconds(start.at_ns, b.mono_ns) / span),
        false => joules,
    };
    let period = end.info.update_period_s.unwrap_or(0.0);
    if joules.best() == 0.0 {
        return match span >= 1.0_f64.max(100.0 * period) {
            true => unknown(Some(Flag::MeterStalled), "the counter stands still".into()),
            false => unknown(Some(Flag::ShortWindow), "the window is shorter than a step of the counter".into()),
        };
    }
    if end.late > start.late && counts {
        flags.insert(Flag::MeterGap);
    }
    let lag = |at: u64, edge: u64| at.abs_diff(edge) as f64 * 1e-9;
    let power = end.peak_w.max(mean_w);
    let edge = power * (2.0 * period + lag(start.at_ns, a.mono_ns) + lag(end.at_ns, b.mono_ns));
    if edge > 0.01 * joules.best() && counts {
        flags.insert(Flag::ShortWindow);
    }
    let joules = match (end.info.rel_uncertainty, joules.bounds()) {
        (Some(relative), None) => joules.give_or_take(relative, edge),
        (_, Some((low, high))) => Joules::within((low - edge).max(0.0), joules.best(), high + edge).unwrap_or(joules),
        // What the meter itself is off by is unknown (`rel_uncertainty`); what the ends are, is not.
        (None, None) if edge > 0.0 => joules.give_or_take(0.0, edge),
        (None, None) => joules,
    };
    MeterWindow { joules: Some(joules), edge_error_j: Some(edge), ..none }
}

fn neuron(a: &Snapshot, b: &Snapshot, device: &NeuronState, flags: &mut BTreeSet<Flag>) -> NeuronWindow {
    let inside = device.minutes.iter().filter(|m| m.from_ns >= a.mono_ns && m.to_ns <= b.mono_ns);
    let mut touched = device.minutes.iter().filter(|m| m.to_ns > a.mono_ns && m.to_ns <= b.mono_ns);
    for minute in touched.clone() {
        match minute.verdict {
            Verdict::NoData => flags.insert(Flag::NoDataMinutes),
            Verdict::Invalid | Verdict::Gap => flags.insert(Flag::MeterGap),
            Verdict::ClockStep => flags.insert(Flag::NtpStep),
            Verdict::Valid | Verdict::First => false,
        };
    }
    let (mut util_seconds, mut covered_s, mut minutes) = (0.0, 0.0, 0u32);
    let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
    for minute in inside.filter(|m| m.verdict == Verdict::Valid) {
        util_seconds += minute.mean * minute.seconds;
        covered_s += minute.seconds;
        minutes += 1;
        (min, max) = (min.min(minute.min), max.max(minute.max));
    }
    if device.stalled {
        flags.insert(Flag::MeterStalled);
    } else if device.trouble.is_some() && minutes < ENOUGH_MINUTES {
        flags.insert(Flag::MeterGap);
    }
    let duration_s = seconds(a.mono_ns, b.mono_ns);
    let last = touched.next_back().map(|m| m.verdict);
    let status = match (minutes, last, &device.trouble) {
        (1.., _, _) => "valid",
        _ if device.stalled => "stalled",
        (_, Some(Verdict::NoData), _) => "no_data",
        (_, Some(Verdict::Invalid), _) => "invalid",
        (_, _, Some(_)) => "unreadable",
        _ => "no_whole_minute",
    };
    let dies = device.dies.unwrap_or(MOST_DIES);
    let (joules, reason) = match (&device.profile, &device.trouble) {
        (_, Some(trouble)) if minutes < ENOUGH_MINUTES => (None, Some(trouble.clone())),
        _ if minutes < ENOUGH_MINUTES => {
            flags.insert(Flag::ShortWindow);
            (None, Some(format!("{minutes} whole minutes were covered, {ENOUGH_MINUTES} are needed")))
        }
        (None, _) => (None, Some("no watts are published for the chip: declare some with --neuron-watts".into())),
        (Some(profile), _) => {
            if covered_s < duration_s {
                flags.insert(Flag::Extrapolated);
            }
            (profile.joules(duration_s, covered_s, util_seconds, dies), None)
        }
    };
    NeuronWindow {
        device: device.device,
        name: device.name.clone(),
        dies: device.dies,
        driver: device.driver.clone(),
        util_seconds,
        covered_s,
        minutes,
        util: (minutes > 0).then(|| (util_seconds / covered_s, min, max)),
        max_over_dies: device.dies.map(|dies| dies > 1),
        status,
        joules,
        profile: device.profile.as_ref().map(ToString::to_string),
        reason,
    }
}

fn cpu(a: &Snapshot, b: &Snapshot) -> CpuWindow {
    let machine = a.machine.zip(b.machine).filter(|(a, b)| b.busy_s >= a.busy_s);
    CpuWindow {
        busy_s: machine.map(|(a, b)| b.busy_s - a.busy_s),
        steal_s: machine.map(|(a, b)| (b.steal_s - a.steal_s).max(0.0)),
        vcpus: machine.map(|(_, b)| b.vcpus),
        part_s: a.part_cpu_s.zip(b.part_cpu_s).map(|(a, b)| b - a).filter(|s| *s >= 0.0),
    }
}

/// The sum of what counts, over the boundary that has a meter.
fn total(meters: &[MeterWindow], neuron: &[NeuronWindow], absent: &[Absent]) -> Total {
    let counted: Vec<&MeterWindow> = meters.iter().filter(|m| m.info.counts_in_total).collect();
    let whole = counted.iter().find(|m| matches!(m.info.scope, Scope::Wall | Scope::Node));
    let has = |scope| counted.iter().any(|m| m.info.scope == scope);
    let accelerated = has(Scope::Accelerator) || !neuron.is_empty();
    let boundary = match whole.map(|m| m.info.scope) {
        Some(Scope::Wall) => "wall".to_owned(),
        Some(_) => "node".to_owned(),
        None => {
            let parts = [
                (accelerated, "accelerator"),
                (has(Scope::Host), "host"),
                (has(Scope::Cpu), "cpu"),
                (has(Scope::Dram), "dram"),
            ];
            let names: Vec<&str> = parts.iter().filter(|(there, _)| *there).map(|(_, name)| *name).collect();
            names.join("+")
        }
    };
    let mut sum: Option<Joules> = None;
    let mut method = Method::Measured;
    let mut reasons = vec![];
    let mut add = |joules: Option<Joules>, of: Method, what: String, reason: &Option<String>| match joules {
        Some(joules) => {
            sum = Some(sum.map_or(joules, |sum| sum.plus(joules)));
            method = method.weakest(of);
        }
        None => reasons.push(format!("{what}: {}", reason.as_deref().unwrap_or("unknown"))),
    };
    for meter in &counted {
        add(meter.joules, meter.info.method, meter.info.id.clone(), &meter.reason);
    }
    // A meter of the whole machine, or of all accelerators, has the devices in it.
    if whole.is_none() && !counted.iter().any(|m| m.info.covers_accelerators()) {
        for device in neuron {
            add(device.joules, Method::Derived, format!("neuron{}", device.device), &device.reason);
        }
    }
    if sum.is_none() && reasons.is_empty() {
        // What was found and does not count is nearer to an answer than what was not found.
        let left_out = meters.iter().filter(|m| !m.info.counts_in_total);
        let why = |m: &MeterWindow| Some(format!("{}: {}", m.info.id, m.info.excluded.as_ref().or(m.reason.as_ref())?));
        reasons.extend(left_out.filter_map(why));
        reasons.extend(absent.iter().map(|a| format!("{}: {}", a.meter, a.reason)));
        if reasons.is_empty() {
            reasons.push("no meter".into());
        }
    }
    let joules = sum.filter(|_| reasons.is_empty());
    Total { boundary, method: joules.map(|_| method), joules, reasons }
}

/// The share of a process or group. Its CPU time over all CPUs' time is what it caused at least (the idle machine is
/// nobody's); over the busy CPUs' time, at most (the idle machine is theirs who work).
fn part(total: Total, cpu: &CpuWindow, duration_s: f64, accelerated: bool) -> Total {
    let unknown = |reason: &str| Total {
        method: None,
        joules: None,
        reasons: vec![reason.to_owned()],
        boundary: total.boundary.clone(),
    };
    let Some(joules) = total.joules else { return total };
    // Whether it is counted apart or lies in a meter of the whole machine.
    if accelerated {
        return unknown("what an accelerator used cannot be divided by CPU time");
    }
    let (Some(busy), Some(vcpus), Some(own)) = (cpu.busy_s, cpu.vcpus, cpu.part_s) else {
        return unknown("its CPU time is unknown");
    };
    let all = f64::from(vcpus) * duration_s;
    if !(busy > 0.0 && all > 0.0) {
        return unknown("the machine's CPU time did not advance: the window is too short");
    }
    // Clock ticks round: a share above one is one.
    let (low, high) = ((own / all).min(1.0), (own / busy).min(1.0));
    let joules = joules.share(low.min(high), high);
    Total { method: joules.map(|_| Method::Estimated), joules, ..total }
}

/// Minutes below which no joules are derived from a Neuron device.
pub(crate) const ENOUGH_MINUTES: u32 = 3;

/// Dies of the chips whose driver is known, where a device does not say what it is.
pub(crate) const MOST_DIES: u32 = 2;
