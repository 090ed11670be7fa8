//! The power file in every state that the driver leaves it in.

use std::fs;

use njoule_neuron_sys::sysfs::Root;

use crate::backend::neuron::probe::{PowerFile, PowerFound};

const NOW: u64 = 1_800_000_031;

fn read(line: Option<&str>, raw: Option<&str>) -> PowerFound {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("sys/devices/virtual/neuron_device/neuron0");
    fs::create_dir_all(device.join("stats/power")).unwrap();
    for (name, text) in [("utilization", line), ("utilization_raw", raw)] {
        if let Some(text) = text {
            fs::write(device.join("stats/power").join(name), text).unwrap();
        }
    }
    PowerFound::read(&Root::at(dir.path()), NOW)
}

#[test]
fn each_state_of_the_file_is_told_for_what_it_is() {
    for (line, file, says) in [
        (Some("POWER_STATUS_VALID,1800000000,3.10,61.27,42.80\n"), PowerFile::Valid, "mean 42.80 %, 3.10 to 61.27 %"),
        (Some("POWER_STATUS_VALID,1800000000,0.00,0.00,0.00"), PowerFile::Valid, "ended 31 s ago"),
        (Some("POWER_STATUS_VALID,1799990000,3.10,61.27,42.80"), PowerFile::Stale, "not the one before this"),
        (Some("POWER_STATUS_VALID,1900000000,3.10,61.27,42.80"), PowerFile::Stale, "clocks"),
        (Some("POWER_STATUS_NO_DATA,0,0.00,0.00,0.00"), PowerFile::NoData, "60 samples"),
        (Some("POWER_STATUS_INVALID,1800000000,0.00,0.00,0.00"), PowerFile::Invalid, "invalid"),
        (Some("POWER_STATUS_MAX,1800000000,0.00,0.00,0.00"), PowerFile::Invalid, "invalid"),
        (Some("42 watts"), PowerFile::Unreadable, "not understood"),
        (None, PowerFile::Absent, "2.21.37"),
    ] {
        let found = read(line, None);
        let device = &found.devices[0];
        assert_eq!((device.file, found.tells()), (file, file == PowerFile::Valid), "{line:?}");
        assert!(found.words().contains(says), "{}", found.words());
        let has_figures = matches!(file, PowerFile::Valid | PowerFile::Stale);
        assert_eq!(device.min_max_mean.is_some(), has_figures, "{line:?}");
    }
    let found = read(Some("POWER_STATUS_VALID,1800000000,3.10,61.27,42.80"), Some("0: 12\n1: 13\n"));
    assert_eq!((found.devices[0].age_seconds, found.devices[0].live.as_str()), (Some(31), "0: 12"));
    let none = PowerFound::read(&Root::at("/nowhere"), NOW);
    assert!(!none.tells() && none.words().contains("no device"));
}
