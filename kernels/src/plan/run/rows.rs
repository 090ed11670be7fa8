//! Row-local ops: what a worker does with each row that it claimed.

use super::super::op::{Embedding, Pairing};
use super::super::{ActRegion, Region, RowOp, RowSet};
use super::Context;
use crate::gemm::Tiles;

impl Context<'_> {
    pub(super) fn row_op(&self, op: &RowOp, set: RowSet, row: usize) {
        let k = self.plan.kernels;
        let floats = self.arena.cast::<f32>();
        // SAFETY (all): the set is available; regions hold this row, which only this worker touches in this phase.
        match op {
            RowOp::Angles { rope } => self.angles(*rope, row),
            RowOp::Embed { table, index, out } => {
                // SAFETY: as above; `check` compared tokens and positions with the table.
                let out = unsafe { std::slice::from_raw_parts_mut(self.row(out, row), out.stride) };
                let entry = match index {
                    Embedding::Token => self.input.tokens[row] as usize,
                    Embedding::Position(offset) => self.input.positions[row] as usize + offset,
                };
                table.row_f32(entry, out);
                out[table.cols()..].fill(0.0);
            }
            RowOp::Norm { x, norm, out } => {
                let (from, out, cols) = (self.row(x, row), self.row(out, row), (x.cols, x.stride));
                // SAFETY: as above.
                unsafe {
                    clear_padding(from, x);
                    (k.add_norm)(&norm.args(), from, None, cols, out, out);
                }
            }
            RowOp::AddNorm { x, delta, norm, sum, out } => {
                let (from, cols) = (self.row(x, row), (x.cols, x.stride));
                let (delta, sum, out) = ((self.row(delta, row), delta), self.row(sum, row), self.row(out, row));
                // SAFETY: as above.
                unsafe {
                    clear_padding(from, x);
                    clear_padding(delta.0, delta.1);
                    (k.add_norm)(&norm.args(), from, Some(delta.0), cols, sum, out);
                }
            }
            RowOp::HeadNorm { x, norm, head, out } => {
                // SAFETY: as above.
                unsafe { (k.head_norm)(&norm.args(), self.row(x, row), *head, x.cols, self.row(out, row)) }
            }
            RowOp::Act { x, act, out } => {
                // SAFETY: as above.
                unsafe { (k.act)(*act, self.row(x, row), self.row(out, row), x.stride) }
            }
            RowOp::Rope { x, rope, head, out } => {
                let rope = &self.plan.ropes[*rope];
                let to = self.row(out, row);
                // SAFETY: as above; `x` and `out` are one region or disjoint.
                unsafe {
                    if self.row(x, row) != to {
                        std::ptr::copy_nonoverlapping(self.row(x, row), to, x.stride);
                    }
                    let (cos, sin) = (floats.add(rope.cos + row * rope.width), floats.add(rope.sin + row * rope.width));
                    let rotate = match rope.pairing {
                        Pairing::Half => k.rope_half,
                        Pairing::Neighbours => k.rope_neighbours,
                    };
                    rotate(to, *head, x.cols, cos, sin, rope.table.inv_freq.len());
                }
            }
            RowOp::CacheWrite { k: key, v, cache } => {
                let slot = self.input.slots[row] as usize;
                // SAFETY: as above; `check` bounds the slot, and rows have slots of their own.
                unsafe { self.plan.caches[*cache].write(slot, self.row(key, row), self.row(v, row)) }
            }
            RowOp::Add { x, y, out } => {
                // SAFETY: as above.
                unsafe { (k.add)(self.row(x, row), self.row(y, row), self.row(out, row), x.stride) }
            }
            RowOp::Mul { x, y, out } => {
                let (from, factor, to) = (self.row(x, row), self.row(y, row), self.row(out, row));
                // SAFETY: as above.
                unsafe {
                    if y.cols == x.cols {
                        (k.mul)(from, factor, to, x.stride);
                    } else {
                        (k.scale)(from, *factor, to, x.stride);
                    }
                }
            }
            RowOp::Scale { x, factor, out } => {
                // SAFETY: as above.
                unsafe { (k.scale)(self.row(x, row), *factor, self.row(out, row), x.stride) }
            }
            RowOp::Softcap { x, cap, out } => {
                // SAFETY: as above.
                unsafe { (k.softcap)(self.row(x, row), *cap, self.row(out, row), x.stride) }
            }
            RowOp::Clamp { x, bound, out } => {
                // SAFETY: as above.
                unsafe { (k.clamp)(self.row(x, row), *bound, self.row(out, row), x.stride) }
            }
            RowOp::Join { x, y, lengths: [a, b], out } => {
                let step = if y.cols == *b { 0 } else { *b };
                for head in 0..x.cols / a {
                    // SAFETY: as above; `out` is disjoint from what is read, and as wide as its heads.
                    unsafe {
                        let to = self.row(out, row).add(head * (a + b));
                        std::ptr::copy_nonoverlapping(self.row(x, row).add(head * a), to, *a);
                        std::ptr::copy_nonoverlapping(self.row(y, row).add(head * step), to.add(*a), *b);
                    }
                }
            }
            RowOp::Route { x, routing, out } => {
                // SAFETY: as above; `x` and `out` are disjoint.
                unsafe { (k.route)(routing, self.row(x, row), x.cols, self.row(out, row)) }
            }
            RowOp::Take { x, out } => {
                let from = self.row(x, self.input.outputs[row] as usize);
                // SAFETY: as above; `x` was written in an earlier phase, and the regions are disjoint.
                unsafe { std::ptr::copy_nonoverlapping(from, self.row(out, row), x.stride) }
            }
            RowOp::Clear { x } => {
                // SAFETY: as above.
                unsafe { clear_padding(self.row(x, row), x) }
            }
            RowOp::Pack { x, act, fine } => {
                let (first, n) = Tiles::new(self.rows(set), k.tile).of(row);
                // SAFETY: as above.
                unsafe { clear_padding(self.row(x, row), x) };
                self.pack(self.row(x, row), act, first, (row - first, n), *fine);
            }
            RowOp::Combine { entries, shares, table, out } => self.combine(entries, shares, table, out, row),
        }
    }

    /// Cosines and sines of a row's position.
    fn angles(&self, rope: usize, row: usize) {
        let rope = &self.plan.ropes[rope];
        let mut inv_freq = &rope.table.inv_freq;
        if let Some((beyond, long)) = &rope.table.long {
            // Spans cover the rows in order.
            let spans = self.input.spans;
            let span = spans.partition_point(|s| s.row <= row) - 1;
            if spans[span].rope_len > *beyond {
                inv_freq = long;
            }
        }
        let position = self.input.positions[row] as f32;
        let floats = self.arena.cast::<f32>();
        // SAFETY: the arena holds `max_rows * width` cosines and sines.
        let [cos, sin] = [rope.cos, rope.sin]
            .map(|at| unsafe { std::slice::from_raw_parts_mut(floats.add(at + row * rope.width), rope.width) });
        for (i, f) in inv_freq.iter().enumerate() {
            let (s, c) = (position * f).sin_cos();
            let (s, c) = (s * rope.table.amplitude, c * rope.table.amplitude);
            match rope.pairing {
                Pairing::Half => (cos[i], sin[i]) = (c, s),
                Pairing::Neighbours => {
                    (cos[2 * i], cos[2 * i + 1]) = (c, c);
                    (sin[2 * i], sin[2 * i + 1]) = (-s, s);
                }
            }
        }
    }

    /// Packs `x`, whose padding is zero, as token `t` of the tile of `nt` rows that starts at row `first` of `act`.
    pub(super) fn pack(&self, x: *const f32, act: &ActRegion, first: usize, (t, nt): (usize, usize), fine: bool) {
        let (codes, meta) = act.kind.bytes(act.cols);
        // SAFETY: the layout holds the packed form of every row; tokens of a tile write their own words of it.
        unsafe {
            let (codes, meta) = (self.arena.add(act.codes + first * codes), self.arena.add(act.meta + first * meta));
            (self.plan.kernels.pack_row)(act.kind, x, act.cols, codes, meta, (t, nt), fine);
        }
    }
}

/// Zeros the padding of a row.
pub(super) unsafe fn clear_padding(row: *mut f32, region: &Region) {
    if region.cols != region.stride {
        // SAFETY: the row holds `stride` values.
        unsafe { std::ptr::write_bytes(row.add(region.cols), 0, region.stride - region.cols) };
    }
}
