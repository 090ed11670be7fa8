//! The log: lines on stderr, as text or as JSON.
//!
//! A subscriber of `tracing` that knows events and no spans: every event of the server carries its own fields.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::model::unix_seconds;

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
        let (level, seconds) = (event.metadata().level(), unix_seconds());
        match self.format {
            Format::Json => {
                let mut line = Map::new();
                line.insert("time".into(), seconds.into());
                line.insert("level".into(), level.as_str().to_ascii_lowercase().into());
                line.insert("message".into(), fields.message.into());
                line.extend(fields.others);
                format!("{}\n", Value::Object(line))
            }
            Format::Text => {
                let mut line = format!("{seconds} {} {}", level.as_str().to_ascii_lowercase(), fields.message);
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
        // To a thousandth: figures of a log are times.
        self.put(field, ((value * 1e3).round() / 1e3).into());
    }
}
