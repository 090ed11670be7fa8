//! RAPL by perf and by powercap.

use njoule_energy::Method;
use njoule_energy::window::Flag;

use crate::machine::{FakePerf, Machine, near, window};

/// The range of Intel servers at 2^-14 J: wraps at 262143.328911 J.
const RANGE: u64 = 262_143_328_850;

#[test]
fn packages_and_memories_add_up_and_parts_do_not() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 1_000_000, RANGE);
    m.zone("0:0", "core", 500_000, RANGE);
    m.zone("0:1", "dram", 10, RANGE);
    m.zone("1", "package-1", 0, RANGE);
    m.zone("2", "psys", 77, RANGE);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(10.0);
    m.zone("0", "package-0", 101_000_000, RANGE);
    m.zone("0:0", "core", 60_500_000, RANGE);
    m.zone("0:1", "dram", 20_000_010, RANGE);
    m.zone("1", "package-1", 50_000_000, RANGE);
    m.zone("2", "psys", 300_000_077, RANGE);
    let w = window(&start, &meters.snapshot());
    let total = w.total.joules.unwrap();
    assert_eq!(total.best(), 170.0);
    assert_eq!((w.total.boundary.as_str(), w.total.method), ("cpu+dram", Some(Method::Measured)));
    // 5 % each, and the edges: 10 + 2 + 5 W over 2 ms.
    let (low, high) = total.bounds().unwrap();
    assert!(
        (low - (170.0 * 0.95 - 0.034)).abs() < 1e-6 && (high - (170.0 * 1.05 + 0.034)).abs() < 1e-6,
        "{low} {high}"
    );
    let counted: Vec<(&str, bool)> = w.meters.iter().map(|m| (m.info.id.as_str(), m.info.counts_in_total)).collect();
    let expected = [
        ("powercap-0", true),
        ("powercap-0:0", false),
        ("powercap-0:1", true),
        ("powercap-1", true),
        ("powercap-2", false),
    ];
    assert_eq!(counted, expected);
    assert_eq!(w.meters[1].joules.unwrap().best(), 60.0);
    assert_eq!(w.meters[1].info.parent.as_deref(), Some("powercap-0"));
}

#[test]
fn a_wrap_costs_nothing_and_a_long_gap_makes_it_unknown() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", RANGE - 1_000_000, RANGE);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(60.0);
    m.zone("0", "package-0", 2_000_000, RANGE);
    let end = meters.snapshot();
    let w = window(&start, &end);
    // 1 J to the last value, the step of the register behind it (61 µJ), 2 J from zero.
    near(w.total.joules.unwrap().best(), 3.000061);
    assert_eq!(w.meters[0].wraps, 1);
    // At 1000 W it wraps in 262 s.
    m.hands.pass(300.0);
    m.zone("0", "package-0", 3_000_000, RANGE);
    let late = window(&end, &meters.snapshot());
    assert_eq!(late.total.joules, None);
    assert!(late.flags.contains(&Flag::WrapAmbiguous), "{:?}", late.flags);
    assert!(late.total.reasons[0].contains("may have wrapped unseen"), "{:?}", late.total.reasons);
}

#[test]
fn a_counter_shown_twice_counts_once() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 5_000_000, RANGE);
    m.zone("1", "package-0", 5_000_000, RANGE);
    m.put("/sys/class/powercap/intel-rapl-mmio:0/name", "package-0");
    m.put("/sys/class/powercap/intel-rapl-mmio:0/energy_uj", "5000000");
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.0);
    m.zone("0", "package-0", 73_000_000, RANGE);
    m.zone("1", "package-0", 73_000_000, RANGE);
    let w = window(&start, &meters.snapshot());
    assert_eq!(w.total.joules.unwrap().best(), 68.0);
    assert_eq!(w.meters.len(), 2);
    assert_eq!(w.meters[1].info.excluded.as_deref(), Some("shows the counter of another zone"));
}

#[test]
fn a_meter_that_fails_in_between_is_unknown_with_its_reason() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    m.zone("0:0", "dram", 0, RANGE);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.0);
    m.zone("0", "package-0", 10_000_000, RANGE);
    m.remove("/sys/class/powercap/intel-rapl:0:0/energy_uj");
    let end = meters.snapshot();
    let w = window(&start, &end);
    assert_eq!(w.meters[0].joules.unwrap().best(), 10.0);
    assert_eq!((w.total.joules, w.total.method), (None, None));
    assert!(w.total.reasons[0].starts_with("powercap-0:0: ") && w.total.reasons[0].contains("not there"), "{w:?}");
    assert!(w.flags.contains(&Flag::MeterGap));
    // Once it is back, a window that begins now is whole; one that begins at the failure is not.
    m.put("/sys/class/powercap/intel-rapl:0:0/energy_uj", "1000000");
    m.hands.pass(1.0);
    m.zone("0", "package-0", 20_000_000, RANGE);
    let back = meters.snapshot();
    assert_eq!(window(&end, &back).total.joules, None);
    m.hands.pass(1.0);
    m.zone("0", "package-0", 30_000_000, RANGE);
    m.put("/sys/class/powercap/intel-rapl:0:0/energy_uj", "3000000");
    assert_eq!(window(&back, &meters.snapshot()).total.joules.unwrap().best(), 12.0);
}

#[cfg(unix)]
#[test]
fn no_permission_says_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    let file = m.path("/sys/class/powercap/intel-rapl:0/energy_uj");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::read(&file).is_ok() {
        eprintln!("skipped: root reads everything");
        return;
    }
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.0);
    let w = window(&start, &meters.snapshot());
    assert_eq!(w.total.joules, None);
    assert!(
        w.total.reasons.iter().any(|r| r.contains("no permission") && r.contains("udev rule")),
        "{:?}",
        w.total.reasons
    );
}

fn perf_tree(m: &Machine) {
    let dir = "/sys/bus/event_source/devices/power";
    m.put(&format!("{dir}/type"), "9\n");
    m.put(&format!("{dir}/cpumask"), "0,64\n");
    for (name, config) in [("energy-pkg", "event=0x02"), ("energy-ram", "event=0x03"), ("energy-cores", "event=0x01")] {
        m.put(&format!("{dir}/events/{name}"), config);
        m.put(&format!("{dir}/events/{name}.scale"), "2.3283064365386962890625e-10\n");
        m.put(&format!("{dir}/events/{name}.unit"), "Joules\n");
    }
}

#[test]
fn perf_counts_every_package_and_goes_before_powercap() {
    let m = Machine::new().intel();
    perf_tree(&m);
    m.zone("0", "package-0", 0, RANGE);
    let perf = FakePerf::default();
    let joule = 1u64 << 32;
    for (key, end) in [((2, 0), 30), ((2, 64), 20), ((3, 0), 4), ((3, 64), 3), ((1, 0), 11), ((1, 64), 12)] {
        // Once when opened, once at the start, then the end; the counter began somewhere.
        perf.counters.borrow_mut().push((key, [7 * joule, 7 * joule, (7 + end) * joule].into()));
    }
    let mut meters = m.meters_with(&perf);
    let start = meters.snapshot();
    m.hands.pass(2.0);
    let w = window(&start, &meters.snapshot());
    assert_eq!(w.total.joules.unwrap().best(), 57.0);
    assert_eq!(w.meters.len(), 6, "{:?}", w.meters);
    assert!(w.meters.iter().all(|m| m.info.source.starts_with("perf:power/energy-")));
}

#[test]
fn perf_without_permission_names_the_level_and_powercap_stands_in() {
    let m = Machine::new().intel();
    perf_tree(&m);
    m.put("/proc/sys/kernel/perf_event_paranoid", "4\n");
    m.zone("0", "package-0", 0, RANGE);
    let mut meters = m.meters_with(&FakePerf { refuses: Some(13), ..FakePerf::default() });
    let start = meters.snapshot();
    m.hands.pass(1.0);
    m.zone("0", "package-0", 9_000_000, RANGE);
    let w = window(&start, &meters.snapshot());
    assert_eq!(w.total.joules.unwrap().best(), 9.0);
    let refused = w.absent.iter().find(|a| a.meter == "rapl-perf").unwrap();
    assert!(refused.reason.contains("CAP_PERFMON") && refused.reason.contains("it is 4"), "{refused:?}");
}

#[test]
fn amd_and_hypervisors_compute_and_do_not_measure() {
    for cpuinfo in
        ["vendor_id\t: AuthenticAMD\nflags\t\t: fpu\n", "vendor_id\t: GenuineIntel\nflags\t\t: fpu hypervisor\n"]
    {
        let m = Machine::new();
        m.put("/proc/cpuinfo", cpuinfo);
        m.zone("0", "package-0", 0, RANGE);
        let mut meters = m.meters(&m.wanted());
        let start = meters.snapshot();
        m.hands.pass(1.0);
        m.zone("0", "package-0", 1_000_000, RANGE);
        assert_eq!(window(&start, &meters.snapshot()).total.method, Some(Method::HardwareModel), "{cpuinfo}");
    }
}

#[test]
fn a_counter_that_stands_still_is_not_zero_joules() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(0.0005);
    let short = window(&start, &meters.snapshot());
    assert_eq!(short.total.joules, None);
    assert!(
        short.flags.contains(&Flag::ShortWindow) && short.total.reasons[0].contains("shorter than a step"),
        "{short:?}"
    );
    m.hands.pass(5.0);
    let still = window(&start, &meters.snapshot());
    assert_eq!(still.total.joules, None);
    assert_eq!(still.meters[0].reason.as_deref(), Some("the counter stands still"));
    // Nothing stands in for it: that, and not what is absent, is why the total is unknown.
    assert_eq!(still.total.reasons, ["powercap-0: the counter stands still"]);
    assert!(still.flags.contains(&Flag::MeterStalled), "{:?}", still.flags);
}

#[test]
fn one_dead_package_of_two_makes_the_total_unknown() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    m.zone("1", "package-1", 0, RANGE);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    for second in 1..=5 {
        m.hands.pass(1.0);
        m.zone("1", "package-1", second * 50_000_000, RANGE);
        meters.poll();
    }
    let w = window(&start, &meters.snapshot());
    assert_eq!(w.total.joules, None);
    assert_eq!(w.total.reasons, ["powercap-0: the counter stands still"]);
}

#[test]
fn a_counter_that_falls_faster_than_it_can_wrap_was_reset() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 100_000_000_000, RANGE);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.0);
    m.zone("0", "package-0", 5_000_000, RANGE);
    let w = window(&start, &meters.snapshot());
    assert_eq!((w.total.joules, w.meters[0].wraps), (None, 0));
    assert!(w.total.reasons[0].contains("the counter was reset"), "{:?}", w.total.reasons);
}

/// Its counters are none of the tree's, and this process may be allowed to open them.
#[test]
fn the_machines_own_perf_is_not_opened_for_another_tree() {
    let m = Machine::new().intel();
    perf_tree(&m);
    // A unit that every kernel has, in the place of the power unit.
    m.put("/sys/bus/event_source/devices/power/type", "1\n");
    m.put("/sys/bus/event_source/devices/power/cpumask", "0\n");
    m.put("/sys/bus/event_source/devices/power/events/energy-pkg", "event=0x00");
    let absent = njoule_energy::Meters::open(&m.wanted()).snapshot().absent;
    let perf = absent.iter().find(|a| a.meter == "rapl-perf").unwrap();
    assert!(perf.reason.contains("another tree"), "{perf:?}");
}

#[test]
fn garbage_is_an_error_that_names_the_file() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    m.put("/sys/class/powercap/intel-rapl:0/energy_uj", "lots\n");
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.0);
    let w = window(&start, &meters.snapshot());
    assert!(w.total.reasons.iter().any(|r| r.contains("energy_uj: not understood: \"lots\"")), "{:?}", w.total.reasons);
}
