//! Keeps what a client writes from becoming a special token.
//!
//! Every character of a special token's spelling that occurs in a client's string is replaced by a private-use character
//! that occurs nowhere else, one for each character. The template is rendered on these strings; special tokens that
//! the text then contains are the template's own. There the text is cut, the characters are put back, and what lies
//! between is encoded as plain text. Beginnings and ends of strings that could join with a neighbour to spell a special
//! token are replaced in the same way.
//!
//! Protected are special tokens, and those other added tokens that the template itself writes (`<tool_call>`, `</think>`);
//! the latter stay recognised in what the assistant said, because there the model wrote them. Other added tokens are text
//! to the model, and are encoded as Hugging Face does.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::{Map, Value};

use super::ChatInput;
use crate::tokenizer::added::Part;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// The strings of a chat with special tokens made unrecognisable.
#[derive(Debug)]
pub struct Guard {
    input: ChatInput,
    originals: HashMap<char, char>,
}

impl Guard {
    /// `None` where nothing needs to be guarded against.
    pub fn new(tokenizer: &Tokenizer, template: &str, input: &ChatInput) -> Option<Guard> {
        let visible = tokenizer.added_tokens().iter().filter(|t| !t.content.trim().is_empty());
        let (special, other): (Vec<_>, Vec<_>) = visible.partition(|t| t.special);
        let special: Vec<&str> = special.into_iter().map(|t| t.content.as_str()).collect();
        let mentioned = other.into_iter().map(|t| t.content.as_str()).filter(|text| template.contains(text));
        let all: Vec<&str> = special.iter().copied().chain(mentioned).collect();

        let (for_assistant, for_others) = (Spellings::new(&special)?, Spellings::new(&all)?);
        let needed = input_strings(input, &mut |text, assistant| {
            let spellings = if assistant { &for_assistant } else { &for_others };
            !spellings.dangerous(text).is_empty()
        });
        if !needed {
            return None;
        }
        let mut used: HashSet<char> = template.chars().filter(|c| is_private(*c)).collect();
        input_strings(input, &mut |text, _| {
            used.extend(text.chars().filter(|c| is_private(*c)));
            false
        });
        let alphabet: HashSet<char> = all.iter().flat_map(|text| text.chars()).collect();
        let free = PRIVATE.into_iter().flatten().filter(|c| !used.contains(c));
        let masks: HashMap<char, char> = alphabet.into_iter().zip(free).collect();
        let masked = mapped(input, &|text, assistant| {
            let spellings = if assistant { &for_assistant } else { &for_others };
            spellings.mask(text, &masks)
        });
        Some(Guard { input: masked, originals: masks.into_iter().map(|(c, mask)| (mask, c)).collect() })
    }

    /// What to render.
    pub fn input(&self) -> &ChatInput {
        &self.input
    }

    /// Ids of the text that [`Guard::input`] was rendered to, unless it certainly has more than `most`.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str, most: usize) -> Result<Vec<u32>, TokenizerError> {
        let mut restored = String::with_capacity(text.len());
        let mut parts = Vec::new();
        for part in tokenizer.split_added(text) {
            let start = restored.len();
            restored.extend(text[part.start..part.end].chars().map(|c| *self.originals.get(&c).unwrap_or(&c)));
            parts.push(Part { start, end: restored.len(), token: part.token });
        }
        tokenizer.check_length(&restored, most)?;
        tokenizer.encode_split(&restored, &parts)
    }
}

/// Some tokens' spellings, and what of a string could become one.
struct Spellings<'a> {
    search: AhoCorasick,
    texts: &'a [&'a str],
}

impl<'a> Spellings<'a> {
    fn new(texts: &'a [&'a str]) -> Option<Spellings<'a>> {
        // Fails only beyond four billion patterns or states.
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).ok()?;
        Some(Spellings { search, texts })
    }

    /// Byte ranges that spell a token, or could begin or end one.
    fn dangerous(&self, text: &str) -> Vec<(usize, usize)> {
        let mut ranges: Vec<(usize, usize)> = self.search.find_iter(text).map(|m| (m.start(), m.end())).collect();
        let trimmed = text.trim();
        let offset = text.len() - text.trim_start().len();
        if trimmed.is_empty() {
            return ranges;
        }
        for token in self.texts {
            // Word characters alone are words: `user` is no piece of `<|user|>`.
            let is_piece = |piece: &str| {
                piece.chars().any(|c| !c.is_alphanumeric() && c != '_') || token.chars().all(|c| c.is_alphanumeric())
            };
            let cuts = || (1..token.len()).filter(|&at| token.is_char_boundary(at));
            if let Some(at) = cuts().find(|&at| trimmed.starts_with(&token[at..]) && is_piece(&token[at..])) {
                ranges.push((offset, offset + token.len() - at));
            }
            if let Some(at) = cuts().rev().find(|&at| trimmed.ends_with(&token[..at]) && is_piece(&token[..at])) {
                ranges.push((offset + trimmed.len() - at, offset + trimmed.len()));
            }
            if trimmed.len() < token.len() && token.contains(trimmed) && is_piece(trimmed) {
                ranges.push((offset, offset + trimmed.len()));
            }
        }
        ranges
    }

    fn mask(&self, text: &str, masks: &HashMap<char, char>) -> String {
        let mut ranges = self.dangerous(text);
        ranges.sort_unstable();
        let mut ranges = ranges.into_iter().peekable();
        let mut until = 0;
        let masked = text.char_indices().map(|(at, c)| {
            while let Some((_, end)) = ranges.next_if(|(start, _)| *start <= at) {
                until = until.max(end);
            }
            if at < until { *masks.get(&c).unwrap_or(&c) } else { c }
        });
        masked.collect()
    }
}

const PRIVATE: [std::ops::RangeInclusive<char>; 3] =
    ['\u{f0000}'..='\u{ffffd}', '\u{100000}'..='\u{10fffd}', '\u{e000}'..='\u{f8ff}'];

fn is_private(c: char) -> bool {
    PRIVATE.iter().any(|range| range.contains(&c))
}

/// Whether `test` holds for some string of the input; `true` beside it means that the assistant wrote it.
fn input_strings(input: &ChatInput, test: &mut dyn FnMut(&str, bool) -> bool) -> bool {
    let found = input.messages.iter().any(|m| any_string(m, &mut |text| test(text, is_assistant(m))));
    let lists = input.tools.iter().chain(&input.documents).flatten();
    found || lists.chain(input.variables.values()).any(|value| any_string(value, &mut |text| test(text, false)))
}

fn any_string(value: &Value, test: &mut dyn FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Array(items) => items.iter().any(|item| any_string(item, test)),
        Value::Object(map) => map.iter().any(|(key, value)| test(key) || any_string(value, test)),
        _ => false,
    }
}

fn mapped(input: &ChatInput, f: &dyn Fn(&str, bool) -> String) -> ChatInput {
    let others = |value: &Value| map_strings(value, &|text| f(text, false)).into_owned();
    ChatInput {
        messages: input
            .messages
            .iter()
            .map(|m| map_strings(m, &|text| f(text, is_assistant(m))).into_owned())
            .collect(),
        tools: input.tools.as_ref().map(|tools| tools.iter().map(others).collect()),
        documents: input.documents.as_ref().map(|documents| documents.iter().map(others).collect()),
        variables: input.variables.iter().map(|(name, value)| (name.clone(), others(value))).collect(),
        ..*input
    }
}

fn map_strings<'a>(value: &'a Value, f: &dyn Fn(&str) -> String) -> Cow<'a, Value> {
    match value {
        Value::String(text) => Cow::Owned(Value::String(f(text))),
        Value::Array(items) => Cow::Owned(items.iter().map(|item| map_strings(item, f).into_owned()).collect()),
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| (f(key), map_strings(value, f).into_owned()));
            Cow::Owned(Value::Object(entries.collect::<Map<_, _>>()))
        }
        other => Cow::Borrowed(other),
    }
}

fn is_assistant(message: &Value) -> bool {
    message["role"] == "assistant"
}
