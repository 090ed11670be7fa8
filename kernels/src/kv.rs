//! The paged key/value cache of one layer, laid out for the attention kernel.
//!
//! A block holds `block_len` tokens (a multiple of [`KEYS`]) of every head. Per head, keys stand sixteen tokens abreast,
//! so that scores come sixteen at a time; values stand one token after the other, padded to whole vectors:
//!
//! ```text
//! keys    [block][head][token / 16][k_dim][16]     values  [block][head][token][v_pad]
//! ```
//!
//! Int8 caches keep one f32 scale per token and head beside them: `[block][head][token]`.

use half::{bf16, f16};

use crate::buffer::{Buffer, OutOfMemory};

/// Tokens that stand abreast.
pub const KEYS: usize = 16;

/// Element type of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KvStored {
    /// 32-bit floats.
    F32,
    /// IEEE halves.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits and a scale per token and head.
    Int8,
}

impl KvStored {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            KvStored::F32 => 4,
            KvStored::F16 | KvStored::Bf16 => 2,
            KvStored::Int8 => 1,
        }
    }
}

/// Sizes of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Blocks.
    pub blocks: usize,
    /// Tokens of a block.
    pub block_len: usize,
    /// Key/value heads.
    pub heads: usize,
    /// Length of a key.
    pub k_dim: usize,
    /// Length of a value.
    pub v_dim: usize,
    /// Element type.
    pub stored: KvStored,
}

impl KvShape {
    /// Length of a value with its padding.
    pub fn v_pad(&self) -> usize {
        self.v_dim.next_multiple_of(KEYS)
    }

    /// Bytes of one layer's cache.
    pub fn bytes(&self) -> usize {
        let tokens = self.blocks * self.block_len * self.heads;
        let scales = if self.stored == KvStored::Int8 { 8 } else { 0 };
        tokens * ((self.k_dim + self.v_pad()) * self.stored.size() + scales)
    }

    /// Elements before head `head` of block `block`, for a token of `width` elements.
    pub fn head_start(&self, block: usize, head: usize, width: usize) -> usize {
        (block * self.heads + head) * self.block_len * width
    }
}

/// One layer's cache.
#[derive(Debug)]
pub struct KvCache {
    /// Sizes.
    pub shape: KvShape,
    pub(crate) keys: Buffer,
    pub(crate) values: Buffer,
    pub(crate) key_scales: Buffer,
    pub(crate) value_scales: Buffer,
}

impl KvCache {
    /// A zeroed cache; memory is taken as it is written.
    pub fn new(shape: KvShape) -> Result<Self, OutOfMemory> {
        let tokens = shape.blocks * shape.block_len * shape.heads;
        let scales = if shape.stored == KvStored::Int8 { tokens * 4 } else { 0 };
        Ok(KvCache {
            shape,
            keys: Buffer::lazy(tokens * shape.k_dim * shape.stored.size())?,
            values: Buffer::lazy(tokens * shape.v_pad() * shape.stored.size())?,
            key_scales: Buffer::lazy(scales)?,
            value_scales: Buffer::lazy(scales)?,
        })
    }

    /// Writes one token's keys and values (`[heads][k_dim]`, `[heads][v_dim]`) to `slot`.
    ///
    /// # Safety
    /// `slot` lies in the cache, the rows are valid, and nobody else reads or writes the slot meanwhile.
    pub(crate) unsafe fn write(&self, slot: usize, k: *const f32, v: *const f32) {
        let s = &self.shape;
        let (block, at) = (slot / s.block_len, slot % s.block_len);
        for head in 0..s.heads {
            let k_start = s.head_start(block, head, s.k_dim) + at / KEYS * KEYS * s.k_dim + at % KEYS;
            let v_start = s.head_start(block, head, s.v_pad()) + at * s.v_pad();
            let scale_at = s.head_start(block, head, 1) + at;
            // SAFETY: the caller's rows hold `heads` runs, and the offsets stay inside the slot.
            unsafe {
                let k = std::slice::from_raw_parts(k.add(head * s.k_dim), s.k_dim);
                let v = std::slice::from_raw_parts(v.add(head * s.v_dim), s.v_dim);
                self.write_run(&self.keys, &self.key_scales, scale_at, k, |d| k_start + d * KEYS);
                self.write_run(&self.values, &self.value_scales, scale_at, v, |d| v_start + d);
            }
        }
    }

    #[inline(always)]
    unsafe fn write_run(&self, to: &Buffer, scales: &Buffer, scale_at: usize, x: &[f32], at: impl Fn(usize) -> usize) {
        let start = to.as_mut_ptr();
        // SAFETY: as `write`: every offset lies in the slot's part of the buffer.
        unsafe {
            match self.shape.stored {
                KvStored::F32 => x.iter().enumerate().for_each(|(d, x)| *start.cast::<f32>().add(at(d)) = *x),
                KvStored::F16 => {
                    x.iter()
                        .enumerate()
                        .for_each(|(d, x)| *start.cast::<u16>().add(at(d)) = f16::from_f32(*x).to_bits());
                }
                KvStored::Bf16 => {
                    x.iter()
                        .enumerate()
                        .for_each(|(d, x)| *start.cast::<u16>().add(at(d)) = bf16::from_f32(*x).to_bits());
                }
                KvStored::Int8 => {
                    let largest = x.iter().fold(0_u32, |m, x| m.max(x.abs().to_bits()));
                    let scale = f32::from_bits(largest) / 127.0;
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    *scales.as_mut_ptr().cast::<f32>().add(scale_at) = scale;
                    for (d, x) in x.iter().enumerate() {
                        *start.cast::<i8>().add(at(d)) = (x * inverse).round_ties_even() as i8;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
