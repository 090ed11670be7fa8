//! A device that fails while it runs: what goes on on the cpu, what clients are told, and that the device is given back.

use serde_json::{Value, json};

use super::verbs::Server;
use super::{Bench, fixture_path, ids, njoule};

const NEURON: [&str; 8] = ["--backend", "neuron", "--quant", "none", "--batch-size", "4", "--fallback", "cpu"];
const CPU: [&str; 4] = ["--backend", "cpu", "--quant", "none"];

/// Of the modules in the cache, which run once each while they are loaded; each fault comes after.
fn modules(bench: &Bench) -> usize {
    let shelf = std::fs::read_dir(bench.path("cache/neuron/modules")).unwrap();
    let count = |path: std::path::PathBuf| {
        let manifest: Value = serde_json::from_slice(&std::fs::read(path.join("manifest.json")).unwrap()).unwrap();
        manifest["modules"].as_array().unwrap().len()
    };
    shelf.map(|entry| count(entry.unwrap().path())).max().unwrap()
}

#[test]
fn with_a_fallback_the_cpu_goes_on_where_the_device_failed_and_nothing_is_lost_or_printed_twice() {
    let Some(bench) = Bench::new() else { return };
    let model = fixture_path("qwen3");
    let expected = ids(&bench.generate(&model, &CPU, &[]));
    assert_eq!(ids(&bench.generate(&model, &NEURON, &[])), expected, "and all modules are in the cache");
    let loaded = modules(&bench);
    let faults = [
        "nrt_tensor_read@1=5".to_owned(),
        "nrt_tensor_read@4=101".to_owned(),
        "nrt_tensor_read@6=hang".to_owned(),
        format!("evaluate@{}=1202", loaded + 2),
        format!("evaluate@{}=4", loaded + 7),
    ];
    for fault in &faults {
        let limits = [("NJOULE_NEURON_STEP_TIMEOUT", if fault.contains("hang") { "2" } else { "60" })];
        let environment = [&[("NJOULE_FAKE_FAULTS", fault.as_str())], &limits[..]].concat();
        let seen = bench.generate(&model, &NEURON, &environment);
        assert_eq!(ids(&seen), expected, "{fault}: {}", seen.stderr);
        let report = &seen.json()["model"];
        assert_eq!(report["backend"], "cpu", "{fault}");
        assert!(report["backend_reason"].as_str().unwrap().starts_with("--fallback cpu: step failed"), "{report}");
    }
    let text = |options: &[&str], environment: &[(&str, &str)]| {
        let args = [
            &["generate", "-m", &model, "--raw", "-n", "12", "-c", "128", "--temperature", "0", "--ignore-eos"],
            options,
        ];
        bench.run(&[&args.concat()[..], &["The sky is"]].concat(), environment)
    };
    let (whole, broken) = (text(&CPU, &[]), text(&NEURON, &[("NJOULE_FAKE_FAULTS", "nrt_tensor_read@6=5")]));
    assert_eq!((broken.code, &broken.stdout), (0, &whole.stdout), "{}", broken.stderr);
    assert!(
        broken.stderr.contains("warning: the device failed, going on on cpu (--fallback cpu)"),
        "{}",
        broken.stderr
    );
    assert!(broken.stderr.contains("NRT_TIMEOUT (5)"), "{}", broken.stderr);
    let refused = bench.generate(&model, &NEURON[..6], &[("NJOULE_FAKE_FAULTS", "nrt_tensor_read@3=5")]);
    assert!(refused.code == 1 && refused.stderr.contains("step failed"), "without: {}", refused.stderr);
}

#[test]
fn scores_and_batches_are_finished_on_the_cpu_as_well() {
    let Some(bench) = Bench::new() else { return };
    let model = fixture_path("qwen3");
    let (ids, lines, out) = (bench.path("ids.json"), bench.path("in.jsonl"), bench.path("out.jsonl"));
    let all: Vec<Vec<u32>> = [30, 70].map(|n| (0..n).map(|i| (i * 37 + n) % 250 + 3).collect()).to_vec();
    std::fs::write(&ids, serde_json::to_string(&all).unwrap()).unwrap();
    let score = |options: &[&str], environment: &[(&str, &str)]| {
        let args = ["score", "-m", &model, "--token-ids", &ids, "-c", "128", "--json", "-q"];
        bench.run(&[&args[..], options].concat(), environment).json()
    };
    let (wanted, got) = (score(&CPU, &[]), score(&NEURON, &[("NJOULE_FAKE_FAULTS", "nrt_tensor_read@2=5")]));
    assert_eq!(got["model"]["backend"], "cpu");
    let [wanted, got] = [wanted, got].map(|report| report["total_logprob"].as_f64().unwrap());
    assert!((wanted - got).abs() < 1e-2, "{wanted} {got}");
    let line = |id: u32| {
        let body = json!({"model": "m", "prompt": "The sky", "max_tokens": 9, "temperature": 0, "ignore_eos": true});
        json!({"custom_id": id.to_string(), "method": "POST", "url": "/v1/completions", "body": body}).to_string()
    };
    std::fs::write(&lines, (0..5).map(|id| line(id) + "\n").collect::<String>()).unwrap();
    let args = ["batch", &model, "-i", &lines, "-o", &out, "--served-model-name", "m", "-c", "128", "--json", "-q"];
    let seen = bench.run(&[&args[..], &NEURON].concat(), &[("NJOULE_FAKE_FAULTS", "nrt_tensor_read@5=5")]).json();
    assert_eq!(seen["model"]["backend"], "cpu", "{seen}");
    assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 5);
}

#[test]
fn clients_hear_what_the_device_said_and_a_server_ends_for_a_restart_or_goes_on_on_the_cpu() {
    let Some(bench) = Bench::new() else { return };
    let model = fixture_path("qwen3");
    let names = ["serve", &model, "--served-model-name", "m", "--port", "0", "-c", "128"];
    // Nothing is read while a model is loaded.
    let fault = [("NJOULE_FAKE_FAULTS", "nrt_tensor_read@3=1202")];
    let body = json!({"prompt": "The sky", "max_tokens": 12, "temperature": 0, "ignore_eos": true});
    let mut alone = Server::start(bench.command(&[&names[..], &NEURON[..6]].concat(), &fault));
    let failed = alone.answer("/v1/completions", &body);
    assert!(failed.starts_with("HTTP/1.1 500"), "{failed}");
    let said: Value = serde_json::from_str(failed.split_once("\r\n\r\n").unwrap().1).unwrap();
    let message = said["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("the device failed: NRT_EXEC_HW_ERR_NC_UE (1202): "), "{message}");
    assert!(!message.contains('/') && !message.contains("rank"), "{message}");
    assert_eq!(alone.end(), Some(70));

    let falling = Server::start(bench.command(&[&names[..], &NEURON].concat(), &fault));
    let cpu = Server::start(njoule(&[&names[..], &CPU].concat()));
    for _ in 0..2 {
        let [got, wanted] = [&falling, &cpu].map(|server| server.json("/v1/completions", &body)["choices"][0].clone());
        assert_eq!(got["text"], wanted["text"]);
    }
}

#[test]
fn the_runtime_is_closed_at_the_end_and_a_limit_that_is_none_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let model = fixture_path("llama_tied");
    let seen = bench.generate(&model, &NEURON[..6], &[("NJOULE_FAKE_FAULTS", "nrt_close@1=1")]);
    assert_eq!(seen.code, 0);
    assert!(seen.stderr.contains("ERROR nrt_close: as NJOULE_FAKE_FAULTS says"), "it was not called: {}", seen.stderr);
    for name in ["NJOULE_NEURON_STEP_TIMEOUT", "NJOULE_NEURON_LOAD_TIMEOUT"] {
        bench.generate(&model, &NEURON, &[(name, "40s")]).fails_with(2, &[name, "40s", "whole number of seconds"]);
    }
}
