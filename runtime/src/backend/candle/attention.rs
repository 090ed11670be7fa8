//! The paged cache, and attention over it.
//!
//! A layer's keys are one tensor `[blocks * block_len, kv_heads * k_dim]`, its values another; a slot is a row. Each
//! sequence gathers its own rows by its block table, so that what else is in the batch cannot matter.

use candle_core::{D, DType, Device, Result, Tensor};
use half::bf16;
use half::vec::HalfBitsVecExt;
use njoule_models::program::CacheInfo;

use super::ops::{cap, rounded_to};
use super::weights::{bytes, check_room};
use crate::backend::{Batch, Capacity, LoadError, SeqSpan};

/// One layer's keys and values.
#[derive(Debug)]
pub struct Cache {
    info: CacheInfo,
    block_len: usize,
    keys: Tensor,
    values: Tensor,
    /// What queries meet: the keys and values above, unless [`Cache::follow`] gave others.
    read: [Tensor; 2],
}

/// How queries meet keys; fields as in [`Op::Attend`](njoule_models::program::Op::Attend).
pub struct Attention<'a> {
    pub heads: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    /// `[heads]`.
    pub sinks: Option<&'a Tensor>,
    /// One for each head.
    pub alibi: Option<&'a [f32]>,
}

impl Cache {
    /// An empty cache.
    pub fn new(
        info: CacheInfo,
        capacity: &Capacity,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Cache, LoadError> {
        let slots = capacity.blocks.saturating_mul(capacity.block_len);
        let tensor = |dim: usize| {
            let cols = info.kv_heads * dim;
            let n = check_room(slots.checked_mul(cols), dtype, "the cache")?;
            let zeros = match (device, dtype) {
                // As zeroed pages, which take memory as they are written; candle would write them all.
                (Device::Cpu, DType::BF16) => {
                    Tensor::from_vec(vec![0_u16; n].reinterpret_into::<bf16>(), (slots, cols), device)
                }
                _ => Tensor::zeros((slots, cols), dtype, device),
            };
            zeros.map_err(|e| LoadError::Device(e.to_string()))
        };
        let (keys, values) = (tensor(info.k_dim)?, tensor(info.v_dim)?);
        // Clones share their memory: what is written is read.
        let read = [keys.clone(), values.clone()];
        Ok(Cache { info, block_len: capacity.block_len, keys, values, read })
    }

    /// From here on queries meet these keys and values of every slot, not those that are written.
    pub fn follow(&mut self, rows: [Vec<Vec<f32>>; 2]) -> Result<()> {
        let like = |rows: Vec<Vec<f32>>, own: &Tensor| {
            let rows = Tensor::from_vec(rows.concat(), own.dims(), own.device())?;
            rows.to_dtype(own.dtype())
        };
        let [keys, values] = rows;
        self.read = [like(keys, &self.keys)?, like(values, &self.values)?];
        Ok(())
    }

    /// Keys and values of every slot.
    pub fn rows(&self) -> Result<[Vec<Vec<f32>>; 2]> {
        let rows = |cache: &Tensor| cache.to_dtype(DType::F32)?.to_vec2();
        Ok([rows(&self.keys)?, rows(&self.values)?])
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        bytes(&self.keys) + bytes(&self.values)
    }

    /// Stores the rows' keys and values, rounded to the cache's type.
    pub fn write(&mut self, k: &Tensor, v: &Tensor, batch: &Batch) -> Result<()> {
        let slots = &batch.slots;
        for (rows, cache) in [(k, &self.keys), (v, &self.values)] {
            let rows = rows.to_dtype(cache.dtype())?.contiguous()?;
            let mut first = 0;
            while first < slots.len() {
                // Rows of one block lie together.
                let run = slots[first..].windows(2).take_while(|w| w[1] == w[0].wrapping_add(1)).count() + 1;
                cache.slice_set(&rows.narrow(0, first, run)?, 0, slots[first] as usize)?;
                first += run;
            }
        }
        Ok(())
    }

    /// Attends with the queries `[rows, heads * k_dim]`; `[rows, heads * v_dim]`.
    pub fn attend(&self, q: &Tensor, batch: &Batch, attention: &Attention<'_>) -> Result<Tensor> {
        let q = rounded_to(self.keys.dtype(), q)?;
        let mut parts = vec![];
        for seq in &batch.seqs {
            let before = seq.context - seq.rows.len();
            let first_key = attention.window.map_or(0, |w| (before + 1).saturating_sub(w));
            let [keys, values] = &self.read;
            let keys = self.gather(keys, self.info.k_dim, batch, seq, first_key)?;
            let values = self.gather(values, self.info.v_dim, batch, seq, first_key)?;
            for first in (0..seq.rows.len()).step_by(QUERIES) {
                let rows = QUERIES.min(seq.rows.len() - first);
                let q = q.narrow(0, seq.rows.start + first, rows)?;
                let seen = before + first + rows - first_key;
                let (keys, values) = (keys.narrow(1, 0, seen)?, values.narrow(1, 0, seen)?);
                parts.push(self.attend_queries(&q, &keys, &values, attention)?);
            }
        }
        Tensor::cat(&parts, 0)
    }

    /// A sequence's rows of `cache` from position `first` on, `[kv_heads, keys, dim]` in f32.
    fn gather(&self, cache: &Tensor, dim: usize, batch: &Batch, seq: &SeqSpan, first: usize) -> Result<Tensor> {
        let table = &batch.tables[seq.table.clone()];
        let slot = |p: usize| table[p / self.block_len].0 * self.block_len as u32 + (p % self.block_len) as u32;
        let slots: Vec<u32> = (first..seq.context).map(slot).collect();
        let rows = cache.index_select(&Tensor::from_vec(slots, seq.context - first, cache.device())?, 0)?;
        rows.to_dtype(DType::F32)?
            .reshape((seq.context - first, self.info.kv_heads, dim))?
            .transpose(0, 1)?
            .contiguous()
    }

    /// Consecutive queries of a sequence, of which the last sees the last key.
    fn attend_queries(&self, q: &Tensor, keys: &Tensor, values: &Tensor, attention: &Attention<'_>) -> Result<Tensor> {
        let (rows, seen, kv_heads) = (q.dim(0)?, keys.dim(1)?, self.info.kv_heads);
        let (k_dim, v_dim, group) = (self.info.k_dim, self.info.v_dim, attention.heads / kv_heads);
        // Query head `h` shares the keys of head `h / group`.
        let q = q.reshape((rows, kv_heads, group, k_dim))?.permute((1, 2, 0, 3))?;
        let q = q.reshape((kv_heads, group * rows, k_dim))?;
        let mut scores = (q.matmul(&keys.t()?)? * f64::from(attention.scale))?;
        if let Some(bound) = attention.softcap {
            scores = cap(&scores, bound)?;
        }
        let mut scores = scores.reshape((kv_heads, group, rows, seen))?;
        if let Some(slopes) = attention.alibi {
            let before = |(slope, row): (&f32, usize)| {
                let position = seen - rows + row;
                (0..seen).map(|key| slope * (key as f32 - position as f32)).collect::<Vec<f32>>()
            };
            let bias =
                slopes.iter().flat_map(|slope| (0..rows).map(move |row| (slope, row))).flat_map(before).collect();
            scores = (scores + Tensor::from_vec::<_, f32>(bias, (kv_heads, group, rows, seen), q.device())?)?;
        }
        if rows > 1 {
            scores = scores.broadcast_add(&mask(rows, seen, attention.window, q.device())?)?;
        }
        let mut max = scores.max_keepdim(D::Minus1)?;
        let sinks = attention.sinks.map(|s| s.reshape((kv_heads, group, 1, 1))).transpose()?;
        if let Some(sinks) = &sinks {
            max = max.broadcast_maximum(sinks)?;
        }
        let exps = scores.broadcast_sub(&max)?.exp()?;
        let mut sum = exps.sum_keepdim(D::Minus1)?;
        if let Some(sinks) = &sinks {
            sum = (sum + sinks.broadcast_sub(&max)?.exp()?)?;
        }
        let exps = rounded_to(self.values.dtype(), &exps)?.reshape((kv_heads, group * rows, seen))?;
        let mixed = exps.matmul(values)?.reshape((kv_heads, group, rows, v_dim))?.broadcast_div(&sum)?;
        mixed.permute((2, 0, 1, 3))?.reshape((rows, attention.heads * v_dim))
    }
}

/// Zero where a query sees a key, minus infinity elsewhere; the last query sees the last key.
fn mask(rows: usize, keys: usize, window: Option<usize>, device: &Device) -> Result<Tensor> {
    let mut mask = vec![f32::NEG_INFINITY; rows * keys];
    for (row, mask) in mask.chunks_exact_mut(keys).enumerate() {
        let end = keys - rows + row + 1;
        mask[window.map_or(0, |w| end.saturating_sub(w))..end].fill(0.0);
    }
    Tensor::from_vec(mask, (rows, keys), device)
}

/// Queries of a sequence that are computed together: bounds the scores held in memory.
const QUERIES: usize = 64;
