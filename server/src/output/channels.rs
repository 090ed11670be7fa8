//! Answers in channels (gpt-oss: OpenAI's harmony format): messages, each with a header that says whom it is for.
//!
//! ```text
//! <|channel|>analysis<|message|>thoughts<|end|><|start|>assistant<|channel|>final<|message|>text
//! <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>
//! ```
//!
//! Invariant: text that begins with no header is content as it stands.

use super::{Call, Delta, Looks, partial};

/// Splits one answer.
#[derive(Debug)]
pub struct Channels {
    stage: Stage,
    /// Text that is not decided yet.
    held: String,
    /// Whether tools may be called.
    calls_tools: bool,
    max_calls: Option<usize>,
    calls: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Before the first message: there may be none.
    Start,
    /// Within a header.
    Header,
    Thoughts,
    Content,
    /// Arguments of this tool.
    Arguments(String),
    /// Behind a message.
    Between,
}

impl Channels {
    pub fn new(looks: &Looks) -> Channels {
        let stage = if looks.thinking { Stage::Thoughts } else { Stage::Start };
        let calls_tools = looks.format.is_some();
        Channels { stage, held: String::new(), calls_tools, max_calls: looks.max_calls, calls: 0 }
    }

    pub fn calls(&self) -> usize {
        self.calls
    }

    pub fn is_thinking(&self) -> bool {
        self.stage == Stage::Thoughts
    }

    pub fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    pub fn finish(&mut self, out: &mut Vec<Delta>) {
        let rest = std::mem::take(&mut self.held);
        match self.stage {
            // What looked like the beginning of a header.
            Stage::Start => give(Delta::Content, rest, out),
            Stage::Header | Stage::Between => {}
            _ => self.body(rest, true, out),
        }
    }

    /// Does one thing; `false` if more text is needed.
    fn step(&mut self, out: &mut Vec<Delta>) -> bool {
        match self.stage {
            Stage::Start => {
                if HEADERS.iter().any(|mark| self.held.starts_with(mark)) {
                    self.stage = Stage::Header;
                } else if HEADERS.iter().any(|mark| mark.starts_with(self.held.as_str())) {
                    return false;
                } else {
                    self.stage = Stage::Content;
                }
                true
            }
            Stage::Header => {
                let Some(at) = self.held.find(MESSAGE) else { return false };
                let header: String = self.held.drain(..at + MESSAGE.len()).collect();
                self.stage = self.read_header(&header[..at]);
                true
            }
            Stage::Between => {
                let Some(at) = self.held.find(START) else {
                    // White space, or nothing that was meant.
                    let keep = partial(&self.held, START);
                    self.held.drain(..self.held.len() - keep);
                    return false;
                };
                self.held.drain(..at);
                self.stage = Stage::Header;
                true
            }
            Stage::Thoughts | Stage::Content | Stage::Arguments(_) => self.read_body(out),
        }
    }

    fn read_body(&mut self, out: &mut Vec<Delta>) -> bool {
        let found = ENDS.iter().filter_map(|mark| Some((self.held.find(mark)?, *mark))).min();
        if let Some((at, mark)) = found {
            let rest = self.held.split_off(at);
            let body = std::mem::replace(&mut self.held, rest);
            self.body(body, true, out);
            // The next header begins with this mark.
            if mark != START {
                self.held.drain(..mark.len());
            }
            self.stage = Stage::Between;
            return true;
        }
        let keep = ENDS.iter().map(|mark| partial(&self.held, mark)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        let body = std::mem::replace(&mut self.held, rest);
        self.body(body, false, out);
        false
    }

    /// A part of a message's body, or the rest of it.
    fn body(&mut self, text: String, whole: bool, out: &mut Vec<Delta>) {
        match &self.stage {
            Stage::Thoughts => give(Delta::Reasoning, text, out),
            // Arguments are read when they are complete.
            Stage::Arguments(_) if !whole => self.held.insert_str(0, &text),
            Stage::Arguments(name) => {
                let is_object = serde_json::from_str::<serde_json::Map<_, _>>(text.trim()).is_ok();
                if !is_object {
                    give(Delta::Content, text, out);
                } else if self.max_calls.is_none_or(|most| self.calls < most) {
                    self.calls += 1;
                    out.push(Delta::Call(Call { name: name.clone(), arguments: text.trim().to_owned() }));
                }
            }
            _ => give(Delta::Content, text, out),
        }
    }

    /// What a message is, by its header: `<|start|>assistant to=functions.f<|channel|>commentary json`, in parts.
    fn read_header(&self, header: &str) -> Stage {
        let words = || header.split([' ', '<', '>', '|']);
        let recipient = words().find_map(|word| word.strip_prefix("to="));
        if let Some(name) = recipient.filter(|_| self.calls_tools) {
            return Stage::Arguments(name.strip_prefix("functions.").unwrap_or(name).to_owned());
        }
        let channel = header.split_once(CHANNEL).map(|(_, channel)| channel.trim_start());
        if channel.is_some_and(|channel| channel.starts_with("analysis")) { Stage::Thoughts } else { Stage::Content }
    }
}

fn give(kind: fn(String) -> Delta, text: String, out: &mut Vec<Delta>) {
    if !text.is_empty() {
        out.push(kind(text));
    }
}

/// What begins thoughts.
pub const ANALYSIS: &str = "<|channel|>analysis<|message|>";
/// What begins an answer.
pub const FINAL: &str = "<|channel|>final<|message|>";
/// What ends an answer.
pub const ANSWER_ENDS: [&str; 2] = ["<|return|>", "<|call|>"];
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";
/// What a header begins with; the first one stands behind `<|start|>assistant` of the prompt.
const HEADERS: [&str; 3] = [CHANNEL, START, " to="];
/// What a message ends with.
const ENDS: [&str; 4] = ["<|end|>", "<|call|>", "<|return|>", START];
