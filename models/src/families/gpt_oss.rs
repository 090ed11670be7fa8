//! gpt_oss (`modeling_gpt_oss.py` of transformers): experts with biases and a clamped activation in every layer, every
//! other layer with a window, and a score per head that only takes from the attention.

use super::Definition;
use crate::blocks::{attend, pre_norm_decoder, project, routed_experts, router, sparse_mlp};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig, Moe, RopeScaling};
use crate::program::{Glu, Parallel, Val, View, WeightUse};
use crate::tracer::Tracer;

pub(super) const GPT_OSS: Definition = Definition {
    name: "gpt_oss",
    class: "GptOssForCausalLM",
    part_of: None,
    keys: &[
        "attention_bias",
        "experts_per_token", // published files have it beside num_experts_per_tok, no class reads it
        "initial_context_length", // nor this
        "num_experts_per_tok",
        "num_local_experts",
        "sliding_window",
        "swiglu_alpha",
        "swiglu_limit",
    ],
    aliases: &[],
    defaults: Defaults {
        vocab: 201_088,
        hidden: 2880,
        layers: 36,
        heads: 64,
        kv_heads: Some(8),
        head_dim: Some(64),
        ffn: 2880,
        max_len: 131_072,
        norm_eps: 1e-5,
        theta: 150_000.0,
        bos: None,
        eos: &[],
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        let attention = keys.flag("attention_bias", true)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: false };
        c.windows = windows(keys, c.layers)?;
        let top_k = keys.size("num_experts_per_tok")?.unwrap_or(4);
        c.moe = Some(Moe {
            experts: keys.size("num_local_experts")?.unwrap_or(128),
            top_k,
            ffn: c.ffn,
            normalise: true,
            layers: vec![true; c.layers],
            ..Moe::PLAIN
        });
        // 4.57 has these two numbers in its code.
        for (key, only) in [("swiglu_alpha", ALPHA), ("swiglu_limit", LIMIT), ("experts_per_token", top_k as f64)] {
            if keys.number(key)?.is_some_and(|x| x != only) {
                return Err(keys.unsupported(key));
            }
        }
        default_rope(keys, c)
    },
    trace: |t, c| {
        let mlp = |t: &mut Tracer, c: &ModelConfig, layer, h| t.scope("mlp", |t| sparse_mlp(t, c, layer, h, experts));
        pre_norm_decoder(t, c, attention, mlp)
    },
};

/// Every other layer slides, the first one does, or those that `layer_types` names.
fn windows(keys: &Keys<'_>, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let window = keys.size_or_null("sliding_window", 128)?;
    match keys.layer_types(layers, window)? {
        Some(given) => Ok(given),
        None if window.is_none() => Err(keys.type_error("sliding_window", "a number of keys")),
        None => Ok((0..layers).map(|i| window.filter(|_| i % 2 == 0)).collect()),
    }
}

/// The class's own scaling, where the config is silent.
fn default_rope(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    let (old, new) = (keys.section("rope_scaling", "")?, keys.section("rope_parameters", "")?);
    if old.is_some() || new.is_some() {
        return Ok(());
    }
    // An empty section is no scaling to one version and the default to the other.
    if keys.has("rope_scaling") {
        return Err(keys.unsupported("rope_scaling"));
    }
    if keys.get("rope_parameters").is_some() {
        return Err(keys.unsupported("rope_parameters"));
    }
    c.rope.scaling = RopeScaling::Yarn {
        factor: 32.0,
        original_max_len: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        truncate: false,
    };
    Ok(())
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let qkv = project(t, c, h);
    let sinks = t.weight("sinks", 1, c.heads, WeightUse::Vector, Parallel::Column);
    attend(t, c, layer, qkv, Some(sinks))
}

/// Stacks of matrices `[in, out]`; columns of gate and up alternate.
fn experts(t: &mut Tracer, c: &ModelConfig, moe: &Moe, h: Val) -> Val {
    let router = router(t, moe, c.hidden, "router", true);
    let (inner, outer) = ((moe.ffn, c.hidden), (c.hidden, moe.ffn));
    let gate_up = ("experts.gate_up_proj", Some("experts.gate_up_proj_bias"));
    let down = ("experts.down_proj", Some("experts.down_proj_bias"));
    let every_other = |start| View::every(start, (1, 2), 2 * moe.ffn).transposed();
    let stacks = [
        t.expert_weights(gate_up, moe.experts, inner, Parallel::Column, every_other(0)),
        t.expert_weights(gate_up, moe.experts, inner, Parallel::Column, every_other(1)),
        t.expert_weights(down, moe.experts, outer, Parallel::Row, View::whole(c.hidden).transposed()),
    ];
    let glu = Glu::ClampedSwish { alpha: ALPHA as f32, limit: LIMIT as f32 };
    routed_experts(t, moe, router, stacks, glu, h)
}

const ALPHA: f64 = 1.702;
const LIMIT: f64 = 7.0;
