//! What the log says of a request.

use std::fmt::Write as _;
use std::sync::{Mutex, Once};
use std::time::Duration;

use njoule_server::ServerConfig;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::support::{Live, call, start};

/// Lines of all servers of this process.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Writes them down.
struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("njoule_server::routes")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        LINES.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

/// The line of a request.
fn line_of(live: &Live, id: &str) -> String {
    let find = || LINES.lock().unwrap().iter().find(|line| line.contains(&format!("\"{id}\""))).cloned();
    live.wait_for("a line", |_| find().is_some());
    find().unwrap()
}

#[test]
fn a_line_tells_by_which_error_an_answer_or_its_stream_has_ended() {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| tracing::subscriber::set_global_default(Listener).expect("no other listens"));
    let timeout = Some(Duration::from_millis(100));
    let live = start("qwen3", 2, ServerConfig { request_timeout: timeout, ..ServerConfig::default() });
    let ask = |id: &str, body: &serde_json::Value| {
        let headers = [("content-type", "application/json"), ("x-request-id", id)];
        call(live.address, "POST", "/v1/completions", &headers, body.to_string().as_bytes())
    };
    ask("log-good", &json!({"prompt": "Hi", "max_tokens": 1}));
    ask("log-bad", &json!({"prompt": 3})).is_error(400, "invalid_value");
    let good = line_of(&live, "log-good");
    assert!(good.contains("status=200") && !good.contains("error="), "{good}");
    let bad = line_of(&live, "log-bad");
    assert!(bad.contains("status=400") && bad.contains("error=\"invalid_value\""), "{bad}");
    live.gate.allow(Some(2));
    let late = std::thread::scope(|scope| {
        let body = json!({"prompt": "Hi", "max_tokens": 400, "ignore_eos": true, "stream": true});
        let asked = scope.spawn(move || ask("log-late", &body));
        let begun = std::time::Instant::now();
        live.wait_for("late", |_| begun.elapsed() > Duration::from_millis(300));
        live.gate.allow(None);
        asked.join().unwrap()
    });
    assert_eq!(late.events().last().unwrap()["error"]["code"], "request_timeout");
    let late = line_of(&live, "log-late");
    assert!(late.contains("status=200") && late.contains("error=\"request_timeout\""), "{late}");
}
