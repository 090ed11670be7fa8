//! From ops over values to a plan: the ops, each with its shapes checked as it is added.

use std::sync::Arc;

use super::op::{Embedding, Norm, NormGroup, Op, Pairing, Product, Val, Vector};
use super::{Attention, RowSet};
use crate::acts::{Act, Glu};
use crate::kv::KvShape;
use crate::packed::{GROUP, Packed};
use crate::route::Routing;

/// Rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Radians per position, one per rotated pair.
    pub inv_freq: Vec<f32>,
    /// Factor of cosines and sines.
    pub amplitude: f32,
    /// `(length, frequencies)`: sequences whose [`Span::rope_len`](super::Span::rope_len) exceeds the length take these.
    pub long: Option<(usize, Vec<f32>)>,
}

/// Collects the ops of a step. Each value is written once; shapes are checked as ops are added.
#[derive(Debug, Default)]
pub struct PlanBuilder {
    pub(super) vals: Vec<(usize, RowSet)>,
    pub(super) ops: Vec<Op>,
    pub(super) tables: Vec<RopeTable>,
    /// Tables with the pairings they are used with.
    pub(super) ropes: Vec<(usize, Pairing)>,
    pub(super) caches: Vec<KvShape>,
    pub(super) attentions: Vec<Attention>,
    pub(super) moes: Vec<Moe>,
    pub(super) logits: Option<Val>,
}

/// A mixture of experts.
#[derive(Debug)]
pub(super) struct Moe {
    pub gate: Product,
    pub up: Product,
    pub down: Product,
    pub glu: Glu,
    pub rows: RowSet,
    /// Experts that a row may have.
    pub kept: usize,
}

/// How [`PlanBuilder::attend`] attends.
#[derive(Clone, Debug)]
pub struct AttendHow {
    /// Query heads.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Keys a query sees, itself included; all where absent.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`, after `scale`.
    pub softcap: Option<f32>,
    /// A score per query head that takes part in the softmax and has no value.
    pub sinks: Option<Vector>,
    /// A slope per query head: scores gain it times the key's position less the query's.
    pub alibi: Option<Vec<f32>>,
}

impl PlanBuilder {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new value of `cols` columns.
    pub fn val(&mut self, cols: usize, rows: RowSet) -> Val {
        self.vals.push((cols, rows));
        Val(self.vals.len() - 1)
    }

    /// Adds rotary frequencies; the result names them to [`PlanBuilder::rope`].
    pub fn rope_table(&mut self, table: RopeTable) -> usize {
        let same = |(_, long): &(usize, Vec<f32>)| long.len() == table.inv_freq.len();
        assert!(table.long.as_ref().is_none_or(same), "long sequences rotate as many pairs");
        self.tables.push(table);
        self.tables.len() - 1
    }

    /// Adds a layer's cache.
    pub fn cache(&mut self, shape: KvShape) -> usize {
        assert!(
            shape.block_len > 0 && shape.block_len.is_multiple_of(crate::kv::KEYS),
            "a block holds whole key groups"
        );
        self.caches.push(shape);
        self.caches.len() - 1
    }

    /// `out[r] = table[index[r]]`.
    pub fn embed(&mut self, table: Arc<Packed>, index: Embedding, out: Val) {
        assert!(table.cols() == self.cols(out) && table.count() == 1, "embedding width");
        self.ops.push(Op::Embed { table, index, out });
    }

    /// Norm of whole rows or of their groups.
    pub fn norm(&mut self, x: Val, norm: Norm, group: NormGroup, out: Val) {
        let cols = self.cols(x);
        let len = if let NormGroup::Head(n) = group { n } else { cols };
        assert!(self.vals[x.0] == self.vals[out.0] && len > 0 && cols.is_multiple_of(len), "norm shapes");
        check_norm(&norm, &[len, cols]);
        self.ops.push(Op::Norm { x, norm, group, out });
    }

    /// `sum = x + delta; out = norm(sum)`.
    pub fn add_norm(&mut self, x: Val, delta: Val, norm: Norm, sum: Val, out: Val) {
        let shapes = [x, delta, sum, out].map(|v| self.vals[v.0]);
        assert!(shapes.iter().all(|s| *s == shapes[0]), "add_norm shapes");
        check_norm(&norm, &[shapes[0].0]);
        self.ops.push(Op::AddNorm { x, delta, norm, sum, out });
    }

    /// `out = act(x)`.
    pub fn act(&mut self, x: Val, act: Act, out: Val) {
        self.check_same(&[x, out]);
        self.ops.push(Op::Act { x, act, out });
    }

    /// Rotates heads of `head` columns by the angles of `table`.
    pub fn rope(&mut self, x: Val, table: usize, head: usize, pairing: Pairing, out: Val) {
        let width = 2 * self.tables[table].inv_freq.len();
        assert!(
            self.vals[x.0] == self.vals[out.0] && self.cols(x).is_multiple_of(head) && width <= head,
            "rope shapes"
        );
        let key = (table, pairing);
        let rope = self.ropes.iter().position(|r| *r == key).unwrap_or_else(|| {
            self.ropes.push(key);
            self.ropes.len() - 1
        });
        self.ops.push(Op::Rope { x, rope, head, out });
    }

    /// Writes `k` and `v` into `cache`, then attends `q` over it.
    pub fn attend(&mut self, [q, k, v]: [Val; 3], cache: usize, how: AttendHow, out: Val) {
        let (c, heads) = (&self.caches[cache], how.heads);
        assert!(heads.is_multiple_of(c.heads), "query heads per key head");
        assert!(self.cols(k) == c.heads * c.k_dim && self.cols(v) == c.heads * c.v_dim, "key and value shapes");
        assert!(self.cols(q) == heads * c.k_dim && self.cols(out) == heads * c.v_dim, "query shapes");
        assert!([q, k, v, out].iter().all(|v| self.vals[v.0].1 == RowSet::Tokens), "attention runs on tokens");
        assert!(how.sinks.as_ref().is_none_or(|s| s.len() == heads), "a sink per head");
        assert!(how.alibi.as_ref().is_none_or(|s| s.len() == heads), "a slope per head");
        self.attentions.push(Attention {
            scale: how.scale,
            window: how.window.unwrap_or(usize::MAX),
            softcap: how.softcap,
            sinks: how.sinks.map(|s| s.to_vec()),
            alibi: how.alibi,
        });
        self.ops.push(Op::CacheWrite { k, v, cache });
        self.ops.push(Op::Attend { q, cache, heads, how: self.attentions.len() - 1, out });
    }

    /// `out = x + y`.
    pub fn add(&mut self, x: Val, y: Val, out: Val) {
        self.check_same(&[x, y, out]);
        self.ops.push(Op::Add { x, y, out });
    }

    /// `out = x * y`; a `y` of one column is the factor of the whole row.
    pub fn mul(&mut self, x: Val, y: Val, out: Val) {
        self.check_same(&[x, out]);
        assert!(self.vals[y.0].1 == self.vals[x.0].1 && [1, self.cols(x)].contains(&self.cols(y)), "factor shapes");
        self.ops.push(Op::Mul { x, y, out });
    }

    /// `out = x * factor`.
    pub fn scale(&mut self, x: Val, factor: f32, out: Val) {
        self.check_same(&[x, out]);
        self.ops.push(Op::Scale { x, factor, out });
    }

    /// `out = cap * tanh(x / cap)`.
    pub fn softcap(&mut self, x: Val, cap: f32, out: Val) {
        self.check_same(&[x, out]);
        self.ops.push(Op::Softcap { x, cap, out });
    }

    /// `out = min(max(x, -bound), bound)`.
    pub fn clamp(&mut self, x: Val, bound: f32, out: Val) {
        self.check_same(&[x, out]);
        self.ops.push(Op::Clamp { x, bound, out });
    }

    /// `out = x` and `y` head by head, of these lengths; a `y` of one head is every head's.
    pub fn join(&mut self, x: Val, y: Val, lengths: [usize; 2], out: Val) {
        let heads = self.cols(x) / lengths[0];
        assert!(self.cols(x) == heads * lengths[0] && self.cols(out) == heads * (lengths[0] + lengths[1]), "heads");
        assert!([heads * lengths[1], lengths[1]].contains(&self.cols(y)), "second parts");
        assert!([x, y, out].iter().all(|v| self.vals[v.0].1 == self.vals[x.0].1), "rows of one kind");
        self.ops.push(Op::Join { x, y, lengths, out });
    }

    /// A router's logits as shares.
    pub fn route(&mut self, x: Val, routing: Routing, out: Val) {
        self.check_same(&[x, out]);
        assert!((1..=self.cols(x)).contains(&routing.top_k), "some of the experts are kept");
        self.ops.push(Op::Route { x, routing, out });
    }

    /// Keeps the output rows of `x`.
    pub fn take(&mut self, x: Val, out: Val) {
        assert!(
            self.vals[x.0].1 == RowSet::Tokens && self.vals[out.0] == (self.cols(x), RowSet::Outputs),
            "take shapes"
        );
        self.ops.push(Op::Take { x, out });
    }

    /// Products of `x`, and the value that each makes.
    pub fn linear(&mut self, x: Val, parts: Vec<(Product, Val)>) {
        for (p, out) in &parts {
            self.check_product(p, 1, self.cols(x));
            assert!(self.vals[out.0] == (p.weight.rows(), self.vals[x.0].1), "matrix rows");
        }
        self.ops.push(Op::Linear { x, parts });
    }

    /// `glu(x * gate, x * up)`.
    pub fn gated(&mut self, x: Val, [gate, up]: [Product; 2], glu: Glu, out: Val) {
        for p in [&gate, &up] {
            self.check_product(p, 1, self.cols(x));
            assert!(self.vals[out.0] == (p.weight.rows(), self.vals[x.0].1), "matrix rows");
        }
        self.ops.push(Op::Gated { x, gate, up, glu, out });
    }

    /// `sum over experts e of shares[e] * (glu(x * gate_e, x * up_e) * down_e)`, over those whose share is not zero.
    pub fn moe(&mut self, x: Val, shares: Val, [gate, up, down]: [Product; 3], glu: Glu, out: Val) {
        let (experts, rows) = self.vals[shares.0];
        for p in [&gate, &up] {
            self.check_product(p, experts, self.cols(x));
            assert_eq!(p.weight.rows(), down.weight.cols(), "gate and up make what down takes");
        }
        self.check_product(&down, experts, gate.weight.rows());
        assert!(self.vals[out.0] == (down.weight.rows(), rows) && self.vals[x.0].1 == rows, "expert shapes");
        // How many experts a row has at most is known where the shares come from a router as they are.
        let made = self.ops.iter().find(|op| op.writes().contains(&shares));
        let kept = if let Some(Op::Route { routing, .. }) = made { routing.top_k } else { experts };
        if !self.cols(x).is_multiple_of(GROUP) {
            // Here, since several workers will read a row at once.
            self.ops.push(Op::Clear { x });
        }
        let moe = self.moes.len();
        self.moes.push(Moe { gate, up, down, glu, rows, kept });
        self.ops.push(Op::Dispatch { shares, moe });
        self.ops.push(Op::Gather { x, moe });
        self.ops.extend([Op::ExpertsIn { moe }, Op::Repack { moe }, Op::ExpertsOut { moe }]);
        self.ops.push(Op::Combine { shares, moe, out });
    }

    /// Makes `x` the step's result.
    pub fn logits(&mut self, x: Val) {
        assert_eq!(self.vals[x.0].1, RowSet::Outputs, "logits come from output rows");
        self.logits = Some(x);
    }

    fn check_same(&self, vals: &[Val]) {
        assert!(vals.iter().all(|v| self.vals[v.0] == self.vals[vals[0].0]), "elementwise shapes");
    }

    fn check_product(&self, p: &Product, count: usize, cols: usize) {
        assert_eq!(p.weight.cols(), cols, "matrix columns");
        assert_eq!(p.weight.count(), count, "matrices of a stack");
        assert!(p.bias.as_ref().is_none_or(|b| b.len() == count * p.weight.rows()), "bias length");
    }

    pub(super) fn cols(&self, v: Val) -> usize {
        self.vals[v.0].0
    }
}

fn check_norm(norm: &Norm, lengths: &[usize]) {
    let fits = |w: &Vector| lengths.contains(&w.len());
    assert!(norm.weight.iter().chain(&norm.bias).all(fits), "norm weights");
}
