//! The end of a run on a machine whose driver tells whole minutes, which the test makes as long as it likes.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Machine, support};

const LINE: &str = "sys/devices/virtual/neuron_device/neuron0/stats/power/utilization";

/// A machine whose driver has told the minute before, at the stamp that this returns.
fn machine() -> (Machine, u64) {
    let machine = Machine::bare();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    machine.put("sys/devices/virtual/neuron_device/neuron0/info/architecture/device_name", "Inferentia2\n");
    // So that a minute is over whenever the test wants it to be: stamps are not held against the clock.
    tell(&machine, "VALID", now - 30);
    (machine, now - 30)
}

fn tell(machine: &Machine, status: &str, stamp: u64) {
    machine.put("next", &format!("POWER_STATUS_{status},{stamp},0.00,60.00,40.00\n"));
    let to = machine.path(LINE);
    std::fs::create_dir_all(std::path::Path::new(&to).parent().unwrap()).unwrap();
    std::fs::rename(machine.path("next"), to).unwrap();
}

/// A run, until it says that it waits; what else it says on stderr comes with its end.
struct Waiting {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Waiting {
    fn start(machine: &Machine, args: &[&str]) -> Waiting {
        let mut command = machine.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let (mut said, mut line) = (String::new(), String::new());
        while !line.contains("waiting up to") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it did not wait: {said}");
            said.push_str(&line);
        }
        Waiting { child, stderr }
    }

    /// Exit code, the report, and the rest of stderr.
    fn end(mut self) -> (Option<i32>, Value, String) {
        let (mut report, mut said) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut report).unwrap();
        self.stderr.read_to_string(&mut said).unwrap();
        let code = self.child.wait().unwrap().code();
        (code, serde_json::from_str(&report).unwrap_or_else(|e| panic!("{e}: {report:?} {said}")), said)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const WATTS: [&str; 4] = ["--neuron-watts", "base=20..40,span=80..120", "--backend", "cpu"];

/// Joules of a run of a few seconds: known, of loading too, and within what its time and the minute allow.
fn known(energy: &Value) {
    let number = |key: &str| energy[key].as_f64().unwrap_or_else(|| panic!("{key}: {energy}"));
    assert_eq!(energy["method"], "derived");
    assert!(number("low_j") <= number("total_j") && number("total_j") <= number("high_j"), "{energy}");
    let buckets = energy["by_bucket"].as_object().unwrap();
    let sum: f64 = buckets.values().map(|joules| joules.as_f64().unwrap()).sum();
    assert!((sum - number("total_j")).abs() < 1e-6 * sum, "{energy}");
    assert!(buckets["load_j"].as_f64().unwrap() > 0.0 && buckets["decode_j"].as_f64().unwrap() > 0.0, "{energy}");
}

#[test]
fn a_batch_waits_for_the_minute_of_its_end() {
    let (machine, stamp) = machine();
    let line = |i: usize| {
        let body = json!({"model": "m", "prompt": "one two", "max_tokens": 8, "ignore_eos": true});
        json!({"custom_id": i.to_string(), "method": "POST", "url": "/v1/completions", "body": body}).to_string() + "\n"
    };
    machine.put("in.jsonl", &(0..3).map(line).collect::<String>());
    let (input, output, model) = (machine.path("in.jsonl"), machine.path("out.jsonl"), support::testdata("qwen3"));
    let args = ["batch", &model, "-i", &input, "-o", &output, "--json", "--served-model-name", "m"];
    let waiting = Waiting::start(&machine, &[&args[..], &WATTS].concat());
    tell(&machine, "VALID", stamp + 60);
    let (code, report, said) = waiting.end();
    assert_eq!((code, &report["requests"]["answered"]), (Some(0), &json!(3)), "{said}");
    known(&report["energy"]);
    assert!(said.contains(" J (derived)"), "{said}");
    // What idling has used while the driver was waited for is not the run's.
    let without_steps = ["idle_j", "load_j"].map(|bucket| report["energy"]["by_bucket"][bucket].as_f64().unwrap());
    let base_w = (20.0_f64 * 40.0).sqrt();
    assert!(without_steps.iter().sum::<f64>() <= base_w * report["total_seconds"].as_f64().unwrap(), "{report}");
    assert!(report["energy"]["reasons"].as_array().unwrap().is_empty());
}

#[test]
fn scores_are_settled_by_the_minute_and_unknown_by_a_gap() {
    let model = support::testdata("qwen3");
    let args = [&["score", "-m", &model, "one two three", "--json"][..], &WATTS].concat();
    for status in ["VALID", "NO_DATA"] {
        let (machine, stamp) = machine();
        let waiting = Waiting::start(&machine, &args);
        tell(&machine, status, stamp + 60);
        let (code, report, said) = waiting.end();
        assert_eq!(code, Some(0), "{said}");
        let energy = &report["results"][0]["energy"];
        assert_eq!(energy["settled"], true, "{report}");
        match status {
            "VALID" => {
                assert!(energy["total_j"].as_f64().unwrap() > 0.0 && energy["method"] == "derived", "{energy}");
                let all = report["energy"]["total_j"].as_f64().unwrap();
                assert!(report["energy"]["by_bucket"]["load_j"].as_f64().unwrap() > 0.0 && all > 0.0, "{report}");
            }
            _ => {
                assert!(energy["total_j"].is_null() && report["energy"]["total_j"].is_null(), "{report}");
                assert_eq!(report["energy"]["reasons"], json!(["neuron0: the driver told nothing of a minute"]));
            }
        }
    }
}

/// Ctrl-C ends the wait, not the run: what was not told is unknown, and what was made is there.
#[test]
fn a_wait_ends_by_ctrl_c_and_by_its_limit() {
    let model = support::testdata("qwen3");
    let args = ["generate", "-m", &model, "one two", "--raw", "-n", "4", "--json", "--energy-wait"];
    let run = |seconds: &str, interrupt: bool| {
        let (machine, _) = machine();
        let waiting = Waiting::start(&machine, &[&args[..], &[seconds], &WATTS].concat());
        if interrupt {
            let pid = waiting.child.id().to_string();
            assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        }
        waiting.end()
    };
    for (seconds, interrupt) in [("600", true), ("1", false)] {
        let (code, report, said) = run(seconds, interrupt);
        assert_eq!(code, Some(0), "{said}");
        let energy = &report["results"][0]["usage"]["energy"];
        assert_eq!((&energy["settled"], &energy["total_j"]), (&json!(false), &Value::Null), "{report}");
        assert!(energy["cpu_s"].as_f64().unwrap() > 0.0);
        assert!(report["energy"]["total_j"].is_null() && report["energy"]["by_bucket"].is_null(), "{report}");
        assert_eq!(report["energy"]["reasons"], json!(["the meters have not told all of the time yet"]));
        assert!(said.contains("unknown"), "{said}");
    }
}

#[test]
fn nobody_waits_who_has_not_asked_for_joules() {
    let (machine, _) = machine();
    let model = support::testdata("qwen3");
    let generate = ["generate", "-m", &model, "one two", "--raw", "-n", "4", "--json"];
    let score = ["score", "-m", &model, "one two three", "--json", "--energy-wait", "0"];
    let read = ["score", "-m", &model, "one two three"];
    for args in [&generate[..], &score, &read] {
        let begun = Instant::now();
        let ran = machine.run(&[args, &WATTS].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(!ran.stderr.contains("waiting") && begun.elapsed() < Duration::from_secs(60), "{}", ran.stderr);
    }
}
