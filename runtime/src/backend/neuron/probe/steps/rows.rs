//! Modules of memory: rows of tables and caches, read and written at indices of run time.
//!
//! A cache is `[4 rows, 32 positions, 16 wide]`; a decode step writes a token of each of its first three rows, a chunk
//! eight tokens of one row.

use njoule_hlo::op::{Direction, DotDims, GatherDims};
use njoule_hlo::{Builder, DType, Tensor, Val, idioms};

use super::idioms::halves;
use crate::backend::neuron::Profile;
use crate::backend::neuron::probe::Trial;

pub(super) fn lookup_gather(_: &Profile) -> Vec<Trial> {
    vec![lookup("probe_lookup_gather", idioms::take_rows)]
}

pub(super) fn lookup_one_hot(_: &Profile) -> Vec<Trial> {
    vec![lookup("probe_lookup_one_hot", idioms::take_rows_by_dot)]
}

fn lookup(name: &str, take: fn(&mut Builder, Val, Val) -> Val) -> Trial {
    let mut b = Builder::new(name);
    let table = b.parameter("table", DType::BF16, &[512, 64]);
    let ids = b.parameter("ids", DType::S32, &[8]);
    let rows = take(&mut b, table, ids);
    let inputs = vec![halves(&[512, 64], |i| (i % 509) as f32 * 0.25), numbers(&[511, 0, 256, 257, 3, 3, 100, 510])];
    Trial { module: b.finish(&[rows]), inputs, runs: 1, tolerance: 0.0 }
}

pub(super) fn write_scatter(_: &Profile) -> Vec<Trial> {
    let decode = decode("probe_write_scatter_decode", |b, cache, new, slots| {
        let rows = b.iota(DType::S32, &[BATCH], 0);
        scatter(b, cache, new, rows, slots)
    });
    let chunk = chunk("probe_write_scatter_chunk", |b, cache, new, row, start| {
        let rows = b.broadcast(row, &[], &[TOKENS]);
        let positions = consecutive(b, start, TOKENS);
        scatter(b, cache, new, rows, positions)
    });
    vec![decode, chunk]
}

fn scatter(b: &mut Builder, cache: Val, new: Val, rows: Val, positions: Val) -> Val {
    let per_row = b.full(&rows.dims(), POSITIONS as i32);
    let first = b.multiply(rows, per_row);
    let places = b.add(first, positions);
    let flat = b.reshape(cache, &[ROWS * POSITIONS, WIDTH]);
    let flat = idioms::write_rows(b, flat, places, new);
    b.reshape(flat, &CACHE)
}

pub(super) fn write_update_slice(_: &Profile) -> Vec<Trial> {
    let decode = decode("probe_write_update_slice_decode", |b, mut cache, new, slots| {
        let zero = b.scalar(0i32);
        for i in 0..BATCH {
            let slot = b.slice_dim(slots, 0, i..i + 1);
            let slot = b.reshape(slot, &[]);
            let row = b.scalar(i as i32);
            let one = b.slice_dim(new, 0, i..i + 1);
            let one = b.reshape(one, &[1, 1, WIDTH]);
            cache = b.dynamic_update_slice(cache, one, &[row, slot, zero]);
        }
        cache
    });
    let chunk = chunk("probe_write_update_slice_chunk", |b, cache, new, row, start| {
        let zero = b.scalar(0i32);
        let new = b.reshape(new, &[1, TOKENS, WIDTH]);
        b.dynamic_update_slice(cache, new, &[row, start, zero])
    });
    vec![decode, chunk]
}

pub(super) fn write_select(_: &Profile) -> Vec<Trial> {
    let decode = decode("probe_write_select_decode", |b, cache, new, slots| {
        let used = b.slice_dim(cache, 0, 0..BATCH);
        let columns = b.iota(DType::S32, &[BATCH, POSITIONS], 1);
        let slots = b.broadcast(slots, &[0], &[BATCH, POSITIONS]);
        let hit = b.compare(Direction::Eq, columns, slots);
        let hit = b.broadcast(hit, &[0, 1], &used.dims());
        let new = b.broadcast(new, &[0, 2], &used.dims());
        let used = b.select(hit, new, used);
        let rest = b.slice_dim(cache, 0, BATCH..ROWS);
        b.concatenate(&[used, rest], 0)
    });
    let chunk = chunk("probe_write_select_chunk", |b, cache, new, row, start| {
        let at = consecutive(b, start, TOKENS);
        let columns = b.iota(DType::S32, &[POSITIONS, TOKENS], 0);
        let at = b.broadcast(at, &[1], &[POSITIONS, TOKENS]);
        let hot = b.compare(Direction::Eq, columns, at);
        let hot = b.convert(hot, DType::BF16);
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let placed = b.dot(hot, new, dims, DType::F32);
        let placed = b.convert(placed, DType::BF16);
        let ones = b.full(&[TOKENS], half::bf16::ONE);
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let written = b.dot(hot, ones, dims, DType::F32);
        let none = b.full(&[POSITIONS], 0f32);
        let written = b.compare(Direction::Gt, written, none);
        let written = b.broadcast(written, &[1], &[ROWS, POSITIONS]);
        let number = b.iota(DType::S32, &[ROWS, POSITIONS], 0);
        let row = b.broadcast(row, &[], &[ROWS, POSITIONS]);
        let mine = b.compare(Direction::Eq, number, row);
        let hit = b.and(written, mine);
        let hit = b.broadcast(hit, &[0, 1], &CACHE);
        let placed = b.broadcast(placed, &[1, 2], &CACHE);
        b.select(hit, placed, cache)
    });
    vec![decode, chunk]
}

/// A token of each of the first rows, at positions of their own; the cache is updated in place, twice.
fn decode(name: &str, write: fn(&mut Builder, Val, Val, Val) -> Val) -> Trial {
    let mut b = Builder::new(name);
    let cache = b.parameter("cache", DType::BF16, &CACHE);
    let new = b.parameter("new", DType::BF16, &[BATCH, WIDTH]);
    let slots = b.parameter("slots", DType::S32, &[BATCH]);
    b.alias(0, cache);
    let written = write(&mut b, cache, new, slots);
    let inputs = vec![before(), halves(&[BATCH, WIDTH], |i| -1.0 - i as f32), numbers(&[0, 31, 17])];
    Trial { module: b.finish(&[written]), inputs, runs: 2, tolerance: 0.0 }
}

/// Tokens of row 2 from position 9 on.
fn chunk(name: &str, write: fn(&mut Builder, Val, Val, Val, Val) -> Val) -> Trial {
    let mut b = Builder::new(name);
    let cache = b.parameter("cache", DType::BF16, &CACHE);
    let new = b.parameter("new", DType::BF16, &[TOKENS, WIDTH]);
    let row = b.parameter("row", DType::S32, &[]);
    let start = b.parameter("start", DType::S32, &[]);
    b.alias(0, cache);
    let written = write(&mut b, cache, new, row, start);
    let new = halves(&[TOKENS, WIDTH], |i| -1.0 - i as f32);
    let inputs = vec![before(), new, Tensor::scalar(2i32), Tensor::scalar(9i32)];
    Trial { module: b.finish(&[written]), inputs, runs: 1, tolerance: 0.0 }
}

pub(super) fn read_slice(_: &Profile) -> Vec<Trial> {
    vec![read("probe_read_dynamic_slice", |b, cache, row| {
        let zero = b.scalar(0i32);
        b.dynamic_slice(cache, &[row, zero, zero], &[1, LEN, WIDTH])
    })]
}

pub(super) fn read_gather(_: &Profile) -> Vec<Trial> {
    vec![read("probe_read_gather", |b, cache, row| {
        let (first, last) = (b.scalar(0i32), b.scalar(ROWS as i32 - 1));
        let row = b.clamp(first, row, last);
        let row = b.reshape(row, &[1, 1]);
        let dims = GatherDims {
            offset_dims: vec![1, 2],
            collapsed_slice_dims: vec![0],
            start_index_map: vec![0],
            index_vector_dim: 1,
            slice_sizes: vec![1, LEN, WIDTH],
            indices_are_sorted: false,
        };
        b.gather(cache, row, dims)
    })]
}

/// The first positions of row 3.
fn read(name: &str, read: fn(&mut Builder, Val, Val) -> Val) -> Trial {
    let mut b = Builder::new(name);
    let cache = b.parameter("cache", DType::BF16, &CACHE);
    let row = b.parameter("row", DType::S32, &[]);
    let part = read(&mut b, cache, row);
    Trial { module: b.finish(&[part]), inputs: vec![before(), Tensor::scalar(3i32)], runs: 1, tolerance: 0.0 }
}

/// start, start + 1, ...
fn consecutive(b: &mut Builder, start: Val, n: usize) -> Val {
    let numbers = b.iota(DType::S32, &[n], 0);
    let start = b.broadcast(start, &[], &[n]);
    b.add(numbers, start)
}

/// A cache in which each element tells where it stands, as far as bf16 can.
fn before() -> Tensor {
    halves(&CACHE, |i| (i % 251) as f32)
}

fn numbers(values: &[i32]) -> Tensor {
    Tensor::new(&[values.len()], values.to_vec()).expect("as long as it is")
}

const ROWS: usize = 4;
const POSITIONS: usize = 32;
const WIDTH: usize = 16;
const CACHE: [usize; 3] = [ROWS, POSITIONS, WIDTH];
const BATCH: usize = 3;
const TOKENS: usize = 8;
const LEN: usize = 24;
