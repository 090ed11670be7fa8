//! Byte-pair merging of one pre-token.
//!
//! Follows `models/bpe/{model,word}.rs` of the tokenizers crate to the letter (its results are the goldens), but holds
//! the vocabulary in one buffer: building it from 49152 tokens takes a few milliseconds where the crate's builder takes
//! tens. SentencePiece vocabularies have no merge list: there, any two neighbours whose concatenation is a token may
//! merge, best score first, which is the list that the Hugging Face conversion writes down (`generate_merges` in
//! transformers' `convert_slow_tokenizer.py`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

use super::TokenizerError;
use super::vocab::Vocab;

/// What may merge, and in which order.
#[derive(Debug)]
pub enum Merges {
    /// Pair to rank and result.
    Ranked(HashMap<(u32, u32), (u32, u32)>),
    /// Per token the rank of its score, [`NO_MERGE`] where the token never results from a merge nor takes part in one.
    Scored(Vec<u32>),
}

/// In [`Merges::Scored`]: this token neither merges nor results from merging.
pub const NO_MERGE: u32 = u32::MAX;

impl Merges {
    /// A merge list. Pairs that make a token of `excluded` are left out: text must never become a control token.
    pub fn ranked<'a>(
        vocab: &Vocab,
        pairs: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
        excluded: impl Fn(u32) -> bool,
    ) -> Result<Merges, TokenizerError> {
        let mut map = HashMap::with_capacity(pairs.len());
        let mut joined = String::with_capacity(vocab.longest());
        for (index, (left, right)) in pairs.enumerate() {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let find = |text: &str| {
                vocab.id(text).ok_or_else(|| TokenizerError::MergeOutOfVocabulary { index, token: text.to_owned() })
            };
            let (pair, merged) = ((find(left)?, find(right)?), find(&joined)?);
            if excluded(merged) {
                continue;
            }
            let rank = u32::try_from(index).map_err(|_| TokenizerError::VocabularyTooLarge { bytes: index })?;
            map.insert(pair, (rank, merged));
        }
        Ok(Merges::Ranked(map))
    }

    /// Merges by score: higher scores first. `scores` is by id, `None` for tokens that never merge.
    pub fn scored(scores: &[Option<f32>]) -> Merges {
        let mut distinct: Vec<f32> = scores.iter().flatten().copied().collect();
        distinct.sort_by(|a, b| b.total_cmp(a));
        distinct.dedup_by(|a, b| a.total_cmp(b).is_eq());
        let rank = |score: &f32| distinct.binary_search_by(|s| score.total_cmp(s)).unwrap_or(0) as u32;
        Merges::Scored(scores.iter().map(|s| s.as_ref().map_or(NO_MERGE, rank)).collect())
    }

    /// Rank and result of merging two tokens; `joined` is scratch.
    fn merge(&self, vocab: &Vocab, left: u32, right: u32, joined: &mut String) -> Option<(u64, u32)> {
        match self {
            Merges::Ranked(map) => map.get(&(left, right)).map(|&(rank, id)| (u64::from(rank), id)),
            Merges::Scored(ranks) => {
                let rank = |id: u32| ranks.get(id as usize).copied().filter(|&r| r != NO_MERGE);
                rank(left)?;
                rank(right)?;
                let (l, r) = (vocab.text(left)?, vocab.text(right)?);
                if l.len() + r.len() > vocab.longest() {
                    return None;
                }
                joined.clear();
                joined.push_str(l);
                joined.push_str(r);
                let id = vocab.id(joined)?;
                // Equal scores: the longer left part first, then the longer right part.
                let longer_first = |s: &str| u64::from(u16::MAX) - (s.chars().count() as u64).min(u64::from(u16::MAX));
                Some((u64::from(rank(id)?) << 32 | longer_first(l) << 16 | longer_first(r), id))
            }
        }
    }
}

/// A byte-pair model: text of one pre-token to ids.
#[derive(Debug)]
pub struct Bpe {
    /// Its tokens.
    pub vocab: Vocab,
    /// Its merges.
    pub merges: Merges,
    /// Token for characters that are not in the vocabulary.
    pub unk: Option<u32>,
    /// Whether neighbouring unknown characters become one token.
    pub fuse_unk: bool,
    /// The tokens `<0x00>` to `<0xFF>`, used for unknown characters before `unk` is.
    pub bytes: Option<Box<[Option<u32>; 256]>>,
    /// Whether a pre-token that is a token is taken whole.
    pub ignore_merges: bool,
    /// Control tokens: no text becomes one of these, `unk` excepted.
    pub control: Vec<bool>,
}

impl Bpe {
    /// The tokens `<0x00>` to `<0xFF>` of a vocabulary.
    pub fn byte_tokens(vocab: &Vocab) -> Box<[Option<u32>; 256]> {
        let mut bytes = Box::new([None; 256]);
        for (byte, id) in bytes.iter_mut().enumerate() {
            *id = vocab.id(&format!("<0x{byte:02X}>"));
        }
        bytes
    }

    /// Appends the tokens of one pre-token.
    pub fn encode(&self, piece: &str, ids: &mut Vec<u32>) {
        if piece.is_empty() {
            return;
        }
        if self.ignore_merges
            && let Some(id) = self.text_token(piece)
        {
            ids.push(id);
            return;
        }
        let mut word = Word::default();
        self.characters(piece, &mut word);
        word.merge_all(self);
        ids.extend(word.symbols.iter().filter(|s| s.live).map(|s| s.id));
    }

    fn text_token(&self, text: &str) -> Option<u32> {
        self.vocab.id(text).filter(|&id| !self.control.get(id as usize).copied().unwrap_or(false))
    }

    fn characters(&self, piece: &str, word: &mut Word) {
        let mut unknown = false;
        let mut buffer = [0; 4];
        for c in piece.chars() {
            let text: &str = c.encode_utf8(&mut buffer);
            if let Some(id) = self.text_token(text) {
                word.flush_unknown(&mut unknown, self.unk);
                word.push(id);
                continue;
            }
            let as_bytes = self.bytes.as_ref().filter(|b| text.bytes().all(|i| b[usize::from(i)].is_some()));
            if let Some(bytes) = as_bytes {
                // A pending unknown stays pending: so it is in the reference.
                text.bytes().filter_map(|i| bytes[usize::from(i)]).for_each(|id| word.push(id));
            } else if self.unk.is_some() {
                if unknown && !self.fuse_unk {
                    word.flush_unknown(&mut unknown, self.unk);
                }
                unknown = true;
            }
        }
        word.flush_unknown(&mut unknown, self.unk);
    }
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    prev: usize,
    next: usize,
    live: bool,
}

/// The symbols of a pre-token: a linked list in a vector.
#[derive(Default)]
struct Word {
    symbols: Vec<Symbol>,
}

const END: usize = usize::MAX;

impl Word {
    fn push(&mut self, id: u32) {
        let at = self.symbols.len();
        let prev = at.checked_sub(1).unwrap_or(END);
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        self.symbols.push(Symbol { id, prev, next: END, live: true });
    }

    fn flush_unknown(&mut self, unknown: &mut bool, unk: Option<u32>) {
        if std::mem::take(unknown)
            && let Some(id) = unk
        {
            self.push(id);
        }
    }

    fn merge_all(&mut self, bpe: &Bpe) {
        let mut scratch = String::new();
        // Lowest rank first, then leftmost.
        let mut queue = BinaryHeap::with_capacity(self.symbols.len());
        for at in 1..self.symbols.len() {
            let (left, right) = (self.symbols[at - 1].id, self.symbols[at].id);
            if let Some((rank, id)) = bpe.merges.merge(&bpe.vocab, left, right, &mut scratch) {
                queue.push(Reverse((rank, at - 1, id)));
            }
        }
        while let Some(Reverse((_, at, id))) = queue.pop() {
            let left = self.symbols[at];
            if !left.live || left.next == END {
                continue;
            }
            let right = self.symbols[left.next];
            // Expired, unless the pair that stands there now makes the same token.
            match bpe.merges.merge(&bpe.vocab, left.id, right.id, &mut scratch) {
                Some((_, now)) if now == id => {}
                _ => continue,
            }
            self.symbols[left.next].live = false;
            self.symbols[at].id = id;
            self.symbols[at].next = right.next;
            if right.next != END {
                self.symbols[right.next].prev = at;
                let after = self.symbols[right.next].id;
                if let Some((rank, id)) = bpe.merges.merge(&bpe.vocab, id, after, &mut scratch) {
                    queue.push(Reverse((rank, at, id)));
                }
            }
            if left.prev != END {
                let before = self.symbols[left.prev].id;
                if let Some((rank, id)) = bpe.merges.merge(&bpe.vocab, before, id, &mut scratch) {
                    queue.push(Reverse((rank, left.prev, id)));
                }
            }
        }
    }
}
