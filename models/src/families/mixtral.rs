//! mixtral (`modeling_mixtral.py` of transformers): mistral whose feed-forward layers are all experts.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{attention, pre_norm_decoder, routed_experts, router, separate_experts, sparse_mlp};
use crate::config::{Defaults, ModelConfig, Moe};
use crate::program::{Glu, Val};
use crate::tracer::Tracer;

pub(super) const MIXTRAL: Definition = Definition {
    name: "mixtral",
    class: "MixtralForCausalLM",
    part_of: None,
    keys: &["num_experts_per_tok", "num_local_experts", "sliding_window"],
    aliases: &[],
    defaults: Defaults {
        ffn: 14336,
        kv_heads: Some(8),
        max_len: 131_072,
        norm_eps: 1e-5,
        theta: 1e6,
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        let window = keys.size("sliding_window")?;
        c.windows = vec![window; c.layers];
        c.moe = Some(Moe {
            experts: keys.size("num_local_experts")?.unwrap_or(8),
            top_k: keys.size("num_experts_per_tok")?.unwrap_or(2),
            ffn: c.ffn,
            normalise: true,
            layers: vec![true; c.layers],
            ..Moe::PLAIN
        });
        ignores_layer_types(keys, c)
    },
    trace: |t, c| {
        let mlp = |t: &mut Tracer, c: &ModelConfig, layer, h| {
            t.scope("block_sparse_moe", |t| sparse_mlp(t, c, layer, h, experts))
        };
        pre_norm_decoder(t, c, attention, mlp)
    },
};

fn experts(t: &mut Tracer, c: &ModelConfig, moe: &Moe, h: Val) -> Val {
    let router = router(t, moe, c.hidden, "gate", false);
    let experts = separate_experts(t, moe, c.hidden, ["w1", "w3", "w2"]);
    routed_experts(t, moe, router, experts, Glu::Act(c.act), h)
}
