//! Rotary parameters of a `config.json`: `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (5).
//!
//! Semantics follow `modeling_rope_utils.py` of 4.57.6 and 5.23.0. Several places may state the same thing; statements
//! that contradict each other are an error, because the two versions resolve them differently.

use serde_json::Value;

use super::hf::Defaults;
use super::keys::{Keys, refuse_unknown, short, unsupported};
use super::{ConfigError, RopeConfig, RopeScaling};

/// The rotary embedding, that of the layers with a window where they have their own, and how many values of a head they
/// rotate.
pub(super) fn parse(
    keys: &Keys<'_>,
    d: &Defaults,
    head_dim: usize,
    max_len: usize,
) -> Result<(RopeConfig, Option<RopeConfig>, usize), ConfigError> {
    let scaling = keys.section("rope_scaling", SCALING)?;
    let parameters = keys.section("rope_parameters", "rope_parameters.")?;
    let (parameters, local) = match (parameters, d.local_theta) {
        (Some(both), Some(_)) => by_layer_type(&both)?,
        (parameters, _) => (parameters, None),
    };
    let sections = || [&scaling, &parameters].into_iter().flatten();
    let part = agreed(keys, PART, PART, sections().chain(&local))?;
    let width = match (part, d.partial_rotary) {
        (None | Some(1.0), None) => head_dim,
        (Some(x), None) => return Err(ConfigError::UnsupportedKey { key: PART.to_owned(), value: x.to_string() }),
        (part, Some(default)) => {
            let part = part.unwrap_or(default);
            if !(part > 0.0 && part <= 1.0) {
                return Err(ConfigError::value(PART, part, "must lie in 0..=1 and not be 0"));
            }
            // as Python's int(head_dim * factor)
            (head_dim.min(super::MAX_HEAD_DIM) as f64 * part) as usize
        }
    };
    let theta = agreed(keys, THETA, THETA, sections())?.unwrap_or(d.theta);
    let outer = keys.whole("original_max_position_embeddings")?;
    let read = |part: &Option<Keys<'_>>| {
        let lengths = Lengths { max: max_len, outer: outer.or(d.long_rope), width };
        part.as_ref().map(|part| read_scaling(part, lengths, d.long_rope.is_some())).transpose()
    };
    let scaling = match (read(&scaling)?, read(&parameters)?) {
        (Some(a), Some(b)) if a != b => {
            let value = short(&keys.map()["rope_parameters"]);
            return Err(ConfigError::value("rope_parameters", value, "contradicts rope_scaling"));
        }
        (a, b) => a.or(b).unwrap_or(RopeScaling::None),
    };
    check_outer_original(keys, &scaling)?;
    let local = match d.local_theta {
        None => None,
        Some(default) => {
            let theta = agreed(keys, "rope_local_base_freq", THETA, local.iter())?.unwrap_or(default);
            Some(RopeConfig { theta, scaling: read(&local)?.unwrap_or(RopeScaling::None) })
        }
    };
    Ok((RopeConfig { theta, scaling }, local, width))
}

/// `rope_parameters` of a family whose layers with a window have a rope of their own: one section for each kind of layer.
fn by_layer_type<'a>(both: &Keys<'a>) -> Result<(Option<Keys<'a>>, Option<Keys<'a>>), ConfigError> {
    refuse_unknown(both.map(), both.path(), &[&["full_attention", "sliding_attention"]])?;
    let full = both.section("full_attention", "rope_parameters.full_attention.")?;
    Ok((full, both.section("sliding_attention", "rope_parameters.sliding_attention.")?))
}

/// A number that the config may state as `key` and its sections as `inner`; they must agree.
fn agreed<'k>(
    keys: &Keys<'_>,
    key: &str,
    inner: &str,
    sections: impl Iterator<Item = &'k Keys<'k>>,
) -> Result<Option<f64>, ConfigError> {
    let mut found = keys.number(key)?;
    for part in sections {
        match (found, part.number(inner)?) {
            (Some(a), Some(b)) if a != b => return Err(part.value(inner, b, format!("contradicts {key} = {a}"))),
            (a, b) => found = a.or(b),
        }
    }
    Ok(found)
}

impl RopeConfig {
    /// Everything [`crate::rope::RopeTable::new`] divides by or takes a logarithm of.
    pub(super) fn check(&self, width: usize) -> Result<(), ConfigError> {
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
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => positive("rope factor", *factor),
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
            RopeScaling::Long { short, long, .. } if short.len() != width / 2 || long.len() != width / 2 => {
                let lengths = format!("{} and {}", short.len(), long.len());
                let why = format!("must have {} factors each, one for every pair that is rotated", width / 2);
                Err(ConfigError::value("rope short_factor and long_factor", lengths, why))
            }
            RopeScaling::Long { short, long, original_max_len, attention_factor } => {
                short.iter().chain(long).try_for_each(|&x| positive("rope factor", x))?;
                positive("rope attention_factor", *attention_factor)?;
                original(*original_max_len)
            }
            RopeScaling::Divisors(d) if d.len() != width / 2 => {
                Err(ConfigError::value("rope_freqs.weight", d.len(), format!("must have {} divisors", width / 2)))
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

/// What scalings are relative to.
#[derive(Clone, Copy)]
struct Lengths {
    /// `max_position_embeddings`.
    max: usize,
    /// `original_max_position_embeddings` beside the section, or what its absence stands for.
    outer: Option<usize>,
    /// Rotated values of a head.
    width: usize,
}

/// A section; `only_long` where every scaling of the family is LongRoPE, whatever files call it.
fn read_scaling(keys: &Keys<'_>, lengths: Lengths, only_long: bool) -> Result<RopeScaling, ConfigError> {
    let max_len = lengths.max;
    // `su` is what phi3 called it first; its class takes `yarn` for the same.
    let canonical = |kind| if kind == "su" || only_long && kind == "yarn" { "longrope" } else { kind };
    let kind = |key| Ok::<_, ConfigError>(keys.string(key)?.map(canonical));
    let kind = match (kind("rope_type")?, kind("type")?) {
        (Some(a), Some(b)) if a != b => {
            return Err(ConfigError::value(keys.name("rope_type"), a, format!("contradicts type = {b}")));
        }
        (a, b) => a.or(b).unwrap_or("default"),
    };
    const COMMON: &[&str] = &["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    let need = |key: &str| keys.number(key)?.ok_or_else(|| ConfigError::Missing { key: keys.name(key) });
    let original_max_len = || Ok::<_, ConfigError>(keys.whole("original_max_position_embeddings")?.unwrap_or(max_len));
    let only = |more: &[&str]| refuse_unknown(keys.map(), keys.path(), &[COMMON, more]);
    match kind {
        "default" => {
            only(&[])?;
            Ok(RopeScaling::None)
        }
        other if only_long && other != "longrope" => Err(unsupported(&keys.name("rope_type"), &Value::from(other))),
        "linear" => {
            only(&["factor"])?;
            Ok(RopeScaling::Linear { factor: need("factor")? })
        }
        "dynamic" => {
            const ORIGINAL: &str = "original_max_position_embeddings";
            only(&["factor", ORIGINAL])?;
            // Neither version goes by it.
            match keys.whole(ORIGINAL)? {
                Some(original) if original != max_len => Err(keys.unsupported(ORIGINAL)),
                _ => Ok(RopeScaling::Dynamic { factor: need("factor")? }),
            }
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
            let factor = match keys.raw("factor") {
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
                truncate: keys.bool("truncate")?.unwrap_or(!keys.has("truncate")),
            })
        }
        "longrope" => {
            only(&["short_factor", "long_factor", "factor", "attention_factor", "original_max_position_embeddings"])?;
            read_long(keys, lengths)
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

/// LongRoPE as `_compute_longrope_parameters` has it. The original length beside the section wins in both versions. They
/// disagree where `rope_scaling` has one of its own, and where a `factor` is not the ratio of the lengths: 4.57 keeps to
/// the ratio, 5.23 to the factor. `rope_parameters` is 5.23's alone.
fn read_long(keys: &Keys<'_>, lengths: Lengths) -> Result<RopeScaling, ConfigError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let is_disputed = keys.path() == SCALING;
    let inner = keys.whole(ORIGINAL)?;
    let given = keys.number("factor")?;
    match (lengths.outer, inner) {
        (Some(a), Some(b)) if a != b => {
            return Err(keys.value(ORIGINAL, b, format!("contradicts {ORIGINAL} = {a}")));
        }
        // Without a factor of any kind 4.57 cannot build the model.
        (None, Some(b)) if is_disputed && b != lengths.max && (given.is_some() || keys.has("attention_factor")) => {
            return Err(keys.unsupported(ORIGINAL));
        }
        _ => {}
    }
    let original = lengths.outer.or(inner);
    original.map_or(Ok(()), self::original)?;
    let factor = match (given, original.map(|original| lengths.max as f64 / original as f64)) {
        (Some(given), Some(ratio)) if is_disputed && given != ratio => return Err(keys.unsupported("factor")),
        (given, ratio) => given.or(ratio),
    };
    let original_max_len = original.unwrap_or(lengths.max);
    let attention_factor = match (keys.number("attention_factor")?, factor) {
        (Some(x), _) => x,
        (None, None) => return Err(ConfigError::Missing { key: keys.name("factor") }),
        (None, Some(factor)) if factor <= 1.0 => 1.0,
        (None, Some(factor)) => (1.0 + factor.ln() / (original_max_len as f64).ln()).sqrt(),
    };
    let list = |key: &str| {
        let number = |v: &Value| v.as_f64().filter(|x| *x > 0.0 && x.is_finite());
        let numbers = keys.get(key).and_then(Value::as_array).and_then(|l| l.iter().map(number).collect());
        let numbers: Vec<f64> = numbers.ok_or_else(|| keys.type_error(key, "a list of positive numbers"))?;
        match numbers.len() == lengths.width / 2 {
            true => Ok(numbers),
            false => Err(keys.value(
                key,
                format!("{} factors", numbers.len()),
                format!("must have one for each of {} pairs", lengths.width / 2),
            )),
        }
    };
    Ok(RopeScaling::Long {
        short: list("short_factor")?,
        long: list("long_factor")?,
        original_max_len,
        attention_factor,
    })
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
            Err(keys.unsupported(KEY))
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

const SCALING: &str = "rope_scaling.";
const PART: &str = "partial_rotary_factor";
const THETA: &str = "rope_theta";
