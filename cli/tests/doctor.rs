//! `njoule doctor` as a process: on a machine with nothing, with a library that does not open, and with a stand-in.

mod support;

use std::path::Path;

use serde_json::Value;
use support::*;

/// Runs it below an empty root.
fn doctor(args: &[&str], nrt: Option<&Path>) -> Ran {
    let root = scratch();
    let mut command = njoule(&["doctor"]);
    command.args(args).env("NJOULE_SYSFS_ROOT", root.path());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NEURON_")) {
        command.env_remove(name);
    }
    for name in ["NJOULE_NRT", "NJOULE_NEURONX_CC"] {
        command.env_remove(name);
    }
    if let Some(nrt) = nrt {
        command.env("NJOULE_NRT", nrt);
    }
    ran(command.output().expect("the binary starts"))
}

#[test]
fn a_machine_with_nothing_exits_with_0_and_says_that_it_is_fine() {
    let seen = doctor(&[], None);
    assert_eq!((seen.code, seen.stderr.as_str()), (0, ""));
    assert!(seen.stdout.starts_with("no Neuron device: CPU only. That is fine for --backend cpu"), "{}", seen.stdout);
    assert!(seen.stdout.contains("nothing to fix\n"));
    assert!(seen.stdout.contains("nothing of njoule has run on Neuron hardware"));
}

#[test]
fn a_library_that_is_named_and_does_not_open_exits_with_1() {
    let seen = doctor(&["--json"], Some(Path::new("/no/such/libnrt.so.1")));
    assert_eq!(seen.code, 1);
    assert!(seen.stderr.contains("/no/such/libnrt.so.1"), "{}", seen.stderr);
    let json: Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!(json["first_fix"]["about"], "library");
    assert_eq!(json["library"]["tried"][0]["origin"], "NJOULE_NRT");
}

#[cfg(target_os = "linux")]
#[test]
fn a_stand_in_is_called_one_and_only_init_starts_it() {
    let dir = scratch();
    let path = stand_in(dir.path(), "-DMINOR=34");
    let seen = doctor(&["--json"], Some(&path));
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    let json: Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!(json["verdict"], "stand_in");
    assert_eq!((&json["library"]["stand_in"], &json["library"]["schedules"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(json["library"]["started"], Value::Null);

    let seen = doctor(&["--init"], Some(&path));
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert!(seen.stdout.contains("a STAND-IN, not AWS's library"), "{}", seen.stdout);
    assert!(seen.stdout.contains("core 0: "), "{}", seen.stdout);
}

/// What njoule itself tells libnrt is no fault of the machine's; what the user has set is told.
#[cfg(target_os = "linux")]
#[test]
fn a_tree_of_devices_is_seen_as_the_user_has_set_things() {
    let (Some(nrt), dir) = (neuron_fake("libneuron_fake.so"), scratch()) else { return };
    let fake = neuron_fake("neuron-fake").expect("built with the library");
    let root = dir.path().to_str().unwrap();
    assert!(
        std::process::Command::new(fake).args(["sysfs", root, "--instance", "inf2.xlarge"]).status().unwrap().success()
    );
    let seen = |set: &[(&str, &str)]| {
        let mut command = njoule(&["doctor", "--json"]);
        command
            .env_remove("NEURON_RT_IO_RING_CACHE_SIZE")
            .env_remove("NEURON_RT_EXEC_TIMEOUT")
            .env_remove("NJOULE_NEURONX_CC");
        command.env("NJOULE_SYSFS_ROOT", root).env("NJOULE_NRT", &nrt).envs(set.iter().copied());
        ran(command.output().expect("the binary starts"))
    };
    let sound = seen(&[]);
    assert_eq!(sound.code, 0, "{}", sound.stderr);
    let json = sound.json();
    assert_eq!(json["verdict"], "stand_in");
    for word in ["NEURON_RT_IO_RING_CACHE_SIZE", "NEURON_RT_EXEC_TIMEOUT", "there is no Neuron driver"] {
        assert!(!sound.stdout.contains(word), "{word}: {}", sound.stdout);
    }
    assert!(sound.stdout.contains("the loaded driver does not tell its version"), "{}", sound.stdout);
    let set = seen(&[("NEURON_RT_IO_RING_CACHE_SIZE", "1")]).json();
    assert_eq!(set["first_fix"]["about"], "environment", "{}", set["first_fix"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_runtime_that_does_not_start_exits_with_1_and_tells_its_status() {
    let dir = scratch();
    let path = stand_in(dir.path(), "-DINIT_STATUS=2");
    assert_eq!(doctor(&[], Some(&path)).code, 0, "not asked to start");
    let seen = doctor(&["--init"], Some(&path));
    assert_eq!(seen.code, 1);
    assert!(seen.stdout.contains("it does not start: nrt_init"), "{}", seen.stdout);
}
