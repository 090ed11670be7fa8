//! Model configurations: JSON or GGUF metadata in, a validated [`ModelConfig`] out.
//!
//! A value of this type can be traced without a further check: every size is positive, heads divide, `windows` has one
//! entry per layer. A key that changes the mathematics and is not supported is an error that names it.

mod gguf;
mod hf;
mod keys;
mod quantization;
mod rope;
#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use gguf::{ARCHITECTURES, Keys as GgufKeys, architecture as gguf_architecture, from_gguf, gguf_head_dim};
pub(crate) use hf::{Defaults, token_ids};
pub(crate) use keys::Keys;
pub use quantization::{Group, Method, Quantization, ScaleOf};

pub use crate::families::Family;
use crate::program::{Act, Pairing, Program, RouteGroups, RouteScore};

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
    /// None up to the length that the model was made for; beyond, a base that grows with the sequence (NTK), which no backend
    /// has: [`ModelConfig::is_bounded`].
    Dynamic {
        /// How fast it would grow.
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
    /// LongRoPE (Ding et al. 2024, arXiv:2402.13753) as transformers computes it: divisors per frequency.
    Long {
        /// For sequences of up to `original_max_len` tokens.
        short: Vec<f64>,
        /// For longer ones.
        long: Vec<f64>,
        /// Context length before scaling.
        original_max_len: usize,
        /// Factor of cosine and sine.
        attention_factor: f64,
    },
    /// Divisor per frequency (GGUF `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

/// A decoder-only transformer, validated.
///
/// Sizes are as [`Family`] files use them; what a family does not have is neutral: factors of 1, no caps, no experts.
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
    /// Length of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Longest sequence the checkpoint was made for.
    pub max_len: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Whether the norms have weights and biases (opt).
    pub norms_have_weights: bool,
    /// Whether they stand behind the sums instead of before the parts (opt).
    pub norms_behind: bool,
    /// Whether there is one before the head (opt).
    pub final_norm: bool,
    /// Whether attention and feed-forward part read one residual stream.
    pub is_parallel: bool,
    /// Whether, of such, each has a norm of its own (falcon).
    pub norm_per_part: bool,
    /// Width of the embeddings, where it is another (opt).
    pub embed_width: Option<usize>,
    /// Whether the checkpoint holds norm weights minus one.
    pub norm_plus_one: bool,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Activation of the feed-forward layer.
    pub act: Act,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Rotary embedding of the layers with a window, where it is another.
    pub local_rope: Option<RopeConfig>,
    /// Values of a head that are rotated, the first ones; even.
    pub rope_width: usize,
    /// How they pair up.
    pub rope_pairing: Pairing,
    /// Per layer, whether it rotates at all.
    pub rope_layers: Vec<bool>,
    /// Biases.
    pub bias: Biases,
    /// Whether the output head has one.
    pub head_bias: bool,
    /// Whether queries and keys are normalised per head before the rotation (qwen3, gemma3).
    pub head_norms: bool,
    /// Bound of the size of queries, keys and values as they are projected (olmo).
    pub qkv_clip: Option<f32>,
    /// Factor of the attention scores.
    pub attention_scale: f32,
    /// Whether layer `i` divides them by `i + 1` as well (gpt2).
    pub attention_scale_by_layer: bool,
    /// Bound of the attention scores.
    pub attention_softcap: Option<f32>,
    /// A slope per query head, for each position that a key lies before it (falcon).
    pub alibi: Option<Vec<f32>>,
    /// Per layer, how many keys a query sees (itself included).
    pub windows: Vec<Option<usize>>,
    /// Factor of the token embeddings.
    pub embed_scale: f32,
    /// Factor of what a layer adds to the residual stream.
    pub residual_scale: f32,
    /// Factor of the logits.
    pub logit_scale: f32,
    /// Bound of the logits.
    pub logit_softcap: Option<f32>,
    /// Latents of the attention.
    pub latent: Option<Latent>,
    /// Experts, where some layers have them.
    pub moe: Option<Moe>,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens.
    pub eos: Vec<u32>,
}

/// Attention whose queries, keys and values come from narrow latents (DeepSeek-V2, arXiv:2405.04434).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// Width of the queries' latent; they come from the stream itself where absent.
    pub q_rank: Option<usize>,
    /// Width of the latent of keys and values.
    pub kv_rank: usize,
    /// Values of a query's and a key's head that are not rotated.
    pub plain: usize,
    /// Values that are; of the keys one part for all heads.
    pub rotated: usize,
    /// Length of a value's head.
    pub value: usize,
}

/// Feed-forward layers made of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token goes through.
    pub top_k: usize,
    /// Width of an expert.
    pub ffn: usize,
    /// Width of the expert that every token goes through as well.
    pub shared_ffn: Option<usize>,
    /// Logits to scores.
    pub score: RouteScore,
    /// Whether the checkpoint has a bias for each expert that is added where they are chosen (deepseek_v3).
    pub correction: bool,
    /// Groups that they are chosen from (deepseek).
    pub groups: Option<RouteGroups>,
    /// Whether the kept shares are divided by their sum.
    pub normalise: bool,
    /// Factor of the shares.
    pub factor: f32,
    /// Per layer, whether it has experts.
    pub layers: Vec<bool>,
}

impl ModelConfig {
    /// Reads a `config.json` of transformers 4 or 5.
    pub fn from_hf_json(json: &serde_json::Value) -> Result<ModelConfig, ConfigError> {
        hf::parse(json)
    }

    /// A config of this family whose optional parts are neutral and whose sizes are to be filled in: zero.
    pub(crate) fn neutral(family: Family) -> ModelConfig {
        ModelConfig {
            family,
            vocab: 0,
            hidden: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            ffn: 0,
            max_len: 0,
            norm_eps: 1e-6,
            norms_have_weights: true,
            norms_behind: false,
            final_norm: true,
            is_parallel: false,
            norm_per_part: false,
            embed_width: None,
            norm_plus_one: false,
            tied: false,
            act: Act::Silu,
            rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
            local_rope: None,
            rope_width: 0,
            rope_pairing: Pairing::Half,
            rope_layers: vec![],
            bias: Biases::default(),
            head_bias: false,
            head_norms: false,
            qkv_clip: None,
            attention_scale: 1.0,
            attention_scale_by_layer: false,
            attention_softcap: None,
            alibi: None,
            windows: vec![],
            embed_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
            latent: None,
            moe: None,
            bos: None,
            eos: vec![],
        }
    }

    /// The same with whole heads rotated in every layer, scores divided by the root of their length, and no windows.
    pub(crate) fn with_plain_attention(self) -> ModelConfig {
        ModelConfig {
            rope_width: self.head_dim,
            rope_layers: vec![true; self.layers.min(MAX_LAYERS)],
            attention_scale: 1.0 / (self.head_dim as f32).sqrt(),
            windows: vec![None; self.layers.min(MAX_LAYERS)],
            ..self
        }
    }

    /// Whether no sequence can be longer than `max_len`: positions are learned, or beyond it the rotation is another for every
    /// length.
    pub fn is_bounded(&self) -> bool {
        let is_learned = self.rope_width == 0 && self.alibi.is_none();
        let ropes = [Some(&self.rope), self.local_rope.as_ref()];
        is_learned || ropes.into_iter().flatten().any(|rope| matches!(rope.scaling, RopeScaling::Dynamic { .. }))
    }

    /// Traces the model.
    pub fn program(&self) -> Program {
        crate::families::program(self)
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
            ("word_embed_proj_dim", self.embed_width.unwrap_or(1), MAX_WIDTH),
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
        if !self.rope_width.is_multiple_of(2) || self.rope_width > self.head_dim {
            let why = format!("must be even for rotary embeddings, and at most head_dim = {}", self.head_dim);
            let key = if self.rope_width == self.head_dim { "head_dim" } else { "rotated part of head_dim" };
            return Err(ConfigError::value(key, self.rope_width, why));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            return Err(ConfigError::value("rms_norm_eps", self.norm_eps, "must be finite and not negative"));
        }
        let factors = [
            ("attention scale", Some(self.attention_scale)),
            ("attn_logit_softcapping", self.attention_softcap),
            ("embedding scale", Some(self.embed_scale)),
            ("residual_multiplier", Some(self.residual_scale)),
            ("logit scale", Some(self.logit_scale)),
            ("final_logit_softcapping", self.logit_softcap),
        ];
        if let Some((key, Some(x))) = factors.into_iter().find(|(_, x)| x.is_some_and(|x| !x.is_finite() || x == 0.0)) {
            return Err(ConfigError::value(key, x, "must be finite and not zero"));
        }
        for (key, n) in [("layer_types", self.windows.len()), ("no_rope_layers", self.rope_layers.len())] {
            if n != self.layers {
                return Err(ConfigError::value(key, n, "must have one entry per layer"));
            }
        }
        if self.windows.contains(&Some(0)) {
            return Err(ConfigError::value("sliding_window", 0, "must be positive"));
        }
        if let Some(Latent { q_rank, kv_rank, plain, rotated, value }) = self.latent {
            let sizes = [
                ("q_lora_rank", q_rank.unwrap_or(1), MAX_WIDTH),
                ("kv_lora_rank", kv_rank, MAX_WIDTH),
                ("qk_nope_head_dim", plain, MAX_HEAD_DIM),
                ("qk_rope_head_dim", rotated, MAX_HEAD_DIM),
                ("v_head_dim", value, MAX_HEAD_DIM.min(MAX_WIDTH / self.heads)),
            ];
            for (key, value, most) in sizes {
                if value == 0 || value > most {
                    return Err(ConfigError::value(key, value, format!("must lie in 1..={most}")));
                }
            }
        }
        if let Some(moe) = &self.moe {
            moe.check(self.layers)?;
        }
        self.rope.check(self.rope_width)?;
        self.local_rope.as_ref().map_or(Ok(()), |rope| rope.check(self.rope_width))?;
        Ok(self)
    }
}

impl Moe {
    /// Nothing but shares by softmax; sizes are to be filled in.
    pub(crate) const PLAIN: Moe = Moe {
        experts: 0,
        top_k: 0,
        ffn: 0,
        shared_ffn: None,
        score: RouteScore::Softmax,
        correction: false,
        groups: None,
        normalise: false,
        factor: 1.0,
        layers: Vec::new(),
    };

    fn check(&self, layers: usize) -> Result<(), ConfigError> {
        let sizes = [
            ("num_experts (num_local_experts)", self.experts, MAX_EXPERTS),
            ("num_experts_per_tok", self.top_k, self.experts),
            ("moe_intermediate_size", self.ffn, MAX_WIDTH),
            ("shared_expert_intermediate_size", self.shared_ffn.unwrap_or(1), MAX_WIDTH),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return Err(ConfigError::value(key, value, format!("must lie in 1..={most}")));
            }
        }
        if !(self.factor.is_finite() && self.factor != 0.0) {
            return Err(ConfigError::value("routed_scaling_factor", self.factor, "must be finite and not zero"));
        }
        if let Some(RouteGroups { count, kept, best }) = self.groups {
            if !(1..=RouteGroups::MOST).contains(&count) || !self.experts.is_multiple_of(count) {
                let why = format!("must divide the {} experts, and lie in 1..={}", self.experts, RouteGroups::MOST);
                return Err(ConfigError::value("n_group", count, why));
            }
            let size = self.experts / count;
            if best > size {
                return Err(ConfigError::value("n_group", count, format!("leaves groups of less than {best} experts")));
            }
            if !(1..=count).contains(&kept) || kept * size < self.top_k {
                let why = format!("must be at most {count} groups, of {} experts together at least", self.top_k);
                return Err(ConfigError::value("topk_group", kept, why));
            }
        }
        match self.layers.len() == layers {
            true => Ok(()),
            false => Err(ConfigError::value("mlp_only_layers", self.layers.len(), "must have one entry per layer")),
        }
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
    #[error("architecture `{found}` is not supported, supported are {}", names(&Family::ALL))]
    Architecture {
        /// As the checkpoint calls it.
        found: String,
    },
    /// An architecture whose GGUF files this program does not know.
    #[error("GGUF architecture `{found}` is not supported, supported are {}", gguf_names())]
    GgufArchitecture {
        /// As the file calls it.
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
    pub(crate) fn value(key: impl Into<String>, value: impl fmt::Display, why: impl Into<String>) -> Self {
        ConfigError::Value { key: key.into(), value: value.to_string(), why: why.into() }
    }
}

fn names(families: &[Family]) -> String {
    families.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ")
}

/// The architectures of GGUF files that are read, by llama.cpp's names, and the families whose models are stored so.
pub fn gguf_architectures() -> impl Iterator<Item = (&'static str, &'static [Family])> {
    ARCHITECTURES.iter().map(|a| (a.name, a.families))
}

fn gguf_names() -> String {
    gguf_architectures().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

// Far above any published model, and small enough that no product of two of them overflows.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
pub(crate) const MAX_LAYERS: usize = 1024;
const MAX_EXPERTS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
const MAX_LEN: usize = 1 << 30;
