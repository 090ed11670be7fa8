//! Attention: this step's keys and values are rounded to the caches' type before anybody attends, then read beside what the
//! caches held; the write waits for nothing and nothing waits for it.

use njoule_hlo::idioms::{self, Attention, KeysValues};
use njoule_hlo::op::{Binary, Direction};
use njoule_hlo::{DType, Val as Array};
use njoule_models::program::Op;

use super::{CachePart, Input, Lowering};
use crate::backend::{KvType, Quant};

impl Lowering<'_> {
    pub(super) fn attend(&mut self, op: &Op) -> Array {
        let Op::Attend { q, k, v, cache, heads, scale, window, softcap, sinks, alibi: None, .. } = op else {
            unreachable!("called for attention alone, and alibi was refused when the program was divided")
        };
        let info = self.sharded.program.caches[cache.0 as usize];
        let group = heads / info.kv_heads;
        let [n, t] = self.rows_and_tokens();
        let q = self.b.reshape(self.val(*q), &[n, t, info.kv_heads, group, info.k_dim]);
        let keys = self.b.reshape(self.val(*k), &[n, t, info.kv_heads, info.k_dim]);
        let values = self.b.reshape(self.val(*v), &[n, t, info.kv_heads, info.v_dim]);
        let (keys, key_scales) = self.stored(keys);
        let (values, value_scales) = self.stored(values);
        let new = KeysValues { keys, values, scales: key_scales.zip(value_scales).map(|(k, v)| [k, v]) };

        let read = |l: &mut Self, part| l.read(l.input(Input::Cache(*cache, part)));
        let prior = (self.module.len > 0).then(|| KeysValues {
            keys: read(self, CachePart::Keys),
            values: read(self, CachePart::Values),
            scales: (self.spec.kv == KvType::Int8)
                .then(|| [CachePart::KeyScales, CachePart::ValueScales].map(|part| read(self, part))),
        });
        let sinks = sinks.map(|sinks| {
            let sinks = self.values(sinks);
            self.b.reshape(sinks, &[info.kv_heads, group])
        });
        let products = match self.spec.kv {
            KvType::F32 => DType::F32,
            // Integers are exact in both.
            KvType::Int8 if self.spec.weights == Quant::None => DType::F32,
            KvType::Bf16 | KvType::F16 | KvType::Int8 => DType::BF16,
        };
        let how = Attention { scale: *scale, window: *window, softcap: *softcap, sinks, products };
        let positions = self.positions();
        let first = if t == 1 && n > 1 { positions } else { self.b.slice_dim(positions, 0, 0..n) };
        let out = idioms::attend(&mut self.b, q, prior, new, first, how);

        let written = [(CachePart::Keys, Some(keys)), (CachePart::Values, Some(values))];
        let scales = [(CachePart::KeyScales, key_scales), (CachePart::ValueScales, value_scales)];
        for (part, new) in written.into_iter().chain(scales) {
            if let Some(new) = new {
                let before = self.input(Input::Cache(*cache, part));
                let after = self.write(before, new);
                self.caches.insert((*cache, part), after);
            }
        }
        self.b.reshape(out, &[n * t, heads * info.v_dim])
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
