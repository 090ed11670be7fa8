//! exaone4 (`modeling_exaone4.py` of transformers): olmo2's places for the norms, qwen3's norms of the heads; where some
//! layers have windows, the others do not rotate.

use super::Definition;
use crate::blocks::{Layout, attention, decoder, gated_mlp};
use crate::config::{ConfigError, Defaults, Keys};

pub(super) const EXAONE4: Definition = Definition {
    name: "exaone4",
    class: "Exaone4ForCausalLM",
    part_of: None,
    // The first is of published files and says what the class does without reading it.
    keys: &["reorder_qk_norm", "sliding_window", "sliding_window_pattern"],
    aliases: &[],
    defaults: Defaults {
        vocab: 102_400,
        kv_heads: Some(32),
        ffn: 16384,
        norm_eps: 1e-5,
        bos: Some(0),
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        c.head_norms = true;
        keys.may_only_say("reorder_qk_norm", true)?;
        let window = keys.size_or_null("sliding_window", 4096)?;
        c.windows = windows(keys, c.layers, window)?;
        c.rope_layers = c.windows.iter().map(|w| window.is_none() || w.is_some()).collect();
        Ok(())
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

/// Those that `layer_types` names, else each layer but every `sliding_window_pattern`-th.
fn windows(keys: &Keys<'_>, layers: usize, window: Option<usize>) -> Result<Vec<Option<usize>>, ConfigError> {
    // Beside the list, published files have the pattern in letters, which nobody reads.
    if let Some(given) = keys.layer_types(layers, window)? {
        return Ok(given);
    }
    let pattern = keys.size("sliding_window_pattern")?.unwrap_or(4);
    match window {
        // No version can build a model of this config.
        None => Err(keys.type_error("sliding_window", "a number, or layer_types without windows beside it")),
        Some(_) if pattern == 0 => Err(keys.value("sliding_window_pattern", 0, "must be positive")),
        Some(_) => Ok((1..=layers).map(|i| window.filter(|_| i % pattern != 0)).collect()),
    }
}
