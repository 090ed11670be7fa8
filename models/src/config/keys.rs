//! Typed access to the keys of a `config.json`; which are understood, which cannot matter, and which are refused.
//!
//! The rule: a key is handled, or known to leave the forward pass alone, or carries a neutral value; anything else is an
//! error that names it. The harmless list holds what `PretrainedConfig.to_dict` of transformers 4 and 5 can write, training
//! and generation parameters, and metadata that published files carry.

use serde_json::{Map, Value};

use super::ConfigError;
use crate::program::Act;

/// An object's keys; `null` counts as absent unless a method says otherwise.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    map: &'a Map<String, Value>,
    /// Prefix of the keys in errors.
    path: &'static str,
    /// What the object calls some keys: `(name asked for, name in the object)`.
    aliases: &'static [(&'static str, &'static str)],
}

impl<'a> Keys<'a> {
    pub(crate) fn new(
        map: &'a Map<String, Value>,
        path: &'static str,
        aliases: &'static [(&'static str, &'static str)],
    ) -> Self {
        Keys { map, path, aliases }
    }

    /// The same object, some of whose keys are called otherwise.
    pub(crate) fn with_aliases(self, aliases: &'static [(&'static str, &'static str)]) -> Self {
        Keys { aliases, ..self }
    }

    /// The object itself.
    pub(crate) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// Prefix of the keys in errors.
    pub(crate) fn path(&self) -> &'static str {
        self.path
    }

    /// What the object calls `key`: its own name where it has it, else the common one.
    fn alias<'k>(&self, key: &'k str) -> &'k str {
        let own = self.aliases.iter().find(|(name, _)| *name == key).map(|(_, own)| *own);
        own.filter(|own| self.map.contains_key(*own)).unwrap_or(key)
    }

    /// The value, `null` included.
    pub(crate) fn raw(&self, key: &str) -> Option<&'a Value> {
        self.map.get(self.alias(key))
    }

    /// Whether the key is there, `null` included.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.raw(key).is_some()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw(key).filter(|v| !v.is_null())
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.get(key).map(|v| size(v).ok_or_else(|| self.type_error(key, "a whole number"))).transpose()
    }

    /// A size that `null` switches off; `default` where the key is absent.
    pub(crate) fn size_or_null(&self, key: &str, default: usize) -> Result<Option<usize>, ConfigError> {
        if self.has(key) { self.size(key) } else { Ok(Some(default)) }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| self.type_error(key, "a number"))).transpose()
    }

    /// A number that is computed with in f32.
    pub(crate) fn float(&self, key: &str, default: f64) -> Result<f32, ConfigError> {
        Ok(self.number(key)?.unwrap_or(default) as f32)
    }

    /// A number that `null` switches off; `default` where the key is absent.
    pub(crate) fn float_or_null(&self, key: &str, default: Option<f64>) -> Result<Option<f32>, ConfigError> {
        let number = if self.has(key) { self.number(key)? } else { default };
        Ok(number.map(|x| x as f32))
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.type_error(key, "true or false"))).transpose()
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.bool(key)?.unwrap_or(default))
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.type_error(key, "a string"))).transpose()
    }

    /// An activation function, by its name in `ACT2FN` of transformers' `activations.py`.
    pub(crate) fn act(&self, key: &str) -> Result<Option<Act>, ConfigError> {
        let act = |name| match name {
            "silu" | "swish" => Ok(Act::Silu),
            "gelu" | "gelu_python" => Ok(Act::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate" => Ok(Act::GeluTanh),
            "relu" => Ok(Act::Relu),
            "relu2" => Ok(Act::Relu2),
            "sigmoid" => Ok(Act::Sigmoid),
            _ => Err(self.unsupported(key)),
        };
        self.string(key)?.map(act).transpose()
    }

    /// A list of whole numbers.
    pub(crate) fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let list = |v: &Value| v.as_array().and_then(|list| list.iter().map(size).collect());
        self.get(key).map(|v| list(v).ok_or_else(|| self.type_error(key, "a list of whole numbers"))).transpose()
    }

    /// An object inside this one; an empty one counts as absent.
    pub(crate) fn section(&self, key: &str, path: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.type_error(key, "an object or null"))?;
        Ok(Some(Keys::new(map, path, &[])).filter(|k| !k.map.is_empty()))
    }

    /// Refuses a key that nobody reads, unless it says what the model does anyway.
    pub(crate) fn may_only_say(&self, key: &str, value: impl Into<Value>) -> Result<(), ConfigError> {
        let value = value.into();
        let same = |v: &Value| *v == value || v.as_f64().is_some() && v.as_f64() == value.as_f64();
        if self.get(key).is_none_or(same) { Ok(()) } else { Err(self.unsupported(key)) }
    }

    /// Refuses the first of `keys` that is there: the reference does not read it.
    pub(crate) fn refuse_any(&self, keys: &[&str]) -> Result<(), ConfigError> {
        keys.iter().find(|key| self.get(key).is_some()).map_or(Ok(()), |key| Err(self.unsupported(key)))
    }

    /// Per layer how many keys a query sees, by `layer_types`: `full_attention`, or `sliding_attention` with `window`.
    pub(crate) fn layer_types(
        &self,
        layers: usize,
        window: Option<usize>,
    ) -> Result<Option<Vec<Option<usize>>>, ConfigError> {
        const KEY: &str = "layer_types";
        let Some(types) = self.get(KEY) else { return Ok(None) };
        let types = types.as_array().ok_or_else(|| self.type_error(KEY, "a list"))?;
        if types.len() != layers {
            let why = format!("must have one entry for each of {layers} layers");
            return Err(self.value(KEY, format!("{} entries", types.len()), why));
        }
        let one = |(i, t): (usize, &Value)| match t.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") if window.is_some() => Ok(window),
            Some("sliding_attention") => {
                Err(self.value(&format!("{KEY}[{i}]"), short(t), "needs a sliding_window that is in use"))
            }
            _ => Err(unsupported(&format!("{KEY}[{i}]"), t)),
        };
        types.iter().enumerate().map(one).collect::<Result<_, _>>().map(Some)
    }

    /// The key with its path, for an error.
    pub(crate) fn name(&self, key: &str) -> String {
        format!("{}{}", self.path, self.alias(key))
    }

    /// The error for a value of another type.
    pub(crate) fn type_error(&self, key: &str, expected: &'static str) -> ConfigError {
        let value = self.raw(key).map_or_else(|| "absent".to_owned(), short);
        ConfigError::Type { key: self.name(key), expected, value }
    }

    /// The error for a value that makes no sense.
    pub(crate) fn value(&self, key: &str, value: impl std::fmt::Display, why: impl Into<String>) -> ConfigError {
        ConfigError::value(self.name(key), value, why)
    }

    /// The error for a value that is not supported.
    pub(crate) fn unsupported(&self, key: &str) -> ConfigError {
        unsupported(&self.name(key), self.raw(key).unwrap_or(&Value::Null))
    }
}

/// Refuses every key of a section that is neither `handled` nor neutral. `path` prefixes the key in the error.
pub(super) fn refuse_unknown(map: &Map<String, Value>, path: &str, handled: &[&[&str]]) -> Result<(), ConfigError> {
    refuse(map, path, |key| handled.iter().any(|keys| keys.contains(&key)))
}

/// The same of a model's config, where harmless keys may stand as well.
pub(super) fn refuse_unknown_of_model(
    map: &Map<String, Value>,
    path: &str,
    handled: &[&[&str]],
) -> Result<(), ConfigError> {
    let harmless = |key: &str| key.starts_with('_') || HARMLESS.contains(&key);
    refuse(map, path, |key| harmless(key) || handled.iter().any(|keys| keys.contains(&key)))
}

fn refuse(map: &Map<String, Value>, path: &str, known: impl Fn(&str) -> bool) -> Result<(), ConfigError> {
    match map.iter().find(|(key, value)| !(known(key) || is_neutral(value))) {
        Some((key, value)) => Err(unsupported(&format!("{path}{key}"), value)),
        None => Ok(()),
    }
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
    "is_causal",
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
    "activation_dropout",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "initializer_factor",
    "initializer_range",
    "layerdrop",
    "neftune_noise_alpha",
    "output_router_logits",
    "pretraining_tp", // a way to compute the same products; gone from modeling_llama.py by 4.57
    "resid_pdrop",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "use_flash_attn",
    "use_flash_attention",
    // how weights are stored: read by `Quantization::from_hf_json`
    "compression_config",
    "quantization_config",
    // metadata of published files
    "bos_token",
    "custom_pipelines",
    "eos_token",
    "is_llama_config",
    "license",
    "max_sequence_length",
    "max_window_layers", // of qwen, whose classes alone read it; kept in files of other families
    "model_max_length",
    "num_steps",
    "pad_token",
    "seq_length",
    "transformers.js_config",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
];
