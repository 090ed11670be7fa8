//! What a program costs: parameters, operations, cache. A fold over the ops; no backend's stored types enter here.

use crate::program::{Op, Program, RowSet, WeightUse};

impl Program {
    /// Values of all weights, a shared one counted once.
    pub fn parameters(&self) -> u64 {
        self.weights.iter().map(|w| w.rows as u64 * w.cols as u64).sum()
    }

    /// Values of all matrices that a step multiplies by, each read once per step.
    pub fn matrix_parameters(&self) -> u64 {
        let mut ids: Vec<_> = self.ops.iter().flat_map(Op::weights).collect();
        ids.sort_unstable();
        ids.dedup();
        let matrices = ids.iter().map(|id| self.weight(*id)).filter(|w| w.usage != WeightUse::Vector);
        matrices.map(|w| w.rows as u64 * w.cols as u64).sum()
    }

    /// Cached values per token, keys and values of all layers.
    pub fn kv_values_per_token(&self) -> u64 {
        self.caches.iter().map(|c| c.kv_heads as u64 * (c.k_dim as u64 + c.v_dim as u64)).sum()
    }
}

/// Floating point operations of a step (a multiply-add is two): products and attention, which are all but a thousandth.
/// `attended` is the number of keys that all rows together see in a layer without a window.
pub fn flops(program: &Program, rows: usize, outputs: usize, attended: u64) -> f64 {
    let rows_of = |set: RowSet| match set {
        RowSet::Tokens => rows as f64,
        RowSet::Outputs => outputs as f64,
    };
    let product = |x: crate::Val, w: crate::WeightId| {
        let w = program.weight(w);
        2.0 * rows_of(program.info(x).rows) * w.rows as f64 * w.cols as f64
    };
    let of = |op: &Op| match op {
        Op::LinearN { x, parts } => parts.iter().map(|p| product(*x, p.weight)).sum(),
        Op::GatedMlpIn { x, gate, up, .. } => product(*x, *gate) + product(*x, *up),
        Op::Attend { cache, heads, window, .. } => {
            let c = program.caches[cache.0 as usize];
            let seen = match window {
                Some(w) => (attended as f64).min(rows as f64 * *w as f64),
                None => attended as f64,
            };
            2.0 * seen * *heads as f64 * (c.k_dim + c.v_dim) as f64
        }
        _ => 0.0,
    };
    program.ops.iter().map(of).sum()
}
