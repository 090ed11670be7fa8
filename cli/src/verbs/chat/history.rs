//! What was said so far, and which of it still fits.
//!
//! Invariant: turns alternate, a person's first; dropping takes pairs from the front, so that they go on alternating.

use njoule_models::chat::message;
use serde_json::Value;

/// A conversation.
#[derive(Debug, Default)]
pub struct History {
    /// The system message, which is never dropped.
    pub system: Option<String>,
    /// A person's and the model's, in turn.
    turns: Vec<String>,
}

/// A conversation as ids.
#[derive(Debug, PartialEq, Eq)]
pub struct Fitted {
    /// The ids.
    pub ids: Vec<u32>,
    /// Turns that were dropped for it.
    pub dropped: usize,
}

impl History {
    /// Nothing said yet.
    pub fn new(system: Option<String>) -> History {
        History { system, turns: vec![] }
    }

    /// Forgets what was said.
    pub fn clear(&mut self) {
        self.turns.clear();
    }

    /// A person says something.
    pub fn ask(&mut self, text: &str) {
        self.turns.push(text.to_owned());
    }

    /// Forgets the last thing a person said.
    pub fn take_back(&mut self) {
        self.turns.pop();
    }

    /// The model has answered.
    pub fn answer(&mut self, text: String) {
        self.turns.push(text);
    }

    /// Drops the oldest turns until no more than `limit` ids are left, or nothing but the last turn.
    pub fn fit(
        &mut self,
        limit: usize,
        encode: impl Fn(Vec<Value>) -> anyhow::Result<Vec<u32>>,
    ) -> anyhow::Result<Fitted> {
        let mut dropped = 0;
        loop {
            let ids = encode(self.messages())?;
            if ids.len() <= limit || self.turns.len() < 3 {
                return Ok(Fitted { ids, dropped });
            }
            self.turns.drain(..2);
            dropped += 2;
        }
    }

    fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| message("system", text));
        let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        system.chain(self.turns.iter().enumerate().map(|(i, text)| message(role(i), text))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_turns_go_first_and_the_system_message_stays() {
        let mut history = History::new(Some("s".into()));
        history.ask("1");
        history.answer("2".into());
        history.ask("3");
        history.answer("4".into());
        history.ask("5");
        let encode = |messages: Vec<Value>| Ok(vec![0; messages.len()]);
        assert_eq!(history.fit(4, encode).unwrap(), Fitted { ids: vec![0; 4], dropped: 2 });
        assert_eq!(history.messages()[0], message("system", "s"));
        assert_eq!(history.messages()[1], message("user", "3"));
        assert_eq!(history.fit(1, encode).unwrap(), Fitted { ids: vec![0; 2], dropped: 2 });
        assert_eq!(history.messages()[1], message("user", "5"));
    }
}
