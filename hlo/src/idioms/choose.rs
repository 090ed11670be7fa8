//! The largest of many, with the lowest index among equals: greedy choice and candidates for sampling.
//!
//! By reductions and comparisons alone. A variadic reduce is refused by neuronx-cc and its sort takes few comparators;
//! maximum, EQ and select are in every list. Ids never leave 0..n, whatever the values are (NaN included): they address
//! tables, and an index out of range ends a run on the device.

use super::{MAX_INDEX, along, take_rows};
use crate::builder::Custom;
use crate::op::{Binary, Direction, PadDim};
use crate::{Builder, DType, Val};

/// Where a shard of a vocabulary stands among all.
#[derive(Clone, Copy, Debug)]
pub struct Sharded<'a> {
    /// s32 scalar: the shard's first id. An input or made of one, since the module is the same on every rank.
    pub first_id: Val,
    /// Replicas that hold the other shards, in the order of their ids.
    pub groups: &'a [Vec<u32>],
}

/// The index of the largest along `dim` as s32, the lowest among equals.
#[track_caller]
pub fn arg_max(b: &mut Builder, x: Val, dim: usize) -> Val {
    if b.uses(Custom::ArgMax) {
        let id = b.custom_arg_max(x, dim);
        return b.convert(id, DType::S32);
    }
    let ids = b.iota(DType::S32, &x.dims(), dim);
    let (_, id) = largest(b, x, ids, dim);
    id
}

/// The k largest of each row of `[rows, n]`, descending, and their indices as s32: values `[rows, k]`, ids `[rows, k]`.
///
/// By rounds of maximum and masking out. So that a large vocabulary is not read k times, the rounds run over maxima of
/// blocks of 16 first, then over the elements of the k blocks found. That is exact: order elements by value, then by
/// lowest id. If one of the k first stood in a block that was not found, then k blocks went before its own, each by a
/// larger maximum or by the same and a lower number; so each holds an element that goes before it, which makes k. The
/// maxima are chosen from by the same rule, so blocks of blocks are as exact.
///
/// Meant for k values above the type's lowest: where a row has fewer, the rest repeat an id.
#[track_caller]
pub fn top_k(b: &mut Builder, x: Val, k: usize) -> [Val; 2] {
    b.check(x.rank() == 2 && (1..=x.dim(1)).contains(&k), || format!("top {k} of {}", x.shape()));
    if b.uses(Custom::TopK) {
        let n = x.dim(1);
        let lowest = lowest(b, x.dtype());
        let high = (n.next_multiple_of(8) - n) as i64;
        let padded =
            if high == 0 { x } else { b.pad(x, lowest, vec![PadDim::default(), PadDim { high, ..PadDim::default() }]) };
        let [values, ids] = b.custom_top_k(padded, k);
        return [values, b.convert(ids, DType::S32)];
    }
    let (rows, n) = (x.dim(0), x.dim(1));
    let blocks = n.div_ceil(BLOCK);
    // Rounds over n against rounds over n / 16 and over 16 k.
    if n <= blocks + 2 * BLOCK * k || rows.saturating_mul(blocks) > MAX_INDEX {
        let ids = b.iota(DType::S32, &x.dims(), 1);
        return rounds(b, x, ids, k);
    }
    let high = (blocks * BLOCK - n) as i64;
    let lowest = lowest(b, x.dtype());
    let x = if high == 0 { x } else { b.pad(x, lowest, vec![PadDim::default(), PadDim { high, ..PadDim::default() }]) };
    let table = b.reshape(x, &[rows * blocks, BLOCK]);
    let maxima = b.reduce(Binary::Maximum, table, &[1]);
    let maxima = b.reshape(maxima, &[rows, blocks]);
    let [_, found] = top_k(b, maxima, k);
    let row = b.iota(DType::S32, &[rows, k], 0);
    let per_row = b.full(&[rows, k], blocks as i32); // rows * blocks is below MAX_INDEX
    let first = b.multiply(row, per_row);
    let places = b.add(first, found);
    let places = b.reshape(places, &[rows * k]);
    let elements = take_rows(b, table, places);
    let elements = b.reshape(elements, &[rows, k * BLOCK]);
    let dims = [rows, k, BLOCK];
    let within = b.iota(DType::S32, &dims, 2);
    let block = b.full(&[rows, k], BLOCK as i32);
    let first = b.multiply(found, block);
    let first = b.broadcast(first, &[0, 1], &dims);
    let ids = b.add(first, within);
    let ids = b.reshape(ids, &[rows, k * BLOCK]);
    let [values, ids] = rounds(b, elements, ids, k);
    // What fills the last block is the lowest of all: it is found only where a row has nothing else left.
    let last = b.full(&ids.dims(), (n - 1) as i32);
    [values, b.minimum(ids, last)]
}

/// [`arg_max`] of the rows of `[rows, n]`, a vocabulary divided over replicas.
///
/// Ids travel as f32: integers are exact there below 2^24, and whether integers can be gathered is not documented.
#[track_caller]
pub fn sharded_arg_max(b: &mut Builder, x: Val, shard: Sharded<'_>) -> Val {
    let ids = b.iota(DType::S32, &x.dims(), 1);
    let (value, id) = largest(b, x, ids, 1);
    let [values, ids] = gathered(b, [value, id].map(|v| (v, 1)), shard);
    let (_, id) = largest(b, values, ids, 1);
    b.convert(id, DType::S32)
}

/// [`top_k`] of the rows of `[rows, n]`, a vocabulary divided over replicas: local candidates, gathered, and the best of
/// those on every replica.
#[track_caller]
pub fn sharded_top_k(b: &mut Builder, x: Val, k: usize, shard: Sharded<'_>) -> [Val; 2] {
    let local = k.min(x.dim(1));
    let found = top_k(b, x, local);
    let [values, ids] = gathered(b, found.map(|v| (v, local)), shard);
    b.check(k <= values.dim(1), || format!("top {k} of {}", values.shape()));
    let [values, ids] = rounds(b, values, ids, k);
    [values, b.convert(ids, DType::S32)]
}

/// Values and ids of all shards, `[rows, shards * n]` each; the ids counted over all shards, in f32.
fn gathered(b: &mut Builder, found: [(Val, usize); 2], shard: Sharded<'_>) -> [Val; 2] {
    let [value, (id, _)] = found;
    let first = b.broadcast(shard.first_id, &[], &id.dims());
    let id = b.add(id, first);
    let id = b.convert(id, DType::F32);
    [value.0, id].map(|x| {
        let x = b.reshape(x, &[x.dim(0), value.1]);
        b.all_gather(x, 1, shard.groups)
    })
}

/// The largest along `dim` and its id: the lowest of `ids` among equals.
fn largest(b: &mut Builder, x: Val, ids: Val, dim: usize) -> (Val, Val) {
    b.check(dim < x.rank() && (1..MAX_INDEX).contains(&x.dim(dim)), || format!("the largest of {}", x.shape()));
    let max = b.reduce(Binary::Maximum, x, &[dim]);
    let every = along(b, max, &x.dims(), dim);
    let equal = b.compare(Direction::Eq, x, every);
    // What the others get: more than any id, but itself an integer that f32 holds.
    let beyond = match ids.dtype() {
        DType::S32 => b.full(&x.dims(), MAX_INDEX as i32),
        _ => b.full(&x.dims(), MAX_INDEX as f32),
    };
    let candidates = b.select(equal, ids, beyond);
    let id = b.reduce(Binary::Minimum, candidates, &[dim]);
    // NaN equals nothing: then it is the largest id there is.
    let last = b.reduce(Binary::Maximum, ids, &[dim]);
    (max, b.minimum(id, last))
}

/// k times the largest of each row, masked out once it is found.
fn rounds(b: &mut Builder, mut x: Val, ids: Val, k: usize) -> [Val; 2] {
    let rows = x.dim(0);
    let lowest = lowest(b, x.dtype());
    let lowest = b.broadcast(lowest, &[], &x.dims());
    let (mut values, mut found) = (vec![], vec![]);
    for round in 0..k {
        let (value, id) = largest(b, x, ids, 1);
        values.push(b.reshape(value, &[rows, 1]));
        found.push(b.reshape(id, &[rows, 1]));
        if round + 1 < k {
            let taken = along(b, id, &x.dims(), 1);
            let taken = b.compare(Direction::Eq, ids, taken);
            x = b.select(taken, lowest, x);
        }
    }
    [b.concatenate(&values, 1), b.concatenate(&found, 1)]
}

/// The lowest finite number of a float type.
fn lowest(b: &mut Builder, dtype: DType) -> Val {
    match dtype {
        DType::BF16 => b.scalar(half::bf16::MIN),
        DType::F16 => b.scalar(half::f16::MIN),
        _ => b.scalar(f32::MIN),
    }
}

/// Elements whose maximum stands for them.
const BLOCK: usize = 16;
