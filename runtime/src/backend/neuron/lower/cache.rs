//! Reading and writing caches `[rows, positions, ...]`.
//!
//! Of a decode step's tokens those of a class belong to its first rows; a chunk's tokens to one row, at consecutive
//! positions. The forms are functions of their own: the probe tries each alone, and what it tries is what is emitted.

use std::ops::Range;

use njoule_hlo::op::{Direction, DotDims, GatherDims};
use njoule_hlo::{Builder, DType, Val as Array, idioms};
use njoule_models::program::CacheId;

use super::{CachePart, CacheShape, Input, Lowering, ModuleKind, Part};
use crate::backend::KvType;
use crate::backend::neuron::profile::{CacheWrite, RowRead};

impl Lowering<'_> {
    /// The parts of a cache, with element types and dimensions.
    pub(super) fn cache_parts(&self, class: CacheShape, cache: CacheId) -> Vec<(CachePart, DType, Vec<usize>)> {
        let info = self.sharded.program.caches[cache.0 as usize];
        let places = vec![class.rows, class.positions, info.kv_heads];
        let dtype = match self.spec.kv {
            KvType::F32 => DType::F32,
            KvType::Bf16 | KvType::F16 => DType::BF16,
            KvType::Int8 => DType::S8,
        };
        let of = |dim| [places.clone(), vec![dim]].concat();
        let mut parts = vec![(CachePart::Keys, dtype, of(info.k_dim)), (CachePart::Values, dtype, of(info.v_dim))];
        if dtype == DType::S8 {
            parts.push((CachePart::KeyScales, DType::F32, places.clone()));
            parts.push((CachePart::ValueScales, DType::F32, places));
        }
        parts
    }

    /// The rows that a step works on in a class's cache, up to the bucket's length: `[rows, len, ...]`.
    pub(super) fn read(&mut self, cache: Array, part: &Part) -> Array {
        if let ModuleKind::Decode { .. } = self.module.kind {
            let mut sizes = cache.dims();
            (sizes[0], sizes[1]) = (part.rows, part.len);
            let ranges: Vec<_> = sizes.iter().map(|&n| 0..n).collect();
            return self.b.slice(cache, &ranges);
        }
        let row = self.input(Input::Row);
        read_row(&mut self.b, self.spec.profile.row_read, cache, row, part.len)
    }

    /// A class's cache with `new [rows, t, ...]` in it; `rows` are the class's among those of the step.
    pub(super) fn write(&mut self, cache: Array, new: Array, rows: Range<usize>) -> Array {
        let place = match self.module.kind {
            ModuleKind::Decode { .. } => {
                let slots = self.input(Input::Slots);
                Place::Rows { slots: self.rows_of(slots, rows) }
            }
            ModuleKind::Prefill { .. } | ModuleKind::Score { .. } => Place::Chunk {
                row: self.input(Input::Row),
                start: self.input(Input::Start),
                positions: self.positions(),
            },
        };
        write(&mut self.b, self.spec.profile.cache_write, cache, new, place)
    }

    /// These rows of an array; itself where they are all.
    pub(super) fn rows_of(&mut self, x: Array, rows: Range<usize>) -> Array {
        if rows == (0..x.dim(0)) { x } else { self.b.slice_dim(x, 0, rows) }
    }
}

/// Where a step's tokens go in a cache.
#[derive(Clone, Copy)]
pub(in crate::backend::neuron) enum Place {
    /// One into each of the first rows.
    Rows {
        /// Position of each, `s32[batch]`.
        slots: Array,
    },
    /// All into one row, one after the other.
    Chunk {
        /// The row, a scalar.
        row: Array,
        /// Position of the first, a scalar.
        start: Array,
        /// Position of each, `s32[tokens]`.
        positions: Array,
    },
}

/// The first `len` positions of one row of a cache: `[1, len, ...]`.
pub(in crate::backend::neuron) fn read_row(
    b: &mut Builder,
    form: RowRead,
    cache: Array,
    row: Array,
    len: usize,
) -> Array {
    let mut sizes = cache.dims();
    (sizes[0], sizes[1]) = (1, len);
    match form {
        RowRead::DynamicSlice => {
            let zero = b.scalar(0i32);
            let mut starts = vec![zero; sizes.len()];
            starts[0] = row;
            b.dynamic_slice(cache, &starts, &sizes)
        }
        RowRead::Gather => {
            let (first, last) = (b.scalar(0i32), b.scalar(cache.dim(0) as i32 - 1)); // below 2^24
            let row = b.clamp(first, row, last);
            let row = b.reshape(row, &[1, 1]);
            let dims = GatherDims {
                offset_dims: (1..sizes.len()).collect(),
                collapsed_slice_dims: vec![0],
                start_index_map: vec![0],
                index_vector_dim: 1,
                slice_sizes: sizes,
                indices_are_sorted: false,
            };
            b.gather(cache, row, dims)
        }
    }
}

/// A cache with `new [n, t, ...]` in it.
pub(in crate::backend::neuron) fn write(
    b: &mut Builder,
    form: CacheWrite,
    cache: Array,
    new: Array,
    place: Place,
) -> Array {
    let (rows, positions) = (cache.dim(0), cache.dim(1));
    let width: usize = cache.dims()[2..].iter().product();
    let tokens = new.dim(0) * new.dim(1);
    let dims = cache.dims();
    match form {
        CacheWrite::Scatter => {
            let [row, slot] = match place {
                Place::Rows { slots } => [b.iota(DType::S32, &[tokens], 0), slots],
                Place::Chunk { row, positions, .. } => [b.broadcast(row, &[], &[tokens]), positions],
            };
            let places = idioms::cache_rows(b, row, slot, positions);
            let flat = b.reshape(cache, &[rows * positions, width]);
            let new = b.reshape(new, &[tokens, width]);
            let flat = idioms::write_rows(b, flat, places, new);
            b.reshape(flat, &dims)
        }
        CacheWrite::UpdateSlice => {
            let zero = b.scalar(0i32);
            let mut starts = vec![zero; dims.len()];
            let slots = match place {
                Place::Rows { slots } => slots,
                Place::Chunk { row, start, .. } => {
                    (starts[0], starts[1]) = (row, start);
                    return b.dynamic_update_slice(cache, new, &starts);
                }
            };
            let mut cache = cache;
            for i in 0..tokens {
                let slot = b.slice_dim(slots, 0, i..i + 1);
                (starts[0], starts[1]) = (b.scalar(i as i32), b.reshape(slot, &[]));
                let new = b.slice_dim(new, 0, i..i + 1);
                cache = b.dynamic_update_slice(cache, new, &starts);
            }
            cache
        }
        CacheWrite::Select => {
            let flat = b.reshape(cache, &[rows, positions, width]);
            let new = b.reshape(new, &[tokens, width]);
            let flat = selected(b, flat, new, place);
            b.reshape(flat, &dims)
        }
    }
}

/// `cache [rows, positions, width]` with `new [tokens, width]` chosen where a comparison of places holds.
fn selected(b: &mut Builder, cache: Array, new: Array, place: Place) -> Array {
    let dims = cache.dims();
    let (rows, positions, tokens) = (dims[0], dims[1], new.dim(0));
    let (row, start, at) = match place {
        Place::Rows { slots } => {
            let used = b.slice_dim(cache, 0, 0..tokens);
            let columns = b.iota(DType::S32, &[tokens, positions], 1);
            let slots = b.broadcast(slots, &[0], &[tokens, positions]);
            let hit = b.compare(Direction::Eq, columns, slots);
            let hit = b.broadcast(hit, &[0, 1], &used.dims());
            let new = b.broadcast(new, &[0, 2], &used.dims());
            let used = b.select(hit, new, used);
            if tokens == rows {
                return used;
            }
            let rest = b.slice_dim(cache, 0, tokens..rows);
            return b.concatenate(&[used, rest], 0);
        }
        Place::Chunk { row, start, positions } => (row, start, positions),
    };
    // A product with one-hot columns puts each token at its position; it is exact, each sum has one term.
    let columns = b.iota(DType::S32, &[positions, tokens], 0);
    let at = b.broadcast(at, &[1], &[positions, tokens]);
    let hot = b.compare(Direction::Eq, columns, at);
    let operands = if new.dtype() == DType::F32 { DType::F32 } else { DType::BF16 };
    let (places, new) = (b.convert(hot, operands), b.convert(new, operands));
    let product = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let placed = b.dot(places, new, product, DType::F32);
    let placed = b.convert(placed, cache.dtype());
    let columns = b.iota(DType::S32, &[rows, positions], 1);
    let [start, row] = [start, row].map(|scalar| b.broadcast(scalar, &[], &[rows, positions]));
    let after = b.compare(Direction::Ge, columns, start);
    let length = b.full(&[rows, positions], tokens as i32); // at most `positions`
    let end = b.add(start, length);
    let before = b.compare(Direction::Lt, columns, end);
    let number = b.iota(DType::S32, &[rows, positions], 0);
    let mine = b.compare(Direction::Eq, number, row);
    let hit = b.and(after, before);
    let hit = b.and(hit, mine);
    let hit = b.broadcast(hit, &[0, 1], &dims);
    let placed = b.broadcast(placed, &[1, 2], &dims);
    b.select(hit, placed, cache)
}
