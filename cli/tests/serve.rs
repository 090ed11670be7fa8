//! `njoule serve` as a process: its lines, its signals, its exit codes, its settings; and its neighbours `batch` and `top`. What
//! a server answers is tested in the server's own crate.

#[path = "serve/batch.rs"]
mod batch;
#[cfg(target_os = "linux")]
#[path = "serve/replicas.rs"]
mod replicas;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::{njoule, ran, run, scratch, testdata, write};

/// A server, ended with its test.
struct Running(Child);

impl Running {
    fn code_after(&mut self, signal: Signal) -> Option<i32> {
        let id = i32::try_from(self.0.id()).expect("a process id");
        kill_process(Pid::from_raw(id).expect("not 0"), signal).expect("it runs");
        self.0.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Of one that has ended there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server on a free port, its log, and its address.
fn start(args: &[&str]) -> (Running, BufReader<std::process::ChildStderr>, String) {
    start_with(&testdata("qwen3"), args, &[])
}

/// The same of another model, in an environment.
fn start_with(
    model: &str,
    args: &[&str],
    environment: &[(&str, &str)],
) -> (Running, BufReader<std::process::ChildStderr>, String) {
    let mut all = vec!["serve", model, "--port", "0", "--threads", "1"];
    all.extend(args);
    let mut command = njoule(&all);
    command.envs(environment.iter().copied());
    listening(command)
}

/// A server that this command is, once it listens.
fn listening(mut command: Command) -> (Running, BufReader<std::process::ChildStderr>, String) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut child = Running(child);
    let mut lines = BufReader::new(child.0.stderr.take().expect("piped"));
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).expect("stderr") > 0, "no listening line in {seen}");
        if let Some(address) = line.trim().strip_prefix("listening on http://") {
            return (child, lines, address.to_owned());
        }
        seen.push_str(&line);
    }
}

/// It starts itself over with them, as the same process: what is told to its id reaches the server.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn a_server_bounds_what_its_allocator_keeps_unless_somebody_has() {
    for (environment, wanted) in [(&[][..], "1048576"), (&[("MALLOC_TRIM_THRESHOLD_", "7")][..], "7")] {
        let (mut server, _log, address) = start_with(&testdata("qwen3"), &[], environment);
        let of = std::fs::read(format!("/proc/{}/environ", server.0.id())).unwrap();
        let trim = of.split(|b| *b == 0).find_map(|line| line.strip_prefix(b"MALLOC_TRIM_THRESHOLD_="));
        assert_eq!(trim.map(String::from_utf8_lossy).as_deref(), Some(wanted));
        assert!(ask(&address, "GET /live", "").starts_with("HTTP/1.1 200"));
        assert_eq!(server.code_after(Signal::TERM), Some(0));
    }
}

fn ask(address: &str, line: &str, body: &str) -> String {
    let mut answer = String::new();
    request(address, line, body).read_to_string(&mut answer).unwrap();
    answer
}

/// A request whose answer is still to be read.
fn request(address: &str, line: &str, body: &str) -> TcpStream {
    request_over(TcpStream::connect(address).expect("it listens"), address, line, body)
}

fn request_over(mut stream: TcpStream, address: &str, line: &str, body: &str) -> TcpStream {
    let head = format!("{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n");
    stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    stream
}

#[test]
fn it_answers_and_a_signal_ends_it_with_code_0() {
    for how in [Signal::TERM, Signal::INT] {
        let (mut child, mut log, address) = start(&["--served-model-name", "a", "b", "--log-format", "json"]);
        let answer = ask(&address, "POST /v1/completions", r#"{"model": "b", "prompt": "Hi", "max_tokens": 3}"#);
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let traced =
            ask(&address, &format!("GET /version HTTP/1.1\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\nx:"), "");
        assert!(traced.starts_with("HTTP/1.1 200") && !traced.contains(trace), "{traced}");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains(r#""model":"a""#), "{answer}");
        assert_eq!(child.code_after(how), Some(0));
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        for line in rest.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert!(line["level"].is_string() && line["message"].is_string());
        }
        assert!(rest.contains("\"path\":\"/v1/completions\""), "{rest}");
        assert_eq!(rest.matches("\"trace_id\":\"0af7651916cd43dd8448eb211c80319c\"").count(), 1, "{rest}");
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_a_reason() {
    let model = testdata("qwen3");
    run(&["serve", &model, "--tensor-parallel-size", "2"]).fails_with(2, &["--tensor-parallel-size"]);
    run(&["serve", &model, "--port", "0", "--api-key", ""]).fails_with(2, &["API key is empty"]);
    run(&["serve", &model, "--host", "256.1.1.1"]).fails_with(1, &["cannot listen on 256.1.1.1:8000"]);
    run(&["serve", &testdata("qwen2_moe"), "--port", "0"]).fails_with(1, &["no tokenizer"]);
}

#[test]
fn the_names_that_vllm_has_for_flags_are_taken() {
    let (mut child, _log, address) =
        start(&["--max-model-len", "99", "--max-num-seqs", "3", "--tensor-parallel-size", "1"]);
    let models = ask(&address, "GET /v1/models", "");
    assert!(models.contains(r#""max_model_len":99"#), "{models}");
    assert_eq!(child.code_after(Signal::TERM), Some(0));
}

#[test]
fn a_flag_goes_before_its_variable_that_before_the_file_and_that_before_the_default() {
    let dir = scratch();
    let text = "port = 1001\nhost = \"0.0.0.0\"\nmax_num_seqs = 5\nalias = [\"a\", \"b\"]\nmodel = \"random:file\"\nmax-n = 3\napi-key = \"secret\"\n";
    let file = write(dir.path(), "njoule.toml", text);
    let mut command = njoule(&["serve", "--config", &file, "--port", "1003", "--print-config"]);
    command.env("NJOULE_PORT", "1002").env("NJOULE_BATCH_SIZE", "6").env("NJOULE_TRUST_REQUEST_CHAT_TEMPLATE", "1");
    let printed = ran(command.output().unwrap());
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    for line in [
        "port = 1003  # flag",
        "batch-size = 6  # variable",
        "host = \"0.0.0.0\"  # file",
        "served-model-name = [\"a\", \"b\"]  # file",
        "model = \"random:file\"  # file",
        "trust-request-chat-template = true  # variable",
        "max-n = 3  # file",
        "max-connections = 1024  # default",
        "# request-timeout is not set",
        "# api-key: 1 by file, not shown",
    ] {
        assert!(printed.stdout.lines().any(|printed| printed == line), "no {line} in\n{}", printed.stdout);
    }
    assert!(!printed.stdout.contains("secret"));
    // What is printed is a file again.
    let again = write(dir.path(), "again.toml", &printed.stdout);
    let second = run(&["serve", "--config", &again, "--print-config"]);
    let values = |text: &str| text.lines().map(|line| line.split("  #").next().unwrap().to_owned()).collect::<Vec<_>>();
    let shown = |text: &str| values(text).into_iter().filter(|line| !line.starts_with('#')).collect::<Vec<_>>();
    assert_eq!(shown(&second.stdout), shown(&printed.stdout));
    // vLLM's name for what a variable has turned off.
    let mut command = njoule(&["serve", "--enable-prefix-caching", "--print-config"]);
    let printed = ran(command.env("NJOULE_NO_PREFIX_CACHE", "1").output().unwrap());
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert_eq!(run(&["serve", "--no-prefix-cache", "--enable-prefix-caching", "--print-config"]).code, 0);
}

#[test]
fn every_name_of_a_flag_is_a_variable() {
    let printed = |set: &[(&str, &str)], args: &[&str]| {
        let mut all = vec!["serve"];
        all.extend(args);
        all.push("--print-config");
        ran(njoule(&all).envs(set.iter().copied()).output().unwrap())
    };
    let set = [
        ("NJOULE_MAX_MODEL_LEN", "512"),
        ("NJOULE_MAX_NUM_SEQS", "3"),
        ("NJOULE_ALIAS", "a,b"),
        ("NJOULE_SSL_CERTFILE", "c.pem"),
        ("NJOULE_SSL_KEYFILE", "k.pem"),
        ("NJOULE_MAX_NUM_QUEUED_REQS", "7"),
        ("NJOULE_MAX_NUM_QUEUED_TOKENS", "70"),
        ("NJOULE_ALLOWED_HOST", "x.example,y.example"),
        ("NJOULE_API_KEY", "one,key"),
        ("NJOULE_ENABLE_PREFIX_CACHING", "1"),
    ];
    let all = printed(&set, &["--max-num-queued-tokens", "71"]);
    assert_eq!(all.code, 0, "{}", all.stderr);
    for line in [
        "context = 512  # variable",
        "batch-size = 3  # variable",
        "served-model-name = [\"a\", \"b\"]  # variable",
        "tls-cert = \"c.pem\"  # variable",
        "tls-key = \"k.pem\"  # variable",
        "max-queued-requests = 7  # variable",
        "max-queued-tokens = 71  # flag",
        "allowed-host = [\"x.example\", \"y.example\"]  # variable",
        "# api-key: 1 by variable, not shown",
    ] {
        assert!(all.stdout.lines().any(|printed| printed == line), "no {line} in\n{}", all.stdout);
    }
    // A variable goes before the file, by whatever name.
    let dir = scratch();
    let file = write(dir.path(), "njoule.toml", "context = 99\nno-prefix-cache = true\n");
    let both = printed(&set, &["--config", &file]);
    assert!(both.stdout.contains("context = 512  # variable\n"), "{}{}", both.stdout, both.stderr);
    assert_eq!(printed(&[("NJOULE_CONTEXT", "9"), ("NJOULE_MAX_MODEL_LEN", "9")], &[]).code, 0);
    for (set, words) in [
        (
            [("NJOULE_CONTEXT", "9"), ("NJOULE_MAX_MODEL_LEN", "8")],
            ["NJOULE_CONTEXT and NJOULE_MAX_MODEL_LEN", "different"],
        ),
        (
            [("NJOULE_ENABLE_PREFIX_CACHING", "1"), ("NJOULE_NO_PREFIX_CACHE", "1")],
            ["NJOULE_ENABLE_PREFIX_CACHING and NJOULE_NO_PREFIX_CACHE", "different"],
        ),
        (
            [("NJOULE_ENABLE_PREFIX_CACHING", "0"), ("NJOULE_PORT", "1")],
            ["NJOULE_ENABLE_PREFIX_CACHING", "NJOULE_NO_PREFIX_CACHE=1"],
        ),
        ([("NJOULE_MAX_MODEL_LEN", "many"), ("NJOULE_PORT", "1")], ["invalid value 'many'", "--context"]),
    ] {
        printed(&set, &[]).fails_with(2, &words);
    }
    // And they hold.
    let model = testdata("qwen3");
    let (mut child, _log, address) =
        start_with(&model, &[], &[("NJOULE_MAX_MODEL_LEN", "99"), ("NJOULE_ALIAS", "x,y")]);
    let models = ask(&address, "GET /v1/models", "");
    assert!(models.contains(r#""max_model_len":99"#) && models.contains(r#""id":"y""#), "{models}");
    assert_eq!(child.code_after(Signal::TERM), Some(0));
}

#[test]
fn a_file_that_is_no_configuration_is_refused_by_its_part() {
    let dir = scratch();
    let refused = |text: &str, words: &[&str]| {
        let file = write(dir.path(), "njoule.toml", text);
        run(&["serve", "--config", &file]).fails_with(2, words);
    };
    refused("prot = 1\n", &["njoule.toml", "there is no setting \"prot\"", "did you mean \"port\"?"]);
    refused("zzz = 1\n", &["there is no setting \"zzz\""]);
    refused("port = [1]\n", &["port must be a single string or number"]);
    refused("trust-request-chat-template = 3\n", &["trust-request-chat-template must be true or false"]);
    refused("port = \"many\"\n", &["invalid value 'many' for '--port <PORT>'", "njoule.toml"]);
    refused("max_n = 1\nmax-n = 1\n", &["max-n is set twice"]);
    refused("port = \n", &["njoule.toml: "]);
    refused("[serve]\nport = 1\n", &["there is no setting \"serve\""]);
    run(&["serve", "--config", "/nowhere.toml"]).fails_with(2, &["cannot read /nowhere.toml"]);
}

#[test]
fn flags_of_other_servers_do_what_they_say_or_say_why_not() {
    let dir = scratch();
    let template = write(dir.path(), "t.jinja", "{% for m in messages %}[{{ m.content }}]{% endfor %}");
    let tokenizer = testdata("qwen3");
    let args = [
        "--served-model-name",
        "m",
        "--chat-template",
        &template,
        "--tokenizer",
        &tokenizer,
        "--seed",
        "7",
        "--dtype",
        "float32",
        "-tp",
        "1",
        "-np",
        "3",
        "-b",
        "64",
        "--log-json",
        "--enable-prefix-caching",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--reasoning-parser",
        "qwen3",
        "--gpu-memory-utilization",
        "0.9",
        "--trust-remote-code",
        "--disable-log-requests",
    ];
    let mut all = vec!["serve", &*tokenizer, "--port", "0", "--threads", "1"];
    all.extend(args);
    let mut child = Running(njoule(&all).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut seen = Vec::new();
    let address = loop {
        let line = lines.next().unwrap_or_else(|| panic!("no listening line in {seen:?}"));
        match line.strip_prefix("listening on http://") {
            Some(address) => break address.to_owned(),
            None => seen.push(line),
        }
    };
    for flag in [
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "--reasoning-parser",
        "--gpu-memory-utilization",
        "--trust-remote-code",
        "--disable-log-requests",
    ] {
        let said = seen.iter().filter(|line| line.starts_with(&format!("{flag} is not needed: "))).count();
        assert_eq!(said, 1, "{flag} in {seen:?}");
    }
    assert!(seen.iter().any(|line| line.starts_with('{')), "the log is of objects: {seen:?}");
    let body =
        |more: &str| format!(r#"{{"prompt": "Hi", "max_tokens": 8, "temperature": 2, "ignore_eos": true{more}}}"#);
    let text = |more: &str| {
        let answer = ask(&address, "POST /v1/completions", &body(more));
        answer
            .split_once(r#""text":"#)
            .unwrap_or_else(|| panic!("{answer}"))
            .1
            .split(r#","finish"#)
            .next()
            .unwrap()
            .to_owned()
    };
    assert!(text("") == text("") && text("") == text(r#", "seed": 7"#) && text("") != text(r#", "seed": 8"#));
    let asked = |line: &str, body: &str| {
        let answer = ask(&address, line, body);
        serde_json::from_str::<serde_json::Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let chat = asked("POST /tokenize", r#"{"messages": [{"role": "user", "content": "Hello"}]}"#);
    let text = asked("POST /tokenize", r#"{"prompt": "[Hello]", "add_special_tokens": false}"#);
    assert_eq!(chat["tokens"], text["tokens"]);
    assert_eq!(child.code_after(Signal::TERM), Some(0));

    let refused = |args: &[&str], words: &[&str]| {
        let mut all = vec!["serve", &*tokenizer, "--port", "0"];
        all.extend(args);
        run(&all).fails_with(2, words);
    };
    refused(&["--dtype", "float16"], &["--dtype float16", "--quant"]);
    refused(&["--dtype", "float32", "--quant", "int8"], &["float32", "int8", "contradict"]);
    refused(&["--block-size", "7"], &["--block-size 7", "blocks have"]);
    refused(&["--revision", "main"], &["--revision main", "no model of the hub"]);
    refused(&["--tokenizer", "/nowhere"], &["--tokenizer /nowhere", "tokenizer.json"]);
    refused(&["-tp", "2"], &["--tensor-parallel-size"]);
    let broken = write(dir.path(), "broken.jinja", "{% for %}");
    run(&["serve", &tokenizer, "--chat-template", &broken]).fails_with(1, &["--chat-template", "broken.jinja"]);
    let (refused, known) = (run(&["serve", "org/m@a", "--revision", "b"]), run(&["serve", "org/m", "--revision", "b"]));
    refused.fails_with(2, &["--revision b", "another one"]);
    assert!(known.code == 1 && known.stderr.contains("org/m@b"), "{}", known.stderr);
}

#[test]
fn a_model_behind_the_served_name_is_the_model() {
    let model = testdata("qwen3");
    let printed = |args: &[&str]| {
        let mut all = vec!["serve"];
        all.extend(args);
        all.push("--print-config");
        let printed = run(&all);
        assert_eq!(printed.code, 0, "{}", printed.stderr);
        let of = |key: &str| printed.stdout.lines().find(|line| line.starts_with(key)).map(str::to_owned);
        (of("served-model-name ="), of("model ="))
    };
    let names = |names: &str| Some(format!("served-model-name = [{names}]  # flag"));
    let is = |model: &str| Some(format!("model = \"{model}\"  # flag"));
    assert_eq!(printed(&["--served-model-name", "a", &model]), (names("\"a\""), is(&model)));
    assert_eq!(printed(&["--alias", "a", "b", "org/m", "--port", "1"]), (names("\"a\", \"b\""), is("org/m")));
    assert_eq!(printed(&["--served-model-name", "a,b", "org/m"]), (names("\"a\", \"b\""), is("org/m")));
    // All are names where the model was named, or none looks like one.
    assert_eq!(printed(&["org/m", "--served-model-name", "a", "org/n"]), (names("\"a\", \"org/n\""), is("org/m")));
    assert_eq!(printed(&["--served-model-name", "a", "b"]), (names("\"a\", \"b\""), None));
}

#[test]
fn a_probe_without_curl_is_a_verb() {
    let (mut child, _log, address) = start(&[]);
    for args in [&["health", &*address][..], &["health", &*address, "--ready"], &["health", &*address, "--live"]] {
        let probe = run(args);
        assert_eq!((probe.code, probe.stdout.as_str(), probe.stderr.as_str()), (0, "ok\n", ""), "{args:?}");
    }
    let told = run(&["health", &format!("http://{address}/"), "--json", "--timeout", "9"]).json();
    assert_eq!((&told["ok"], &told["status"], &told["error"]), (&true.into(), &200.into(), &serde_json::Value::Null));
    // As in its own container.
    let (_, port) = address.rsplit_once(':').unwrap();
    let own = ran(njoule(&["health"]).env("NJOULE_PORT", port).env("NJOULE_HOST", "0.0.0.0").output().unwrap());
    assert_eq!(own.code, 0, "{}", own.stderr);
    assert_eq!(child.code_after(Signal::TERM), Some(0));
    run(&["health", &address]).fails_with(1, &[&address]);
    let gone = run(&["health", &address, "--json"]);
    let told: serde_json::Value = serde_json::from_str(&gone.stdout).unwrap();
    assert!(gone.code == 1 && told["ok"] == false && told["status"].is_null() && told["error"].is_string(), "{told}");
    run(&["health", &address, "--timeout", "0"]).fails_with(2, &["--timeout"]);
    // One that listens and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = std::time::Instant::now();
    run(&["health", &silent.local_addr().unwrap().to_string(), "--timeout", "0.2"]).fails_with(1, &["/health"]);
    assert!(begun.elapsed().as_secs() < 10);
}

#[test]
fn a_server_is_watched_from_outside() {
    let (mut child, _log, address) = start(&[]);
    ask(&address, "POST /v1/completions", r#"{"prompt": "Hi", "max_tokens": 3, "ignore_eos": true}"#);
    let figures = run(&["top", &address, "--once", "--json", "--interval", "0.05"]).json();
    assert_eq!((&figures["reachable"], &figures["ready"]), (&true.into(), &true.into()));
    assert_eq!((&figures["running"], &figures["watts"]), (&0.0.into(), &serde_json::Value::Null));
    let line = run(&["top", &format!("http://{address}"), "--once", "--interval", "0.05"]);
    assert!(line.code == 0 && line.stdout.contains("0 running, 0 waiting"), "{}{}", line.stdout, line.stderr);
    assert_eq!(child.code_after(Signal::TERM), Some(0));
    run(&["top", &address, "--once"]).fails_with(1, &[&address]);
    run(&["top", "--interval", "0"]).fails_with(2, &["--interval"]);
}

#[test]
fn tls_needs_both_files() {
    let model = testdata("qwen3");
    run(&["serve", &model, "--tls-cert", "a"]).fails_with(2, &["--tls-cert and --tls-key need each other"]);
    let (cert, key) = (testdata("tls/cert.pem"), testdata("tls/make.sh"));
    run(&["serve", &model, "--ssl-certfile", &cert, "--ssl-keyfile", &key]).fails_with(1, &["TLS: ", "make.sh"]);
}
