//! `njoule batch` as a process: its files, its exit codes, and that it goes on where it was stopped.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

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

#[cfg(target_os = "linux")]
#[test]
fn where_the_disk_is_full_the_output_is_whole_lines_and_the_next_run_goes_on() {
    let dir = scratch();
    let lines: Vec<String> = (0..40).map(|i| line(&format!("{i}"), 60)).collect();
    let (input, output) = (write(dir.path(), "in.jsonl", &lines.join("\n")), dir.path().join("out.jsonl"));
    let shown = output.display().to_string();
    // A limit on the size of files fails as a full disk does: with a part of what was to be written.
    let limited = njoule(&args(&input, &shown, &testdata("qwen3")));
    let mut shell = std::process::Command::new("bash");
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 3; exec \"$0\" \"$@\""])
        .arg(limited.get_program())
        .args(limited.get_args());
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let said = ran(shell.output().expect("bash starts"));
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(
        said.stderr.contains("cannot write") && said.stderr.contains("out.jsonl: File too large"),
        "{}",
        said.stderr
    );
    assert_eq!(said.stderr.matches("File too large").count(), 1, "{}", said.stderr);
    let text = fs::read_to_string(&output).unwrap();
    assert!(!text.is_empty() && text.ends_with('\n'), "{text}");
    assert!(records(&output).len() < 40);
    assert_eq!(batch(&input, &shown).code, 0);
    assert_eq!(records(&output).len(), 40);
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
    assert_eq!((&energy["total_j"], &energy["method"]), (&json!(null), &json!(null)));
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

/// A batch whose input comes from here, and where its answers go.
fn piped(dir: &Path) -> (Child, ChildStdin, PathBuf) {
    let output = dir.join("out.jsonl");
    let mut command = njoule(&args("-", output.to_str().unwrap(), &testdata("qwen3")));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let input = child.stdin.take().unwrap();
    (child, input, output)
}

/// Waits until so many answers are written.
fn wait_for(child: &mut Child, output: &Path, count: usize) {
    let patience = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(output).map_or(0, |text| text.lines().count()) < count {
        assert!(Instant::now() < patience, "{count} answers are not there");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote {count} answers");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn interrupt(child: &Child) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::INT).unwrap();
}

#[test]
fn a_slow_input_delays_no_answer_and_a_batch_that_was_interrupted_goes_on_where_it_stopped() {
    let dir = scratch();
    let lines: Vec<String> = (0..30).map(|i| line(&format!("r{i}"), 3)).collect();
    let (mut child, mut stdin, output) = piped(dir.path());
    // The input does not end, and what was asked is answered.
    writeln!(stdin, "{}", lines[..10].join("\n")).unwrap();
    wait_for(&mut child, &output, 10);
    writeln!(stdin, "{}", lines[10..20].join("\n")).unwrap();
    wait_for(&mut child, &output, 20);
    interrupt(&child);
    let stopped = ran(child.wait_with_output().unwrap());
    drop(stdin);
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    let summary: Value = serde_json::from_str(&stopped.stdout).unwrap();
    assert_eq!(summary["requests"], json!({"answered": 20, "failed": 0, "skipped": 0}));
    let input = write(dir.path(), "in.jsonl", &lines.join("\n"));
    let rest = batch(&input, output.to_str().unwrap()).json();
    assert_eq!(rest["requests"], json!({"answered": 10, "failed": 0, "skipped": 20}));
    assert_eq!(records(&output).len(), 30);
}

#[test]
fn an_interrupt_that_leaves_nothing_unanswered_is_none() {
    let dir = scratch();
    let (mut child, mut stdin, output) = piped(dir.path());
    writeln!(stdin, "{}\n{}\n", line("short", 1), line("long", 400)).unwrap();
    drop(stdin);
    wait_for(&mut child, &output, 1);
    // While the other one runs, or behind it.
    interrupt(&child);
    let ended = ran(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(records(&output).len(), 2);
}

#[test]
fn files_that_cannot_be_used_are_named_before_a_model_is_loaded() {
    let dir = scratch();
    let input = write(dir.path(), "in.jsonl", &line("a", 1));
    let other = write(dir.path(), "other.txt", "my notes\n");
    batch(&input, &other).fails_with(1, &["line 1 of", "other.txt", "name another file"]);
    assert_eq!(fs::read_to_string(&other).unwrap(), "my notes\n");
    batch("/nowhere.jsonl", &other).fails_with(1, &["cannot open /nowhere.jsonl"]);
    batch(&input, "-").fails_with(2, &["not to `-`"]);
    batch(&input, "/dev/null").fails_with(1, &["/dev/null is no regular file"]);

    // One file by several names.
    let errors = |output: &str, errors: &str| {
        let mut args = args(&input, output, "/no/model");
        args.extend(["--errors", errors]);
        ran(njoule(&args).output().unwrap())
    };
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (output, dotted) = (path("out.jsonl"), path("./out.jsonl"));
    std::os::unix::fs::symlink(&output, path("link")).unwrap();
    batch(&input, &input).fails_with(2, &["three different files"]);
    batch(&input, &path("./in.jsonl")).fails_with(2, &["three different files"]);
    errors(&output, &dotted).fails_with(2, &["three different files"]);
    errors(&output, &path("link")).fails_with(2, &["three different files"]);
    fs::hard_link(&input, path("hard")).unwrap();
    errors(&output, &path("hard")).fails_with(2, &["three different files"]);

    // What is not ours or another process has stays, and so does all of it where there is no model.
    errors(&output, "/dev/null").fails_with(1, &["/dev/null is no regular file"]);
    errors(&output, &other).fails_with(1, &["line 1 of", "other.txt", "name another file"]);
    assert_eq!(fs::read_to_string(&other).unwrap(), "my notes\n");
    let earlier = "{\"id\":\"batch_req_line_1\",\"custom_id\":null}\n";
    let failed = write(dir.path(), "failed.jsonl", earlier);
    errors(&output, &failed).fails_with(1, &["/no/model"]);
    let locked = fs::File::open(&failed).unwrap();
    locked.lock().unwrap();
    errors(&output, &failed).fails_with(1, &["failed.jsonl is being written by another process"]);
    assert_eq!(fs::read_to_string(&failed).unwrap(), earlier);
}
