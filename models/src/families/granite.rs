//! granite (`modeling_granite.py` of transformers): llama with a factor on the embeddings, the scores, what layers add, and
//! the logits.

use super::Definition;
use super::llama::{decoder, ignores_layer_types};
use crate::config::{Biases, Defaults};

pub(super) const GRANITE: Definition = Definition {
    name: "granite",
    class: "GraniteForCausalLM",
    part_of: None,
    keys: &[
        "attention_bias",
        "attention_multiplier",
        "embedding_multiplier",
        "logits_scaling",
        "mlp_bias",
        "residual_multiplier",
    ],
    aliases: &[],
    defaults: Defaults::LLAMA,
    read: |keys, c| {
        let attention = keys.flag("attention_bias", false)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: keys.flag("mlp_bias", false)? };
        let factor = |key| match keys.float(key, 1.0)? {
            x if x.is_normal() => Ok(x),
            x => Err(keys.value(key, x, "must be finite and not zero")),
        };
        c.embed_scale = factor("embedding_multiplier")?;
        c.attention_scale = factor("attention_multiplier")?;
        c.residual_scale = factor("residual_multiplier")?;
        c.logit_scale = 1.0 / factor("logits_scaling")?;
        ignores_layer_types(keys, c)
    },
    trace: decoder,
};
