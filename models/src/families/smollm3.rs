//! smollm3 (`modeling_smollm3.py` of transformers): llama where some layers do not rotate, and those may have a window.

use super::Definition;
use super::llama::decoder;
use crate::config::{Biases, ConfigError, Defaults, Keys};

pub(super) const SMOLLM3: Definition = Definition {
    name: "smollm3",
    class: "SmolLM3ForCausalLM",
    part_of: None,
    keys: &[
        "attention_bias",
        "mlp_bias",
        "no_rope_layer_interval",
        "no_rope_layers",
        "sliding_window",
        "use_sliding_window",
    ],
    aliases: &[],
    defaults: Defaults {
        vocab: 128_256,
        hidden: 2048,
        layers: 36,
        heads: 16,
        kv_heads: Some(4),
        max_len: 32768,
        tied: true,
        theta: 2_000_000.0,
        bos: Some(128_000),
        eos: &[128_001],
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        let attention = keys.flag("attention_bias", false)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: keys.flag("mlp_bias", false)? };
        c.rope_layers = rope_layers(keys, c.layers)?;
        let window = match keys.flag("use_sliding_window", false)? {
            true => keys.size("sliding_window")?,
            false => None,
        };
        let derived = || c.rope_layers.iter().map(|rotates| window.filter(|_| !rotates)).collect();
        c.windows = keys.layer_types(c.layers, window)?.unwrap_or_else(derived);
        Ok(())
    },
    trace: decoder,
};

/// Whether each layer rotates: in `no_rope_layers`, against its name, 1 where it does.
fn rope_layers(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, ConfigError> {
    if let Some(given) = keys.sizes("no_rope_layers")? {
        return Ok(given.into_iter().map(|flag| flag != 0).collect());
    }
    match keys.size("no_rope_layer_interval")?.unwrap_or(4) {
        0 => Err(keys.value("no_rope_layer_interval", 0, "must be positive")),
        interval => Ok((1..=layers).map(|i| i % interval != 0).collect()),
    }
}
