//! Rotary positions: angles are made once per table and step, in f32.

use njoule_hlo::idioms::{self, Angles};
use njoule_hlo::op::Direction;
use njoule_hlo::{Builder, DType, Tensor, Val as Array};
use njoule_models::program::{Pairing, RopeId};

use super::{Input, Lowering};
use crate::backend::neuron::profile::RopeAngles;

impl Lowering<'_> {
    pub(super) fn rope(&mut self, x: Array, table: RopeId, head_dim: usize, pairing: Pairing) -> Array {
        if self.sharded.program.ropes[table.0 as usize].inv_freq.is_empty() {
            return x;
        }
        let angles = match self.angles.get(&table) {
            Some(angles) => *angles,
            None => {
                let angles = self.angles(table);
                self.angles.insert(table, angles);
                angles
            }
        };
        let pairing = match pairing {
            Pairing::Half => idioms::Pairing::Halves,
            Pairing::Neighbours => idioms::Pairing::Neighbours,
        };
        let (rows, cols) = (x.dim(0), x.dim(1));
        let heads = self.b.reshape(x, &[rows, cols / head_dim, head_dim]);
        let turned = idioms::rotate(&mut self.b, heads, angles, pairing);
        self.b.reshape(turned, &[rows, cols])
    }

    fn angles(&mut self, table: RopeId) -> Angles {
        let table = &self.sharded.program.ropes[table.0 as usize];
        let amplitude = table.amplitude;
        let [short, long] = [Some(&table.inv_freq), table.long.as_ref().map(|long| &long.inv_freq)];
        let mut of = |frequencies: &[f32]| match self.spec.profile.rope {
            RopeAngles::Computed => {
                let positions = self.positions();
                idioms::angles(&mut self.b, positions, frequencies, amplitude)
            }
            RopeAngles::Table => {
                let at = self.positions();
                let longest = self.module.parts.iter().map(|part| part.class.positions).max().unwrap_or(1);
                looked_up(&mut self.b, at, longest, frequencies, amplitude)
            }
        };
        let short = short.map(|f| of(f)).expect("every table has frequencies");
        let Some(long) = long.map(|f| of(f)) else { return short };
        let beyond = table.long.as_ref().map_or(usize::MAX, |long| long.beyond);
        let dims = short.cosine.dims();
        let rope_len = self.input(Input::RopeLen);
        let map: &[usize] = if rope_len.rank() == 0 { &[] } else { &[0] };
        let rope_len = self.b.broadcast(rope_len, map, &dims);
        let beyond = self.b.full(&dims, i32::try_from(beyond).unwrap_or(i32::MAX));
        let is_long = self.b.compare(Direction::Gt, rope_len, beyond);
        let [cosine, sine] = [(long.cosine, short.cosine), (long.sine, short.sine)]
            .map(|(long, short)| self.b.select(is_long, long, short));
        Angles { cosine, sine }
    }
}

/// Rows of tables over the first `positions` positions, computed here as the oracle computes them; `at` are those wanted.
pub(in crate::backend::neuron) fn looked_up(
    b: &mut Builder,
    at: Array,
    positions: usize,
    frequencies: &[f32],
    amplitude: f32,
) -> Angles {
    let [cosine, sine] = [f32::cos, f32::sin].map(|function| {
        let row = |p: usize| frequencies.iter().map(move |f| function(p as f32 * f) * amplitude);
        let values: Vec<f32> = (0..positions).flat_map(row).collect();
        let table = Tensor::new(&[positions, frequencies.len()], values).expect("as many as it has places");
        let table = b.constant(table);
        let rows = idioms::take_rows(b, table, at);
        b.convert(rows, DType::F32)
    });
    Angles { cosine, sine }
}
