//! qwen2 and qwen3 (`modeling_qwen2.py`, `modeling_qwen3.py` of transformers): llama with biases on the queries, keys and
//! values, or with a norm on every head of the queries and keys; the upper layers may slide.

use super::Definition;
use super::llama::decoder;
use crate::config::{Biases, ConfigError, Defaults, Keys};

pub(super) const QWEN2: Definition = Definition {
    name: "qwen2",
    class: "Qwen2ForCausalLM",
    part_of: None,
    // The first is of the files for a million tokens: how another engine attends to so many; no class reads it.
    keys: &["dual_chunk_attention_config", "sliding_window", "use_sliding_window", "max_window_layers"],
    aliases: &[],
    defaults: QWEN,
    read: |keys, c| {
        c.bias.qkv = true;
        c.windows = windows(keys, c.layers)?;
        Ok(())
    },
    trace: decoder,
};

pub(super) const QWEN3: Definition = Definition {
    name: "qwen3",
    class: "Qwen3ForCausalLM",
    part_of: None,
    keys: &["attention_bias", "sliding_window", "use_sliding_window", "max_window_layers"],
    aliases: &[],
    defaults: Defaults { head_dim: Some(128), ..QWEN },
    read: |keys, c| {
        let attention = keys.flag("attention_bias", false)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: false };
        c.head_norms = true;
        c.windows = windows(keys, c.layers)?;
        Ok(())
    },
    trace: decoder,
};

const QWEN: Defaults =
    Defaults { vocab: 151_936, ffn: 22016, kv_heads: Some(32), max_len: 32768, bos: None, eos: &[], ..Defaults::LLAMA };

/// Layers from `max_window_layers` on slide, or those that `layer_types` names.
pub(super) fn windows(keys: &Keys<'_>, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let window = match keys.flag("use_sliding_window", false)? {
        true => keys.size_or_null("sliding_window", 4096)?,
        false => None,
    };
    let first = keys.size("max_window_layers")?.unwrap_or(28);
    let derived = || (0..layers).map(|i| window.filter(|_| i >= first)).collect();
    Ok(keys.layer_types(layers, window)?.unwrap_or_else(derived))
}
