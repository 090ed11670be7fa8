//! olmoe (`modeling_olmoe.py` of transformers): experts in every layer, olmo2's norms of all queries and all keys, olmo's
//! bound of them.

use super::Definition;
use super::llama::ignores_layer_types;
use super::olmo::qkv_clip;
use super::olmo2::attention;
use crate::blocks::{pre_norm_decoder, routed_experts, router, separate_experts, sparse_mlp};
use crate::config::{Biases, Defaults, ModelConfig, Moe};
use crate::program::{Glu, Val};
use crate::tracer::Tracer;

pub(super) const OLMOE: Definition = Definition {
    name: "olmoe",
    class: "OlmoeForCausalLM",
    part_of: None,
    keys: &["attention_bias", "clip_qkv", "norm_topk_prob", "num_experts", "num_experts_per_tok"],
    aliases: &[],
    defaults: Defaults {
        vocab: 50304,
        hidden: 2048,
        layers: 16,
        heads: 16,
        ffn: 2048,
        max_len: 4096,
        norm_eps: 1e-5,
        bos: None,
        eos: &[50279],
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        let attention = keys.flag("attention_bias", false)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: false };
        c.qkv_clip = qkv_clip(keys)?;
        keys.may_only_say("head_dim", c.hidden / c.heads.max(1))?;
        c.moe = Some(Moe {
            experts: keys.size("num_experts")?.unwrap_or(64),
            top_k: keys.size("num_experts_per_tok")?.unwrap_or(8),
            ffn: c.ffn,
            normalise: keys.flag("norm_topk_prob", false)?,
            layers: vec![true; c.layers],
            ..Moe::PLAIN
        });
        ignores_layer_types(keys, c)
    },
    trace: |t, c| {
        pre_norm_decoder(t, c, attention, |t, c, layer, h| t.scope("mlp", |t| sparse_mlp(t, c, layer, h, experts)))
    },
};

fn experts(t: &mut Tracer, c: &ModelConfig, moe: &Moe, h: Val) -> Val {
    let router = router(t, moe, c.hidden, "gate", false);
    let experts = separate_experts(t, moe, c.hidden, ["gate_proj", "up_proj", "down_proj"]);
    routed_experts(t, moe, router, experts, Glu::Act(c.act), h)
}
