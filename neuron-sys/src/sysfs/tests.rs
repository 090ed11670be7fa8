//! Trees of each kind of machine, read back; and trees that are broken in every way.

mod tree;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use self::tree::{INF2, Kind, TRN1, TRN2, Tree, device_dir};
use super::*;

fn machine(kind: &Kind, devices: u32) -> (TempDir, Root) {
    let dir = TempDir::new().unwrap();
    Tree(dir.path()).machine(kind, devices, "2.24.7.0");
    let root = Root::at(dir.path());
    (dir, root)
}

#[test]
fn the_chip_is_told_by_its_name_and_not_by_its_architecture() {
    for (kind, chip, pci) in
        [(INF2, Chip::Inferentia2, 0x7264), (TRN1, Chip::Trainium1, 0x7164), (TRN2, Chip::Trainium2, 0x7364)]
    {
        let (_dir, root) = machine(&kind, 2);
        let devices = root.devices();
        assert_eq!(devices.iter().map(DeviceDir::index).collect::<Vec<_>>(), [0, 1]);
        for device in &devices {
            assert_eq!(device.chip(), Field::Value(chip));
            assert_eq!(device.arch_type(), Field::Value(kind.architecture[0].to_owned()));
            assert_eq!(device.core_count(), Field::Value(u64::from(chip.physical_cores())));
            assert_eq!(device.cores().len(), chip.physical_cores() as usize);
            assert_eq!(device.serial_number(), Field::Value("0123456789abcdef".to_owned()));
        }
        assert_eq!(devices[1].connected(), Field::Value(vec![0]));
        assert_eq!(Chip::of_instance(&root.instance_type().ok().unwrap()), Some(chip));
        let bus = root.pci();
        assert_eq!(bus.iter().map(|f| (f.device, f.chip)).collect::<Vec<_>>(), [(pci, chip); 2]);
        assert_eq!(root.nodes().iter().map(|n| (n.index, n.is_device)).collect::<Vec<_>>(), [(0, false), (1, false)]);
    }
}

#[test]
fn old_and_new_names_of_a_counter_are_one() {
    for kind in [INF2, TRN1] {
        let (dir, root) = machine(&kind, 1);
        let old = if kind.old_names { "infer" } else { "execute" };
        let at = format!("{}/neuron_core1/stats/status/{old}_completed_with_error", device_dir(0));
        Tree(dir.path()).counter(&at, 5);
        let [quiet, failed] = &root.devices()[0].cores()[..] else { panic!() };
        assert!(quiet.failures().is_empty());
        let failures: Vec<_> = failed.failures().into_iter().collect();
        assert_eq!(failures, [("execute_completed_with_error".to_owned(), 5)]);
        assert_eq!(failed.statuses()["success"], Field::Value(7));
    }
}

#[test]
fn counters_memory_and_power_have_the_values_of_their_files() {
    let (dir, root) = machine(&TRN1, 1);
    let device = &root.devices()[0];
    let core = &device.cores()[0];
    assert_eq!(core.memory(), Memory { used: Field::Value(100 << 20), peak: Field::Value(200 << 20) });
    assert_eq!(core.memory_parts().keys().collect::<Vec<_>>(), ["model_code", "tensors"]);
    assert_eq!(core.other_info()["flop_count"], Field::Value(3));
    assert_eq!(core.arch_type(), Field::Value("NCv2".to_owned()));
    let rows = core.pe_counters().ok().unwrap();
    assert_eq!(rows[1], PeRow { group: 1, matmul: 11, weight_load: 21, idle: 68 });
    assert_eq!(device.host_memory()["tensors"].used, Field::Value(4096));
    let power = Power { status: PowerStatus::Valid, epoch_seconds: 1_760_000_040, min: 1.25, max: 30.5, mean: 12.75 };
    assert_eq!(device.power(), Field::Value(power));
    assert_eq!(device.power_raw(), Field::Absent);
    assert_eq!(device.ecc().len(), 3);
    assert!(device.health().is_empty());
    let tree = Tree(dir.path());
    tree.write(&format!("{}/stats/hardware/health_status/unhealthy_components", device_dir(0)), "0\n");
    tree.counter(&format!("{}/stats/hardware/mem_ecc_uncorrected", device_dir(0)), 2);
    assert_eq!(device.health()["unhealthy_components"], Field::Value("0".to_owned()));
    assert_eq!(device.ecc()["mem_ecc_uncorrected"], Field::Value(2));
    assert_eq!(device.ecc().len(), 3, "health_status is no counter");
}

#[test]
fn the_driver_is_loaded_installed_or_neither() {
    let (dir, root) = machine(&INF2, 1);
    let loaded = root.driver();
    assert!(loaded.loaded);
    assert_eq!(loaded.version, Field::Value("2.24.7.0".parse().unwrap()));
    assert_eq!(loaded.installed[0].version.release(), (2, 24));

    fs::remove_dir_all(dir.path().join("sys/module")).unwrap();
    assert!(root.driver().loaded, "listed in /proc/modules");
    assert_eq!(root.driver().version, Field::Absent);
    fs::write(dir.path().join("proc/modules"), "neuron_other 1 0 - Live 0x0\n").unwrap();
    assert!(root.driver().loaded, "its devices are there");
    fs::remove_dir_all(dir.path().join("sys/devices/virtual/neuron_device")).unwrap();
    assert!(!root.driver().loaded);

    let empty = TempDir::new().unwrap();
    let none = Root::at(empty.path()).driver();
    assert_eq!(none, Driver { loaded: false, version: Field::Absent, installed: vec![] });
}

#[test]
fn versions_compare_by_number() {
    let version = |text: &str| text.parse::<DriverVersion>();
    assert!(version("2.9.4").unwrap() < version("2.24.7.0").unwrap());
    assert_eq!(version("2.30.2.0-1").unwrap().to_string(), "2.30.2.0");
    for bad in ["", "2", "2.", "2.x", "-2.3", "2.4294967296"] {
        assert_eq!(version(bad), Err(()), "{bad}");
    }
}

#[test]
fn hardware_errors_are_found_in_the_first_log_that_can_be_read() {
    let (dir, root) = machine(&INF2, 1);
    let KernelLog::Unreadable(tried) = root.kernel_log() else { panic!() };
    assert_eq!(tried.len(), 4);
    let line = "Nov 1 10:00:00 kernel: neuron: NEURON_HW_ERR=HBM_UE instance-id=i-1 nd-id=3 nc-id=1 action=TERMINATE_INSTANCE\n";
    Tree(dir.path()).write("var/log/messages", format!("a line\n{line}another\n"));
    let KernelLog::Read { path, errors } = root.kernel_log() else { panic!() };
    assert!(path.ends_with("var/log/messages"));
    let error =
        HwError { error: "HBM_UE".into(), device: Some(3), core: Some(1), action: Some("TERMINATE_INSTANCE".into()) };
    assert_eq!(errors, [error]);
    Tree(dir.path()).write("dev/kmsg", "6,1,2,-;quiet\n");
    assert!(matches!(root.kernel_log(), KernelLog::Read { errors, .. } if errors.is_empty()));
}

#[cfg(unix)]
#[test]
fn owners_are_processes_that_have_a_device_open() {
    let (dir, root) = machine(&INF2, 1);
    for (pid, target) in [(41, "/dev/null"), (42, "/dev/neuron0")] {
        let fd = dir.path().join(format!("proc/{pid}/fd"));
        fs::create_dir_all(&fd).unwrap();
        std::os::unix::fs::symlink(target, fd.join("3")).unwrap();
        fs::write(dir.path().join(format!("proc/{pid}/comm")), "server\n").unwrap();
    }
    fs::create_dir_all(dir.path().join("proc/43")).unwrap();
    let owners = root.owners();
    assert_eq!(owners.seen, [Owner { pid: 42, name: "server".into(), devices: [0].into() }]);
    assert_eq!(owners.hidden, 1);
}

#[cfg(unix)]
#[test]
fn what_cannot_be_read_says_why_and_nothing_waits() {
    let (dir, root) = machine(&INF2, 1);
    let at = dir.path().join(device_dir(0));
    let replace = |name: &str, target: &Path| {
        fs::remove_file(at.join(name)).unwrap();
        std::os::unix::fs::symlink(target, at.join(name)).unwrap();
    };
    replace("core_count", Path::new("core_count")); // a link to itself
    replace("connected_devices", Path::new("/dev/zero")); // would never end
    replace("info/serial_number", Path::new("/nowhere/at/all"));
    let device = &root.devices()[0];
    assert!(matches!(device.core_count(), Field::Failed(_)), "{:?}", device.core_count());
    assert_eq!(device.connected(), Field::Failed("not a plain file".into()));
    assert_eq!(device.serial_number(), Field::Absent);
    fs::write(at.join("info/architecture/device_name"), "Inferentia9").unwrap();
    assert_eq!(device.chip(), Field::Garbage("Inferentia9".into()));
    fs::write(at.join("stats/power/utilization"), vec![b'1'; 1 << 20]).unwrap();
    assert!(matches!(device.power(), Field::Garbage(text) if text.chars().count() == 61));
}

/// Reads everything there is.
fn read_all(root: &Root) -> String {
    let mut all = format!("{:?}", (root.driver(), root.pci(), root.nodes(), root.owners(), root.kernel_log()));
    all += &format!("{:?}", (root.instance_type(), root.vendor()));
    for d in root.devices() {
        all += &format!("{:?}", (d.core_count(), d.connected(), d.serial_number(), d.chip(), d.arch_type()));
        all += &format!("{:?}", (d.instance_type(), d.ecc(), d.health(), d.host_memory(), d.power(), d.power_raw()));
        for c in d.cores() {
            all += &format!("{:?}", (c.arch_type(), c.statuses(), c.failures(), c.memory(), c.memory_parts()));
            all += &format!("{:?}", (c.other_info(), c.pe_counters()));
        }
    }
    all
}

/// Every file of a tree.
fn files(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[test]
fn reading_changes_nothing() {
    let (dir, root) = machine(&TRN2, 2);
    let mut all = vec![];
    files(dir.path(), &mut all);
    let before: Vec<_> =
        all.iter().map(|path| (fs::read(path).unwrap(), path.metadata().unwrap().modified().unwrap())).collect();
    assert!(read_all(&root).contains("Trainium2"));
    let after: Vec<_> =
        all.iter().map(|path| (fs::read(path).unwrap(), path.metadata().unwrap().modified().unwrap())).collect();
    assert_eq!(before, after);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any bytes in any files, and any files missing: fields, never a panic.
    #[test]
    fn any_tree_reads(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(damaged())), 1..12),
    ) {
        let (dir, root) = machine(&TRN1, 1);
        Tree(dir.path()).write("var/log/syslog", "NEURON_HW_ERR=");
        let mut all = vec![];
        files(dir.path(), &mut all);
        all.sort();
        for (at, content) in damage {
            let path = at.get(&all);
            match content {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
        prop_assert!(read_all(&root).len() < 1 << 20);
    }

    #[test]
    fn any_line_of_a_log_is_an_error_or_none(line in "(NEURON_HW_ERR=)?.{0,80}( nd-id=.{0,9}){0,3}") {
        let found = HwError::parse(&line);
        prop_assert!(found.is_none() || line.contains("NEURON_HW_ERR="));
    }

    #[test]
    fn power_figures_are_percentages_or_refused(line in "(POWER_STATUS_(VALID|NO_DATA|X),)?([0-9.eE+-]{0,6},?|nan,|inf,){0,5}") {
        if let Ok(power) = line.parse::<Power>() {
            prop_assert!([power.min, power.max, power.mean].iter().all(|p| p.is_finite() && *p >= 0.0), "{:?}", power);
        }
    }
}

/// Bytes, digits, and lines that are nearly right.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "[0-9, \n-]{0,40}".prop_map(String::into_bytes),
        "(POWER_STATUS_)?[A-Z]{0,8},[0-9.,eE+naif-]{0,40}".prop_map(String::into_bytes),
        "xrow_grp,mm_active\n([0-9-]{0,21},){0,6}\n".prop_map(String::into_bytes),
    ]
}
