//! olmo (`modeling_olmo.py` of transformers): llama with layer norms that have no weights, and a bound on the queries, keys
//! and values.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, attend, decoder, gated_mlp, project};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig};
use crate::program::{Norm, NormKind, Val};
use crate::tracer::Tracer;

pub(super) const OLMO: Definition = Definition {
    name: "olmo",
    class: "OlmoForCausalLM",
    part_of: None,
    keys: &["attention_bias", "clip_qkv"],
    aliases: &[],
    defaults: Defaults { vocab: 50304, norm_eps: EPS, bos: None, eos: &[50279], ..Defaults::LLAMA },
    read,
    trace: |t, c| {
        decoder(t, c, Layout { norm, ..Layout::LLAMA }, attention, |t, c, _, h| {
            t.scope("mlp", |t| gated_mlp(t, c, h, c.ffn))
        })
    },
};

/// `OlmoLayerNorm` takes no other.
const EPS: f64 = 1e-5;

fn read(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    let attention = keys.flag("attention_bias", false)?;
    c.bias = Biases { qkv: attention, o: attention, mlp: false };
    c.qkv_clip = qkv_clip(keys)?;
    if c.norm_eps != EPS as f32 {
        return Err(keys.unsupported("rms_norm_eps"));
    }
    ignores_layer_types(keys, c)
}

/// Bound of queries, keys and values.
pub(super) fn qkv_clip(keys: &Keys<'_>) -> Result<Option<f32>, ConfigError> {
    match keys.float_or_null("clip_qkv", None)? {
        Some(clip) if !(clip.is_finite() && clip > 0.0) => {
            Err(keys.value("clip_qkv", clip, "must be finite and positive"))
        }
        clip => Ok(clip),
    }
}

pub(super) fn norm(_: &mut Tracer, c: &ModelConfig, _: &str) -> Norm {
    Norm { kind: NormKind::Layer, weight: None, bias: None, eps: c.norm_eps }
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let qkv = project(t, c, h).map(|x| t.clamp(x, c.qkv_clip));
    attend(t, c, layer, qkv, None)
}
