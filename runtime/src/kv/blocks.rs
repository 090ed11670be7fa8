//! The blocks of a paged cache: who owns them, which are free, and which hold a beginning that may be wanted again.
//!
//! A block that its last owner leaves is idle if the [prefix index](super::prefix) lists it, else free. Idle blocks are taken
//! when no free one is left, the one first that has been idle longest.
//!
//! Invariant: every block is either owned (its count is not 0), or idle and listed, or free. Only full blocks are listed and
//! only listed ones shared, so that nobody writes to a block with two owners.

use super::prefix::{Digest, PrefixIndex};
use crate::backend::BlockId;

/// The cache blocks of one executor.
#[derive(Debug)]
pub struct BlockPool {
    /// Free blocks; the last one is handed out next.
    free: Vec<BlockId>,
    idle: Idle,
    /// Owners per block.
    owners: Vec<u32>,
    block_len: usize,
    prefixes: Option<Prefixes>,
}

#[derive(Debug)]
struct Prefixes {
    index: PrefixIndex,
    /// Where sequences of at most that many tokens have other keys than longer ones.
    border: Option<usize>,
}

/// What a lookup has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Blocks.
    pub blocks: usize,
    /// Of these, blocks that somebody owns: they cost nothing.
    pub owned: usize,
}

impl BlockPool {
    /// `blocks` free blocks of `block_len` tokens. The caller guarantees that block numbers fit into 32 bits.
    pub fn new(blocks: usize, block_len: usize) -> Self {
        assert!(block_len > 0, "a block holds at least one token");
        let count =
            u32::try_from(blocks).expect("block numbers fit into 32 bits, which the engine checks at its start");
        BlockPool {
            free: (0..count).rev().map(BlockId).collect(),
            idle: Idle::new(blocks),
            owners: vec![0; blocks],
            block_len,
            prefixes: None,
        }
    }

    /// The same, whose full blocks can be found again; `border` is [`Limits::rope_border`](crate::backend::Limits).
    pub fn with_prefixes(self, border: Option<usize>) -> Self {
        let index = PrefixIndex::new(self.owners.len(), self.block_len);
        BlockPool { prefixes: Some(Prefixes { index, border }), ..self }
    }

    /// Tokens per block.
    pub fn block_len(&self) -> usize {
        self.block_len
    }

    /// Blocks that `tokens` tokens need.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_len)
    }

    /// Blocks that nobody owns.
    pub fn free(&self) -> usize {
        self.free.len() + self.idle.len
    }

    /// Of these, blocks that can be found again.
    pub fn idle(&self) -> usize {
        self.idle.len
    }

    /// Blocks that somebody owns.
    pub fn used(&self) -> usize {
        self.owners.len() - self.free()
    }

    /// Extends `table` to `blocks` blocks; false, and nothing done, if there are too few.
    pub fn grow(&mut self, table: &mut Vec<BlockId>, blocks: usize) -> bool {
        let more = blocks.saturating_sub(table.len());
        if more > self.free() {
            return false;
        }
        for _ in 0..more {
            let Some(block) = self.free.pop().or_else(|| self.evict()) else {
                break;
            };
            self.owners[block.0 as usize] = 1;
            table.push(block);
        }
        true
    }

    /// The block that has been idle longest, forgotten.
    fn evict(&mut self) -> Option<BlockId> {
        let block = self.idle.pop_oldest()?;
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.index.remove(block);
        }
        Some(block)
    }

    /// Adds an owner to a listed block.
    pub fn share(&mut self, block: BlockId) {
        debug_assert!(self.is_listed(block), "only full blocks are shared");
        let owners = &mut self.owners[block.0 as usize];
        if *owners == 0 {
            self.idle.remove(block);
        }
        *owners += 1;
    }

    /// Gives up one ownership of every block in `table` and empties it.
    pub fn release(&mut self, table: &mut Vec<BlockId>) {
        // Last first, so that the first block of a sequence is the next one handed out, which is the likeliest to be warm,
        // or the last one forgotten, without which the others cannot be found.
        while let Some(block) = table.pop() {
            self.release_one(block);
        }
    }

    fn release_one(&mut self, block: BlockId) {
        let owners = &mut self.owners[block.0 as usize];
        assert!(*owners > 0, "a block is released once per owner");
        *owners -= 1;
        if *owners > 0 {
            return;
        }
        if self.is_listed(block) {
            self.idle.push_newest(block);
        } else {
            self.free.push(block);
        }
    }

    fn is_listed(&self, block: BlockId) -> bool {
        self.prefixes.as_ref().is_some_and(|prefixes| prefixes.index.holds(block))
    }

    /// Extends `chain` to the digests of the first `blocks` blocks of a sequence of at most `len` tokens. It stays empty
    /// where blocks cannot be found again.
    pub fn digest(&self, chain: &mut Vec<Digest>, blocks: usize, tokens: &[u32], salt: Option<&str>, len: usize) {
        let Some(Prefixes { index, border }) = &self.prefixes else { return };
        for block in chain.len()..blocks {
            let root = || index.root(salt, border.is_some_and(|border| len > border));
            let before = chain.last().copied().unwrap_or_else(root);
            chain.push(PrefixIndex::extend(&before, &tokens[block * self.block_len..][..self.block_len]));
        }
    }

    /// Writes to `table`, which is empty, the listed blocks of the longest beginning of `chain`, whose `tokens` these are.
    /// They are not owned yet.
    pub fn look_up(&self, chain: &[Digest], tokens: &[u32], table: &mut Vec<BlockId>) -> Found {
        let mut found = Found::default();
        let Some(Prefixes { index, .. }) = &self.prefixes else { return found };
        for (digest, tokens) in chain.iter().zip(tokens.chunks_exact(self.block_len)) {
            let Some(block) = index.find(digest, tokens) else {
                break;
            };
            table.push(block);
            found.blocks += 1;
            found.owned += usize::from(self.owners[block.0 as usize] > 0);
        }
        found
    }

    /// Lists a full block, which its one owner has written. If there is one that holds the same, that takes its place.
    pub fn publish(&mut self, block: &mut BlockId, digest: &Digest, tokens: &[u32]) {
        let Some(Prefixes { index, .. }) = &mut self.prefixes else { return };
        match index.find(digest, tokens) {
            None => index.insert(*block, digest, tokens),
            Some(same) if same == *block => {}
            Some(same) => {
                self.share(same);
                let own = std::mem::replace(block, same);
                self.release_one(own);
            }
        }
    }

    /// Forgets what the owned blocks of `table` hold: nobody finds them any more.
    pub fn forget(&mut self, table: &[BlockId]) {
        if let Some(prefixes) = &mut self.prefixes {
            table.iter().for_each(|block| prefixes.index.remove(*block));
        }
    }

    /// Panics where the invariant does not hold.
    #[cfg(test)]
    pub fn assert_sound<'a>(&self, tables: impl Iterator<Item = &'a Vec<BlockId>>) {
        let mut owners = vec![0; self.owners.len()];
        tables.flatten().for_each(|block| owners[block.0 as usize] += 1);
        assert_eq!(owners, self.owners, "counts are not what tables hold");
        let mut seen = vec![false; self.owners.len()];
        let idle = self.idle.iter();
        for block in idle.iter().chain(&self.free) {
            let twice = std::mem::replace(&mut seen[block.0 as usize], true);
            assert!(!twice && owners[block.0 as usize] == 0, "{block:?} is in two places");
        }
        assert!(idle.iter().all(|block| self.is_listed(*block)), "an idle block that nobody finds");
        assert!(!self.free.iter().any(|block| self.is_listed(*block)), "a free block that can be found");
        for (i, owners) in owners.iter().enumerate() {
            assert!(seen[i] || *owners > 0, "block {i} is lost");
        }
    }
}

/// The idle blocks, oldest first, as a list through all blocks.
#[derive(Debug)]
struct Idle {
    /// Before and behind each block; the last entry is the list's own: behind it is the oldest.
    links: Vec<(u32, u32)>,
    len: usize,
}

impl Idle {
    fn new(blocks: usize) -> Idle {
        let end = blocks as u32;
        Idle { links: vec![(end, end); blocks + 1], len: 0 }
    }

    fn end(&self) -> u32 {
        (self.links.len() - 1) as u32
    }

    fn push_newest(&mut self, block: BlockId) {
        let (end, at) = (self.end(), block.0);
        let newest = self.links[end as usize].0;
        self.links[at as usize] = (newest, end);
        self.links[newest as usize].1 = at;
        self.links[end as usize].0 = at;
        self.len += 1;
    }

    fn remove(&mut self, block: BlockId) {
        let (before, behind) = self.links[block.0 as usize];
        self.links[before as usize].1 = behind;
        self.links[behind as usize].0 = before;
        self.len -= 1;
    }

    fn pop_oldest(&mut self) -> Option<BlockId> {
        let oldest = self.links[self.end() as usize].1;
        (oldest != self.end()).then(|| {
            self.remove(BlockId(oldest));
            BlockId(oldest)
        })
    }

    #[cfg(test)]
    fn iter(&self) -> Vec<BlockId> {
        let behind = |at: &u32| Some(self.links[*at as usize].1).filter(|at| *at != self.end());
        std::iter::successors(behind(&self.end()), behind).map(BlockId).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_asked_length_or_not_at_all() {
        let mut pool = BlockPool::new(4, 16);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(pool.grow(&mut a, 3));
        assert_eq!(a, [BlockId(0), BlockId(1), BlockId(2)]);
        assert!(!pool.grow(&mut b, 2));
        assert!(b.is_empty());
        assert!(pool.grow(&mut b, 1));
        assert!(pool.grow(&mut a, 2), "a table that is long enough needs nothing");
        assert_eq!((pool.free(), pool.used()), (0, 4));
        pool.release(&mut a);
        assert_eq!((pool.free(), pool.used()), (3, 1));
        assert!(pool.grow(&mut b, 4));
        assert_eq!(pool.blocks_for(0), 0);
        assert_eq!(pool.blocks_for(16), 1);
        assert_eq!(pool.blocks_for(17), 2);
    }

    /// A pool of blocks of two tokens that can be found again.
    fn pool(blocks: usize) -> BlockPool {
        BlockPool::new(blocks, 2).with_prefixes(None)
    }

    fn chain(pool: &BlockPool, tokens: &[u32], salt: Option<&str>) -> Vec<Digest> {
        let mut chain = Vec::new();
        pool.digest(&mut chain, tokens.len() / 2, tokens, salt, tokens.len());
        chain
    }

    /// Runs `tokens` as a sequence would and leaves its table.
    fn run(pool: &mut BlockPool, tokens: &[u32], salt: Option<&str>) -> (usize, Vec<BlockId>) {
        let (chain, mut table) = (chain(pool, tokens, salt), Vec::new());
        let found = pool.look_up(&chain, tokens, &mut table).blocks;
        table.iter().for_each(|block| pool.share(*block));
        assert!(pool.grow(&mut table, tokens.len().div_ceil(2)));
        for (i, digest) in chain.iter().enumerate().skip(found) {
            pool.publish(&mut table[i], digest, &tokens[2 * i..2 * i + 2]);
        }
        (found, table)
    }

    #[test]
    fn a_beginning_is_found_while_it_is_owned_and_when_it_is_idle() {
        let mut pool = pool(8);
        let (found, mut a) = run(&mut pool, &[1, 2, 3, 4, 5], None);
        assert_eq!((found, a.len()), (0, 3));
        let (found, mut b) = run(&mut pool, &[1, 2, 3, 4, 6, 7], None);
        assert_eq!((found, &b[..2]), (2, &a[..2]), "full blocks alone");
        assert_eq!(pool.used(), 4);
        pool.assert_sound([&a, &b].into_iter());
        pool.release(&mut a);
        pool.release(&mut b);
        assert_eq!((pool.used(), pool.free(), pool.idle()), (0, 8, 3));
        let (found, mut c) = run(&mut pool, &[1, 2, 3, 4, 6, 7, 8, 9], None);
        assert_eq!(found, 3);
        pool.release(&mut c);
        pool.assert_sound(std::iter::empty());
    }

    #[test]
    fn another_salt_or_a_longer_sequence_beyond_the_border_finds_nothing() {
        let mut pool = BlockPool::new(8, 2).with_prefixes(Some(10));
        let (_, mut a) = run(&mut pool, &[1, 2, 3, 4], Some("a"));
        pool.release(&mut a);
        for salt in [None, Some(""), Some("b"), Some("a/"), Some("A")] {
            let chain = chain(&pool, &[1, 2, 3, 4], salt);
            assert_eq!(pool.look_up(&chain, &[1, 2, 3, 4], &mut Vec::new()).blocks, 0, "{salt:?}");
        }
        for (len, blocks) in [(10, 2), (11, 0)] {
            let mut chain = Vec::new();
            pool.digest(&mut chain, 2, &[1, 2, 3, 4], Some("a"), len);
            assert_eq!(pool.look_up(&chain, &[1, 2, 3, 4], &mut Vec::new()).blocks, blocks, "{len}");
        }
    }

    #[test]
    fn the_longest_idle_is_forgotten_first_and_the_end_of_a_sequence_before_its_beginning() {
        let mut pool = pool(4);
        let (_, mut a) = run(&mut pool, &[1, 2, 3, 4], None);
        let (_, mut b) = run(&mut pool, &[5, 6, 7, 8], None);
        pool.release(&mut a);
        pool.release(&mut b);
        let mut other = Vec::new();
        assert!(pool.grow(&mut other, 1));
        assert_eq!(run(&mut pool, &[1, 2], None).0, 1, "the beginning is still there");
        let (a, b) = (chain(&pool, &[1, 2, 3, 4], None), chain(&pool, &[5, 6, 7, 8], None));
        assert_eq!(pool.look_up(&a, &[1, 2, 3, 4], &mut Vec::new()), Found { blocks: 1, owned: 1 });
        assert_eq!(pool.look_up(&b, &[5, 6, 7, 8], &mut Vec::new()), Found { blocks: 2, owned: 0 });
    }

    #[test]
    fn two_that_computed_the_same_keep_one_block() {
        let mut pool = pool(4);
        let tokens = [1, 2];
        let (chain, mut a, mut b) = (chain(&pool, &tokens, None), Vec::new(), Vec::new());
        assert!(pool.grow(&mut a, 1) && pool.grow(&mut b, 1));
        pool.publish(&mut a[0], &chain[0], &tokens);
        pool.publish(&mut b[0], &chain[0], &tokens);
        assert_eq!((a[0], pool.used()), (b[0], 1));
        pool.assert_sound([&a, &b].into_iter());
        pool.forget(&a);
        assert_eq!(pool.look_up(&chain, &tokens, &mut Vec::new()).blocks, 0, "what is forgotten is not found");
        pool.release(&mut a);
        pool.release(&mut b);
        assert_eq!((pool.idle(), pool.free()), (0, 4));
        pool.assert_sound(std::iter::empty());
    }
}
