//! The connection: methods, sizes, keys, slow clients.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use njoule_server::ServerConfig;
use serde_json::json;

use crate::support::{call, plain, read_answer, start};

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
    let long = "a".repeat(70_000);
    call(address, "GET", "/health", &[("x-long", &long)], b"").is_error(431, "headers_too_large");
    let longer = "a".repeat(200_000);
    call(address, "GET", "/health", &[("x-long", &longer)], b"").is_error(431, "headers_too_large");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"NONSENSE\r\n\r\n").unwrap();
    read_answer(&mut BufReader::new(stream)).unwrap().is_error(400, "malformed_request");
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
