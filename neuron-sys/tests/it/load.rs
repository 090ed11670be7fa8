//! Opening: where it looks, what it refuses, what it does without.

use std::path::Path;
use std::process::Command;

use njoule_neuron_sys::{Library, LoadError, Origin, Runtime};

use crate::standin::Standin;

#[test]
fn a_good_library_opens_and_tells_its_version() {
    let library = Standin::new(&[]).open().unwrap();
    assert_eq!(library.version().to_string(), "2.34.10.0");
    assert_eq!(library.version().detail, "STAND-IN");
    assert_eq!(library.version().git_hash, "f".repeat(64), "an array without a terminating zero");
    assert!(library.can_schedule() && library.can_sleep() && library.has_memory_stats());
}

#[test]
fn a_missing_file_is_reported_with_its_path_and_reason() {
    let path = Path::new("/nonexistent/libnrt.so.1");
    // SAFETY: nothing is opened.
    let error = unsafe { Library::open_at(path) }.unwrap_err();
    let LoadError::NotFound { tried } = &error else { panic!("{error}") };
    assert_eq!((tried[0].path.as_path(), tried[0].origin, tried.len()), (path, Origin::Environment, 1));
    let text = error.to_string();
    for part in ["/nonexistent/libnrt.so.1", "No such file", "nothing else was tried", "correct or unset"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_file_that_is_no_library_is_reported_with_the_loaders_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libnrt.so.1");
    std::fs::write(&path, "not an ELF file, but long enough to have a header of one if it were").unwrap();
    // SAFETY: the loader refuses it.
    let text = unsafe { Library::open_at(&path) }.unwrap_err().to_string();
    assert!(text.contains("ELF"), "{text}");
}

/// Runs the probe below in a process of its own with this environment and gives what it prints.
fn open_with(variables: &[(&str, &str)]) -> String {
    let mut probe = Command::new(std::env::current_exe().unwrap());
    probe.args(["--exact", "load::probe", "--ignored", "--nocapture"]);
    probe.env_remove("NJOULE_NRT").env_remove("LD_LIBRARY_PATH").envs(variables.iter().copied());
    let output = probe.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn probe() {
    match Library::open() {
        Ok(library) => println!("opened {} {}", library.path().display(), library.version()),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn with_the_variable_set_nothing_else_is_tried() {
    let (good, chosen) = (Standin::new(&[]), Standin::new(&["PATCH=77"]));
    let search = good.path.parent().unwrap().to_str().unwrap();
    let text = open_with(&[("NJOULE_NRT", "/nonexistent/x.so"), ("LD_LIBRARY_PATH", search)]);
    assert!(text.contains("refused") && text.contains("/nonexistent/x.so"), "{text}");
    assert!(!text.contains("/opt/aws"), "{text}");
    let text = open_with(&[("NJOULE_NRT", chosen.path.to_str().unwrap()), ("LD_LIBRARY_PATH", search)]);
    assert!(text.contains("opened") && text.contains("2.34.77.0"), "{text}");
}

#[test]
fn without_the_variable_the_loader_is_asked_first() {
    let standin = Standin::new(&["PATCH=55"]);
    let text = open_with(&[("LD_LIBRARY_PATH", standin.path.parent().unwrap().to_str().unwrap())]);
    assert!(text.contains("opened libnrt.so.1 2.34.55.0"), "{text}");
}

#[test]
fn without_any_library_both_places_and_a_remedy_are_named() {
    let package = "/opt/aws/neuron/lib/libnrt.so.1";
    let text = open_with(&[]);
    if text.contains("opened") {
        return println!("this machine has the Neuron runtime: not tested here");
    }
    let (first, second) = (text.find("tried libnrt.so.1 (the loader"), text.find(&format!("tried {package}")));
    assert!(first.is_some() && first < second, "{text}");
    assert!(text.contains("install aws-neuronx-runtime-lib, or set NJOULE_NRT"), "{text}");
}

#[test]
fn all_missing_symbols_are_named_together() {
    let error = Standin::new(&["BROKEN"]).open().unwrap_err();
    let LoadError::MissingSymbols { names, .. } = &error else { panic!("{error}") };
    assert_eq!(names, &["nrt_tensor_read", "nrt_execute"]);
    let text = error.to_string();
    assert!(text.contains("libnrt 2.34.10.0") && text.contains("nrt_tensor_read, nrt_execute"), "{text}");
}

#[test]
fn a_library_that_is_none_lacks_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libempty.so");
    let status = Command::new("cc").args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(&path).status().unwrap();
    assert!(status.success());
    // SAFETY: an empty library.
    let error = unsafe { Library::open_at(&path) }.unwrap_err();
    let LoadError::MissingSymbols { names, found, .. } = &error else { panic!("{error}") };
    assert_eq!((names.len(), found.as_str()), (24, "of unknown version"));
}

#[test]
fn versions_outside_what_is_known_are_refused() {
    for switches in [["MAJOR=2", "MINOR=25"], ["MAJOR=1", "MINOR=99"], ["MAJOR=3", "MINOR=0"]] {
        let error = Standin::new(&switches).open().unwrap_err();
        let LoadError::Version { needed, .. } = &error else { panic!("{switches:?}: {error}") };
        assert_eq!(*needed, "2.26 or a later 2");
        assert!(error.to_string().contains("update aws-neuronx-runtime-lib"), "{error}");
    }
    assert!(Standin::new(&["MINOR=26", "PATCH=0"]).open().is_ok());
}

#[test]
fn a_library_that_does_not_tell_its_version_is_refused() {
    let error = Standin::new(&["VERSION_STATUS=2"]).open().unwrap_err();
    assert!(matches!(error, LoadError::NoVersion { .. }), "{error}");
    assert!(error.to_string().contains("NRT_INVALID (2)"), "{error}");
}

#[test]
fn scheduled_runs_are_gated_on_the_version_though_the_symbols_are_there() {
    let cases = [
        ("MINOR=30", "PATCH=50", false, false), // the same names with another meaning
        ("MINOR=31", "PATCH=24", true, false),
        ("MINOR=32", "PATCH=30", true, false),
        ("MINOR=32", "PATCH=31", true, true),
    ];
    for (minor, patch, schedule, sleep) in cases {
        let library = Standin::new(&[minor, patch]).open().unwrap();
        assert_eq!((library.can_schedule(), library.can_sleep()), (schedule, sleep), "{minor} {patch}");
    }
}

#[test]
fn an_old_library_works_without_the_optional_symbols() {
    let standin = Standin::new(&["OLD", "MINOR=26"]);
    let library = standin.open().unwrap();
    assert!(!library.can_schedule() && !library.can_sleep() && !library.has_memory_stats());
    assert_eq!(library.total_cores(), Ok(2), "by the old name");
    let runtime = Runtime::start(library).unwrap();
    let core = runtime.core(1).unwrap();
    let text = runtime.memory(core).unwrap_err().to_string();
    assert_eq!(
        text,
        "memory statistics needs libnrt 2.27.23; this library is 2.26.10.0: update aws-neuronx-runtime-lib"
    );
    let text = runtime.join_world(core, 0, 2).unwrap_err().to_string();
    assert!(text.contains("nrt_build_global_comm"), "{text}");
    drop(runtime);
    standin.assert_clean();
}
