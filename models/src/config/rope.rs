//! Rotary parameters of a `config.json`: `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (5).
//!
//! Semantics follow `modeling_rope_utils.py` of 4.57.6 and 5.23.0. Several places may state the same thing; statements
//! that contradict each other are an error, because the two versions resolve them differently.

use serde_json::Value;

use super::hf::Keys;
use super::keys::{refuse_unknown, short, unsupported};
use super::{ConfigError, RopeConfig, RopeScaling};

pub(super) fn parse(keys: &Keys<'_>, max_len: usize) -> Result<RopeConfig, ConfigError> {
    full_rotation(keys)?;
    let scaling = section(keys, "rope_scaling", "rope_scaling.")?;
    let parameters = section(keys, "rope_parameters", "rope_parameters.")?;

    let mut theta = keys.number("rope_theta")?;
    for part in [&scaling, &parameters].into_iter().flatten() {
        match (theta, part.number("rope_theta")?) {
            (Some(a), Some(b)) if a != b => {
                return Err(ConfigError::value(part.name("rope_theta"), b, format!("contradicts rope_theta = {a}")));
            }
            (a, b) => theta = a.or(b),
        }
    }
    let read = |part: &Option<Keys<'_>>| part.as_ref().map(|part| read_scaling(part, max_len)).transpose();
    let scaling = match (read(&scaling)?, read(&parameters)?) {
        (Some(a), Some(b)) if a != b => {
            let value = short(&keys.map["rope_parameters"]);
            return Err(ConfigError::value("rope_parameters", value, "contradicts rope_scaling"));
        }
        (a, b) => a.or(b).unwrap_or(RopeScaling::None),
    };
    check_outer_original(keys, &scaling)?;
    Ok(RopeConfig { theta: theta.unwrap_or(10_000.0), scaling })
}

impl RopeConfig {
    /// Everything [`crate::rope::RopeTable::new`] divides by or takes a logarithm of.
    pub(super) fn check(&self, head_dim: usize) -> Result<(), ConfigError> {
        let positive = |key: &str, x: f64| {
            let holds = x > 0.0 && x.is_finite();
            if holds { Ok(()) } else { Err(ConfigError::value(key, x, "must be positive and finite")) }
        };
        positive("rope_theta", self.theta)?;
        if self.theta <= 1.0 {
            return Err(ConfigError::value("rope_theta", self.theta, "must exceed 1"));
        }
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("rope factor", *factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_len } => {
                positive("rope factor", *factor)?;
                positive("rope low_freq_factor", *low_freq_factor)?;
                positive("rope high_freq_factor", *high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let why = format!("must exceed low_freq_factor = {low_freq_factor}");
                    return Err(ConfigError::value("rope high_freq_factor", high_freq_factor, why));
                }
                original(*original_max_len)
            }
            RopeScaling::Yarn {
                factor,
                original_max_len,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
                ..
            } => {
                positive("rope factor", *factor)?;
                positive("rope beta_fast", *beta_fast)?;
                positive("rope beta_slow", *beta_slow)?;
                for (key, x) in
                    [("attention_factor", attention_factor), ("mscale", mscale), ("mscale_all_dim", mscale_all_dim)]
                {
                    if let Some(x) = x.filter(|x| !(*x >= 0.0 && x.is_finite())) {
                        return Err(ConfigError::value(format!("rope {key}"), x, "must be finite and not negative"));
                    }
                }
                original(*original_max_len)
            }
            RopeScaling::Divisors(d) if d.len() != head_dim / 2 => {
                Err(ConfigError::value("rope_freqs.weight", d.len(), format!("must have {} divisors", head_dim / 2)))
            }
            RopeScaling::Divisors(d) => d.iter().try_for_each(|&x| positive("rope_freqs.weight", f64::from(x))),
        }
    }
}

fn original(len: usize) -> Result<(), ConfigError> {
    if (1..=super::MAX_LEN).contains(&len) {
        return Ok(());
    }
    let why = format!("must lie in 1..={}", super::MAX_LEN);
    Err(ConfigError::value("rope original_max_position_embeddings", len, why))
}

fn section<'a>(keys: &Keys<'a>, key: &str, path: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
    let Some(value) = keys.get(key) else {
        return Ok(None);
    };
    let map = value.as_object().ok_or_else(|| keys.type_error(key, "an object or null"))?;
    Ok(Some(Keys { map, path }).filter(|k| !k.map.is_empty()))
}

fn read_scaling(keys: &Keys<'_>, max_len: usize) -> Result<RopeScaling, ConfigError> {
    full_rotation(keys)?;
    let kind = match (keys.string("rope_type")?, keys.string("type")?) {
        (Some(a), Some(b)) if a != b => {
            return Err(ConfigError::value(keys.name("rope_type"), a, format!("contradicts type = {b}")));
        }
        (a, b) => a.or(b).unwrap_or("default"),
    };
    const COMMON: &[&str] = &["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    let need = |key: &str| keys.number(key)?.ok_or_else(|| ConfigError::Missing { key: keys.name(key) });
    let original_max_len = || Ok::<_, ConfigError>(keys.whole("original_max_position_embeddings")?.unwrap_or(max_len));
    let only = |more: &[&str]| refuse_unknown(keys.map, keys.path, &[COMMON, more]);
    match kind {
        "default" => {
            only(&[])?;
            Ok(RopeScaling::None)
        }
        "linear" => {
            only(&["factor"])?;
            Ok(RopeScaling::Linear { factor: need("factor")? })
        }
        "llama3" => {
            only(&["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])?;
            Ok(RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_len: original_max_len()?,
            })
        }
        "yarn" => {
            only(&YARN)?;
            let original_max_len = original_max_len()?;
            // 5.23 takes the ratio of the lengths for an explicit null, neither version for an absent key; `factor`
            // wins over the ratio in both.
            let factor = match keys.map.get("factor") {
                Some(Value::Null) => max_len as f64 / original_max_len as f64,
                _ => need("factor")?,
            };
            let or = |key: &str, default: f64| {
                Ok::<_, ConfigError>(keys.number(key)?.filter(|x| *x != 0.0).unwrap_or(default))
            };
            Ok(RopeScaling::Yarn {
                factor,
                original_max_len,
                beta_fast: or("beta_fast", 32.0)?,
                beta_slow: or("beta_slow", 1.0)?,
                attention_factor: keys.number("attention_factor")?,
                mscale: keys.number("mscale")?,
                mscale_all_dim: keys.number("mscale_all_dim")?,
                // an explicit null is false to Python
                truncate: keys.bool("truncate")?.unwrap_or(!keys.map.contains_key("truncate")),
            })
        }
        other => Err(unsupported(&keys.name("rope_type"), &Value::from(other))),
    }
}

const YARN: [&str; 8] = [
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
];

/// Heads are rotated whole.
fn full_rotation(keys: &Keys<'_>) -> Result<(), ConfigError> {
    match keys.number("partial_rotary_factor")? {
        None | Some(1.0) => Ok(()),
        Some(_) => Err(unsupported(&keys.name("partial_rotary_factor"), &keys.map["partial_rotary_factor"])),
    }
}

/// `original_max_position_embeddings` outside the section wins in 5.23 and is ignored in 4.57: it may only repeat.
fn check_outer_original(keys: &Keys<'_>, scaling: &RopeScaling) -> Result<(), ConfigError> {
    const KEY: &str = "original_max_position_embeddings";
    let Some(outer) = keys.whole(KEY)? else {
        return Ok(());
    };
    match scaling {
        RopeScaling::Llama3 { original_max_len, .. } | RopeScaling::Yarn { original_max_len, .. }
            if *original_max_len != outer =>
        {
            Err(unsupported(KEY, &keys.map[KEY]))
        }
        _ => Ok(()),
    }
}

impl Keys<'_> {
    /// A whole number that may be written as `8192.0`.
    fn whole(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        match self.number(key)? {
            None => Ok(None),
            // In this range the conversion is exact.
            Some(x) if x.fract() == 0.0 && (0.0..=super::MAX_LEN as f64).contains(&x) => Ok(Some(x as usize)),
            Some(_) => Err(self.type_error(key, "a whole number of positions")),
        }
    }
}
