//! The sequences of one HTTP request on the engine.
//!
//! Invariant: dropping a [`Generation`] cancels what still runs, within one step. hyper drops a response when its client
//! has gone, so this is all there is to cancellation.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use njoule_runtime::request::CancelToken;
use njoule_runtime::{FinishReason, Request};

use crate::app::App;
use crate::error::ApiError;
use crate::mailbox::{Mailbox, Part, Share};
use crate::model::Model;
use crate::receipts::Receipts;

/// What one HTTP request runs: `n` choices for each prompt.
pub struct Work {
    /// One per sequence, prompts in order.
    pub requests: Vec<Request>,
    /// How sequences and choices belong together.
    pub layout: Layout,
    /// The field that says which tokens may come, where one does.
    pub constraint: Option<&'static str>,
}

/// How sequences and choices belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Choices of a prompt.
    pub n: usize,
    /// Choices of a sequence: `n` where all choices of a prompt are the same anyway, else 1.
    pub copies: usize,
}

impl Layout {
    /// The choices that `sequence` answers.
    pub fn choices(&self, sequence: usize) -> Range<usize> {
        sequence * self.copies..(sequence + 1) * self.copies
    }

    /// Whether `sequence` is the first of its prompt.
    pub fn is_first(&self, sequence: usize) -> bool {
        self.choices(sequence).start.is_multiple_of(self.n)
    }

    /// The prompt of `sequence`.
    pub fn prompt(&self, sequence: usize) -> usize {
        sequence * self.copies / self.n
    }
}

/// The sequences of one HTTP request.
pub struct Generation {
    mailbox: Arc<Mailbox>,
    tokens: Vec<CancelToken>,
    /// Of a stream.
    receipts: Option<Arc<Receipts>>,
    /// Sequences that have not ended.
    open: usize,
    constraint: Option<&'static str>,
    /// Choices that a sequence answers.
    copies: usize,
}

impl Generation {
    /// Hands `work` to the engine, for an answer that is sent when it is whole.
    pub fn start(app: &App, model: &Model, work: Work) -> Result<Generation, ApiError> {
        Generation::submit(app, model, work, usize::MAX)
    }

    /// The same for an answer that is sent as it is made, token by token: the engine does not get ahead of the connection, and
    /// what waits for a slow client is bounded.
    pub fn stream(app: &App, model: &Model, mut work: Work) -> Result<Generation, ApiError> {
        work.requests.iter_mut().for_each(|request| request.max_unread_tokens = Some(AHEAD));
        let mut generation = Generation::submit(app, model, work, app.config.max_unread)?;
        generation.receipts = Some(Arc::new(Receipts::new(generation.tokens.clone())));
        Ok(generation)
    }

    /// `unread` is the number of bytes that may wait for the client.
    fn submit(app: &App, model: &Model, work: Work, unread: usize) -> Result<Generation, ApiError> {
        let open = work.requests.len();
        let mailbox = Arc::new(Mailbox::new(open, unread));
        let constraint = work.constraint;
        let copies = work.layout.copies;
        let tokens = Vec::with_capacity(open);
        let mut generation = Generation { mailbox, tokens, receipts: None, open, constraint, copies };
        for (index, request) in work.requests.into_iter().enumerate() {
            let share = Share { copies: work.layout.copies, first: work.layout.is_first(index) };
            let sink = generation.mailbox.sink(index, share, &app.metrics);
            // What was submitted before a refusal is cancelled by the drop.
            let (_, token) = model.engine().submit_to(request, sink)?;
            generation.tokens.push(token);
        }
        app.register(&generation.mailbox);
        Ok(generation)
    }

    /// Of a stream: who hears of what has been written.
    pub fn receipts(&self) -> Option<&Arc<Receipts>> {
        self.receipts.as_ref()
    }

    /// Whether every sequence has ended.
    pub fn is_done(&self) -> bool {
        self.open == 0
    }

    /// Moves what is new to `out`, with the number of its sequence: what about `most` bytes are written of, the rest the next
    /// time.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        most: usize,
        out: &mut Vec<(usize, Part)>,
    ) -> Poll<Result<(), ApiError>> {
        let first = out.len();
        ready!(self.mailbox.poll(context, most / self.copies, out)).map_err(|error| {
            match (error.code, self.constraint) {
                ("grammar_error", Some(param)) => ApiError { param: Some(param.into()), ..error },
                _ => error,
            }
        })?;
        for (sequence, part) in &out[first..] {
            if let Some(receipts) = &self.receipts {
                receipts.take(*sequence, part.tokens);
            }
            if let Some(end) = &part.end {
                self.open -= 1;
                match end.reason {
                    FinishReason::Deadline => return Poll::Ready(Err(timed_out())),
                    FinishReason::Cancelled => return Poll::Ready(Err(ApiError::draining())),
                    _ => {}
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for the end of all.
    pub async fn finish(mut self) -> Result<Vec<Part>, ApiError> {
        let mut all = Vec::new();
        all.resize_with(self.open, Part::default);
        let mut new = Vec::new();
        while !self.is_done() {
            poll_fn(|context| self.poll(context, usize::MAX, &mut new)).await?;
            for (index, part) in new.drain(..) {
                all[index].merge(part);
            }
        }
        Ok(all)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.open > 0 {
            self.tokens.iter().for_each(CancelToken::cancel);
        }
    }
}

/// Tokens of a stream that its connection may not have written: one that is written while the next is made.
const AHEAD: NonZeroUsize = NonZeroUsize::new(2).unwrap();

fn timed_out() -> ApiError {
    ApiError::new(hyper::StatusCode::REQUEST_TIMEOUT, "request_timeout", "the request took too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_numbered_prompt_by_prompt() {
        let sampled = Layout { n: 3, copies: 1 };
        assert_eq!((sampled.choices(4), sampled.prompt(4)), (4..5, 1));
        let greedy = Layout { n: 3, copies: 3 };
        assert_eq!((greedy.choices(1), greedy.prompt(1)), (3..6, 1));
    }
}
