//! Completions as they are made.

use serde::Serialize;

use super::{Choice, State, Writer, finish_reason};
use crate::energy::{Keeper, Used};
use crate::error::ApiError;
use crate::mailbox::Part;
use crate::params::StreamOptions;
use crate::sse::{self, Render};
use crate::usage::{Head, Usage};

/// Writes the chunks.
pub struct Stream {
    writer: Writer,
    head: Head,
    options: StreamOptions,
    /// By sequence.
    states: Vec<Sequence>,
    completion_tokens: usize,
    cached: usize,
    used: Used,
    keeper: Keeper,
}

#[derive(Clone, Default)]
struct Sequence {
    state: State,
    /// Whether a chunk of it was sent.
    begun: bool,
    tokens: usize,
    /// The prompt's log-probabilities until they are complete.
    waiting: Vec<njoule_runtime::sampler::TokenLogprob>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: &'a [Choice],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl Stream {
    pub fn new(writer: Writer, head: Head, options: StreamOptions, keeper: Keeper) -> Stream {
        let sequences = writer.prompts.len() * writer.layout.n / writer.layout.copies;
        Stream {
            writer,
            head,
            options,
            states: vec![Sequence::default(); sequences],
            completion_tokens: 0,
            cached: 0,
            used: Used::default(),
            keeper,
        }
    }

    fn usage(&self, sequence: usize) -> Option<Option<Usage>> {
        let prompt = self.writer.prompts[self.writer.layout.prompt(sequence)].len();
        let so_far = self.options.continuous.then(|| Usage::new(prompt, self.states[sequence].tokens));
        (self.options.continuous || self.options.include_usage).then_some(so_far)
    }
}

impl Render for Stream {
    fn part(&mut self, sequence: usize, mut part: Part, out: &mut Vec<u8>) {
        let state = &mut self.states[sequence];
        state.tokens += part.tokens;
        self.completion_tokens += part.tokens * self.writer.layout.copies;
        self.used.add(&part);
        self.cached += if self.writer.layout.is_first(sequence) { part.cached() } else { 0 };
        if !state.state.echoed && self.writer.echo.is_some() {
            // The prompt goes out in one piece, before the first token.
            state.waiting.append(&mut part.prompt_logprobs);
            if part.tokens == 0 && part.end.is_none() {
                return;
            }
            part.prompt_logprobs = std::mem::take(&mut state.waiting);
        }
        let (text, logprobs) = self.writer.write(sequence, &mut part, &mut state.state, false);
        let finish_reason = finish_reason(&part);
        let token_ids = self.writer.ids(&part).filter(|ids| !ids.is_empty());
        if text.is_empty() && logprobs.is_none() && finish_reason.is_none() && token_ids.is_none() {
            return;
        }
        // With the first chunk.
        let first = !std::mem::replace(&mut self.states[sequence].begun, true);
        let prompt_token_ids = self.writer.prompt_ids(sequence).filter(|_| first);
        let choice =
            Choice { index: 0, text, logprobs, finish_reason, prompt_logprobs: None, token_ids, prompt_token_ids };
        for index in self.writer.layout.choices(sequence) {
            let choices = [Choice { index, ..choice.clone() }];
            sse::data(out, &Chunk { head: &self.head, choices: &choices, usage: self.usage(sequence) });
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let used = self.keeper.keep(&self.head.id, &self.used);
        if self.options.include_usage {
            let usage = Usage::new(self.writer.prompt_tokens(), self.completion_tokens).cached(self.cached).used(used);
            sse::data(out, &Chunk { head: &self.head, choices: &[], usage: Some(Some(usage)) });
        }
        sse::done(out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        sse::failed(out, error);
    }
}
