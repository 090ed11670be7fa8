//! What one core's memory holds, line by line.
//!
//! Weights, caches and microcode are counted; what the compiler and the runtime add is estimated from the two published
//! reports of a full core, see [`Assumptions`]. An estimate errs on the large side.

use serde::{Deserialize, Serialize};

use super::Instance;
use super::shard::Shard;
use crate::backend::neuron::{ModuleKind, ModuleSpec};
use crate::backend::{KvType, Quant};

/// What is not known before a NEFF is loaded on a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Assumptions {
    /// Microcode of a physical core: 96 MB (aws-neuron-sdk neuron-runtime/explore/device-memory.rst).
    pub microcode_bytes: u64,
    /// DMA rings of a NEFF, as a share of the weight and cache bytes it works on. 0.11: a core with 13.17 GB of tensors had
    /// 1.47 GB of rings while Llama-3-70B was loading (transformers-neuronx issue 92), all of them counted for one NEFF; so
    /// counted, the 6.5 GB beside 8.2 GB of tensors of a Llama-2-7B at batch 4 (issue 49) are those of seven.
    pub ring_share: f64,
    /// Code of a NEFF, per layer: 1.6 MB, the code in the same two reports (less microcode) if it were of three NEFFs.
    pub code_bytes_per_layer: u64,
    /// The scratchpad that all NEFFs of a core share is at least this: 512 MB in both reports.
    pub scratch_bytes: u64,
    /// Buffers of collectives, where cores share a model: 518 MB in the report of issue 49, 367 MB in the other.
    pub collective_bytes: u64,
    /// Shortest time of a hop between cores, microseconds: "about 1-2 us" (intranode-collective-comm.rst).
    pub hop_us: f64,
}

impl Default for Assumptions {
    fn default() -> Self {
        Assumptions {
            microcode_bytes: 96 << 20,
            ring_share: 0.11,
            code_bytes_per_layer: 1_600_000,
            scratch_bytes: 512 << 20,
            collective_bytes: 518 << 20,
            hop_us: 1.0,
        }
    }
}

/// One core's memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hbm {
    /// What there is.
    pub limit: u64,
    /// Microcode of the physical cores.
    pub microcode: u64,
    /// Weights.
    pub weights: u64,
    /// Caches of all classes.
    pub caches: u64,
    /// Estimate: activations and scores of the largest step.
    pub scratch: u64,
    /// Estimate: buffers of collectives.
    pub collectives: u64,
    /// Estimate: DMA rings of all NEFFs.
    pub rings: u64,
    /// Estimate: code of all NEFFs.
    pub code: u64,
}

impl Hbm {
    /// Sum of the lines.
    pub fn total(&self) -> u64 {
        [self.microcode, self.weights, self.caches, self.scratch, self.collectives, self.rings, self.code]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Whether it is not more than there is.
    pub fn fits(&self) -> bool {
        self.total() <= self.limit
    }
}

/// How a model is stored.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// One core's part.
    pub shard: &'a Shard,
    /// Type of weights.
    pub weights: Quant,
    /// Type of caches.
    pub kv: KvType,
}

impl Stored<'_> {
    /// A core's memory with these modules, which say what classes there are.
    pub fn hbm(&self, instance: &Instance, modules: &[ModuleSpec], assumed: &Assumptions) -> Hbm {
        let shard = self.shard;
        let (weights, position) = (shard.stored_bytes(self.weights), shard.position_bytes(self.kv));
        let mut classes: Vec<_> = modules.iter().flat_map(|m| &m.parts).map(|part| part.class).collect();
        classes.sort_unstable();
        classes.dedup();
        let cache =
            |rows: usize, positions: usize| (rows as u64).saturating_mul(positions as u64).saturating_mul(position);
        let caches = classes.iter().fold(0_u64, |sum, c| sum.saturating_add(cache(c.rows, c.positions)));
        let ring = |m: &ModuleSpec| {
            let of_classes = m.parts.iter().map(|part| cache(part.class.rows, part.class.positions));
            let bytes = of_classes.fold(shard.streamed_bytes(self.weights), u64::saturating_add);
            (bytes as f64 * assumed.ring_share) as u64
        };
        let per_logical = (instance.chip.physical_cores / instance.chip.cores).max(1) as u64;
        Hbm {
            limit: instance.core_bytes(),
            microcode: assumed.microcode_bytes.saturating_mul(per_logical),
            weights,
            caches,
            scratch: modules.iter().map(|m| self.scratch(m)).max().unwrap_or(0).max(assumed.scratch_bytes),
            collectives: if shard.tp > 1 { assumed.collective_bytes } else { 0 },
            rings: modules.iter().map(ring).fold(0, u64::saturating_add),
            code: assumed.code_bytes_per_layer.saturating_mul(shard.layers as u64).saturating_mul(modules.len() as u64),
        }
    }

    /// Activations of one layer, the scores of its attention, and the logits, all f32 and all alive at once.
    fn scratch(&self, module: &ModuleSpec) -> u64 {
        let (tokens, outputs) = (module.kind.tokens() as u64, module.kind.outputs() as u64);
        let heads = self.shard.heads as u64;
        let scores = module.parts.iter().fold(0_u64, |sum, part| {
            let (rows, keys) = match module.kind {
                ModuleKind::Decode { .. } => (part.rows, part.len.saturating_add(1)),
                ModuleKind::Prefill { tokens } | ModuleKind::Score { tokens } => {
                    (tokens, part.len.saturating_add(tokens))
                }
            };
            sum.saturating_add(heads.saturating_mul(keys as u64).saturating_mul(rows as u64))
        });
        let values = tokens
            .saturating_mul(self.shard.layer_values)
            .saturating_add(scores)
            .saturating_add(outputs.saturating_mul(self.shard.vocab as u64));
        values.saturating_mul(4)
    }
}
