//! `njoule probe` as a process: modules for elsewhere, and machines on which a step fails.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

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
    }
    assert!(script.contains("neuronx-cc compile \"$module\" --framework XLA --target inf2"), "{script}");
    // In the forms of another profile: what a layer is made of, too.
    let profile = write(dir.path(), "profile.json", r#"{"cache_write": "select"}"#);
    let seen = probe(&["--target", "inf2", "--emit", to.to_str().unwrap(), "--profile", &profile], dir.path(), None);
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert!(to.join("probe_layer_decode.pb").exists() && to.join("probe_layer_decode_cache_write_select.pb").exists());
    let profile = write(dir.path(), "bad.json", r#"{"cache_write": "magic"}"#);
    let args = ["--target", "inf2", "--emit", to.to_str().unwrap(), "--profile", &profile];
    probe(&args, dir.path(), None).fails_with(1, &["bad.json", "no device profile"]);
}

#[test]
fn without_a_target_a_compiler_or_neffs_it_says_what_to_give() {
    let dir = scratch();
    probe(&[], dir.path(), None).fails_with(2, &["--target"]);
    probe(&["--target", "trn9"], dir.path(), None).fails_with(2, &["trn9"]);
    probe(&["--target", "trn1"], dir.path(), None).fails_with(1, &["neuronx-cc", "--neffs"]);
    probe(&["--target", "trn1", "--neffs", "/no/such/dir"], dir.path(), None).fails_with(1, &["/no/such/dir"]);
    let here = dir.path().to_str().unwrap();
    let model = testdata("llama_tied");
    probe(&["--target", "trn1", "--neffs", here, &model], dir.path(), None)
        .fails_with(2, &["njoule build", "artifact"]);
    probe(&["--no-model", &model], dir.path(), None).fails_with(2, &["--no-model"]);
    let options = ["--target", "trn1", "--neffs", here];
    for (option, value, says) in
        [("--instance", "trn9.large", "trn1.2xlarge"), ("--quant", "int4", "bf16"), ("--kv-type", "f16", "bf16")]
    {
        probe(&[&options[..], &[option, value, &model]].concat(), dir.path(), None).fails_with(2, &[value, says]);
    }
    let golden = write(dir.path(), "golden.json", "{}");
    let args = ["--target", "trn1", "--neffs", here, "--golden", &golden, &model];
    probe(&args, dir.path(), None).fails_with(1, &["golden.json", "prompts"]);
}

#[test]
fn a_machine_without_a_library_stops_at_the_first_step_and_its_report_names_no_path() {
    let dir = scratch();
    let report = dir.path().join("report.json");
    let args = ["--target", "trn1", "--neffs", dir.path().to_str().unwrap(), "--report", report.to_str().unwrap()];
    let seen = probe(&args, dir.path(), Some(Path::new("/no/such/libnrt.so.1")));
    assert_eq!(seen.code, 1);
    assert!(seen.stderr.contains("stopped at step library: run `njoule doctor`"), "{}", seen.stderr);
    let text = fs::read_to_string(&report).unwrap();
    assert!(!text.contains("/no/such"), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["outcome"]["stopped_at"], "library");
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
    assert!(seen.stdout.contains("library     ok      libnrt 2.34"), "{}", seen.stdout);
    assert!(seen.stdout.contains("does not work here (load): probe_add: model `probe_add`"), "{}", seen.stdout);
    assert!(seen.stderr.contains("stopped at step add"), "{}", seen.stderr);
}

/// The stand-ins, on a machine of files; `None` where they are not built.
fn on_stand_ins(args: &[&str], dir: &Path, refused: &str) -> Option<Ran> {
    let (nrt, cc) = (neuron_fake("libneuron_fake.so")?, neuron_fake("neuronx-cc-fake")?);
    let mut command = njoule(&["probe", "--target", "trn1"]);
    command.args(args).env("NJOULE_SYSFS_ROOT", dir).env("NJOULE_CACHE", dir.join("cache"));
    command.env("NJOULE_NRT", &nrt).env("NJOULE_NEURONX_CC", &cc).env("NJOULE_FAKE_CC_REFUSE", refused);
    command.env("NJOULE_FAKE_INSTANCE", "trn1.2xlarge").env_remove("NJOULE_INSTANCE");
    Some(ran(command.output().expect("the binary starts")))
}

#[test]
fn a_stand_in_whose_compiler_refuses_an_operation_is_given_the_form_without_it() {
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
        let args = ["--no-model", "--report", report.to_str().unwrap()];
        let Some(seen) = on_stand_ins(&args, dir.path(), refused) else { return };
        assert_eq!(seen.code, 0, "{refused}: {}{}", seen.stdout, seen.stderr);
        assert!(seen.stderr.contains("] layer: ") && seen.stdout.contains("\nlayer       ok"), "{}", seen.stdout);
        let text = fs::read_to_string(&report).unwrap();
        assert!(!text.contains(dir.path().to_str().unwrap()), "{text}");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["stand_in"], &json["outcome"]["profile"][key]), (&Value::Bool(true), &Value::from(form)));
        let kept = fs::read_to_string(dir.path().join("cache/neuron/profiles/trn1-stand-in.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), json["outcome"]["profile"]);
        assert!(!dir.path().join("cache/neuron/profiles/trn1.json").exists());
    }
}

/// What the compiler took once it need not take any more; and without a driver the library says what the machine has.
#[test]
fn each_form_is_compiled_anew_and_the_target_is_asked_of_the_library() {
    let dir = scratch();
    let args = ["--no-model", "--json"];
    let Some(seen) = on_stand_ins(&args, dir.path(), "") else { return };
    assert_eq!(seen.json()["outcome"]["profile"]["cache_write"], "scatter");
    let seen = on_stand_ins(&args, dir.path(), "scatter").unwrap();
    assert_eq!(seen.json()["outcome"]["profile"]["cache_write"], "update_slice");
    let nrt = neuron_fake("libneuron_fake.so").unwrap();
    let to = dir.path().join("modules");
    let mut command = njoule(&["probe", "--emit", to.to_str().unwrap()]);
    command.env("NJOULE_SYSFS_ROOT", dir.path()).env("NJOULE_CACHE", dir.path().join("cache")).env("NJOULE_NRT", &nrt);
    command.env("NJOULE_FAKE_INSTANCE", "trn2.3xlarge").env_remove("NJOULE_INSTANCE");
    let seen = ran(command.output().unwrap());
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    assert!(fs::read_to_string(to.join("compile.sh")).unwrap().contains("--target trn2"));
}

/// Ctrl-C while the compiler works: it goes too, and the report says how far the probe came.
#[test]
fn an_interrupted_probe_ends_its_compiler_and_leaves_its_report() {
    let (Some(nrt), Some(cc)) = (neuron_fake("libneuron_fake.so"), neuron_fake("neuronx-cc-fake")) else { return };
    let dir = scratch();
    let (pid, report) = (dir.path().join("pid"), dir.path().join("report.json"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = compile ] || exec {} \"$@\"\nsleep 1000 & echo $! > {pid}.part; mv {pid}.part {pid}; wait\n",
        cc.display(),
        pid = pid.display()
    );
    let slow = write(dir.path(), "slow-cc", &script);
    fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = njoule(&["probe", "--target", "trn1", "--no-model", "--report", report.to_str().unwrap()]);
    command.env("NJOULE_SYSFS_ROOT", dir.path()).env("NJOULE_CACHE", dir.path().join("cache"));
    command.env("NJOULE_NRT", &nrt).env("NJOULE_NEURONX_CC", &slow).env("NJOULE_FAKE_INSTANCE", "trn1.2xlarge");
    let child = command.env_remove("NJOULE_INSTANCE").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("a compile", || pid.exists());
    // What a crash at this moment would leave.
    let read = || serde_json::from_str::<Value>(&fs::read_to_string(&report).unwrap()).unwrap()["outcome"].clone();
    let so_far = read();
    let running = so_far["running"].as_str().unwrap().to_owned();
    assert_eq!((so_far["steps"].as_array().unwrap().len(), &so_far["stopped_at"]), (2, &Value::Null), "{so_far}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let seen = ran(child.wait_with_output().unwrap());
    assert_eq!(seen.code, 130, "{}", seen.stderr);
    assert!(seen.stderr.contains(&format!("stopped at step {running}")), "{}", seen.stderr);
    let compiler = fs::read_to_string(&pid).unwrap();
    until("the compiler's end", || !lives(&compiler));
    let last = read();
    assert_eq!(
        (&last["stopped_at"], &last["running"], &last["profile"]),
        (&running.into(), &Value::Null, &Value::Null)
    );
    assert!(!dir.path().join("cache/neuron/profiles").exists());
}

#[test]
fn a_report_that_cannot_be_written_ends_the_probe_before_its_first_step() {
    let dir = scratch();
    let args = ["--target", "trn1", "--neffs", dir.path().to_str().unwrap(), "--report", "/nowhere/report.json"];
    let seen = probe(&args, dir.path(), Some(Path::new("/no/such/libnrt.so.1")));
    seen.fails_with(1, &["/nowhere/report.json"]);
}

#[test]
fn an_idiom_of_which_every_form_is_refused_stops_the_probe_with_advice() {
    for (refused, step, advice) in [
        ("dynamic-slice,gather", "row_read", "prefill needs one of the two"),
        ("exponential", "normalise", "activation tables"),
        ("dot", "dot_result", "no result type works"),
    ] {
        let dir = scratch();
        let Some(seen) = on_stand_ins(&["--no-model", "--json"], dir.path(), refused) else { return };
        assert!(seen.code == 1 && seen.stderr.contains(&format!("stopped at step {step}")), "{}", seen.stderr);
        assert!(seen.stderr.contains(advice), "{}", seen.stderr);
        let json: Value = serde_json::from_str(&seen.stdout).unwrap();
        let last = json["outcome"]["steps"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["name"], &last["state"]), (&Value::from(step), &Value::from("failed")));
        assert!(!dir.path().join("cache/neuron/profiles").exists());
    }
}

/// What transformers gives for a fixture, in the form of `testdata/smollm2`.
fn golden_file(dir: &Path, fixture: &str) -> String {
    let bytes = fs::read(testdata(&format!("{fixture}/golden.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (mut prompts, mut results) = (vec![], vec![]);
    for i in 0..3 {
        let whole = golden(fixture)["prompts"][i].clone();
        let logits = file.tensor(&format!("prompt.{i}.logits")).unwrap();
        let vocab = logits.shape()[1];
        let last = &logits.data()[logits.data().len() - 4 * vocab..];
        let value = |id: usize| f32::from_le_bytes(last[4 * id..4 * id + 4].try_into().unwrap());
        let mut ids: Vec<usize> = (0..vocab).collect();
        ids.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
        ids.truncate(50);
        let top: Vec<f32> = ids.iter().map(|id| value(*id)).collect();
        prompts.push(serde_json::json!({"ids": whole["input_ids"]}));
        results.push(serde_json::json!({
            "last_top50_ids": ids, "last_top50_logits": top,
            "greedy_ids": whole["greedy_ids"], "greedy_margins": whole["greedy_margins"],
        }));
    }
    let made_with = serde_json::json!({"transformers": "4.57.6"});
    let text = serde_json::json!({"made_with": made_with, "prompts": prompts, "results": results}).to_string();
    write(dir, "golden.json", &text)
}

/// A whole probe of the stand-ins, with a model in f32 and transformers' logits; then one whose logits are another model's.
#[test]
fn a_model_is_compared_with_its_reference_and_timed() {
    let dir = scratch();
    let golden = golden_file(dir.path(), "llama_tied");
    let report = dir.path().join("report.json");
    let model = testdata("llama_tied");
    let args = ["--quant", "none", "--golden", &golden, "--report", report.to_str().unwrap(), &model];
    let Some(seen) = on_stand_ins(&args, dir.path(), "scatter") else { return };
    assert_eq!(seen.code, 0, "{}{}", seen.stdout, seen.stderr);
    assert!(seen.stdout.contains("figures of a stand-in, which say nothing of a device"), "{}", seen.stdout);
    assert!(!seen.stdout.contains("published bandwidth"), "{}", seen.stdout);
    let text = fs::read_to_string(&report).unwrap();
    for path in [dir.path().to_str().unwrap(), env!("CARGO_MANIFEST_DIR")] {
        assert!(!text.contains(path), "{text}");
    }
    let json: Value = serde_json::from_str(&text).unwrap();
    let step = |name: &str| {
        let steps = json["outcome"]["steps"].as_array().unwrap();
        steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name}")).clone()
    };
    let logits = step("logits");
    assert_eq!(
        (&logits["state"], &logits["logits"]["reference"]),
        (&Value::from("passed"), &"transformers 4.57.6".into())
    );
    let error = logits["logits"]["error"].as_f64().unwrap();
    assert!(error > 0.0 && error < 1e-3, "{logits}");
    let followed = |prompt: &Value| prompt["followed"].as_u64().unwrap();
    assert!(logits["logits"]["prompts"].as_array().unwrap().iter().all(|p| followed(p) >= 3), "{logits}");
    let speed = step("speed")["speed"].clone();
    assert_eq!((&speed["of"], &speed["bandwidth_gb_s"]), (&Value::from("stand-in"), &Value::Null));
    let kinds = speed["steps"].as_array().unwrap();
    assert!(kinds.len() == 4 && kinds.iter().all(|kind| kind["mbu"].is_null()), "{speed}");
    assert_eq!(step("power")["state"], "unknown");
    assert_eq!(step("cache_write")["chosen"], "update_slice");

    // Its modules are in the cache: nothing is compiled again, and another model's logits stop it.
    let mut other: Value = serde_json::from_str(&fs::read_to_string(&golden).unwrap()).unwrap();
    other["results"][2]["last_top50_logits"][49] = (-99.0).into();
    let golden = write(dir.path(), "other.json", &other.to_string());
    let args = ["--quant", "none", "--golden", &golden, "--json", &model];
    let seen = on_stand_ins(&args, dir.path(), "scatter").unwrap();
    assert!(seen.code == 1 && seen.stderr.contains("stopped at step logits: layers work alone"), "{}", seen.stderr);
    let json: Value = serde_json::from_str(&seen.stdout).unwrap();
    assert!(json["outcome"]["steps"].to_string().contains("prompt 2 is off"), "{json}");
    assert_eq!(
        (&json["outcome"]["profile"], &json["outcome"]["chosen"]["cache_write"]),
        (&Value::Null, &"update_slice".into())
    );
}
