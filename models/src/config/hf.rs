//! `config.json` in both generations of the format.
//!
//! Semantics follow `configuration_{llama,mistral,qwen2,qwen3}.py` of transformers 4.57.6 and 5.23.0. Where the two
//! disagree about a file, the file is refused rather than guessed at.

use serde_json::{Map, Value};

use super::keys::{self, refuse_unknown, short, unsupported};
use super::{Biases, ConfigError, Family, ModelConfig, rope};

pub(super) fn parse(json: &Value) -> Result<ModelConfig, ConfigError> {
    let keys = Keys { map: json.as_object().ok_or(ConfigError::NotAnObject)?, path: "" };
    let family = family(&keys)?;
    refuse_unknown(keys.map, "", &[keys::COMMON, keys::of_family(family)])?;
    let d = Defaults::of(family);

    let act = keys.get("hidden_act").and_then(Value::as_str);
    if keys.get("hidden_act").is_some() && !matches!(act, Some("silu" | "swish")) {
        return Err(unsupported("hidden_act", &keys.map["hidden_act"]));
    }
    let layers = keys.size("num_hidden_layers")?.unwrap_or(32);
    if layers > super::MAX_LAYERS {
        return Err(ConfigError::value("num_hidden_layers", layers, format!("must lie in 1..={}", super::MAX_LAYERS)));
    }
    let hidden = keys.size("hidden_size")?.unwrap_or(4096);
    let heads = keys.size("num_attention_heads")?.unwrap_or(32);
    let kv_heads = match (keys.size("num_key_value_heads")?, d.kv_heads) {
        (Some(n), _) => n,
        (None, Some(n)) if !keys.map.contains_key("num_key_value_heads") => n,
        _ => heads,
    };
    let max_len = keys.size("max_position_embeddings")?.unwrap_or(d.max_len);
    let attention_bias = keys.bool("attention_bias")?.unwrap_or(false);
    ModelConfig {
        family,
        vocab: keys.size("vocab_size")?.unwrap_or(d.vocab),
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim: head_dim(&keys, family, hidden, heads)?,
        ffn: keys.size("intermediate_size")?.unwrap_or(d.ffn),
        max_len,
        // f32 is what the reference computes with
        norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        tied: keys.bool("tie_word_embeddings")?.unwrap_or(false),
        rope: rope::parse(&keys, max_len)?,
        bias: match family {
            Family::Llama | Family::Qwen3 => Biases {
                qkv: attention_bias,
                o: attention_bias,
                mlp: family == Family::Llama && keys.bool("mlp_bias")?.unwrap_or(false),
            },
            Family::Mistral => Biases::default(),
            Family::Qwen2 => Biases { qkv: true, o: false, mlp: false },
        },
        head_norms: family == Family::Qwen3,
        windows: windows(&keys, family, layers)?,
        bos: token(&keys, "bos_token_id", d.bos)?.first().copied(),
        eos: token(&keys, "eos_token_id", d.eos)?,
    }
    .validated()
}

/// What a family's configuration class assumes for an absent key; keys with one default for all are read in place.
struct Defaults {
    vocab: usize,
    ffn: usize,
    kv_heads: Option<usize>,
    max_len: usize,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Defaults {
    fn of(family: Family) -> Self {
        let (bos, eos) = (Some(1), Some(2));
        match family {
            Family::Llama => Defaults { vocab: 32000, ffn: 11008, kv_heads: None, max_len: 2048, bos, eos },
            Family::Mistral => Defaults { vocab: 32000, ffn: 14336, kv_heads: Some(8), max_len: 131_072, bos, eos },
            Family::Qwen2 | Family::Qwen3 => {
                Defaults { vocab: 151_936, ffn: 22016, kv_heads: Some(32), max_len: 32768, bos: None, eos: None }
            }
        }
    }
}

fn family(keys: &Keys<'_>) -> Result<Family, ConfigError> {
    let class = match keys.get("architectures") {
        None => None,
        Some(Value::Array(names)) => match names.as_slice() {
            [] => None,
            [Value::String(name)] => Some(name.as_str()),
            _ => return Err(keys.type_error("architectures", "a list of one name")),
        },
        Some(_) => return Err(keys.type_error("architectures", "a list of one name")),
    };
    let model_type = match keys.get("model_type") {
        None => None,
        Some(Value::String(name)) => Some(name.as_str()),
        Some(_) => return Err(keys.type_error("model_type", "a string")),
    };
    let by_class = |class: &str| {
        // Files of the first weeks say LLaMAForCausalLM.
        let name = class.to_ascii_lowercase();
        name.strip_suffix("forcausallm").and_then(Family::from_name)
    };
    let unknown = |found: &str| ConfigError::Architecture { found: found.to_owned() };
    match (model_type, class) {
        (None, None) => Err(ConfigError::Missing { key: "model_type".to_owned() }),
        (Some(name), None) => Family::from_name(name).ok_or_else(|| unknown(name)),
        (None, Some(class)) => by_class(class).ok_or_else(|| unknown(class)),
        (Some(name), Some(class)) => {
            let family = Family::from_name(name).ok_or_else(|| unknown(name))?;
            // A head that is not a language model's (LlamaForSequenceClassification) has other weights.
            if by_class(class) == Some(family) { Ok(family) } else { Err(unknown(class)) }
        }
    }
}

fn head_dim(keys: &Keys<'_>, family: Family, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
    if let Some(n) = keys.size("head_dim")? {
        return Ok(n);
    }
    match (family, keys.map.contains_key("head_dim")) {
        (Family::Qwen3, false) => Ok(128),
        // transformers cannot build such a model
        (Family::Qwen3, true) => Err(keys.type_error("head_dim", "a number")),
        _ if heads == 0 || !hidden.is_multiple_of(heads) => Err(ConfigError::value(
            "hidden_size",
            hidden,
            format!("is not a multiple of num_attention_heads = {heads}"),
        )),
        _ => Ok(hidden / heads),
    }
}

/// Per layer, how many keys a query sees.
fn windows(keys: &Keys<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let window = || match keys.map.get("sliding_window") {
        None => Ok(Some(4096)),
        Some(_) => keys.size("sliding_window"),
    };
    let (window, from_layer) = match family {
        Family::Llama => (None, 0),
        Family::Mistral => (window()?, 0),
        Family::Qwen2 | Family::Qwen3 if keys.bool("use_sliding_window")?.unwrap_or(false) => {
            (window()?, keys.size("max_window_layers")?.unwrap_or(28))
        }
        Family::Qwen2 | Family::Qwen3 => (None, 0),
    };
    let derived: Vec<_> = (0..layers).map(|i| window.filter(|_| i >= from_layer)).collect();
    let Some(types) = keys.get("layer_types") else {
        return Ok(derived);
    };
    let types = types.as_array().ok_or_else(|| keys.type_error("layer_types", "a list"))?;
    if types.len() != layers {
        let why = format!("must have one entry for each of {layers} layers");
        return Err(ConfigError::value("layer_types", format!("{} entries", types.len()), why));
    }
    let mut given = Vec::with_capacity(layers);
    for (i, t) in types.iter().enumerate() {
        given.push(match t.as_str() {
            Some("full_attention") => None,
            Some("sliding_attention") if window.is_some() => window,
            Some("sliding_attention") => {
                let why = "needs a sliding_window that is in use";
                return Err(ConfigError::value(format!("layer_types[{i}]"), short(t), why));
            }
            _ => return Err(unsupported(&format!("layer_types[{i}]"), t)),
        });
    }
    // llama and mistral ignore the key: it may only say what they do anyway.
    if matches!(family, Family::Llama | Family::Mistral) && given != derived {
        return Err(unsupported("layer_types", &keys.map["layer_types"]));
    }
    Ok(given)
}

/// One token id, a list of them, or none.
fn token(keys: &Keys<'_>, key: &str, default: Option<u32>) -> Result<Vec<u32>, ConfigError> {
    match keys.map.get(key) {
        None => Ok(default.into_iter().collect()),
        Some(value) => token_ids(value).ok_or_else(|| keys.type_error(key, "a token id, a list of them, or null")),
    }
}

/// Token ids as config.json and generation_config.json write them; `None` where the value is something else.
pub(crate) fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Value::Null => Some(vec![]),
        Value::Array(list) => list.iter().map(id).collect(),
        // -1 is how some files write "none".
        one if one.as_i64() == Some(-1) => Some(vec![]),
        one => id(one).map(|id| vec![id]),
    }
}

/// Typed access to an object's keys; `null` counts as absent.
pub(super) struct Keys<'a> {
    pub(super) map: &'a Map<String, Value>,
    /// Prefix of the keys in errors.
    pub(super) path: &'static str,
}

impl<'a> Keys<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.get(key).map(|v| size(v).ok_or_else(|| self.type_error(key, "a whole number"))).transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| self.type_error(key, "a number"))).transpose()
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.type_error(key, "true or false"))).transpose()
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.type_error(key, "a string"))).transpose()
    }

    pub(super) fn type_error(&self, key: &str, expected: &'static str) -> ConfigError {
        let value = self.map.get(key).map_or_else(|| "absent".to_owned(), short);
        ConfigError::Type { key: self.name(key), expected, value }
    }

    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }
}
