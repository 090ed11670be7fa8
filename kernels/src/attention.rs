//! Attention of one sequence and one key/value head over the paged cache, in one pass (Dao et al. 2022,
//! arXiv:2205.14135; online softmax of Milakov and Gimelshein 2018, arXiv:1805.02867).
//!
//! Queries (rows of the sequence times the query heads of the group) are taken [`Simd::TILE`] at a time over key tiles
//! of [`KEY_TILE`] keys **at absolute positions**: a query's result depends on its own keys alone, not on which queries
//! share its tile. A key tile that is masked for a query changes nothing: its probabilities are exact zeros and the
//! running maximum keeps its value, so `e^0 = 1` rescales.

use crate::kv::{KEYS, KvCache, KvStored};
use crate::simd::{self, Simd};

/// Keys of one softmax step.
pub const KEY_TILE: usize = 64;
/// Queries of a tile at most, on any instruction set.
pub const MAX_TILE: usize = 8;

/// One task: some consecutive rows of a sequence, one key/value head.
#[derive(Clone, Copy, Debug)]
pub struct AttendArgs<'a> {
    /// Queries of the first row.
    pub q: *const f32,
    /// Distance of rows in `q`.
    pub q_stride: usize,
    /// Results of the first row.
    pub out: *mut f32,
    /// Distance of rows in `out`.
    pub out_stride: usize,
    /// Rows.
    pub rows: usize,
    /// Position of the first row.
    pub position: usize,
    /// Query heads per key/value head.
    pub group: usize,
    /// The key/value head.
    pub head: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Keys a query sees.
    pub window: usize,
    /// Scores become `cap * tanh(score / cap)`, after `scale`.
    pub softcap: Option<f32>,
    /// A score per query head that takes part in the softmax and has no value; or null.
    pub sinks: *const f32,
    /// A slope per query head, by which scores grow with the key's position; or null.
    pub alibi: *const f32,
    /// The layer's cache.
    pub cache: &'a KvCache,
    /// The sequence's blocks.
    pub table: &'a [u32],
    /// `scratch_len` values of the worker's own.
    pub scratch: *mut f32,
}

/// Values of scratch that a task needs.
pub fn scratch_len(k_dim: usize, v_pad: usize) -> usize {
    MAX_TILE * (k_dim + v_pad + KEY_TILE)
}

/// An attention kernel.
pub type AttendFn = unsafe fn(&AttendArgs<'_>);

/// Attends all queries of the task; `KV` is `KvStored as u8`.
#[inline(always)]
pub unsafe fn attend<S: Simd, const KV: u8>(a: &AttendArgs<'_>) {
    let items = a.rows * a.group;
    let mut first = 0;
    while first < items {
        let n = (items - first).min(S::TILE);
        // SAFETY: the caller vouches for the instruction set and the pointers; the tile lies within the task.
        unsafe {
            match n {
                1 => tile::<S, KV, 1>(a, first),
                2 => tile::<S, KV, 2>(a, first),
                3 => tile::<S, KV, 3>(a, first),
                4 => tile::<S, KV, 4>(a, first),
                5 if S::TILE >= 5 => tile::<S, KV, 5>(a, first),
                6 if S::TILE >= 6 => tile::<S, KV, 6>(a, first),
                7 if S::TILE >= 7 => tile::<S, KV, 7>(a, first),
                8 if S::TILE >= 8 => tile::<S, KV, 8>(a, first),
                _ => unreachable!("a tile holds at most S::TILE queries"),
            }
        }
        first += n;
    }
}

#[inline(always)]
unsafe fn load_kv<S: Simd, const KV: u8>(p: *const u8, i: usize) -> S::F {
    // SAFETY: the caller's element range is valid.
    unsafe {
        if KV == KvStored::F32 as u8 {
            S::load(p.cast::<f32>().add(i))
        } else if KV == KvStored::F16 as u8 {
            S::load_f16(p.cast::<u16>().add(i))
        } else if KV == KvStored::Bf16 as u8 {
            S::load_bf16(p.cast::<u16>().add(i))
        } else {
            S::load_i8(p.cast::<i8>().add(i))
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const KV: u8, const NT: usize>(a: &AttendArgs<'_>, first: usize) {
    let shape = &a.cache.shape;
    let (k_dim, v_dim, v_pad) = (shape.k_dim, shape.v_dim, shape.v_pad());
    // Item i of the task is row i / group, query head i % group.
    let row = |t: usize| (first + t) / a.group;
    let column = |t: usize| a.head * a.group + (first + t) % a.group;
    let to = std::array::from_fn(|t| a.position + row(t) + 1);
    let seen = Seen { from: std::array::from_fn(|t| to[t].saturating_sub(a.window)), to };
    let (begin, end) = (seen.from[0] / KEY_TILE * KEY_TILE, seen.to[NT - 1]);
    // SAFETY: the scratch holds the three parts; rows, blocks and heads are those of the task.
    unsafe {
        let q = a.scratch;
        let acc = q.add(MAX_TILE * k_dim);
        let scores = acc.add(MAX_TILE * v_pad);
        for t in 0..NT {
            let source = a.q.add(row(t) * a.q_stride + column(t) * k_dim);
            for d in 0..k_dim {
                *q.add(d * NT + t) = *source.add(d) * a.scale;
            }
        }
        std::ptr::write_bytes(acc, 0, NT * v_pad);
        let mut max = [-1e30_f32; KEYS];
        let mut sum = [0.0_f32; NT];
        if !a.sinks.is_null() {
            // As if a key with this score and a value of zeros had been seen before all others.
            for t in 0..NT {
                max[t] = (*a.sinks.add(column(t))).max(max[t]);
                sum[t] = 1.0;
            }
        }
        let mut key0 = begin;
        while key0 < end {
            let count = (end - key0).min(KEY_TILE);
            let vectors = count.div_ceil(S::LANES);
            let mut first = 0;
            while first < vectors {
                score::<S, KV, NT>(a, &seen, q, scores, (key0, first, vectors));
                first += unroll(NT);
            }
            if !a.alibi.is_null() {
                for t in 0..NT {
                    let (slope, position) = (*a.alibi.add(column(t)), (to[t] - 1) as f32);
                    for i in 0..count {
                        *scores.add(t * KEY_TILE + i) += slope * ((key0 + i) as f32 - position);
                    }
                }
            }
            softmax_step::<S, NT>(scores, vectors, &mut max, &mut sum, acc, v_pad);
            if KV == KvStored::Int8 as u8 {
                scale_probabilities::<NT>(a, scores, key0, count);
            }
            let columns = v_pad / S::LANES;
            let mut first = 0;
            while first < columns {
                if first + unroll(NT) <= columns {
                    weigh::<S, KV, NT, true>(a, scores, acc, (key0, count), first * S::LANES);
                    first += unroll(NT);
                } else {
                    weigh::<S, KV, NT, false>(a, scores, acc, (key0, count), first * S::LANES);
                    first += 1;
                }
            }
            key0 += KEY_TILE;
        }
        for t in 0..NT {
            let out = a.out.add(row(t) * a.out_stride + column(t) * v_dim);
            let inverse = S::splat(1.0 / sum[t]);
            for i in (0..v_dim).step_by(S::LANES) {
                S::store_n(out.add(i), S::mul(S::load(acc.add(t * v_pad + i)), inverse), (v_dim - i).min(S::LANES));
            }
        }
    }
}

/// Keys that each query of a tile sees: `from[t]..to[t]`.
struct Seen<const NT: usize> {
    from: [usize; NT],
    to: [usize; NT],
}

/// Vectors worked on at once, so that few queries still keep the multipliers busy.
const fn unroll(queries: usize) -> usize {
    match queries {
        0..=3 => 4,
        4..=6 => 2,
        _ => 1,
    }
}

/// Scores of [`unroll`] vectors of keys, from vector `first` of the tile at `key0`. Vectors past the last repeat it and
/// are masked.
#[inline(always)]
unsafe fn score<S: Simd, const KV: u8, const NT: usize>(
    a: &AttendArgs<'_>,
    seen: &Seen<NT>,
    q: *const f32,
    scores: *mut f32,
    (key0, first, vectors): (usize, usize, usize),
) {
    let shape = &a.cache.shape;
    let keys = a.cache.keys.as_slice().as_ptr();
    let place = |u: usize| {
        let key = key0 + (first + u).min(vectors - 1) * S::LANES;
        // SAFETY: the key is one of the sequence's, whose blocks were checked.
        let block = unsafe { *a.table.get_unchecked(key / shape.block_len) } as usize;
        let within = key % shape.block_len;
        let at = shape.head_start(block, a.head, shape.k_dim) + within / KEYS * KEYS * shape.k_dim + within % KEYS;
        (at, shape.head_start(block, a.head, 1) + within)
    };
    // SAFETY: places lie in the cache; `q` and `scores` in the scratch.
    unsafe {
        let mut at = [0; 4];
        for u in 0..unroll(NT) {
            at[u] = place(u).0;
        }
        let mut s = [[S::zero(); NT]; 4];
        for d in 0..shape.k_dim {
            for u in 0..unroll(NT) {
                let k = load_kv::<S, KV>(keys, at[u] + d * KEYS);
                for t in 0..NT {
                    s[u][t] = S::fma(k, S::splat(*q.add(d * NT + t)), s[u][t]);
                }
            }
        }
        for u in 0..unroll(NT) {
            if first + u >= vectors {
                break;
            }
            if KV == KvStored::Int8 as u8 {
                let scale = S::load(a.cache.key_scales.as_slice().as_ptr().cast::<f32>().add(place(u).1));
                for t in 0..NT {
                    s[u][t] = S::mul(s[u][t], scale);
                }
            }
            if let Some(cap) = a.softcap {
                let (cap, inverse) = (S::splat(cap), S::splat(1.0 / cap));
                for t in 0..NT {
                    s[u][t] = S::mul(simd::tanh::<S>(S::mul(s[u][t], inverse)), cap);
                }
            }
            let key = key0 + (first + u) * S::LANES;
            for t in 0..NT {
                let masked = S::mask_range(s[u][t], key as i32, seen.from[t] as i32, seen.to[t] as i32);
                S::store(scores.add(t * KEY_TILE + (first + u) * S::LANES), masked);
            }
        }
    }
}

/// Adds the values of `count` keys from `key0`, weighted, to [`unroll`] vectors of the accumulator (or one) at `column`.
#[inline(always)]
unsafe fn weigh<S: Simd, const KV: u8, const NT: usize, const MANY: bool>(
    a: &AttendArgs<'_>,
    scores: *const f32,
    acc: *mut f32,
    (key0, count): (usize, usize),
    column: usize,
) {
    let shape = &a.cache.shape;
    let (v_pad, block_len) = (shape.v_pad(), shape.block_len);
    let values = a.cache.values.as_slice().as_ptr();
    let width = if MANY { unroll(NT) } else { 1 };
    // SAFETY: keys lie in the sequence's blocks, columns in the padded value; `acc` and `scores` in the scratch.
    unsafe {
        let mut o = [[S::zero(); NT]; 4];
        for u in 0..width {
            for t in 0..NT {
                o[u][t] = S::load(acc.add(t * v_pad + column + u * S::LANES));
            }
        }
        let mut i = 0;
        while i < count {
            let key = key0 + i;
            let block = *a.table.get_unchecked(key / block_len) as usize;
            let at = shape.head_start(block, a.head, v_pad) + key % block_len * v_pad + column;
            let run = (block_len - key % block_len).min(count - i);
            for j in 0..run {
                for u in 0..width {
                    let v = load_kv::<S, KV>(values, at + j * v_pad + u * S::LANES);
                    for t in 0..NT {
                        o[u][t] = S::fma(v, S::splat(*scores.add(t * KEY_TILE + i + j)), o[u][t]);
                    }
                }
            }
            i += run;
        }
        for u in 0..width {
            for t in 0..NT {
                S::store(acc.add(t * v_pad + column + u * S::LANES), o[u][t]);
            }
        }
    }
}

/// Turns a tile of scores into probabilities relative to the running maximum, and rescales what was summed before.
#[inline(always)]
unsafe fn softmax_step<S: Simd, const NT: usize>(
    scores: *mut f32,
    vectors: usize,
    max: &mut [f32; KEYS],
    sum: &mut [f32; NT],
    acc: *mut f32,
    v_pad: usize,
) {
    // SAFETY: the caller vouches for the instruction set and the tile's buffers.
    unsafe {
        let mut rescale = [0.0_f32; KEYS];
        for t in 0..NT {
            let s = scores.add(t * KEY_TILE);
            let mut largest = S::load(s);
            for i in (S::LANES..vectors * S::LANES).step_by(S::LANES) {
                largest = S::max(largest, S::load(s.add(i)));
            }
            let new = S::hmax(largest).max(max[t]);
            rescale[t] = max[t] - new;
            max[t] = new;
        }
        for i in (0..KEYS).step_by(S::LANES) {
            S::store(rescale.as_mut_ptr().add(i), simd::exp::<S>(S::load(rescale.as_ptr().add(i))));
        }
        for t in 0..NT {
            let s = scores.add(t * KEY_TILE);
            let shift = S::splat(max[t]);
            let mut total = S::zero();
            for i in (0..vectors * S::LANES).step_by(S::LANES) {
                let p = simd::exp::<S>(S::sub(S::load(s.add(i)), shift));
                S::store(s.add(i), p);
                total = S::add(total, p);
            }
            sum[t] = sum[t] * rescale[t] + S::sum(total);
            if rescale[t] != 1.0 {
                let r = S::splat(rescale[t]);
                for i in (0..v_pad).step_by(S::LANES) {
                    S::store(acc.add(t * v_pad + i), S::mul(S::load(acc.add(t * v_pad + i)), r));
                }
            }
        }
    }
}

/// Folds the value scales of an int8 cache into the probabilities.
#[inline(always)]
unsafe fn scale_probabilities<const NT: usize>(a: &AttendArgs<'_>, scores: *mut f32, key0: usize, count: usize) {
    let shape = &a.cache.shape;
    // SAFETY: keys `key0 .. key0 + count` lie in the sequence's blocks, the tile in the scratch.
    unsafe {
        let scales = a.cache.value_scales.as_slice().as_ptr().cast::<f32>();
        for i in 0..count {
            let key = key0 + i;
            let block = *a.table.get_unchecked(key / shape.block_len) as usize;
            let scale = *scales.add(shape.head_start(block, a.head, 1) + key % shape.block_len);
            for t in 0..NT {
                *scores.add(t * KEY_TILE + i) *= scale;
            }
        }
    }
}

#[cfg(test)]
mod tests;
