//! Neuron devices: whole minutes, what does not count, and joules from declared watts alone.

use njoule_energy::meter::neuron::Line;
use njoule_energy::window::Flag;
use njoule_energy::{Meters, Method, Report, Snapshot};
use proptest::prelude::*;

use crate::machine::{Machine, near, window};

/// 1 726 000 000 is 40 s after a full minute; the next stamp falls 20 s later.
const FIRST: u64 = 1_726_000_020;

struct Minutes<'a> {
    m: &'a Machine,
    meters: Meters,
    stamp: u64,
}

impl<'a> Minutes<'a> {
    /// A machine with these devices that have said something once, looked at a second after a stamp.
    fn new(m: &'a Machine, devices: &[(u32, &str)], watts: Option<&str>) -> Minutes<'a> {
        for (device, name) in devices {
            m.put(&format!("/sys/devices/virtual/neuron_device/neuron{device}/info/architecture/device_name"), *name);
            m.power_line(*device, &line("VALID", FIRST, 50.0));
        }
        m.hands.pass(21.0);
        let mut wanted = m.wanted();
        wanted.neuron_watts = watts.map(|watts| watts.parse().unwrap());
        Minutes { meters: m.meters(&wanted), m, stamp: FIRST }
    }

    /// A minute passes, and each device says its line.
    fn minute(&mut self, lines: &[(u32, &str, f64)]) -> Snapshot {
        self.stamp += 60;
        self.m.hands.pass(60.0);
        for (device, status, mean) in lines {
            self.m.power_line(*device, &line(status, self.stamp, *mean));
        }
        self.meters.snapshot()
    }

    fn start(&mut self) -> Snapshot {
        self.meters.snapshot()
    }
}

fn line(status: &str, stamp: u64, mean: f64) -> String {
    let max = (mean + 20.0).min(100.0);
    format!("POWER_STATUS_{status},{stamp},{:.2},{max:.2},{mean:.2}", mean / 2.0)
}

#[test]
fn utilisation_seconds_are_measured_and_joules_stay_unknown() {
    let m = Machine::new();
    let mut minutes = Minutes::new(&m, &[(0, "Inferentia2")], None);
    let start = minutes.start();
    // The window began a second behind a stamp: the minute that was under way does not lie in it.
    let means = [10.0, 40.0, 60.0, 20.0];
    let end = means.map(|mean| minutes.minute(&[(0, "VALID", mean)])).into_iter().last().unwrap();
    let w = window(&start, &end);
    let device = &w.neuron[0];
    assert!((device.util_seconds - 60.0 * 1.2).abs() < 1e-9, "{device:?}");
    assert_eq!((device.minutes, device.covered_s, device.status), (3, 180.0, "valid"));
    assert_eq!(device.util.unwrap().1, 0.10);
    assert_eq!((device.joules, device.max_over_dies), (None, Some(false)));
    assert_eq!((w.total.joules, w.total.boundary.as_str()), (None, "accelerator"));
    assert!(w.total.reasons[0].starts_with("neuron0: no watts are published"), "{:?}", w.total.reasons);
}

#[test]
fn declared_watts_give_low_and_high_joules() {
    let m = Machine::new();
    let mut minutes = Minutes::new(&m, &[(0, "Inferentia2"), (1, "Trainium2")], Some("base=20..60,span=40..150"));
    let start = minutes.start();
    let end = (0..4).map(|_| minutes.minute(&[(0, "VALID", 50.0), (1, "VALID", 50.0)])).last().unwrap();
    let w = window(&start, &end);
    // 240 s; 180 s covered at 0.5; 60 s unknown: none to all of the span.
    let (low, high) = w.neuron[0].joules.unwrap().bounds().unwrap();
    near(low, 20.0 * 240.0 + 40.0 * 90.0);
    near(high, 60.0 * 240.0 + 150.0 * 150.0);
    // The larger of two dies: the other may have idled.
    let (low, high) = w.neuron[1].joules.unwrap().bounds().unwrap();
    near(low, 20.0 * 240.0 + 20.0 * 90.0);
    near(high, 60.0 * 240.0 + 150.0 * 150.0);
    assert_eq!(w.neuron[1].max_over_dies, Some(true));
    assert_eq!(w.total.method, Some(Method::Derived));
    assert!(w.flags.contains(&Flag::Extrapolated));
    let sum = w.total.joules.unwrap();
    near(sum.low().unwrap(), 2.0 * 4800.0 + 3600.0 + 1800.0);
}

#[test]
fn minutes_without_data_are_dark_and_flagged() {
    let m = Machine::new();
    let mut minutes = Minutes::new(&m, &[(0, "Inferentia2")], Some("base=30,span=100"));
    let start = minutes.start();
    minutes.minute(&[(0, "VALID", 50.0)]); // began before the window
    minutes.minute(&[(0, "VALID", 50.0)]);
    minutes.minute(&[(0, "NO_DATA", 0.0)]);
    minutes.minute(&[(0, "VALID", 30.0)]);
    let two = window(&start, &minutes.minute(&[(0, "INVALID", 0.0)]));
    assert_eq!((two.neuron[0].minutes, two.neuron[0].util_seconds), (2, 48.0));
    assert_eq!(two.total.joules, None);
    assert!(two.flags.contains(&Flag::NoDataMinutes) && two.flags.contains(&Flag::MeterGap), "{:?}", two.flags);
    let three = window(&start, &minutes.minute(&[(0, "VALID", 20.0)]));
    // 360 s, 180 covered with 60 util-seconds.
    let joules = three.total.joules.unwrap();
    near(joules.low().unwrap(), 30.0 * 360.0 + 100.0 * 60.0);
    near(joules.high().unwrap(), 30.0 * 360.0 + 100.0 * (60.0 + 180.0));
    near(joules.best(), 30.0 * 360.0 + 100.0 * 120.0);
}

#[test]
fn nothing_but_no_data_says_what_that_means() {
    let m = Machine::new();
    let mut minutes = Minutes::new(&m, &[(0, "Inferentia2")], Some("base=30,span=100"));
    let start = minutes.start();
    let end = (0..4).map(|_| minutes.minute(&[(0, "NO_DATA", 0.0)])).last().unwrap();
    let w = window(&start, &end);
    assert_eq!((w.total.joules, w.neuron[0].status), (None, "no_data"));
    assert!(w.total.reasons[0].contains("firmware older than API 3"), "{:?}", w.total.reasons);
}

#[test]
fn a_stamp_that_never_changes_is_the_reason() {
    let m = Machine::new();
    let mut minutes = Minutes::new(&m, &[(0, "Inferentia2")], Some("base=30,span=100"));
    let start = minutes.start();
    let end = (0..4).map(|_| minutes.minute(&[])).last().unwrap();
    let w = window(&start, &end);
    assert_eq!((w.total.joules, w.neuron[0].status), (None, "stalled"));
    assert!(w.flags.contains(&Flag::MeterStalled), "{:?}", w.flags);
    assert!(
        w.total.reasons[0].contains(&format!("the stamp {FIRST} has not changed for 240 s")),
        "{:?}",
        w.total.reasons
    );
    // It goes on: nothing is held against it.
    assert_eq!(minutes.minute(&[(0, "VALID", 5.0)]).neuron[0].trouble, None);
}

/// Tokens are of the whole window, utilisation of its counted minutes: one is stretched over the other, and that is said.
#[test]
fn tokens_per_util_second_are_of_one_and_the_same_time() {
    let m = Machine::new();
    let mut minutes = Minutes::new(&m, &[(0, "Inferentia2")], None);
    let start = minutes.start();
    let report = |end: &Snapshot| {
        let mut report = Report::of("", "local", window(&start, end));
        report.work.output_tokens = Some(2400);
        report.json()
    };
    let three = (0..3).map(|_| minutes.minute(&[(0, "VALID", 50.0)])).last().unwrap();
    // Two whole minutes: too few.
    assert!(report(&three)["metrics"]["output_tokens_per_util_second"].is_null());
    // 240 s, 180 of them counted at a half: 120 utilisation-seconds.
    let four = report(&minutes.minute(&[(0, "VALID", 50.0)]));
    near(four["metrics"]["output_tokens_per_util_second"].as_f64().unwrap(), 20.0);
    assert!(four["validity"]["flags"].as_array().unwrap().contains(&"extrapolated".into()), "{four}");
    assert_eq!(four["neuron_power"][0]["util_seconds"], 90.0);
}

#[test]
fn a_valid_zero_is_a_real_zero() {
    let m = Machine::new();
    let mut minutes = Minutes::new(&m, &[(0, "Inferentia2")], Some("base=30,span=100"));
    let start = minutes.start();
    let end = (0..4).map(|_| minutes.minute(&[(0, "VALID", 0.0)])).last().unwrap();
    let w = window(&start, &end);
    assert_eq!(w.neuron[0].util, Some((0.0, 0.0, 0.2)));
    near(w.total.joules.unwrap().low().unwrap(), 30.0 * 240.0);
}

#[test]
fn a_clock_that_is_set_and_a_missed_line_make_minutes_that_do_not_count() {
    let m = Machine::new();
    let mut minutes = Minutes::new(&m, &[(0, "Inferentia2")], None);
    let start = minutes.start();
    minutes.minute(&[(0, "VALID", 50.0)]);
    minutes.minute(&[(0, "VALID", 50.0)]);
    m.hands.step(2.0);
    let stepped = minutes.minute(&[(0, "VALID", 50.0)]);
    let w = window(&start, &stepped);
    assert_eq!(w.neuron[0].minutes, 1);
    assert!(w.flags.contains(&Flag::NtpStep), "{:?}", w.flags);
    // A line that nobody read: the next one's span is two minutes.
    minutes.stamp += 60;
    m.hands.pass(60.0);
    let gap = window(&stepped, &minutes.minute(&[(0, "VALID", 50.0)]));
    assert_eq!(gap.neuron[0].minutes, 0);
    assert!(gap.flags.contains(&Flag::MeterGap), "{:?}", gap.flags);
}

#[test]
fn a_first_stamp_of_zero_begins_nothing() {
    let m = Machine::new();
    m.power_line(0, "POWER_STATUS_NO_DATA,0,0.00,0.00,0.00");
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(21.0);
    m.power_line(0, &line("VALID", FIRST, 90.0));
    meters.poll();
    m.hands.pass(60.0);
    m.power_line(0, &line("VALID", FIRST + 60, 10.0));
    let w = window(&start, &meters.snapshot());
    assert_eq!((w.neuron[0].minutes, w.neuron[0].util_seconds), (1, 6.0));
    assert_eq!(w.neuron[0].max_over_dies, None); // it does not say what it is
}

#[test]
fn an_old_driver_is_told_from_no_driver() {
    let m = Machine::new();
    m.put("/sys/devices/virtual/neuron_device/neuron0/core_count", "2");
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.0);
    let w = window(&start, &meters.snapshot());
    assert!(w.total.reasons[0].contains("a driver older than 2.21.37"), "{:?}", w.total.reasons);
    let none = Machine::new();
    assert!(none.meters(&none.wanted()).snapshot().neuron.is_empty());
}

proptest! {
    #[test]
    fn any_line_is_a_figure_or_none(text in ".{0,60}", status in "[A-Z_]{0,12}", numbers in prop::collection::vec("-?[0-9]{0,24}\\.?[0-9]{0,3}", 0..6)) {
        for text in [text, format!("POWER_STATUS_{status},{}", numbers.join(","))] {
            if let Some(line) = Line::parse(&text) {
                let (min, max, mean) = line.figures;
                prop_assert!([min, max, mean].iter().all(|share| (0.0..=1.0).contains(share)));
            }
        }
    }
}
