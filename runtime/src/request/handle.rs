//! The client's end of a request: events out, cancellation in.
//!
//! Invariant: the terminal event is sent once. [`Reply`] sends one when it is dropped without, so that unwinding the
//! engine thread answers every request it held.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

use super::{Event, FinishReason, Request, RequestError, StopMatch, Usage};
use crate::engine::Doorbell;
use crate::sampler::TokenLogprob;

/// Where a request's events go; called on the engine thread, so it must not block.
pub trait EventSink: Send {
    /// Passes `event` on; an error says that nobody listens any more and cancels the request.
    fn send(&mut self, event: Event) -> Result<(), SinkClosed>;
}

/// Nobody listens to a request any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkClosed;

impl EventSink for Sender<Event> {
    fn send(&mut self, event: Event) -> Result<(), SinkClosed> {
        Sender::send(self, event).map_err(|_| SinkClosed)
    }
}

/// Flags that client and engine share.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    /// Rows of prompt logits sent and not yet received.
    unread_rows: AtomicUsize,
    /// Tokens sent and not yet received.
    unread_tokens: AtomicUsize,
    /// At so many of these it stands,
    most_unread: Option<NonZeroUsize>,
    /// but not while this is set.
    reads_slowly: AtomicBool,
}

impl Control {
    pub fn new(request: &Request) -> Self {
        Control { most_unread: request.max_unread_tokens, ..Control::default() }
    }

    /// Whether as many tokens are unread as may be.
    pub fn is_full(&self) -> bool {
        let full = |most: NonZeroUsize| self.unread_tokens.load(Ordering::Relaxed) >= most.get();
        self.most_unread.is_some_and(full) && !self.reads_slowly.load(Ordering::Relaxed)
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub fn unread_rows(&self) -> usize {
        self.unread_rows.load(Ordering::Relaxed)
    }
}

/// Cancels one request from anywhere.
#[derive(Clone)]
pub struct CancelToken {
    pub(crate) control: Arc<Control>,
    pub(crate) doorbell: Arc<Doorbell>,
}

impl CancelToken {
    /// Ends the request before the engine's next step (the step that is running is finished).
    pub fn cancel(&self) {
        self.control.cancelled.store(true, Ordering::Relaxed);
        self.doorbell.ring();
    }

    /// Tells the engine that `rows` rows of [`Event::PromptLogits`] were consumed. [`RequestHandle`] does it by itself;
    /// an own [`EventSink`] must.
    pub fn rows_read(&self, rows: usize) {
        self.control.unread_rows.fetch_sub(rows, Ordering::Relaxed);
        self.doorbell.ring();
    }

    /// Tells the engine that `tokens` events of [`Event::Token`] were consumed, of a request with
    /// [`max_unread_tokens`](Request::max_unread_tokens). As with rows, an own [`EventSink`] must.
    pub fn tokens_read(&self, tokens: usize) {
        let before = self.control.unread_tokens.fetch_sub(tokens, Ordering::Relaxed);
        if self
            .control
            .most_unread
            .is_some_and(|most| before >= most.get() && before.saturating_sub(tokens) < most.get())
        {
            self.doorbell.ring();
        }
    }

    /// Tells the engine that the request is, or is no longer, read by somebody who is there and slow: then it does not stand,
    /// and its tokens pile up at the reader's.
    pub fn reads_slowly(&self, slowly: bool) {
        if self.control.reads_slowly.swap(slowly, Ordering::Relaxed) != slowly {
            self.doorbell.ring();
        }
    }
}

/// An accepted request: an iterator over its events, which ends after the terminal one. Dropping it cancels the request.
pub struct RequestHandle {
    pub(crate) id: u64,
    pub(crate) events: Receiver<Event>,
    pub(crate) token: CancelToken,
    pub(crate) ended: bool,
}

impl RequestHandle {
    /// Number of the request in its engine, counted from 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Ends the request within one step; what was generated so far has been or will be delivered, and the terminal
    /// event says [`FinishReason::Cancelled`].
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Something that can cancel the request while another thread waits for its events.
    pub fn cancel_token(&self) -> CancelToken {
        self.token.clone()
    }

    /// The next event if there is one.
    pub fn try_recv(&mut self) -> Result<Event, TryRecvError> {
        if self.ended {
            return Err(TryRecvError::Disconnected);
        }
        let event = self.events.try_recv()?;
        Ok(self.received(event))
    }

    /// The next event, waiting at most `timeout`.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        if self.ended {
            return Err(RecvTimeoutError::Disconnected);
        }
        let event = self.events.recv_timeout(timeout)?;
        Ok(self.received(event))
    }

    /// Waits for the end and gathers everything.
    pub fn wait(mut self) -> Result<Completion, RequestError> {
        let mut all = Completion::default();
        for event in &mut self {
            match event {
                Event::PromptLogits { rows, .. } => all.prompt_logits.extend_from_slice(&rows),
                Event::PromptLogprobs { tokens, .. } => all.prompt_logprobs.extend(tokens),
                Event::Token { id, text, logprob, .. } => {
                    all.token_ids.push(id);
                    all.text.push_str(&text);
                    all.logprobs.extend(logprob);
                }
                Event::Finished { reason, matched, text, usage } => {
                    all.text.push_str(&text);
                    all.reason = reason;
                    all.matched = matched;
                    all.usage = usage;
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Ok(all)
    }

    fn received(&mut self, event: Event) -> Event {
        self.ended = event.is_terminal();
        if let Event::PromptLogits { vocab, rows, .. } = &event {
            self.token.rows_read(rows.len() / (*vocab).max(1));
        }
        if let Event::Token { .. } = &event {
            self.token.tokens_read(1);
        }
        event
    }
}

impl Iterator for RequestHandle {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        // The reply's drop sends a terminal event, so a closed channel without one means that the engine's side is gone
        // for good (its thread was killed from outside).
        let event = self.events.recv().unwrap_or(Event::Failed(RequestError::ShutDown));
        Some(self.received(event))
    }
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        if !self.ended {
            self.cancel();
        }
    }
}

/// All events of a finished request put together.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Generated tokens (the one that ended the answer included).
    pub token_ids: Vec<u32>,
    /// Their text, if the request had a source of text.
    pub text: String,
    /// One per generated token, if asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// One per prompt token but the first, if asked for.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// `[prompt, vocab]`, if asked for.
    pub prompt_logits: Vec<f32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// What ended it.
    pub matched: Option<StopMatch>,
    /// Figures.
    pub usage: Usage,
}

impl Default for Completion {
    fn default() -> Self {
        Completion {
            token_ids: Vec::new(),
            text: String::new(),
            logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            prompt_logits: Vec::new(),
            reason: FinishReason::Cancelled,
            matched: None,
            usage: Usage::default(),
        }
    }
}

/// The engine's end of a request.
pub struct Reply {
    sink: Box<dyn EventSink>,
    control: Arc<Control>,
    ended: bool,
}

impl Reply {
    pub fn new(sink: Box<dyn EventSink>, control: Arc<Control>) -> Self {
        Reply { sink, control, ended: false }
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Sends one event; a client that has gone cancels the request.
    pub fn send(&mut self, event: Event) {
        debug_assert!(!self.ended, "an event after the terminal one");
        self.ended |= event.is_terminal();
        if let Event::PromptLogits { vocab, rows, .. } = &event {
            let rows = rows.len() / (*vocab).max(1);
            self.control.unread_rows.fetch_add(rows, Ordering::Relaxed);
        }
        if let Event::Token { .. } = &event {
            self.control.unread_tokens.fetch_add(1, Ordering::Relaxed);
        }
        if self.sink.send(event).is_err() {
            self.control.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.ended {
            self.send(Event::Failed(RequestError::ShutDown));
        }
    }
}
