//! Clients that leave, too many of them, and the end of a server.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use njoule_server::{Outcome, Phase, Server, ServerConfig};
use serde_json::{Value, json};

use crate::support::{call, connect_from, plain, read_answer, read_chunk, read_head, send_json, send_json_from, start};

fn endless(stream: bool) -> Value {
    json!({"prompt": "Hi", "max_tokens": 400, "ignore_eos": true, "stream": stream})
}

#[test]
fn clients_that_leave_take_their_requests_with_them() {
    let live = plain();
    for round in 0..40 {
        // At most this many tokens can have been made when all have left.
        live.gate.allow(Some(round % 5));
        let mut clients: Vec<_> =
            (0..6).map(|i| send_json(live.address, "/v1/completions", &endless(i % 2 == 0))).collect();
        live.wait_for("taken in", |live| live.engine.stats().running + live.engine.stats().queued > 0);
        for (i, client) in clients.iter_mut().enumerate() {
            if i % 2 == 0 && round % 2 == 0 {
                assert_eq!(read_head(client).unwrap().status, 200);
            }
        }
        drop(clients);
        live.gate.allow(None);
        live.wait_until_idle();
    }
    let stats = live.engine.stats();
    assert!(stats.cancelled > 0 && stats.failed == 0, "{stats:?}");
    assert_eq!(live.get("/health").status, 200);
}

#[test]
fn too_many_are_refused_at_once_and_the_others_served() {
    let config = ServerConfig { max_queued_requests: 4, ..ServerConfig::default() };
    let live = start("qwen3", 2, config);
    live.gate.allow(Some(0));
    let body = json!({"prompt": "Hi", "max_tokens": 3, "ignore_eos": true});
    let mut taken = Vec::new();
    // Two that run, though the step that holds the first one keeps the second from beginning, and four that wait.
    for wanted in 1..=6 {
        taken.push(send_json(live.address, "/v1/completions", &body));
        let count = |live: &crate::support::Live| live.engine.stats().running + live.engine.stats().queued;
        live.wait_for("taken in", |live| live.engine.stats().running > 0 && count(live) >= wanted);
    }
    assert_eq!(live.get("/ready").status, 503);
    for _ in 0..50 {
        let begun = Instant::now();
        let refused = live.post("/v1/completions", &body);
        refused.is_error(503, "overloaded");
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds) && refused.header("retry-after-ms").is_some());
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    assert_eq!(live.metric("vllm:admission_rejections_total{model_name=\"m\",engine=\"0\",reason=\"requests\"}"), 50.0);
    live.gate.allow(None);
    for client in &mut taken {
        assert_eq!(read_answer(client).unwrap().status, 200);
    }
    assert_eq!(live.post("/v1/completions", &body).status, 200);
    assert_eq!(live.get("/ready").status, 200);
}

#[test]
fn as_many_at_once_as_run_and_wait_are_taken_and_the_next_is_refused() {
    let live = start("qwen3", 8, ServerConfig { max_queued_requests: 1, ..ServerConfig::default() });
    live.gate.allow(Some(0));
    let body = json!({"prompt": "Hi", "max_tokens": 3, "ignore_eos": true});
    let mut taken: Vec<_> = (0..9).map(|_| send_json(live.address, "/v1/completions", &body)).collect();
    live.wait_for("taken in", |live| live.engine.stats().running + live.engine.stats().queued == 9);
    live.post("/v1/completions", &body).is_error(503, "overloaded");
    assert_eq!(live.get("/ready").status, 503);
    live.gate.allow(None);
    assert!(taken.iter_mut().all(|one| read_answer(one).unwrap().status == 200));
}

#[test]
fn a_deadline_ends_by_an_error_that_claims_no_end() {
    let live = start(
        "qwen3",
        2,
        ServerConfig { request_timeout: Some(Duration::from_millis(300)), ..ServerConfig::default() },
    );
    live.gate.allow(Some(3));
    let chat =
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "ignore_eos": true, "stream": true});
    let mut anthropic = chat.clone();
    anthropic.as_object_mut().unwrap().remove("ignore_eos");
    let asked = [
        ("/v1/completions", endless(true)),
        ("/v1/chat/completions", chat),
        ("/v1/messages", anthropic),
        ("/v1/completions", endless(false)),
    ];
    for (path, body) in asked {
        live.gate.allow(Some(3));
        let mut client = send_json(live.address, path, &body);
        live.wait_for("running", |live| live.engine.stats().running == 1);
        // The step that is held ends behind the deadline.
        let begun = Instant::now();
        live.wait_for("late", |_| begun.elapsed() > Duration::from_millis(400));
        live.gate.allow(None);
        let answer = read_answer(&mut client).unwrap();
        if path == "/v1/messages" {
            let text = answer.text();
            assert!(text.contains("event: error") && text.contains("timeout_error"), "{text}");
            assert!(!text.contains("message_delta") && !text.contains("message_stop"), "{text}");
        } else if body["stream"] == true {
            let events = answer.events();
            let (last, before) = events.split_last().unwrap();
            assert_eq!(last["error"]["code"], "request_timeout", "{path}");
            assert!(
                !before.is_empty() && before.iter().all(|event| event["choices"][0]["finish_reason"].is_null()),
                "{before:?}"
            );
        } else {
            answer.is_error(408, "request_timeout");
        }
        live.wait_until_idle();
    }
}

#[test]
fn without_keys_one_address_that_fills_the_queue_keeps_no_other_out() {
    let live = start("qwen3", 1, ServerConfig { max_queued_requests: 4, ..ServerConfig::default() });
    live.gate.allow(Some(0));
    let count = |live: &crate::support::Live| live.engine.stats().running + live.engine.stats().queued;
    let body = |user: u32, tokens: u32| json!({"prompt": "Hi", "max_tokens": tokens, "ignore_eos": true, "user": format!("u{user}")});
    // As many users as requests: they are one address all the same.
    let mut greedy: Vec<_> = (0..5)
        .map(|user| {
            let sent = send_json(live.address, "/v1/completions", &body(user, 40));
            live.wait_for("taken in", |live| count(live) > user as usize);
            sent
        })
        .collect();
    live.post("/v1/completions", &body(9, 1)).is_error(503, "overloaded");
    let from = |last: u8| send_json_from([127, 0, 0, last], live.address, "/v1/completions", &body(0, 1));
    let mut others: Vec<_> = (2..=5)
        .map(|last| {
            let other = from(last);
            live.wait_for("taken in", |live| count(live) >= 4 + usize::from(last));
            other
        })
        .collect();
    // Twice the queue is full: addresses are many.
    read_answer(&mut from(6)).unwrap().is_error(503, "overloaded");
    // Steps for what runs and for theirs, and not for what the greedy one has waiting beside that.
    live.gate.allow(Some(60));
    for other in &mut others {
        assert_eq!(read_answer(other).unwrap().status, 200);
    }
    live.gate.allow(None);
    assert!(greedy.iter_mut().all(|one| read_answer(one).unwrap().status == 200));
}

#[test]
fn prompt_tokens_that_wait_are_bounded() {
    let config = ServerConfig { max_queued_tokens: 150, ..ServerConfig::default() };
    let live = start("qwen3", 1, config);
    live.gate.allow(Some(0));
    let body = json!({"prompt": vec![5; 100], "max_tokens": 1});
    let mut taken = Vec::new();
    // The first must run before the second comes: both together would wait for too much.
    for wanted in [(1, 0), (1, 1)] {
        taken.push(send_json(live.address, "/v1/completions", &body));
        live.wait_for("taken in", |live| (live.engine.stats().running, live.engine.stats().queued) == wanted);
    }
    live.post("/v1/completions", &body).is_error(503, "overloaded");
    live.gate.allow(None);
    assert!(taken.iter_mut().all(|client| read_answer(client).unwrap().status == 200));
}

#[test]
fn a_stop_loses_nothing_that_was_accepted() {
    let live = start("qwen3", 32, ServerConfig::default());
    live.gate.allow(Some(3));
    let body = json!({"prompt": "Hi", "max_tokens": 20, "stream": true, "ignore_eos": true,
        "stream_options": {"include_usage": true}});
    let mut streams: Vec<_> = (0..32).map(|_| send_json(live.address, "/v1/completions", &body)).collect();
    live.wait_for("taken in", |live| live.engine.stats().running + live.engine.stats().queued == 32);
    live.stop.stop();
    let begun = Instant::now();
    assert_eq!(live.get("/ready").status, 503);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((live.get("/live").status, live.get("/health").status), (200, 200));
    let refused = live.post("/v1/completions", &endless(false));
    refused.is_error(503, "draining");
    assert_eq!(refused.header("connection"), Some("close"));
    live.gate.allow(None);
    for stream in &mut streams {
        let events = read_answer(stream).unwrap().events();
        assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 20, "{events:?}");
    }
    assert_eq!(live.outcome(), Outcome::Drained);
}

#[test]
fn what_does_not_end_in_time_ends_with_an_error() {
    let live =
        start("qwen3", 2, ServerConfig { shutdown_timeout: Duration::from_millis(200), ..ServerConfig::default() });
    live.gate.allow(Some(2));
    let mut streamed = send_json(live.address, "/v1/completions", &endless(true));
    let mut whole = send_json(live.address, "/v1/completions", &endless(false));
    live.wait_for("running", |live| live.engine.stats().running + live.engine.stats().queued == 2);
    live.stop.stop();
    let answer = read_answer(&mut streamed).unwrap();
    let events = answer.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "draining", "{events:?}");
    read_answer(&mut whole).unwrap().is_error(503, "draining");
    live.gate.allow(None);
    assert_eq!(live.outcome(), Outcome::Drained);
}

#[test]
fn a_second_stop_ends_at_once() {
    let live = start("qwen3", 2, ServerConfig::default());
    live.gate.allow(Some(1));
    let mut client = send_json(live.address, "/v1/completions", &endless(true));
    live.wait_for("running", |live| live.engine.stats().running == 1);
    live.stop.stop();
    live.stop.stop();
    let begun = Instant::now();
    let answer = read_answer(&mut client).unwrap();
    assert_eq!(answer.events().last().unwrap()["error"]["code"], "draining");
    live.gate.allow(None);
    assert_eq!(live.outcome(), Outcome::Aborted);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_step_that_hangs_fails_what_runs_and_ends_the_server() {
    let live = start("qwen3", 2, ServerConfig { step_timeout: Duration::from_millis(200), ..ServerConfig::default() });
    live.gate.allow(Some(2));
    let mut streamed = send_json(live.address, "/v1/completions", &endless(true));
    let mut whole = send_json(live.address, "/v1/completions", &endless(false));
    let failed = read_answer(&mut whole).unwrap();
    failed.is_error(500, "engine_error");
    assert_eq!(failed.header("x-should-retry"), Some("true"));
    assert_eq!(read_answer(&mut streamed).unwrap().events().last().unwrap()["error"]["code"], "engine_error");
    live.get("/live").is_error(503, "dead");
    assert_eq!(live.outcome(), Outcome::EngineLost);
}

#[test]
fn who_does_not_read_is_cut_off_and_delays_nobody() {
    let live = start("qwen3", 9, ServerConfig { max_unread: 8 << 10, ..ServerConfig::default() });
    // Twenty alternatives for each token of eight choices: more than sockets hold.
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 480, "n": 8, "logprobs": true,
        "top_logprobs": 20, "stream": true, "ignore_eos": true, "temperature": 2});
    let mut deaf = send_json(live.address, "/v1/chat/completions", &body);
    assert_eq!(read_head(&mut deaf).unwrap().status, 200);
    assert!(!read_chunk(&mut deaf).unwrap().is_empty());
    live.ok("/v1/completions", &json!({"prompt": "Hi", "max_tokens": 20}));
    live.wait_until_idle();
    assert_eq!(live.metric("njoule_slow_readers_total"), 1.0);
}

#[test]
fn what_piled_up_is_written_in_pieces_and_whole() {
    let live = start("qwen3", 2, ServerConfig { max_unread: 1 << 20, ..ServerConfig::default() });
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 480, "logprobs": true, "top_logprobs": 20,
        "stream": true, "ignore_eos": true, "temperature": 2});
    let mut client = send_json(live.address, "/v1/chat/completions", &body);
    // All of it waits before any is read.
    live.wait_for("done", |live| live.metric("njoule_generation_tokens_total") == 480.0);
    assert_eq!(read_head(&mut client).unwrap().status, 200);
    let (mut all, mut largest) = (Vec::new(), 0);
    loop {
        let chunk = read_chunk(&mut client).unwrap();
        if chunk.is_empty() {
            break;
        }
        largest = largest.max(chunk.len());
        all.extend(chunk);
    }
    let text = String::from_utf8(all).unwrap();
    assert!(text.len() > 480 * 20 * 40 && largest <= 24 << 10, "{largest} of {}", text.len());
    assert_eq!(text.matches("\"top_logprobs\"").count(), 480);
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[test]
fn a_server_without_a_model_says_that_it_is_loading() {
    let server = Server::start(ServerConfig { port: 0, ..ServerConfig::default() }).unwrap();
    let get = |path: &str| call(server.address(), "GET", path, &[], b"");
    assert_eq!(server.phase(), Phase::Loading);
    assert_eq!(get("/live").status, 200);
    for path in ["/ready", "/health", "/ping", "/v1/models"] {
        get(path).is_error(503, "loading");
    }
    let json = ("content-type", "application/json");
    call(server.address(), "POST", "/v1/completions", &[json], b"{}").is_error(503, "loading");
    assert!(get("/metrics").text().contains("njoule_ready"));
    server.stopper().stop();
    assert_eq!(server.wait(), Outcome::Drained);
}

#[test]
fn connections_beyond_the_limit_are_told() {
    let live = start("qwen3", 2, ServerConfig { max_connections: 1, ..ServerConfig::default() });
    let mut first = TcpStream::connect(live.address).unwrap();
    first.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    // The first one's place is taken when a second one is refused; until then the second may have come first.
    let refused = (0..100).any(|_| {
        let mut stream = std::io::BufReader::new(TcpStream::connect(live.address).unwrap());
        stream.get_ref().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        read_answer(&mut stream).is_ok_and(|answer| answer.is_error(503, "overloaded").is_object())
    });
    assert!(refused);
    // The first one's address has one; another has none, and gets one, once.
    let mut other = send_json_from([127, 0, 0, 2], live.address, "/tokenize", &json!({"prompt": "Hi"}));
    assert_eq!(read_answer(&mut other).unwrap().status, 200);
    let mut more = std::io::BufReader::new(connect_from([127, 0, 0, 2], live.address));
    read_answer(&mut more).unwrap().is_error(503, "overloaded");
}
