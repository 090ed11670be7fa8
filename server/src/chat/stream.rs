//! Chat completions as they are made.

use serde::Serialize;

use super::{ToolCall, finish_reason};
use crate::energy::{Keeper, Used};
use crate::error::ApiError;
use crate::generation::Layout;
use crate::logprobs::{ChatLogprobs, Spelling};
use crate::mailbox::Part;
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
    logprobs: Option<Spelling>,
    prompt: Prompt,
    completion_tokens: usize,
    cached: usize,
    used: Used,
    keeper: Keeper,
    /// By sequence.
    sequences: Vec<Sequence>,
}

/// What is told of a prompt.
pub struct Prompt {
    pub tokens: usize,
    /// Where ids are asked for.
    pub ids: Option<Vec<u32>>,
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
    /// In the first chunk of each choice, where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<&'a ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

/// What a chunk has beside its delta.
#[derive(Clone, Copy, Default)]
struct Beside<'a> {
    logprobs: Option<&'a ChatLogprobs>,
    finish_reason: Option<&'static str>,
    token_ids: Option<&'a [u32]>,
    prompt_token_ids: Option<&'a [u32]>,
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
        logprobs: Option<Spelling>,
        prompt: Prompt,
        keeper: Keeper,
    ) -> Stream {
        let sequence = || Sequence { parser: Parser::new(looks.clone()), begun: false, tokens: 0 };
        let sequences = (0..layout.n / layout.copies).map(|_| sequence()).collect();
        Stream {
            head,
            options,
            layout,
            logprobs,
            prompt,
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
        beside: Beside<'_>,
        out: &mut Vec<u8>,
    ) {
        let state = &self.sequences[sequence];
        let so_far = || Usage::new(self.prompt.tokens, state.tokens).thought(state.parser.thought());
        let usage = self.options.continuous.then(so_far);
        let Beside { logprobs, finish_reason, token_ids, prompt_token_ids } = beside;
        let usage = (self.options.continuous || self.options.include_usage).then_some(usage);
        for index in self.layout.choices(sequence) {
            let delta: Delta<'_> = match text {
                Some(output::Delta::Content(text)) => Delta { content: Some(text), ..Delta::default() },
                Some(output::Delta::Reasoning(text)) => {
                    Delta { reasoning_content: Some(text), reasoning: Some(text), ..Delta::default() }
                }
                Some(output::Delta::Call(_)) | None => delta(index),
            };
            let choices = [Choice { index, delta, logprobs, finish_reason, token_ids }];
            sse::data(out, &Chunk { head: &self.head, choices: &choices, prompt_token_ids, usage });
        }
    }
}

impl Render for Stream {
    fn part(&mut self, sequence: usize, part: Part, out: &mut Vec<u8>) {
        let (mut deltas, calls_before) = (Vec::new(), self.sequences[sequence].parser.calls());
        let state = &mut self.sequences[sequence];
        state.tokens += part.tokens;
        state.parser.take(&part, &mut deltas);
        let begun = std::mem::replace(&mut state.begun, true);
        self.completion_tokens += part.tokens * self.layout.copies;
        self.used.add(&part);
        self.cached += if self.layout.is_first(sequence) { part.cached() } else { 0 };
        if !begun {
            let first = |_| Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
            let beside = Beside { prompt_token_ids: self.prompt.ids.as_deref(), ..Beside::default() };
            self.send(sequence, &first, None, beside, out);
        }
        let logprobs = self.logprobs.as_ref().filter(|_| !part.logprobs.is_empty());
        let logprobs = logprobs.map(|spelling| ChatLogprobs::new(spelling, &part.logprobs));
        let ids = self.prompt.ids.is_some().then(|| part.ids()).filter(|ids| !ids.is_empty());
        // With the first chunk of the part.
        let mut beside = Beside { logprobs: logprobs.as_ref(), token_ids: ids.as_deref(), ..Beside::default() };
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
            self.send(sequence, &tool, Some(delta), std::mem::take(&mut beside), out);
        }
        if beside.logprobs.is_some() || beside.token_ids.is_some() {
            // Tokens whose text is still held back, or that have none.
            let empty = |_| Delta { content: Some(""), ..Delta::default() };
            self.send(sequence, &empty, None, beside, out);
        }
        if let Some(reason) = finish_reason(&part, calls) {
            let end = Beside { finish_reason: Some(reason), ..Beside::default() };
            self.send(sequence, &|_| Delta::default(), None, end, out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let used = self.keeper.keep(&self.head.id, &self.used);
        if self.options.include_usage {
            let copies = self.layout.copies;
            let thought = self.sequences.iter().map(|sequence| sequence.parser.thought() * copies).sum();
            let usage = Usage::new(self.prompt.tokens, self.completion_tokens);
            let usage = Some(Some(usage.cached(self.cached).thought(thought).used(used)));
            sse::data(out, &Chunk { head: &self.head, choices: &[], prompt_token_ids: None, usage });
        }
        sse::done(out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        sse::failed(out, error);
    }
}
