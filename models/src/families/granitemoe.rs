//! granitemoe (`modeling_granitemoe.py` of transformers): granite whose feed-forward layers are all experts.

use super::Definition;
use super::granite::GRANITE;
use crate::blocks::{attention, pre_norm_decoder, routed_experts, router, sparse_mlp};
use crate::config::{ModelConfig, Moe};
use crate::program::{Glu, Parallel, Val, View};
use crate::tracer::Tracer;

pub(super) const GRANITEMOE: Definition = Definition {
    name: "granitemoe",
    class: "GraniteMoeForCausalLM",
    keys: &[
        "attention_bias",
        "attention_multiplier",
        "embedding_multiplier",
        "logits_scaling",
        "num_experts_per_tok",
        "num_local_experts",
        "position_embedding_type", // written by the class, which has no other
        "residual_multiplier",
    ],
    read: |keys, c| {
        keys.may_only_say("position_embedding_type", "rope")?;
        keys.may_only_say("head_dim", c.hidden / c.heads.max(1))?;
        c.moe = Some(Moe {
            experts: keys.size("num_local_experts")?.unwrap_or(8),
            top_k: keys.size("num_experts_per_tok")?.unwrap_or(2),
            ffn: c.ffn,
            normalise: true,
            layers: vec![true; c.layers],
            ..Moe::PLAIN
        });
        (GRANITE.read)(keys, c)
    },
    trace: |t, c| {
        pre_norm_decoder(t, c, attention, |t, c, layer, h| {
            t.scope("block_sparse_moe", |t| sparse_mlp(t, c, layer, h, experts))
        })
    },
    ..GRANITE
};

/// Gate above up in one stack.
fn experts(t: &mut Tracer, c: &ModelConfig, moe: &Moe, h: Val) -> Val {
    let router = router(t, moe, c.hidden, "router.layer", false);
    let (inner, outer) = ((moe.ffn, c.hidden), (c.hidden, moe.ffn));
    let part = |t: &mut Tracer, start| {
        let view = View::part(start, moe.ffn, 2 * moe.ffn);
        t.expert_weights(("input_linear.weight", None), moe.experts, inner, Parallel::Column, view)
    };
    let (gate, up) = (part(t, 0), part(t, moe.ffn));
    let down = ("output_linear.weight", None);
    let down = t.expert_weights(down, moe.experts, outer, Parallel::Row, View::whole(c.hidden));
    routed_experts(t, moe, router, [gate, up, down], Glu::Act(c.act), h)
}
