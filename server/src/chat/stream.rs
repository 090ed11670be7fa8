//! Chat completions as they are made.

use std::sync::Arc;

use serde::Serialize;

use super::{ToolCall, finish_reason};
use crate::energy::{Keeper, Used};
use crate::error::ApiError;
use crate::generation::Layout;
use crate::logprobs::ChatLogprobs;
use crate::mailbox::Part;
use crate::model::Model;
use crate::output::{self, Looks, Parser};
use crate::params::StreamOptions;
use crate::sse::{self, Render};
use crate::usage::{Head, Usage};

/// Writes the chunks.
pub struct Stream {
    head: Head,
    options: StreamOptions,
    layout: Layout,
    /// Where log-probabilities are asked for.
    logprobs: Option<Arc<Model>>,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached: usize,
    used: Used,
    keeper: Keeper,
    /// By sequence.
    sequences: Vec<Sequence>,
}

struct Sequence {
    parser: Parser,
    begun: bool,
    tokens: usize,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<&'a ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCall; 1]>,
}

impl Stream {
    pub fn new(
        head: Head,
        options: StreamOptions,
        layout: Layout,
        looks: Looks,
        logprobs: Option<Arc<Model>>,
        prompt_tokens: usize,
        keeper: Keeper,
    ) -> Stream {
        let sequence = || Sequence { parser: Parser::new(looks.clone()), begun: false, tokens: 0 };
        let sequences = (0..layout.n / layout.copies).map(|_| sequence()).collect();
        Stream {
            head,
            options,
            layout,
            logprobs,
            prompt_tokens,
            completion_tokens: 0,
            cached: 0,
            used: Used::default(),
            keeper,
            sequences,
        }
    }

    fn send(
        &self,
        sequence: usize,
        delta: &dyn Fn(usize) -> Delta<'static>,
        text: Option<&output::Delta>,
        logprobs: Option<&ChatLogprobs>,
        finish_reason: Option<&'static str>,
        out: &mut Vec<u8>,
    ) {
        let usage = self.options.continuous.then(|| Usage::new(self.prompt_tokens, self.sequences[sequence].tokens));
        let usage = (self.options.continuous || self.options.include_usage).then_some(usage);
        for index in self.layout.choices(sequence) {
            let delta: Delta<'_> = match text {
                Some(output::Delta::Content(text)) => Delta { content: Some(text), ..Delta::default() },
                Some(output::Delta::Reasoning(text)) => {
                    Delta { reasoning_content: Some(text), reasoning: Some(text), ..Delta::default() }
                }
                Some(output::Delta::Call(_)) | None => delta(index),
            };
            let choices = [Choice { index, delta, logprobs, finish_reason }];
            sse::data(out, &Chunk { head: &self.head, choices: &choices, usage });
        }
    }
}

impl Render for Stream {
    fn part(&mut self, sequence: usize, part: Part, out: &mut Vec<u8>) {
        let (mut deltas, calls_before) = (Vec::new(), self.sequences[sequence].parser.calls());
        let state = &mut self.sequences[sequence];
        state.tokens += part.tokens;
        state.parser.push(&part.text, &mut deltas);
        if part.end.is_some() {
            state.parser.finish(&mut deltas);
        }
        let begun = std::mem::replace(&mut state.begun, true);
        self.completion_tokens += part.tokens * self.layout.copies;
        self.used.add(&part);
        self.cached += if self.layout.is_first(sequence) { part.cached() } else { 0 };
        if !begun {
            let first = |_| Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
            self.send(sequence, &first, None, None, None, out);
        }
        let logprobs = self.logprobs.as_ref().filter(|_| !part.logprobs.is_empty());
        let logprobs = logprobs.map(|model| ChatLogprobs::new(model, &part.logprobs));
        let mut logprobs = logprobs.as_ref();
        let mut calls = calls_before;
        for delta in &deltas {
            let call = match delta {
                output::Delta::Call(call) => Some((call, calls)),
                _ => None,
            };
            calls += usize::from(call.is_some());
            let tool = |choice: usize| {
                let call = call.map(|(call, i)| {
                    [ToolCall { index: Some(i), ..ToolCall::new(&self.head.id, choice, i, call.clone()) }]
                });
                Delta { tool_calls: call, ..Delta::default() }
            };
            self.send(sequence, &tool, Some(delta), logprobs.take(), None, out);
        }
        if logprobs.is_some() {
            // Tokens whose text is still held back, or that have none.
            let empty = |_| Delta { content: Some(""), ..Delta::default() };
            self.send(sequence, &empty, None, logprobs, None, out);
        }
        if let Some(reason) = finish_reason(&part, calls) {
            self.send(sequence, &|_| Delta::default(), None, None, Some(reason), out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let used = self.keeper.keep(&self.head.id, &self.used);
        if self.options.include_usage {
            let usage = Usage::new(self.prompt_tokens, self.completion_tokens).cached(self.cached).used(used);
            sse::data(out, &Chunk { head: &self.head, choices: &[], usage: Some(Some(usage)) });
        }
        sse::done(out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        sse::failed(out, error);
    }
}
