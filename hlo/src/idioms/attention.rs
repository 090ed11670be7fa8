//! Attention over a cache and what is new in this step, in two parts.
//!
//! Scores against the cache and scores against the new keys are taken apart, with one maximum and one denominator, so that
//! nothing waits for the cache to be written: reading, products and the write can overlap. One form serves a decode step
//! (many rows of one token) and a chunk (one row of many). Scores, exponentials and sums are f32; queries, and exponentials
//! as they multiply the values, are rounded to the type of the products, which is what the matrix unit takes.

use super::{MASKED, along};
use crate::op::{Binary, Direction, DotDims};
use crate::{Builder, DType, Val};

/// Keys and values of `n` rows: `[n, len, kv, d]` each, as they are stored.
#[derive(Clone, Copy, Debug)]
pub struct KeysValues {
    /// Keys.
    pub keys: Val,
    /// Values; their heads may be of another length.
    pub values: Val,
    /// Where they are integers, what they are to be multiplied by: `f32[n, len, kv]`, of keys and of values.
    pub scales: Option<[Val; 2]>,
}

/// How queries meet keys.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Factor of the scores.
    pub scale: f32,
    /// Keys that a query sees, itself included; all where absent.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`, after `scale`.
    pub softcap: Option<f32>,
    /// `f32[kv, g]`: a score per query head that takes part in the softmax and has no value.
    pub sinks: Option<Val>,
    /// `f32[kv, g]`: a slope per query head; scores gain it times the key's position less the query's, last of all.
    pub slopes: Option<Val>,
    /// Type of the products' operands: bf16 or f32.
    pub products: DType,
}

/// `t` consecutive tokens of each of `n` rows: `q f32[n, t, kv, g, d]`, of each row the first token's position
/// `first s32[n]`. A token attends to positions of `prior` below `first`, and to those of `new` up to itself. Result
/// `f32[n, t, kv * g * d]`.
#[track_caller]
pub fn attend(b: &mut Builder, q: Val, prior: Option<KeysValues>, new: KeysValues, first: Val, how: Attention) -> Val {
    b.check(q.rank() == 5 && new.keys.rank() == 4, || format!("queries {} of {}", q.shape(), new.keys.shape()));
    let (n, t) = (q.dim(0), q.dim(1));
    let q = b.convert(q, how.products);
    let mut parts = vec![];
    for part in prior.into_iter().chain([new]) {
        let of_prior = prior.is_some() && parts.is_empty();
        let mut scores = scores(b, q, part, how);
        // A token's distance to itself is none.
        if let Some(slopes) = how.slopes.filter(|_| of_prior || t > 1) {
            let distance =
                if of_prior { prior_distance(b, first, [n, t, part.keys.dim(1)]) } else { new_distance(b, t) };
            scores = sloped(b, scores, slopes, distance);
        }
        let allowed = if of_prior {
            Some(prior_mask(b, first, [n, t, part.keys.dim(1)], how.window))
        } else if t > 1 {
            Some(new_mask(b, t, how.window))
        } else {
            None
        };
        let scores = match allowed {
            None => scores,
            Some(allowed) => {
                let allowed = b.broadcast(allowed, by_key(allowed), &scores.dims());
                let low = b.full_like(scores, MASKED);
                b.select(allowed, scores, low)
            }
        };
        parts.push((scores, part));
    }

    // [n, kv, t, g] each.
    let sinks = how.sinks.map(|sinks| {
        let dims = [n, sinks.dim(0), t, sinks.dim(1)];
        b.broadcast(sinks, &[1, 3], &dims)
    });
    let mut max = sinks;
    for &(scores, _) in &parts {
        let largest = b.reduce(Binary::Maximum, scores, &[4]);
        max = Some(max.map_or(largest, |max| b.maximum(max, largest)));
    }
    let max = max.expect("there are new keys");
    let mut sum = sinks.map(|sinks| {
        let shifted = b.subtract(sinks, max);
        b.exponential(shifted)
    });
    let mut mixed: Option<Val> = None;
    for (scores, part) in parts {
        let every = along(b, max, &scores.dims(), 4);
        let shifted = b.subtract(scores, every);
        let powers = b.exponential(shifted);
        let total = b.reduce(Binary::Add, powers, &[4]);
        sum = Some(sum.map_or(total, |sum| b.add(sum, total)));
        let weights = match part.scales {
            None => powers,
            Some([_, scales]) => scaled(b, powers, scales),
        };
        let weights = b.convert(weights, how.products);
        let values = b.convert(part.values, how.products);
        let dims = DotDims {
            lhs_batch: vec![0, 1],
            rhs_batch: vec![0, 2],
            lhs_contracting: vec![4],
            rhs_contracting: vec![1],
        };
        let product = b.product(weights, values, dims); // [n, kv, t, g, d]
        mixed = Some(mixed.map_or(product, |mixed| b.add(mixed, product)));
    }
    let (mixed, sum) = (mixed.expect("there are new keys"), sum.expect("there are new keys"));
    let sum = along(b, sum, &mixed.dims(), 4);
    let out = b.divide(mixed, sum);
    let cols = out.dim(1) * out.dim(3) * out.dim(4);
    let out = if t == 1 { out } else { b.transpose(out, &[0, 2, 1, 3, 4]) };
    b.reshape(out, &[n, t, cols])
}

/// Scores `f32[n, kv, t, g, len]`, scaled and capped.
fn scores(b: &mut Builder, q: Val, part: KeysValues, how: Attention) -> Val {
    let keys = b.convert(part.keys, how.products);
    let dims =
        DotDims { lhs_batch: vec![0, 2], rhs_batch: vec![0, 2], lhs_contracting: vec![4], rhs_contracting: vec![3] };
    let mut scores = b.product(q, keys, dims);
    if let Some([scales, _]) = part.scales {
        scores = scaled(b, scores, scales);
    }
    let scale = b.full_like(scores, how.scale);
    scores = b.multiply(scores, scale);
    match how.softcap {
        None => scores,
        Some(cap) => super::soft_cap(b, scores, cap),
    }
}

/// `x [n, kv, t, g, len]` times `scales [n, len, kv]`.
fn scaled(b: &mut Builder, x: Val, scales: Val) -> Val {
    let scales = b.transpose(scales, &[0, 2, 1]);
    let scales = b.broadcast(scales, &[0, 1, 4], &x.dims());
    b.multiply(x, scales)
}

/// Where among the dimensions of scores those are of what is per row, token and key, or of token and key alone.
fn by_key(x: Val) -> &'static [usize] {
    if x.rank() == 3 { &[0, 2, 4] } else { &[2, 4] }
}

/// Scores `[n, kv, t, g, len]` and slopes `[kv, g]` times distances, `[n, t, len]` or `[t, len]`.
fn sloped(b: &mut Builder, scores: Val, slopes: Val, distance: Val) -> Val {
    let dims = scores.dims();
    let slopes = b.broadcast(slopes, &[1, 3], &dims);
    let distance = b.convert(distance, DType::F32);
    let distance = b.broadcast(distance, by_key(distance), &dims);
    let more = b.multiply(slopes, distance);
    b.add(scores, more)
}

/// The cache's position less the token's: `s32[n, t, len]`.
fn prior_distance(b: &mut Builder, first: Val, dims: [usize; 3]) -> Val {
    let columns = b.iota(DType::S32, &dims, 2);
    let first = b.broadcast(first, &[0], &dims);
    let tokens = b.iota(DType::S32, &dims, 1);
    let position = b.add(first, tokens);
    b.subtract(columns, position)
}

/// The column's token less the row's: `s32[t, t]`.
fn new_distance(b: &mut Builder, t: usize) -> Val {
    let rows = b.iota(DType::S32, &[t, t], 0);
    let columns = b.iota(DType::S32, &[t, t], 1);
    b.subtract(columns, rows)
}

/// Whether the cache's position is before the row's first token, and within the window of each: `pred[n, t, len]`.
fn prior_mask(b: &mut Builder, first: Val, dims: [usize; 3], window: Option<usize>) -> Val {
    let columns = b.iota(DType::S32, &dims, 2);
    let first = b.broadcast(first, &[0], &dims);
    let before = b.compare(Direction::Lt, columns, first);
    let Some(window) = window.and_then(|w| i32::try_from(w).ok()) else { return before };
    // In the window where position - column < window.
    let tokens = b.iota(DType::S32, &dims, 1);
    let position = b.add(first, tokens);
    let window = b.full(&dims, window);
    let beyond = b.subtract(position, window);
    let within = b.compare(Direction::Gt, columns, beyond);
    b.and(before, within)
}

/// Whether the column's token is at or before the row's, and in its window: `pred[t, t]`.
fn new_mask(b: &mut Builder, t: usize, window: Option<usize>) -> Val {
    let causal = super::causal(b, t);
    let Some(window) = window.filter(|w| *w < t) else { return causal };
    let rows = b.iota(DType::S32, &[t, t], 0);
    let columns = b.iota(DType::S32, &[t, t], 1);
    let window = b.full(&[t, t], window as i32); // below t
    let beyond = b.subtract(rows, window);
    let within = b.compare(Direction::Gt, columns, beyond);
    b.and(causal, within)
}
