//! Records a [`Program`] while a model function runs.
//!
//! Shapes are checked at the call. A mismatch is a mistake in a model file, not in a checkpoint, and panics with the
//! scope path; numbers from a checkpoint are validated before, in [`crate::config`].

use std::collections::HashMap;

use crate::program::*;
use crate::rope::RopeTable;

/// Builds a program op by op.
#[derive(Debug)]
pub struct Tracer {
    program: Program,
    scope: Vec<String>,
    declared: HashMap<WeightDecl, WeightId>,
}

/// A matrix and its bias.
#[derive(Clone, Copy, Debug)]
pub struct LinearWeight {
    /// `[out, in]`.
    pub weight: WeightId,
    /// `[out]`.
    pub bias: Option<WeightId>,
}

/// How [`Tracer::attend`] attends; fields as in [`Op::Attend`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub sinks: Option<WeightId>,
    pub alibi: Option<Vec<f32>>,
}

impl Tracer {
    /// An empty program of this name.
    pub fn new(name: &str) -> Self {
        let program = Program {
            name: name.to_owned(),
            ops: vec![],
            vals: vec![],
            weights: vec![],
            ropes: vec![],
            caches: vec![],
            layers: vec![],
            logits: Val(u32::MAX),
        };
        Tracer { program, scope: vec![], declared: HashMap::new() }
    }

    /// Ends the trace; `logits` is the program's result.
    pub fn finish(mut self, logits: Val) -> Program {
        self.expect(self.program.info(logits).rows == RowSet::Outputs, "logits are taken from output rows");
        self.program.logits = logits;
        self.program
    }

    /// Runs `body` under a name prefix: weights declared inside are called `prefix.name`.
    pub fn scope<T>(&mut self, name: &str, body: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(name.to_owned());
        let result = body(self);
        self.scope.pop();
        result
    }

    /// Runs `body` as one layer.
    pub fn layer<T>(&mut self, name: &str, body: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.program.ops.len();
        let result = self.scope(name, body);
        let end = self.program.ops.len();
        self.program.layers.push(start..end);
        result
    }

    /// Declares a weight of the current scope, or finds it where it was declared before.
    pub fn weight(&mut self, name: &str, rows: usize, cols: usize, usage: WeightUse, parallel: Parallel) -> WeightId {
        let units = if usage == WeightUse::Vector { cols } else { rows };
        self.declare(WeightDecl {
            name: self.path(name),
            rows,
            cols,
            view: View::whole(units),
            experts: None,
            usage,
            parallel,
        })
    }

    /// Declares `decl` by its whole name, or finds it.
    pub fn declare(&mut self, decl: WeightDecl) -> WeightId {
        if let Some(&id) = self.declared.get(&decl) {
            return id;
        }
        self.expect(decl.view_is_within(), &format!("{decl} lies within its tensor"));
        let id = WeightId(index(self.program.weights.len()));
        self.program.weights.push(decl.clone());
        self.declared.insert(decl, id);
        id
    }

    /// Declares `{name}.weight` as a vector of length `len`.
    pub fn vector(&mut self, name: &str, len: usize) -> WeightId {
        self.weight(&format!("{name}.weight"), 1, len, WeightUse::Vector, Parallel::Replicated)
    }

    /// The same of a tensor that holds `weight - 1`.
    pub fn vector_plus_one(&mut self, name: &str, len: usize) -> WeightId {
        let name = self.path(&format!("{name}.weight"));
        let view = View { plus_one: true, ..View::whole(len) };
        let (usage, parallel) = (WeightUse::Vector, Parallel::Replicated);
        self.declare(WeightDecl { name, rows: 1, cols: len, view, experts: None, usage, parallel })
    }

    /// Declares `count` vectors of length `len`, one after the other; a `{}` in the name stands for the number of each.
    pub fn vectors(&mut self, name: &str, count: usize, len: usize) -> WeightId {
        let (name, view) = (self.path(name), View::whole(len));
        let (usage, parallel) = (WeightUse::Vector, Parallel::Replicated);
        self.declare(WeightDecl { name, rows: 1, cols: len, view, experts: Some(count), usage, parallel })
    }

    /// Declares `{name}.weight` `[out, in]` and, where `bias` is set, `{name}.bias`.
    pub fn linear_weight(&mut self, name: &str, shape: (usize, usize), bias: bool, p: Parallel) -> LinearWeight {
        self.linear_view(name, shape, bias, p, View::whole(shape.0))
    }

    /// The same of a part of `{name}.weight` and `{name}.bias`.
    pub fn linear_view(
        &mut self,
        name: &str,
        (out, inp): (usize, usize),
        bias: bool,
        parallel: Parallel,
        view: View,
    ) -> LinearWeight {
        let path = self.path(name);
        let decl = |part: &str, rows, cols, view, usage| WeightDecl {
            name: format!("{path}.{part}"),
            rows,
            cols,
            view,
            experts: None,
            usage,
            parallel,
        };
        let weight = self.declare(decl("weight", out, inp, view, WeightUse::Linear));
        let of_bias = View { transposed: false, ..view };
        let bias = bias.then(|| self.declare(decl("bias", 1, out, of_bias, WeightUse::Vector)));
        LinearWeight { weight, bias }
    }

    /// Declares a stack of `experts` matrices `[out, in]` called `name`, and of biases where `bias` names them. A `{}` in a
    /// name stands for the expert's number.
    pub fn expert_weights(
        &mut self,
        (name, bias): (&str, Option<&str>),
        experts: usize,
        (out, inp): (usize, usize),
        parallel: Parallel,
        view: View,
    ) -> ExpertWeights {
        let decl = |name, rows, cols, view, usage| WeightDecl {
            name,
            rows,
            cols,
            view,
            experts: Some(experts),
            usage,
            parallel,
        };
        let weight = decl(self.path(name), out, inp, view, WeightUse::Linear);
        let of_bias = View { transposed: false, ..view };
        let bias = bias.map(|bias| decl(self.path(bias), 1, out, of_bias, WeightUse::Vector));
        ExpertWeights { weight: self.declare(weight), bias: bias.map(|bias| self.declare(bias)) }
    }

    /// Adds a rotary table, or finds an equal one.
    pub fn rope_table(&mut self, table: RopeTable) -> RopeId {
        let found = self.program.ropes.iter().position(|t| *t == table);
        let i = found.unwrap_or_else(|| {
            self.program.ropes.push(table);
            self.program.ropes.len() - 1
        });
        RopeId(index(i))
    }

    /// [`Op::Embed`] by token.
    pub fn embed(&mut self, table: WeightId) -> Val {
        self.embed_by(table, EmbedIndex::Tokens)
    }

    /// [`Op::Embed`].
    pub fn embed_by(&mut self, table: WeightId, index: EmbedIndex) -> Val {
        let cols = self.program.weight(table).cols;
        let out = self.val(cols, RowSet::Tokens);
        self.push(Op::Embed { table, index, out });
        out
    }

    /// [`Op::Norm`].
    pub fn norm(&mut self, x: Val, norm: Norm, group: NormGroup) -> Val {
        let info = self.program.info(x);
        let len = match group {
            NormGroup::Row => info.cols,
            NormGroup::Head(n) => n,
        };
        self.expect(info.cols.is_multiple_of(len), "heads divide the row");
        self.expect_norm(&norm, &[len, info.cols]);
        let out = self.val(info.cols, info.rows);
        self.push(Op::Norm { x, norm, group, out });
        out
    }

    /// [`Op::AddNorm`]: `(x + delta, norm(x + delta))`; without `delta`, `(x, norm(x))`.
    pub fn add_norm(&mut self, x: Val, delta: Option<Val>, norm: Norm) -> (Val, Val) {
        let Some(delta) = delta else {
            return (x, self.norm(x, norm, NormGroup::Row));
        };
        let info = self.program.info(x);
        self.expect(info == self.program.info(delta), "residual and delta have one shape");
        self.expect_norm(&norm, &[info.cols]);
        let sum = self.val(info.cols, info.rows);
        let out = self.val(info.cols, info.rows);
        self.push(Op::AddNorm { x, delta, norm, sum, out });
        (sum, out)
    }

    /// [`Op::LinearN`] of one part.
    pub fn linear(&mut self, x: Val, w: LinearWeight) -> Val {
        let [out] = self.linear_n(x, [w]);
        out
    }

    /// [`Op::LinearN`].
    pub fn linear_n<const N: usize>(&mut self, x: Val, ws: [LinearWeight; N]) -> [Val; N] {
        let info = self.program.info(x);
        let parts: Vec<_> = ws
            .iter()
            .map(|w| {
                let (rows, cols) = (self.program.weight(w.weight).rows, self.program.weight(w.weight).cols);
                self.expect(cols == info.cols, "matrix takes the input's columns");
                let out = self.val(rows, info.rows);
                LinearPart { weight: w.weight, bias: w.bias, out }
            })
            .collect();
        let outs = std::array::from_fn(|i| parts[i].out);
        self.push(Op::LinearN { x, parts });
        outs
    }

    /// [`Op::GatedMlpIn`].
    pub fn gated_mlp_in(&mut self, x: Val, gate: LinearWeight, up: LinearWeight, glu: Glu) -> Val {
        let info = self.program.info(x);
        let (g, u) = (self.program.weight(gate.weight), self.program.weight(up.weight));
        let rows = g.rows;
        self.expect(g.cols == info.cols && u.cols == info.cols && g.rows == u.rows, "gate and up match the input");
        let out = self.val(rows, info.rows);
        let (gate_bias, up_bias) = (gate.bias, up.bias);
        self.push(Op::GatedMlpIn { x, gate: gate.weight, up: up.weight, gate_bias, up_bias, glu, out });
        out
    }

    /// [`Op::Rope`].
    pub fn rope(&mut self, x: Val, table: RopeId, head_dim: usize, pairing: Pairing) -> Val {
        let info = self.program.info(x);
        let width = self.program.ropes[table.0 as usize].width();
        self.expect(info.cols.is_multiple_of(head_dim) && width <= head_dim, "rope fits the head");
        let out = self.val(info.cols, info.rows);
        self.push(Op::Rope { x, table, head_dim, pairing, out });
        out
    }

    /// [`Op::Attend`] over a cache of its own.
    pub fn attend(&mut self, [q, k, v]: [Val; 3], attention: Attention) -> Val {
        let Attention { heads, kv_heads, scale, window, softcap, sinks, alibi } = attention;
        let [qc, kc, vc] = [q, k, v].map(|v| self.program.info(v).cols);
        self.expect([heads, kc, vc].iter().all(|n| n.is_multiple_of(kv_heads)), "heads divide the columns");
        let (k_dim, v_dim) = (kc / kv_heads, vc / kv_heads);
        self.expect(qc == heads * k_dim, "queries are as long as keys");
        self.expect(sinks.is_none_or(|w| self.program.weight(w).cols == heads), "a sink per head");
        self.expect(alibi.as_ref().is_none_or(|slopes| slopes.len() == heads), "a slope per head");
        self.program.caches.push(CacheInfo { kv_heads, k_dim, v_dim });
        let cache = CacheId(index(self.program.caches.len() - 1));
        let out = self.val(heads * v_dim, RowSet::Tokens);
        self.push(Op::Attend { q, k, v, cache, heads, scale, window, softcap, sinks, alibi, out });
        out
    }

    /// [`Op::Act`].
    pub fn act(&mut self, x: Val, act: Act) -> Val {
        self.map(x, |x, out| Op::Act { x, act, out })
    }

    /// [`Op::Scale`]; `x` itself where the factor is 1.
    pub fn scale(&mut self, x: Val, factor: f32) -> Val {
        if factor == 1.0 { x } else { self.map(x, |x, out| Op::Scale { x, factor, out }) }
    }

    /// [`Op::Softcap`]; `x` itself without a cap.
    pub fn softcap(&mut self, x: Val, cap: Option<f32>) -> Val {
        cap.map_or(x, |cap| self.map(x, |x, out| Op::Softcap { x, cap, out }))
    }

    /// [`Op::Clamp`]; `x` itself without a bound.
    pub fn clamp(&mut self, x: Val, bound: Option<f32>) -> Val {
        self.expect(bound.is_none_or(|bound| bound >= 0.0), "a bound is not negative");
        bound.map_or(x, |bound| self.map(x, |x, out| Op::Clamp { x, bound, out }))
    }

    /// [`Op::Mul`].
    pub fn mul(&mut self, x: Val, y: Val) -> Val {
        let (a, b) = (self.program.info(x), self.program.info(y));
        self.expect(a.rows == b.rows && (b.cols == a.cols || b.cols == 1), "factors have one shape, or one column");
        self.map(x, |x, out| Op::Mul { x, y, out })
    }

    /// [`Op::JoinHeads`].
    pub fn join_heads(&mut self, x: Val, y: Val, lengths: [usize; 2]) -> Val {
        let (a, b) = (self.program.info(x), self.program.info(y));
        let heads = a.cols / lengths[0].max(1);
        let fits = a.cols == heads * lengths[0] && (b.cols == heads * lengths[1] || b.cols == lengths[1]);
        self.expect(fits && heads > 0 && a.rows == b.rows, "parts are of as many heads, or the second is of one");
        let out = self.val(heads * (lengths[0] + lengths[1]), a.rows);
        self.push(Op::JoinHeads { x, y, lengths, out });
        out
    }

    /// [`Op::Route`].
    pub fn route(&mut self, x: Val, routing: Routing) -> Val {
        let experts = self.program.info(x).cols;
        let bias = routing.bias.map(|w| self.program.weight(w).cols);
        self.expect(bias.is_none_or(|n| n == experts), "a bias per expert");
        if let Some(RouteGroups { count, kept, best }) = routing.groups {
            self.expect((1..=RouteGroups::MOST).contains(&count) && experts.is_multiple_of(count), "groups are even");
            let size = experts / count;
            self.expect((1..=count).contains(&kept) && (1..=size).contains(&best), "some groups are kept");
            self.expect(routing.top_k <= kept * size, "the kept groups have enough experts");
        }
        self.expect((1..=self.program.info(x).cols).contains(&routing.top_k), "some of the experts are kept");
        self.map(x, |x, out| Op::Route { x, routing, out })
    }

    /// [`Op::MoeMlp`].
    pub fn moe_mlp(&mut self, x: Val, shares: Val, [gate, up, down]: [ExpertWeights; 3], glu: Glu) -> Val {
        let (info, routes) = (self.program.info(x), self.program.info(shares));
        let decl = |w: ExpertWeights| self.program.weight(w.weight);
        let (g, u, d) = (decl(gate), decl(up), decl(down));
        let stacks = [g, u, d].iter().all(|w| w.experts == Some(routes.cols)) && info.rows == routes.rows;
        self.expect(stacks, "one matrix of each kind per share");
        self.expect(g.cols == info.cols && u.cols == info.cols && u.rows == g.rows, "gate and up match the input");
        self.expect(d.cols == g.rows, "down takes what gate and up make");
        let out = self.val(d.rows, info.rows);
        self.push(Op::MoeMlp { x, shares, gate, up, down, glu, out });
        out
    }

    /// [`Op::Add`].
    pub fn add(&mut self, x: Val, y: Val) -> Val {
        let info = self.program.info(x);
        self.expect(info == self.program.info(y), "terms have one shape");
        let out = self.val(info.cols, info.rows);
        self.push(Op::Add { x, y, out });
        out
    }

    /// [`Op::TakeOutputs`].
    pub fn take_outputs(&mut self, x: Val) -> Val {
        let info = self.program.info(x);
        self.expect(info.rows == RowSet::Tokens, "only token rows can be taken");
        let out = self.val(info.cols, RowSet::Outputs);
        self.push(Op::TakeOutputs { x, out });
        out
    }

    /// Columns of `x`.
    pub fn cols(&self, x: Val) -> usize {
        self.program.info(x).cols
    }

    /// Whether `x` has a row per token of the step, not only those whose logits are wanted.
    pub fn is_token_rows(&self, x: Val) -> bool {
        self.program.info(x).rows == RowSet::Tokens
    }

    fn val(&mut self, cols: usize, rows: RowSet) -> Val {
        self.program.vals.push(ValInfo { cols, rows });
        Val(index(self.program.vals.len() - 1))
    }

    /// An op from `x` to a value of its shape.
    fn map(&mut self, x: Val, op: impl FnOnce(Val, Val) -> Op) -> Val {
        let info = self.program.info(x);
        let out = self.val(info.cols, info.rows);
        self.push(op(x, out));
        out
    }

    #[track_caller]
    fn expect_norm(&self, norm: &Norm, lengths: &[usize]) {
        let len = |w: WeightId| self.program.weight(w).all_rows() * self.program.weight(w).cols;
        self.expect(norm.weights().all(|w| lengths.contains(&len(w))), "norm weight fits its group");
        self.expect(norm.bias.is_none() || norm.bias.map(len) == norm.weight.map(len), "bias fits the weight");
    }

    fn push(&mut self, op: Op) {
        self.program.ops.push(op);
    }

    fn path(&self, name: &str) -> String {
        self.scope.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    #[track_caller]
    fn expect(&self, holds: bool, what: &str) {
        assert!(holds, "model definition error in `{}`: {what}", self.path("")); // a bug in a model file, never input
    }
}

fn index(i: usize) -> u32 {
    u32::try_from(i).expect("a program has fewer than 2^32 parts")
}
