//! Modules of memory: rows of tables and caches, read and written at indices of run time.
//!
//! A cache is `[4 rows, 32 positions, 2 heads, 8 values]`; a decode step writes a token of each of its first three rows, a
//! chunk eight tokens of one row.

use njoule_hlo::{Builder, DType, Tensor, Val, idioms};

use super::idioms::halves;
use crate::backend::neuron::Profile;
use crate::backend::neuron::lower::cache::{self, Place};
use crate::backend::neuron::lower::options;
use crate::backend::neuron::probe::Trial;
use crate::backend::neuron::profile::{CacheWrite, Lookup, RowRead};

pub(super) fn lookup_gather(_: &Profile) -> Vec<Trial> {
    vec![lookup("probe_lookup_gather", Lookup::Gather)]
}

pub(super) fn lookup_one_hot(_: &Profile) -> Vec<Trial> {
    vec![lookup("probe_lookup_one_hot", Lookup::OneHot)]
}

fn lookup(name: &str, lookup: Lookup) -> Trial {
    let mut b = Builder::with_options(name, options(&Profile { lookup, ..Profile::default() }));
    let table = b.parameter("table", DType::BF16, &[512, 64]);
    let ids = b.parameter("ids", DType::S32, &[8]);
    let rows = idioms::take_rows(&mut b, table, ids);
    let inputs = vec![halves(&[512, 64], |i| (i % 509) as f32 * 0.25), numbers(&[511, 0, 256, 257, 3, 3, 100, 510])];
    Trial::exact(b.finish(&[rows]), inputs)
}

pub(super) fn write_scatter(_: &Profile) -> Vec<Trial> {
    written("scatter", CacheWrite::Scatter)
}

pub(super) fn write_update_slice(_: &Profile) -> Vec<Trial> {
    written("update_slice", CacheWrite::UpdateSlice)
}

pub(super) fn write_select(_: &Profile) -> Vec<Trial> {
    written("select", CacheWrite::Select)
}

fn written(name: &str, form: CacheWrite) -> Vec<Trial> {
    vec![decode(&format!("probe_write_{name}_decode"), form), chunk(&format!("probe_write_{name}_chunk"), form)]
}

/// A token of each of the first rows, at positions of their own; the cache is updated in place, twice.
fn decode(name: &str, form: CacheWrite) -> Trial {
    let mut b = Builder::new(name);
    let cache = b.parameter("cache", DType::BF16, &CACHE);
    let new = b.parameter("new", DType::BF16, &[BATCH, 1, HEADS, DIM]);
    let slots = b.parameter("slots", DType::S32, &[BATCH]);
    b.alias(0, cache);
    let written = cache::write(&mut b, form, cache, new, Place::Rows { slots });
    let new = halves(&[BATCH, 1, HEADS, DIM], |i| -1.0 - i as f32);
    let inputs = vec![before(), new, numbers(&[0, 31, 17])];
    Trial { runs: 2, ..Trial::exact(b.finish(&[written]), inputs) }
}

/// Tokens of row 2 from position 9 on.
fn chunk(name: &str, form: CacheWrite) -> Trial {
    let mut b = Builder::new(name);
    let cache = b.parameter("cache", DType::BF16, &CACHE);
    let new = b.parameter("new", DType::BF16, &[1, TOKENS, HEADS, DIM]);
    let row = b.parameter("row", DType::S32, &[]);
    let start = b.parameter("start", DType::S32, &[]);
    b.alias(0, cache);
    let positions = consecutive(&mut b, start, TOKENS);
    let written = cache::write(&mut b, form, cache, new, Place::Chunk { row, start, positions });
    let new = halves(&[1, TOKENS, HEADS, DIM], |i| -1.0 - i as f32);
    let inputs = vec![before(), new, Tensor::scalar(2i32), Tensor::scalar(9i32)];
    Trial::exact(b.finish(&[written]), inputs)
}

pub(super) fn read_slice(_: &Profile) -> Vec<Trial> {
    vec![read("probe_read_dynamic_slice", RowRead::DynamicSlice)]
}

pub(super) fn read_gather(_: &Profile) -> Vec<Trial> {
    vec![read("probe_read_gather", RowRead::Gather)]
}

/// The first positions of row 3.
fn read(name: &str, form: RowRead) -> Trial {
    let mut b = Builder::new(name);
    let cache = b.parameter("cache", DType::BF16, &CACHE);
    let row = b.parameter("row", DType::S32, &[]);
    let part = cache::read_row(&mut b, form, cache, row, LEN);
    Trial::exact(b.finish(&[part]), vec![before(), Tensor::scalar(3i32)])
}

/// start, start + 1, ...
fn consecutive(b: &mut Builder, start: Val, n: usize) -> Val {
    let start = b.broadcast(start, &[], &[n]);
    let numbers = b.iota(DType::S32, &[n], 0);
    b.add(start, numbers)
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
const HEADS: usize = 2;
const DIM: usize = 8;
const CACHE: [usize; 4] = [ROWS, POSITIONS, HEADS, DIM];
const BATCH: usize = 3;
const TOKENS: usize = 8;
const LEN: usize = 24;
