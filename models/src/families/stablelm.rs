//! stablelm (`modeling_stablelm.py` of transformers): llama with layer norms and partly rotated heads; in some models
//! attention and feed-forward part side by side, and a norm for every head of the queries and keys.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, attend, decoder, gated_mlp, layer_norm, project};
use crate::config::{ConfigError, Defaults, Keys, ModelConfig};
use crate::program::{Norm, NormGroup, NormKind, Val};
use crate::tracer::Tracer;

pub(super) const STABLELM: Definition = Definition {
    name: "stablelm",
    class: "StableLmForCausalLM",
    part_of: None,
    // Of the first files: num_heads, rotary_scaling_factor.
    keys: &["num_heads", "qk_layernorm", "rotary_scaling_factor", "use_parallel_residual", "use_qkv_bias"],
    aliases: &[("rms_norm_eps", "layer_norm_eps")],
    defaults: Defaults {
        vocab: 50304,
        hidden: 2560,
        kv_heads: Some(32),
        ffn: 6912,
        max_len: 4096,
        norm_eps: 1e-5,
        partial_rotary: Some(0.25),
        bos: Some(0),
        eos: &[0],
        ..Defaults::LLAMA
    },
    read,
    trace: |t, c| {
        let mlp = if c.is_parallel { (None, None) } else { Layout::LLAMA.mlp };
        let layout = Layout { norm: layer_norm, is_parallel: c.is_parallel, mlp, ..Layout::LLAMA };
        decoder(t, c, layout, attention, |t, c, _, h| t.scope("mlp", |t| gated_mlp(t, c, h, c.ffn)))
    },
};

fn read(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    c.bias.qkv = keys.flag("use_qkv_bias", false)?;
    c.is_parallel = keys.flag("use_parallel_residual", false)?;
    c.head_norms = keys.flag("qk_layernorm", false)?;
    keys.may_only_say("head_dim", c.hidden / c.heads.max(1))?;
    keys.may_only_say("num_heads", c.heads)?;
    keys.may_only_say("rotary_scaling_factor", 1.0)?;
    ignores_layer_types(keys, c)
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let [mut q, mut k, v] = project(t, c, h);
    if c.head_norms {
        // A tensor for every head.
        let mut norm = |x, name: &str, heads| {
            let weight = t.vectors(&format!("{name}.norms.{{}}.weight"), heads, c.head_dim);
            let norm = Norm { kind: NormKind::Layer, weight: Some(weight), bias: None, eps: c.norm_eps };
            t.norm(x, norm, NormGroup::Head(c.head_dim))
        };
        (q, k) = (norm(q, "q_layernorm", c.heads), norm(k, "k_layernorm", c.kv_heads));
    }
    attend(t, c, layer, [q, k, v], None)
}
