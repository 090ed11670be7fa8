//! deepseek_v2 and deepseek_v3 (`modeling_deepseek_v2.py`, `modeling_deepseek_v3.py` of transformers; V2, V2-Lite, V3, R1):
//! queries, keys and values made from narrow latents, one rotated part of the keys for all heads, and experts from the best
//! groups beside some that take every token.
//!
//! The cache holds keys and values as they are attended to, not the latents.
//!
//! Where transformers 4.57 and 5.23 part, DeepSeek's own code decides, which is 5.23's: the square of yarn's mscale stands in
//! the scores of V2 too, and groups that are out rank below every expert.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{gated_mlp, pre_norm_decoder, routed_experts, router, separate_experts, sparse_mlp};
use crate::config::{Biases, ConfigError, Defaults, Keys, Latent, ModelConfig, Moe, RopeScaling};
use crate::program::{Glu, Norm, NormGroup, Pairing, Parallel, RouteGroups, RouteScore, Val, View};
use crate::rope::{RopeTable, yarn_mscale};
use crate::tracer::{Attention, LinearWeight, Tracer};

pub(super) const DEEPSEEK_V2: Definition = Definition {
    name: "deepseek_v2",
    class: "DeepseekV2ForCausalLM",
    part_of: None,
    keys: &[
        "attention_bias",
        "aux_loss_alpha", // of the training
        "ep_size",        // of its machines
        "first_k_dense_replace",
        "kv_lora_rank",
        "mlp_bias",
        "moe_intermediate_size",
        "moe_layer_freq",
        "n_group",
        "n_routed_experts",
        "n_shared_experts",
        "norm_topk_prob",
        "num_experts_per_tok",
        "q_lora_rank",
        "qk_head_dim",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "routed_scaling_factor",
        "scoring_func",
        "seq_aux",
        "topk_group",
        "topk_method",
        "v_head_dim",
    ],
    aliases: &[],
    defaults: Defaults::LLAMA,
    read: |keys, c| {
        latent(keys, c)?;
        c.rope_pairing = Pairing::Neighbours;
        // What 4.57 gives its experts and 5.23 does not; what neither does.
        for key in ["mlp_bias", "norm_topk_prob"] {
            keys.may_only_say(key, false)?;
        }
        keys.may_only_say("scoring_func", "softmax")?;
        let groups = match keys.string("topk_method")? {
            None | Some("greedy") => None,
            Some("group_limited_greedy") => Some((need(keys, "n_group")?, need(keys, "topk_group")?, 1)),
            Some(_) => return Err(keys.unsupported("topk_method")),
        };
        let moe = Moe {
            experts: 64,
            ffn: 1407,
            shared_ffn: Some(2),
            top_k: need(keys, "num_experts_per_tok")?,
            ..Moe::PLAIN
        };
        experts_of(keys, c, moe, groups, 0)
    },
    trace,
};

pub(super) const DEEPSEEK_V3: Definition = Definition {
    name: "deepseek_v3",
    class: "DeepseekV3ForCausalLM",
    keys: &[
        "attention_bias",
        "aux_loss_alpha",
        "ep_size",
        "first_k_dense_replace",
        "kv_lora_rank",
        "moe_intermediate_size",
        "moe_layer_freq",
        "n_group",
        "n_routed_experts",
        "n_shared_experts",
        "norm_topk_prob",
        "num_experts_per_tok",
        "num_mtp_layers",
        "num_nextn_predict_layers", // layers behind the last, of which this model takes no notice
        "q_lora_rank",
        "qk_head_dim",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "rope_interleave",
        "routed_scaling_factor",
        "scoring_func",
        "seq_aux",
        "topk_group",
        "topk_method",
        "v_head_dim",
    ],
    aliases: &[("n_routed_experts", "num_local_experts")],
    defaults: Defaults {
        vocab: 129_280,
        hidden: 7168,
        layers: 61,
        heads: 128,
        ffn: 18432,
        max_len: 4096,
        bos: Some(0),
        eos: &[1],
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        latent(keys, c)?;
        let neighbours = keys.flag("rope_interleave", true)?;
        c.rope_pairing = if neighbours { Pairing::Neighbours } else { Pairing::Half };
        keys.may_only_say("scoring_func", "sigmoid")?;
        keys.may_only_say("topk_method", "noaux_tc")?;
        let groups = (keys.size("n_group")?.unwrap_or(8), keys.size("topk_group")?.unwrap_or(4), 2);
        let moe = Moe {
            experts: 256,
            ffn: 2048,
            shared_ffn: Some(1),
            top_k: keys.size("num_experts_per_tok")?.unwrap_or(8),
            score: RouteScore::Sigmoid,
            correction: true,
            normalise: keys.flag("norm_topk_prob", true)?,
            factor: 2.5,
            ..Moe::PLAIN
        };
        experts_of(keys, c, moe, Some(groups), 3)
    },
    ..DEEPSEEK_V2
};

fn need(keys: &Keys<'_>, key: &'static str) -> Result<usize, ConfigError> {
    keys.size(key)?.ok_or_else(|| ConfigError::Missing { key: keys.name(key) })
}

/// Lengths of the heads' parts, and the factor of the scores.
fn latent(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    let size = |key, default| Ok::<_, ConfigError>(keys.size(key)?.unwrap_or(default));
    let l = Latent {
        q_rank: keys.size_or_null("q_lora_rank", 1536)?,
        kv_rank: size("kv_lora_rank", 512)?,
        plain: size("qk_nope_head_dim", 128)?,
        rotated: size("qk_rope_head_dim", 64)?,
        value: size("v_head_dim", 128)?,
    };
    keys.may_only_say("head_dim", l.rotated)?;
    keys.may_only_say("qk_head_dim", l.plain.saturating_add(l.rotated))?;
    keys.may_only_say("num_key_value_heads", c.heads)?;
    keys.may_only_say("moe_layer_freq", 1)?;
    let attention = keys.flag("attention_bias", false)?;
    c.bias = Biases { qkv: attention, o: attention, mlp: false };
    c.kv_heads = c.heads;
    c.head_dim = l.plain.saturating_add(l.rotated);
    c.rope_width = l.rotated;
    // The classes make their tables as if heads were as long as the rotated part, but of lists for each pair none is known.
    if matches!(c.rope.scaling, RopeScaling::Long { .. }) {
        return Err(keys.unsupported(if keys.get("rope_scaling").is_some() {
            "rope_scaling"
        } else {
            "rope_parameters"
        }));
    }
    c.attention_scale = 1.0 / (c.head_dim as f32).sqrt();
    if let RopeScaling::Yarn { factor, mscale_all_dim: Some(m), .. } = c.rope.scaling
        && m != 0.0
    {
        let mscale = yarn_mscale(factor, m);
        c.attention_scale = ((c.head_dim as f64).powf(-0.5) * mscale * mscale) as f32;
    }
    c.latent = Some(l);
    ignores_layer_types(keys, c)
}

/// `moe` has the defaults, of `shared_ffn` the number of experts.
fn experts_of(
    keys: &Keys<'_>,
    c: &mut ModelConfig,
    moe: Moe,
    groups: Option<(usize, usize, usize)>,
    dense: usize,
) -> Result<(), ConfigError> {
    let ffn = keys.size("moe_intermediate_size")?.unwrap_or(moe.ffn);
    let shared = keys.size("n_shared_experts")?.or(moe.shared_ffn).unwrap_or(0);
    let dense = keys.size("first_k_dense_replace")?.unwrap_or(dense);
    let moe = Moe {
        experts: keys.size("n_routed_experts")?.unwrap_or(moe.experts),
        ffn,
        shared_ffn: Some(ffn.saturating_mul(shared)),
        factor: keys.float("routed_scaling_factor", moe.factor.into())?,
        groups: groups.map(|(count, kept, best)| RouteGroups { count, kept, best }),
        layers: (0..c.layers).map(|i| i >= dense).collect(),
        ..moe
    };
    c.moe = Some(moe).filter(|moe| moe.layers.contains(&true));
    Ok(())
}

fn trace(t: &mut Tracer, c: &ModelConfig) -> Val {
    let mlp = |t: &mut Tracer, c: &ModelConfig, layer, h| t.scope("mlp", |t| sparse_mlp(t, c, layer, h, experts));
    pre_norm_decoder(t, c, attention, mlp)
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let Some(Latent { q_rank, kv_rank, plain, rotated, value }) = c.latent else { unreachable!("`latent` sets it") };
    let narrow = |t: &mut Tracer, name, rows, view| {
        t.linear_view(name, (rows, c.hidden), c.bias.qkv, Parallel::Replicated, view)
    };
    // Heads of two parts, one after the other.
    let halves = |t: &mut Tracer, name, cols, lengths: [usize; 2]| -> [LinearWeight; 2] {
        let step = lengths[0] + lengths[1];
        [(0, lengths[0]), (lengths[0], lengths[1])].map(|(start, run)| {
            let view = View::every(start, (run, step), c.heads * step);
            t.linear_view(name, (c.heads * run, cols), false, Parallel::Column, view)
        })
    };
    let (q, name, cols) = match q_rank {
        None => (h, "q_proj", c.hidden),
        Some(rank) => {
            let down = narrow(t, "q_a_proj", rank, View::whole(rank));
            let q = t.linear(h, down);
            (normed(t, q, "q_a_layernorm"), "q_b_proj", rank)
        }
    };
    let parts = halves(t, name, cols, [plain, rotated]);
    let [q_plain, q_rotated] = t.linear_n(q, parts);
    let both = kv_rank + rotated;
    let parts = [(0, kv_rank), (kv_rank, rotated)]
        .map(|(start, rows)| narrow(t, "kv_a_proj_with_mqa", rows, View::part(start, rows, both)));
    let [kv, k_rotated] = t.linear_n(h, parts);
    let kv = normed(t, kv, "kv_a_layernorm");
    let parts = halves(t, "kv_b_proj", kv_rank, [plain, value]);
    let [k_plain, v] = t.linear_n(kv, parts);

    let table = t.rope_table(RopeTable::new(&c.rope, rotated));
    let mut join = |x, y| {
        let y = t.rope(y, table, rotated, c.rope_pairing);
        t.join_heads(x, y, [plain, rotated])
    };
    let (q, k) = (join(q_plain, q_rotated), join(k_plain, k_rotated));
    let how = Attention {
        heads: c.heads,
        kv_heads: c.heads,
        scale: c.attention_scale,
        window: c.windows[layer],
        softcap: None,
        sinks: None,
        alibi: None,
    };
    t.attend([q, k, v], how)
}

/// The class's own epsilon, whatever the config's.
fn normed(t: &mut Tracer, x: Val, name: &str) -> Val {
    let weight = t.vector(name, t.cols(x));
    t.norm(x, Norm::rms(weight, 1e-6), NormGroup::Row)
}

fn experts(t: &mut Tracer, c: &ModelConfig, moe: &Moe, h: Val) -> Val {
    let router = router(t, moe, c.hidden, "gate", false);
    let stacks = separate_experts(t, moe, c.hidden, ["gate_proj", "up_proj", "down_proj"]);
    let routed = routed_experts(t, moe, router, stacks, Glu::Act(c.act), h);
    let Some(ffn) = moe.shared_ffn else { return routed };
    let shared = t.scope("shared_experts", |t| gated_mlp(t, c, h, ffn));
    t.add(routed, shared)
}
