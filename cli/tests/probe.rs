//! `njoule probe` as a process: modules for elsewhere, and machines on which a step fails.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::*;

fn probe(args: &[&str], root: &Path, nrt: Option<&Path>) -> Ran {
    let mut command = njoule(&["probe"]);
    command.args(args).env("NJOULE_SYSFS_ROOT", root).env("NJOULE_CACHE", root.join("cache"));
    command.env("PATH", "/nowhere").env_remove("NJOULE_NEURONX_CC").env_remove("NJOULE_NRT");
    if let Some(nrt) = nrt {
        command.env("NJOULE_NRT", nrt);
    }
    ran(command.output().expect("the binary starts"))
}

#[test]
fn modules_are_written_with_the_commands_that_compile_them() {
    let dir = scratch();
    let to = dir.path().join("modules");
    let seen = probe(&["--target", "inf2", "--emit", to.to_str().unwrap()], dir.path(), None);
    assert_eq!((seen.code, seen.stderr.as_str()), (0, ""));
    let script = fs::read_to_string(to.join("compile.sh")).unwrap();
    for name in ["probe_add", "probe_write_scatter_chunk", "probe_top_k_custom"] {
        assert!(fs::metadata(to.join(format!("{name}.pb"))).unwrap().len() > 100, "{name}");
        assert!(script.contains(&format!("neuronx-cc compile {name}.pb --framework XLA --target inf2")), "{script}");
    }
}

#[test]
fn without_a_target_a_compiler_or_neffs_it_says_what_to_give() {
    let dir = scratch();
    probe(&[], dir.path(), None).fails_with(2, &["--target"]);
    probe(&["--target", "trn9"], dir.path(), None).fails_with(2, &["trn9"]);
    probe(&["--target", "trn1"], dir.path(), None).fails_with(1, &["neuronx-cc", "--neffs"]);
    probe(&["--target", "trn1", "--neffs", "/no/such/dir"], dir.path(), None).fails_with(1, &["/no/such/dir"]);
}

#[test]
fn a_machine_without_a_library_stops_at_the_first_step_and_its_report_names_no_path() {
    let dir = scratch();
    let report = dir.path().join("report.json");
    let args = ["--target", "trn1", "--neffs", dir.path().to_str().unwrap(), "--report", report.to_str().unwrap()];
    let seen = probe(&args, dir.path(), Some(Path::new("/no/such/libnrt.so.1")));
    assert_eq!(seen.code, 1);
    assert!(seen.stderr.contains("stopped at step open: run `njoule doctor --init`"), "{}", seen.stderr);
    let text = fs::read_to_string(&report).unwrap();
    assert!(!text.contains("/no/such"), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["outcome"]["stopped_at"], "open");
    assert_eq!(json["outcome"]["profile"], Value::Null);
    assert!(!dir.path().join("cache/neuron/profiles").exists());
}

#[test]
fn a_library_that_gives_another_model_is_refused_before_it_runs() {
    let dir = scratch();
    let nrt = stand_in(dir.path(), "-DMINOR=34");
    fs::write(dir.path().join("probe_add.neff"), "NEFF").unwrap();
    let seen = probe(&["--target", "trn1", "--neffs", dir.path().to_str().unwrap()], dir.path(), Some(&nrt));
    assert_eq!(seen.code, 1);
    assert!(seen.stdout.contains("open        ok      libnrt 2.34"), "{}", seen.stdout);
    assert!(seen.stdout.contains("does not work here (load): probe_add: model `probe_add`"), "{}", seen.stdout);
    assert!(seen.stderr.contains("stopped at step add"), "{}", seen.stderr);
}

#[test]
fn a_stand_in_whose_compiler_refuses_an_operation_is_given_the_form_without_it() {
    let (Some(nrt), Some(cc)) = (neuron_fake("libneuron_fake.so"), neuron_fake("neuronx-cc-fake")) else { return };
    for (refused, key, form) in [
        ("", "cache_write", "scatter"),
        ("scatter", "cache_write", "update_slice"),
        ("scatter,dynamic-update-slice", "cache_write", "select"),
        ("dynamic-slice", "row_read", "gather"),
        ("gather", "lookup", "one_hot"),
        ("cosine", "rope", "table"),
        ("AwsNeuronTopK", "top_k", "rounds"),
    ] {
        let dir = scratch();
        let report = dir.path().join("report.json");
        let mut command = njoule(&["probe", "--target", "trn1", "--report", report.to_str().unwrap()]);
        command.env("NJOULE_SYSFS_ROOT", dir.path()).env("NJOULE_CACHE", dir.path().join("cache"));
        command.env("NJOULE_NRT", &nrt).env("NJOULE_NEURONX_CC", &cc).env("NJOULE_FAKE_CC_REFUSE", refused);
        let seen = ran(command.output().expect("the binary starts"));
        assert_eq!(seen.code, 0, "{refused}: {}{}", seen.stdout, seen.stderr);
        let text = fs::read_to_string(&report).unwrap();
        assert!(!text.contains(dir.path().to_str().unwrap()), "{text}");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["stand_in"], &json["outcome"]["profile"][key]), (&Value::Bool(true), &Value::from(form)));
        let kept = fs::read_to_string(dir.path().join("cache/neuron/profiles/trn1-stand-in.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), json["outcome"]["profile"]);
        assert!(!dir.path().join("cache/neuron/profiles/trn1.json").exists());
    }
}
