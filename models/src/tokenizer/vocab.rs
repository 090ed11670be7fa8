//! The token table of a model: id to text and back.
//!
//! All texts lie in one buffer, so that building a vocabulary costs two large allocations and one hash per token rather
//! than two strings per token. Ids may have gaps, but not many more gaps than tokens: a table is never much larger than
//! the file it came from.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::TokenizerError;

/// Id to text and text to id.
#[derive(Debug)]
pub struct Vocab {
    texts: String,
    /// By id; `None` where no token has the id.
    spans: Vec<Option<(u32, u32)>>,
    by_text: HashTable<u32>,
    hasher: DefaultHashBuilder,
    longest: usize,
}

impl Vocab {
    /// The vocabulary of `tokens`. Where a text or an id occurs twice the later one wins.
    pub fn new<'a, I>(tokens: I) -> Result<Vocab, TokenizerError>
    where
        I: IntoIterator<Item = (&'a str, u32)>,
        I::IntoIter: Clone,
    {
        let tokens = tokens.into_iter();
        let (mut count, mut bytes, mut last) = (0usize, 0usize, 0u32);
        for (text, id) in tokens.clone() {
            count += 1;
            bytes += text.len();
            last = last.max(id);
        }
        let limit = count.saturating_mul(2).saturating_add(MAX_GAPS);
        let slots = usize::try_from(last).unwrap_or(usize::MAX).saturating_add(usize::from(count > 0));
        if slots > limit {
            return Err(TokenizerError::IdTooLarge { id: last, count });
        }
        if u32::try_from(bytes).is_err() {
            return Err(TokenizerError::VocabularyTooLarge { bytes });
        }
        let mut vocab = Vocab {
            texts: String::with_capacity(bytes),
            spans: vec![None; slots],
            by_text: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
            longest: 0,
        };
        for (text, id) in tokens {
            vocab.insert(text, id);
        }
        Ok(vocab)
    }

    fn insert(&mut self, text: &str, id: u32) {
        // Both fit: `new` checked the sum of the lengths.
        let start = self.texts.len() as u32;
        self.texts.push_str(text);
        let span = (start, self.texts.len() as u32);
        self.spans[id as usize] = Some(span);
        self.longest = self.longest.max(text.len());
        let Vocab { texts, spans, by_text, hasher, .. } = self;
        let hash = hasher.hash_one(text);
        let found = by_text.find_mut(hash, |&other| text_at(texts, spans, other) == Some(text));
        match found {
            Some(slot) => *slot = id,
            None => {
                by_text.insert_unique(hash, id, |&other| {
                    hasher.hash_one(text_at(texts, spans, other).unwrap_or_default())
                });
            }
        }
    }

    /// Text of a token.
    pub fn text(&self, id: u32) -> Option<&str> {
        text_at(&self.texts, &self.spans, id)
    }

    /// Token with this text.
    pub fn id(&self, text: &str) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        self.by_text
            .find(self.hasher.hash_one(text), |&id| text_at(&self.texts, &self.spans, id) == Some(text))
            .copied()
    }

    /// One more than the largest id.
    pub fn slots(&self) -> usize {
        self.spans.len()
    }

    /// Bytes of the longest text.
    pub fn longest(&self) -> usize {
        self.longest
    }
}

fn text_at<'a>(texts: &'a str, spans: &[Option<(u32, u32)>], id: u32) -> Option<&'a str> {
    let (start, end) = (*spans.get(id as usize)?)?;
    texts.get(start as usize..end as usize)
}

/// Unused ids that a small vocabulary may have.
const MAX_GAPS: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_tokens_both_ways_and_allows_gaps() {
        let v = Vocab::new([("a", 0), ("bc", 7), ("", 3)]).unwrap();
        assert_eq!(v.text(7), Some("bc"));
        assert_eq!(v.id("bc"), Some(7));
        assert_eq!(v.id(""), Some(3));
        assert_eq!((v.text(1), v.text(8), v.id("b")), (None, None, None));
        assert_eq!((v.slots(), v.longest()), (8, 2));
    }

    #[test]
    fn later_of_two_equal_texts_wins() {
        let v = Vocab::new([("a", 0), ("a", 1)]).unwrap();
        assert_eq!(v.id("a"), Some(1));
        assert_eq!(v.text(0), Some("a"));
    }

    #[test]
    fn ids_far_beyond_the_tokens_are_refused() {
        assert!(matches!(Vocab::new([("a", u32::MAX)]), Err(TokenizerError::IdTooLarge { .. })));
    }
}
