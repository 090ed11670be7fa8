//! Utilisation-seconds of Neuron devices since the last minute that was told, and the joules that declared watts make of them.
//!
//! The driver tells whole minutes, and the engine splits each over the steps between two looks, which lag behind the driver's
//! stamps by a second at most. Invariant: a minute is told once; one that any device says nothing of is unknown and never
//! filled in. Of the minute in which the first look falls the utilisation is unknown, but not what it can have been.

use std::collections::BTreeMap;

use njoule_energy::meter::neuron::{Minute, NeuronState, Verdict};
use njoule_energy::{Joules, Method, Snapshot};
use njoule_runtime::engine::{Metered, Utilised};

/// How far each device has been told.
#[derive(Debug)]
pub struct Utilisation {
    /// By the device's number.
    told: BTreeMap<u32, Told>,
}

/// What all devices together have told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Minutes {
    /// Utilisation-seconds.
    pub util: Utilised,
    /// By the declared watts.
    pub energy: Metered,
    /// How long ago the last minute was over.
    pub lag_s: f64,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    /// Up to here, monotonic.
    until_ns: u64,
    /// End of the last line that was seen.
    line_ns: u64,
    /// The running total there.
    util_seconds: f64,
}

impl Utilisation {
    /// From `start` on.
    pub fn begin(start: &Snapshot) -> Utilisation {
        let told = |device: &NeuronState| Told { until_ns: start.mono_ns, ..Told::at(device) };
        Utilisation { told: start.neuron.iter().map(|device| (device.device, told(device))).collect() }
    }

    /// What all devices together have told since; a share of a machine's devices cannot be told by a process's CPU time.
    pub fn since(&mut self, now: &Snapshot) -> Minutes {
        let unknown = Minutes { util: Utilised::Unknown, energy: Metered::Unknown, lag_s: 0.0 };
        if now.neuron.is_empty() || now.part_cpu_s.is_some() || now.part_trouble.is_some() {
            return unknown;
        }
        let (mut util, mut energy) = (Some(0.0), Joules::within(0.0, 0.0, 0.0));
        for device in &now.neuron {
            let Some(before) = self.told.get(&device.device) else {
                (util, energy) = (None, None);
                continue;
            };
            let mut new = device.minutes.iter().filter(|minute| minute.to_ns > before.line_ns).peekable();
            if new.peek().is_none() && !(device.stalled || device.trouble.is_some()) {
                return Minutes { util: Utilised::NotYet, energy: Metered::NotYet, lag_s: 0.0 };
            }
            let used = before.used(device, new);
            // Of a minute that had begun before there are ends alone.
            util = util.zip(used).and_then(|(sum, (_, [least, _, most]))| (least == most).then_some(sum + most));
            let joules = used.and_then(|(seconds, util)| device.joules(seconds, util));
            energy = energy.zip(joules).map(|(sum, joules)| sum.plus(joules));
        }
        self.told = now.neuron.iter().map(|device| (device.device, Told::at(device))).collect();
        let lines = self.told.values().map(|told| told.line_ns);
        Minutes {
            util: util.map_or(Utilised::Unknown, Utilised::Known),
            energy: energy.map_or(Metered::Unknown, |joules| Metered::Known(joules, Method::Derived)),
            lag_s: now.mono_ns.saturating_sub(lines.min().unwrap_or(now.mono_ns)) as f64 * 1e-9,
        }
    }
}

impl Told {
    fn at(device: &NeuronState) -> Told {
        let line_ns = device.minutes.back().map_or(0, |minute| minute.to_ns);
        Told { until_ns: line_ns, line_ns, util_seconds: device.util_seconds }
    }

    /// The seconds that `new` minutes are told of, and the least, the likeliest and the most utilisation-seconds of them.
    fn used<'a>(&self, device: &NeuronState, new: impl Iterator<Item = &'a Minute>) -> Option<(f64, [f64; 3])> {
        let (mut first, mut end_ns) = (None, self.until_ns);
        for minute in new {
            if minute.verdict != Verdict::Valid {
                return None;
            }
            first.get_or_insert(*minute);
            end_ns = minute.to_ns;
        }
        let first = first?;
        let seconds = end_ns.saturating_sub(self.until_ns) as f64 * 1e-9;
        let util = (device.util_seconds - self.util_seconds).max(0.0);
        let before = self.until_ns.saturating_sub(first.from_ns);
        if before <= SLACK_NS {
            return Some((seconds, [util; 3]));
        }
        // Of the first, the part before may have had all of it that it has room for, or none.
        let (before, own) = (before as f64 * 1e-9, first.mean * first.seconds);
        let within = (first.seconds - before).max(0.0);
        let [least, likeliest, most] =
            [(own - before).max(0.0), own * within / first.seconds, own.min(within)].map(|part| util - own + part);
        let least = least.clamp(0.0, most.max(0.0));
        Some((seconds, [least, likeliest.clamp(least, most.max(least)), most.max(least)]))
    }
}

/// Stamps are whole seconds of the wall clock, which is slewed.
const SLACK_NS: u64 = 500_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::metering::tests::Hands;
    use njoule_energy::clock::Now;
    use njoule_energy::{Meters, Root, Wanted};
    use std::sync::{Arc, Mutex};

    /// A machine whose devices say what a test wants, minute by minute.
    struct Machine {
        dir: tempfile::TempDir,
        hands: Hands,
        meters: Meters,
    }

    impl Machine {
        /// Fifteen seconds into a minute.
        fn new(devices: u32) -> Machine {
            let dir = tempfile::tempdir().unwrap();
            let now = Now { mono_ns: 1_000_000_000_000, unix_s: 60_015.0 };
            let hands = Hands(Arc::new(Mutex::new(now)));
            for device in 0..devices {
                write(dir.path(), device, "VALID", 60_000, 10.0);
            }
            let neuron_watts = "base=30,span=100".parse().ok();
            let wanted = Wanted { neuron_watts, ..Wanted::all(Root::at(dir.path())) };
            let meters = Meters::open_with(&wanted, &njoule_energy::perf::Elsewhere, Box::new(hands.clone()));
            Machine { dir, hands, meters }
        }

        fn pass(&self, seconds: f64) {
            let mut now = self.hands.0.lock().unwrap();
            now.mono_ns += (seconds * 1e9) as u64;
            now.unix_s += seconds;
        }

        fn line(&self, device: u32, status: &str, stamp: u64, mean: f64) {
            write(self.dir.path(), device, status, stamp, mean);
        }
    }

    fn write(root: &std::path::Path, device: u32, status: &str, stamp: u64, mean: f64) {
        let dir = root.join(format!("sys/devices/virtual/neuron_device/neuron{device}"));
        let file = |path: &str, text: String| {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        file("info/architecture/device_name", "Inferentia2\n".to_owned());
        file("stats/power/utilization", format!("POWER_STATUS_{status},{stamp},0.00,100.00,{mean:.2}\n"));
    }

    #[test]
    fn whole_minutes_of_all_devices_are_told_once() {
        let mut m = Machine::new(2);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        m.pass(30.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()).util, Utilised::NotYet);
        // The minute that had begun before.
        m.pass(16.0);
        (0..2).for_each(|device| m.line(device, "VALID", 60_060, 50.0));
        assert_eq!(utilisation.since(&m.meters.snapshot()).util, Utilised::Unknown);
        m.pass(59.0);
        m.line(0, "VALID", 60_120, 20.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()).util, Utilised::NotYet, "one device alone");
        m.pass(1.0);
        m.line(1, "VALID", 60_120, 30.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()).util, Utilised::Known(30.0));
        assert_eq!(utilisation.since(&m.meters.snapshot()).util, Utilised::NotYet);
        // A minute of which one device knows nothing is unknown, and the next is not lost with it.
        m.pass(60.0);
        m.line(0, "VALID", 60_180, 20.0);
        m.line(1, "NO_DATA", 60_180, 0.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()).util, Utilised::Unknown);
        m.pass(60.0);
        (0..2).for_each(|device| m.line(device, "VALID", 60_240, 10.0));
        assert_eq!(utilisation.since(&m.meters.snapshot()).util, Utilised::Known(12.0));
    }

    #[test]
    fn without_devices_or_of_a_part_of_the_machine_nothing_is_known() {
        let mut none = Machine::new(0);
        let mut utilisation = Utilisation::begin(&none.meters.snapshot());
        assert_eq!(utilisation.since(&none.meters.snapshot()).util, Utilised::Unknown);
        let mut m = Machine::new(1);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        m.pass(60.0);
        m.line(0, "VALID", 60_060, 20.0);
        let part = Snapshot { part_cpu_s: Some(1.0), ..m.meters.snapshot() };
        assert_eq!(utilisation.since(&part).util, Utilised::Unknown);
    }

    /// Joules are those of the time up to the driver's stamp, of all devices; those of the minute that had begun lie between
    /// what its utilisation can have been.
    #[test]
    fn declared_watts_make_joules_of_every_minute() {
        let mut m = Machine::new(2);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        let mut told = |m: &mut Machine, lines: [(&str, f64); 2], stamp: u64| {
            m.pass(60.0);
            (0..).zip(lines).for_each(|(device, (status, mean))| m.line(device, status, stamp, mean));
            let minutes = utilisation.since(&m.meters.snapshot());
            let Metered::Known(joules, method) = minutes.energy else { return (minutes.util, None) };
            assert_eq!(method, Method::Derived);
            (minutes.util, Some([joules.low().unwrap(), joules.best(), joules.high().unwrap()].map(f64::round)))
        };
        // 45 s of it are ours. 50 %: 15 to 30 of the 30 utilisation-seconds; 90 %: 39 to 45 of 54.
        let base = 2.0 * 45.0 * 30.0;
        let first = told(&mut m, [("VALID", 50.0), ("VALID", 90.0)], 60_060);
        assert_eq!(first, (Utilised::Unknown, Some([base + 5400.0, base + 2250.0 + 4050.0, base + 7500.0])));
        let whole = told(&mut m, [("VALID", 50.0), ("VALID", 0.0)], 60_120);
        assert_eq!(whole, (Utilised::Known(30.0), Some([6600.0; 3])));
        assert_eq!(told(&mut m, [("VALID", 50.0), ("NO_DATA", 0.0)], 60_180), (Utilised::Unknown, None));
        // Minutes that nobody has read while a model was loaded, and how long the last has been over.
        let mut m = Machine::new(1);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        for (stamp, mean) in [(60_060, 50.0), (60_120, 20.0)] {
            m.pass(60.0);
            m.line(0, "VALID", stamp, mean);
            m.meters.poll_devices();
        }
        m.pass(20.0);
        let minutes = utilisation.since(&m.meters.snapshot());
        let Metered::Known(joules, _) = minutes.energy else { panic!("{minutes:?}") };
        let ends = joules.bounds().map(|(low, high)| [low, high].map(f64::round));
        assert_eq!(ends, Some([105.0 * 30.0 + 1500.0 + 1200.0, 105.0 * 30.0 + 3000.0 + 1200.0]));
        assert_eq!((minutes.util, minutes.lag_s.round()), (Utilised::Unknown, 35.0));
        // Where nothing ran before, nothing is in doubt.
        let mut m = Machine::new(1);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        m.pass(46.0);
        m.line(0, "VALID", 60_060, 0.0);
        let minutes = utilisation.since(&m.meters.snapshot());
        assert_eq!(minutes.util, Utilised::Known(0.0));
        assert!(matches!(minutes.energy, Metered::Known(joules, _) if (joules.best() - 1350.0).abs() < 1e-6));
    }

    /// A driver that stops to say anything does not hold the books up for ever.
    #[test]
    fn a_dead_sampler_is_unknown() {
        let mut m = Machine::new(1);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        m.pass(200.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()).util, Utilised::Unknown);
    }
}
