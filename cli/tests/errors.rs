//! What is wrong is said on stderr, nothing goes to stdout, and the exit code tells usage from failure.

mod support;

use std::process::Stdio;

use support::*;

#[test]
fn wrong_flags_exit_with_2_and_name_what_exists() {
    let model = model("llama_plain");
    let cases: [(&[&str], &[&str]); 13] = [
        (&["generate", "-m", &model, "x", "--quant", "int5"], &["int5", "int4", "auto"]),
        (&["generate", "-m", &model, "x", "--backend", "cuda"], &["cuda", "cpu", "candle", "neuron"]),
        (&["generate", "-m", &model, "x", "--backend", "neuron"], &["no Neuron instance that is known", "inf2.xlarge"]),
        (&["generate", "-m", &model, "x", "--kv-type", "f64"], &["f64", "bf16"]),
        (&["generate", "-m", &model, "x", "--threads", "0"], &["--threads"]),
        (&["generate", "-m", &model, "x", "--temperature", "-1"], &["temperature", "-1"]),
        (&["generate", "-m", &model, "x", "--top-p", "1.5"], &["top_p", "1.5"]),
        (&["generate", "-m", &model, "x", "--logit-bias", "7"], &["--logit-bias", "ID=VALUE"]),
        (&["generate", "-m", &model, "x", "--logprobs", "2"], &["--json"]),
        (&["generate", "-m", &model, "x", "y"], &["too many arguments"]),
        (&["generate", "-m", &model], &["no prompt"]),
        (&["bench", "-m", &model, "--batch", "0"], &["--batch"]),
        (&["score", "-m", &model, "--no-such-flag"], &["--no-such-flag"]),
    ];
    for (args, words) in cases {
        run(args).fails_with(2, words);
    }
}

#[test]
fn missing_and_corrupt_files_exit_with_1_and_are_named() {
    let dir = scratch();
    let gguf = std::fs::read(model("gguf_llama")).unwrap();
    let truncated = dir.path().join("truncated.gguf");
    std::fs::write(&truncated, &gguf[..gguf.len() / 2]).unwrap();
    let garbage = write(dir.path(), "garbage.gguf", "this is no model");
    let bad_ids = write(dir.path(), "bad.json", "[[1, 2], [\"three\"]]");
    let empty_ids = write(dir.path(), "empty.json", "[[1], []]");
    let no_text = write(dir.path(), "empty.txt", "");
    let model = model("llama_plain");
    let out = dir.path().join("no/such/dir/out.safetensors");
    let ids = write_ids(dir.path(), &[vec![1, 2]]);
    let cases: [(&[&str], &[&str]); 9] = [
        (&["generate", "-m", "/no/such/model.gguf", "x"], &["/no/such/model.gguf"]),
        (&["generate", "-m", truncated.to_str().unwrap(), "x"], &["truncated.gguf", "tensor"]),
        (&["inspect", &garbage], &["garbage.gguf"]),
        (&["generate", "-m", &model, "--token-ids", &bad_ids], &["bad.json", "array"]),
        (&["generate", "-m", &model, "--token-ids", "/no/such/ids.json"], &["/no/such/ids.json"]),
        (&["score", "-m", &model, "--token-ids", &empty_ids], &["empty.json", "sequence 1"]),
        (&["generate", "-m", &model, "--prompts", &no_text], &["empty.txt", "no prompt"]),
        (&["score", "-m", &model, "--text", "/no/such.txt"], &["/no/such.txt"]),
        (&["score", "-m", &model, "--token-ids", &ids, "--logits", out.to_str().unwrap()], &["out.safetensors"]),
    ];
    for (args, words) in cases {
        run(args).fails_with(1, words);
    }
}

#[test]
fn what_the_model_cannot_hold_is_refused_with_numbers() {
    let dir = scratch();
    let vocab = golden("llama_plain")["vocab_size"].as_u64().unwrap();
    let outside = write(dir.path(), "outside.json", &format!("[[1, {vocab}]]"));
    let long = write(dir.path(), "long.json", &serde_json::to_string(&[vec![5; 50]]).unwrap());
    let model = model("llama_plain");
    for verb in ["generate", "score"] {
        run(&[verb, "-m", &model, "--token-ids", &outside]).fails_with(1, &["token id", &vocab.to_string()]);
        run(&[verb, "-m", &model, "--token-ids", &long, "--context", "32"]).fails_with(1, &["50", "32", "--context"]);
    }
    run(&["bench", "-m", &model, "--prompt", "40", "--context", "32"]).fails_with(2, &["32"]);
}

#[test]
fn help_has_examples_and_goes_to_stdout() {
    for verb in ["generate", "chat", "score", "bench", "inspect", "plan", "pull", "models"] {
        let help = run(&[verb, "--help"]);
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{verb}");
        assert!(help.stdout.contains("Usage:"), "{verb}");
        if verb != "models" {
            assert!(help.stdout.contains("Examples:"), "{verb}");
        }
        assert!(!help.stdout.contains('\u{1b}'), "{verb}: no colour in a pipe");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let model = model("llama_plain");
    let mut child = njoule(&["generate", "-m", &model, "Hello", "-n", "200", "--temperature", "0", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
