//! The connection: methods, sizes, keys, slow clients.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use njoule_server::ServerConfig;
use serde_json::json;

use crate::support::{call, plain, read_answer, read_head, start};

#[test]
fn every_status_has_an_error_in_openais_shape() {
    let live = start("qwen3", 2, ServerConfig { max_body: 1 << 20, ..ServerConfig::default() });
    let address = live.address;
    let json = ("content-type", "application/json");
    call(address, "GET", "/nowhere", &[], b"").is_error(404, "unknown_url");
    let wrong = call(address, "GET", "/v1/chat/completions", &[], b"");
    wrong.is_error(405, "method");
    assert_eq!(wrong.header("allow"), Some("POST"));
    call(address, "OPTIONS", "/v1/chat/completions", &[("origin", "http://evil.example")], b"").is_error(405, "method");
    let large = vec![b' '; (1 << 20) + 1];
    call(address, "POST", "/v1/completions", &[json], &large).is_error(413, "body_too_large");
    let form = ("content-type", "application/x-www-form-urlencoded");
    call(address, "POST", "/v1/completions", &[form], b"{}").is_error(415, "media_type");
    call(address, "POST", "/v1/completions", &[json, ("content-encoding", "gzip")], b"\x1f\x8b")
        .is_error(415, "media_type");
    let long = "a".repeat(70_000);
    call(address, "GET", "/health", &[("x-long", &long)], b"").is_error(431, "headers_too_large");
    let longer = "a".repeat(200_000);
    call(address, "GET", "/health", &[("x-long", &longer)], b"").is_error(431, "headers_too_large");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"NONSENSE\r\n\r\n").unwrap();
    read_answer(&mut BufReader::new(stream)).unwrap().is_error(400, "malformed_request");
}

#[test]
fn a_client_that_sends_all_of_a_large_body_first_gets_its_answer() {
    let live = plain();
    let body = vec![b' '; (8 << 20) + (900 << 10)];
    let mut stream = TcpStream::connect(live.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    stream.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes()).unwrap();
    stream.write_all(&body).expect("all of it is taken");
    let mut stream = BufReader::new(stream);
    read_answer(&mut stream).unwrap().is_error(413, "body_too_large");
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the end, and no reset");
}

#[test]
fn request_ids_go_in_and_out() {
    let live = plain();
    let id = |given: &str| {
        let answer = call(live.address, "GET", "/health", &[("x-request-id", given)], b"");
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("abc-1"), "abc-1");
    assert_ne!(id("a b"), "a b");
    assert_ne!(id(&"a".repeat(200)), "a".repeat(200));
}

#[test]
fn keys_open_the_api_and_probes_need_none() {
    let live = start("qwen3", 2, ServerConfig { api_keys: vec!["k1".into(), "k2".into()], ..ServerConfig::default() });
    let get = |path: &str, headers: &[(&str, &str)]| call(live.address, "GET", path, headers, b"");
    let denied = get("/v1/models", &[]);
    denied.is_error(401, "invalid_api_key");
    assert_eq!(denied.header("www-authenticate"), Some("Bearer"));
    get("/v1/models", &[("authorization", "Bearer no")]).is_error(401, "invalid_api_key");
    get("/nowhere", &[]).is_error(401, "invalid_api_key");
    assert_eq!(get("/v1/models", &[("authorization", "Bearer k2")]).status, 200);
    assert_eq!(get("/v1/models", &[("x-api-key", "k1")]).status, 200);
    for path in ["/live", "/ready", "/health", "/v1/health", "/ping", "/metrics", "/version"] {
        assert_eq!(get(path, &[]).status, 200, "{path}");
    }
    assert_eq!(call(live.address, "POST", "/ping", &[], b"").status, 200);
}

#[test]
fn a_name_that_was_pointed_at_this_machine_is_refused() {
    let live = plain();
    let mut stream = TcpStream::connect(live.address).unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n").unwrap();
    read_answer(&mut BufReader::new(stream)).unwrap().is_error(403, "host_not_allowed");
}

#[test]
fn pages_of_listed_origins_alone_may_read() {
    let (page, other) = (("origin", "https://chat.example"), ("origin", "https://evil.example"));
    let keys = vec!["k".to_owned()];
    let config = ServerConfig { allowed_origins: vec![page.1.into()], api_keys: keys, ..ServerConfig::default() };
    let live = start("qwen3", 2, config);
    let wants = [("access-control-request-method", "POST"), ("access-control-request-headers", "authorization")];
    let ask = |method: &str, origin: (&str, &str), more: &[(&str, &str)]| {
        call(live.address, method, "/v1/models", &[&[origin], more].concat(), b"")
    };
    let preflight = ask("OPTIONS", page, &wants);
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, Some(page.1)));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization"));
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
    let key = [("authorization", "Bearer k")];
    let answer = ask("GET", page, &key);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some(page.1)));
    assert!(
        answer.header("vary").unwrap().contains("origin")
            && answer.header("access-control-allow-credentials").is_none()
    );
    // Errors too may be read, and an origin is no key.
    let denied = ask("GET", page, &[]);
    denied.is_error(401, "invalid_api_key");
    assert_eq!(denied.header("access-control-allow-origin"), Some(page.1));
    ask("OPTIONS", page, &[]).is_error(401, "invalid_api_key");
    ask("OPTIONS", other, &[&wants[..], &key].concat()).is_error(405, "method");
    assert_eq!(ask("GET", other, &key).header("access-control-allow-origin"), None);
    let all = start("qwen3", 2, ServerConfig { allowed_origins: vec!["*".into()], ..ServerConfig::default() });
    let answer = call(all.address, "GET", "/v1/models", &[other], b"");
    assert_eq!(answer.header("access-control-allow-origin"), Some(other.1));
}

#[test]
fn a_client_of_http_1_0_gets_its_answer_and_its_stream() {
    let live = plain();
    for streamed in [false, true] {
        let body = json!({"prompt": "Hi", "max_tokens": 3, "stream": streamed}).to_string();
        let mut stream = TcpStream::connect(live.address).unwrap();
        let head = "POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\n";
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
        // It knows of no chunks: the end of the connection is the end of the answer.
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200") && !head.contains("transfer-encoding"), "{head}");
        let whole = serde_json::from_str::<serde_json::Value>(body).is_ok_and(|body| body["usage"].is_object());
        assert!(if streamed { body.ends_with("data: [DONE]\n\n") } else { whole }, "{body}");
    }
}

#[test]
fn a_client_that_waits_for_leave_to_send_gets_it() {
    let live = plain();
    let body = json!({"prompt": "Hi", "max_tokens": 2}).to_string();
    let mut stream = TcpStream::connect(live.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n";
    stream.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let leave = read_head(&mut stream).unwrap();
    assert_eq!(leave.status, 100);
    stream.get_mut().write_all(body.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut stream).unwrap().status, 200);
}

#[test]
fn clients_that_dawdle_are_told_and_cut_off() {
    let live = start("qwen3", 2, ServerConfig { read_timeout: Duration::from_millis(300), ..ServerConfig::default() });
    let start = Instant::now();
    let half = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(live.address).unwrap();
        stream.write_all(bytes).unwrap();
        BufReader::new(stream)
    };
    let mut waiting: Vec<_> = (0..64).map(|_| half(b"GET /health HTTP/1.1\r\nhost: local")).collect();
    let body = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    waiting.extend((0..64).map(|_| half(body)));
    for stream in &mut waiting {
        read_answer(stream).unwrap().is_error(408, "request_timeout");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(live.get("/health").status, 200);
}

#[test]
fn a_connection_serves_several_requests() {
    let live = plain();
    let mut stream = BufReader::new(TcpStream::connect(live.address).unwrap());
    let body = json!({"prompt": "Hi", "max_tokens": 2, "stream": true}).to_string();
    for _ in 0..3 {
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(head.as_bytes()).unwrap();
        assert!(read_answer(&mut stream).unwrap().text().ends_with("data: [DONE]\n\n"));
    }
}
