//! Attention: this step's keys and values are rounded to the caches' type before anybody attends, then read beside what the
//! caches held; the write waits for nothing and nothing waits for it.
//!
//! Rows are cut by class, and each class's caches are read at its own length and written; what comes of it is joined.

use std::ops::Range;

use njoule_hlo::idioms::{self, Attention, KeysValues};
use njoule_hlo::op::{Binary, Direction};
use njoule_hlo::{DType, Tensor, Val as Array};
use njoule_models::program::Op;

use super::{CachePart, Input, Lowering, Part};
use crate::backend::neuron::shard::{Run, Split};
use crate::backend::{KvType, Quant};

impl Lowering<'_> {
    pub(super) fn attend(&mut self, op: &Op) -> Array {
        let Op::Attend { q, k, v, cache, heads, scale, window, softcap, sinks, alibi, .. } = op else {
            unreachable!("called for attention alone")
        };
        let info = self.sharded.program.caches[cache.0 as usize];
        let group = heads / info.kv_heads;
        let t = self.tokens_of_row();
        let n = self.module.kind.tokens() / t;
        let heads_here = self.sharded.layout(*q).map(|split| split.units(info.k_dim));
        let q = self.b.reshape(self.val(*q), &[n, t, info.kv_heads, group, info.k_dim]);
        let keys = self.b.reshape(self.val(*k), &[n, t, info.kv_heads, info.k_dim]);
        let values = self.b.reshape(self.val(*v), &[n, t, info.kv_heads, info.v_dim]);
        let (keys, key_scales) = self.stored(keys);
        let (values, value_scales) = self.stored(values);
        let sinks = sinks.map(|sinks| {
            let sinks = self.values(sinks);
            self.b.reshape(sinks, &[info.kv_heads, group])
        });
        let slopes = alibi.as_ref().map(|slopes| {
            let slopes = self.slopes(slopes, heads_here);
            self.b.reshape(slopes, &[info.kv_heads, group])
        });
        let products = match self.spec.kv {
            KvType::F32 => DType::F32,
            // Integers are exact in both.
            KvType::Int8 if self.spec.weights == Quant::None => DType::F32,
            KvType::Bf16 | KvType::F16 | KvType::Int8 => DType::BF16,
        };
        let how = Attention { scale: *scale, window: *window, softcap: *softcap, sinks, slopes, products };
        let positions = self.positions();
        let first = if t == 1 { positions } else { self.b.slice_dim(positions, 0, 0..n) };
        let mut outs = vec![];
        for (part, rows) in self.parts_and_rows() {
            let mut mine = |x| self.rows_of(x, rows.clone());
            let (q, first, keys, values) = (mine(q), mine(first), mine(keys), mine(values));
            let [key_scales, value_scales] = [key_scales, value_scales].map(|scales| scales.map(&mut mine));
            let new = KeysValues { keys, values, scales: key_scales.zip(value_scales).map(|(k, v)| [k, v]) };
            let parts = [
                (CachePart::Keys, Some(keys)),
                (CachePart::Values, Some(values)),
                (CachePart::KeyScales, key_scales),
                (CachePart::ValueScales, value_scales),
            ];
            let held = |part_of| Input::Cache(part.class, *cache, part_of);
            let read = |l: &mut Self, of| l.read(l.input(held(of)), &part);
            let prior = (part.len > 0).then(|| KeysValues {
                keys: read(self, CachePart::Keys),
                values: read(self, CachePart::Values),
                scales: (self.spec.kv == KvType::Int8)
                    .then(|| [CachePart::KeyScales, CachePart::ValueScales].map(|of| read(self, of))),
            });
            outs.push(idioms::attend(&mut self.b, q, prior, new, first, how));
            for (of, new) in parts {
                if let Some(new) = new {
                    let before = self.input(held(of));
                    let after = self.write(before, new, rows.clone());
                    self.caches.insert((part.class, *cache, of), after);
                }
            }
        }
        let out = if outs.len() == 1 { outs[0] } else { self.b.concatenate(&outs, 0) };
        self.b.reshape(out, &[n * t, heads * info.v_dim])
    }

    /// Slopes of this core's query heads: constants, since no weight has them. Those of padding are zero.
    fn slopes(&mut self, slopes: &[f32], heads: Option<Split>) -> Array {
        let heads = heads.unwrap_or_else(|| Split::even(slopes.len(), 1));
        let of_run =
            |run: &Run| (0..run.len).map(|i| run.from.map_or(0.0, |from| slopes[from + i])).collect::<Vec<f32>>();
        let all: Vec<f32> = (0..heads.tp()).flat_map(|rank| heads.of_rank(rank)).flat_map(of_run).collect();
        let all = Tensor::new(&[heads.tp(), heads.local()], all).expect("as many on every core");
        let all = self.b.constant(all);
        if heads.tp() == 1 { all } else { self.row(all, self.input(Input::Rank)) }
    }

    /// What the step does of each class, with its rows among those of the step.
    fn parts_and_rows(&self) -> Vec<(Part, Range<usize>)> {
        let mut first = 0;
        let rows = |part: &Part| {
            let rows = first..first + part.rows;
            first = rows.end;
            (*part, rows)
        };
        self.module.parts.iter().map(rows).collect()
    }

    /// Keys or values `[n, t, heads, dim]` as the caches hold them, with the scales of int8 `[n, t, heads]`.
    fn stored(&mut self, x: Array) -> (Array, Option<Array>) {
        match self.spec.kv {
            KvType::F32 => (x, None),
            KvType::Bf16 | KvType::F16 => (self.b.convert(x, DType::BF16), None),
            KvType::Int8 => {
                let (codes, scales) = self.quantised(x);
                (codes, Some(scales))
            }
        }
    }

    /// 8 bits with the largest of a token's head at 127; of one that is zero (or nearly: its scale would be lost) the codes
    /// are zero and the scale is 1.
    fn quantised(&mut self, x: Array) -> (Array, Array) {
        let size = self.b.abs(x);
        let largest = self.b.reduce(Binary::Maximum, size, &[3]);
        let step = self.b.full_like(largest, 1.0 / 127.0);
        let scale = self.b.multiply(largest, step);
        let least = self.b.full_like(scale, 1e-30);
        let lives = self.b.compare(Direction::Gt, scale, least);
        let one = self.b.full_like(scale, 1.0);
        let scale = self.b.select(lives, scale, one);
        let every = self.b.broadcast(scale, &[0, 1, 2], &x.dims());
        let codes = self.b.divide(x, every);
        // To the nearest: HLO's rounding is in no list of operators seen.
        let half = self.b.full_like(codes, 0.5);
        let codes = self.b.add(codes, half);
        let codes = self.b.floor(codes);
        let (lo, hi) = (self.b.scalar(-127f32), self.b.scalar(127f32));
        let codes = self.b.clamp(lo, codes, hi);
        (self.b.convert(codes, DType::S8), scale)
    }
}
