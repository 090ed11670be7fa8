//! Meters of the whole machine, the model of an instance, and the share of a part.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use njoule_energy::load::Part;
use njoule_energy::meter::Scope;
use njoule_energy::meter::feed::FeedSource;
use njoule_energy::window::Flag;
use njoule_energy::{Meters, Method};

use crate::machine::{Machine, window};

const RANGE: u64 = 262_143_328_850;

fn append(path: &PathBuf, line: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

#[test]
fn a_meter_at_the_plug_counts_alone_by_its_own_stamps() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    m.power_line(0, "POWER_STATUS_NO_DATA,0,0.00,0.00,0.00");
    let csv = m.path("/pdu.csv");
    append(&csv, "t_unix_s,joules");
    append(&csv, "1725999999.5,1000");
    let mut wanted = m.wanted();
    wanted.feed = Some((FeedSource::Csv(csv.clone()), Scope::Wall, Some(0.02)));
    let mut meters = m.meters(&wanted);
    let start = meters.snapshot();
    m.hands.pass(60.0);
    m.zone("0", "package-0", 3_000_000, RANGE);
    append(&csv, "1726000030,2500");
    append(&csv, "1726000059.5,7000");
    let w = window(&start, &meters.snapshot());
    let total = w.total.joules.unwrap();
    assert_eq!((total.best(), w.total.boundary.as_str()), (6000.0, "wall"));
    assert_eq!(w.total.method, Some(Method::Measured));
    // 100 W, half a second too early at both ends.
    assert!((w.meters[0].edge_error_j.unwrap() - 100.0).abs() < 1e-3, "{:?}", w.meters[0]);
    assert!((total.high().unwrap() - (6000.0 * 1.02 + 100.0)).abs() < 1e-3);
    // What lies inside is told, and not added.
    let package = w.meters.iter().find(|m| m.info.id == "powercap-0").unwrap();
    assert_eq!((package.joules.unwrap().best(), package.info.counts_in_total), (3.0, false));
    // Falling is a reset.
    m.hands.pass(10.0);
    append(&csv, "1726000069,10");
    let fallen = window(&start, &meters.snapshot());
    assert!(fallen.total.joules.is_none() && fallen.total.reasons[0].contains("reset"), "{:?}", fallen.total);
}

#[test]
fn a_command_and_a_socket_feed_as_well() {
    let m = Machine::new();
    let total = m.path("/total");
    std::fs::write(&total, "1726000000,50\n").unwrap();
    let mut wanted = m.wanted();
    wanted.feed = Some((FeedSource::Command(format!("cat {}", total.display())), Scope::Node, None));
    let mut meters = m.meters(&wanted);
    let start = meters.snapshot();
    m.hands.pass(10.0);
    std::fs::write(&total, "1726000010,75\n").unwrap();
    let w = window(&start, &meters.snapshot());
    assert_eq!((w.total.joules.unwrap().best(), w.total.boundary.as_str()), (25.0, "node"));
    // Nobody declared its uncertainty.
    assert_eq!(w.total.joules.unwrap().bounds(), None);
    std::fs::remove_file(&total).unwrap();
    let gone = window(&start, &meters.snapshot());
    assert!(gone.total.reasons[0].contains("ended with"), "{:?}", gone.total.reasons);

    let path = m.path("/feed.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    wanted.feed = Some((FeedSource::Socket(path), Scope::Wall, Some(0.0)));
    let mut meters = m.meters(&wanted);
    let (mut peer, _) = listener.accept().unwrap();
    assert!(meters.snapshot().meters[0].trouble.as_deref().unwrap().contains("no value yet"));
    peer.write_all(b"1726000010,5\n1726000010.0,6\n17260").unwrap();
    let start = meters.snapshot();
    m.hands.pass(1.0);
    peer.write_all(b"00011,9\n").unwrap();
    assert_eq!(window(&start, &meters.snapshot()).total.joules.unwrap().best(), 3.0);
}

fn instance(kind: &str, cpus: usize, gib: u64) -> Machine {
    let m = Machine::new();
    m.put("/sys/devices/virtual/dmi/id/sys_vendor", "Amazon EC2\n");
    m.put("/sys/devices/virtual/dmi/id/product_name", kind);
    m.put("/proc/meminfo", format!("MemTotal:       {} kB\nMemFree: 1 kB\n", gib << 20));
    m.stat(cpus, 1000);
    m
}

#[test]
fn an_instance_without_a_meter_is_an_interval_of_published_watts() {
    let m = instance("c6a.48xlarge", 192, 384);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(10.0);
    m.stat(192, 1000 + 192 * 10 * 50); // half busy for ten seconds
    let w = window(&start, &meters.snapshot());
    let (low, high) = w.total.joules.unwrap().bounds().unwrap();
    assert!((low / 10.0 - 231.65).abs() < 1.0 && (high / 10.0 - 446.6).abs() < 1.0, "{low} {high}");
    assert_eq!((w.total.method, w.total.boundary.as_str()), (Some(Method::Estimated), "host"));
    let profile = w.meters[0].info.profile.as_deref().unwrap();
    assert!(profile.contains("c6a.48xlarge/cpu_per_vcpu") && profile.contains("cpu:AMD EPYC 7R13"), "{profile}");
}

#[test]
fn a_neuron_instance_has_a_host_estimate_and_no_total() {
    let m = instance("inf2.xlarge", 4, 16);
    m.power_line(0, "POWER_STATUS_NO_DATA,0,0.00,0.00,0.00");
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(10.0);
    m.stat(4, 1000 + 4 * 10 * 50);
    let w = window(&start, &meters.snapshot());
    assert!(w.meters[0].joules.is_some());
    assert_eq!((w.total.joules, w.total.boundary.as_str()), (None, "accelerator+host"));
}

#[test]
fn an_unknown_instance_is_unknown() {
    let m = instance("x9.huge", 4, 16);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.0);
    let w = window(&start, &meters.snapshot());
    assert!(w.total.joules.is_none() && w.total.reasons.iter().any(|r| r.contains("x9.huge")), "{:?}", w.total);
    // A declared type is believed.
    let mut wanted = m.wanted();
    wanted.instance = Some("m6i.xlarge".into());
    assert_eq!(m.meters(&wanted).snapshot().meters.len(), 1);
}

#[test]
fn a_dead_counter_gives_way_to_the_model() {
    let m = instance("inf2.xlarge", 4, 16);
    m.zone("0", "psys", 0, RANGE);
    let mut meters = m.meters(&m.wanted());
    m.hands.pass(2.0);
    meters.poll();
    let start = meters.snapshot();
    m.hands.pass(10.0);
    m.stat(4, 1500);
    let w = window(&start, &meters.snapshot());
    assert_eq!((w.total.method, w.total.boundary.as_str()), (Some(Method::Estimated), "host"));
    assert_eq!(w.meters[0].info.excluded.as_deref(), Some("the counter stands still"));
    // It moves after all: then it is believed again.
    m.zone("0", "psys", 20_000_000, RANGE);
    m.hands.pass(10.0);
    let woken = window(&start, &meters.snapshot());
    assert_eq!((woken.total.joules.unwrap().best(), woken.total.boundary.as_str()), (20.0, "node"));
}

/// A reset is no standing still, whatever comes after it: no model makes up for what was lost.
#[test]
fn a_counter_that_was_reset_does_not_give_way_to_the_model() {
    let m = instance("inf2.xlarge", 4, 16).intel();
    m.zone("0", "package-0", 50_000_000_000, RANGE);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(1.2);
    m.zone("0", "package-0", 5, RANGE);
    meters.poll();
    for _ in 0..3 {
        m.hands.pass(1.0);
        meters.poll();
    }
    let w = window(&start, &meters.snapshot());
    assert_eq!((w.total.joules, w.total.method), (None, None));
    assert!(w.total.reasons[0].contains("reset"), "{:?}", w.total.reasons);
    assert!(w.flags.contains(&Flag::MeterGap), "{:?}", w.flags);
    let model = w.meters.iter().find(|m| m.info.scope == Scope::Host).unwrap();
    assert!(model.joules.is_some() && !model.info.counts_in_total);
}

fn process(m: &Machine, pid: u32, ticks: u64) {
    m.put(
        &format!("/proc/{pid}/stat"),
        format!("{pid} (a ) b) R 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 99 0 0\n"),
    );
}

#[test]
fn a_process_has_between_its_share_of_all_time_and_of_busy_time() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    m.stat(4, 100);
    process(&m, 77, 10);
    let mut wanted = m.wanted();
    wanted.part = Some(Part::Process(77));
    let mut meters = m.meters(&wanted);
    let start = meters.snapshot();
    m.hands.pass(10.0);
    m.zone("0", "package-0", 400_000_000, RANGE);
    m.stat(4, 100 + 2000); // 20 of 40 CPU-seconds
    process(&m, 77, 10 + 500); // 5 of them its own
    let end = meters.snapshot();
    let w = window(&start, &end);
    let joules = w.total.joules.unwrap();
    assert_eq!((w.cpu.part_s, w.total.method), (Some(5.0), Some(Method::Estimated)));
    let (low, high) = joules.bounds().unwrap();
    // 400 J: an eighth of all CPU time, a quarter of what was used; 5 % and the edges on top.
    assert!((low - 50.0 * 0.95).abs() < 0.1 && (high - 100.0 * 1.05).abs() < 0.1, "{low} {high}");
    m.remove("/proc/77/stat");
    m.hands.pass(1.0);
    let gone = window(&end, &meters.snapshot());
    assert!(
        gone.total.joules.is_none() && gone.total.reasons[0].contains("/proc/77/stat: not there"),
        "{:?}",
        gone.total
    );
}

#[test]
fn a_control_group_has_its_share_in_either_version() {
    for (file, unit) in [("cpu.stat", 1_000_000u64), ("cpuacct.usage", 1_000_000_000)] {
        let m = Machine::new().intel();
        m.zone("0", "package-0", 0, RANGE);
        m.stat(2, 0);
        let path = format!("/sys/fs/cgroup/app/{file}");
        let usage = |seconds: u64| match file {
            "cpu.stat" => format!("usage_usec {}\nuser_usec 1\n", seconds * unit),
            _ => format!("{}\n", seconds * unit),
        };
        m.put(&path, usage(3));
        let mut wanted = m.wanted();
        wanted.part = Some(Part::Group("app".into()));
        let mut meters = m.meters(&wanted);
        let start = meters.snapshot();
        m.hands.pass(10.0);
        m.zone("0", "package-0", 100_000_000, RANGE);
        m.stat(2, 1000);
        m.put(&path, usage(8));
        let w = window(&start, &meters.snapshot());
        assert_eq!(w.cpu.part_s, Some(5.0), "{file}");
        assert!((w.total.joules.unwrap().high().unwrap() - 50.0 * 1.05).abs() < 0.1);
    }
}

/// The meters of a process's share of a plug whose readings are in `csv`.
fn share_of_plug(m: &Machine, csv: &Path) -> Meters {
    process(m, 5, 1);
    let mut wanted = m.wanted();
    wanted.part = Some(Part::Process(5));
    wanted.feed = Some((FeedSource::Csv(csv.to_owned()), Scope::Wall, Some(0.0)));
    m.meters(&wanted)
}

#[test]
fn an_accelerator_cannot_be_divided_by_cpu_time() {
    let m = instance("inf2.xlarge", 4, 16);
    let csv = m.path("/pdu.csv");
    append(&csv, "1726000000,1");
    m.power_line(0, "POWER_STATUS_NO_DATA,0,0.00,0.00,0.00");
    let mut meters = share_of_plug(&m, &csv);
    let start = meters.snapshot();
    m.hands.pass(1.0);
    append(&csv, "1726000001,9");
    let w = window(&start, &meters.snapshot());
    assert!(w.total.joules.is_none() && w.total.reasons[0].contains("cannot be divided"), "{:?}", w.total);
}

#[test]
fn a_process_has_no_share_of_a_plug_with_an_accelerator_behind_it() {
    let m = Machine::new();
    let csv = m.path("/pdu.csv");
    append(&csv, "1726000000,1");
    m.put("/sys/class/hwmon/hwmon0/name", "amdgpu\n");
    m.put("/sys/class/hwmon/hwmon0/power1_average", "9000000\n");
    m.stat(4, 100);
    let mut meters = share_of_plug(&m, &csv);
    let start = meters.snapshot();
    m.hands.pass(1.0);
    append(&csv, "1726000001,90");
    m.stat(4, 200);
    process(&m, 5, 51);
    let w = window(&start, &meters.snapshot());
    assert!(w.total.joules.is_none() && w.total.reasons[0].contains("what an accelerator used"), "{:?}", w.total);
}

#[test]
fn a_feed_of_the_accelerators_is_not_added_to_them() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    m.power_line(0, "POWER_STATUS_NO_DATA,0,0.00,0.00,0.00");
    m.put("/sys/class/hwmon/hwmon0/name", "amdgpu\n");
    m.put("/sys/class/hwmon/hwmon0/power1_average", "9000000\n");
    let csv = m.path("/pdu.csv");
    append(&csv, "1726000000,1");
    let mut wanted = m.wanted();
    wanted.feed = Some((FeedSource::Csv(csv.clone()), Scope::Accelerator, Some(0.0)));
    let mut meters = m.meters(&wanted);
    let start = meters.snapshot();
    m.hands.pass(1.0);
    append(&csv, "1726000001,51");
    m.zone("0", "package-0", 7_000_000, RANGE);
    let w = window(&start, &meters.snapshot());
    assert_eq!((w.total.joules.unwrap().best(), w.total.boundary.as_str()), (57.0, "accelerator+cpu"));
    let board = w.meters.iter().find(|m| m.info.id.contains("amdgpu")).unwrap();
    assert_eq!((board.joules.unwrap().best(), board.info.parent.as_deref()), (9.0, Some("feed")));
}

/// Who runs a feed's command apart (`Meters::commands`) is not waited for by those who read the meters meanwhile.
#[test]
fn a_slow_command_holds_nobody_up() {
    let m = Machine::new();
    let pipe = m.path("/pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut wanted = m.wanted();
    wanted.feed = Some((FeedSource::Command(format!("cat {}", pipe.display())), Scope::Wall, None));
    let say = |text: &'static str| {
        let pipe = pipe.clone();
        std::thread::spawn(move || std::fs::write(pipe, text).unwrap())
    };
    let first = say("1726000000,5\n");
    let mut meters = m.meters(&wanted);
    first.join().unwrap();
    let command = meters.commands().pop().unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| command.run());
        // It waits for a writer; a reading that ran it itself would, too.
        while !command.is_apart() {
            std::thread::yield_now();
        }
        let meanwhile = meters.snapshot();
        assert!(meanwhile.meters[0].trouble.as_deref().unwrap().contains("not been run yet"), "{meanwhile:?}");
        let second = say("1726000000,9\n");
        running.join().unwrap();
        second.join().unwrap();
    });
    assert_eq!(meters.snapshot().meters[0].total.unwrap().best(), 4.0);
}

/// A file that cannot be read, by anybody: a directory in its place.
#[test]
fn a_sensor_that_cannot_be_read_says_why_and_a_board_makes_the_total_unknown() {
    let beside = |sensor: &str| {
        let m = Machine::new().intel();
        m.zone("0", "package-0", 0, RANGE);
        m.put("/sys/class/hwmon/hwmon0/name", sensor);
        m.put("/sys/class/hwmon/hwmon0/power1_average/x", "");
        let mut meters = m.meters(&m.wanted());
        let start = meters.snapshot();
        m.hands.pass(2.0);
        m.zone("0", "package-0", 7_000_000, RANGE);
        window(&start, &meters.snapshot())
    };
    // The node's sensor is refused; the package is there, and its boundary says so.
    let w = beside("power_meter\n");
    assert_eq!((w.total.joules.unwrap().best(), w.total.boundary.as_str()), (7.0, "cpu"));
    let refused = w.meters.iter().find(|m| m.info.id.contains("power_meter")).unwrap();
    assert!(refused.info.excluded.as_deref().unwrap().contains("power1_average"), "{refused:?}");
    assert!(w.absent.iter().all(|absent| absent.meter != "hwmon"), "{:?}", w.absent);

    let w = beside("amdgpu\n");
    assert_eq!((w.total.joules, w.total.boundary.as_str()), (None, "accelerator+cpu"));
    assert!(w.total.reasons[0].contains("hwmon-amdgpu") && w.total.reasons[0].contains("power1_average"));
}

#[test]
fn sensors_that_do_not_say_what_they_cover_are_not_added() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, RANGE);
    let dir = "/sys/class/hwmon/hwmon0";
    m.put(&format!("{dir}/name"), "ina226\n");
    m.put(&format!("{dir}/power1_input"), "10000000\n");
    m.put(&format!("{dir}/energy1_input"), "500\n");
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(2.0);
    m.zone("0", "package-0", 7_000_000, RANGE);
    m.put(&format!("{dir}/power1_input"), "20000000\n");
    m.put(&format!("{dir}/energy1_input"), "4000500\n");
    let w = window(&start, &meters.snapshot());
    assert_eq!((w.total.joules.unwrap().best(), w.total.boundary.as_str()), (7.0, "cpu"));
    let of = |id: &str| w.meters.iter().find(|m| m.info.id.ends_with(id)).unwrap();
    // 10 to 20 W over two seconds, by the trapezoid.
    assert_eq!(of("power1").joules.unwrap().best(), 30.0);
    assert_eq!((of("energy1").joules.unwrap().best(), of("energy1").joules.unwrap().bounds()), (4.0, None));
    // Power that nobody read for a while is unknown.
    let start = meters.snapshot();
    m.hands.pass(60.0);
    assert!(
        window(&start, &meters.snapshot()).meters.iter().any(|m| m.info.id.ends_with("power1") && m.joules.is_none())
    );
}
