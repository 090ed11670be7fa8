//! glm4 (`modeling_glm4.py` of transformers; GLM-4-0414, GLM-Z1): norms on both sides of each part, half of each head
//! rotated, neighbours together.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, attention, decoder, fused_gated_mlp};
use crate::config::{Biases, Defaults};
use crate::program::Pairing;

pub(super) const GLM4: Definition = Definition {
    name: "glm4",
    class: "Glm4ForCausalLM",
    part_of: None,
    keys: &["attention_bias"],
    aliases: &[],
    defaults: Defaults {
        vocab: 151_552,
        layers: 40,
        kv_heads: Some(2),
        head_dim: Some(128),
        ffn: 13696,
        max_len: 131_072,
        norm_eps: 0.000_000_156_25,
        partial_rotary: Some(0.5),
        bos: None,
        eos: &[151_329, 151_336, 151_338],
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        c.bias = Biases { qkv: keys.flag("attention_bias", true)?, o: false, mlp: false };
        c.rope_pairing = Pairing::Neighbours;
        ignores_layer_types(keys, c)
    },
    trace: |t, c| {
        let layout = Layout {
            attention: (Some("input_layernorm"), Some("post_self_attn_layernorm")),
            mlp: (Some("post_attention_layernorm"), Some("post_mlp_layernorm")),
            ..Layout::LLAMA
        };
        decoder(t, c, layout, attention, |t, c, _, h| t.scope("mlp", |t| fused_gated_mlp(t, c, h, c.ffn)))
    },
};
