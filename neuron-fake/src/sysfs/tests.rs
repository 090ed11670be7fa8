//! The tree, read back as a program reads it.

use super::*;
use crate::instance::ALL;

fn read(root: &Path, path: &str) -> String {
    let path = root.join("sys/devices/virtual").join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_instance_has_its_devices_and_cores() {
    for instance in ALL {
        // Two show what sixteen would: each device has some thousand files.
        let instance = Instance { chips: instance.chips.min(2), ..instance };
        let root = tempfile::tempdir().unwrap();
        Tree::new(instance).write(root.path()).unwrap();
        let root = root.path();
        assert_eq!(read(root, "dmi/id/product_name").trim(), instance.name);
        let last = instance.chips - 1;
        let device = format!("neuron_device/neuron{last}");
        assert!(root.join(format!("dev/neuron{last}")).exists());
        assert!(!root.join(format!("dev/neuron{}", last + 1)).exists());
        let [_, _, name] = instance.chip.driver_names();
        assert_eq!(read(root, &format!("{device}/info/architecture/device_name")).trim(), name);
        assert_eq!(read(root, &format!("{device}/core_count")), instance.chip.cores().to_string());
        let core = format!("{device}/neuron_core{}", instance.chip.cores() - 1);
        assert_eq!(read(root, &format!("{core}/stats/memory_usage/device_mem/present")).trim(), "100663296");
        assert_eq!(read(root, &format!("{core}/stats/status/execute_completed_with_error/total")), "0\n");
    }
}

#[test]
fn neighbours_are_each_others() {
    for instance in ALL {
        let tree = Tree::new(instance);
        let of = |device| -> Vec<u32> {
            tree.neighbours(device).trim().split(", ").filter_map(|n| n.parse().ok()).collect()
        };
        for device in 0..instance.chips {
            for neighbour in of(device) {
                assert!(of(neighbour).contains(&device), "{}: {device} and {neighbour}", instance.name);
            }
        }
    }
}

#[test]
fn power_is_of_a_whole_minute() {
    let root = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(ALL[0]);
    tree.write(root.path()).unwrap();
    let path = "neuron_device/neuron0/stats/power/utilization";
    let mut lines = vec![read(root.path(), path)];
    tree.power = [1.0, 50.5, 12.345];
    for seconds in [59, 60, 119] {
        tree.now = 1_800_000_000 + seconds;
        tree.write_power(root.path()).unwrap();
        lines.push(read(root.path(), path));
    }
    assert_eq!(
        lines,
        [
            "POWER_STATUS_VALID,1800000000,0.00,0.00,0.00\n",
            "POWER_STATUS_VALID,1800000000,1.00,50.50,12.35\n",
            "POWER_STATUS_VALID,1800000060,1.00,50.50,12.35\n",
            "POWER_STATUS_VALID,1800000060,1.00,50.50,12.35\n",
        ]
    );
}

#[test]
fn what_is_broken_is_broken() {
    let power = "neuron_device/neuron0/stats/power/utilization";
    let with = |broken| {
        let root = tempfile::tempdir().unwrap();
        Tree { broken: vec![broken], ..Tree::new(ALL[0]) }.write(root.path()).unwrap();
        root
    };
    let has = |root: &tempfile::TempDir, path: &str| root.path().join("sys/devices/virtual").join(path).exists();
    assert!(!has(&with(Broken::NoDriver), "neuron_device"));
    assert!(!has(&with(Broken::NoDeviceName), "neuron_device/neuron0/info/architecture/device_name"));
    assert!(!has(&with(Broken::NoCoreCount), "neuron_device/neuron0/core_count"));
    assert!(!has(&with(Broken::NoPower), "neuron_device/neuron0/stats/power"));
    assert!(!has(&with(Broken::NoRawPower), "neuron_device/neuron0/stats/power/utilization_raw"));
    assert!(read(with(Broken::PowerNoData).path(), power).starts_with("POWER_STATUS_NO_DATA,"));
    assert!(read(with(Broken::PowerInvalid).path(), power).starts_with("POWER_STATUS_INVALID,"));
    assert!(!read(with(Broken::PowerCut).path(), power).ends_with('\n'));
    assert!(fs::read_to_string(with(Broken::PowerGarbage).path().join("sys/devices/virtual").join(power)).is_err());
    let status = "neuron_device/neuron0/neuron_core0/stats/status";
    assert!(has(&with(Broken::OldStatusNames), &format!("{status}/infer_completed_with_error/total")));
    assert_eq!(read(with(Broken::CounterGarbage).path(), &format!("{status}/success/total")), "n/a\n");
}
