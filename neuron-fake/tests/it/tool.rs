//! The command line of `neuron-fake`.

use std::process::{Command, Output};

use neuron_fake::variant::{VariantError, without};

use crate::child::library;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neuron-fake")).args(arguments).output().unwrap()
}

#[test]
fn a_tree_is_written_for_an_instance() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    let flags = ["--instance", "trn1.2xlarge", "--power", "1,2,1.5", "--broken", "no-core-count"];
    let output = run(&[&["sysfs", root][..], &flags].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let device = dir.path().join("sys/devices/virtual/neuron_device/neuron0");
    let line = std::fs::read_to_string(device.join("stats/power/utilization")).unwrap();
    assert!(line.starts_with("POWER_STATUS_VALID,") && line.ends_with(",1.00,2.00,1.50\n"), "{line}");
    assert!(!device.join("core_count").exists());
    for bad in [&["--instance", "inf9"][..], &["--broken", "all"], &["--power", "1"], &["--frob"]] {
        assert_eq!(run(&[&["sysfs", root][..], bad].concat()).status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn a_library_is_copied_without_functions() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("libnrt.so.1");
    let (from, to) = (library(), out.to_str().unwrap());
    let output = run(&["hide", from.to_str().unwrap(), to, "tier2", "nrt_barrier"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let copy = std::fs::read(&out).unwrap();
    for hidden in ["nrt_barrier", "nrta_is_completed", "nrt_tensor_read_batch"] {
        assert_eq!(without(&copy, &[hidden]), Err(VariantError::Missing(hidden.to_owned())));
    }
    assert!(without(&copy, &["nrt_execute"]).is_ok());
    assert_eq!(run(&["hide", to, to, "nrt_barrier"]).status.code(), Some(2), "hidden already");
}
