//! Attention over a cache and what is new in this step, in two parts.
//!
//! Scores against the cache and scores against the new keys are taken apart, with one maximum and one denominator, so that
//! nothing waits for the cache to be written: reading, products and the write can overlap. Shapes: `kv` heads of keys, `g`
//! query heads for each, `d` elements a head. Scores and sums are f32; weights are rounded to the values' type for their
//! product, which is what the matrix unit takes.

use super::{along, mask};
use crate::op::{Binary, DotDims};
use crate::{Builder, DType, Val};

/// Row numbers of a cache flattened to `[positions * rows, ...]`: position · rows + row, both `s32[n]`.
#[track_caller]
pub fn cache_rows(b: &mut Builder, positions: Val, row: Val, rows: usize) -> Val {
    let rows = b.full(&positions.dims(), i32::try_from(rows).unwrap_or(i32::MAX));
    let first = b.multiply(positions, rows);
    b.add(first, row)
}

/// One new token per row: `q [b, kv, g, d]`, `cache [len, b, kv, d]` of keys and of values, `new [b, kv, d]` of both,
/// `positions s32[b]`. A row attends to cache positions below its own, and to itself. Result `f32[b, kv, g, d]`.
#[track_caller]
pub fn decode_attention(b: &mut Builder, q: Val, cache: [Val; 2], new: [Val; 2], positions: Val, scale: f32) -> Val {
    let ([old_keys, old_values], [key, value]) = (cache, new);
    let q = scaled(b, q, scale);
    let old = b.dot(q, old_keys, pairs([0, 1], [1, 2], 3, 3), DType::F32); // [b, kv, g, len]
    let allowed = mask::before(b, positions, old.dim(3));
    let allowed = b.broadcast(allowed, &[0, 3], &old.dims());
    let old = mask::masked(b, allowed, old);
    let own = b.dot(q, key, pairs([0, 1], [0, 1], 3, 2), DType::F32); // [b, kv, g]

    let max = b.reduce(Binary::Maximum, old, &[3]);
    let max = b.maximum(max, own);
    let every = along(b, max, &old.dims(), 3);
    let old = b.subtract(old, every);
    let old = b.exponential(old);
    let own = b.subtract(own, max);
    let own = b.exponential(own);
    let sum = b.reduce(Binary::Add, old, &[3]);
    let sum = b.add(sum, own);

    let weights = b.convert(old, old_values.dtype());
    let past = b.dot(weights, old_values, pairs([0, 1], [1, 2], 3, 0), DType::F32); // [b, kv, g, d]
    let shape = past.dims();
    let value = b.convert(value, DType::F32);
    let value = b.broadcast(value, &[0, 1, 3], &shape);
    let own = along(b, own, &shape, 3);
    let own = b.multiply(own, value);
    let out = b.add(past, own);
    let sum = along(b, sum, &shape, 3);
    b.divide(out, sum)
}

/// Several new tokens of one row: `q [t, kv, g, d]`, `cache [len, kv, d]` of keys and of values, `new [t, kv, d]` of both,
/// `start s32[]`, the position of the first. Tokens attend to cache positions below `start`, and among the new to those up
/// to themselves. Result `f32[kv, t, g, d]`.
#[track_caller]
pub fn chunk_attention(b: &mut Builder, q: Val, cache: [Val; 2], new: [Val; 2], start: Val, scale: f32) -> Val {
    let ([old_keys, old_values], [keys, values]) = (cache, new);
    let q = scaled(b, q, scale);
    let by_head =
        || DotDims { lhs_batch: vec![1], rhs_batch: vec![1], lhs_contracting: vec![3], rhs_contracting: vec![2] };
    let old = b.dot(q, old_keys, by_head(), DType::F32); // [kv, t, g, len]
    let start = b.reshape(start, &[1]);
    let allowed = mask::before(b, start, old.dim(3));
    let allowed = b.reshape(allowed, &[old.dim(3)]);
    let allowed = b.broadcast(allowed, &[3], &old.dims());
    let old = mask::masked(b, allowed, old);
    let own = b.dot(q, keys, by_head(), DType::F32); // [kv, t, g, t]
    let allowed = mask::causal(b, own.dim(3));
    let allowed = b.broadcast(allowed, &[1, 3], &own.dims());
    let own = mask::masked(b, allowed, own);

    let max = b.reduce(Binary::Maximum, old, &[3]);
    let own_max = b.reduce(Binary::Maximum, own, &[3]);
    let max = b.maximum(max, own_max);
    let [(old, past), (own, present)] = [(old, old_values), (own, values)].map(|(scores, values)| {
        let every = along(b, max, &scores.dims(), 3);
        let shifted = b.subtract(scores, every);
        let powers = b.exponential(shifted);
        let sum = b.reduce(Binary::Add, powers, &[3]);
        let weights = b.convert(powers, values.dtype());
        let dims =
            DotDims { lhs_batch: vec![0], rhs_batch: vec![1], lhs_contracting: vec![3], rhs_contracting: vec![0] };
        (sum, b.dot(weights, values, dims, DType::F32)) // [kv, t, g], [kv, t, g, d]
    });
    let sum = b.add(old, own);
    let out = b.add(past, present);
    let sum = along(b, sum, &out.dims(), 3);
    b.divide(out, sum)
}

fn scaled(b: &mut Builder, q: Val, scale: f32) -> Val {
    super::in_f32(b, q, |b, q| {
        let scale = b.full_like(q, scale);
        b.multiply(q, scale)
    })
}

fn pairs(lhs_batch: [usize; 2], rhs_batch: [usize; 2], lhs: usize, rhs: usize) -> DotDims {
    DotDims {
        lhs_batch: lhs_batch.to_vec(),
        rhs_batch: rhs_batch.to_vec(),
        lhs_contracting: vec![lhs],
        rhs_contracting: vec![rhs],
    }
}
