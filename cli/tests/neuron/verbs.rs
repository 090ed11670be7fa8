//! The other verbs on an artifact: `score`, `bench`, and a server with each of its interfaces, beside the cpu backend's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::{Bench, fixture_path, njoule};

const OPTIONS: [&str; 8] = ["--quant", "none", "--tp", "2", "--batch", "3", "--max-neffs", "4"];

#[test]
fn an_artifact_is_scored_as_the_cpu_scores_it() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) = bench.build("qwen3", "scored", &OPTIONS);
    let ids = bench.path("ids.json");
    let all: Vec<Vec<u32>> = [2, 40, 77].map(|n| (0..n).map(|i| (i * 37 + n) % 250 + 3).collect()).to_vec();
    std::fs::write(&ids, serde_json::to_string(&all).unwrap()).unwrap();
    let score = |model: &str, options: &[&str]| {
        let out = bench.path("logits.safetensors");
        let args = ["score", "-m", model, "--token-ids", &ids, "--logits", &out, "--json", "-q", "-c", "512"];
        let report = bench.run(&[&args[..], options].concat(), &[]).json();
        (report, std::fs::read(out).unwrap())
    };
    let (report, logits) = score(&artifact, &[]);
    let (reference, wanted) = score(&fixture_path("qwen3"), &["--backend", "cpu", "--quant", "none"]);
    assert_eq!(report["model"]["backend"], "neuron");
    let (logits, wanted) = (SafeTensors::deserialize(&logits).unwrap(), SafeTensors::deserialize(&wanted).unwrap());
    for i in 0..all.len() {
        let tensor = |file: &SafeTensors<'_>| {
            let tensor = file.tensor(&format!("logits.{i}")).unwrap();
            let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (tensor.shape().to_vec(), values.collect::<Vec<f32>>())
        };
        let ((shape, got), (wanted_shape, want)) = (tensor(&logits), tensor(&wanted));
        // Cores were occupied, and nobody knows their watts.
        let energy = &report["results"][i]["energy"];
        assert!(energy["core_s"].as_f64().unwrap() > 0.0 && energy["total_j"].is_null(), "{energy}");
        assert_eq!(shape, wanted_shape);
        assert_eq!(shape[0], all[i].len());
        let far = got.iter().zip(&want).filter(|(a, b)| !((*a - *b).abs() < 1e-3)).count();
        assert_eq!(far, 0, "of {} logits of sequence {i}", got.len());
        let sum = |report: &Value| {
            let values = report["results"][i]["logprobs"].as_array().unwrap().iter().filter_map(Value::as_f64);
            values.sum::<f64>()
        };
        assert!((sum(&report) - sum(&reference)).abs() < 1e-2, "{} {}", sum(&report), sum(&reference));
    }
}

#[test]
fn an_artifact_is_measured_by_bench() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) = bench.build("llama_tied", "measured", &OPTIONS);
    let args = ["bench", "-m", &artifact, "--batch", "1,3", "--prompt", "20", "--gen", "5", "--repeat", "1", "--json"];
    let report = bench.run(&args, &[]).json();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for (row, batch) in rows.iter().zip([1, 3]) {
        assert_eq!((&row["batch"], &row["prompt_tokens"], &row["gen_tokens"]), (&batch.into(), &20.into(), &5.into()));
        for key in ["prefill_tokens_per_s", "decode_tokens_per_s", "ttft_s"] {
            assert!(row[key].as_f64().is_some_and(|x| x > 0.0 && x.is_finite()), "{key} = {}", row[key]);
        }
        // The roofline of this machine's CPU says nothing of a device, and nobody has measured energy.
        for unknown in [&row["mbu"], &row["roofline"], &row["energy"]["total_j"], &row["energy"]["method"]] {
            assert!(unknown.is_null(), "{row}");
        }
    }
}

/// A server, ended with its test.
pub(super) struct Server {
    child: Child,
    address: String,
}

impl Server {
    pub(super) fn start(mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = vec![];
        let address = loop {
            let Some(Ok(line)) = lines.next() else { panic!("it does not listen: {said:?}") };
            if let Some(address) = line.trim().strip_prefix("listening on http://") {
                break address.to_owned();
            }
            said.push(line);
        };
        // What it logs is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }

    /// The answer to a request that is to succeed, head included.
    fn ask(&self, path: &str, body: &Value) -> String {
        let answer = self.answer(path, body);
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{path}: {answer}");
        answer
    }

    /// The exit code of one that ends by itself.
    pub(super) fn end(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// The whole answer to a request, head included.
    pub(super) fn answer(&self, path: &str, body: &Value) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (body, address) = (body.to_string(), &self.address);
        let head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        let head = format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A counter of `/metrics`, over its labels.
    fn counter(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let address = &self.address;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let rows = answer.lines().filter(|line| line.starts_with(name));
        rows.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The answer's body.
    pub(super) fn json(&self, path: &str, body: &Value) -> Value {
        let answer = self.ask(path, body);
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|e| panic!("{e}: {answer}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Of one that has ended there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What every interface says to the same words: a completion, a chat, a chat as a stream, a message.
fn answers(server: &Server) -> [String; 4] {
    let messages = json!([{"role": "user", "content": "Why is the sky blue?"}]);
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
    let completion = json!({"prompt": "The sky", "max_tokens": 9, "temperature": 0, "ignore_eos": true});
    let completion = server.json("/v1/completions", &completion);
    let chat = |stream: bool| json!({"messages": messages, "max_tokens": 9, "temperature": 0, "ignore_eos": true, "stream": stream});
    let whole = server.json("/v1/chat/completions", &chat(false));
    assert_eq!(whole["usage"]["completion_tokens"], 9, "{whole}");
    let streamed = server.ask("/v1/chat/completions", &chat(true));
    assert!(streamed.contains("data: [DONE]"), "{streamed}");
    let events = streamed.lines().filter_map(|line| line.strip_prefix("data: {"));
    let events = events.map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).unwrap());
    let pieces: Vec<String> =
        events.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
    assert!(pieces.len() > 1, "in one piece: {streamed}");
    let message = json!({"model": "m", "messages": messages, "max_tokens": 9, "temperature": 0});
    let message = server.json("/v1/messages", &message);
    [
        text(&completion["choices"][0]["text"]),
        text(&whole["choices"][0]["message"]["content"]),
        pieces.concat(),
        text(&message["content"][0]["text"]),
    ]
}

#[test]
fn an_artifact_is_served_by_every_interface() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) = bench.build("qwen3", "served", &OPTIONS);
    let names = ["--served-model-name", "m", "--port", "0"];
    let device = Server::start(bench.command(&[&["serve", &artifact], &names[..]].concat(), &[]));
    let got = answers(&device);
    assert_eq!(got[1], got[2], "a stream is the same answer");
    let model = fixture_path("qwen3");
    let cpu = ["serve", &model, "--backend", "cpu", "--quant", "none", "--kv-type", "f32", "--threads", "1"];
    let cpu = Server::start(njoule(&[&cpu[..], &names].concat()));
    assert_eq!(got, answers(&cpu));
    assert!(got.iter().all(|text| !text.is_empty()), "{got:?}");
    // It ends as any server does, with no compiler or device that keeps it.
    let Server { child, .. } = &device;
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let mut device = device;
    assert_eq!(device.child.wait().unwrap().code(), Some(0));
}

/// Rows whose grammar allows nearly everything go without a mask, until it allows one thing: then they are run again.
#[test]
fn structured_output_on_an_artifact_is_that_of_the_cpu_where_grammars_narrow_all_at_once() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) = bench.build("qwen3", "masked", &["--quant", "none", "--batch", "4", "--max-neffs", "4"]);
    let names = ["--served-model-name", "m", "--port", "0"];
    let device = Server::start(bench.command(&[&["serve", &artifact], &names[..]].concat(), &[]));
    let model = fixture_path("qwen3");
    let cpu = ["serve", &model, "--backend", "cpu", "--quant", "none", "--kv-type", "f32", "--threads", "1"];
    let cpu = Server::start(njoule(&[&cpu[..], &names].concat()));
    let regexes = [
        r"[\s\S]{6}(yes|no)",
        r"[\s\S]{9}[0-9]{3}",
        r"([\s\S]{3}#){3}",
        r"[^q]{5}q[a-z]{4}",
        "[ab]{7}",
        r"[\s\S]{12}z",
    ];
    let sampled = [json!({"temperature": 0}), json!({"temperature": 0.8, "top_k": 12, "seed": 7})];
    let bodies = regexes.iter().flat_map(|regex| {
        sampled.iter().map(move |how| {
            let mut body = json!({"prompt": "The sky", "max_tokens": 40, "structured_outputs": {"regex": regex}});
            body.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
            body
        })
    });
    let bodies: Vec<Value> = bodies.collect();
    let choice = |server: &Server, body: &Value| server.json("/v1/completions", body)["choices"][0].clone();
    // All at once, so that rows with and without a mask share steps.
    let got: Vec<Value> = std::thread::scope(|scope| {
        let asked: Vec<_> = bodies.iter().map(|body| scope.spawn(|| choice(&device, body))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (body, got) in bodies.iter().zip(&got) {
        assert_eq!(got["finish_reason"], "stop", "{body}: {got}");
        assert_eq!(got["text"], choice(&cpu, body)["text"], "{body}");
    }
    assert!(device.counter("njoule_retried_steps_total") > 0.0, "no row was run again");
    assert!(device.counter("njoule_compile_seconds{") > 0.0, "its modules were compiled");
}
