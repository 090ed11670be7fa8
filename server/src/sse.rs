//! Server-sent events: an answer as it is made.
//!
//! Invariant: the stream ends with what its [`Render`] writes last, also after an error; text that was sent is never taken
//! back; an answer that piled up is written in pieces as its client takes them; while nothing happens a comment is sent now
//! and then, so that nobody between takes the connection for dead.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Bytes;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use crate::body::Chunks;
use crate::error::ApiError;
use crate::generation::Generation;
use crate::mailbox::Part;
use crate::receipts::Receipts;
use crate::respond::Failure;

/// Writes an answer's parts as events.
pub trait Render: Send {
    /// What is written before the first part.
    fn begin(&mut self, _out: &mut Vec<u8>) {}
    /// A part of a sequence.
    fn part(&mut self, sequence: usize, part: Part, out: &mut Vec<u8>);
    /// All sequences have ended.
    fn end(&mut self, out: &mut Vec<u8>);
    /// The answer ends here by `error`.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>);
    /// A sign of life.
    fn ping(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b": ping\n\n");
    }
}

/// An answer as a stream of events.
pub struct EventStream {
    /// Given up at the end: what it cancels has ended then.
    generation: Option<Generation>,
    render: Box<dyn Render>,
    parts: Vec<(usize, Part)>,
    begun: bool,
    /// Whether it begins with its first part, not before.
    late: bool,
    ping: Pin<Box<Sleep>>,
    interval: Duration,
    failure: Failure,
}

impl EventStream {
    /// The events of `generation`, written by `render`; a sign of life after each `interval` of silence.
    pub fn new(generation: Generation, render: Box<dyn Render>, interval: Duration) -> EventStream {
        EventStream {
            generation: Some(generation),
            render,
            parts: Vec::new(),
            begun: false,
            late: false,
            ping: Box::pin(sleep(interval)),
            interval,
            failure: Failure::default(),
        }
    }

    /// Where it will stand what has ended it, if an error does.
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Begins with its first part, so that until then it may come from another replica; an error before that stands alone.
    pub fn late(self, late: bool) -> EventStream {
        EventStream { late, ..self }
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.begun, true) {
            self.render.begin(out);
        }
    }
}

impl Chunks for EventStream {
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut out = Vec::new();
        if !self.late {
            self.begin(&mut out);
        }
        while let Some(generation) = &mut self.generation {
            let polled = generation.poll(context, CHUNK, &mut self.parts);
            let done = generation.is_done();
            if !self.parts.is_empty() {
                self.begin(&mut out);
            }
            for (sequence, part) in self.parts.drain(..) {
                self.render.part(sequence, part, &mut out);
            }
            match polled {
                Poll::Ready(Ok(())) if done => {
                    self.render.end(&mut out);
                    self.generation = None;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.render.fail(&error, &mut out);
                    let _ = self.failure.set(error.code);
                    self.generation = None;
                }
                Poll::Pending => break,
            }
            if out.len() >= CHUNK {
                break;
            }
        }
        if !out.is_empty() {
            self.ping.as_mut().reset(Instant::now() + self.interval);
            return Poll::Ready(Some(out.into()));
        }
        if self.generation.is_none() {
            return Poll::Ready(None);
        }
        if self.ping.as_mut().poll(context).is_ready() {
            self.render.ping(&mut out);
            self.ping.as_mut().reset(Instant::now() + self.interval);
            return Poll::Ready(Some(out.into()));
        }
        Poll::Pending
    }

    fn receipts(&self) -> Option<Arc<Receipts>> {
        self.generation.as_ref()?.receipts().cloned()
    }
}

/// Writes `data: <json>` and the empty line after it.
pub fn data(out: &mut Vec<u8>, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    // Our own types have string keys and finite numbers, and a vector takes everything.
    let _ = serde_json::to_writer(&mut *out, value);
    out.extend_from_slice(b"\n\n");
}

/// Writes an event with a name.
pub fn named(out: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    data(out, value);
}

/// Ends a stream of OpenAI's.
pub fn done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// A stream of OpenAI's that ends by an error.
pub fn failed(out: &mut Vec<u8>, error: &ApiError) {
    data(out, &error.body());
    done(out);
}

/// Bytes after which a chunk is handed on, and of which no more is written at a time, about.
const CHUNK: usize = 8 << 10;
