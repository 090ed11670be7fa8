//! Log-probabilities in the shapes of chat and of text completions.
//!
//! Invariant: a token's number is the same `f32` as itself and among the most likely, so that clients may compare them; its
//! offset counts characters of the text, also behind characters that several tokens make.

use std::collections::BTreeMap;
use std::sync::Arc;

use njoule_runtime::sampler::TokenLogprob;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::model::Model;

/// How tokens are named.
#[derive(Clone)]
pub struct Spelling {
    model: Arc<Model>,
    /// `token_id:7` and not its text: texts of some tokens are no UTF-8, and different tokens may have the same.
    as_ids: bool,
}

impl Spelling {
    /// Of this model's tokens, by their ids if `as_ids`.
    pub fn new(model: &Arc<Model>, as_ids: bool) -> Spelling {
        Spelling { model: model.clone(), as_ids }
    }

    fn name(&self, id: u32) -> String {
        if self.as_ids { format!("token_id:{id}") } else { self.model.token_string(id) }
    }
}

/// `choices[].logprobs` of chat.
#[derive(Debug, Serialize)]
pub struct ChatLogprobs {
    /// One per token.
    pub content: Vec<ChatToken>,
    /// Of a refusal: there is none.
    pub refusal: Option<()>,
}

/// A token of chat.
#[derive(Debug, Serialize)]
pub struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatAlternative>,
}

#[derive(Debug, Serialize)]
struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// Of generated tokens.
    pub fn new(spelling: &Spelling, tokens: &[TokenLogprob]) -> ChatLogprobs {
        let spelled = |id: u32| (spelling.name(id), spelling.model.token_bytes(id));
        let token = |t: &TokenLogprob| {
            let (token, bytes) = spelled(t.id);
            let alternative = |&(id, logprob): &(u32, f32)| {
                let (token, bytes) = spelled(id);
                ChatAlternative { token, logprob, bytes }
            };
            ChatToken { token, logprob: t.logprob, bytes, top_logprobs: t.top.iter().map(alternative).collect() }
        };
        ChatLogprobs { content: tokens.iter().map(token).collect(), refusal: None }
    }
}

/// `choices[].logprobs` of text completions.
#[derive(Debug, Default, Serialize)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Top>>,
    text_offset: Vec<usize>,
}

/// The most likely tokens by their text, best first. Where two have the same text the better one counts.
#[derive(Debug)]
struct Top(Vec<(String, f32)>);

impl Serialize for Top {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

impl TextLogprobs {
    /// Appends a token that has no log-probability: the first of a prompt. One that is not `shown` is not in the text.
    pub fn push_first(&mut self, spelling: &Spelling, id: u32, shown: bool, place: &mut TextPlace) {
        self.push(spelling, id, shown, None, None, place);
    }

    /// Appends a token at `place`, which moves on if it is `shown`.
    pub fn push_token(&mut self, spelling: &Spelling, token: &TokenLogprob, shown: bool, place: &mut TextPlace) {
        let mut top: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
        let own = (token.id, token.logprob);
        let wanted = if token.top.is_empty() { &[][..] } else { std::slice::from_ref(&own) };
        for &(id, logprob) in token.top.iter().chain(wanted) {
            let text = spelling.name(id);
            if !top.iter().any(|(other, _)| *other == text) {
                top.push((text, logprob));
            }
        }
        self.push(spelling, token.id, shown, Some(token.logprob), Some(Top(top)), place);
    }

    fn push(
        &mut self,
        spelling: &Spelling,
        id: u32,
        shown: bool,
        logprob: Option<f32>,
        top: Option<Top>,
        place: &mut TextPlace,
    ) {
        let bytes = if shown { spelling.model.token_bytes(id) } else { Vec::new() };
        self.text_offset.push(place.pass(&bytes));
        self.tokens.push(spelling.name(id));
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top);
    }
}

/// Where the next token begins in the text.
#[derive(Clone, Debug, Default)]
pub struct TextPlace {
    /// Characters that are complete.
    characters: usize,
    /// Bytes of one that is not.
    begun: Vec<u8>,
}

impl TextPlace {
    /// Passes a token, and says which character it begins in.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let goes_on = bytes.first().is_none_or(|byte| byte & 0xc0 == 0x80);
        // One that is broken off shows U+FFFD.
        let start = self.characters + usize::from(!self.begun.is_empty() && !goes_on);
        self.begun.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.begun);
        let mut chunks = all.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.characters += chunk.valid().chars().count();
            let broken = chunk.invalid();
            let is_begun = std::str::from_utf8(broken).is_err_and(|error| error.error_len().is_none());
            if is_begun && chunks.peek().is_none() {
                self.begun = broken.to_vec();
            } else {
                self.characters += usize::from(!broken.is_empty());
            }
        }
        start
    }
}

/// `prompt_logprobs` of vLLM: null for the first token, then the tokens by their ids.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct PromptLogprobs(Vec<Option<BTreeMap<u32, PromptToken>>>);

/// A token of a prompt, or one that could have stood there.
#[derive(Debug, Serialize)]
pub struct PromptToken {
    logprob: f32,
    /// Place among the most likely, from 1, where it is known.
    rank: Option<usize>,
    decoded_token: String,
}

impl PromptLogprobs {
    /// Of a prompt whose tokens but the first are `tokens`.
    pub fn new(model: &Model, tokens: &[TokenLogprob]) -> PromptLogprobs {
        let token = |t: &TokenLogprob| {
            let mut all = BTreeMap::new();
            for (rank, &(id, logprob)) in t.top.iter().enumerate() {
                let decoded_token = model.token_string(id);
                all.insert(id, PromptToken { logprob, rank: Some(rank + 1), decoded_token });
            }
            all.entry(t.id).or_insert_with(|| PromptToken {
                logprob: t.logprob,
                rank: None,
                decoded_token: model.token_string(t.id),
            });
            Some(all)
        };
        PromptLogprobs(std::iter::once(None).chain(tokens.iter().map(token)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_characters_of_the_text_however_tokens_cut_it() {
        let text = "aä€𝄞z";
        for cut in 1..=3 {
            let mut place = TextPlace::default();
            for (at, token) in text.as_bytes().chunks(cut).enumerate() {
                let begins = text.char_indices().filter(|(start, _)| *start <= at * cut).count() - 1;
                assert_eq!(place.pass(token), begins, "tokens of {cut} bytes, {at}");
            }
            assert_eq!(place.pass(b""), text.chars().count());
        }
    }

    #[test]
    fn what_is_no_text_counts_as_it_is_shown() {
        let cases: [(&[&[u8]], &[usize]); 3] = [
            (&[b"a\xe2\x82", b"b", b"c"], &[0, 2, 3]),
            (&[b"\x80", b"\xff\xff", b"x"], &[0, 1, 3]),
            (&[b"\xc3", b"", b"\xa4", b"x"], &[0, 0, 0, 1]),
        ];
        for (tokens, offsets) in cases {
            let mut place = TextPlace::default();
            let found: Vec<usize> = tokens.iter().map(|token| place.pass(token)).collect();
            assert_eq!(found, offsets, "{tokens:?}");
        }
    }
}
