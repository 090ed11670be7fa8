//! What may have made a run another one: processors slowed down by heat, a changed clock, their temperature.
//!
//! Only what the machine's files say: a guest of a hypervisor mostly says nothing, and then all is `None`. It is read at the
//! ends of a window by who asks for it, not at every poll: some kernels measure a clock when its file is read.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::root::{Root, number, text};

/// A moment's conditions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// How often cores and packages were slowed down because they were hot, since the system started.
    pub throttle_events: Option<u64>,
    /// Clock of the CPU that read it, which was busy doing so.
    pub cpu_mhz: Option<f64>,
    /// The fastest that this CPU can.
    pub cpu_mhz_most: Option<f64>,
    /// What the clocks' policies are: governors and the clocks that they allow; `None` where there is no policy.
    pub policies: Option<BTreeSet<String>>,
    /// Degrees Celsius of the hottest sensor of a processor.
    pub temperature_c: Option<f64>,
}

/// The conditions of a window, from those at its ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConditionsWindow {
    /// Times that processors were slowed down because they were hot.
    pub throttle_events: Option<u64>,
    /// Clock at its beginning and end.
    pub cpu_mhz: [Option<f64>; 2],
    /// The same of temperatures.
    pub temperature_c: [Option<f64>; 2],
    /// Whether clocks were not those of the beginning.
    pub clock_changed: Option<bool>,
}

impl Conditions {
    /// Those of now.
    pub fn read(root: &Root) -> Conditions {
        let cpu = if root.is_machine() { own_cpu() } else { 0 };
        let khz = |file: &str| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/{file}");
            number(&root.join(path)).ok().filter(|khz| *khz > 0).map(|khz| khz as f64 / 1e3)
        };
        let mhz = khz("scaling_cur_freq");
        Conditions {
            throttle_events: throttle_events(root),
            cpu_mhz: mhz.or_else(|| cpuinfo_mhz(root, cpu)),
            cpu_mhz_most: khz("cpuinfo_max_freq").filter(|_| mhz.is_some()),
            policies: policies(root),
            temperature_c: temperature_c(root),
        }
    }

    /// Of the time from `self` to `later`.
    pub fn until(&self, later: &Conditions) -> ConditionsWindow {
        let events = self.throttle_events.zip(later.throttle_events);
        // Of processors that are not of one kind the fastest differ.
        let clock = |c: &Conditions| Some(c.cpu_mhz? / c.cpu_mhz_most.unwrap_or(1.0));
        let alike = self.cpu_mhz_most.is_some() == later.cpu_mhz_most.is_some();
        let clocks = clock(self).zip(clock(later)).filter(|_| alike);
        let sank = clocks.map(|(before, after)| after < before * (1.0 - SINKS));
        let policies = self.policies.as_ref().zip(later.policies.as_ref()).map(|(a, b)| a != b);
        ConditionsWindow {
            // Fewer than before: a processor was taken away, and its count with it.
            throttle_events: events.and_then(|(before, after)| after.checked_sub(before)),
            cpu_mhz: [self.cpu_mhz, later.cpu_mhz],
            temperature_c: [self.temperature_c, later.temperature_c],
            clock_changed: match (sank, policies) {
                (None, None) => None,
                (sank, policies) => Some(sank == Some(true) || policies == Some(true)),
            },
        }
    }
}

/// The CPU that this thread runs on.
#[cfg(target_os = "linux")]
fn own_cpu() -> usize {
    rustix::thread::sched_getcpu()
}

#[cfg(not(target_os = "linux"))]
fn own_cpu() -> usize {
    0
}

/// All counts of Intel's processors together; threads of a core show one twice, which a difference from zero does not mind.
fn throttle_events(root: &Root) -> Option<u64> {
    let mut sum: Option<u64> = None;
    for cpu in numbered(root, "/sys/devices/system/cpu", "cpu") {
        for count in ["core_throttle_count", "package_throttle_count"] {
            let path = root.join(format!("/sys/devices/system/cpu/{cpu}/thermal_throttle/{count}"));
            if let Ok(count) = number(&path) {
                sum = Some(sum.unwrap_or(0).saturating_add(count));
            }
        }
    }
    sum
}

/// Of a machine without clock policies, where it is no guest: guests are shown a constant.
fn cpuinfo_mhz(root: &Root, cpu: usize) -> Option<f64> {
    let cpuinfo = text(&root.join("/proc/cpuinfo")).ok()?;
    let value = |line: &str, key: &str| Some(line.strip_prefix(key)?.trim().strip_prefix(':')?.trim().to_owned());
    let guest = |line: &str| value(line, "flags").is_some_and(|f| f.split_whitespace().any(|f| f == "hypervisor"));
    if cpuinfo.lines().any(guest) {
        return None;
    }
    let mut here = false;
    for line in cpuinfo.lines() {
        if let Some(number) = value(line, "processor") {
            here = number.parse() == Ok(cpu);
        }
        if let Some(mhz) = value(line, "cpu MHz").filter(|_| here) {
            return mhz.parse().ok().filter(|mhz: &f64| mhz.is_finite() && *mhz > 0.0);
        }
    }
    None
}

fn policies(root: &Root) -> Option<BTreeSet<String>> {
    let dir = "/sys/devices/system/cpu/cpufreq";
    let mut found = BTreeSet::new();
    for policy in numbered(root, dir, "policy") {
        let file = |name: &str| text(&root.join(format!("{dir}/{policy}/{name}"))).unwrap_or_default();
        let said = ["scaling_governor", "scaling_min_freq", "scaling_max_freq"].map(file);
        if said.iter().any(|text| !text.is_empty()) {
            found.insert(said.join(" ").chars().take(MOST_CHARS).collect());
        }
    }
    (!found.is_empty()).then_some(found)
}

/// Of thermal zones and sensors that are a processor's by their names.
fn temperature_c(root: &Root) -> Option<f64> {
    let mut paths = vec![];
    for zone in numbered(root, "/sys/class/thermal", "thermal_zone") {
        let dir = format!("/sys/class/thermal/{zone}");
        let kind = text(&root.join(format!("{dir}/type"))).unwrap_or_default().to_ascii_lowercase();
        if kind == "x86_pkg_temp" || kind.contains("cpu") || kind.contains("soc") {
            paths.push(format!("{dir}/temp"));
        }
    }
    for sensor in numbered(root, "/sys/class/hwmon", "hwmon") {
        let dir = format!("/sys/class/hwmon/{sensor}");
        let name = text(&root.join(format!("{dir}/name"))).unwrap_or_default();
        if ["coretemp", "k10temp", "zenpower", "cpu_thermal"].contains(&name.as_str()) {
            let inputs = root.names(&dir).into_iter().filter(|n| n.starts_with("temp") && n.ends_with("_input"));
            paths.extend(inputs.map(|input| format!("{dir}/{input}")));
        }
    }
    let degrees = |path: &String| {
        // Thousandths, below zero as well; what no processor can have is a broken sensor.
        let thousandths: f64 = text(&root.join(path)).ok()?.parse().ok()?;
        Some(thousandths / 1e3).filter(|c| (-40.0..=150.0).contains(c))
    };
    paths.iter().filter_map(degrees).max_by(f64::total_cmp)
}

/// Names of a directory that are `prefix` and a number, a bounded count of them.
fn numbered(root: &Root, dir: &str, prefix: &str) -> Vec<String> {
    let number = |name: &String| {
        name.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    root.names(dir).into_iter().filter(number).take(MOST).collect()
}

/// A clock that fell by this much is another one; below, it is the turbo's play. It rises when an idle machine begins to work.
const SINKS: f64 = 0.1;

/// Processors, policies and sensors that are looked at.
const MOST: usize = 512;

const MOST_CHARS: usize = 120;
