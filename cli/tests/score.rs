//! `njoule score`: logits and log-probabilities against the reference's.

mod support;

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use support::*;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Runs score on a fixture's prompts; the report and the logits' file.
fn score(dir: &Path, fixture: &str, quant: &str) -> (serde_json::Value, Vec<u8>) {
    let prompts: Vec<Vec<u32>> =
        golden(fixture)["prompts"].as_array().unwrap().iter().map(|p| ids(&p["input_ids"])).collect();
    let file = write_ids(dir, &prompts);
    let out = dir.join("out.safetensors");
    let out = out.to_str().unwrap();
    let model = model(fixture);
    let report = run(&[
        "score",
        "-m",
        &model,
        "--token-ids",
        &file,
        "--logits",
        out,
        "--quant",
        quant,
        "--backend",
        "cpu",
        "--json",
    ])
    .json();
    (report, std::fs::read(out).expect("logits"))
}

#[test]
fn unquantised_logits_are_the_references() {
    let mut failures = vec![];
    for fixture in ["llama_plain", "llama3_rope", "llama_yarn", "mistral", "qwen2", "qwen3", "gguf_llama", "gguf_qwen2"]
    {
        let dir = scratch();
        let (report, bytes) = score(dir.path(), fixture, "none");
        let got = SafeTensors::deserialize(&bytes).expect("safetensors");
        let bytes = std::fs::read(testdata(&format!("{fixture}/golden.safetensors"))).unwrap();
        let want = SafeTensors::deserialize(&bytes).unwrap();
        for i in 0..golden(fixture)["prompts"].as_array().unwrap().len() {
            let got = got.tensor(&format!("logits.{i}")).expect("a tensor per sequence");
            let want = want.tensor(&format!("prompt.{i}.logits")).unwrap();
            assert_eq!((got.dtype(), got.shape()), (Dtype::F32, want.shape()), "{fixture} {i}");
            let (values, reference) = (floats(got.data()), floats(want.data()));
            // A NaN is not near anything.
            let far = values.iter().zip(&reference).filter(|(a, b)| (*a - *b).abs() >= 1e-3 || a.is_nan()).count();
            if far > 0 {
                failures.push(format!("{fixture} {i}: {far} of {} logits are off", values.len()));
            }
            check_logprobs(&report["results"][i], &values, got.shape()[1]);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Log-probabilities are those of the logits.
fn check_logprobs(result: &serde_json::Value, logits: &[f32], vocab: usize) {
    let tokens = ids(&result["token_ids"]);
    let logprobs = result["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), tokens.len());
    assert!(logprobs[0].is_null());
    let mut total = 0.0;
    for (i, token) in tokens.iter().enumerate().skip(1) {
        let row = &logits[(i - 1) * vocab..i * vocab];
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        let want = f64::from(row[*token as usize]) - sum.ln();
        let got = logprobs[i].as_f64().unwrap();
        assert!((got - want).abs() < 1e-3, "token {i}: {got}, not {want}");
        total += got;
    }
    assert!((result["total_logprob"].as_f64().unwrap() - total).abs() < 1e-3);
}

#[test]
fn quantised_logits_are_finite_and_near() {
    for quant in ["bf16", "int8", "int4", "auto"] {
        let dir = scratch();
        let (report, bytes) = score(dir.path(), "llama_plain", quant);
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        assert!(floats(file.tensor("logits.0").unwrap().data()).iter().all(|x| x.is_finite()), "{quant}");
        assert!(report["perplexity"].as_f64().unwrap() > 1.0, "{quant}");
    }
}

#[test]
fn text_file_is_cut_into_windows() {
    let dir = scratch();
    let words = "All work and no play makes Jack a dull boy. ".repeat(30);
    let file = write(dir.path(), "text.txt", &words);
    let model = model("llama_plain");
    let report = run(&["score", "-m", &model, "--text", &file, "--context", "64", "--json"]).json();
    let results = report["results"].as_array().unwrap();
    assert!(results.len() > 2);
    let lengths: Vec<usize> = results.iter().map(|r| r["token_ids"].as_array().unwrap().len()).collect();
    assert!(lengths[..lengths.len() - 1].iter().all(|n| *n == 64), "{lengths:?}");
    let scored: usize = lengths.iter().map(|n| n - 1).sum();
    assert_eq!(report["scored_tokens"], scored);
    let plain = run(&["score", "-m", &model, "--text", &file, "--context", "64"]);
    assert!(plain.stdout.contains(&format!("{scored} tokens scored in {} windows", lengths.len())), "{}", plain.stdout);
}

#[test]
fn a_context_beyond_learned_positions_is_refused() {
    let model = model("gpt2");
    let dir = scratch();
    let ids = write(dir.path(), "ids.json", "[[3, 4, 5]]");
    let made_for = run(&["inspect", &model, "--json"]).json()["config"]["max_len"].as_u64().unwrap();
    let score = |context: u64| run(&["score", "-m", &model, "--token-ids", &ids, "--context", &context.to_string()]);
    assert_eq!(score(made_for).code, 0);
    let refused = score(made_for + 1);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("no positions beyond"), "{}", refused.stderr);
}

#[test]
fn text_is_scored_from_argument_and_stdin_alike() {
    let model = model("llama_plain");
    let argument = run(&["score", "-m", &model, "Hello there"]);
    let stdin = run_with(&["score", "-m", &model], "Hello there");
    assert_eq!((argument.code, &argument.stdout), (0, &stdin.stdout), "{}{}", argument.stderr, stdin.stderr);
    let tokens = run(&["score", "-m", &model, "Hello there", "--tokens"]);
    assert!(tokens.stdout.lines().count() > 3, "{}", tokens.stdout);
}

#[test]
fn smollm2_mean_log_probability_equals_the_reference() {
    let Some(model) = asset(SMOLLM2, "smollm2_mean_log_probability_equals_the_reference") else { return };
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(testdata("smollm2/golden_gguf_f32.json")).unwrap()).unwrap();
    let prompts: Vec<Vec<u32>> = golden["prompts"].as_array().unwrap().iter().map(|p| ids(&p["ids"])).collect();
    let dir = scratch();
    let file = write_ids(dir.path(), &prompts);
    let report = run(&["score", "-m", &model, "--token-ids", &file, "--quant", "none", "--json"]).json();
    for (i, want) in golden["results"].as_array().unwrap().iter().enumerate() {
        let result = &report["results"][i];
        let mean = -result["total_logprob"].as_f64().unwrap() / (prompts[i].len() - 1) as f64;
        let want = want["prompt_mean_nll"].as_f64().unwrap();
        assert!((mean - want).abs() < 1e-3, "prompt {i}: {mean}, not {want}");
    }
}
