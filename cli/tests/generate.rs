//! `njoule generate`: what scripts rely on, against the reference's greedy continuations.

mod support;

use support::*;

const FIXTURES: [&str; 10] = [
    "llama_plain",
    "llama_tied",
    "llama3_rope",
    "llama_linear",
    "llama_yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "gguf_llama",
    "gguf_qwen2",
];

/// Greedy results of all prompts of a fixture in one batch.
fn greedy(fixture: &str, quant: &str, more: &[&str]) -> serde_json::Value {
    let golden = golden(fixture);
    let prompts: Vec<Vec<u32>> = golden["prompts"].as_array().unwrap().iter().map(|p| ids(&p["input_ids"])).collect();
    let n = golden["prompts"][0]["greedy_ids"].as_array().unwrap().len().to_string();
    let dir = scratch();
    let file = write_ids(dir.path(), &prompts);
    let model = model(fixture);
    let mut args = vec!["generate", "-m", &model, "--token-ids", &file, "-n", &n, "--temperature", "0"];
    args.extend(["--ignore-eos", "--json", "--quant", quant]);
    args.extend(more);
    run(&args).json()
}

#[test]
fn greedy_ids_of_all_prompts_in_one_batch_equal_the_reference() {
    let mut failures = vec![];
    for fixture in FIXTURES {
        let report = greedy(fixture, "none", &[]);
        let golden = golden(fixture);
        let prompts = golden["prompts"].as_array().unwrap();
        let results = report["results"].as_array().expect("results");
        assert_eq!(results.len(), prompts.len(), "{fixture}");
        for (i, (result, prompt)) in results.iter().zip(prompts).enumerate() {
            let (got, want) = (ids(&result["token_ids"]), ids(&prompt["greedy_ids"]));
            if got != want {
                failures.push(format!("{fixture} prompt {i}: {got:?}, not {want:?}"));
            }
            assert_eq!(result["finish_reason"], "length", "{fixture}");
            assert_eq!(result["usage"]["prompt_tokens"], prompt["input_ids"].as_array().unwrap().len(), "{fixture}");
            assert_eq!(result["usage"]["completion_tokens"], want.len(), "{fixture}");
        }
        assert!(report["energy"]["total_j"].is_null() && report["energy"]["method"].is_null());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn ids_do_not_depend_on_batch_size_threads_or_chunks() {
    let whole = greedy("llama_plain", "int8", &["--threads", "2"]);
    let apart = greedy("llama_plain", "int8", &["--threads", "1", "--batch-size", "1"]);
    let of = |report: &serde_json::Value| -> Vec<Vec<u32>> {
        report["results"].as_array().unwrap().iter().map(|r| ids(&r["token_ids"])).collect()
    };
    assert_eq!(of(&whole), of(&apart));
}

#[test]
fn every_stored_type_and_cache_type_generates() {
    for quant in ["none", "bf16", "int8", "int4", "auto"] {
        let report = greedy("qwen2", quant, &[]);
        assert_eq!(report["model"]["quant"], quant);
        assert_eq!(ids(&report["results"][0]["token_ids"]).len(), 24, "{quant}");
    }
    for kv in ["f32", "bf16", "f16", "int8"] {
        let report = greedy("qwen3", "none", &["--kv-type", kv]);
        assert_eq!(report["model"]["kv_type"], kv);
    }
}

#[test]
fn stdout_carries_the_text_alone_and_equals_the_report() {
    let model = model("llama_plain");
    let args = ["generate", "-m", &model, "Hello there", "-n", "12", "--temperature", "0", "--ignore-eos"];
    // A machine without a meter.
    let bare = scratch();
    let plain = ran(njoule(&args).env("NJOULE_SYSFS_ROOT", bare.path()).output().unwrap());
    assert_eq!(plain.code, 0, "{}", plain.stderr);
    let report = run(&[&args[..], &["--json"]].concat()).json();
    let text = report["results"][0]["text"].as_str().expect("text");
    assert_eq!(plain.stdout.trim_end_matches('\n'), text.trim_end_matches('\n'));
    let line = plain.stderr.lines().last().expect("a line of figures");
    for word in ["prompt", "generated", "prefill", "decode", "TTFT", "energy: unknown"] {
        assert!(line.contains(word), "{word} in {line}");
    }
    assert_eq!(plain.stderr.lines().count(), 1, "{}", plain.stderr);
    let quiet = run(&[&args[..], &["--quiet"]].concat());
    assert_eq!((quiet.stdout, quiet.stderr.as_str()), (plain.stdout, ""));
}

#[test]
fn prompt_comes_from_argument_stdin_or_file_with_one_result() {
    let model = model("llama_plain");
    let rest = ["-n", "6", "--temperature", "0", "--ignore-eos", "--quiet"];
    let argument = run(&[&["generate", "-m", &model, "Hello"][..], &rest].concat());
    assert_eq!(argument.code, 0, "{}", argument.stderr);
    let positional = run(&[&["generate", &model, "Hello"][..], &rest].concat());
    let piped = run_with(&[&["generate", "-m", &model][..], &rest].concat(), "Hello\n");
    let dash = run_with(&[&["generate", "-m", &model, "-"][..], &rest].concat(), "Hello");
    let dir = scratch();
    let file = write(dir.path(), "prompts.txt", "Hello\n");
    let from_file = run(&[&["generate", "-m", &model, "--prompts", &file][..], &rest].concat());
    for other in [positional, piped, dash, from_file] {
        assert_eq!((other.code, &other.stdout), (0, &argument.stdout), "{}", other.stderr);
    }
    let raw = run(&[&["generate", "-m", &model, "Hello", "--raw", "--json"][..], &rest].concat()).json();
    let chat = run(&[&["generate", "-m", &model, "Hello", "--json"][..], &rest].concat()).json();
    let prompt_tokens = |r: &serde_json::Value| r["results"][0]["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt_tokens(&raw) < prompt_tokens(&chat), "the chat template adds tokens");
}

#[test]
fn prompts_of_a_json_lines_file_are_texts_or_chats() {
    let dir = scratch();
    let lines = "{\"prompt\": \"Hello\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}\n";
    let file = write(dir.path(), "prompts.jsonl", lines);
    let report =
        run(&["generate", "-m", &model("llama_plain"), "--prompts", &file, "-n", "6", "--ignore-eos", "--json"]).json();
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["token_ids"], results[1]["token_ids"]);
}

#[test]
fn seeds_repeat_and_log_probabilities_are_reported() {
    let model = model("llama_plain");
    let args = ["generate", "-m", &model, "Hello", "-n", "16", "--temperature", "1", "--ignore-eos", "--json"];
    let with = |seed: &str| run(&[&args[..], &["--seed", seed, "--logprobs", "3"]].concat()).json();
    let (one, again, other) = (with("1"), with("1"), with("2"));
    assert_eq!(one["results"][0]["token_ids"], again["results"][0]["token_ids"]);
    assert_ne!(one["results"][0]["token_ids"], other["results"][0]["token_ids"]);
    let logprobs = one["results"][0]["logprobs"].as_array().expect("logprobs");
    assert_eq!(logprobs.len(), 16);
    for token in logprobs {
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert!(token["logprob"].as_f64().unwrap() <= top[0]["logprob"].as_f64().unwrap());
    }
}

#[test]
fn stop_strings_and_stop_tokens_end_an_answer() {
    let model = model("llama_plain");
    let args = ["generate", "-m", &model, "Hello", "-n", "24", "--temperature", "0", "--ignore-eos", "--json"];
    let free = run(&args).json();
    let all = ids(&free["results"][0]["token_ids"]);
    let third = all[2].to_string();
    let stopped = run(&[&args[..], &["--stop-token-id", &third]].concat()).json();
    assert_eq!(stopped["results"][0]["finish_reason"], "stop");
    let at = all.iter().position(|id| *id == all[2]).unwrap();
    assert_eq!(ids(&stopped["results"][0]["token_ids"]), all[..=at]);
    let text = free["results"][0]["text"].as_str().unwrap();
    let Some(stop) = text.chars().nth(3).map(|c| c.to_string()) else { return };
    let stopped = run(&[&args[..], &["--stop", &stop]].concat()).json();
    assert_eq!(stopped["results"][0]["finish_reason"], "stop");
    assert!(!stopped["results"][0]["text"].as_str().unwrap().contains(&stop));
}

#[test]
fn model_without_tokenizer_works_with_ids_and_says_what_to_do_with_text() {
    let dir = scratch();
    let file = write_ids(dir.path(), &[vec![1, 5, 9]]);
    let model = model("llama_tied");
    let report = run(&["generate", "-m", &model, "--token-ids", &file, "-n", "4", "--json"]).json();
    assert!(report["results"][0]["text"].is_null());
    run(&["generate", "-m", &model, "Hello"]).fails_with(1, &["no tokenizer", "--token-ids"]);
}

#[test]
fn smollm2_follows_the_reference_up_to_the_first_close_call() {
    let test = "smollm2_follows_the_reference_up_to_the_first_close_call";
    let Some(model) = asset(SMOLLM2, test) else { return };
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(testdata("smollm2/golden_gguf_f32.json")).unwrap()).unwrap();
    let prompts: Vec<Vec<u32>> = golden["prompts"].as_array().unwrap().iter().map(|p| ids(&p["ids"])).collect();
    let results = golden["results"].as_array().unwrap();
    let n = results.iter().map(|r| r["greedy_ids"].as_array().unwrap().len()).max().unwrap().to_string();
    let dir = scratch();
    let file = write_ids(dir.path(), &prompts);
    let args = ["generate", "-m", &model, "--token-ids", &file, "-n", &n, "--temperature", "0", "--ignore-eos"];
    let report = run(&[&args[..], &["--quant", "none", "--json"]].concat()).json();
    for (i, (got, want)) in report["results"].as_array().unwrap().iter().zip(results).enumerate() {
        let (got, ids) = (ids(&got["token_ids"]), ids(&want["greedy_ids"]));
        let close = want["greedy_margins"].as_array().unwrap().iter().position(|m| m.as_f64().unwrap() < 0.01);
        let compared = close.unwrap_or(ids.len());
        assert!(compared > 0, "prompt {i} compares nothing");
        assert_eq!(got[..compared], ids[..compared], "prompt {i}");
    }
}

#[test]
fn smollm2_answers_a_chat_in_text() {
    let Some(model) = asset(SMOLLM2, "smollm2_answers_a_chat_in_text") else { return };
    let answer = run(&["generate", "-m", &model, "What is the capital of France?", "-n", "40", "--temperature", "0"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(answer.stdout.contains("Paris"), "{}", answer.stdout);
    assert!(!answer.stdout.contains("<|im_end|>"), "{}", answer.stdout);
}
