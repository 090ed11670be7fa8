//! `--backend`: what runs, what is said about it, and what is refused.

mod support;

use support::*;

/// Log-probabilities of the fixture's prompts, and what the report says of the model.
fn score(fixture: &str, flags: &[&str]) -> (Vec<Option<f64>>, serde_json::Value) {
    let prompts: Vec<Vec<u32>> =
        golden(fixture)["prompts"].as_array().unwrap().iter().map(|p| ids(&p["input_ids"])).collect();
    let dir = scratch();
    let file = write_ids(dir.path(), &prompts);
    let report = run(&[&["score", "-m", &model(fixture), "--token-ids", &file, "--json"], flags].concat()).json();
    let of_result = |r: &serde_json::Value| r["logprobs"].as_array().unwrap().clone();
    let logprobs = report["results"].as_array().unwrap().iter().flat_map(of_result).map(|x| x.as_f64()).collect();
    (logprobs, report["model"].clone())
}

#[cfg(feature = "candle")]
#[test]
fn candle_scores_as_cpu_does() {
    for fixture in ["llama_plain", "mistral", "qwen3", "gguf_qwen2"] {
        let (cpu, by_cpu) = score(fixture, &["--quant", "none", "--backend", "cpu"]);
        let (candle, by_candle) = score(fixture, &["--quant", "none", "--backend", "candle"]);
        assert_eq!(cpu.len(), candle.len());
        assert!(cpu.iter().flatten().count() > 10, "{fixture}");
        for (i, (a, b)) in cpu.iter().zip(&candle).enumerate() {
            let near = match (a, b) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-3,
                (a, b) => a == b,
            };
            assert!(near, "{fixture} token {i}: {a:?} and {b:?}");
        }
        assert_eq!((&by_cpu["backend"], &by_candle["backend"]), (&"cpu".into(), &"candle".into()));
        assert!(by_cpu["isa"].is_string() && by_candle["isa"].is_null() && by_candle["kv_type"] == "f32");
    }
}

#[test]
fn auto_says_what_it_chose_and_why() {
    let (_, facts) = score("llama_plain", &[]);
    assert!(facts["backend"] == "cpu" || facts["device"] != "cpu", "{facts}");
    assert!(facts["backend_reason"].as_str().is_some_and(|why| !why.is_empty()), "{facts}");
}

#[cfg(feature = "candle")]
#[test]
fn candle_runs_every_verb_that_runs_a_model() {
    let model = model("llama_plain");
    let answer = |backend: &str| {
        let flags =
            ["--backend", backend, "--quant", "none", "-n", "8", "--temperature", "0", "--ignore-eos", "--json"];
        run(&[&["generate", "-m", &model, "--raw", "Hello there"], &flags[..]].concat()).json()["results"][0]["token_ids"].clone()
    };
    assert!(answer("candle").as_array().is_some_and(|ids| ids.len() == 8));
    assert_eq!(answer("candle"), answer("cpu"));

    let flags = ["--backend", "candle", "--batch", "1,2", "--prompt", "8", "--gen", "3", "--repeat", "1", "--json"];
    let report = run(&[&["bench", "-m", &model], &flags[..]].concat()).json();
    assert_eq!((&report["backend"], &report["device"]), (&"candle".into(), &"cpu".into()));
    assert!(report["isa"].is_null() && report["stored_bytes"]["bf16"].as_u64().is_some_and(|n| n > 0), "{report}");
    for row in report["rows"].as_array().expect("rows") {
        assert!(row["decode_tokens_per_s"].as_f64().is_some_and(|x| x > 0.0), "{row}");
    }
    let table = run(&["bench", "-m", &model, "--backend", "candle", "--batch", "1", "--gen", "1", "--no-roofline"]);
    assert!(table.code == 0 && table.stdout.contains("candle on cpu"), "{}{}", table.stdout, table.stderr);
}

#[cfg(feature = "candle")]
#[test]
fn candle_refuses_types_that_it_lacks_by_name() {
    let model = model("llama_plain");
    let cases: [(&[&str], &str); 4] = [
        (&["--quant", "int8"], "int8"),
        (&["--quant", "int4"], "int4"),
        (&["--kv-type", "f16"], "f16"),
        (&["--kv-type", "int8"], "int8"),
    ];
    for (flags, word) in cases {
        let args = ["score", "-m", &model, "Hello", "--backend", "candle"];
        run(&[&args[..], flags].concat()).fails_with(2, &["candle", word, "bf16"]);
    }
}
