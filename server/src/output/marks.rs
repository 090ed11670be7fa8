//! Answers in which marks stand around thoughts and calls: `<think>`, `<tool_call>` and their like.
//!
//! White space around reasoning and calls belongs to neither.

use super::calls::{read_bare, read_mistral, read_tagged};
use super::{Delta, Format, Looks, partial};

/// Splits one answer.
#[derive(Debug)]
pub struct Marks {
    looks: Looks,
    /// What begins and ends thoughts, as long as there may be some.
    thoughts: Option<(&'static str, &'static str)>,
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

impl Marks {
    pub fn new(looks: Looks) -> Marks {
        let thoughts = looks.thoughts.marks();
        let thinking = looks.thinking && thoughts.is_some();
        let stage = if thinking { Stage::Reasoning } else { Stage::Start };
        Marks { trim: thinking, thoughts, looks, stage, held: String::new(), gap: String::new(), calls: 0 }
    }

    pub fn calls(&self) -> usize {
        self.calls
    }

    pub fn is_thinking(&self) -> bool {
        self.stage == Stage::Reasoning
    }

    /// Whether thoughts may still come.
    pub fn may_think(&self) -> bool {
        self.is_thinking() || self.stage == Stage::Start && self.thoughts.is_some()
    }

    pub fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

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
        if trimmed.is_empty() && (self.thoughts.is_some() || bare) {
            return false;
        }
        if let Some((begin, _)) = self.thoughts {
            if let Some(rest) = trimmed.strip_prefix(begin) {
                self.held = rest.to_owned();
                (self.stage, self.trim) = (Stage::Reasoning, true);
                return true;
            }
            if begin.starts_with(trimmed) {
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
        // Whoever thinks has such marks.
        let Some((_, end)) = self.thoughts else { return false };
        if let Some(at) = self.held.find(end) {
            let thoughts: String = self.held.drain(..at + end.len()).collect();
            self.give(Delta::Reasoning, thoughts[..at].trim_end(), out);
            self.thoughts = None;
            (self.stage, self.trim) = (Stage::Start, true);
            return true;
        }
        let now = self.certain(end);
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
            _ => read_tagged(text.strip_suffix(END_TOOL_CALL).unwrap_or(text), &self.looks.tools),
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
            _ => "",
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

const TOOL_CALL: &str = "<tool_call>";
const END_TOOL_CALL: &str = "</tool_call>";
const TOOL_CALLS: &str = "[TOOL_CALLS]";
const PYTHON_TAG: &str = "<|python_tag|>";
