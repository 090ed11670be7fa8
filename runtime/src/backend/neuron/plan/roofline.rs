//! The least time a step can take: bytes over bandwidth or operations over peak, and the hops of its all-reduces.
//!
//! A bound, not a forecast: published systems reach 13 to 47 % of it at batch 1 (docs/neuron.md). Padding counts as work,
//! because the device does it.

use super::Instance;
use super::instances::Topology;
use super::memory::{Assumptions, Stored};
use crate::backend::Quant;
use crate::backend::neuron::{ModuleKind, ModuleSpec};

/// Rates of a core that holds its part of a model.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    weights: f64,
    position: f64,
    bandwidth: f64,
    body_flops: f64,
    head_flops: f64,
    attention_flops: f64,
    peak: f64,
    all_reduce: f64,
}

impl Roofline {
    /// Of `stored` on a core of `instance`.
    pub fn new(stored: &Stored<'_>, instance: &Instance, assumed: &Assumptions) -> Roofline {
        let shard = stored.shard;
        let (streamed, head) = (shard.streamed.values, shard.head.values);
        Roofline {
            weights: shard.streamed_bytes(stored.weights) as f64,
            position: shard.position_bytes(stored.kv) as f64,
            bandwidth: instance.core_bandwidth(),
            body_flops: 2.0 * streamed.saturating_sub(head) as f64,
            head_flops: 2.0 * head as f64,
            attention_flops: shard.attention_flops as f64,
            peak: instance.core_flops(stored.weights == Quant::None),
            all_reduce: shard.all_reduces as f64 * hops(instance.chip.topology, shard.tp) * assumed.hop_us * 1e-6,
        }
    }

    /// Seconds of one step of `module`.
    pub fn step(&self, module: &ModuleSpec) -> f64 {
        let len = module.longest() as f64;
        match module.kind {
            ModuleKind::Decode { .. } => {
                self.decodes(module.parts.iter().map(|part| (part.rows as f64, part.len as f64)))
            }
            ModuleKind::Prefill { tokens } => self.chunk(tokens as f64, 1.0, len),
            ModuleKind::Score { tokens } => self.chunk(tokens as f64, tokens as f64, len),
        }
    }

    /// Seconds of a decode step of `batch` rows that read `len` positions each.
    pub fn decode(&self, batch: f64, len: f64) -> f64 {
        self.decodes([(batch, len)])
    }

    /// Seconds of a decode step of several such: weights are read once for all of them.
    fn decodes(&self, parts: impl IntoIterator<Item = (f64, f64)>) -> f64 {
        let (mut bytes, mut flops) = (self.weights, 0.0);
        for (batch, len) in parts {
            bytes += batch * (len + 1.0) * self.position;
            flops += batch * (self.body_flops + self.head_flops + (len + 1.0) * self.attention_flops);
        }
        self.time(bytes, flops)
    }

    /// Seconds of a chunk of `tokens` after `len` positions.
    pub fn chunk(&self, tokens: f64, outputs: f64, len: f64) -> f64 {
        let bytes = self.weights + (len + tokens) * self.position;
        let flops = tokens * (self.body_flops + (len + tokens) * self.attention_flops) + outputs * self.head_flops;
        self.time(bytes, flops)
    }

    /// Seconds of a step's all-reduces.
    pub fn all_reduce(&self) -> f64 {
        self.all_reduce
    }

    /// Tokens of a chunk whose operations take as long as reading the weights: a shorter one waits for memory.
    pub fn ridge(&self) -> usize {
        let tokens = self.weights / self.bandwidth * self.peak / self.body_flops.max(1.0);
        if tokens.is_finite() { tokens.ceil().clamp(1.0, 1e6) as usize } else { 1 }
    }

    fn time(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.bandwidth).max(flops / self.peak) + self.all_reduce
    }
}

/// Hops of an all-reduce among `tp` cores: twice round a ring; on a torus two steps out and two back ("mesh", what the
/// runtime uses for small messages). Its transfer is left out: links' rates per collective are not published.
fn hops(topology: Topology, tp: usize) -> f64 {
    let round = 2.0 * tp.saturating_sub(1) as f64;
    match topology {
        Topology::Ring => round,
        Topology::Torus => round.min(4.0),
    }
}
