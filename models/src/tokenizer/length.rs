//! How many tokens a text has at least, told without encoding it: encoding takes some fifty times the memory of its text.
//!
//! Invariant: never more than [`Tokenizer::encode`](super::Tokenizer::encode) gives. Two counts are made, and a count that some
//! part of the tokenizer could belie is not: the text's bytes by those of the longest token, and its letters and digits of
//! ASCII, which no normaliser here changes, by the most that a token has.

use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::added::AddedToken;
use super::bpe::Bpe;
use super::detokenize::byte_of;

/// What normalisers and pre-tokenizers do to the length of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Text is at most this many times as long as what is left of it; `None` where it may vanish.
    shrinks: Option<usize>,
    /// Whether letters and digits of ASCII stay what they are.
    words: bool,
    /// Whether each byte becomes a character.
    bytes: bool,
}

impl Kept {
    /// By `normalizer` and `pre_tokenizer` of tokenizer.json.
    pub fn of(normalizer: &Value, pre_tokenizer: &Value) -> Kept {
        let mut kept = Kept { shrinks: Some(1), words: true, bytes: false };
        kept.pass(normalizer);
        kept.pass(pre_tokenizer);
        kept
    }

    fn pass(&mut self, step: &Value) {
        if step.is_null() {
            return;
        }
        let inner = step["normalizers"].as_array().or(step["pretokenizers"].as_array());
        let removes = step["behavior"] == "Removed";
        match step["type"].as_str().unwrap_or_default() {
            "Sequence" => inner.into_iter().flatten().for_each(|step| self.pass(step)),
            "ByteLevel" => self.bytes = true,
            "Prepend" | "Digits" | "Metaspace" => {}
            kind @ ("NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase") => {
                let times = if kind.contains('K') { COMPATIBLE } else { CANONICAL };
                self.shrinks = self.shrinks.map(|most| most.saturating_mul(times));
            }
            // Of punctuation there is nothing in words.
            "Punctuation" if removes => self.shrinks = None,
            "Split" if removes => *self = Kept { shrinks: None, words: false, ..*self },
            "Split" | "Punctuation" => {}
            "Replace" => match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
                (Some(pattern), Some(content)) if !pattern.contains(|c: char| c.is_ascii_alphanumeric()) => {
                    self.shrinks = self.shrinks.filter(|_| content.len() >= pattern.len());
                }
                _ => *self = Kept { shrinks: None, words: false, ..*self },
            },
            // White space, accents and control characters vanish.
            "Strip" | "StripAccents" | "Nmt" | "Whitespace" | "WhitespaceSplit" => self.shrinks = None,
            _ => *self = Kept { shrinks: None, words: false, ..*self },
        }
    }
}

/// What one token stands for at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Longest {
    /// Bytes of a text; `None` where that has no bound.
    bytes: Option<usize>,
    /// Letters and digits of ASCII.
    letters: Option<usize>,
}

impl Longest {
    pub fn of(kept: Kept, model: &Bpe, added: &[AddedToken]) -> Longest {
        let is_token = |c: char| {
            let id = model.vocab.id(c.encode_utf8(&mut [0; 4]));
            id.is_some_and(|id| !model.control.get(id as usize).copied().unwrap_or(false))
        };
        // Characters without a token may vanish, or become one token together.
        let by_bytes = || {
            let alphabet = ByteLevel::alphabet().into_iter();
            let missing: Vec<u8> = alphabet.filter(|c| !is_token(*c)).filter_map(byte_of).collect();
            match () {
                () if missing.iter().all(|byte| matches!(byte, 0xc0 | 0xc1 | 0xf5..)) => Some(1),
                // First bytes of rare characters: what follows them stays.
                () if missing.iter().all(|byte| *byte >= 0xc0) => Some(2),
                () => None,
            }
        };
        let falls_back = model.bytes.as_ref().is_some_and(|bytes| bytes.iter().all(Option::is_some));
        let whole = falls_back || model.unk.is_some() && !model.fuse_unk;
        let vanishes = if whole { Some(1) } else { by_bytes().filter(|_| kept.bytes) };
        let strips = added.iter().any(|token| token.lstrip || token.rstrip);
        let spelled = ('0'..='9').chain('a'..='z').chain('A'..='Z').all(is_token);
        let (mut bytes, mut letters) = (UNKNOWN, 1);
        let slots = u32::try_from(model.vocab.slots()).unwrap_or(u32::MAX);
        let texts = (0..slots).filter_map(|id| model.vocab.text(id)).map(|text| (text, kept.bytes));
        for (text, spells_bytes) in texts.chain(added.iter().map(|token| (token.content.as_str(), false))) {
            bytes = bytes.max(if spells_bytes { text.chars().count() } else { text.len() });
            letters = letters.max(text.bytes().filter(u8::is_ascii_alphanumeric).count());
        }
        Longest {
            bytes: kept
                .shrinks
                .zip(vanishes)
                .filter(|_| !strips)
                .map(|(kept, vanishes)| bytes.saturating_mul(kept.saturating_mul(vanishes))),
            letters: (kept.words && spelled).then_some(letters),
        }
    }

    /// Tokens of `text`, at least.
    pub fn least(&self, text: &str) -> usize {
        let by_bytes = self.bytes.map_or(0, |longest| text.len().div_ceil(longest));
        let by_letters = self.letters.map_or(0, |longest| letters(text.as_bytes()).div_ceil(longest));
        by_bytes.max(by_letters)
    }
}

/// Letters and digits of ASCII that stay what they are: one may become another with the mark that follows it, none of which is
/// ASCII.
fn letters(text: &[u8]) -> usize {
    let Some((last, before)) = text.split_last() else { return 0 };
    let stays = |(byte, next): (&u8, &u8)| u8::from(byte.is_ascii_alphanumeric() & next.is_ascii());
    // Few enough for a byte: many are counted at once.
    let pairs = before.chunks(255).zip(text[1..].chunks(255));
    let counted = pairs.map(|(bytes, next)| usize::from(bytes.iter().zip(next).map(stays).sum::<u8>()));
    counted.sum::<usize>() + usize::from(last.is_ascii_alphanumeric())
}

/// How many times as long as its canonical form a text may be: seven bytes of Greek become two.
const CANONICAL: usize = 4;
/// The same of compatible forms, where four bytes may become one besides.
const COMPATIBLE: usize = 16;
/// Bytes of a character that has no token of its own.
const UNKNOWN: usize = 4;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tokenizers::{NormalizedString, Normalizer, normalizers::NFD};

    use super::*;

    #[test]
    fn letters_counted_many_at_once_are_those_counted_one_by_one() {
        let one_by_one = |text: &[u8]| {
            let stays = |at: usize| text[at].is_ascii_alphanumeric() && text.get(at + 1).is_none_or(u8::is_ascii);
            (0..text.len()).filter(|at| stays(*at)).count()
        };
        for length in (0..20_usize).chain(250..262).chain(505..515) {
            // Letters alone, and with marks wherever a block may end.
            for mark in 1..=length + 1 {
                let text: Vec<u8> =
                    (0..length).map(|at| if mark > 1 && (at + 1).is_multiple_of(mark) { 0xcc } else { b'a' }).collect();
                assert_eq!(letters(&text), one_by_one(&text), "{length} bytes, every {mark}th a mark");
            }
        }
    }

    #[test]
    fn no_canonical_form_is_shorter_than_is_reckoned_with() {
        let decomposed = |c: char| {
            let mut text = NormalizedString::from(c.to_string());
            NFD.normalize(&mut text).unwrap();
            text.get().to_owned()
        };
        let all: Vec<(char, String)> = ('\0'..=char::MAX).map(|c| (c, decomposed(c))).collect();
        // The longest character that becomes another one.
        let mut longest: HashMap<char, usize> = HashMap::new();
        for (c, parts) in &all {
            if let [only] = parts.chars().collect::<Vec<_>>()[..] {
                let most = longest.entry(only).or_default();
                *most = c.len_utf8().max(*most);
            }
        }
        for (c, parts) in &all {
            let most: usize = parts.chars().map(|part| longest[&part]).sum();
            assert!(most <= CANONICAL * c.len_utf8(), "{c:?} may be made of {most} bytes");
        }
    }
}
