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
        let name = self.path(name);
        let decl = WeightDecl { name, rows, cols, row_start: 0, of_rows: rows, usage, parallel };
        if let Some(&id) = self.declared.get(&decl) {
            return id;
        }
        let id = WeightId(index(self.program.weights.len()));
        self.program.weights.push(decl.clone());
        self.declared.insert(decl, id);
        id
    }

    /// Declares `{name}.weight` as a vector of length `len`.
    pub fn vector(&mut self, name: &str, len: usize) -> WeightId {
        self.weight(&format!("{name}.weight"), 1, len, WeightUse::Vector, Parallel::Replicated)
    }

    /// Declares `{name}.weight` `[out, in]` and, where `bias` is set, `{name}.bias`.
    pub fn linear_weight(&mut self, name: &str, (out, inp): (usize, usize), bias: bool, p: Parallel) -> LinearWeight {
        let weight = self.weight(&format!("{name}.weight"), out, inp, WeightUse::Linear, p);
        let bias = bias.then(|| self.weight(&format!("{name}.bias"), 1, out, WeightUse::Vector, p));
        LinearWeight { weight, bias }
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

    /// [`Op::Embed`].
    pub fn embed(&mut self, table: WeightId) -> Val {
        let cols = self.program.weight(table).cols;
        let out = self.val(cols, RowSet::Tokens);
        self.push(Op::Embed { table, out });
        out
    }

    /// [`Op::Norm`].
    pub fn norm(&mut self, x: Val, weight: WeightId, eps: f32, group: NormGroup) -> Val {
        let info = self.program.info(x);
        let len = self.program.weight(weight).cols;
        let want = match group {
            NormGroup::Row => info.cols,
            NormGroup::Head(n) => n,
        };
        self.expect(len == want && info.cols.is_multiple_of(len), "norm weight fits its group");
        let out = self.val(info.cols, info.rows);
        self.push(Op::Norm { x, weight, eps, group, out });
        out
    }

    /// [`Op::AddNorm`]: `(x + delta, norm(x + delta))`; without `delta`, `(x, norm(x))`.
    pub fn add_norm(&mut self, x: Val, delta: Option<Val>, weight: WeightId, eps: f32) -> (Val, Val) {
        let Some(delta) = delta else {
            return (x, self.norm(x, weight, eps, NormGroup::Row));
        };
        let info = self.program.info(x);
        self.expect(info == self.program.info(delta), "residual and delta have one shape");
        self.expect(self.program.weight(weight).cols == info.cols, "norm weight fits the row");
        let sum = self.val(info.cols, info.rows);
        let out = self.val(info.cols, info.rows);
        self.push(Op::AddNorm { x, delta, weight, eps, sum, out });
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
    pub fn gated_mlp_in(&mut self, x: Val, gate: LinearWeight, up: LinearWeight, act: Act) -> Val {
        let info = self.program.info(x);
        let (g, u) = (self.program.weight(gate.weight), self.program.weight(up.weight));
        let rows = g.rows;
        self.expect(g.cols == info.cols && u.cols == info.cols && g.rows == u.rows, "gate and up match the input");
        let out = self.val(rows, info.rows);
        let (gate_bias, up_bias) = (gate.bias, up.bias);
        self.push(Op::GatedMlpIn { x, gate: gate.weight, up: up.weight, gate_bias, up_bias, act, out });
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
    pub fn attend(
        &mut self,
        [q, k, v]: [Val; 3],
        heads: usize,
        kv_heads: usize,
        scale: f32,
        window: Option<usize>,
    ) -> Val {
        let [qc, kc, vc] = [q, k, v].map(|v| self.program.info(v).cols);
        self.expect([heads, kc, vc].iter().all(|n| n.is_multiple_of(kv_heads)), "heads divide the columns");
        let (k_dim, v_dim) = (kc / kv_heads, vc / kv_heads);
        self.expect(qc == heads * k_dim, "queries are as long as keys");
        self.program.caches.push(CacheInfo { kv_heads, k_dim, v_dim });
        let cache = CacheId(index(self.program.caches.len() - 1));
        let out = self.val(heads * v_dim, RowSet::Tokens);
        self.push(Op::Attend { q, k, v, cache, heads, scale, window, out });
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

    fn val(&mut self, cols: usize, rows: RowSet) -> Val {
        self.program.vals.push(ValInfo { cols, rows });
        Val(index(self.program.vals.len() - 1))
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
