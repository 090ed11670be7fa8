//! Utilisation-seconds of Neuron devices since the last minute that was told.
//!
//! The driver tells whole minutes, and the engine splits each over the steps between two looks, which lag behind the driver's
//! stamps by a second at most. Invariant: a minute is told once; one that began before the first look, or that any device
//! says nothing of, is unknown and never filled in.

use std::collections::BTreeMap;

use njoule_energy::Snapshot;
use njoule_energy::meter::neuron::{NeuronState, Verdict};
use njoule_runtime::engine::Utilised;

/// How far each device has been told.
#[derive(Debug)]
pub struct Utilisation {
    /// By the device's number.
    told: BTreeMap<u32, Told>,
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
    pub fn since(&mut self, now: &Snapshot) -> Utilised {
        if now.neuron.is_empty() || now.part_cpu_s.is_some() || now.part_trouble.is_some() {
            return Utilised::Unknown;
        }
        let mut sum = Some(0.0);
        for device in &now.neuron {
            let Some(before) = self.told.get(&device.device) else {
                sum = None;
                continue;
            };
            let new = || device.minutes.iter().filter(|minute| minute.to_ns > before.line_ns);
            match (new().next(), device.stalled || device.trouble.is_some()) {
                (None, false) => return Utilised::NotYet,
                (None, true) => sum = None,
                (Some(first), _) => {
                    let whole = first.from_ns.saturating_add(SLACK_NS) >= before.until_ns;
                    let valid = whole && new().all(|minute| minute.verdict == Verdict::Valid);
                    let more = device.util_seconds - before.util_seconds;
                    sum = sum.filter(|_| valid).map(|sum| sum + more.max(0.0));
                }
            }
        }
        self.told = now.neuron.iter().map(|device| (device.device, Told::at(device))).collect();
        sum.map_or(Utilised::Unknown, Utilised::Known)
    }
}

impl Told {
    fn at(device: &NeuronState) -> Told {
        let line_ns = device.minutes.back().map_or(0, |minute| minute.to_ns);
        Told { until_ns: line_ns, line_ns, util_seconds: device.util_seconds }
    }
}

/// Stamps are whole seconds of the wall clock, which is slewed.
const SLACK_NS: u64 = 500_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use njoule_energy::clock::{Clock, Now};
    use njoule_energy::{Meters, Root, Wanted};
    use std::sync::{Arc, Mutex};

    #[derive(Clone)]
    struct Hands(Arc<Mutex<Now>>);

    impl Clock for Hands {
        fn now(&self) -> Now {
            *self.0.lock().unwrap()
        }
    }

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
            let wanted = Wanted::all(Root::at(dir.path()));
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
        let dir = root.join(format!("sys/devices/virtual/neuron_device/neuron{device}/stats/power"));
        std::fs::create_dir_all(&dir).unwrap();
        let text = format!("POWER_STATUS_{status},{stamp},0.00,100.00,{mean:.2}\n");
        std::fs::write(dir.join("utilization"), text).unwrap();
    }

    #[test]
    fn whole_minutes_of_all_devices_are_told_once() {
        let mut m = Machine::new(2);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        m.pass(30.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()), Utilised::NotYet);
        // The minute that had begun before.
        m.pass(16.0);
        (0..2).for_each(|device| m.line(device, "VALID", 60_060, 50.0));
        assert_eq!(utilisation.since(&m.meters.snapshot()), Utilised::Unknown);
        m.pass(59.0);
        m.line(0, "VALID", 60_120, 20.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()), Utilised::NotYet, "one device alone");
        m.pass(1.0);
        m.line(1, "VALID", 60_120, 30.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()), Utilised::Known(30.0));
        assert_eq!(utilisation.since(&m.meters.snapshot()), Utilised::NotYet);
        // A minute of which one device knows nothing is unknown, and the next is not lost with it.
        m.pass(60.0);
        m.line(0, "VALID", 60_180, 20.0);
        m.line(1, "NO_DATA", 60_180, 0.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()), Utilised::Unknown);
        m.pass(60.0);
        (0..2).for_each(|device| m.line(device, "VALID", 60_240, 10.0));
        assert_eq!(utilisation.since(&m.meters.snapshot()), Utilised::Known(12.0));
    }

    #[test]
    fn without_devices_or_of_a_part_of_the_machine_nothing_is_known() {
        let mut none = Machine::new(0);
        let mut utilisation = Utilisation::begin(&none.meters.snapshot());
        assert_eq!(utilisation.since(&none.meters.snapshot()), Utilised::Unknown);
        let mut m = Machine::new(1);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        m.pass(60.0);
        m.line(0, "VALID", 60_060, 20.0);
        let part = Snapshot { part_cpu_s: Some(1.0), ..m.meters.snapshot() };
        assert_eq!(utilisation.since(&part), Utilised::Unknown);
    }

    /// A driver that stops to say anything does not hold the books up for ever.
    #[test]
    fn a_dead_sampler_is_unknown() {
        let mut m = Machine::new(1);
        let mut utilisation = Utilisation::begin(&m.meters.snapshot());
        m.pass(200.0);
        assert_eq!(utilisation.since(&m.meters.snapshot()), Utilised::Unknown);
    }
}
