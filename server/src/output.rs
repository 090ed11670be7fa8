//! What an answer's text is made of: reasoning, content, calls of tools.
//!
//! Invariant: the deltas do not depend on how the text came in pieces, and together they hold all of it: what looks like a
//! call and is none is content. White space around reasoning and calls belongs to neither.

mod calls;
#[cfg(test)]
mod tests;

pub use calls::Call;
use calls::{read_bare, read_mistral, read_tagged};

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
}

impl Format {
    /// The format that the source of a chat template shows.
    pub fn of_template(source: &str) -> Format {
        if source.contains("[TOOL_CALLS]") {
            Format::Mistral
        } else if source.contains("<tool_call>") {
            Format::Tagged
        } else if source.contains("<|python_tag|>") || source.contains("Environment: ipython") {
            Format::Bare
        } else {
            Format::Tagged
        }
    }

    /// Whether its marks are special tokens, which are left out of texts otherwise.
    pub fn has_special_marks(self) -> bool {
        self != Format::Tagged
    }
}

/// What to look for in an answer.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// Whether the model may think.
    pub thinks: bool,
    /// Whether the prompt has begun the thoughts already.
    pub thinking: bool,
    /// How calls are written, where there may be some.
    pub format: Option<Format>,
    /// Names of the tools.
    pub tools: Vec<String>,
    /// Calls at most.
    pub max_calls: Option<usize>,
}

/// Whether a model whose template has this source thinks before it answers.
pub fn thinks(source: &str) -> bool {
    source.contains(END_THINK)
}

/// Whether a prompt that ends like this has begun the thoughts.
pub fn ends_thinking(prompt: &str) -> bool {
    prompt.trim_end().ends_with(THINK)
}

/// Splits one answer.
#[derive(Debug)]
pub struct Parser {
    looks: Looks,
    stage: Stage,
    /// Text that may turn out to be something else.
    held: String,
    /// White space before a mark: text after all if no call follows.
    gap: String,
    /// Whether white space at the beginning of what comes next only separates.
    trim: bool,
    calls: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Thoughts may begin, or an answer that is a call.
    Start,
    Reasoning,
    Content,
    /// Behind the mark of a call.
    Call,
}

impl Parser {
    /// For one answer.
    pub fn new(looks: Looks) -> Parser {
        let stage = if looks.thinking { Stage::Reasoning } else { Stage::Start };
        Parser { trim: looks.thinking, looks, stage, held: String::new(), gap: String::new(), calls: 0 }
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes more text and appends what it makes certain.
    pub fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    /// The text has ended.
    pub fn finish(&mut self, out: &mut Vec<Delta>) {
        let rest = std::mem::take(&mut self.held);
        match self.stage {
            Stage::Reasoning => self.give(Delta::Reasoning, rest.trim_end(), out),
            Stage::Call => self.end_call(&rest, out),
            Stage::Start | Stage::Content if self.calls > 0 => self.give(Delta::Content, rest.trim_end(), out),
            Stage::Start | Stage::Content => self.give(Delta::Content, &rest, out),
        }
    }

    /// Does one thing; `false` if more text is needed.
    fn step(&mut self, out: &mut Vec<Delta>) -> bool {
        match self.stage {
            Stage::Start => self.start(),
            Stage::Reasoning => self.reason(out),
            Stage::Content => self.talk(out),
            Stage::Call => self.call(out),
        }
    }

    fn start(&mut self) -> bool {
        let bare = self.looks.format == Some(Format::Bare);
        let trimmed = self.held.trim_start();
        if trimmed.is_empty() && (self.looks.thinks || bare) {
            return false;
        }
        if self.looks.thinks {
            if let Some(rest) = trimmed.strip_prefix(THINK) {
                self.held = rest.to_owned();
                (self.stage, self.trim) = (Stage::Reasoning, true);
                return true;
            }
            if THINK.starts_with(trimmed) {
                return false;
            }
        }
        if bare {
            if trimmed.starts_with('{') || trimmed.starts_with(PYTHON_TAG) {
                self.stage = Stage::Call;
                return true;
            }
            if PYTHON_TAG.starts_with(trimmed) {
                return false;
            }
        }
        self.stage = Stage::Content;
        true
    }

    fn reason(&mut self, out: &mut Vec<Delta>) -> bool {
        if let Some(at) = self.held.find(END_THINK) {
            let thoughts: String = self.held.drain(..at + END_THINK.len()).collect();
            self.give(Delta::Reasoning, thoughts[..at].trim_end(), out);
            self.looks.thinks = false;
            (self.stage, self.trim) = (Stage::Start, true);
            return true;
        }
        let now = self.certain(END_THINK);
        self.give(Delta::Reasoning, &now, out);
        false
    }

    fn talk(&mut self, out: &mut Vec<Delta>) -> bool {
        let mark = self.mark();
        if mark.is_empty() {
            let all = std::mem::take(&mut self.held);
            self.give(Delta::Content, &all, out);
            return false;
        }
        if let Some(at) = self.held.find(mark) {
            let before: String = self.held.drain(..at + mark.len()).collect();
            let said = before[..at].trim_end().len();
            self.give(Delta::Content, &before[..said], out);
            self.gap = before[said..at].to_owned();
            self.stage = Stage::Call;
            return true;
        }
        let now = self.certain(mark);
        self.give(Delta::Content, &now, out);
        false
    }

    fn call(&mut self, out: &mut Vec<Delta>) -> bool {
        // The other formats have no closing mark.
        if self.looks.format != Some(Format::Tagged) {
            return false;
        }
        let Some(at) = self.held.find(END_TOOL_CALL) else { return false };
        let inner: String = self.held.drain(..at + END_TOOL_CALL.len()).collect();
        self.stage = Stage::Content;
        self.end_call(&inner, out);
        true
    }

    /// Reads what stands behind a mark, and takes it for content if it is no call.
    fn end_call(&mut self, text: &str, out: &mut Vec<Delta>) {
        let calls = match self.looks.format {
            Some(Format::Mistral) => read_mistral(text, TOOL_CALLS),
            Some(Format::Bare) => read_bare(text, PYTHON_TAG, &self.looks.tools),
            Some(Format::Tagged) | None => read_tagged(text.strip_suffix(END_TOOL_CALL).unwrap_or(text)),
        };
        let gap = std::mem::take(&mut self.gap);
        let Some(calls) = calls else {
            let text = format!("{gap}{}{text}", self.mark());
            self.give(Delta::Content, &text, out);
            return;
        };
        self.trim = true;
        for call in calls {
            if self.looks.max_calls.is_none_or(|most| self.calls < most) {
                self.calls += 1;
                out.push(Delta::Call(call));
            }
        }
    }

    /// What a call begins with within content.
    fn mark(&self) -> &'static str {
        match self.looks.format {
            Some(Format::Tagged) => TOOL_CALL,
            Some(Format::Mistral) => TOOL_CALLS,
            Some(Format::Bare) | None => "",
        }
    }

    /// Takes what is held but for what may begin `mark`, and white space before it.
    fn certain(&mut self, mark: &str) -> String {
        let ready = self.held.len() - partial(&self.held, mark);
        let ready = self.held[..ready].trim_end().len();
        self.held.drain(..ready).collect()
    }

    fn give(&mut self, kind: fn(String) -> Delta, text: &str, out: &mut Vec<Delta>) {
        let text = if self.trim { text.trim_start() } else { text };
        if !text.is_empty() {
            self.trim = false;
            out.push(kind(text.to_owned()));
        }
    }
}

/// Bytes at the end of `text` that may begin `mark`.
fn partial(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&n| mark.is_char_boundary(n) && text.ends_with(&mark[..n])).unwrap_or(0)
}

/// What begins thoughts.
pub const THINK: &str = "<think>";
/// What ends thoughts.
pub const END_THINK: &str = "</think>";
const TOOL_CALL: &str = "<tool_call>";
const END_TOOL_CALL: &str = "</tool_call>";
const TOOL_CALLS: &str = "[TOOL_CALLS]";
const PYTHON_TAG: &str = "<|python_tag|>";
