//! A message as it is made: blocks that are opened, extended and closed.

use serde_json::{Value, json};

use super::{Message, event, stop_reason, tool_id, usage};
use crate::energy::{Keeper, Used};
use crate::error::ApiError;
use crate::mailbox::Part;
use crate::output::{Delta, Looks, Parser};
use crate::sse::Render;

/// Writes the events.
pub struct Stream {
    id: String,
    model: String,
    parser: Parser,
    prompt_tokens: usize,
    tokens: usize,
    /// Number of the next block.
    next: usize,
    open: Option<Kind>,
    keeper: Keeper,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
}

impl Stream {
    pub fn new(id: String, model: String, looks: Looks, prompt_tokens: usize, keeper: Keeper) -> Stream {
        Stream { id, model, parser: Parser::new(looks), prompt_tokens, tokens: 0, next: 0, open: None, keeper }
    }

    fn start(&mut self, block: Value, out: &mut Vec<u8>) {
        event(
            out,
            "content_block_start",
            &json!({"type": "content_block_start", "index": self.next, "content_block": block}),
        );
    }

    fn delta(&mut self, delta: Value, out: &mut Vec<u8>) {
        event(out, "content_block_delta", &json!({"type": "content_block_delta", "index": self.next, "delta": delta}));
    }

    fn stop(&mut self, out: &mut Vec<u8>) {
        event(out, "content_block_stop", &json!({"type": "content_block_stop", "index": self.next}));
        self.next += 1;
        self.open = None;
    }

    /// Makes sure that a block of this kind is the open one.
    fn open(&mut self, kind: Kind, out: &mut Vec<u8>) {
        if self.open == Some(kind) {
            return;
        }
        if self.open.is_some() {
            self.stop(out);
        }
        self.start(
            match kind {
                Kind::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
                Kind::Text => json!({"type": "text", "text": ""}),
            },
            out,
        );
        self.open = Some(kind);
    }

    fn write(&mut self, delta: Delta, out: &mut Vec<u8>) {
        match delta {
            Delta::Reasoning(text) => {
                self.open(Kind::Thinking, out);
                self.delta(json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Delta::Content(text) => {
                self.open(Kind::Text, out);
                self.delta(json!({"type": "text_delta", "text": text}), out);
            }
            Delta::Call(call) => {
                if self.open.is_some() {
                    self.stop(out);
                }
                let number = self.next;
                let block =
                    json!({"type": "tool_use", "id": tool_id(&self.id, number), "name": call.name, "input": {}});
                self.start(block, out);
                self.delta(json!({"type": "input_json_delta", "partial_json": call.arguments}), out);
                self.stop(out);
            }
        }
    }
}

impl Render for Stream {
    fn begin(&mut self, out: &mut Vec<u8>) {
        let message = Message {
            id: &self.id,
            model: &self.model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            // What of it is cached is known when it has run: the end says so.
            usage: usage(self.prompt_tokens, 0, 0, None),
        };
        event(out, "message_start", &json!({"type": "message_start", "message": message.json()}));
    }

    fn part(&mut self, _sequence: usize, part: Part, out: &mut Vec<u8>) {
        self.tokens += part.tokens;
        let mut deltas = Vec::new();
        self.parser.take(&part, &mut deltas);
        deltas.into_iter().for_each(|delta| self.write(delta, out));
        let (stop_reason, stop_sequence) = stop_reason(&part, self.parser.calls());
        if stop_reason.is_some() {
            if self.next == 0 && self.open.is_none() {
                self.open(Kind::Text, out);
            }
            if self.open.is_some() {
                self.stop(out);
            }
            let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
            let mut used = Used::default();
            used.add(&part);
            let used = self.keeper.keep(&self.id, &used);
            let usage = usage(self.prompt_tokens, part.cached(), self.tokens, used);
            event(out, "message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage}));
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        event(out, "message_stop", &json!({"type": "message_stop"}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, "error", &error.anthropic());
    }

    fn ping(&mut self, out: &mut Vec<u8>) {
        event(out, "ping", &json!({"type": "ping"}));
    }
}
