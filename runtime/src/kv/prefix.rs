//! Which full blocks hold which beginnings of sequences.
//!
//! A block is known by a chain of SHA-256 digests: of the digest before it and of its own tokens. The chain begins with a secret
//! of this process, the sequence's salt and its rotary table, so that beginnings are found under the same salt alone and
//! nobody can choose where they fall in the table. A block found by its digest is compared token by token besides.
//!
//! Invariant: a listed block is full and was written with the keys and values of its digest's chain; all memory is taken at
//! the start.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use sha2::{Digest as _, Sha256};

use crate::backend::BlockId;

/// What a block and all before it hold.
pub type Digest = [u8; 32];

/// The listed blocks of one cache.
#[derive(Debug)]
pub struct PrefixIndex {
    secret: [u8; 32],
    block_len: usize,
    /// First block per bucket; a power of two of them.
    buckets: Vec<u32>,
    /// The next block of the same bucket.
    next: Vec<u32>,
    listed: Vec<bool>,
    digests: Vec<Digest>,
    /// `[blocks, block_len]`.
    tokens: Vec<u32>,
}

impl PrefixIndex {
    /// For `blocks` blocks of `block_len` tokens, none of them listed.
    pub fn new(blocks: usize, block_len: usize) -> Self {
        let mut secret = [0; 32];
        for (i, part) in secret.chunks_exact_mut(8).enumerate() {
            // A RandomState carries fresh randomness from the system in each thread and differs from call to call.
            part.copy_from_slice(&RandomState::new().hash_one(i).to_le_bytes());
        }
        PrefixIndex {
            secret,
            block_len,
            buckets: vec![NONE; blocks.next_power_of_two()],
            next: vec![NONE; blocks],
            listed: vec![false; blocks],
            digests: vec![[0; 32]; blocks],
            tokens: vec![0; blocks * block_len],
        }
    }

    /// Where the chain of a sequence begins; `long` says on which side of the rotary tables' border it lies.
    pub fn root(&self, salt: Option<&str>, long: bool) -> Digest {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update([u8::from(long), u8::from(salt.is_some())]);
        hash.update(salt.unwrap_or_default());
        hash.finalize().into()
    }

    /// The digest of the block of `tokens` behind `before`.
    pub fn extend(before: &Digest, tokens: &[u32]) -> Digest {
        let mut hash = Sha256::new();
        hash.update(before);
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        hash.finalize().into()
    }

    /// The block that holds `tokens` at the end of the chain `digest`.
    pub fn find(&self, digest: &Digest, tokens: &[u32]) -> Option<BlockId> {
        let mut at = self.buckets[self.bucket(digest)];
        while at != NONE {
            let i = at as usize;
            if self.digests[i] == *digest && &self.tokens[i * self.block_len..][..self.block_len] == tokens {
                return Some(BlockId(at));
            }
            at = self.next[i];
        }
        None
    }

    /// Whether the block is listed.
    pub fn holds(&self, block: BlockId) -> bool {
        self.listed[block.0 as usize]
    }

    /// Lists a block that is not listed.
    pub fn insert(&mut self, block: BlockId, digest: &Digest, tokens: &[u32]) {
        let (i, bucket) = (block.0 as usize, self.bucket(digest));
        assert!(!self.listed[i], "a block is listed once");
        self.listed[i] = true;
        self.digests[i] = *digest;
        self.tokens[i * self.block_len..][..self.block_len].copy_from_slice(tokens);
        self.next[i] = std::mem::replace(&mut self.buckets[bucket], block.0);
    }

    /// Forgets a block, if it is listed.
    pub fn remove(&mut self, block: BlockId) {
        let i = block.0 as usize;
        if !std::mem::take(&mut self.listed[i]) {
            return;
        }
        let bucket = self.bucket(&self.digests[i]);
        let after = self.next[i];
        let mut at = self.buckets[bucket];
        if at == block.0 {
            self.buckets[bucket] = after;
            return;
        }
        // It is in its bucket's list: it was listed.
        while self.next[at as usize] != block.0 {
            at = self.next[at as usize];
        }
        self.next[at as usize] = after;
    }

    fn bucket(&self, digest: &Digest) -> usize {
        let [a, b, c, d, ..] = *digest;
        u32::from_le_bytes([a, b, c, d]) as usize & (self.buckets.len() - 1)
    }
}

/// The end of a list.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn roots_differ_by_salt_and_rotary_table() {
        let index = PrefixIndex::new(4, 2);
        let roots = [(None, false), (None, true), (Some(""), false), (Some("a"), false), (Some("a"), true)];
        let digests: Vec<_> = roots.iter().map(|(salt, long)| index.root(*salt, *long)).collect();
        for (i, digest) in digests.iter().enumerate() {
            assert!(!digests[..i].contains(digest), "{:?}", roots[i]);
        }
        assert_ne!(PrefixIndex::new(4, 2).root(None, false), digests[0], "every cache has its own secret");
    }

    #[test]
    fn a_digest_alone_is_not_enough() {
        let mut index = PrefixIndex::new(4, 2);
        let digest = PrefixIndex::extend(&index.root(None, false), &[1, 2]);
        index.insert(BlockId(3), &digest, &[1, 2]);
        assert_eq!(index.find(&digest, &[1, 2]), Some(BlockId(3)));
        assert_eq!(index.find(&digest, &[1, 3]), None, "as if two chains had one digest");
    }

    proptest! {
        #[test]
        fn blocks_are_found_while_they_are_listed(steps in prop::collection::vec((0u32..6, 0u32..40), 0..200)) {
            let mut index = PrefixIndex::new(6, 1);
            let mut model = [None; 6];
            for (block, token) in steps {
                // Few first bytes, so that buckets are shared.
                let digest = |token: u32| [(token % 3) as u8; 32];
                let known = model.iter().position(|t| *t == Some(token));
                prop_assert_eq!(index.find(&digest(token), &[token]).map(|b| b.0 as usize), known);
                if index.holds(BlockId(block)) {
                    index.remove(BlockId(block));
                    model[block as usize] = None;
                } else if known.is_none() {
                    index.insert(BlockId(block), &digest(token), &[token]);
                    model[block as usize] = Some(token);
                }
            }
        }
    }
}
