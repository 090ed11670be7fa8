//! cohere and cohere2 (`modeling_cohere.py`, `modeling_cohere2.py` of transformers; Command R, R+, R7B, A): attention and
//! feed-forward part side by side behind one layer norm without a bias, and a factor on the logits; norms of the heads in some
//! models of the first, windows and layers that do not rotate in the second.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, attend, decoder, gated_mlp, layer_norm_unbiased, project};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig};
use crate::program::{Norm, NormGroup, NormKind, Pairing, Val};
use crate::tracer::Tracer;

pub(super) const COHERE: Definition = Definition {
    name: "cohere",
    class: "CohereForCausalLM",
    part_of: None,
    keys: &["attention_bias", "logit_scale", "use_qk_norm"],
    aliases: &[("rms_norm_eps", "layer_norm_eps")],
    defaults: DEFAULTS,
    read: |keys, c| {
        c.head_norms = keys.flag("use_qk_norm", false)?;
        common(keys, c)?;
        ignores_layer_types(keys, c)
    },
    trace,
};

pub(super) const COHERE2: Definition = Definition {
    name: "cohere2",
    class: "Cohere2ForCausalLM",
    keys: &[
        "attention_bias",
        "logit_scale",
        "sliding_window",
        "sliding_window_pattern",
        // Of published files; no class reads them.
        "layer_switch",
        "order_of_interleaved_layers",
        "position_embedding_type",
        "rotary_pct",
        "use_embedding_sharing",
        "use_gated_activation",
        "use_parallel_block",
        "use_parallel_embedding", // how their trainer splits the table
    ],
    read: |keys, c| {
        common(keys, c)?;
        c.windows = windows(keys, c.layers)?;
        c.rope_layers = c.windows.iter().map(Option::is_some).collect();
        keys.may_only_say("head_dim", c.hidden / c.heads.max(1))?;
        keys.may_only_say("order_of_interleaved_layers", "local_attn_first")?;
        keys.may_only_say("position_embedding_type", "rope_gptj")?;
        keys.may_only_say("rotary_pct", 1.0)?;
        keys.may_only_say("use_embedding_sharing", c.tied)?;
        keys.may_only_say("use_gated_activation", true)?;
        keys.may_only_say("use_parallel_block", true)
    },
    ..COHERE
};

const DEFAULTS: Defaults = Defaults {
    vocab: 256_000,
    hidden: 8192,
    layers: 40,
    heads: 64,
    ffn: 22528,
    max_len: 8192,
    norm_eps: 1e-5,
    tied: true,
    bos: Some(5),
    eos: &[255_001],
    ..Defaults::LLAMA
};

fn common(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    let attention = keys.flag("attention_bias", false)?;
    c.bias = Biases { qkv: attention, o: attention, mlp: false };
    c.is_parallel = true;
    c.rope_pairing = Pairing::Neighbours;
    c.logit_scale = keys.float("logit_scale", 0.0625)?;
    Ok(())
}

/// Each layer but every fourth has a window, or those that `layer_types` names.
fn windows(keys: &Keys<'_>, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let Some(window) = keys.size_or_null("sliding_window", 4096)? else {
        return Err(keys.type_error("sliding_window", "a number of keys"));
    };
    let pattern = keys.size("sliding_window_pattern")?.unwrap_or(4);
    match keys.layer_types(layers, Some(window))? {
        Some(given) => Ok(given),
        None if pattern == 0 => Err(keys.value("sliding_window_pattern", 0, "must be positive")),
        None => {
            keys.may_only_say("layer_switch", pattern)?;
            Ok((1..=layers).map(|i| Some(window).filter(|_| i % pattern != 0)).collect())
        }
    }
}

fn trace(t: &mut Tracer, c: &ModelConfig) -> Val {
    let layout = Layout { norm: layer_norm_unbiased, mlp: (None, None), is_parallel: true, ..Layout::LLAMA };
    decoder(t, c, layout, attention, |t, c, _, h| t.scope("mlp", |t| gated_mlp(t, c, h, c.ffn)))
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let [mut q, mut k, v] = project(t, c, h);
    if c.head_norms {
        // Each head has weights of its own.
        let mut norm = |x, name| {
            let weight = t.vectors(&format!("{name}.weight"), t.cols(x) / c.head_dim, c.head_dim);
            let norm = Norm { kind: NormKind::Layer, weight: Some(weight), bias: None, eps: c.norm_eps };
            t.norm(x, norm, NormGroup::Head(c.head_dim))
        };
        (q, k) = (norm(q, "q_norm"), norm(k, "k_norm"));
    }
    attend(t, c, layer, [q, k, v], None)
}
