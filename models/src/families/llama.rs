//! llama and mistral (`modeling_llama.py`, `modeling_mistral.py` of transformers): the plain pre-norm decoder.

use super::Definition;
use crate::blocks::{attention, gated_mlp, pre_norm_decoder};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig};
use crate::program::Val;
use crate::tracer::Tracer;

pub(super) const LLAMA: Definition = Definition {
    name: "llama",
    class: "LlamaForCausalLM",
    part_of: None,
    keys: &["attention_bias", "mlp_bias"],
    aliases: &[],
    defaults: Defaults::LLAMA,
    read: |keys, c| {
        let attention = keys.flag("attention_bias", false)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: keys.flag("mlp_bias", false)? };
        ignores_layer_types(keys, c)
    },
    trace: decoder,
};

pub(super) const MISTRAL: Definition = Definition {
    name: "mistral",
    class: "MistralForCausalLM",
    part_of: None,
    keys: &["sliding_window"],
    aliases: &[],
    defaults: Defaults { ffn: 14336, kv_heads: Some(8), max_len: 131_072, ..Defaults::LLAMA },
    read: |keys, c| {
        let window = keys.size_or_null("sliding_window", 4096)?;
        c.windows = vec![window; c.layers];
        ignores_layer_types(keys, c)
    },
    trace: decoder,
};

pub(super) fn decoder(t: &mut Tracer, c: &ModelConfig) -> Val {
    pre_norm_decoder(t, c, attention, |t, c, _, h| t.scope("mlp", |t| gated_mlp(t, c, h, c.ffn)))
}

/// The reference implementation takes no notice of `layer_types`: the key may only say what the model does anyway.
pub(super) fn ignores_layer_types(keys: &Keys<'_>, c: &ModelConfig) -> Result<(), ConfigError> {
    let window = c.windows.iter().copied().flatten().next();
    match keys.layer_types(c.layers, window)? {
        Some(given) if given != c.windows => Err(keys.unsupported("layer_types")),
        _ => Ok(()),
    }
}
