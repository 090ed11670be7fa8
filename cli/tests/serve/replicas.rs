//! `--replicas`: processes that die, hang or fail to start, and what their clients see of it.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::support::{neuron_fake, njoule, ran, run, scratch, testdata};
use super::{Running, ask, listening, request, request_over, start, start_with};

/// Processes that a server has started, by the number of the replica.
fn replicas(server: &Running) -> BTreeMap<usize, Pid> {
    let parent = format!("PPid:\t{}", server.0.id());
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        if !status.lines().any(|line| line == parent) || status.contains("State:\tZ") {
            continue;
        }
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let number = environ.split(|byte| *byte == 0).find_map(|pair| {
            std::str::from_utf8(pair).ok()?.strip_prefix("NJOULE_REPLICA=")?.split_once('/')?.0.parse().ok()
        });
        if let (Some(number), Some(id)) = (number, Pid::from_raw(id)) {
            found.insert(number, id);
        }
    }
    found
}

/// Status and body.
fn post(address: &str, body: &Value) -> (u16, Value) {
    read(&ask(address, "POST /v1/completions", &body.to_string()))
}

/// The same from another address of this machine.
fn post_from(from: [u8; 4], address: &str, body: &Value) -> (u16, Value) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let connect = async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(address.parse().expect("an address")).await?.into_std()
    };
    let stream = runtime.block_on(connect).expect("every 127.x.y.z is this machine");
    stream.set_nonblocking(false).unwrap();
    let mut answer = String::new();
    let mut stream = request_over(stream, address, "POST /v1/completions", &body.to_string());
    stream.read_to_string(&mut answer).unwrap();
    read(&answer)
}

fn read(answer: &str) -> (u16, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer:?}")))
}

/// The figure whose line begins so.
fn value(metrics: &str, start: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

const GENERATED: &str = "vllm:generation_tokens_total";

/// What `/replicas` says, once `/health` says by its status alone that one answers.
fn health(address: &str) -> Value {
    let healthy = ask(address, "GET /health", "");
    if !healthy.starts_with("HTTP/1.1 200") {
        return Value::Null;
    }
    assert!(healthy.ends_with("\r\n\r\n"), "a body: {healthy}");
    let answer = ask(address, "GET /replicas", "");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap_or_default().1).unwrap_or_default()
}

fn wait_for(what: &str, wanted: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !wanted() {
        assert!(Instant::now() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All of `count` answer, and were started anew so often.
fn wait_until_whole(address: &str, count: usize, restarts: u64) {
    wait_for("all replicas answer", || {
        let health = health(address);
        let all = health["replicas"].as_array().cloned().unwrap_or_default();
        let ready = all.iter().filter(|replica| replica["state"] == "ready").count();
        let again: u64 = all.iter().filter_map(|replica| replica["restarts"].as_u64()).sum();
        ready == count && again >= restarts && health["status"] == "ok"
    });
}

/// The process that owns the port does not know which replica has answered: it asks all.
#[test]
fn energy_of_an_answer_is_found_at_the_replica_that_gave_it() {
    let (_server, _log, address) = start(&["--replicas", "2", "--max-num-seqs", "2", "--usage-energy"]);
    wait_until_whole(&address, 2, 0);
    let get = |id: &str| {
        let answer = ask(&address, &format!("GET /v1/energy/requests/{id}"), "");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let replica = head.lines().find_map(|line| line.strip_prefix("x-njoule-replica: ")).map(str::to_owned);
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        (status, replica, serde_json::from_str::<Value>(body).unwrap_or_else(|e| panic!("{e}: {answer:?}")))
    };
    let mut found = Vec::new();
    for i in 0..16 {
        let (status, answer) = post(&address, &json!({"prompt": format!("{i} times"), "max_tokens": 2}));
        assert_eq!(status, 200, "{answer}");
        let (id, told) = (answer["id"].as_str().unwrap(), &answer["usage"]["energy"]);
        // A meter that reads late tells the rest after the answer; what is settled stays.
        let known = || Some(get(id)).filter(|(status, _, energy)| status != "200" || energy["settled"] == true);
        wait_for("an answer's energy is settled", || known().is_some());
        let (status, replica, energy) = get(id);
        assert_eq!(status, "200", "{energy}");
        assert!(energy["cpu_s"].as_f64() >= told["cpu_s"].as_f64() && told["cpu_s"].is_f64(), "{energy} {told}");
        assert!(told["settled"] == false || energy == *told, "{energy} {told}");
        found.push(replica.unwrap());
    }
    assert!(found.iter().any(|replica| replica == "0") && found.iter().any(|replica| replica == "1"), "{found:?}");
    let (status, replica, error) = get("cmpl-0");
    assert_eq!((status.as_str(), replica, &error["error"]["code"]), ("404", None, &json!("unknown_answer")));
}

#[test]
fn of_four_replicas_one_is_killed_and_nothing_is_lost() {
    let (mut server, _log, address) = start(&["--replicas", "4", "--max-num-seqs", "2"]);
    wait_until_whole(&address, 4, 0);
    let before = replicas(&server);
    assert_eq!(before.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    let body =
        |i: usize| json!({"prompt": format!("{i} times"), "max_tokens": 24, "temperature": 0, "ignore_eos": true});
    let expected: Vec<Value> = (0..8).map(|i| post(&address, &body(i)).1["choices"].clone()).collect();
    let (answered, tokens) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (address, expected, answered, tokens) = (&address, &expected, &answered, &tokens);
            scope.spawn(move || {
                for round in 0..12 {
                    let i = (client + round) % 8;
                    let (status, answer) = post(address, &body(i));
                    assert_eq!((status, &answer["choices"]), (200, &expected[i]), "{answer}");
                    tokens
                        .fetch_add(answer["usage"]["completion_tokens"].as_u64().unwrap() as usize, Ordering::Relaxed);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_for("load", || answered.load(Ordering::Relaxed) >= 16);
        kill_process(before[&2], Signal::KILL).unwrap();
    });
    assert_eq!((answered.into_inner(), tokens.into_inner()), (96, 96 * 24));
    wait_until_whole(&address, 4, 1);
    let after = replicas(&server);
    let replaced: Vec<usize> = before.keys().copied().filter(|i| before[i] != after[i]).collect();
    assert_eq!(replaced, [2]);
    let metrics = ask(&address, "GET /metrics", "");
    assert_eq!(value(&metrics, "njoule_replica_restarts_total{replica=\"2\"}"), 1.0);
    assert_eq!(value(&metrics, "njoule_replica_state{replica=\"2\",state=\"ready\"}"), 1.0);
    // Sums of what all have done, and facts that all share.
    let sum = |start: &str, label: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(start) && line.contains(label));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    let steps = value(&metrics, "njoule_steps_total{");
    assert_eq!((sum("njoule_step_seconds_count{", ""), sum("vllm:iteration_tokens_total_count{", "")), (steps, steps));
    assert_eq!(sum("njoule_tokens_total{", "kind=\"output\""), value(&metrics, GENERATED));
    assert!(value(&metrics, "vllm:lora_requests_info{") > 1.7e9);
    let head = "POST /v1/completions HTTP/1.1\r\nendpoint-load-metrics-format: TEXT\r\nx:";
    let answer = ask(&address, head, &body(0).to_string());
    assert!(answer.contains("\r\nendpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc="), "{answer}");
    // What an idle one had counted stays when it ends.
    let counted = value(&metrics, GENERATED);
    kill_process(after[&3], Signal::KILL).unwrap();
    wait_until_whole(&address, 4, 2);
    let stays = value(&ask(&address, "GET /metrics", ""), GENERATED);
    assert!(counted > 0.0 && stays >= counted, "{stays} of {counted}");
    assert!(metrics.contains("replica=\"3\"") && metrics.contains("njoule_ready{"), "{metrics}");
    let last = replicas(&server);
    assert_eq!(server.code_after(Signal::TERM), Some(0));
    assert!(last.values().all(|pid| !std::path::Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()));
}

/// All of a stream whose replica is killed when its first token is there.
fn broken_off(server: &Running, address: &str) -> String {
    let body = json!({"prompt": "on and on", "max_tokens": 480, "ignore_eos": true, "stream": true, "logprobs": 20});
    let mut stream = request(address, "POST /v1/completions", &body.to_string());
    let mut seen = Vec::new();
    let mut read = |seen: &mut Vec<u8>| {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).unwrap();
        seen.extend_from_slice(&piece[..count]);
        count > 0
    };
    let text = |seen: &[u8]| String::from_utf8_lossy(seen).into_owned();
    while !text(&seen).contains("\ndata: ") {
        assert!(read(&mut seen), "{}", text(&seen));
    }
    let replica = text(&seen).lines().find_map(|line| line.strip_prefix("x-njoule-replica: ")?.parse().ok());
    kill_process(replicas(server)[&replica.expect("its number")], Signal::KILL).unwrap();
    while read(&mut seen) {}
    text(&seen)
}

#[test]
fn a_replica_that_hangs_is_replaced_and_its_requests_are_moved() {
    let (mut server, _log, address) = start(&["--replicas", "2", "--max-num-seqs", "2", "--replica-timeout", "3"]);
    wait_until_whole(&address, 2, 0);
    let body =
        |i: usize| json!({"prompt": format!("{i} times"), "max_tokens": 8, "temperature": 0, "stream": i % 2 == 1});
    let moved = || value(&ask(&address, "GET /metrics", ""), "njoule_moved_requests_total");
    // Again where it was missed before a request had gone there.
    for restarts in 1..=5 {
        let before = replicas(&server);
        kill_process(before[&1], Signal::STOP).unwrap();
        std::thread::scope(|scope| {
            for i in 0..4 {
                let (address, body) = (&address, body(i));
                scope.spawn(move || {
                    let answer = ask(address, "POST /v1/completions", &body.to_string());
                    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
                    assert!(answer.contains("finish_reason\":\"") && !answer.contains("error"), "{answer}");
                });
            }
        });
        wait_until_whole(&address, 2, restarts);
        assert_ne!(replicas(&server)[&1], before[&1]);
        if moved() >= 1.0 {
            break;
        }
    }
    assert!(moved() >= 1.0);

    // A stream that has begun ends by an error, and the server goes on. One that was whole before its replica was killed says
    // nothing of it.
    let broken = (0..5).find_map(|_| {
        let stream = broken_off(&server, &address);
        wait_until_whole(&address, 2, 0);
        (!stream.contains("finish_reason\":\"")).then_some(stream)
    });
    let broken = broken.expect("one of five streams was broken off");
    assert!(broken.contains("\"code\":\"engine_error\"") && broken.contains("data: [DONE]"), "{broken}");
    assert_eq!(server.code_after(Signal::INT), Some(0));
}

/// Ends those who go on until it is set, however the test ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_address_that_floods_the_server_has_no_other_one_refused_or_kept_waiting() {
    let (mut server, _log, address) = start(&["--replicas", "1", "--max-num-seqs", "1", "--max-queued-requests", "8"]);
    wait_until_whole(&address, 1, 0);
    let body = json!({"prompt": "on and on", "max_tokens": 64, "temperature": 0, "ignore_eos": true});
    let (answered, refused, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let mut waited = 0;
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..12 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    match post_from([127, 0, 0, 1], &address, &body) {
                        (200, _) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        (503, _) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        (status, answer) => panic!("{status} {answer}"),
                    }
                }
            });
        }
        wait_for("one runs and eight wait", || refused.load(Ordering::Relaxed) >= 12);
        for _ in 0..10 {
            let before = answered.load(Ordering::Relaxed);
            let (status, answer) = post_from([127, 0, 0, 2], &address, &body);
            assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(64)), "{answer}");
            waited += answered.load(Ordering::Relaxed) - before;
        }
    });
    // Behind the eight that came before it would have waited for eighty.
    assert!(waited <= 40, "ten requests waited for {waited}");
    assert_eq!(server.code_after(Signal::TERM), Some(0));
}

#[test]
fn replicas_end_with_the_process_that_started_them() {
    let (mut server, _log, address) = start(&["--replicas", "2"]);
    wait_until_whole(&address, 2, 0);
    let pids: Vec<Pid> = replicas(&server).into_values().collect();
    assert_eq!(pids.len(), 2);
    // Shared: packed once, not once each.
    let maps = |pid: &Pid| std::fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_nonzero())).unwrap();
    assert!(pids.iter().all(|pid| maps(pid).lines().any(|l| l.contains("memfd:njoule-weights") && l.contains("r--s"))));
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    let gone = |pid: &Pid| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
        status.is_err() || status.is_ok_and(|status| status.contains("State:\tZ"))
    };
    wait_for("nobody is left", || pids.iter().all(gone));
}

#[test]
fn who_has_no_file_descriptors_left_does_not_blame_its_replicas() {
    let args =
        ["serve", &testdata("qwen3"), "--port", "0", "--threads", "1", "--replicas", "1", "--replica-timeout", "1"];
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 40; ulimit -Hn 64; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_njoule")]).args(args);
    command.env("NJOULE_OFFLINE", "1").stdin(Stdio::null());
    let (mut server, _log, address) = listening(command);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.0.id())).unwrap();
    let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(open.split_whitespace().collect::<Vec<_>>()[3..5], ["64", "64"], "as many as it may have");
    let before = replicas(&server);
    let idle: Vec<_> = (0..64).map_while(|_| TcpStream::connect(&address).ok()).collect();
    // Longer than a replica may give no sign of life.
    std::thread::sleep(Duration::from_secs(3));
    drop(idle);
    wait_until_whole(&address, 1, 0);
    assert_eq!(replicas(&server), before);
    assert_eq!(server.code_after(Signal::TERM), Some(0));
}

/// An artifact for stand-ins, and the variables that name them: nothing here has run on a device.
fn stand_in(dir: &std::path::Path) -> Option<(String, [(&'static str, String); 6])> {
    let (nrt, cc) = (neuron_fake("libneuron_fake.so")?, neuron_fake("neuronx-cc-fake")?);
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let artifact = path("artifact");
    let environment = [
        ("NJOULE_NRT", nrt.to_str().unwrap().to_owned()),
        ("NJOULE_NEURONX_CC", cc.to_str().unwrap().to_owned()),
        ("NJOULE_INSTANCE", "inf2.48xlarge".to_owned()),
        ("NJOULE_FAKE_INSTANCE", "inf2.48xlarge".to_owned()),
        ("NJOULE_CACHE", path("cache")),
        ("NEURON_RT_VISIBLE_CORES", "4-7".to_owned()),
    ];
    let model = testdata("qwen3");
    let built = ["build", &model, "-o", &artifact, "--context", "128", "--tp", "1", "--batch", "2", "--quant", "none"];
    let mut build = njoule(&[&built[..], &["--candidates", "16", "--max-neffs", "4", "--no-score", "-q"]].concat());
    let built = ran(build.envs(environment.clone()).output().unwrap());
    assert_eq!(built.code, 0, "{}", built.stderr);
    Some((artifact, environment))
}

#[test]
fn an_idle_stand_in_is_given_back_and_loaded_again_by_the_next_request() {
    let dir = scratch();
    let Some((artifact, environment)) = stand_in(dir.path()) else { return };
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let args = ["--idle-unload", "1", "--max-num-seqs", "2", "--served-model-name", "m"];
    let (mut server, _log, address) = start_with(&artifact, &args, &environment);
    wait_until_whole(&address, 1, 0);
    let body = json!({"prompt": "one more time", "max_tokens": 6, "temperature": 0, "ignore_eos": true});
    let (status, first) = post(&address, &body);
    assert_eq!(status, 200, "{first}");
    let unloaded = || {
        let health = health(&address);
        health["replicas"][0]["state"] == "unloaded" && health["status"] == "ok" && replicas(&server).is_empty()
    };
    wait_for("the idle replica is gone", unloaded);
    // It stays away until somebody wants it; who looks is told that it serves.
    let told = health(&address)["replicas"][0].clone();
    assert_eq!((&told["unloads"], &told["restarts"]), (&json!(1), &json!(0)));
    let break_even = &told["break_even"];
    assert!(break_even["load_s"].as_f64().unwrap() > 0.0 && break_even["load_cpu_s"].as_f64().unwrap() > 0.0, "{told}");
    assert!(break_even["pays_beyond_s"]["joules"].is_null(), "no watts are known: {told}");
    assert_eq!(break_even["pays_beyond_s"]["joules_at_least"], break_even["load_s"]);
    assert!(ask(&address, "GET /ready", "").starts_with("HTTP/1.1 200"));
    assert!(ask(&address, "GET /metrics", "").contains("njoule_replica_unloads_total{replica=\"0\"} 1"));
    assert!(unloaded(), "a look has loaded it");
    // More at once than run together: all wait for it.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (status, again) = post(&address, &body);
                assert_eq!((status, &again["choices"]), (200, &first["choices"]), "{again}");
            });
        }
    });
    wait_for("it is idle again", unloaded);
    assert_eq!(health(&address)["replicas"][0]["unloads"], 2);
    // Ended while there is none.
    assert_eq!(server.code_after(Signal::TERM), Some(0));
    run(&["serve", &testdata("qwen3"), "--port", "0", "--idle-unload", "5"]).fails_with(2, &["--idle-unload"]);
}

#[test]
fn four_stand_in_replicas_have_a_core_each_and_one_is_killed_under_load() {
    let dir = scratch();
    let Some((artifact, environment)) = stand_in(dir.path()) else { return };
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let args = ["--replicas", "auto", "--dispatch", "pack", "--max-num-seqs", "2", "--served-model-name", "m"];
    let (mut server, _log, address) = start_with(&artifact, &args, &environment);
    wait_until_whole(&address, 4, 0);
    let before = replicas(&server);
    let cores = |pid: &Pid| {
        let environ = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap();
        let all = String::from_utf8_lossy(&environ).into_owned();
        all.split('\0').find_map(|pair| pair.strip_prefix("NEURON_RT_VISIBLE_CORES=").map(str::to_owned)).unwrap()
    };
    assert_eq!(before.values().map(cores).collect::<Vec<_>>(), ["4", "5", "6", "7"]);
    let body =
        |i: usize| json!({"prompt": format!("{i} times"), "max_tokens": 6, "temperature": 0, "ignore_eos": true});
    let expected: Vec<Value> = (0..4).map(|i| post(&address, &body(i)).1["choices"].clone()).collect();
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (address, expected, answered) = (&address, &expected, &answered);
            scope.spawn(move || {
                for round in 0..4 {
                    let i = (client + round) % 4;
                    let (status, answer) = post(address, &body(i));
                    assert_eq!((status, &answer["choices"]), (200, &expected[i]), "{answer}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_for("load", || answered.load(Ordering::Relaxed) >= 2);
        kill_process(before[&0], Signal::KILL).unwrap();
    });
    assert_eq!(answered.into_inner(), 16);
    wait_until_whole(&address, 4, 1);
    assert_eq!(cores(&replicas(&server)[&0]), "4");
    assert_eq!(server.code_after(Signal::TERM), Some(0));
}

#[test]
fn what_no_replica_can_serve_is_said_once_and_ends_the_server() {
    let model = testdata("qwen2_moe");
    run(&["serve", &model, "--port", "0", "--replicas", "2"])
        .fails_with(1, &["no tokenizer", "no replica could be started (exit code 1)"]);
    run(&["serve", &testdata("qwen3"), "--port", "0", "--replicas", "0"]).fails_with(2, &["`auto` or a number"]);
}
