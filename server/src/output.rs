//! What an answer's text is made of: reasoning, content, calls of tools.
//!
//! Invariant: the deltas do not depend on how the text came in pieces, and together they hold all of it but its marks: what looks
//! like a call and is none is content.

mod calls;
mod channels;
mod marks;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::Value;

pub use calls::Call;
use channels::Channels;
pub use channels::{ANSWER_ENDS as CHANNEL_ENDS, FINAL};
use marks::Marks;

use crate::mailbox::Part;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// Thoughts.
    Reasoning(String),
    /// What is said.
    Content(String),
    /// A call of a tool.
    Call(Call),
}

/// How a model writes calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen and others on ChatML; also the form with
    /// `<function=name>` that Qwen3-Coder writes.
    Tagged,
    /// `{"name": ..., "parameters": {...}}` instead of an answer: Llama 3.
    Bare,
    /// `[TOOL_CALLS]` and a list, or a name and its arguments: Mistral.
    Mistral,
    /// A message to the tool, in a channel: gpt-oss.
    Channels,
}

impl Format {
    /// The format that the source of a chat template shows.
    pub fn of_template(source: &str) -> Format {
        if source.contains(CHANNEL) {
            Format::Channels
        } else if source.contains("[TOOL_CALLS]") {
            Format::Mistral
        } else if source.contains("<tool_call>") {
            Format::Tagged
        } else if source.contains("<|python_tag|>") || source.contains("Environment: ipython") {
            Format::Bare
        } else {
            Format::Tagged
        }
    }
}

/// How a model writes thoughts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thoughts {
    /// It has none.
    #[default]
    None,
    /// Between `<think>` and `</think>`.
    Tags,
    /// Between `[THINK]` and `[/THINK]`: Magistral.
    Brackets,
    /// In a channel of their own: gpt-oss.
    Channels,
}

impl Thoughts {
    /// Those that the source of a chat template shows.
    pub fn of_template(source: &str) -> Thoughts {
        if source.contains(CHANNEL) {
            Thoughts::Channels
        } else if source.contains("[/THINK]") {
            Thoughts::Brackets
        } else if source.contains("</think>") {
            Thoughts::Tags
        } else {
            Thoughts::None
        }
    }

    /// What stands before and behind them, where that is all there is to it.
    pub fn marks(self) -> Option<(&'static str, &'static str)> {
        match self {
            Thoughts::Tags => Some(("<think>", "</think>")),
            Thoughts::Brackets => Some(("[THINK]", "[/THINK]")),
            Thoughts::None | Thoughts::Channels => None,
        }
    }

    /// Whether a prompt that ends like this has begun them.
    pub fn are_begun_by(self, prompt: &str) -> bool {
        let begin = match self {
            Thoughts::Channels => Some(channels::ANALYSIS),
            marked => marked.marks().map(|(begin, _)| begin),
        };
        begin.is_some_and(|begin| prompt.trim_end().ends_with(begin))
    }
}

/// A tool that may be called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments, or null.
    pub parameters: Value,
}

/// What to look for in an answer.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// How the model thinks.
    pub thoughts: Thoughts,
    /// Whether the prompt has begun the thoughts already.
    pub thinking: bool,
    /// How calls are written, where there may be some.
    pub format: Option<Format>,
    /// What may be called.
    pub tools: Arc<[Tool]>,
    /// Calls at most.
    pub max_calls: Option<usize>,
}

impl Looks {
    /// Whether some of its marks are special tokens, which are left out of texts otherwise.
    pub fn has_special_marks(&self) -> bool {
        matches!(self.thoughts, Thoughts::Brackets | Thoughts::Channels)
            || self.format.is_some_and(|format| format != Format::Tagged)
    }
}

/// Splits one answer.
#[derive(Debug)]
pub struct Parser {
    way: Way,
    /// Tokens of thoughts so far.
    thought: usize,
}

#[derive(Debug)]
enum Way {
    Marks(Marks),
    Channels(Channels),
}

impl Parser {
    /// For one answer.
    pub fn new(looks: Looks) -> Parser {
        let way = match looks.thoughts {
            // A bare call is forced there: it has no header.
            Thoughts::Channels if looks.format != Some(Format::Bare) => Way::Channels(Channels::new(&looks)),
            _ => Way::Marks(Marks::new(looks)),
        };
        Parser { way, thought: 0 }
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        match &self.way {
            Way::Marks(marks) => marks.calls(),
            Way::Channels(channels) => channels.calls(),
        }
    }

    /// Tokens of thoughts so far, without their marks.
    pub fn thought(&self) -> usize {
        self.thought
    }

    /// Takes a part of the answer, and its end if it has it, and appends what that makes certain.
    pub fn take(&mut self, part: &Part, out: &mut Vec<Delta>) {
        let mut from = 0;
        for step in &part.steps {
            if !self.may_think() {
                break;
            }
            let before = self.is_thinking();
            self.push(&part.text[from..step.end], out);
            from = step.end;
            self.thought += usize::from(before && self.is_thinking());
        }
        self.push(&part.text[from..], out);
        if part.end.is_some() {
            self.finish(out);
        }
        join(out);
    }

    /// Takes more text and appends what it makes certain.
    pub fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        match &mut self.way {
            Way::Marks(marks) => marks.push(text, out),
            Way::Channels(channels) => channels.push(text, out),
        }
    }

    /// The text has ended.
    pub fn finish(&mut self, out: &mut Vec<Delta>) {
        match &mut self.way {
            Way::Marks(marks) => marks.finish(out),
            Way::Channels(channels) => channels.finish(out),
        }
    }

    fn is_thinking(&self) -> bool {
        match &self.way {
            Way::Marks(marks) => marks.is_thinking(),
            Way::Channels(channels) => channels.is_thinking(),
        }
    }

    fn may_think(&self) -> bool {
        match &self.way {
            Way::Marks(marks) => marks.may_think(),
            Way::Channels(_) => true,
        }
    }
}

/// Puts neighbours of one kind together.
fn join(deltas: &mut Vec<Delta>) {
    deltas.dedup_by(|next, last| match (last, next) {
        (Delta::Reasoning(last), Delta::Reasoning(next)) | (Delta::Content(last), Delta::Content(next)) => {
            last.push_str(next);
            true
        }
        _ => false,
    });
}

/// Bytes at the end of `text` that may begin `mark`.
fn partial(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&n| mark.is_char_boundary(n) && text.ends_with(&mark[..n])).unwrap_or(0)
}

const CHANNEL: &str = "<|channel|>";
