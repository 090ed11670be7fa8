//! The log: lines on stderr, as text or as JSON.
//!
//! A subscriber of `tracing` that knows events and no spans: every event of the server carries its own fields.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Writes events to stderr.
#[derive(Debug)]
pub struct Log {
    format: Format,
    level: Level,
}

impl Log {
    /// Events of `level` and above.
    pub fn new(format: Format, level: Level) -> Log {
        Log { format, level }
    }

    /// Makes it the process's log; one that is there stays.
    pub fn install(self) {
        let _ = tracing::subscriber::set_global_default(self);
    }

    fn line(&self, event: &Event<'_>) -> String {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (level, time) = (event.metadata().level(), now());
        match self.format {
            Format::Json => {
                let mut line = Map::new();
                line.insert("time".into(), time.into());
                line.insert("level".into(), level.as_str().to_ascii_lowercase().into());
                line.insert("message".into(), fields.message.into());
                line.extend(fields.others);
                format!("{}\n", Value::Object(line))
            }
            Format::Text => {
                let mut line = format!("{time:.3} {} {}", level.as_str().to_ascii_lowercase(), fields.message);
                for (name, value) in &fields.others {
                    // Writing to a string does not fail.
                    let _ = match value {
                        Value::String(text) if !text.contains([' ', '"', '\n']) => write!(line, " {name}={text}"),
                        value => write!(line, " {name}={value}"),
                    };
                }
                line + "\n"
            }
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level && metadata.target().starts_with("njoule")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        // A log that cannot be written has nobody to tell.
        let _ = std::io::stderr().lock().write_all(self.line(event).as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.put(field, text.into()) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // Figures of a log are times.
        self.put(field, thousandths(value).into());
    }
}

/// Seconds of Unix time, to a thousandth.
fn now() -> f64 {
    thousandths(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()))
}

fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what a log would write.
    struct Kept(Log, Arc<Mutex<Vec<String>>>);

    impl Subscriber for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.is_event()
        }

        fn new_span(&self, attributes: &Attributes<'_>) -> Id {
            self.0.new_span(attributes)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            self.1.lock().unwrap().push(self.0.line(event));
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn times_have_milliseconds() {
        let written = |format| {
            let lines = Arc::<Mutex<Vec<String>>>::default();
            let log = Kept(Log::new(format, Level::INFO), lines.clone());
            let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            tracing::subscriber::with_default(log, || tracing::info!(milliseconds = 1.23456, "request"));
            (begun, lines.lock().unwrap().remove(0))
        };
        let (begun, line) = written(Format::Json);
        let line: Value = serde_json::from_str(&line).unwrap();
        let time = line["time"].as_f64().unwrap();
        assert!((begun - 0.001..begun + 60.0).contains(&time) && thousandths(time) == time, "{line} after {begun}");
        assert_eq!(line["milliseconds"], 1.235);
        let (_, line) = written(Format::Text);
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!((time.split_once('.').unwrap().1.len(), rest), (3, "info request milliseconds=1.235\n"));
    }
}
