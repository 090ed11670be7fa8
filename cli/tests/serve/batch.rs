//! `njoule batch` as a process: its files, its exit codes, and that it goes on where it was stopped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Ran, njoule, ran, scratch, testdata, write};

fn args<'a>(input: &'a str, output: &'a str, model: &'a str) -> Vec<&'a str> {
    vec!["batch", model, "-i", input, "-o", output, "--served-model-name", "m", "--threads", "1", "--json"]
}

fn batch(input: &str, output: &str) -> Ran {
    // Without the meters that this machine may have.
    let tree = scratch();
    let mut command = njoule(&args(input, output, &testdata("qwen3")));
    ran(command.env("NJOULE_SYSFS_ROOT", tree.path()).output().expect("the binary starts"))
}

fn line(id: &str, tokens: usize) -> String {
    let body =
        json!({"model": "m", "messages": [{"role": "user", "content": id}], "max_tokens": tokens, "ignore_eos": true});
    json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}).to_string()
}

/// The records of a file by their names, each of which must be there once.
fn records(path: &Path) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let id = record["custom_id"].as_str().unwrap_or("none").to_owned();
        assert!(all.insert(id.clone(), record).is_none(), "{id} twice");
    }
    all
}

#[test]
fn every_line_has_an_answer_or_an_error_and_what_is_mended_is_all_that_runs_again() {
    let dir = scratch();
    let completion = json!({"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi", "max_tokens": 2}});
    let message = json!({"custom_id": "d", "method": "POST", "url": "/v1/messages",
        "body": {"max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}});
    let bad = json!({"custom_id": "e", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi", "temperature": 9}});
    let lines = [
        line("a", 4),
        line("b", 5),
        completion.to_string(),
        message.to_string(),
        line("a", 4),
        "{\"torn".into(),
        String::new(),
        bad.to_string(),
    ];
    let input = write(dir.path(), "in.jsonl", &lines.join("\n"));
    let (output, errors) = (dir.path().join("out.jsonl"), dir.path().join("out.errors.jsonl"));
    let first = batch(&input, output.to_str().unwrap());
    assert_eq!(first.code, 1, "{}", first.stderr);
    assert!(first.stderr.contains("3 requests failed"), "{}", first.stderr);
    let summary: Value = serde_json::from_str(&first.stdout).unwrap();
    assert_eq!(summary["requests"], json!({"answered": 4, "failed": 3, "skipped": 0}));
    let energy = &summary["energy"];
    assert_eq!((&energy["joules"], &energy["method"]), (&json!(null), &json!(null)));
    assert!(energy["cpu_s"].as_f64().unwrap() > 0.0 && !energy["reasons"].as_array().unwrap().is_empty(), "{energy}");
    let answers = records(&output);
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    let a = &answers["a"];
    assert_eq!((&a["error"], &a["response"]["status_code"]), (&Value::Null, &json!(200)));
    assert_eq!(a["response"]["body"]["object"], "chat.completion");
    assert_eq!(a["response"]["body"]["usage"]["completion_tokens"], 4);
    let generated: u64 = [4, 5].into_iter().sum::<u64>()
        + answers["c"]["response"]["body"]["usage"]["completion_tokens"].as_u64().unwrap()
        + answers["d"]["response"]["body"]["usage"]["output_tokens"].as_u64().unwrap();
    assert_eq!(summary["tokens"]["generated"], generated);
    let failed = records(&errors);
    assert_eq!(failed["a"]["error"]["code"], "duplicate_custom_id");
    assert_eq!(
        (&failed["none"]["error"]["code"], &failed["none"]["error"]["line"]),
        (&json!("invalid_json"), &json!(6))
    );
    assert_eq!(failed["e"]["response"]["status_code"], 400);
    assert_eq!(failed["e"]["response"]["body"]["error"]["param"], "temperature");

    // Mended, the rest alone runs, and the file of errors goes.
    let mended = [line("a", 4), line("b", 5), completion.to_string(), message.to_string(), line("e", 1)];
    let input = write(dir.path(), "in.jsonl", &mended.join("\n"));
    // The last record was torn by a crash.
    let bytes = fs::read(&output).unwrap();
    fs::write(&output, &bytes[..bytes.len() - 7]).unwrap();
    let second = batch(&input, output.to_str().unwrap()).json();
    assert_eq!(second["requests"], json!({"answered": 2, "failed": 0, "skipped": 3}));
    assert_eq!(records(&output).keys().collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
    assert!(!errors.exists());
}

#[test]
fn a_batch_that_was_interrupted_goes_on_where_it_stopped() {
    let dir = scratch();
    let lines: Vec<String> = (0..400).map(|i| line(&format!("r{i}"), 40)).collect();
    let input = write(dir.path(), "in.jsonl", &lines.join("\n"));
    let output = dir.path().join("out.jsonl");
    let path = output.to_str().unwrap();
    let model = testdata("qwen3");
    let mut child = njoule(&args(&input, path, &model)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while fs::metadata(&output).map_or(0, |file| file.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote");
        std::thread::yield_now();
    }
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::INT).unwrap();
    let stopped = ran(child.wait_with_output().unwrap());
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    let summary: Value = serde_json::from_str(&stopped.stdout).unwrap();
    let done = records(&output).len();
    assert!(done < 400 && summary["requests"]["answered"] == done, "{done}: {summary}");
    let rest = batch(&input, path).json();
    assert_eq!(rest["requests"], json!({"answered": 400 - done, "failed": 0, "skipped": done}));
    assert_eq!(records(&output).len(), 400);
}

#[test]
fn files_that_cannot_be_used_are_named_before_a_model_is_loaded() {
    let dir = scratch();
    let input = write(dir.path(), "in.jsonl", &line("a", 1));
    let other = write(dir.path(), "other.txt", "my notes\n");
    batch(&input, &other).fails_with(1, &["line 1 of", "other.txt", "name another file"]);
    assert_eq!(fs::read_to_string(&other).unwrap(), "my notes\n");
    batch(&input, &input).fails_with(2, &["three different files"]);
    batch("/nowhere.jsonl", &other).fails_with(1, &["cannot open /nowhere.jsonl"]);
}
