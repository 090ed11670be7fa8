//! Model configurations: JSON or GGUF metadata in, a validated [`ModelConfig`] out.
//!
//! A value of this type can be traced without a further check: every size is positive, heads divide, `windows` has one
//! entry per layer. A key that changes the mathematics and is not supported is an error that names it.

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
