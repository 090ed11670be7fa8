//! Older libraries: the same one with functions hidden and another version.

use neuron_fake::variant::{MEMORY_STATS, TIER2, VNC_NAMES, VariantError, without};
use njoule_neuron_sys::{Lane, Library};
use std::time::Duration;

use crate::child::{library, spawn, start};
use crate::modules::{Bound, read};

fn variant(names: &[&str]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libnrt.so.1");
    std::fs::write(&path, without(&std::fs::read(library()).unwrap(), names).unwrap()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn a_library_of_2_26_runs_models_without_the_newer_functions() {
    let (_dir, path) = variant(&[&TIER2[..], &MEMORY_STATS, &VNC_NAMES].concat());
    let output = spawn(&[("NJOULE_NRT", &path), ("NJOULE_FAKE_VERSION", "2.26.42")], || {
        let library = Library::open().unwrap();
        assert!(!library.can_schedule() && !library.can_sleep() && !library.has_memory_stats());
        let runtime = start();
        assert_eq!(runtime.cores().len(), 2, "by the old name of the count");
        assert!(runtime.memory(runtime.core(0).unwrap()).is_err());
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        assert!(b.run.start().is_err());
        Lane::new("core 0").unwrap().execute(&mut b.run, Duration::from_secs(60)).unwrap();
        assert_eq!(read::<f32>(&b.cache)[3], 3.0);
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_library_of_2_31_polls() {
    let (_dir, path) = variant(&["nrta_event_register_seq_id_completion"]);
    let output = spawn(&[("NJOULE_NRT", &path), ("NJOULE_FAKE_VERSION", "2.31.24")], || {
        let library = Library::open().unwrap();
        assert!(library.can_schedule() && !library.can_sleep());
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        b.run.start().unwrap();
        b.run.wait(Duration::from_secs(60)).unwrap();
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_library_that_lacks_what_is_needed_is_refused_by_name() {
    let (_dir, path) = variant(&["nrt_tensor_read", "nrt_execute"]);
    let output = spawn(&[("NJOULE_NRT", &path)], || {
        let error = Library::open().unwrap_err().to_string();
        assert!(error.contains("nrt_tensor_read") && error.contains("nrt_execute"), "{error}");
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn what_is_not_there_cannot_be_hidden() {
    let library = std::fs::read(library()).unwrap();
    assert_eq!(without(&library, &["nrt_no_such"]), Err(VariantError::Missing("nrt_no_such".into())));
    assert_eq!(without(b"#!/bin/sh", &["nrt_init"]), Err(VariantError::NotElf));
}
