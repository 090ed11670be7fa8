//! olmo2 (`modeling_olmo2.py` of transformers): a decoder that norms what its parts give instead of what they read, and all
//! queries and all keys together.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, attend, decoder, gated_mlp, project, rms_norm_of};
use crate::config::{Biases, Defaults, ModelConfig};
use crate::program::{NormGroup, Val};
use crate::tracer::Tracer;

pub(super) const OLMO2: Definition = Definition {
    name: "olmo2",
    class: "Olmo2ForCausalLM",
    part_of: None,
    keys: &["attention_bias"],
    aliases: &[],
    defaults: Defaults { vocab: 50304, norm_eps: 1e-5, bos: None, eos: &[50279], ..Defaults::LLAMA },
    read: |keys, c| {
        let attention = keys.flag("attention_bias", false)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: false };
        ignores_layer_types(keys, c)
    },
    trace: |t, c| {
        let layout = Layout {
            attention: (None, Some("post_attention_layernorm")),
            mlp: (None, Some("post_feedforward_layernorm")),
            ..Layout::LLAMA
        };
        decoder(t, c, layout, attention, |t, c, _, h| t.scope("mlp", |t| gated_mlp(t, c, h, c.ffn)))
    },
};

/// Of olmoe too, which may bound what its norms leave.
pub(super) fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let [q, k, v] = project(t, c, h);
    let q_norm = rms_norm_of(t, c, "q_norm", c.heads * c.head_dim);
    let k_norm = rms_norm_of(t, c, "k_norm", c.kv_heads * c.head_dim);
    let (q, k) = (t.norm(q, q_norm, NormGroup::Row), t.norm(k, k_norm, NormGroup::Row));
    let qkv = [q, k, v].map(|x| t.clamp(x, c.qkv_clip));
    attend(t, c, layer, qkv, None)
}
