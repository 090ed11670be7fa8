//! Reading and writing caches `[rows, positions, ...]`.
//!
//! A decode step's token `i` belongs to row `i`; a chunk's tokens to one row, at consecutive positions.

use njoule_hlo::op::{Direction, DotDims, GatherDims};
use njoule_hlo::{DType, Val as Array, idioms};
use njoule_models::program::CacheId;

use super::{CachePart, Input, Lowering, ModuleKind};
use crate::backend::KvType;
use crate::backend::neuron::profile::{CacheWrite, RowRead};

impl Lowering<'_> {
    /// The parts of a cache, with element types and dimensions.
    pub(super) fn cache_parts(&self, cache: CacheId) -> Vec<(CachePart, DType, Vec<usize>)> {
        let info = self.sharded.program.caches[cache.0 as usize];
        let places = vec![self.module.class.rows, self.module.class.positions, info.kv_heads];
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

    /// The rows that a step works on, up to the bucket's length: `[n, len, ...]`.
    pub(super) fn read(&mut self, cache: Array) -> Array {
        let mut sizes = cache.dims();
        sizes[1] = self.module.len;
        if let ModuleKind::Decode { batch } = self.module.kind {
            sizes[0] = batch;
            let ranges: Vec<_> = sizes.iter().map(|&n| 0..n).collect();
            return self.b.slice(cache, &ranges);
        }
        sizes[0] = 1;
        let row = self.input(Input::Row);
        match self.spec.profile.row_read {
            RowRead::DynamicSlice => {
                let zero = self.b.scalar(0i32);
                let mut starts = vec![zero; sizes.len()];
                starts[0] = row;
                self.b.dynamic_slice(cache, &starts, &sizes)
            }
            RowRead::Gather => {
                let (first, last) = (self.b.scalar(0i32), self.b.scalar(cache.dim(0) as i32 - 1)); // below 2^24
                let row = self.b.clamp(first, row, last);
                let row = self.b.reshape(row, &[1, 1]);
                let dims = GatherDims {
                    offset_dims: (1..sizes.len()).collect(),
                    collapsed_slice_dims: vec![0],
                    start_index_map: vec![0],
                    index_vector_dim: 1,
                    slice_sizes: sizes,
                    indices_are_sorted: false,
                };
                self.b.gather(cache, row, dims)
            }
        }
    }

    /// A cache with `new [n, t, ...]` in it.
    pub(super) fn write(&mut self, cache: Array, new: Array) -> Array {
        let (rows, positions) = (cache.dim(0), cache.dim(1));
        let width: usize = cache.dims()[2..].iter().product();
        let tokens = new.dim(0) * new.dim(1);
        let dims = cache.dims();
        match self.spec.profile.cache_write {
            CacheWrite::Scatter => {
                let [row, slot] = self.places();
                let places = idioms::cache_rows(&mut self.b, row, slot, positions);
                let flat = self.b.reshape(cache, &[rows * positions, width]);
                let new = self.b.reshape(new, &[tokens, width]);
                let flat = idioms::write_rows(&mut self.b, flat, places, new);
                self.b.reshape(flat, &dims)
            }
            CacheWrite::UpdateSlice => {
                let zero = self.b.scalar(0i32);
                let mut starts = vec![zero; dims.len()];
                if let ModuleKind::Prefill { .. } | ModuleKind::Score { .. } = self.module.kind {
                    (starts[0], starts[1]) = (self.input(Input::Row), self.input(Input::Start));
                    return self.b.dynamic_update_slice(cache, new, &starts);
                }
                let slots = self.input(Input::Slots);
                let mut cache = cache;
                for i in 0..tokens {
                    let slot = self.b.slice_dim(slots, 0, i..i + 1);
                    (starts[0], starts[1]) = (self.b.scalar(i as i32), self.b.reshape(slot, &[]));
                    let new = self.b.slice_dim(new, 0, i..i + 1);
                    cache = self.b.dynamic_update_slice(cache, new, &starts);
                }
                cache
            }
            CacheWrite::Select => {
                let flat = self.b.reshape(cache, &[rows, positions, width]);
                let new = self.b.reshape(new, &[tokens, width]);
                let flat = self.selected(flat, new);
                self.b.reshape(flat, &dims)
            }
        }
    }

    /// Row and slot of each token, `s32[tokens]`.
    fn places(&mut self) -> [Array; 2] {
        match self.module.kind {
            ModuleKind::Decode { batch } => [self.b.iota(DType::S32, &[batch], 0), self.input(Input::Slots)],
            ModuleKind::Prefill { tokens } | ModuleKind::Score { tokens } => {
                let row = self.input(Input::Row);
                [self.b.broadcast(row, &[], &[tokens]), self.positions()]
            }
        }
    }

    /// `cache [rows, positions, width]` with `new [tokens, width]` chosen where a comparison of places holds.
    fn selected(&mut self, cache: Array, new: Array) -> Array {
        let dims = cache.dims();
        let (rows, positions, tokens) = (dims[0], dims[1], new.dim(0));
        if let ModuleKind::Decode { batch } = self.module.kind {
            let used = self.b.slice_dim(cache, 0, 0..batch);
            let columns = self.b.iota(DType::S32, &[batch, positions], 1);
            let slots = self.input(Input::Slots);
            let slots = self.b.broadcast(slots, &[0], &[batch, positions]);
            let hit = self.b.compare(Direction::Eq, columns, slots);
            let hit = self.b.broadcast(hit, &[0, 1], &used.dims());
            let new = self.b.broadcast(new, &[0, 2], &used.dims());
            let used = self.b.select(hit, new, used);
            if batch == rows {
                return used;
            }
            let rest = self.b.slice_dim(cache, 0, batch..rows);
            return self.b.concatenate(&[used, rest], 0);
        }
        // A product with one-hot columns puts each token at its position; it is exact, each sum has one term.
        let at = self.positions();
        let columns = self.b.iota(DType::S32, &[positions, tokens], 0);
        let at = self.b.broadcast(at, &[1], &[positions, tokens]);
        let hot = self.b.compare(Direction::Eq, columns, at);
        let operands = if new.dtype() == DType::F32 { DType::F32 } else { DType::BF16 };
        let (places, new) = (self.b.convert(hot, operands), self.b.convert(new, operands));
        let product = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let placed = self.b.dot(places, new, product, DType::F32);
        let placed = self.b.convert(placed, cache.dtype());
        let columns = self.b.iota(DType::S32, &[rows, positions], 1);
        let [start, row] = [Input::Start, Input::Row].map(|input| {
            let scalar = self.input(input);
            self.b.broadcast(scalar, &[], &[rows, positions])
        });
        let after = self.b.compare(Direction::Ge, columns, start);
        let length = self.b.full(&[rows, positions], tokens as i32); // at most `positions`
        let end = self.b.add(start, length);
        let before = self.b.compare(Direction::Lt, columns, end);
        let number = self.b.iota(DType::S32, &[rows, positions], 0);
        let mine = self.b.compare(Direction::Eq, number, row);
        let hit = self.b.and(after, before);
        let hit = self.b.and(hit, mine);
        let hit = self.b.broadcast(hit, &[0, 1], &dims);
        let placed = self.b.broadcast(placed, &[1, 2], &dims);
        self.b.select(hit, placed, cache)
    }
}
