//! Which parts of the cache are free and who uses the others: blocks, or whole rows.
//!
//! The pools hand out indices; the bytes are the backend's. A block may have several owners (a shared prefix), who must
//! not write to it.
//!
//! Invariant: a block is free if and only if its count is 0; every block is either on the free list or counted.

use crate::backend::{BlockId, Capacity, Limits};

mod rows;

pub use rows::{RowPool, Wish};

/// The cache of one executor.
#[derive(Debug)]
pub enum Kv {
    /// Any block may hold any part of a sequence.
    Blocks(BlockPool),
    /// A row holds a sequence.
    Rows(RowPool),
}

impl Kv {
    /// The free cache of an executor that was loaded for `capacity`.
    pub fn new(capacity: &Capacity, limits: &Limits) -> Self {
        if limits.paged {
            return Kv::Blocks(BlockPool::new(capacity.blocks, capacity.block_len));
        }
        Kv::Rows(RowPool::new(limits, capacity.block_len))
    }

    /// Tokens per block, or slots per row.
    pub fn block_len(&self) -> usize {
        match self {
            Kv::Blocks(pool) => pool.block_len(),
            Kv::Rows(pool) => pool.row_len(),
        }
    }

    /// Blocks or rows that somebody owns.
    pub fn used(&self) -> usize {
        match self {
            Kv::Blocks(pool) => pool.used(),
            Kv::Rows(pool) => pool.used(),
        }
    }

    /// Blocks or rows that nobody owns.
    #[cfg(test)]
    pub fn free(&self) -> usize {
        match self {
            Kv::Blocks(pool) => pool.free(),
            Kv::Rows(pool) => pool.free(),
        }
    }
}

/// The cache blocks of one executor.
#[derive(Debug)]
pub struct BlockPool {
    /// Free blocks; the last one is handed out next.
    free: Vec<BlockId>,
    /// Owners per block.
    owners: Vec<u32>,
    block_len: usize,
}

impl BlockPool {
    /// `blocks` free blocks of `block_len` tokens. The caller guarantees that block numbers fit into 32 bits.
    pub fn new(blocks: usize, block_len: usize) -> Self {
        assert!(block_len > 0, "a block holds at least one token");
        let count =
            u32::try_from(blocks).expect("block numbers fit into 32 bits, which the engine checks at its start");
        BlockPool { free: (0..count).rev().map(BlockId).collect(), owners: vec![0; blocks], block_len }
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
        self.free.len()
    }

    /// Blocks that somebody owns.
    pub fn used(&self) -> usize {
        self.owners.len() - self.free.len()
    }

    /// Extends `table` to `blocks` blocks; false, and nothing done, if there are too few.
    pub fn grow(&mut self, table: &mut Vec<BlockId>, blocks: usize) -> bool {
        let more = blocks.saturating_sub(table.len());
        let Some(keep) = self.free.len().checked_sub(more) else {
            return false;
        };
        for block in self.free.drain(keep..).rev() {
            self.owners[block.0 as usize] = 1;
            table.push(block);
        }
        true
    }

    /// Adds an owner to a block that has one.
    #[cfg_attr(not(test), expect(dead_code, reason = "the prefix cache will share blocks"))]
    pub fn share(&mut self, block: BlockId) {
        let owners = &mut self.owners[block.0 as usize];
        assert!(*owners > 0, "only an owned block can be shared");
        *owners += 1;
    }

    /// Gives up one ownership of every block in `table` and empties it.
    pub fn release(&mut self, table: &mut Vec<BlockId>) {
        // Last first, so that the first block of a sequence is the next one handed out: it is the likeliest to be warm.
        for block in table.drain(..).rev() {
            let owners = &mut self.owners[block.0 as usize];
            assert!(*owners > 0, "a block is released once per owner");
            *owners -= 1;
            if *owners == 0 {
                self.free.push(block);
            }
        }
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

    #[test]
    fn a_shared_block_is_free_when_its_last_owner_leaves() {
        let mut pool = BlockPool::new(2, 1);
        let mut a = Vec::new();
        assert!(pool.grow(&mut a, 1));
        pool.share(a[0]);
        let mut b = a.clone();
        pool.release(&mut a);
        assert_eq!(pool.free(), 1);
        pool.release(&mut b);
        assert_eq!(pool.free(), 2);
    }
}
