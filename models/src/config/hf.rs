//! `config.json` in both generations of the format: what all families share.
//!
//! Semantics follow the configuration classes of transformers 4.57.6 and 5.23.0. Where the two disagree about a file, the
//! file is refused rather than guessed at, unless the model's authors have settled it (`families/deepseek.rs`).

use serde_json::Value;

use super::keys::{Keys, refuse_unknown_of_model};
use super::{ConfigError, MAX_LAYERS, MAX_WIDTH, ModelConfig, keys, rope};
use crate::families::Family;
use crate::program::Act;

pub(super) fn parse(json: &Value) -> Result<ModelConfig, ConfigError> {
    let map = json.as_object().ok_or(ConfigError::NotAnObject)?;
    let outer = Keys::new(map, "", &[]);
    let family = family(&outer)?;
    let definition = family.definition();
    let own: Vec<&str> = definition.aliases.iter().map(|(_, own)| *own).collect();
    let handled = [keys::COMMON, definition.keys, &own];
    let Some(part) = definition.part_of else {
        let keys = Keys::new(map, "", definition.aliases);
        refuse_unknown_of_model(map, "", &handled)?;
        return read(&keys, family)?.validated();
    };
    refuse_unknown_of_model(map, "", &[OUTER, part.beside, &[part.key]])?;
    let inner = outer.section(part.key, part.path)?;
    let inner =
        inner.ok_or_else(|| ConfigError::Missing { key: part.key.to_owned() })?.with_aliases(definition.aliases);
    refuse_unknown_of_model(inner.map(), part.path, &handled)?;
    part_of_a_larger_model(&outer, read(&inner, family)?)?.validated()
}

fn read(keys: &Keys<'_>, family: Family) -> Result<ModelConfig, ConfigError> {
    for (common, own) in family.definition().aliases {
        match (keys.map().get(*common), keys.map().get(*own)) {
            (Some(a), Some(b)) if a != b => {
                return Err(keys.value(own, keys::short(b), format!("contradicts {common} = {}", keys::short(a))));
            }
            _ => {}
        }
    }
    let mut config = common(keys, family)?;
    (family.definition().read)(keys, &mut config)?;
    Ok(config)
}

/// What the config of the whole says about its language model.
fn part_of_a_larger_model(outer: &Keys<'_>, inner: ModelConfig) -> Result<ModelConfig, ConfigError> {
    // 4.57 goes by the inner key, 5.23 by the outer one.
    if outer.flag("tie_word_embeddings", inner.tied)? != inner.tied {
        return Err(outer.unsupported("tie_word_embeddings"));
    }
    let bos = if outer.has("bos_token_id") { token(outer, "bos_token_id", &[])?.first().copied() } else { inner.bos };
    let eos = if outer.has("eos_token_id") { token(outer, "eos_token_id", &[])? } else { inner.eos.clone() };
    Ok(ModelConfig { bos, eos, ..inner })
}

/// Keys that are read beside a section that holds the language model.
const OUTER: &[&str] = &["architectures", "bos_token_id", "eos_token_id", "model_type", "tie_word_embeddings"];

/// What a family's configuration class assumes for absent keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// `None`: as many as query heads.
    pub(crate) kv_heads: Option<usize>,
    /// `None`: the width over the heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) ffn: usize,
    pub(crate) max_len: usize,
    pub(crate) norm_eps: f64,
    pub(crate) tied: bool,
    pub(crate) act: Act,
    pub(crate) theta: f64,
    /// Whether layers with a window have a rope of their own, and its theta.
    pub(crate) local_theta: Option<f64>,
    /// Whether the family can rotate a part of each head, `partial_rotary_factor`, and the part if it does not say.
    pub(crate) partial_rotary: Option<f64>,
    /// Where every rope scaling is LongRoPE: the original length if the config does not say.
    pub(crate) long_rope: Option<usize>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: &'static [u32],
}

impl Defaults {
    pub(crate) const LLAMA: Defaults = Defaults {
        vocab: 32000,
        hidden: 4096,
        layers: 32,
        heads: 32,
        kv_heads: None,
        head_dim: None,
        ffn: 11008,
        max_len: 2048,
        norm_eps: 1e-6,
        tied: false,
        act: Act::Silu,
        theta: 10_000.0,
        local_theta: None,
        partial_rotary: None,
        long_rope: None,
        bos: Some(1),
        eos: &[2],
    };
}

fn common(keys: &Keys<'_>, family: Family) -> Result<ModelConfig, ConfigError> {
    let d = family.definition().defaults;
    // 4.57 does not read it; 5.23 lets every row see every other where it is false.
    keys.may_only_say("is_causal", true)?;
    let layers = keys.size("num_hidden_layers")?.unwrap_or(d.layers);
    if layers > MAX_LAYERS {
        return Err(keys.value("num_hidden_layers", layers, format!("must lie in 1..={MAX_LAYERS}")));
    }
    let hidden = keys.size("hidden_size")?.unwrap_or(d.hidden);
    let heads = keys.size("num_attention_heads")?.unwrap_or(d.heads);
    if heads > MAX_WIDTH {
        return Err(keys.value("num_attention_heads", heads, format!("must lie in 1..={MAX_WIDTH}")));
    }
    let kv_heads = match (keys.size("num_key_value_heads")?, d.kv_heads) {
        (Some(n), _) => n,
        (None, Some(n)) if !keys.has("num_key_value_heads") => n,
        _ => heads,
    };
    let max_len = keys.size("max_position_embeddings")?.unwrap_or(d.max_len);
    let head_dim = head_dim(keys, d.head_dim, hidden, heads)?;
    let (rope, local_rope, width) = rope::parse(keys, &d, head_dim, max_len)?;
    let config = ModelConfig {
        vocab: keys.size("vocab_size")?.unwrap_or(d.vocab),
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn: keys.size("intermediate_size")?.unwrap_or(d.ffn),
        max_len,
        // f32 is what the reference computes with
        norm_eps: keys.number("rms_norm_eps")?.unwrap_or(d.norm_eps) as f32,
        tied: keys.flag("tie_word_embeddings", d.tied)?,
        act: keys.act("hidden_act")?.unwrap_or(d.act),
        bos: token(keys, "bos_token_id", d.bos.as_slice())?.first().copied(),
        eos: token(keys, "eos_token_id", d.eos)?,
        ..ModelConfig::neutral(family)
    };
    Ok(ModelConfig { rope, local_rope, rope_width: width, ..config.with_plain_attention() })
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
    // Files of the first weeks say LLaMAForCausalLM.
    let by_class = |class: &str| Family::ALL.into_iter().find(|f| f.definition().class.eq_ignore_ascii_case(class));
    let unknown = |found: &str| ConfigError::Architecture { found: found.to_owned() };
    match (model_type, class) {
        (None, None) => Err(ConfigError::Missing { key: "model_type".to_owned() }),
        (Some(name), None) => Family::from_name(name).ok_or_else(|| unknown(name)),
        (None, Some(class)) => by_class(class).ok_or_else(|| unknown(class)),
        (Some(name), Some(class)) => {
            let family = Family::from_name(name).ok_or_else(|| unknown(name))?;
            // A head that is not a language model's (LlamaForSequenceClassification) has other weights.
            let is_known = by_class(class) == Some(family) || is_without_head(class, family);
            if is_known { Ok(family) } else { Err(unknown(class)) }
        }
    }
}

/// Whether `class` is what the reference calls the model below the head (`GPT2Model`, `Gemma3TextModel`): its files hold the
/// whole model where the head is tied, and else lack a tensor that will be named. gpt_bigcode's first files call its whole
/// model as gpt2 does.
fn is_without_head(class: &str, family: Family) -> bool {
    let stem = |class: &'_ str, ends: &[&str]| ends.iter().find_map(|end| class.strip_suffix(end).map(str::to_owned));
    let own = stem(family.definition().class, &["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"]);
    own.is_some() && own == stem(class, &["LMHeadModel", "TextModel", "Model"])
}

fn head_dim(keys: &Keys<'_>, default: Option<usize>, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
    match (keys.size("head_dim")?, default) {
        (Some(n), _) => Ok(n),
        (None, Some(n)) if !keys.has("head_dim") => Ok(n),
        // transformers cannot build such a model
        (None, Some(_)) => Err(keys.type_error("head_dim", "a number")),
        (None, None) if heads == 0 || !hidden.is_multiple_of(heads) => {
            Err(keys.value("hidden_size", hidden, format!("is not a multiple of num_attention_heads = {heads}")))
        }
        (None, None) => Ok(hidden / heads),
    }
}

/// One token id, a list of them, or none.
fn token(keys: &Keys<'_>, key: &str, default: &[u32]) -> Result<Vec<u32>, ConfigError> {
    match keys.raw(key) {
        None => Ok(default.to_vec()),
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
