//! Which keys of a `config.json` are understood, which cannot matter, and which are refused.
//!
//! The rule: a key is handled, or known to leave the forward pass alone, or carries a neutral value; anything else is an
//! error that names it. The harmless list holds what `PretrainedConfig.to_dict` of transformers 4 and 5 can write, training
//! and generation parameters, and metadata that published files carry.

use serde_json::{Map, Value};

use super::{ConfigError, Family};

/// Refuses every key that is neither `handled`, harmless nor neutral. `path` prefixes the key in the error.
pub(super) fn refuse_unknown(map: &Map<String, Value>, path: &str, handled: &[&[&str]]) -> Result<(), ConfigError> {
    for (key, value) in map {
        let known = handled.iter().any(|keys| keys.contains(&key.as_str()));
        let harmless = path.is_empty() && (key.starts_with('_') || HARMLESS.contains(&key.as_str()));
        if !(known || harmless || is_neutral(value)) {
            return Err(unsupported(&format!("{path}{key}"), value));
        }
    }
    Ok(())
}

/// The error for a key that is refused.
pub(super) fn unsupported(key: &str, value: &Value) -> ConfigError {
    ConfigError::UnsupportedKey { key: key.to_owned(), value: short(value) }
}

/// A value for an error message: one line of bounded length.
pub(super) fn short(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Values that switch a feature off.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Keys that the parser reads, whatever the family.
pub(super) const COMMON: &[&str] = &[
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
];

/// Keys that the parser reads for one family.
pub(super) fn of_family(family: Family) -> &'static [&'static str] {
    match family {
        Family::Llama => &["attention_bias", "mlp_bias"],
        Family::Mistral => &["sliding_window"],
        Family::Qwen2 => &["sliding_window", "use_sliding_window", "max_window_layers"],
        Family::Qwen3 => &["attention_bias", "sliding_window", "use_sliding_window", "max_window_layers"],
    }
}

/// Keys that leave the forward pass alone, whatever their value.
const HARMLESS: &[&str] = &[
    // PretrainedConfig
    "attn_implementation",
    "auto_map",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "dtype",
    "experts_implementation",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "is_decoder",
    "label2id",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    // generation
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_p",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    // training
    "attention_dropout",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "initializer_factor",
    "initializer_range",
    "layerdrop",
    "neftune_noise_alpha",
    "pretraining_tp", // a way to compute the same products; gone from modeling_llama.py by 4.57
    "resid_pdrop",
    "use_flash_attn",
    "use_flash_attention",
    // metadata of published files
    "bos_token",
    "eos_token",
    "is_llama_config",
    "license",
    "max_sequence_length",
    "model_max_length",
    "pad_token",
    "seq_length",
    "transformers.js_config",
    "unsloth_fixed",
    "unsloth_version",
];
