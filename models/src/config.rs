//! Model configurations: JSON or GGUF metadata in, a validated [`ModelConfig`] out.
//!
//! A value of this type can be traced without a further check: every size is positive, heads divide, `windows` has one
//! entry per layer. A key that changes the mathematics and is not supported is an error that names it.

mod gguf;
mod hf;
mod keys;
mod rope;
#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use gguf::{from_gguf, gguf_head_dim};
pub(crate) use hf::token_ids;

/// A family of architectures, as its reference implementation names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
}

impl Family {
    /// Every supported family.
    pub const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// The family of this `model_type`.
    pub fn from_name(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|f| f.name() == name)
    }

    /// `model_type` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }
}

/// Which linear maps have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Query, key and value projections.
    pub qkv: bool,
    /// Attention output.
    pub o: bool,
    /// Gate, up and down.
    pub mlp: bool,
}

/// Rotary embedding as the checkpoint asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// What is done to them for long contexts.
    pub scaling: RopeScaling,
}

/// Rope scaling; formulas in [`crate::rope`].
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3's frequency-dependent scaling.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_max_len: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071) as transformers computes it.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length before scaling.
        original_max_len: usize,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Factor of cosine and sine; derived from `factor` and the two `mscale`s where absent.
        attention_factor: Option<f64>,
        /// DeepSeek's numerator of the derived factor.
        mscale: Option<f64>,
        /// DeepSeek's denominator of the derived factor.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp's ends are rounded outwards.
        truncate: bool,
    },
    /// Divisor per frequency (GGUF `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

/// A decoder-only transformer, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub family: Family,
    /// Token ids.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Length of a head; even.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Longest sequence the checkpoint was made for.
    pub max_len: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Biases.
    pub bias: Biases,
    /// Whether queries and keys are normalised per head before the rotation (qwen3).
    pub head_norms: bool,
    /// Per layer, how many keys a query sees (itself included).
    pub windows: Vec<Option<usize>>,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens.
    pub eos: Vec<u32>,
}

impl ModelConfig {
    /// Reads a `config.json` of transformers 4 or 5.
    pub fn from_hf_json(json: &serde_json::Value) -> Result<ModelConfig, ConfigError> {
        hf::parse(json)
    }

    /// Checks every size, so that what is traced from the result cannot overflow or divide unevenly.
    pub(crate) fn validated(self) -> Result<ModelConfig, ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab, MAX_VOCAB),
            ("hidden_size", self.hidden, MAX_WIDTH),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_WIDTH),
            ("num_key_value_heads", self.kv_heads, MAX_WIDTH),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("intermediate_size", self.ffn, MAX_WIDTH),
            ("max_position_embeddings", self.max_len, MAX_LEN),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return Err(ConfigError::value(key, value, format!("must lie in 1..={most}")));
            }
        }
        if self.heads.checked_mul(self.head_dim).is_none_or(|n| n > MAX_WIDTH) {
            return Err(ConfigError::value(
                "num_attention_heads",
                self.heads,
                format!("times head_dim exceeds {MAX_WIDTH}"),
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let why = format!("must divide num_attention_heads = {}", self.heads);
            return Err(ConfigError::value("num_key_value_heads", self.kv_heads, why));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::value("head_dim", self.head_dim, "must be even for rotary embeddings"));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            return Err(ConfigError::value("rms_norm_eps", self.norm_eps, "must be finite and not negative"));
        }
        if self.windows.len() != self.layers {
            return Err(ConfigError::value("layer_types", self.windows.len(), "must have one entry per layer"));
        }
        if self.windows.contains(&Some(0)) {
            return Err(ConfigError::value("sliding_window", 0, "must be positive"));
        }
        self.rope.check(self.head_dim)?;
        Ok(self)
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The JSON is not an object.
    #[error("the config is not a JSON object")]
    NotAnObject,
    /// An architecture that this program does not know.
    #[error("architecture `{found}` is not supported, supported are {}", supported())]
    Architecture {
        /// As the checkpoint calls it.
        found: String,
    },
    /// A key that changes the mathematics in a way that is not implemented.
    #[error("config key `{key}` = {value} is not supported")]
    UnsupportedKey {
        /// Key, with its path.
        key: String,
        /// Its value, shortened.
        value: String,
    },
    /// A tensor that no supported model has.
    #[error("tensor `{name}` is part of no supported architecture")]
    UnsupportedTensor {
        /// Its name.
        name: String,
    },
    /// A key has a value of another type.
    #[error("config key `{key}` should be {expected}, is {value}")]
    Type {
        /// Key, with its path.
        key: String,
        /// What was expected.
        expected: &'static str,
        /// Its value, shortened.
        value: String,
    },
    /// A key's value makes no sense.
    #[error("config key `{key}` = {value} {why}")]
    Value {
        /// Key, with its path.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A key without a default is absent.
    #[error("config key `{key}` is missing")]
    Missing {
        /// Key, with its path.
        key: String,
    },
}

impl ConfigError {
    fn value(key: impl Into<String>, value: impl fmt::Display, why: impl Into<String>) -> Self {
        ConfigError::Value { key: key.into(), value: value.to_string(), why: why.into() }
    }
}

fn supported() -> String {
    Family::ALL.map(Family::name).join(", ")
}

// Far above any published model, and small enough that no product of two of them overflows.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1024;
const MAX_HEAD_DIM: usize = 4096;
const MAX_LEN: usize = 1 << 30;
