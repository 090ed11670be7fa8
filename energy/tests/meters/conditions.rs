//! Throttling, clocks and temperatures of made-up machines: told, flagged, or null where the machine says nothing.

use njoule_energy::conditions::Conditions;
use njoule_energy::report::Report;
use njoule_energy::window::Flag;
use njoule_energy::{Root, Snapshot, Window};
use serde_json::{Value, json};

use crate::form::check;
use crate::machine::{Machine, window};

/// Two cores of a package at 3 GHz of at most 3.5.
fn intel() -> Machine {
    let m = Machine::new().intel();
    throttled(&m, 7, 100);
    clock(&m, 3_000_000);
    m.put("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "3500000\n");
    policy(&m, "performance", 3_500_000);
    m.put("/sys/class/thermal/thermal_zone0/type", "acpitz\n");
    m.put("/sys/class/thermal/thermal_zone0/temp", "99000\n");
    m.put("/sys/class/thermal/thermal_zone1/type", "x86_pkg_temp\n");
    m.put("/sys/class/thermal/thermal_zone1/temp", "61500\n");
    m.put("/sys/class/hwmon/hwmon3/name", "coretemp\n");
    m.put("/sys/class/hwmon/hwmon3/temp2_input", "63000\n");
    m.put("/sys/class/hwmon/hwmon3/temp3_input", "999000\n");
    m
}

fn throttled(m: &Machine, core: u64, package: u64) {
    for cpu in 0..2 {
        let dir = format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle");
        m.put(&format!("{dir}/core_throttle_count"), format!("{core}\n"));
        m.put(&format!("{dir}/package_throttle_count"), format!("{package}\n"));
    }
}

fn clock(m: &Machine, khz: u64) {
    m.put("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", format!("{khz}\n"));
}

fn policy(m: &Machine, governor: &str, khz: u64) {
    let dir = "/sys/devices/system/cpu/cpufreq/policy0";
    m.put(&format!("{dir}/scaling_governor"), format!("{governor}\n"));
    m.put(&format!("{dir}/scaling_max_freq"), format!("{khz}\n"));
}

/// A window of ten seconds in which `change` happens.
fn around(m: &Machine, change: impl FnOnce(&Machine)) -> Window {
    let root = Root::at(m.path("/"));
    let mut meters = m.meters(&m.wanted());
    let look = |snapshot: Snapshot| Snapshot { conditions: Some(Conditions::read(&root)), ..snapshot };
    let start = look(meters.snapshot());
    m.hands.pass(10.0);
    change(m);
    window(&start, &look(meters.snapshot()))
}

fn flags(window: &Window) -> Vec<Flag> {
    window.flags.iter().copied().filter(|f| matches!(f, Flag::Throttled | Flag::ClockChanged)).collect()
}

fn told(window: Window) -> Value {
    let report = Report::of("run", "local", window).json();
    assert_eq!(check(&report), Vec::<String>::new(), "{report:#}");
    report["conditions"].clone()
}

#[test]
fn a_quiet_machine_is_told_and_not_flagged() {
    let quiet = around(&intel(), |m| clock(m, 2_900_000));
    assert_eq!(flags(&quiet), []);
    let expected = json!({
        "throttle_events": 0, "clock_changed": false,
        "cpu_mhz": {"start": 3000.0, "end": 2900.0}, "temperature_c": {"start": 63.0, "end": 63.0},
    });
    assert_eq!(told(quiet), expected);
}

#[test]
fn heat_a_sinking_clock_and_another_policy_are_flagged() {
    let hot = around(&intel(), |m| throttled(m, 8, 100));
    assert_eq!(flags(&hot), [Flag::Throttled]);
    assert_eq!(told(hot)["throttle_events"], 2, "once on each thread of the core");
    assert_eq!(flags(&around(&intel(), |m| clock(m, 2_600_000))), [Flag::ClockChanged]);
    // An idle machine that begins to work is none that changed.
    assert_eq!(flags(&around(&intel(), |m| clock(m, 3_500_000))), []);
    assert_eq!(flags(&around(&intel(), |m| policy(m, "powersave", 3_500_000))), [Flag::ClockChanged]);
    assert_eq!(flags(&around(&intel(), |m| policy(m, "performance", 2_000_000))), [Flag::ClockChanged]);
    let report = Report::of("run", "local", around(&intel(), |m| throttled(m, 7, 101))).json();
    assert_eq!(report["validity"]["ok"], false);
    assert!(report["validity"]["flags"].as_array().unwrap().contains(&json!("throttled")), "{report}");
}

/// Counts that fell are those of other processors.
#[test]
fn what_cannot_be_subtracted_is_unknown() {
    let gone = around(&intel(), |m| throttled(m, 1, 1));
    assert_eq!((flags(&gone), gone.conditions.throttle_events), (vec![], None));
}

#[test]
fn a_machine_that_says_nothing_is_null_and_so_is_a_guest_with_its_constant_clock() {
    let unknown = json!({
        "throttle_events": null, "clock_changed": null,
        "cpu_mhz": {"start": null, "end": null}, "temperature_c": {"start": null, "end": null},
    });
    assert_eq!(told(around(&Machine::new(), |_| {})), unknown);
    let guest = Machine::new();
    guest.put("/proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 2500.000\nflags\t\t: fpu hypervisor\n");
    guest.put("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "what\n");
    guest.put("/sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n");
    guest.put("/sys/class/thermal/thermal_zone0/temp", "\n");
    assert_eq!(told(around(&guest, |_| {})), unknown);
    // A window whose conditions nobody read.
    let m = intel();
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.0);
    assert_eq!(told(window(&start, &meters.snapshot())), unknown);
}

/// Without clock policies the kernel's list of processors has the clock.
#[test]
fn a_clock_is_read_from_the_list_of_processors() {
    let m = Machine::new();
    let list = |mhz: f64| {
        format!("processor\t: 0\ncpu MHz\t\t: {mhz:.3}\nflags\t\t: fpu\n\nprocessor\t: 1\ncpu MHz\t\t: 800.000\n")
    };
    m.put("/proc/cpuinfo", list(3000.0));
    let sank = around(&m, |m| m.put("/proc/cpuinfo", list(2000.0)));
    assert_eq!((flags(&sank), sank.conditions.cpu_mhz), (vec![Flag::ClockChanged], [Some(3000.0), Some(2000.0)]));
}
