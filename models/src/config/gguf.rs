//! GGUF metadata as a model configuration: what all architectures share.
//!
//! Meanings and defaults are llama.cpp's (`llama_model_base::load_hparams`), those of each architecture in
//! [`architectures`]. Keys of the architecture (`llama.*`) are all looked at: one that is neither read nor neutral is refused
//! by name, and so is a tensor that the model does not use.

mod architectures;
mod keys;

use std::collections::HashSet;

pub(crate) use architectures::{ARCHITECTURES, Architecture};
pub(crate) use keys::Keys;

use super::{Biases, ConfigError, ModelConfig, RopeConfig, RopeScaling};
use crate::weights::gguf::{Gguf, Metadata};
use architectures::Windows;

/// The architecture of an open file.
pub(crate) fn architecture(m: &Metadata<'_>) -> Result<&'static Architecture, ConfigError> {
    let key = "general.architecture";
    let found = m.string(key)?.ok_or_else(|| ConfigError::Missing { key: key.to_owned() })?;
    let known = ARCHITECTURES.iter().find(|a| a.name == found);
    known.ok_or_else(|| ConfigError::GgufArchitecture { found: found.to_owned() })
}

/// Reads the metadata and tensor names of an open file.
pub(crate) fn from_gguf(gguf: &Gguf) -> Result<ModelConfig, ConfigError> {
    let m = gguf.metadata();
    let arch = architecture(&m)?;
    let keys = Keys { m, arch: arch.name };
    keys.refuse_unknown(&[&COMMON, arch.keys])?;
    let mut config = common(gguf, &keys, arch)?;
    (arch.read)(gguf, &keys, &mut config)?;
    let config = config.validated()?;
    check_fused(gguf, &config)?;
    refuse_unused(gguf, &keys, &config)?;
    Ok(config)
}

fn common(gguf: &Gguf, keys: &Keys<'_>, arch: &Architecture) -> Result<ModelConfig, ConfigError> {
    let m = &keys.m;
    // Layers behind the last, for guesses at more than one token; llama.cpp counts them in.
    let extra = keys.size("nextn_predict_layers")?.unwrap_or(0);
    let layers = keys.need("block_count")?.saturating_sub(extra);
    if layers == 0 || layers > super::MAX_LAYERS {
        let why = format!("must lie in 1..={}", super::MAX_LAYERS);
        return Err(ConfigError::value(keys.name("block_count"), layers, why));
    }
    let heads = keys.need_uniform("attention.head_count")?;
    let head_dim = gguf_head_dim(m, arch.name)?;
    let family = (arch.family)(keys)?;
    let d = family.definition().defaults;
    // That of deepseek2 says how long keys and values are in its cache.
    if !arch.is_latent {
        refuse_other(keys, "attention.value_length", head_dim)?;
    }
    let rope_width = match keys.size("rope.dimension_count")? {
        Some(width) if d.partial_rotary.is_some() => width.min(head_dim),
        _ if arch.is_latent => head_dim,
        _ => {
            refuse_other(keys, "rope.dimension_count", head_dim)?;
            head_dim
        }
    };
    let has = |names: &[&str], end: &str| {
        let is = |name: &&str| gguf.has(&format!("blk.0.{name}.{end}"));
        names.iter().any(is)
    };
    let max_len = keys.need("context_length")?;
    let vocab = match gguf.shape("token_embd.weight") {
        Some((rows, _)) => rows,
        None => keys.need("vocab_size")?,
    };
    let mut eos: Vec<u32> = vec![];
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        eos.extend(m.token(key)?.filter(|id| !eos.contains(id)));
    }
    let eps = keys.name(arch.eps);
    let config = ModelConfig {
        vocab,
        hidden: keys.need("embedding_length")?,
        layers,
        heads,
        kv_heads: keys.uniform("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.need_uniform("feed_forward_length")?,
        max_len,
        // stored as f32
        norm_eps: m.float(&eps)?.ok_or(ConfigError::Missing { key: eps })? as f32,
        act: d.act,
        tied: !gguf.has("output.weight"),
        rope: RopeConfig {
            theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: scaling(gguf, keys, max_len)?,
        },
        bias: Biases {
            qkv: has(&["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_kv_a_mqa"], "bias"),
            o: has(&["attn_output"], "bias"),
            mlp: has(&["ffn_gate", "ffn_up", "ffn_down"], "bias"),
        },
        head_bias: gguf.has("output.bias"),
        bos: m.token("tokenizer.ggml.bos_token_id")?,
        eos,
        ..ModelConfig::neutral(family)
    };
    let windows = windows(keys, arch.windows, layers, max_len)?;
    Ok(ModelConfig { windows, rope_width, ..config.with_plain_attention() })
}

/// Refuses another value than the only one that is supported.
fn refuse_other(keys: &Keys<'_>, key: &str, only: usize) -> Result<(), ConfigError> {
    match keys.size(key)?.filter(|n| *n != only) {
        None => Ok(()),
        Some(n) => {
            let why = format!("differs from the key length {only}, which is not supported");
            Err(ConfigError::value(keys.name(key), n, why))
        }
    }
}

/// Length of a head: `attention.key_length` (of latent attention `attention.key_length_mla`, which older files lack), or the
/// width over the heads.
pub(crate) fn gguf_head_dim(m: &Metadata<'_>, arch: &str) -> Result<usize, ConfigError> {
    let keys = Keys { m: *m, arch };
    for key in ["attention.key_length_mla", "attention.key_length"] {
        if let Some(n) = keys.size(key)?.filter(|n| *n != 0) {
            return Ok(n);
        }
    }
    let hidden = keys.need("embedding_length")?;
    match keys.uniform("attention.head_count")? {
        Some(heads) if heads != 0 && hidden.is_multiple_of(heads) && hidden >= heads => Ok(hidden / heads),
        _ => Err(ConfigError::value(keys.name("embedding_length"), hidden, "is no multiple of attention.head_count")),
    }
}

/// Per layer, how many keys a query sees (`load_swa_pattern`).
fn windows(keys: &Keys<'_>, kind: Windows, layers: usize, max_len: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    const KEY: &str = "attention.sliding_window";
    const PATTERN: &str = "attention.sliding_window_pattern";
    let window = keys.size(KEY)?.filter(|w| *w != 0);
    let (window, every) = match (kind, window) {
        (Windows::None, Some(w)) if w < max_len => return Err(keys.unsupported(KEY)),
        (Windows::None, _) => (None, None),
        (Windows::All, window) => (window.filter(|w| *w < max_len), None),
        (Windows::Some { default, every }, window) => (window.or(default), Some(every)),
    };
    let Some(every) = every else { return Ok(vec![window; layers]) };
    if let Some(flags) = keys.flags(PATTERN, layers)? {
        if window.is_none() && flags.contains(&true) {
            return Err(keys.missing(KEY));
        }
        return Ok(flags.into_iter().map(|slides| window.filter(|_| slides)).collect());
    }
    // Each layer slides but every so manieth; 0 is all of them.
    let every = keys.size(PATTERN)?.unwrap_or(every);
    Ok((1..=layers).map(|i| window.filter(|_| every == 0 || i % every != 0)).collect())
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
    let original_max_len = keys.size("rope.scaling.original_context_length")?.unwrap_or(max_len);
    if let Some([short, long]) = gguf.rope_factors()? {
        if factor != 1.0 || !matches!(kind, "linear" | "none" | "longrope") {
            return Err(ConfigError::value(
                keys.name("rope.scaling.type"),
                kind,
                "together with rope_factors_long.weight is not supported",
            ));
        }
        return Ok(RopeScaling::Long { short, long, original_max_len, attention_factor: attention });
    }
    let scaling = match kind {
        "yarn" => {
            let positive = |key: &str, default: f64| {
                Ok::<_, ConfigError>(keys.float(key)?.filter(|x| *x > 0.0).unwrap_or(default))
            };
            RopeScaling::Yarn {
                factor,
                original_max_len,
                beta_fast: positive("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: positive("rope.scaling.yarn_beta_slow", 1.0)?,
                // The file's factor comes on top of the derived one.
                attention_factor: (attention != 1.0).then(|| attention * crate::rope::yarn_mscale(factor, 1.0)),
                mscale: None,
                mscale_all_dim: None,
                truncate: true,
            }
        }
        "linear" | "none" if attention != 1.0 => return Err(keys.unsupported("rope.scaling.attn_factor")),
        "none" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        _ => return Err(keys.unsupported("rope.scaling.type")),
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

/// Queries, keys and values in one tensor are cut by the sizes of the config: they must be all that is in it.
fn check_fused(gguf: &Gguf, c: &ModelConfig) -> Result<(), ConfigError> {
    let rows = c.kv_heads.saturating_mul(2).saturating_add(c.heads).saturating_mul(c.head_dim);
    for layer in 0..c.layers {
        let name = format!("blk.{layer}.attn_qkv.weight");
        if let Some((found, _)) = gguf.shape(&name).filter(|(found, _)| *found != rows) {
            return Err(ConfigError::value(name, found, format!("rows; the heads of the metadata have {rows}")));
        }
    }
    Ok(())
}

/// Refuses a tensor that the model does not use.
fn refuse_unused(gguf: &Gguf, keys: &Keys<'_>, c: &ModelConfig) -> Result<(), ConfigError> {
    let program = c.program();
    let used: HashSet<String> = program.weights.iter().filter_map(|decl| gguf.tensor_of(decl)).collect();
    let extra = keys.size("nextn_predict_layers")?.unwrap_or(0);
    let is_extra = |name: &str| {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        layer.is_some_and(|layer| (c.layers..c.layers.saturating_add(extra)).contains(&layer))
    };
    // Derived from the config, in old files.
    let is_derived = |name: &str| name.starts_with("blk.") && name.ends_with(".attn_rot_embd.weight");
    let is_known = |name: &str| used.contains(name) || Gguf::is_config(name) || is_extra(name) || is_derived(name);
    match gguf.tensor_names().filter(|name| !is_known(name)).min() {
        None => Ok(()),
        Some(name) => Err(ConfigError::UnsupportedTensor { name: name.to_owned() }),
    }
}

/// Keys that are read whatever the architecture.
const COMMON: [&str; 21] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
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
