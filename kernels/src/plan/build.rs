//! From ops over values to phases over an arena.

use std::sync::Arc;

use super::layout::{Layout, Span};
use super::{ActRegion, Matrix, Part, Phase, Plan, PlanLimits, Region, Rope, RowOp, RowSet};
use crate::attention;
use crate::buffer::{Buffer, OutOfMemory};
use crate::gemm::{self, ActKind};
use crate::isa::Kernels;
use crate::kv::{KvCache, KvShape};
use crate::packed::{GROUP, Packed};

/// An activation of a plan under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Val(usize);

/// A norm weight.
pub type Vector = Arc<[f32]>;

/// One product of a linear op.
#[derive(Clone, Debug)]
pub struct LinearPart {
    /// `[out, in]`.
    pub weight: Arc<Packed>,
    /// Added to every row.
    pub bias: Option<Vector>,
    /// The result; `None` for the step's logits.
    pub out: Option<Val>,
}

/// Collects the ops of a step. Each value is written once; shapes are checked as ops are added.
#[derive(Debug)]
pub struct PlanBuilder {
    vals: Vec<(usize, RowSet)>,
    ops: Vec<Op>,
    ropes: Vec<(Vec<f32>, f32)>,
    caches: Vec<KvShape>,
}

#[derive(Debug)]
enum Op {
    Embed { table: Arc<Packed>, out: Val },
    Norm { x: Val, weight: Vector, eps: f32, out: Val },
    AddNorm { x: Val, delta: Val, weight: Vector, eps: f32, sum: Val, out: Val },
    HeadNorm { x: Val, weight: Vector, eps: f32, out: Val },
    Rope { x: Val, rope: usize, head: usize, out: Val },
    CacheWrite { k: Val, v: Val, cache: usize },
    Attend { q: Val, cache: usize, heads: usize, scale: f32, window: usize, out: Val },
    Add { x: Val, y: Val, out: Val },
    Take { x: Val, out: Val },
    Linear { x: Val, parts: Vec<LinearPart> },
    Gated { x: Val, gate: LinearPart, up: LinearPart, out: Val },
    Pack { x: Val, kind: ActKind, act: usize, fine: bool },
}

impl Op {
    fn reads(&self) -> Vec<Val> {
        match self {
            Op::Embed { .. } => vec![],
            Op::Norm { x, .. }
            | Op::HeadNorm { x, .. }
            | Op::Rope { x, .. }
            | Op::Take { x, .. }
            | Op::Pack { x, .. } => vec![*x],
            // The products read the packed form of `x`, not `x`.
            Op::Linear { .. } | Op::Gated { .. } => vec![],
            Op::AddNorm { x, delta, .. } => vec![*x, *delta],
            Op::CacheWrite { k, v, .. } => vec![*k, *v],
            Op::Attend { q, .. } => vec![*q],
            Op::Add { x, y, .. } => vec![*x, *y],
        }
    }

    fn writes(&self) -> Vec<Val> {
        match self {
            Op::CacheWrite { .. } | Op::Pack { .. } => vec![],
            Op::Embed { out, .. }
            | Op::Norm { out, .. }
            | Op::HeadNorm { out, .. }
            | Op::Rope { out, .. }
            | Op::Attend { out, .. }
            | Op::Add { out, .. }
            | Op::Take { out, .. }
            | Op::Gated { out, .. } => vec![*out],
            Op::AddNorm { sum, out, .. } => vec![*sum, *out],
            Op::Linear { parts, .. } => parts.iter().filter_map(|p| p.out).collect(),
        }
    }

    /// `(input, result)` that may share memory: the op reads each element before it writes it.
    fn in_place(&self) -> Option<(Val, Val)> {
        match self {
            Op::HeadNorm { x, out, .. } | Op::Rope { x, out, .. } | Op::Add { x, out, .. } => Some((*x, *out)),
            Op::AddNorm { x, sum, .. } => Some((*x, *sum)),
            _ => None,
        }
    }
}

impl Default for PlanBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl PlanBuilder {
    /// An empty plan.
    pub fn new() -> Self {
        PlanBuilder { vals: vec![], ops: vec![], ropes: vec![], caches: vec![] }
    }

    /// A new value of `cols` columns.
    pub fn val(&mut self, cols: usize, rows: RowSet) -> Val {
        self.vals.push((cols, rows));
        Val(self.vals.len() - 1)
    }

    /// Adds rotary frequencies; the result names them to [`PlanBuilder::rope`].
    pub fn rope_table(&mut self, inv_freq: Vec<f32>, amplitude: f32) -> usize {
        self.ropes.push((inv_freq, amplitude));
        self.ropes.len() - 1
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

    /// `out[r] = table[token[r]]`.
    pub fn embed(&mut self, table: Arc<Packed>, out: Val) {
        assert_eq!(table.cols(), self.cols(out), "embedding width");
        self.ops.push(Op::Embed { table, out });
    }

    /// RMS norm of whole rows.
    pub fn norm(&mut self, x: Val, weight: Vector, eps: f32, out: Val) {
        assert!(self.cols(x) == weight.len() && self.vals[x.0] == self.vals[out.0], "norm shapes");
        self.ops.push(Op::Norm { x, weight, eps, out });
    }

    /// `sum = x + delta; out = norm(sum)`.
    pub fn add_norm(&mut self, x: Val, delta: Val, weight: Vector, eps: f32, sum: Val, out: Val) {
        let shapes = [x, delta, sum, out].map(|v| self.vals[v.0]);
        assert!(shapes.iter().all(|s| *s == shapes[0]) && weight.len() == shapes[0].0, "add_norm shapes");
        self.ops.push(Op::AddNorm { x, delta, weight, eps, sum, out });
    }

    /// RMS norm of each run of `weight.len()` columns.
    pub fn head_norm(&mut self, x: Val, weight: Vector, eps: f32, out: Val) {
        assert!(self.vals[x.0] == self.vals[out.0] && self.cols(x).is_multiple_of(weight.len()), "head norm shapes");
        self.ops.push(Op::HeadNorm { x, weight, eps, out });
    }

    /// Rotates heads of `head` columns by `rope`'s angles.
    pub fn rope(&mut self, x: Val, rope: usize, head: usize, out: Val) {
        let width = 2 * self.ropes[rope].0.len();
        assert!(
            self.vals[x.0] == self.vals[out.0] && self.cols(x).is_multiple_of(head) && width <= head,
            "rope shapes"
        );
        self.ops.push(Op::Rope { x, rope, head, out });
    }

    /// Writes `k` and `v` into `cache`, then attends `q` over it.
    pub fn attend(
        &mut self,
        [q, k, v]: [Val; 3],
        cache: usize,
        heads: usize,
        scale: f32,
        window: Option<usize>,
        out: Val,
    ) {
        let c = &self.caches[cache];
        assert!(heads.is_multiple_of(c.heads), "query heads per key head");
        assert!(self.cols(k) == c.heads * c.k_dim && self.cols(v) == c.heads * c.v_dim, "key and value shapes");
        assert!(self.cols(q) == heads * c.k_dim && self.cols(out) == heads * c.v_dim, "query shapes");
        assert!([q, k, v, out].iter().all(|v| self.vals[v.0].1 == RowSet::Tokens), "attention runs on tokens");
        self.ops.push(Op::CacheWrite { k, v, cache });
        let window = window.unwrap_or(usize::MAX);
        self.ops.push(Op::Attend { q, cache, heads, scale, window, out });
    }

    /// `out = x + y`.
    pub fn add(&mut self, x: Val, y: Val, out: Val) {
        assert!(self.vals[x.0] == self.vals[y.0] && self.vals[x.0] == self.vals[out.0], "add shapes");
        self.ops.push(Op::Add { x, y, out });
    }

    /// Keeps the output rows of `x`.
    pub fn take(&mut self, x: Val, out: Val) {
        assert!(
            self.vals[x.0].1 == RowSet::Tokens && self.vals[out.0] == (self.cols(x), RowSet::Outputs),
            "take shapes"
        );
        self.ops.push(Op::Take { x, out });
    }

    /// Products of `x`.
    pub fn linear(&mut self, x: Val, parts: Vec<LinearPart>) {
        for p in &parts {
            self.check_part(x, p);
        }
        self.ops.push(Op::Linear { x, parts });
    }

    /// `silu(x * gate) * (x * up)`.
    pub fn gated(&mut self, x: Val, gate: LinearPart, up: LinearPart, out: Val) {
        let parts = [gate, up].map(|p| LinearPart { out: Some(out), ..p });
        parts.iter().for_each(|p| self.check_part(x, p));
        let [gate, up] = parts;
        assert_eq!(gate.weight.stored().is_int(), up.weight.stored().is_int(), "gate and up take one kind of input");
        self.ops.push(Op::Gated { x, gate, up, out });
    }

    fn check_part(&self, x: Val, p: &LinearPart) {
        assert_eq!(p.weight.cols(), self.cols(x), "matrix columns");
        assert!(p.bias.as_ref().is_none_or(|b| b.len() == p.weight.rows()), "bias length");
        match p.out {
            Some(out) => assert!(self.vals[out.0] == (p.weight.rows(), self.vals[x.0].1), "matrix rows"),
            None => assert_eq!(self.vals[x.0].1, RowSet::Outputs, "logits come from output rows"),
        }
    }

    fn cols(&self, v: Val) -> usize {
        self.vals[v.0].0
    }

    /// Lays everything out. The last linear op without a result value makes the logits.
    pub fn finish(mut self, kernels: &'static Kernels, limits: PlanLimits) -> Result<Plan, OutOfMemory> {
        let acts = self.insert_packs(kernels);
        let alias = self.aliases();
        let groups = self.groups();
        let layout = Layout::new(limits, &groups);
        let phase_of = |op: usize| groups.iter().position(|g| g.contains(&op)).unwrap_or(0);

        // Lifetimes in phases, per storage; acts after vals.
        let mut spans: Vec<Span> = self
            .vals
            .iter()
            .map(|(cols, rows)| Span::new(layout.rows(*rows) * cols.next_multiple_of(GROUP) * 4))
            .chain(acts.iter().map(|a| {
                let (codes, meta) = a.kind.bytes(a.cols);
                Span::new(layout.rows(a.rows) * (codes.next_multiple_of(64) + meta))
            }))
            .collect();
        for (i, op) in self.ops.iter().enumerate() {
            let phase = phase_of(i);
            for v in op.reads().into_iter().chain(op.writes()) {
                spans[alias[v.0]].touch(phase);
            }
            match op {
                Op::Pack { act, .. } => spans[self.vals.len() + act].touch(phase),
                Op::Linear { x, parts } => {
                    for p in parts {
                        let kind = gemm::act_kind(p.weight.stored(), kernels.bf16);
                        spans[self.vals.len() + find_act(&acts, *x, kind)].touch(phase);
                    }
                }
                Op::Gated { x, gate, .. } => {
                    let kind = gemm::act_kind(gate.weight.stored(), kernels.bf16);
                    spans[self.vals.len() + find_act(&acts, *x, kind)].touch(phase);
                }
                _ => {}
            }
        }
        let (offsets, mut bytes) = layout.place(&spans);
        let region = |v: Val| {
            let (cols, _) = self.vals[v.0];
            Region { at: offsets[alias[v.0]] / 4, stride: cols.next_multiple_of(GROUP), cols }
        };
        let act_region = |x: Val, kind: ActKind| {
            let i = find_act(&acts, x, kind);
            let codes = offsets[self.vals.len() + i];
            let rows = layout.rows(acts[i].rows);
            ActRegion {
                kind,
                codes,
                meta: codes + rows * kind.bytes(acts[i].cols).0.next_multiple_of(64),
                cols: acts[i].cols,
            }
        };
        let mut ropes = vec![];
        for (inv_freq, amplitude) in std::mem::take(&mut self.ropes) {
            let table = limits.max_rows * inv_freq.len() * 4;
            let cos = bytes;
            let sin = (cos + table).next_multiple_of(64);
            bytes = (sin + table).next_multiple_of(64);
            ropes.push(Rope { inv_freq, amplitude, cos: cos / 4, sin: sin / 4 });
        }
        let scratch_len = self
            .caches
            .iter()
            .map(|c| attention::scratch_len(c.k_dim, c.v_pad()))
            .max()
            .unwrap_or(0)
            .next_multiple_of(16);
        let scratch_at = bytes / 4;
        bytes += limits.threads * scratch_len * 4;

        let mut phases = vec![];
        let mut vocab = 0;
        for group in &groups {
            let first = &self.ops[group.start];
            phases.push(match first {
                Op::Linear { x, parts } => {
                    let parts: Vec<_> = parts
                        .iter()
                        .map(|p| Part {
                            act: act_region(*x, gemm::act_kind(p.weight.stored(), kernels.bf16)),
                            matrix: matrix(p),
                            out: p.out.map(region),
                        })
                        .collect();
                    if let Some(p) = parts.iter().find(|p| p.out.is_none()) {
                        vocab = p.matrix.weight.rows();
                    }
                    Phase::Linear { rows: self.vals[x.0].1, parts }
                }
                Op::Gated { x, gate, up, out } => Phase::Gated {
                    rows: self.vals[x.0].1,
                    act: act_region(*x, gemm::act_kind(gate.weight.stored(), kernels.bf16)),
                    gate: matrix(gate),
                    up: matrix(up),
                    out: region(*out),
                },
                Op::Attend { q, cache, heads, scale, window, out } => Phase::Attend {
                    q: region(*q),
                    out: region(*out),
                    cache: *cache,
                    heads: *heads,
                    scale: *scale,
                    window: *window,
                },
                _ => {
                    let mut ops: Vec<RowOp> =
                        self.ops[group.clone()].iter().map(|op| row_op(op, &region, &act_region)).collect();
                    if matches!(first, Op::Embed { .. }) {
                        ops.extend((0..ropes.len()).map(|rope| RowOp::Angles { rope }));
                    }
                    Phase::Rows { set: self.row_set(first), ops }
                }
            });
        }
        let counters = phases.iter().map(|_| Default::default()).collect();
        let caches = self.caches.iter().map(|c| KvCache::new(*c)).collect::<Result<_, _>>()?;
        let arena = Buffer::zeroed(bytes.max(64))?;
        let tasks = Vec::with_capacity(limits.max_rows.max(1));
        Ok(Plan { kernels, limits, phases, counters, ropes, caches, arena, scratch_at, scratch_len, tasks, vocab })
    }

    /// Adds, after the op that makes it, the packed form of each value that a product reads.
    fn insert_packs(&mut self, kernels: &Kernels) -> Vec<Act> {
        let mut acts: Vec<Act> = vec![];
        for op in &self.ops {
            let (x, weights): (Val, Vec<&Arc<Packed>>) = match op {
                Op::Linear { x, parts } => (*x, parts.iter().map(|p| &p.weight).collect()),
                Op::Gated { x, gate, up, .. } => (*x, vec![&gate.weight, &up.weight]),
                _ => continue,
            };
            for w in weights {
                let kind = gemm::act_kind(w.stored(), kernels.bf16);
                if !acts.iter().any(|a| a.x == x && a.kind == kind) {
                    let (cols, rows) = self.vals[x.0];
                    acts.push(Act { x, kind, cols, rows });
                }
            }
        }
        let mut ops = vec![];
        for op in self.ops.drain(..) {
            let made = op.writes();
            // The outlier channels are the residual stream's, which a product sees through a norm. Without fine codes
            // there, SmolLM2's perplexity rises by half a percent; anywhere else they change nothing.
            let fine = matches!(op, Op::Norm { .. } | Op::AddNorm { .. });
            ops.push(op);
            for (act, a) in acts.iter().enumerate().filter(|(_, a)| made.contains(&a.x)) {
                ops.push(Op::Pack { x: a.x, kind: a.kind, act, fine });
            }
        }
        self.ops = ops;
        acts
    }

    /// For each value, the value whose memory it shares (itself, mostly).
    fn aliases(&self) -> Vec<usize> {
        let mut alias: Vec<usize> = (0..self.vals.len()).collect();
        for (i, op) in self.ops.iter().enumerate() {
            let Some((x, out)) = op.in_place() else { continue };
            if !self.ops[i + 1..].iter().any(|later| later.reads().contains(&x)) {
                alias[out.0] = alias[x.0];
            }
        }
        alias
    }

    /// Ranges of ops that form one phase.
    fn groups(&self) -> Vec<std::ops::Range<usize>> {
        let mut groups: Vec<std::ops::Range<usize>> = vec![];
        for (i, op) in self.ops.iter().enumerate() {
            let joins = groups.last().is_some_and(|g| {
                let first = &self.ops[g.start];
                is_row_local(first) && is_row_local(op) && self.row_set(first) == self.row_set(op)
            });
            match groups.last_mut() {
                Some(g) if joins => g.end = i + 1,
                _ => groups.push(i..i + 1),
            }
        }
        groups
    }

    fn row_set(&self, op: &Op) -> RowSet {
        let val = match op {
            Op::Take { out, .. } => *out,
            _ => op.reads().first().or(op.writes().first()).copied().unwrap_or(Val(0)),
        };
        self.vals[val.0].1
    }
}

/// A packed activation: of `x`, as `kind`.
#[derive(Debug)]
struct Act {
    x: Val,
    kind: ActKind,
    cols: usize,
    rows: RowSet,
}

fn find_act(acts: &[Act], x: Val, kind: ActKind) -> usize {
    acts.iter().position(|a| a.x == x && a.kind == kind).expect("`insert_packs` made one for every product")
}

fn is_row_local(op: &Op) -> bool {
    !matches!(op, Op::Linear { .. } | Op::Gated { .. } | Op::Attend { .. })
}

fn matrix(p: &LinearPart) -> Matrix {
    Matrix { weight: Arc::clone(&p.weight), bias: p.bias.as_deref().map(|b| gemm::padded_bias(b, &p.weight)) }
}

fn row_op(op: &Op, region: &impl Fn(Val) -> Region, act: &impl Fn(Val, ActKind) -> ActRegion) -> RowOp {
    let padded = |w: &Vector| {
        let mut w = w.to_vec();
        w.resize(w.len().next_multiple_of(GROUP), 0.0);
        w
    };
    match op {
        Op::Embed { table, out } => RowOp::Embed { table: Arc::clone(table), out: region(*out) },
        Op::Norm { x, weight, eps, out } => {
            RowOp::Norm { x: region(*x), weight: padded(weight), eps: *eps, out: region(*out) }
        }
        Op::AddNorm { x, delta, weight, eps, sum, out } => RowOp::AddNorm {
            x: region(*x),
            delta: region(*delta),
            weight: padded(weight),
            eps: *eps,
            sum: region(*sum),
            out: region(*out),
        },
        Op::HeadNorm { x, weight, eps, out } => {
            RowOp::HeadNorm { x: region(*x), weight: weight.to_vec(), eps: *eps, out: region(*out) }
        }
        Op::Rope { x, rope, head, out } => RowOp::Rope { x: region(*x), rope: *rope, head: *head, out: region(*out) },
        Op::CacheWrite { k, v, cache } => RowOp::CacheWrite { k: region(*k), v: region(*v), cache: *cache },
        Op::Add { x, y, out } => RowOp::Add { x: region(*x), y: region(*y), out: region(*out) },
        Op::Take { x, out } => RowOp::Take { x: region(*x), out: region(*out) },
        Op::Pack { x, kind, fine, .. } => RowOp::Pack { x: region(*x), act: act(*x, *kind), fine: *fine },
        Op::Linear { .. } | Op::Gated { .. } | Op::Attend { .. } => unreachable!("not row-local: a phase of its own"),
    }
}
