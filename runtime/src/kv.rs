//! Which parts of the cache are free and who uses the others: blocks, or whole rows.
//!
//! The pools hand out indices; the bytes are the backend's. A block may have several owners (a shared prefix), who do not
//! write to it.

use crate::backend::{Capacity, Limits};

mod blocks;
mod prefix;
mod rows;

pub use blocks::{BlockPool, Found};
pub use prefix::Digest;
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
    /// The free cache of an executor that was loaded for `capacity`; `reuse` says whether what was written is found again.
    pub fn new(capacity: &Capacity, limits: &Limits, reuse: bool) -> Self {
        if limits.paged {
            let pool = BlockPool::new(capacity.blocks, capacity.block_len);
            return Kv::Blocks(if reuse { pool.with_prefixes(limits.rope_border) } else { pool });
        }
        Kv::Rows(RowPool::new(limits, capacity.block_len, reuse))
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

    /// Blocks that nobody owns and that can be found again.
    pub fn idle(&self) -> usize {
        match self {
            Kv::Blocks(pool) => pool.idle(),
            Kv::Rows(_) => 0,
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
