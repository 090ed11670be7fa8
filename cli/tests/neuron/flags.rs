//! Flags and files that contradict an artifact, or are none: refused in words, never passed over.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Bench, fixture_path, ids};

const OPTIONS: [&str; 8] = ["--quant", "bf16", "--tp", "1", "--batch", "2", "--max-neffs", "4"];

#[test]
fn a_flag_that_contradicts_the_artifact_is_refused_with_what_it_has_and_one_that_agrees_is_fine() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) = bench.build("qwen3", "a", &OPTIONS);
    let place: &str = &artifact;
    let ids_file = bench.path("ids.json");
    fs::write(&ids_file, "[[1, 5, 9, 30]]").unwrap();
    let lines = bench.path("in.jsonl");
    fs::write(&lines, "").unwrap();
    let out = bench.path("out.jsonl");
    let cases: [(&[&str], &str); 8] = [
        (&["--backend", "cpu"], "--backend neuron alone runs"),
        (&["--backend", "candle"], "--backend neuron alone runs"),
        (&["--quant", "int8"], "weights in bf16"),
        (&["--quant", "none"], "weights in bf16"),
        (&["--kv-type", "int8"], "caches in bf16"),
        (&["--instance", "trn1.2xlarge"], "for inf2.xlarge (inf2)"),
        (&["-c", "4000"], "sequences of 512 tokens"),
        (&["--fallback", "cpu"], "name the model that it was built from"),
    ];
    for (flags, has) in cases {
        let args = [&["generate", "-m", place, "--token-ids", &ids_file, "-n", "2", "--json"], flags].concat();
        bench.run(&args, &[]).fails_with(2, &[&flags.join(" ").replace("-c ", "--context "), place, has]);
    }
    let verbs: [&[&str]; 5] = [
        &["serve", place, "--port", "0"],
        &["batch", place, "-i", &lines, "-o", &out],
        &["chat", place],
        &["score", "-m", place, "--token-ids", &ids_file],
        &["bench", "-m", place, "--batch", "1", "--prompt", "8", "--gen", "2", "--repeat", "1"],
    ];
    for verb in verbs {
        let seen = bench.run(&[verb, &["--quant", "int8"]].concat(), &[]);
        assert!(seen.code == 2 && seen.stderr.contains("--quant int8: "), "{verb:?}: {} {}", seen.code, seen.stderr);
    }
    let agreeing =
        ["--backend", "neuron", "--quant", "bf16", "--kv-type", "bf16", "--instance", "inf2.xlarge", "-c", "64"];
    let args =
        [&["generate", "-m", place, "--token-ids", &ids_file, "-n", "2", "--json", "-q"], &agreeing[..]].concat();
    let model = bench.run(&args, &[]).json()["model"].clone();
    assert_eq!(
        (&model["backend"], &model["quant"], &model["kv_type"]),
        (&"neuron".into(), &"bf16".into(), &"bf16".into())
    );
    // It runs on all of the family; what it has is told where nothing was asked.
    let args = ["generate", "-m", place, "--token-ids", &ids_file, "-n", "2", "--json", "-q"];
    let seen = bench.run(&[&args[..], &["--instance", "inf2.8xlarge"]].concat(), &[]).json();
    assert_eq!(seen["model"]["quant"], "bf16");
    let long = bench.run(&[&args[..5], &["-n", "600"]].concat(), &[]);
    let advice = "build an artifact for longer ones with `njoule build --context N` (this one was built for 512)";
    assert!(
        long.code == 1 && long.stderr.contains(advice) && !long.stderr.contains("raise --context"),
        "{}",
        long.stderr
    );
}

#[test]
fn a_manifest_that_is_none_is_named_and_one_in_another_layout_is_read() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) = bench.build("llama_tied", "a", &["--quant", "none", "--batch", "2", "--max-neffs", "4"]);
    let expected = ids(&bench.generate(&artifact, &[], &[]));
    let manifest = Path::new(&artifact).join("manifest.json");
    let whole = fs::read_to_string(&manifest).unwrap();
    for text in ["x\n", "", "[1]"] {
        fs::write(&manifest, text).unwrap();
        for verb in [&["inspect", &artifact][..], &["generate", "-m", &artifact, "hi"]] {
            bench.run(verb, &[]).fails_with(1, &["manifest.json", "is no manifest"]);
        }
    }
    let value: Value = serde_json::from_str(&whole).unwrap();
    let sorted: std::collections::BTreeMap<&str, &Value> =
        value.as_object().unwrap().iter().map(|(key, value)| (key.as_str(), value)).collect();
    for text in [value.to_string(), serde_json::to_string_pretty(&sorted).unwrap()] {
        fs::write(&manifest, text).unwrap();
        assert_eq!(ids(&bench.generate(&artifact, &[], &[])), expected);
    }
    // Nobody ever writes into it.
    fs::remove_file(&manifest).unwrap();
    assert!(Command::new("mkfifo").arg(&manifest).status().unwrap().success());
    for verb in [&["inspect", &artifact][..], &["generate", "-m", &artifact, "hi"]] {
        bench.run(verb, &[]).fails_with(1, &["manifest.json", "no regular file"]);
    }
}

#[test]
fn the_same_build_has_the_same_name_wherever_it_was_compiled() {
    let Some(bench) = Bench::new() else { return };
    let options = ["--quant", "none", "--tp", "1", "--batch", "2", "--max-neffs", "4", "--json", "-q"];
    let (model, caches) = (fixture_path("llama_tied"), ["one", "two"].map(|name| bench.path(name)));
    let built = caches.map(|cache| {
        let place = format!("{cache}-out");
        let args = [&["build", &model, "-o", &place, "--context", "512", "--candidates", "16"], &options[..]].concat();
        bench.run(&args, &[("NJOULE_CACHE", &cache)]).json()
    });
    assert_ne!(built[0]["modules"][0]["seconds"], built[1]["modules"][0]["seconds"]);
    assert_eq!(built[0]["id"], built[1]["id"]);
    bench.run(&["plan", &model, "--candidates", "0"], &[]).fails_with(2, &["--candidates"]);
}
