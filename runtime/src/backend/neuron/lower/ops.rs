//! The ops that look at nothing but their rows: lookups, norms, products and functions.

use njoule_hlo::op::{Binary, Direction, DotDims};
use njoule_hlo::{DType, Val as Array, idioms};
use njoule_models::program::{Act, EmbedIndex, Glu, Norm, NormGroup, NormKind, Op, Val, WeightId};

use super::{Input, Lowering, ModuleKind};
use crate::backend::neuron::profile::RowRead;
use crate::backend::neuron::shard::Order;

impl Lowering<'_> {
    pub(super) fn op(&mut self, op: &Op) {
        let (out, value) = match op {
            Op::Embed { table, index, out } => (out, self.embed(*table, *index, *out)),
            Op::Norm { x, norm, group, out } => {
                let x = self.like(*out, *x);
                let split = self.sharded.layout(*out).filter(|_| self.sharded.tp > 1);
                let over = split.map(|split| split.whole * split.copies);
                (out, self.norm(x, norm, *group, over))
            }
            Op::AddNorm { x, delta, norm, sum, out } => {
                let (x, delta) = (self.whole(*x), self.whole(*delta));
                let total = self.b.add(x, delta);
                self.vals.insert(*sum, total);
                (out, self.norm(total, norm, NormGroup::Row, None))
            }
            Op::LinearN { x, parts } => {
                for part in parts {
                    let of_columns = self.sharded.part(part.weight).cols.is_some();
                    let x = if of_columns { self.val(*x) } else { self.whole(*x) };
                    let product = self.product(x, part.weight);
                    let product = if of_columns { self.all_reduce(product) } else { product };
                    let value = self.plus_bias(product, part.bias);
                    self.vals.insert(part.out, value);
                }
                return;
            }
            Op::GatedMlpIn { x, gate, up, gate_bias, up_bias, glu, out } => {
                let x = self.whole(*x);
                let [gate, up] = [(gate, gate_bias), (up, up_bias)].map(|(weight, bias)| {
                    let product = self.product(x, *weight);
                    self.plus_bias(product, *bias)
                });
                (out, self.glu(gate, up, *glu))
            }
            Op::Act { x, act, out } => {
                let x = self.like(*out, *x);
                (out, self.act(x, *act))
            }
            Op::Rope { x, table, head_dim, pairing, out } => {
                let x = self.like(*out, *x);
                (out, self.rope(x, *table, *head_dim, *pairing))
            }
            Op::Attend { out, .. } => (out, self.attend(op)),
            Op::Add { x, y, out } => {
                let (x, y) = (self.like(*out, *x), self.like(*out, *y));
                (out, self.b.add(x, y))
            }
            Op::Mul { x, y, out } => {
                let x = self.like(*out, *x);
                let y = if self.sharded.whole.info(*y).cols == 1 && x.dim(1) > 1 {
                    let y = self.whole(*y);
                    let y = self.b.reshape(y, &[y.dim(0)]);
                    self.b.broadcast(y, &[0], &x.dims())
                } else {
                    self.like(*out, *y)
                };
                (out, self.b.multiply(x, y))
            }
            Op::Scale { x, factor, out } => {
                let x = self.like(*out, *x);
                (out, self.scaled(x, *factor))
            }
            Op::Softcap { x, cap, out } => {
                let x = self.like(*out, *x);
                (out, idioms::soft_cap(&mut self.b, x, *cap))
            }
            Op::Clamp { x, bound, out } => {
                let x = self.like(*out, *x);
                (out, self.clamped(x, -bound, *bound))
            }
            Op::JoinHeads { x, y, lengths, out } => {
                let one = self.sharded.whole.info(*y).cols == lengths[1];
                let x = self.like(*out, *x);
                let y = if one { self.whole(*y) } else { self.like(*out, *y) };
                (out, self.joined(x, y, *lengths))
            }
            Op::Route { x, routing, out } => {
                let x = self.whole(*x);
                let shares = self.route(x, routing);
                self.shares.push(shares);
                (out, shares)
            }
            Op::MoeMlp { x, shares, gate, up, down, glu, out } => {
                let (x, shares) = (self.whole(*x), self.whole(*shares));
                (out, self.experts(x, shares, [gate, up, down], *glu))
            }
            Op::TakeOutputs { x, out } => {
                let x = self.like(*out, *x);
                (out, self.take_outputs(x))
            }
        };
        self.vals.insert(*out, value);
    }

    /// `x` as `out` is divided: this core's columns, or all.
    fn like(&mut self, out: Val, x: Val) -> Array {
        if self.sharded.layout(out).is_some() { self.val(x) } else { self.whole(x) }
    }

    fn scaled(&mut self, x: Array, factor: f32) -> Array {
        let factor = self.b.full_like(x, factor);
        self.b.multiply(x, factor)
    }

    fn clamped(&mut self, x: Array, lo: f32, hi: f32) -> Array {
        let (lo, hi) = (self.b.scalar(lo), self.b.scalar(hi));
        self.b.clamp(lo, x, hi)
    }

    /// Where logits are wanted of one token only, its row.
    fn take_outputs(&mut self, x: Array) -> Array {
        match self.module.kind {
            ModuleKind::Decode { .. } | ModuleKind::Score { .. } => x,
            ModuleKind::Prefill { .. } => {
                let last = self.input(Input::Last);
                self.row(x, last)
            }
        }
    }

    /// Row `at` of a matrix, `[1, columns]`.
    pub(super) fn row(&mut self, x: Array, at: Array) -> Array {
        match self.spec.profile.row_read {
            RowRead::DynamicSlice => {
                let zero = self.b.scalar(0i32);
                self.b.dynamic_slice(x, &[at, zero], &[1, x.dim(1)])
            }
            RowRead::Gather => {
                let at = self.b.reshape(at, &[1]);
                idioms::take_rows(&mut self.b, x, at)
            }
        }
    }

    /// Heads of two parts, of which this core has some; a second part of one head is every head's.
    fn joined(&mut self, x: Array, y: Array, [a, b]: [usize; 2]) -> Array {
        let (rows, heads) = (x.dim(0), x.dim(1) / a);
        let x = self.b.reshape(x, &[rows, heads, a]);
        let y = match y.dim(1) == b {
            true => self.b.broadcast(y, &[0, 2], &[rows, heads, b]),
            false => self.b.reshape(y, &[rows, heads, b]),
        };
        let joined = self.b.concatenate(&[x, y], 2);
        self.b.reshape(joined, &[rows, heads * (a + b)])
    }

    fn embed(&mut self, table: WeightId, index: EmbedIndex, out: Val) -> Array {
        let ids = match index {
            EmbedIndex::Tokens => self.input(Input::Tokens),
            EmbedIndex::Positions { offset } => {
                let positions = self.positions();
                // Bounded by the table's rows, whatever it is.
                let offset = self.b.full(&positions.dims(), i32::try_from(offset).unwrap_or(i32::MAX));
                self.b.add(positions, offset)
            }
        };
        let rows = self.values(table).dim(0);
        let split = self.sharded.reduced.contains(&out);
        let ids = if split {
            let first = self.first_id(rows);
            let first = self.b.broadcast(first, &[], &ids.dims());
            self.b.subtract(ids, first)
        } else {
            ids
        };
        let (values, scales) = (self.values(table), self.scales(table));
        let found = idioms::take_rows(&mut self.b, values, ids);
        let mut found = self.b.convert(found, DType::F32);
        if let Some(scales) = scales {
            let scales = self.b.reshape(scales, &[rows, 1]);
            let scales = idioms::take_rows(&mut self.b, scales, ids);
            let scales = self.b.reshape(scales, &ids.dims());
            let scales = self.b.broadcast(scales, &[0], &found.dims());
            found = self.b.multiply(found, scales);
        }
        if !split {
            return found;
        }
        // Ids of other cores were clamped to this one's rows.
        let zero = self.b.full(&ids.dims(), 0i32);
        let from = self.b.compare(Direction::Ge, ids, zero);
        let end = self.b.full(&ids.dims(), rows as i32); // a dimension is below 2^31
        let to = self.b.compare(Direction::Lt, ids, end);
        let mine = self.b.and(from, to);
        let mine = self.b.broadcast(mine, &[0], &found.dims());
        let nothing = self.b.full_like(found, 0.0);
        let found = self.b.select(mine, found, nothing);
        self.all_reduce(found)
    }

    /// The first of this core's `rows` ids of a divided vocabulary.
    pub(super) fn first_id(&mut self, rows: usize) -> Array {
        if self.sharded.tp == 1 {
            return self.b.scalar(0i32);
        }
        let (rank, rows) = (self.input(Input::Rank), self.b.scalar(rows as i32)); // a dimension is below 2^31
        self.b.multiply(rank, rows)
    }

    pub(super) fn positions(&self) -> Array {
        self.positions.expect("made with the parameters")
    }

    /// A norm. `over` is the length of a row of which this core has a part, counted as often as cores have a value.
    fn norm(&mut self, x: Array, norm: &Norm, group: NormGroup, over: Option<usize>) -> Array {
        let (rows, cols) = (x.dim(0), x.dim(1));
        let len = if let NormGroup::Head(len) = group { len } else { cols };
        let over = over.filter(|_| group == NormGroup::Row);
        let groups = self.b.reshape(x, &[rows, cols / len, len]);
        let dims = groups.dims();
        let mean = |l: &mut Self, x: Array| {
            let sum = l.b.reduce(Binary::Add, x, &[2]);
            let sum = if over.is_some() { l.all_reduce(sum) } else { sum };
            l.scaled(sum, 1.0 / over.unwrap_or(len) as f32)
        };
        let centred = match norm.kind {
            NormKind::Rms => groups,
            NormKind::Layer => {
                let mean = mean(self, groups);
                let mean = self.b.broadcast(mean, &[0, 1], &dims);
                self.b.subtract(groups, mean)
            }
        };
        let square = self.b.multiply(centred, centred);
        let mean = mean(self, square);
        let eps = self.b.full_like(mean, norm.eps);
        let mean = self.b.add(mean, eps);
        let factor = self.b.rsqrt(mean);
        let factor = self.b.broadcast(factor, &[0, 1], &dims);
        let mut out = self.b.multiply(centred, factor);
        for (weight, op) in [(norm.weight, Binary::Multiply), (norm.bias, Binary::Add)] {
            let Some(weight) = weight else { continue };
            let weight = self.values(weight);
            // One for all groups, or each its own.
            let weight = if weight.dims() == [len] {
                self.b.broadcast(weight, &[2], &dims)
            } else {
                let weight = self.b.reshape(weight, &dims[1..]);
                self.b.broadcast(weight, &[1, 2], &dims)
            };
            out = self.b.binary(op, out, weight);
        }
        self.b.reshape(out, &[rows, cols])
    }

    /// The type that a weight is multiplied in: what multiplies it is rounded to that.
    pub(super) fn operands(&self, weight: WeightId) -> DType {
        if self.stored[weight.0 as usize] == DType::F32 { DType::F32 } else { DType::BF16 }
    }

    /// `x [rows, in]` times a matrix, `f32[rows, out]`; of what a core has.
    pub(super) fn product(&mut self, x: Array, weight: WeightId) -> Array {
        let (values, operands) = (self.values(weight), self.operands(weight));
        let inner = usize::from(self.sharded.part(weight).order == Order::OutIn);
        let x = self.b.convert(x, operands);
        let values = self.b.convert(values, operands);
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![inner], ..DotDims::default() };
        let product = self.b.product(x, values, dims);
        match self.scales(weight) {
            None => product,
            Some(scales) => {
                let scales = self.along_last(scales, &product.dims());
                self.b.multiply(product, scales)
            }
        }
    }

    pub(super) fn plus_bias(&mut self, x: Array, bias: Option<WeightId>) -> Array {
        let Some(bias) = bias else { return x };
        let bias = self.along_last(self.values(bias), &x.dims());
        self.b.add(x, bias)
    }

    fn act(&mut self, x: Array, act: Act) -> Array {
        match act {
            Act::Silu => idioms::silu(&mut self.b, x),
            Act::Gelu => idioms::gelu(&mut self.b, x),
            Act::GeluTanh => idioms::gelu_tanh(&mut self.b, x),
            Act::Sigmoid => self.b.logistic(x),
            Act::Relu | Act::Relu2 => {
                let zero = self.b.full_like(x, 0.0);
                let x = self.b.maximum(x, zero);
                if act == Act::Relu { x } else { self.b.multiply(x, x) }
            }
        }
    }

    pub(super) fn glu(&mut self, gate: Array, up: Array, glu: Glu) -> Array {
        match glu {
            Glu::Act(act) => {
                let gate = self.act(gate, act);
                self.b.multiply(gate, up)
            }
            Glu::ClampedSwish { alpha, limit } => {
                let bound = self.b.full_like(gate, limit);
                let gate = self.b.minimum(gate, bound);
                let up = self.clamped(up, -limit, limit);
                let steep = self.scaled(gate, alpha);
                let open = self.b.logistic(steep);
                let gate = self.b.multiply(gate, open);
                let one = self.b.full_like(up, 1.0);
                let up = self.b.add(up, one);
                self.b.multiply(gate, up)
            }
        }
    }
}
