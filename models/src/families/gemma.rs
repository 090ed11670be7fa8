//! gemma, gemma2 and gemma3 (`modeling_gemma.py`, `modeling_gemma2.py`, `modeling_gemma3.py` of transformers): scaled
//! embeddings and norms that hold their weight minus one; from gemma2 on norms on both sides of each part and windows in
//! some layers; caps on scores and logits in gemma2; norms on the heads, and a rope for the layers with a window, in gemma3.

use super::llama::ignores_layer_types;
use super::{Definition, PartOf};
use crate::blocks::{Layout, attention, decoder, gated_mlp, pre_norm_decoder};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig};
use crate::program::{Act, Val};
use crate::tracer::Tracer;

pub(super) const GEMMA: Definition = Definition {
    name: "gemma",
    class: "GemmaForCausalLM",
    part_of: None,
    keys: &["attention_bias", "hidden_activation"],
    aliases: &[],
    defaults: DEFAULTS,
    read: |keys, c| {
        // The first files say `gelu` and mean this one, as 5.23 takes them.
        if keys.string("hidden_act")? == Some("gelu") {
            c.act = Act::GeluTanh;
        }
        if keys.act("hidden_activation")?.is_some_and(|act| act != c.act) {
            return Err(keys.unsupported("hidden_activation"));
        }
        common(keys, c)?;
        ignores_layer_types(keys, c)
    },
    trace: |t, c| pre_norm_decoder(t, c, attention, mlp),
};

pub(super) const GEMMA2: Definition = Definition {
    name: "gemma2",
    class: "Gemma2ForCausalLM",
    part_of: None,
    keys: &[
        "attention_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "sliding_window_size", // of the 9B's file; no class reads it
    ],
    aliases: &[],
    defaults: Defaults { hidden: 2304, layers: 26, heads: 8, kv_heads: Some(4), ffn: 9216, ..DEFAULTS },
    read: |keys, c| {
        c.attention_softcap = keys.float_or_null("attn_logit_softcapping", Some(50.0))?;
        c.logit_softcap = keys.float_or_null("final_logit_softcapping", Some(30.0))?;
        c.windows = windows(keys, c.layers, 2)?;
        if let Some(Some(window)) = c.windows.iter().find(|window| window.is_some()) {
            keys.may_only_say("sliding_window_size", *window)?;
        }
        common_from_2(keys, c)
    },
    trace: sandwich,
};

pub(super) const GEMMA3_TEXT: Definition = Definition {
    name: "gemma3_text",
    class: "Gemma3ForCausalLM",
    part_of: None,
    keys: &[
        "attention_bias",
        "attn_logit_softcapping", // kept from gemma2 in the configuration, and applied nowhere
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window",
        "sliding_window_pattern",
    ],
    aliases: &[],
    defaults: Defaults {
        vocab: 262_208,
        max_len: 131_072,
        theta: 1_000_000.0,
        local_theta: Some(10_000.0),
        ..GEMMA2.defaults
    },
    read: |keys, c| {
        c.head_norms = true;
        c.logit_softcap = keys.float_or_null("final_logit_softcapping", None)?;
        let pattern = keys.size("sliding_window_pattern")?.unwrap_or(6);
        c.windows = windows(keys, c.layers, pattern)?;
        common_from_2(keys, c)
    },
    trace: sandwich,
};

/// The language model of a model that also reads images: what it computes where there are none.
pub(super) const GEMMA3: Definition = Definition {
    name: "gemma3",
    class: "Gemma3ForConditionalGeneration",
    part_of: Some(PartOf {
        key: "text_config",
        path: "text_config.",
        beside: &[
            "boi_token_index",
            "eoi_token_index",
            "image_token_index",
            "boi_token_id",
            "eoi_token_id",
            "image_token_id",
            "mm_tokens_per_image",
            "vision_config",
        ],
    }),
    read: |keys, c| {
        if keys.string("model_type")?.is_some_and(|name| name != GEMMA3_TEXT.name) {
            return Err(keys.unsupported("model_type"));
        }
        (GEMMA3_TEXT.read)(keys, c)?;
        // Its head has no cap, whatever the key says.
        c.logit_softcap = None;
        Ok(())
    },
    ..GEMMA3_TEXT
};

const DEFAULTS: Defaults = Defaults {
    vocab: 256_000,
    hidden: 3072,
    layers: 28,
    heads: 16,
    kv_heads: Some(16),
    head_dim: Some(256),
    ffn: 24576,
    max_len: 8192,
    tied: true,
    act: Act::GeluTanh,
    bos: Some(2),
    eos: &[1],
    ..Defaults::LLAMA
};

fn common(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    let attention = keys.flag("attention_bias", false)?;
    c.bias = Biases { qkv: attention, o: attention, mlp: false };
    c.norm_plus_one = true;
    c.embed_scale = (c.hidden as f64).sqrt() as f32;
    Ok(())
}

fn common_from_2(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    // `hidden_act` is read by nobody; it may only say what the model does anyway.
    let act = keys.act("hidden_activation")?.unwrap_or(DEFAULTS.act);
    if keys.has("hidden_act") && c.act != act {
        return Err(keys.unsupported("hidden_act"));
    }
    c.act = act;
    let scalar = keys.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    if !(scalar > 0.0) {
        return Err(keys.value("query_pre_attn_scalar", scalar, "must be positive"));
    }
    c.attention_scale = (1.0 / scalar.sqrt()) as f32;
    common(keys, c)
}

/// Each layer but every `pattern`-th has a window, or those that `layer_types` names.
fn windows(keys: &Keys<'_>, layers: usize, pattern: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let window = keys.size_or_null("sliding_window", 4096)?;
    if let Some(given) = keys.layer_types(layers, window)? {
        return Ok(given);
    }
    if pattern == 0 {
        return Err(keys.value("sliding_window_pattern", 0, "must be positive"));
    }
    if window.is_none() && pattern > 1 {
        return Err(keys.type_error("sliding_window", "a number, or layer_types without windows beside it"));
    }
    Ok((1..=layers).map(|i| window.filter(|_| i % pattern != 0)).collect())
}

fn sandwich(t: &mut Tracer, c: &ModelConfig) -> Val {
    let layout = Layout {
        attention: (Some("input_layernorm"), Some("post_attention_layernorm")),
        mlp: (Some("pre_feedforward_layernorm"), Some("post_feedforward_layernorm")),
        ..Layout::LLAMA
    };
    decoder(t, c, layout, attention, mlp)
}

fn mlp(t: &mut Tracer, c: &ModelConfig, _: usize, h: Val) -> Val {
    t.scope("mlp", |t| gated_mlp(t, c, h, c.ffn))
}
