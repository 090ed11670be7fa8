//! From ops to phases: which run together, which values share memory, and where everything lies in the arena.

use std::ops::Range;
use std::sync::Arc;

use super::build::{Moe, PlanBuilder};
use super::layout::{Layout, Span};
use super::op::{NormGroup, Op, Pairing, Product, Val, Vector};
use super::{ActRegion, Matrix, NormWeights, Part, Phase, Plan, PlanLimits, Region, Rope, RowOp, RowSet, Table};
use crate::attention;
use crate::buffer::{Buffer, OutOfMemory};
use crate::gemm::{self, ActKind};
use crate::isa::Kernels;
use crate::kv::KvCache;
use crate::packed::GROUP;

impl PlanBuilder {
    /// Lays everything out.
    pub fn finish(mut self, kernels: &'static Kernels, limits: PlanLimits) -> Result<Plan, OutOfMemory> {
        let acts = self.insert_packs(kernels);
        let groups = self.groups();
        let places = Places::new(&self, &acts, &groups, Layout::new(limits), kernels);
        let mut bytes = places.bytes;
        let mut ropes = vec![];
        for (table, pairing) in &self.ropes {
            let table = self.tables[*table].clone();
            let width = table.inv_freq.len() * if *pairing == Pairing::Half { 1 } else { 2 };
            let cos = bytes;
            let sin = (cos + limits.max_rows * width * 4).next_multiple_of(64);
            bytes = (sin + limits.max_rows * width * 4).next_multiple_of(64);
            ropes.push(Rope { table, pairing: *pairing, width, cos: cos / 4, sin: sin / 4 });
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

        let mut how: Vec<_> = std::mem::take(&mut self.attentions).into_iter().map(Some).collect();
        let mut phases = vec![];
        for group in &groups {
            phases.push(match &self.ops[group.start] {
                Op::Linear { x, parts } => {
                    let part = |(p, out): &(Product, Val)| Part {
                        matrix: matrix(p, places.act(*x, kind(p, kernels))),
                        out: places.region(*out),
                    };
                    Phase::Linear { rows: self.vals[x.0].1, parts: parts.iter().map(part).collect() }
                }
                Op::Gated { x, gate, up, glu, out } => Phase::Gated {
                    rows: self.vals[x.0].1,
                    gate: matrix(gate, places.act(*x, kind(gate, kernels))),
                    up: matrix(up, places.act(*x, kind(up, kernels))),
                    glu: *glu,
                    out: places.region(*out),
                },
                Op::Attend { q, cache, heads, how: i, out } => Phase::Attend {
                    q: places.region(*q),
                    out: places.region(*out),
                    cache: *cache,
                    heads: *heads,
                    how: how[*i].take().expect("every attention is one op"),
                },
                Op::Dispatch { shares, moe } => {
                    let (rows, table) = (self.moes[*moe].rows, places.moes[*moe].table);
                    Phase::Dispatch { rows, shares: places.region(*shares), table }
                }
                Op::Gather { x, moe } => {
                    let MoePlaces { acts, table, .. } = &places.moes[*moe];
                    let made = self.ops.iter().find(|op| op.writes().contains(x));
                    let fine = made.is_some_and(Op::may_have_outliers);
                    Phase::Gather { x: places.region(*x), acts: acts.clone(), fine, table: *table }
                }
                Op::ExpertsIn { moe } => {
                    let (Moe { gate, up, glu, .. }, at) = (&self.moes[*moe], &places.moes[*moe]);
                    let [gate, up] = [gate, up].map(|p| matrix(p, at.act(kind(p, kernels))));
                    Phase::ExpertsIn { gate, up, glu: *glu, out: at.inner, table: at.table }
                }
                Op::Repack { moe } => {
                    let at = &places.moes[*moe];
                    Phase::Repack { x: at.inner, act: at.repacked, table: at.table }
                }
                Op::ExpertsOut { moe } => {
                    let at = &places.moes[*moe];
                    let down = matrix(&self.moes[*moe].down, at.repacked);
                    Phase::ExpertsOut { down, out: at.outer, table: at.table }
                }
                first => {
                    let mut ops: Vec<RowOp> = vec![];
                    if phases.is_empty() {
                        ops.extend((0..ropes.len()).map(|rope| RowOp::Angles { rope }));
                    }
                    ops.extend(self.ops[group.clone()].iter().map(|op| row_op(op, &self, &places, &acts)));
                    Phase::Rows { set: self.row_set(first), ops }
                }
            });
        }
        let counters = phases.iter().map(|_| Default::default()).collect();
        let caches = self.caches.iter().map(|c| KvCache::new(*c)).collect::<Result<_, _>>()?;
        let arena = Buffer::zeroed(bytes.max(64))?;
        let tasks = Vec::with_capacity(limits.max_rows.max(1));
        let vocab = self.logits.map_or(0, |v| self.cols(v));
        Ok(Plan { kernels, limits, phases, counters, ropes, caches, arena, scratch_at, scratch_len, tasks, vocab })
    }

    /// Adds, after the op that makes it, the packed form of each value that a product reads.
    fn insert_packs(&mut self, kernels: &Kernels) -> Vec<Act> {
        let mut acts: Vec<Act> = vec![];
        for op in &self.ops {
            let (x, products): (Val, Vec<&Product>) = match op {
                Op::Linear { x, parts } => (*x, parts.iter().map(|(p, _)| p).collect()),
                Op::Gated { x, gate, up, .. } => (*x, vec![gate, up]),
                _ => continue,
            };
            for p in products {
                let act = Act { x, kind: kind(p, kernels) };
                if !acts.contains(&act) {
                    acts.push(act);
                }
            }
        }
        let mut ops = vec![];
        for op in self.ops.drain(..) {
            let (made, fine) = (op.writes(), op.may_have_outliers());
            ops.push(op);
            for (act, a) in acts.iter().enumerate().filter(|(_, a)| made.contains(&a.x)) {
                ops.push(Op::Pack { x: a.x, act, fine });
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
    fn groups(&self) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = vec![];
        for (i, op) in self.ops.iter().enumerate() {
            let joins = groups.last().is_some_and(|g| {
                let first = &self.ops[g.start];
                first.is_row_local() && op.is_row_local() && self.row_set(first) == self.row_set(op)
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
#[derive(Debug, PartialEq, Eq)]
struct Act {
    x: Val,
    kind: ActKind,
}

/// Where everything lies.
struct Places {
    vals: Vec<Region>,
    acts: Vec<(Val, ActRegion)>,
    moes: Vec<MoePlaces>,
    bytes: usize,
}

/// Where a mixture of experts works.
struct MoePlaces {
    table: Table,
    /// The entries' inputs, as the kinds that gate and up take.
    acts: Vec<ActRegion>,
    /// What gate and up make.
    inner: Region,
    /// The same as down takes it.
    repacked: ActRegion,
    /// What down makes.
    outer: Region,
}

impl MoePlaces {
    fn act(&self, kind: ActKind) -> ActRegion {
        *self.acts.iter().find(|a| a.kind == kind).expect("one for gate's kind and up's")
    }
}

impl Places {
    fn new(b: &PlanBuilder, acts: &[Act], groups: &[Range<usize>], layout: Layout, kernels: &Kernels) -> Places {
        let alias = b.aliases();
        let phase_of: Vec<usize> =
            groups.iter().enumerate().flat_map(|(i, g)| std::iter::repeat_n(i, g.len())).collect();
        // Lifetimes in phases, per stored thing: values, then packed activations, then what experts need.
        let mut spans: Vec<Span> = vec![];
        let rows_of = |v: Val| layout.rows(b.vals[v.0].1);
        spans.extend((0..b.vals.len()).map(|v| Span::new(rows_of(Val(v)) * stride(b.vals[v].0) * 4)));
        spans.extend(acts.iter().map(|a| Span::new(act_bytes(a.kind, b.cols(a.x), rows_of(a.x)))));
        let first_moe = spans.len();
        let tables: Vec<Table> = b.moes.iter().map(|m| table(m, &layout)).collect();
        for (m, table) in b.moes.iter().zip(&tables) {
            let (inp, mid, out) = (m.gate.weight.cols(), m.down.weight.cols(), m.down.weight.rows());
            let entries = table.entries();
            spans.push(Span::new(table.words() * 4));
            spans.push(Span::new(act_bytes(kind(&m.gate, kernels), inp, entries)));
            spans.push(Span::new(act_bytes(kind(&m.up, kernels), inp, entries)));
            spans.push(Span::new(entries * stride(mid) * 4));
            spans.push(Span::new(act_bytes(kind(&m.down, kernels), mid, entries)));
            spans.push(Span::new(entries * stride(out) * 4));
        }
        for (op, phase) in b.ops.iter().zip(phase_of) {
            for v in op.reads().into_iter().chain(op.writes()) {
                spans[alias[v.0]].touch(phase);
            }
            let mut touch_act = |x: &Val, kind| {
                spans[b.vals.len() + find(acts, *x, kind)].touch(phase);
            };
            match op {
                Op::Pack { act, .. } => spans[b.vals.len() + act].touch(phase),
                Op::Linear { x, parts } => parts.iter().for_each(|(p, _)| touch_act(x, kind(p, kernels))),
                Op::Gated { x, gate, up, .. } => [gate, up].iter().for_each(|p| touch_act(x, kind(p, kernels))),
                _ => {}
            }
            // Table, inputs for gate and for up, inner, repacked, outer.
            let used: &[usize] = match op {
                Op::Dispatch { .. } => &[0],
                Op::Gather { .. } => &[0, 1, 2],
                Op::ExpertsIn { .. } => &[0, 1, 2, 3],
                Op::Repack { .. } => &[0, 3, 4],
                Op::ExpertsOut { .. } => &[0, 4, 5],
                Op::Combine { .. } => &[0, 5],
                _ => &[],
            };
            if let Some(moe) = op.moe() {
                used.iter().for_each(|i| spans[first_moe + PER_MOE * moe + i].touch(phase));
            }
        }
        let logits = b.logits.map(|v| alias[v.0]);
        if let Some(class) = logits {
            spans[class] = Span::new(0);
        }
        let (offsets, bytes) = layout.place(&spans);
        let region = |v: usize| {
            let (class, cols) = (alias[v], b.vals[v].0);
            Region { at: offsets[class] / 4, stride: stride(cols), cols, logits: logits == Some(class) }
        };
        let moe = |(i, (m, table)): (usize, (&Moe, &Table))| {
            let at = |part: usize| offsets[first_moe + PER_MOE * i + part];
            let (inp, mid, out) = (m.gate.weight.cols(), m.down.weight.cols(), m.down.weight.rows());
            let entries = table.entries();
            let plain = |part, cols| Region { at: at(part) / 4, stride: stride(cols), cols, logits: false };
            let mut acts = vec![act_region(kind(&m.gate, kernels), inp, entries, at(1))];
            if kind(&m.up, kernels) != kind(&m.gate, kernels) {
                acts.push(act_region(kind(&m.up, kernels), inp, entries, at(2)));
            }
            MoePlaces {
                table: Table { at: at(0) / 4, ..*table },
                acts,
                inner: plain(3, mid),
                repacked: act_region(kind(&m.down, kernels), mid, entries, at(4)),
                outer: plain(5, out),
            }
        };
        Places {
            vals: (0..b.vals.len()).map(region).collect(),
            acts: acts
                .iter()
                .zip(&offsets[b.vals.len()..])
                .map(|(a, at)| (a.x, act_region(a.kind, b.cols(a.x), rows_of(a.x), *at)))
                .collect(),
            moes: b.moes.iter().zip(&tables).enumerate().map(moe).collect(),
            bytes,
        }
    }

    fn region(&self, v: Val) -> Region {
        self.vals[v.0]
    }

    fn act(&self, x: Val, kind: ActKind) -> ActRegion {
        let found = self.acts.iter().find(|(of, a)| *of == x && a.kind == kind);
        found.expect("`insert_packs` made one for every product").1
    }
}

fn table(m: &Moe, layout: &Layout) -> Table {
    Table { at: 0, experts: m.gate.weight.count(), kept: m.kept, max_rows: layout.rows(m.rows) }
}

fn find(acts: &[Act], x: Val, kind: ActKind) -> usize {
    acts.iter().position(|a| a.x == x && a.kind == kind).expect("`insert_packs` made one for every product")
}

fn stride(cols: usize) -> usize {
    cols.next_multiple_of(GROUP)
}

/// Codes of all rows, then their metadata.
fn act_bytes(kind: ActKind, cols: usize, rows: usize) -> usize {
    let (codes, meta) = kind.bytes(cols);
    rows * (codes.next_multiple_of(64) + meta)
}

fn act_region(kind: ActKind, cols: usize, rows: usize, at: usize) -> ActRegion {
    ActRegion { kind, codes: at, meta: at + rows * kind.bytes(cols).0.next_multiple_of(64), cols }
}

fn kind(p: &Product, kernels: &Kernels) -> ActKind {
    gemm::act_kind(p.weight.stored(), kernels.bf16)
}

fn matrix(p: &Product, act: ActRegion) -> Matrix {
    let bias = p.bias.as_deref().map(|b| gemm::padded_bias(b, &p.weight));
    Matrix { weight: Arc::clone(&p.weight), bias, act }
}

/// A norm's weights for rows of `cols` columns.
fn norm_weights(norm: &super::Norm, cols: usize) -> NormWeights {
    let padded = |w: &Vector| {
        let mut w: Vec<f32> = w.iter().copied().cycle().take(cols).collect();
        w.resize(stride(cols), 0.0);
        w
    };
    let ones: Vector = vec![1.0; cols].into();
    NormWeights {
        kind: norm.kind,
        weight: padded(norm.weight.as_ref().unwrap_or(&ones)),
        bias: norm.bias.as_ref().map(padded),
        eps: norm.eps,
    }
}

fn row_op(op: &Op, b: &PlanBuilder, places: &Places, acts: &[Act]) -> RowOp {
    let region = |v: &Val| places.region(*v);
    match op {
        Op::Embed { table, index, out } => RowOp::Embed { table: Arc::clone(table), index: *index, out: region(out) },
        Op::Norm { x, norm, group, out } => {
            let (x, norm, out) = (region(x), norm_weights(norm, b.cols(*x)), region(out));
            match group {
                NormGroup::Row => RowOp::Norm { x, norm, out },
                NormGroup::Head(head) => RowOp::HeadNorm { x, norm, head: *head, out },
            }
        }
        Op::AddNorm { x, delta, norm, sum, out } => RowOp::AddNorm {
            x: region(x),
            delta: region(delta),
            norm: norm_weights(norm, b.cols(*x)),
            sum: region(sum),
            out: region(out),
        },
        Op::Act { x, act, out } => RowOp::Act { x: region(x), act: *act, out: region(out) },
        Op::Rope { x, rope, head, out } => RowOp::Rope { x: region(x), rope: *rope, head: *head, out: region(out) },
        Op::CacheWrite { k, v, cache } => RowOp::CacheWrite { k: region(k), v: region(v), cache: *cache },
        Op::Add { x, y, out } => RowOp::Add { x: region(x), y: region(y), out: region(out) },
        Op::Mul { x, y, out } => RowOp::Mul { x: region(x), y: region(y), out: region(out) },
        Op::Scale { x, factor, out } => RowOp::Scale { x: region(x), factor: *factor, out: region(out) },
        Op::Softcap { x, cap, out } => RowOp::Softcap { x: region(x), cap: *cap, out: region(out) },
        Op::Clamp { x, bound, out } => RowOp::Clamp { x: region(x), bound: *bound, out: region(out) },
        Op::Join { x, y, lengths, out } => {
            RowOp::Join { x: region(x), y: region(y), lengths: *lengths, out: region(out) }
        }
        Op::Route { x, routing, out } => RowOp::Route { x: region(x), routing: routing.clone(), out: region(out) },
        Op::Take { x, out } => RowOp::Take { x: region(x), out: region(out) },
        Op::Clear { x } => RowOp::Clear { x: region(x) },
        Op::Pack { x, act, fine } => RowOp::Pack { x: region(x), act: places.act(*x, acts[*act].kind), fine: *fine },
        Op::Combine { shares, moe, out } => {
            let at = &places.moes[*moe];
            RowOp::Combine { entries: at.outer, shares: region(shares), table: at.table, out: region(out) }
        }
        Op::Linear { .. }
        | Op::Gated { .. }
        | Op::Attend { .. }
        | Op::Dispatch { .. }
        | Op::Gather { .. }
        | Op::ExpertsIn { .. }
        | Op::Repack { .. }
        | Op::ExpertsOut { .. } => unreachable!("not row-local: a phase of its own"),
    }
}

/// Stored things of a mixture of experts.
const PER_MOE: usize = 6;
