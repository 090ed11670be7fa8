//! `njoule bench` and `njoule inspect`: the shape of what they print.

#[path = "../../energy/tests/meters/form.rs"]
mod form;
mod support;

use support::*;

#[test]
fn bench_prints_a_row_per_case_with_all_figures() {
    let report = run(&[
        "bench",
        "-m",
        &model("llama_plain"),
        "--batch",
        "1,4",
        "--prompt",
        "8",
        "--gen",
        "6",
        "--threads",
        "2",
        "--json",
    ])
    .json();
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    for (row, batch) in rows.iter().zip([1, 4]) {
        assert_eq!((&row["batch"], &row["prompt_tokens"], &row["gen_tokens"]), (&batch.into(), &8.into(), &6.into()));
        for key in ["prefill_tokens_per_s", "decode_tokens_per_s", "cpu_s_per_token", "ttft_s", "mbu", "roofline"] {
            assert!(row[key].as_f64().is_some_and(|x| x > 0.0 && x.is_finite()), "{key} = {}", row[key]);
        }
        assert!(row["energy"]["total_j"].is_null() && row["energy"]["method"].is_null());
    }
    assert!(report["memory"]["peak_rss_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    assert!(report["machine"]["read_bytes_per_s"].as_f64().is_some_and(|x| x > 1e8));
    assert_eq!(report["threads"], 2);
}

#[test]
fn bench_of_no_generated_tokens_measures_prefill_alone() {
    let model = model("gguf_llama");
    let args =
        ["bench", "-m", &model, "--batch", "2", "--prompt", "40", "--gen", "0", "--no-roofline", "--repeat", "1"];
    let report = run(&[&args[..], &["--json"]].concat()).json();
    let row = &report["rows"][0];
    assert!(row["decode_tokens_per_s"].is_null() && row["mbu"].is_null());
    assert!(row["prefill_tokens_per_s"].as_f64().unwrap() > 0.0 && row["cpu_s_per_token"].as_f64().unwrap() > 0.0);
    let table = run(&args);
    assert!(table.code == 0 && table.stdout.contains("prefill tok/s") && table.stdout.contains("energy: unknown"));
    assert!(table.stderr.is_empty(), "{}", table.stderr);
}

#[test]
fn inspect_tells_what_a_model_is_and_costs() {
    for fixture in ["llama_plain", "qwen3", "gguf_qwen2"] {
        let golden = golden(fixture);
        let report = run(&["inspect", &model(fixture), "--json"]).json();
        assert_eq!(report["config"]["vocab"], golden["vocab_size"], "{fixture}");
        if let Some(parameters) = golden["n_params"].as_u64() {
            assert_eq!(report["parameters"], parameters, "{fixture}");
        }
        let packed = |quant: &str| report["packed_bytes"][quant]["bytes"].as_u64().unwrap();
        assert!(packed("none") > packed("bf16") && packed("bf16") > packed("int8"), "{fixture}");
        assert!(report["flops_per_token"].as_u64().unwrap() > report["parameters"].as_u64().unwrap(), "{fixture}");
        let kv = |kv: &str| report["kv_bytes_per_token"][kv].as_u64().unwrap();
        assert_eq!(kv("f32"), 2 * kv("bf16"), "{fixture}");
    }
    let text = run(&["inspect", &model("qwen3"), "--program"]);
    assert!(text.stdout.contains("program qwen3") && text.stdout.contains("attend cache0"), "{}", text.stdout);
}

#[test]
fn what_inspect_says_of_packed_bytes_is_what_loading_takes() {
    for quant in ["none", "bf16", "int8", "int4", "auto"] {
        for fixture in ["llama_plain", "gguf_llama", "quantized/awq", "quantized/gptq_desc_act"] {
            let model = model(fixture);
            let said = run(&["inspect", &model, "--json"]).json()["packed_bytes"][quant]["bytes"].as_u64().unwrap();
            let args = ["bench", "-m", &model, "--batch", "1", "--prompt", "2", "--gen", "1", "--repeat", "1"];
            let report = run(&[&args[..], &["--no-roofline", "--quant", quant, "--json"]].concat()).json();
            assert_eq!(report["memory"]["weight_bytes"].as_u64().unwrap(), said, "{fixture} {quant}");
        }
    }
}

#[test]
fn what_becomes_of_quantised_weights_is_said() {
    let model = model("quantized/fp8_blocks");
    let report = run(&["inspect", &model, "--json"]).json();
    let notes = report["quantization"]["notes"].to_string();
    assert_eq!(report["quantization"]["method"], "fp8");
    assert!(notes.contains("activations") && notes.contains("rounded to bf16"), "{notes}");
    assert!(report["file_types"]["fp8-b24x48"].as_u64().is_some_and(|n| n > 0), "{report}");
    assert!(run(&["inspect", &model]).stdout.contains("quantised     fp8 fp8-b24x48"));
    let args = ["bench", "-m", &model, "--batch", "1", "--prompt", "2", "--gen", "1", "--repeat", "1", "--no-roofline"];
    let loaded = run(&[&args[..], &["--quant", "none"]].concat());
    assert!(loaded.stderr.contains("7 weights dequantised to f32"), "{}", loaded.stderr);
    assert!(!run(&[&args[..], &["--quiet"]].concat()).stderr.contains("weights"));
}

#[test]
fn presets_need_no_files() {
    let report = run(&["inspect", "random:synth-1b", "--json"]).json();
    assert!(report["parameters"].as_u64().unwrap() > 500_000_000);
    run(&["inspect", "random:no-such-preset"]).fails_with(1, &["no-such-preset", "synth-1b"]);
}

/// A directory for files, and what `bench` writes into it.
struct Written(tempfile::TempDir);

impl Written {
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn reports(&self, name: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn reports_have_a_line_per_case_phase_and_repeat_and_are_compared() {
    let dir = Written(tempfile::tempdir().unwrap());
    let (model, report, csv, html) = (model("llama_plain"), dir.path("a.jsonl"), dir.path("a.csv"), dir.path("a.html"));
    let text = dir.path("text");
    std::fs::write(&text, "The quick brown fox jumps over the lazy dog.").unwrap();
    let args =
        ["bench", "-m", &model, "--batch", "1,3", "--prompt", "8", "--gen", "6", "--repeat", "2", "--no-roofline"];
    let ran = ran(njoule(&args)
        .args(["--report", &report, "--csv", &csv, "--html", &html, "--threads", "1"])
        .args(["--step-log", &dir.path("s.jsonl")])
        // A machine without a meter.
        .env("NJOULE_SYSFS_ROOT", dir.0.path())
        .output()
        .unwrap());
    assert!(ran.code == 0 && ran.stdout.contains("energy: unknown"), "{}{}", ran.stdout, ran.stderr);
    let reports = dir.reports("a.jsonl");
    assert_eq!(reports.len(), 2 * 2 * 2);
    for report in &reports {
        assert_eq!(form::check(report), Vec::<String>::new(), "{report:#}");
        let workload = &report["workload"];
        let decode = workload["name"] == "decode";
        let at_once = workload["concurrency"].as_u64().unwrap();
        assert_eq!(workload["output_tokens"].as_u64(), decode.then_some(6 * at_once), "{workload}");
        assert_eq!(workload["input_tokens"].as_u64(), (!decode).then_some(8 * at_once), "{workload}");
        assert!(report["energy"]["total_j"].is_null() && report["energy"]["method"].is_null());
        assert!(report["cpu_s"].as_f64().unwrap() >= 0.0 && report["warmup"]["runs"].as_u64().unwrap() >= 2);
        assert_eq!(report["quality"]["output_sha256"].as_str().unwrap().len(), 64);
        assert_eq!(report["stats"]["repeats"], 2);
        assert_eq!(report["stats"]["output_tokens_per_joule"]["reason"], "the energy is unknown");
        let commit = report["git"].as_str();
        assert!(
            report["git"].is_null()
                || commit.is_some_and(|c| c.len() == 40 && c.bytes().all(|b| b.is_ascii_hexdigit()))
        );
        // As git itself says, where there is git and a repository.
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let git = std::process::Command::new("git").args(["rev-parse", "HEAD"]).current_dir(&root).output();
        if let Ok(said) = git
            && said.status.success()
            && root.join(".git").exists()
        {
            assert_eq!(commit, Some(String::from_utf8(said.stdout).unwrap().trim()));
        }
        let flags = report["validity"]["flags"].as_array().unwrap();
        assert!(!flags.contains(&"output_mismatch".into()), "{flags:?}");
    }
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 1 + 8);
    // A line a step: a prefill is one, a decode six, and their times follow each other.
    let steps = dir.reports("s.jsonl");
    assert_eq!(steps.len(), 2 * 2 * (1 + 6));
    for report in &reports {
        let of: Vec<&serde_json::Value> = steps.iter().filter(|step| step["run_id"] == report["run_id"]).collect();
        let sum = |key: &str| of.iter().map(|step| step[key].as_f64().unwrap()).sum::<f64>();
        assert_eq!(of.len() as u64, report["window"]["steps"].as_u64().unwrap());
        assert!(sum("dt_s") > 0.0 && sum("dt_s") <= report["window"]["duration_s"].as_f64().unwrap());
        let decode = report["workload"]["name"] == "decode";
        let tokens = report["workload"][if decode { "output_tokens" } else { "input_tokens" }].as_f64().unwrap();
        assert_eq!((sum("n_decode"), sum("n_prefill")), if decode { (tokens, 0.0) } else { (0.0, tokens) });
        assert!(of.iter().all(|step| step["e_j"].is_null() && step["method"].is_null()), "{of:?}");
    }
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("tokens per CPU-second") && page.contains("Energy is unknown") && page.contains("<svg"));

    // A run is like itself; with joules the second of which are fewer, the second is better.
    let same = run(&["bench", "compare", &report, &report]);
    assert!(same.code == 0 && same.stdout.contains("no significant difference"), "{}", same.stdout);
    let with = |name: &str, joules: f64| {
        let line = |(at, report): (usize, &serde_json::Value)| {
            let mut report = report.clone();
            report["energy"]["total_j"] = (joules * (1.0 + 0.001 * at as f64)).into();
            report["energy"]["method"] = "measured".into();
            report["energy"]["boundary"] = "cpu".into();
            report.to_string() + "\n"
        };
        std::fs::write(dir.path(name), reports.iter().enumerate().map(line).collect::<String>()).unwrap();
        dir.path(name)
    };
    let (more, fewer) = (with("more", 9.0), with("fewer", 6.0));
    let better = run(&["bench", "compare", &more, &fewer, "--json"]);
    let verdict: serde_json::Value = serde_json::from_str(&better.stdout).unwrap();
    assert_eq!((better.code, &verdict["exit_code"]), (10, &10.into()), "{}", better.stderr);
    assert!(better.stderr.is_empty(), "{}", better.stderr);
    assert_eq!(run(&["bench", "compare", &fewer, &more]).code, 11);
    assert_eq!(run(&["bench", "compare", &fewer, &report]).code, 0, "joules on one side alone are none");
    let plotted = dir.path("b.html");
    assert_eq!(run(&["bench", "plot", &more, &fewer, "-o", &plotted]).code, 0);
    assert!(std::fs::read_to_string(plotted).unwrap().contains("tokens per joule (measured, cpu)"));
}

#[test]
fn perplexity_stands_beside_the_figures() {
    let dir = Written(tempfile::tempdir().unwrap());
    let (text, report, model) = (dir.path("text"), dir.path("r"), model("gguf_llama"));
    std::fs::write(&text, "The quick brown fox jumps over the lazy dog.").unwrap();
    let case = ["bench", "-m", &model, "-b", "1", "-p", "2", "-g", "1", "-r", "1", "--no-roofline", "--json"];
    let bench = run(&[&case[..], &["--perplexity", &text, "--report", &report]].concat()).json();
    let score = run(&["score", "-m", &model, "--text", &text, "--json"]).json();
    assert!(score["perplexity"].as_f64().unwrap() > 1.0);
    assert_eq!(bench["perplexity"], score["perplexity"]);
    assert_eq!(dir.reports("r")[0]["quality"]["perplexity"], score["perplexity"]);
}

#[test]
fn what_bench_cannot_do_is_said_before_anything_runs() {
    run(&["bench", "--endpoint", "ftp://x"]).fails_with(2, &["--endpoint", "http://"]);
    run(&["bench", "--endpoint", "http://127.0.0.1:1", "--threads", "2"]).fails_with(2, &["--endpoint", "--threads"]);
    run(&["bench", "--endpoint", "http://127.0.0.1:1", "--gen", "0"]).fails_with(2, &["--gen 0"]);
    run(&["bench", "--endpoint", "http://127.0.0.1:1", "--step-log", "/nowhere/x"])
        .fails_with(2, &["--step-log", "--request-log"]);
    run(&["bench", "--endpoint", "http://127.0.0.1:1", "--workload", "prompts"]).fails_with(2, &["--prompts FILE"]);
    run(&["bench", "--workload", "chat"]).fails_with(2, &["--endpoint"]);
    run(&["bench", "--endpoint", "http://127.0.0.1:1", "--gen", "1"]).fails_with(1, &["127.0.0.1:1"]);
    run(&["bench", "-m", &model("llama_plain"), "--report", "/nowhere/x"]).fails_with(1, &["/nowhere/x"]);
    let one_file = ["bench", "-m", &model("llama_plain"), "--report", "/nowhere/x", "--csv", "/nowhere/x"];
    run(&one_file).fails_with(2, &["/nowhere/x", "--csv"]);
    run(&["bench", "compare", "/nowhere/a", "/nowhere/b"]).fails_with(1, &["/nowhere/a"]);
    run(&["bench", "compare", &testdata("README.md"), &testdata("README.md")]).fails_with(1, &["README.md", "line 1"]);
}

#[test]
fn a_server_is_started_loaded_and_ended() {
    let dir = Written(tempfile::tempdir().unwrap());
    let (report, log, model) = (dir.path("r.jsonl"), dir.path("q.jsonl"), model("gguf_llama"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let url = format!("http://127.0.0.1:{port}");
    let server = [env!("CARGO_BIN_EXE_njoule"), "serve", &model, "--port", &port, "--threads", "1", "--quiet"];
    let bench = |args: &[&str]| {
        let head = ["bench", "--endpoint", &url, "--prompt", "6", "--gen", "5", "--repeat", "1", "--report", &report];
        run(&[&head, args, &["--"], &server].concat())
    };
    let ran = bench(&["--batch", "1,3", "--requests", "2", "--request-log", &log]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("CPU s/1000 tok") && ran.stdout.contains("of pid:"), "{}", ran.stdout);
    let reports = dir.reports("r.jsonl");
    assert_eq!(reports.iter().map(|r| r["workload"]["output_tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [10, 30]);
    for report in &reports {
        assert_eq!(form::check(report), Vec::<String>::new(), "{report:#}");
        assert!(report["metrics"]["ttft_s"]["p50"].as_f64().unwrap() > 0.0 && report["cpu_s"].as_f64().is_some());
        assert!(report["client"]["own_cpu_s"].as_f64().unwrap() > 0.0);
        assert!(report["steady"].is_object() != report["steady_reason"].is_string(), "{report:#}");
    }
    assert_eq!(dir.reports("q.jsonl").len(), 2 + 6);
    // It is gone, and another workload starts it again.
    assert!(std::net::TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap())).is_err());
    let csv = dir.path("q.csv");
    let chat = ["--workload", "chat", "--rate", "200", "--requests", "12", "--batch", "4", "--json"];
    let chat = bench(&[&chat[..], &["--request-log", &csv]].concat());
    let chat: serde_json::Value = chat.json();
    let (work, steady) = (&chat["runs"][0]["workload"], &chat["runs"][0]["steady_reason"]);
    assert!(steady.as_str().unwrap().contains("by the clock") && chat["runs"][0]["steady"].is_null(), "{steady}");
    assert_eq!((&work["name"], &work["requests"], &work["aborted_requests"]), (&"chat".into(), &12.into(), &0.into()));
    let requests = std::fs::read_to_string(&csv).unwrap();
    assert!(requests.starts_with("id,sent_s,") && requests.lines().count() == 1 + 12, "{requests}");
}

#[test]
fn tune_keeps_the_cheapest_point_and_a_paced_server_waits_for_company() {
    let dir = Written(tempfile::tempdir().unwrap());
    let model = model("gguf_llama");
    let args = ["tune", "-m", &model, "--try-threads", "1", "-b", "1,4", "-p", "4", "-g", "4", "-r", "2", "--json"];
    let tuned =
        ran(njoule(&args).env("NJOULE_CACHE", dir.0.path()).env("NJOULE_SYSFS_ROOT", dir.0.path()).output().unwrap());
    let tuned = tuned.json();
    assert_eq!((&tuned["currency"], tuned["points"].as_array().unwrap().len()), (&"cpu_seconds".into(), 2));
    assert!(tuned["chosen"]["threads"] == 1 && tuned["points"][0]["energy"]["joules_per_token"].is_null());
    let kept: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(tuned["kept_in"].as_str().unwrap()).unwrap()).unwrap();
    let (key, point) = kept.as_object().unwrap().iter().next().unwrap();
    assert!(key.contains(&model) && point["batch"] == tuned["chosen"]["batch"], "{kept}");
    run(&["serve", &model, "--tpot", "50ms"]).fails_with(2, &["--tpot", "tokens-per-joule"]);

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let url = format!("http://127.0.0.1:{port}");
    let bench = ran(njoule(&["bench", "--endpoint", &url, "-b", "1", "-p", "4", "-g", "6", "-r", "1", "--json", "--"])
        .args([env!("CARGO_BIN_EXE_njoule"), "serve", &model, "--port", &port, "--objective", "tokens-per-joule"])
        .args(["--tpot", "60ms", "--ttft", "150ms", "--max-num-seqs", "4"])
        .env("NJOULE_CACHE", dir.0.path())
        .env("NJOULE_SYSFS_ROOT", dir.0.path())
        .output()
        .unwrap());
    // Nobody comes: each token waits for most of what it may.
    let itl = bench.json()["runs"][0]["metrics"]["itl_s"]["p50"].as_f64().unwrap();
    assert!(itl > 0.03, "{itl}");
}

/// The lines that a server writes before it listens.
fn said_before_listening(args: &[&str], cache: &std::path::Path) -> String {
    use std::io::BufRead;
    let mut serve = njoule(args);
    serve.env("NJOULE_CACHE", cache).env("NJOULE_SYSFS_ROOT", cache);
    let mut serve = serve.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    for line in std::io::BufReader::new(serve.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.starts_with("listening") {
            break;
        }
        said.push_str(&(line + "\n"));
    }
    serve.kill().unwrap();
    serve.wait().unwrap();
    said
}

/// Each objective gets its own; what changes tokens is shown with its quality, and used by nobody who does not say so.
#[test]
fn tune_keeps_a_point_for_every_objective_and_chooses_nothing_that_changes_tokens() {
    let dir = Written(tempfile::tempdir().unwrap());
    let (model, text, page) = (model("gguf_llama"), dir.path("text"), dir.path("page.html"));
    std::fs::write(&text, "The quick brown fox jumps over the lazy dog.").unwrap();
    let tune = [
        ["tune", "-m", &model, "--try-threads", "1,2", "-b", "1,2", "-p", "4"],
        ["-g", "4", "-r", "1", "--try-kv", "int8", "--try-quant", "none", "--json"],
    ]
    .concat();
    let tune = [&tune[..], &["--perplexity", &text, "--html", &page]].concat();
    let tuned =
        ran(njoule(&tune).env("NJOULE_CACHE", dir.0.path()).env("NJOULE_SYSFS_ROOT", dir.0.path()).output().unwrap());
    let tuned = tuned.json();
    let others = tuned["other_types"].as_array().unwrap();
    let of = |key: &str| others.iter().map(|other| other[key].as_str().unwrap_or("default")).collect::<Vec<_>>();
    assert_eq!((of("kv_type"), of("quant")), (vec!["int8", "default"], vec!["auto", "none"]), "{tuned:#}");
    for other in others {
        assert!(other["perplexity_ratio"].as_f64().is_some_and(|ratio| ratio > 0.5 && ratio < 2.0), "{other}");
        assert!(other["cost_ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{other}");
    }
    // Only points of the model's own types are chosen among, each at all batches where it is the best.
    let points = tuned["points"].as_array().unwrap();
    assert!(points.iter().all(|point| point["quant"] == "auto" && point["kv_type"].is_null()));
    assert!(tuned["chosen"]["kv_type"].is_null() && tuned["chosen"]["quant"] == "auto");
    let point = &tuned["operating_point"];
    assert_eq!((&point["version"], &point["threads"]), (&2.into(), &tuned["chosen"]["threads"]));
    let latency = point["objectives"]["latency"]["threads"].as_u64().unwrap();
    assert!(!tuned["guesses"].as_array().unwrap().is_empty() && !point["speculate"].is_null(), "{tuned:#}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("Frontier: cost against latency") && page.contains("CPU ms per token (energy unknown)"));

    let serve =
        |more: &[&str]| said_before_listening(&[&["serve", &model, "--port", "0"], more].concat(), dir.0.path());
    let batch = point["batch"].as_u64().unwrap();
    let said = serve(&["--objective", "tokens-per-joule"]);
    // The server itself finds how many threads cost the least CPU time.
    assert!(said.contains(&format!("as tuned: --max-num-seqs {batch} --wait ")), "{said}");
    assert!(!said.contains("--kv-type"), "{said}");
    let said = serve(&[]);
    assert!(said.contains(&format!("as tuned: --threads {latency} --wait ")), "{said}");

    // Cheaper or not: a file that says so is believed if that is allowed, and no other file is.
    let kept = std::path::Path::new(tuned["kept_in"].as_str().unwrap());
    let mut points: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(kept).unwrap()).unwrap();
    points.as_object_mut().unwrap().values_mut().for_each(|point| point["kv"] = "int8".into());
    std::fs::write(kept, points.to_string()).unwrap();
    let said = serve(&["--objective", "tokens-per-joule", "--tuned-kv"]);
    assert!(said.contains("--kv-type int8, which changes what the model says"), "{said}");
    std::fs::write(kept, "{").unwrap();
    let said = serve(&["--objective", "tokens-per-joule"]);
    assert!(said.contains("warning: ") && said.contains("operating-points.json"), "{said}");
}

/// A server behind a proxy, so that a client finds it at an address that is not this host's: it answers every request alike,
/// and tells energy to who asks for it.
fn server_elsewhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer_behind_a_proxy(stream.unwrap()));
        }
    });
    address
}

fn answer_behind_a_proxy(mut stream: std::net::TcpStream) {
    use std::io::{Read, Write};
    let head = |stream: &mut std::net::TcpStream| {
        let (mut seen, mut byte) = (vec![], [0]);
        while !seen.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
            seen.push(byte[0]);
        }
        String::from_utf8(seen).unwrap().to_ascii_lowercase()
    };
    let mut asked = head(&mut stream);
    if asked.starts_with("connect ") {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        asked = head(&mut stream);
    }
    let body = if asked.starts_with("get ") {
        r#"{"data": [{"id": "m"}]}"#.to_owned()
    } else {
        let length = asked.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
        stream.read_exact(&mut vec![0; length]).unwrap();
        let energy = r#","energy":{"total_j":2.5,"method":"measured","rel_unc":0.1,"cpu_s":0.25}"#;
        let energy = if asked.contains("x-njoule-energy: 1\r\n") { energy } else { "" };
        let usage = format!(r#"{{"choices":[],"usage":{{"prompt_tokens":4,"completion_tokens":2{energy}}}}}"#);
        format!("data: {{\"choices\":[{{\"text\":\"a\"}}]}}\n\ndata: {usage}\n\ndata: [DONE]\n\n")
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes());
}

/// A server that is not on this host and has no meter: null with the reason, whatever meters the client's machine has.
#[test]
fn an_endpoint_elsewhere_never_gets_the_clients_joules() {
    let dir = Written(tempfile::tempdir().unwrap());
    let zone = dir.0.path().join("sys/class/powercap/intel-rapl:0");
    std::fs::create_dir_all(&zone).unwrap();
    for (file, text) in [("name", "package-0"), ("energy_uj", "1000000"), ("max_energy_range_uj", "262143328850")] {
        std::fs::write(zone.join(file), text).unwrap();
    }
    let (proxy, url) = (server_elsewhere(), "http://192.0.2.7:8000");
    let (report, log) = (dir.path("r.jsonl"), dir.path("q.jsonl"));
    let bench = |more: &[&str]| {
        let mut command = njoule(&["bench", "--endpoint", url, "-b", "2", "-p", "4", "-g", "2", "-r", "1"]);
        command.args(["--report", &report, "--request-log", &log]).args(more);
        command.env("NJOULE_SYSFS_ROOT", dir.0.path()).env_remove("NJOULE_NEURON_WATTS");
        for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"] {
            command.env(name, &proxy);
        }
        ran(command.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap())
    };
    let done = bench(&[]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let told = &dir.reports("r.jsonl")[0];
    assert_eq!(form::check(told), Vec::<String>::new(), "{told:#}");
    assert_eq!((&told["subject"], &told["meters"]), (&url.into(), &serde_json::json!([])));
    for unknown in ["/energy/total_j", "/host", "/cpu_s", "/cpu/part_s"] {
        assert!(told.pointer(unknown).unwrap().is_null(), "{unknown}: {told}");
    }
    assert!(told["energy"]["reasons"][0].as_str().unwrap().contains("not on this host"), "{told}");
    assert!(told["client"]["own_cpu_s"].as_f64().unwrap() > 0.0);
    assert!(told["warmup"]["runs"].as_u64().unwrap() >= 2 && told["warmup"]["drift"].is_number(), "{told}");
    assert!(told["window"]["mean_running_seqs"].as_f64().unwrap() > 0.0, "{told}");
    // What the server told of each request stands in the log.
    let requests = dir.reports("q.jsonl");
    assert_eq!(requests.len(), 8);
    for request in &requests {
        assert_eq!((&request["total_j"], &request["cpu_s"]), (&2.5.into(), &0.25.into()), "{request}");
    }
    // Who says so, is believed; and a feed needs that word.
    assert_eq!(bench(&["--meter", "local"]).code, 0);
    assert_eq!(dir.reports("r.jsonl")[0]["meters"][0]["id"], "powercap-0");
    bench(&["--feed", "cmd:echo 1,2"]).fails_with(2, &["--feed", "not on this host", "--meter local"]);
}

/// The driver has one figure a minute, of a server's devices as well.
#[test]
fn a_load_on_neuron_devices_is_long_enough_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let power = dir.path().join("sys/devices/virtual/neuron_device/neuron0/stats/power");
    std::fs::create_dir_all(&power).unwrap();
    std::fs::write(power.join("utilization"), "POWER_STATUS_NO_DATA,0,0.00,0.00,0.00\n").unwrap();
    let bench = |more: &[&str]| {
        let mut command = njoule(&["bench", "--endpoint", "http://127.0.0.1:1", "-b", "1", "-r", "1"]);
        ran(command.args(more).env("NJOULE_SYSFS_ROOT", dir.path()).output().unwrap())
    };
    bench(&[]).fails_with(2, &["three whole minutes", "--min-seconds 240"]);
    bench(&["--min-seconds", "200"]).fails_with(2, &["--min-seconds 240"]);
    // Long enough: then it is about the server, which is not there.
    bench(&["--min-seconds", "240"]).fails_with(1, &["127.0.0.1:1"]);
}
