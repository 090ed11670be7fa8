//! GGUF metadata as a model configuration.
//!
//! Meanings and defaults are llama.cpp's (`llama_model_base::load_hparams`). Keys of the architecture (`llama.*`) are all
//! looked at: one that is neither read here nor neutral is refused by name, and so is a tensor that no supported model has.

use super::{Biases, ConfigError, Family, ModelConfig, RopeConfig, RopeScaling};
use crate::weights::gguf::{Gguf, Metadata, Value, is_known};

/// Families whose GGUF files are understood. Mistral models are stored as llama; no file says mistral.
pub(super) const FAMILIES: [Family; 3] = [Family::Llama, Family::Qwen2, Family::Qwen3];

/// Reads the metadata and tensor names of an open file.
pub(crate) fn from_gguf(gguf: &Gguf) -> Result<ModelConfig, ConfigError> {
    let m = gguf.metadata();
    let missing = |key: &str| ConfigError::Missing { key: key.to_owned() };
    let arch = m.string("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    let family = FAMILIES.into_iter().find(|f| f.name() == arch);
    let family = family.ok_or_else(|| ConfigError::GgufArchitecture { found: arch.to_owned() })?;
    let keys = Keys { m, arch };
    keys.refuse_unknown()?;

    let layers = keys.need("block_count")?;
    if layers > super::MAX_LAYERS {
        return Err(ConfigError::value(
            keys.name("block_count"),
            layers,
            format!("must lie in 1..={}", super::MAX_LAYERS),
        ));
    }
    let heads = keys.uniform("attention.head_count")?.ok_or_else(|| missing(&keys.name("attention.head_count")))?;
    let head_dim = gguf_head_dim(&m, arch)?;
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(n) = keys.size(key)?.filter(|n| *n != head_dim) {
            return Err(ConfigError::value(
                keys.name(key),
                n,
                format!("differs from the key length {head_dim}, which is not supported"),
            ));
        }
    }
    if let Some(name) = gguf.tensor_names().find(|name| !is_known(name, layers, family == Family::Qwen3)) {
        return Err(ConfigError::UnsupportedTensor { name: name.to_owned() });
    }
    let has = |name: &str| gguf.shape(&format!("blk.0.{name}.bias")).is_some();
    let max_len = keys.need("context_length")?;
    let vocab = match gguf.shape("token_embd.weight") {
        Some((rows, _)) => rows,
        None => keys.need("vocab_size")?,
    };
    // llama.cpp ignores the key for these architectures; only for mistral stored as llama is its meaning beyond doubt.
    let window = keys.size("attention.sliding_window")?.filter(|w| *w != 0 && *w < max_len);
    if let (Some(w), Family::Qwen2 | Family::Qwen3) = (window, family) {
        return Err(ConfigError::UnsupportedKey { key: keys.name("attention.sliding_window"), value: w.to_string() });
    }
    let mut eos: Vec<u32> = vec![];
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        eos.extend(m.token(key)?.filter(|id| !eos.contains(id)));
    }
    let eps = keys.name("attention.layer_norm_rms_epsilon");
    let config = ModelConfig {
        vocab,
        hidden: keys.need("embedding_length")?,
        layers,
        heads,
        kv_heads: keys.uniform("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.uniform("feed_forward_length")?.ok_or_else(|| missing(&keys.name("feed_forward_length")))?,
        max_len,
        // stored as f32
        norm_eps: m.float(&eps)?.ok_or_else(|| missing(&eps))? as f32,
        tied: gguf.shape("output.weight").is_none(),
        rope: RopeConfig {
            theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: scaling(gguf, &keys, max_len)?,
        },
        bias: Biases {
            qkv: family == Family::Qwen2 || ["attn_q", "attn_k", "attn_v"].into_iter().any(has),
            o: has("attn_output"),
            mlp: ["ffn_gate", "ffn_up", "ffn_down"].into_iter().any(has),
        },
        head_norms: family == Family::Qwen3,
        bos: m.token("tokenizer.ggml.bos_token_id")?,
        eos,
        ..ModelConfig::neutral(family)
    };
    ModelConfig { windows: vec![window; layers], ..config.with_plain_attention() }.validated()
}

/// Length of a head: `attention.key_length`, or the width over the heads.
pub(crate) fn gguf_head_dim(m: &Metadata<'_>, arch: &str) -> Result<usize, ConfigError> {
    let keys = Keys { m: *m, arch };
    if let Some(n) = keys.size("attention.key_length")?.filter(|n| *n != 0) {
        return Ok(n);
    }
    let hidden = keys.need("embedding_length")?;
    match keys.uniform("attention.head_count")? {
        Some(heads) if heads != 0 && hidden.is_multiple_of(heads) && hidden >= heads => Ok(hidden / heads),
        _ => Err(ConfigError::value(keys.name("embedding_length"), hidden, "is no multiple of attention.head_count")),
    }
}

fn scaling(gguf: &Gguf, keys: &Keys<'_>, max_len: usize) -> Result<RopeScaling, ConfigError> {
    let kind = keys.m.string(&keys.name("rope.scaling.type"))?.unwrap_or("linear");
    let factor = match keys.float("rope.scaling.factor")? {
        None => keys.float("rope.scale_linear")?,
        factor => factor,
    };
    // llama.cpp divides positions by the factor unless it is 0.
    let factor = factor.filter(|f| *f != 0.0).unwrap_or(1.0);
    let attention = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let scaling = match kind {
        "yarn" => {
            let positive = |key: &str, default: f64| {
                Ok::<_, ConfigError>(keys.float(key)?.filter(|x| *x > 0.0).unwrap_or(default))
            };
            RopeScaling::Yarn {
                factor,
                original_max_len: keys.size("rope.scaling.original_context_length")?.unwrap_or(max_len),
                beta_fast: positive("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: positive("rope.scaling.yarn_beta_slow", 1.0)?,
                // The file's factor comes on top of the derived one.
                attention_factor: (attention != 1.0).then(|| attention * crate::rope::yarn_mscale(factor, 1.0)),
                mscale: None,
                mscale_all_dim: None,
                truncate: true,
            }
        }
        "linear" | "none" if attention != 1.0 => {
            let (key, value) = (keys.name("rope.scaling.attn_factor"), attention.to_string());
            return Err(ConfigError::UnsupportedKey { key, value });
        }
        "none" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        other => {
            let (key, value) = (keys.name("rope.scaling.type"), format!("{other:?}"));
            return Err(ConfigError::UnsupportedKey { key, value });
        }
    };
    match (gguf.rope_divisors()?, scaling) {
        (None, scaling) => Ok(scaling),
        (Some(divisors), RopeScaling::None) => Ok(RopeScaling::Divisors(divisors)),
        (Some(_), _) => {
            let why = "together with rope_freqs.weight is not supported";
            Err(ConfigError::value(keys.name("rope.scaling.type"), kind, why))
        }
    }
}

/// Keys under the architecture's name.
struct Keys<'a> {
    m: Metadata<'a>,
    arch: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let name = self.name(key);
        let n = self.m.unsigned(&name)?;
        n.map(|n| usize::try_from(n).map_err(|_| ConfigError::value(name, n, "is too large"))).transpose()
    }

    fn need(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?.ok_or_else(|| ConfigError::Missing { key: self.name(key) })
    }

    fn float(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.m.float(&self.name(key))
    }

    /// A number, or an array of one number repeated.
    fn uniform(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let name = self.name(key);
        let Some(Value::Array(_)) = self.m.get(&name) else { return self.size(key) };
        let numbers = self.m.numbers(&name)?;
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().all(|n| n == first) => {
                let n = first.as_unsigned().and_then(|n| usize::try_from(n).ok());
                n.map(Some).ok_or_else(|| ConfigError::value(name, self.m.show(first), "is no size"))
            }
            _ => {
                let value = self.m.get(&name).map(|v| self.m.show(v)).unwrap_or_default();
                Err(ConfigError::value(name, value, "differs between layers, which is not supported"))
            }
        }
    }

    fn refuse_unknown(&self) -> Result<(), ConfigError> {
        let mut keys: Vec<&str> = self.m.keys().collect();
        keys.sort_unstable(); // the same file gives the same error
        for key in keys {
            let Some(stem) = key.strip_prefix(self.arch).and_then(|s| s.strip_prefix('.')) else { continue };
            let value =
                self.m.get(key).filter(|v| !(HANDLED.contains(&stem) || HARMLESS.contains(&stem) || v.is_neutral()));
            // Causal is what every model here is.
            if let Some(value) = value.filter(|v| !(stem == "attention.causal" && **v == Value::Bool(true))) {
                return Err(ConfigError::UnsupportedKey { key: key.to_owned(), value: self.m.show(value) });
            }
        }
        Ok(())
    }
}

const HANDLED: [&str; 20] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "vocab_size",
];

/// The layout is a remark of the converter ("Meta AI original pth"), `finetuned` one of the training.
const HARMLESS: [&str; 2] = ["tensor_data_layout", "rope.scaling.finetuned"];
