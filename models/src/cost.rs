//! What a step costs, counted over a [`Program`]: parameters, floating-point operations, weight and cache traffic.
//!
//! Counts are of the model's mathematics: an operation is a multiplication or an addition, elementwise work and norms are
//! left out (below 1 % of any model's). They serve rooflines and the split of energy over requests.

mod rates;

use std::ops::AddAssign;

use crate::program::{CacheInfo, Op, Program, RowSet, Val, WeightDecl, WeightId, WeightUse};

pub use rates::Rates;

/// One sequence's share of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Tokens of the sequence in this step.
    pub rows: usize,
    /// Tokens that are in the cache before the step.
    pub context: usize,
    /// Rows whose logits are wanted.
    pub outputs: usize,
}

/// Cost of a step, or of one sequence's share; weights are read once per step and counted apart, see
/// [`Program::streamed_weights`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiplications and additions of the matrix products.
    pub linear_flops: u64,
    /// Multiplications and additions of attention.
    pub attention_flops: u64,
    /// Cached values read, keys and values of all layers.
    pub kv_values_read: u64,
    /// Cached values written.
    pub kv_values_written: u64,
}

impl Cost {
    /// All floating-point operations.
    pub fn flops(&self) -> u64 {
        self.linear_flops.saturating_add(self.attention_flops)
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        for (a, b) in [
            (&mut self.linear_flops, other.linear_flops),
            (&mut self.attention_flops, other.attention_flops),
            (&mut self.kv_values_read, other.kv_values_read),
            (&mut self.kv_values_written, other.kv_values_written),
        ] {
            *a = a.saturating_add(b);
        }
    }
}

impl Span {
    /// Cost of this share. Costs of spans add up to the step's.
    pub fn cost(self, program: &Program) -> Cost {
        let mut cost = Cost::default();
        let matrix = |weight: &WeightId| values(program.weight(*weight));
        for op in &program.ops {
            let rows = |val| match program.info(val).rows {
                RowSet::Tokens => self.rows as u64,
                RowSet::Outputs => self.outputs as u64,
            };
            cost += match op {
                Op::LinearN { x, parts } => {
                    let weights: u64 = parts.iter().map(|p| matrix(&p.weight)).sum();
                    Cost { linear_flops: 2 * rows(*x) * weights, ..Cost::default() }
                }
                Op::GatedMlpIn { x, gate, up, .. } => {
                    Cost { linear_flops: 2 * rows(*x) * (matrix(gate) + matrix(up)), ..Cost::default() }
                }
                Op::Attend { cache, heads, window, .. } => {
                    let cache = program.caches[cache.0 as usize];
                    let (k, v) = (cache.k_dim as u64, cache.v_dim as u64);
                    Cost {
                        attention_flops: 2 * *heads as u64 * (k + v) * self.attended_keys(*window),
                        kv_values_read: per_token(&cache) * self.distinct_keys(*window),
                        kv_values_written: per_token(&cache) * self.rows as u64,
                        ..Cost::default()
                    }
                }
                Op::MoeMlp { x, shares, gate, up, down, .. } => {
                    // Of a stack, a row uses the experts that are kept for it.
                    let stacks = [gate, up, down].map(|w| matrix(&w.weight)).iter().sum::<u64>();
                    let (kept, experts) = (program.kept_experts(*shares), program.info(*shares).cols.max(1));
                    Cost { linear_flops: 2 * rows(*x) * (stacks / experts as u64 * kept as u64), ..Cost::default() }
                }
                Op::Embed { .. }
                | Op::Norm { .. }
                | Op::AddNorm { .. }
                | Op::Act { .. }
                | Op::Rope { .. }
                | Op::Add { .. }
                | Op::JoinHeads { .. }
                | Op::Mul { .. }
                | Op::Scale { .. }
                | Op::Softcap { .. }
                | Op::Clamp { .. }
                | Op::Route { .. }
                | Op::TakeOutputs { .. } => Cost::default(),
            };
        }
        cost
    }

    /// Pairs of a query and a key it sees: query `i` sees `context + i + 1` keys, at most `window` of them.
    pub fn attended_keys(self, window: Option<usize>) -> u64 {
        let (rows, context) = (self.rows as u64, self.context as u64);
        let window = window.map_or(u64::MAX, |w| w as u64);
        // The first `growing` queries see fewer keys than the window allows.
        let growing = window.saturating_sub(context).min(rows);
        let grown = growing * context + growing * (growing + 1) / 2;
        grown + (rows - growing).saturating_mul(if growing < rows { window } else { 0 })
    }

    /// Keys that some query of the span sees; read once where the queries are processed together.
    fn distinct_keys(self, window: Option<usize>) -> u64 {
        let (rows, context) = (self.rows as u64, self.context as u64);
        match window {
            _ if rows == 0 => 0,
            None => rows + context,
            Some(w) => rows + context.min((w as u64).saturating_sub(1)),
        }
    }
}

impl Program {
    /// Weights of the model, each counted once.
    pub fn parameters(&self) -> u64 {
        // Views of one tensor do not overlap.
        self.weights.iter().map(values).sum()
    }

    /// Experts that take part in a row, by the op that made `shares`.
    pub fn kept_experts(&self, shares: Val) -> usize {
        let routes = self.ops.iter().filter(|op| op.outputs().contains(&shares));
        routes.map(|op| if let Op::Route { routing, .. } = op { routing.top_k } else { 0 }).next().unwrap_or(0)
    }

    /// Weights that a step reads, whatever its rows: all but those only looked up by token. Each once. Of a stack of
    /// experts a small step reads only a part.
    pub fn streamed_weights(&self) -> Vec<WeightId> {
        let mut streamed: Vec<WeightId> =
            self.ops.iter().filter(|op| !matches!(op, Op::Embed { .. })).flat_map(Op::weights).collect();
        streamed.sort_unstable();
        streamed.dedup();
        streamed
    }

    /// Bytes of the weights that a step streams, with `bytes_per_weight` of each.
    pub fn streamed_bytes(&self, bytes_per_weight: impl Fn(&WeightDecl) -> f64) -> f64 {
        self.streamed_weights().iter().map(|w| self.weight(*w)).map(|w| values(w) as f64 * bytes_per_weight(w)).sum()
    }

    /// Bytes of all weights, with `bytes_per_weight` of each.
    pub fn weight_bytes(&self, bytes_per_weight: impl Fn(&WeightDecl) -> f64) -> f64 {
        self.weights.iter().map(|w| values(w) as f64 * bytes_per_weight(w)).sum()
    }

    /// Parameters used as `usage`.
    pub fn parameters_of(&self, usage: WeightUse) -> u64 {
        self.weights.iter().filter(|w| w.usage == usage).map(values).sum()
    }

    /// Keys and values cached for a token, over all layers.
    pub fn kv_values_per_token(&self) -> u64 {
        self.caches.iter().map(per_token).sum()
    }
}

fn values(weight: &WeightDecl) -> u64 {
    weight.all_rows() as u64 * weight.cols as u64
}

fn per_token(cache: &CacheInfo) -> u64 {
    cache.kv_heads as u64 * (cache.k_dim as u64 + cache.v_dim as u64)
}

#[cfg(test)]
mod tests;
