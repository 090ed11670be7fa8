//! The `compressed-tensors` config: groups of modules with a scheme each, of which every one must store weights alike.

use serde_json::Value;

use super::{ACTIVATIONS, Group, Method, PATH, Quantization, ScaleOf, bits, block, group, refused};
use crate::config::ConfigError;
use crate::config::keys::Keys;
use crate::config::keys::{refuse_unknown, short, unsupported};

/// `None` where the weights are stored plain.
pub(super) fn parse(keys: &Keys<'_>) -> Result<Option<Quantization>, ConfigError> {
    refuse_unknown(keys.map(), PATH, &[KEYS])?;
    let mut notes = vec![];
    for key in ["sparsity_config", "transform_config"] {
        refuse_active(keys, key)?;
    }
    if let Some(scheme) = keys.get("kv_cache_scheme") {
        notes.push(format!("the cache is not stored as the file asks ({}): its type is set apart", kind(scheme)));
    }
    let format = keys.string("format")?.unwrap_or("dense");
    if format == "dense" {
        return Ok(None);
    }
    let groups = keys.get("config_groups").and_then(Value::as_object).filter(|g| !g.is_empty());
    let groups = groups.ok_or_else(|| keys.type_error("config_groups", "an object of at least one scheme"))?;
    let mut found: Option<Method> = None;
    for scheme in groups.values() {
        let map = scheme.as_object().ok_or_else(|| keys.type_error("config_groups", "an object of schemes"))?;
        let scheme = Keys::new(map, GROUP, &[]);
        refuse_unknown(map, GROUP, &[&["format", "input_activations", "targets", "weights"]])?;
        let format = scheme.string("format")?.unwrap_or(format);
        let weights = scheme.get("weights").and_then(Value::as_object);
        let weights = weights.ok_or_else(|| scheme.type_error("weights", "an object"))?;
        let method = weights_of(&Keys::new(weights, WEIGHTS, &[]), keys, format)?;
        if found.is_some_and(|first| first != method) {
            let value = format!("{} schemes", groups.len());
            return Err(refused(keys, "config_groups", &value, "schemes that store weights alike"));
        }
        found = Some(method);
        if let Some(activations) = scheme.get("input_activations") {
            let note = format!("activations are not quantised as the file asks ({}): {ACTIVATIONS}", kind(activations));
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    Ok(found.map(|method| Quantization { method, notes }))
}

fn weights_of(keys: &Keys<'_>, config: &Keys<'_>, format: &str) -> Result<Method, ConfigError> {
    refuse_unknown(keys.map(), WEIGHTS, &[WEIGHT_KEYS])?;
    if let Some(dynamic) = keys.get("dynamic").filter(|d| **d != Value::Bool(false)) {
        return Err(unsupported(&keys.name("dynamic"), dynamic));
    }
    let symmetric = keys.bool("symmetric")?.unwrap_or(true);
    let scale = scale_of(keys)?;
    let kind = keys.string("type")?.unwrap_or("int");
    let packed = match format {
        "pack-quantized" => true,
        "int-quantized" | "float-quantized" | "naive-quantized" => false,
        other => {
            let supported = "pack-quantized, int-quantized, float-quantized, naive-quantized, dense";
            return Err(refused(config, "format", other, supported));
        }
    };
    let reordered = match keys.get("actorder").map(|a| (a, a.as_str())) {
        None | Some((Value::Bool(false), _) | (_, Some("weight" | "static"))) => false,
        Some((_, Some("group" | "dynamic")) | (Value::Bool(true), _)) if packed => true,
        Some((value, _)) => return Err(unsupported(&keys.name("actorder"), value)),
    };
    match (kind, packed) {
        ("int", true) => Ok(Method::Packed { bits: bits(keys, "num_bits", &[4, 8])?, scale, symmetric, reordered }),
        ("int", false) => bits(keys, "num_bits", &[8]).map(|_| Method::Int8 { scale, symmetric }),
        ("float", false) if symmetric => bits(keys, "num_bits", &[8]).map(|_| Method::Fp8 { scale, compressed: true }),
        ("float", false) => Err(refused(keys, "symmetric", "false", "true for type float")),
        (other, _) => Err(refused(keys, "type", other, if packed { "int" } else { "int, float" })),
    }
}

/// What shares a scale; as `QuantizationArgs` derives it where the strategy is absent.
fn scale_of(keys: &Keys<'_>) -> Result<ScaleOf, ConfigError> {
    let strategy = match (keys.string("strategy")?, keys.get("group_size").is_some()) {
        (Some(strategy), _) => strategy,
        (None, true) => "group",
        (None, false) => "tensor",
    };
    match strategy {
        "tensor" => Ok(ScaleOf::Tensor),
        "channel" => Ok(ScaleOf::Row(Group::Row)),
        "group" => group(keys, "group_size").map(ScaleOf::Row),
        "block" => {
            let missing = || ConfigError::Missing { key: keys.name("block_structure") };
            block(keys, "block_structure", keys.get("block_structure").ok_or_else(missing)?)
        }
        other => Err(refused(keys, "strategy", other, "tensor, channel, group, block")),
    }
}

/// Refuses a part of the config that does something. Files carry both with a `format` or list that says: nothing.
fn refuse_active(keys: &Keys<'_>, key: &str) -> Result<(), ConfigError> {
    let Some(value) = keys.get(key) else { return Ok(()) };
    let plain = match value {
        Value::Object(map) if map.is_empty() => true,
        value if key == "sparsity_config" => value.get("format").and_then(Value::as_str) == Some("dense"),
        value => value.get("config_groups").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty),
    };
    if plain { Ok(()) } else { Err(unsupported(&keys.name(key), value)) }
}

/// What a scheme of activations or of the cache says, in a few words.
fn kind(scheme: &Value) -> String {
    let kind = scheme.get("type").and_then(Value::as_str).unwrap_or("int");
    let bits = scheme.get("num_bits").and_then(Value::as_u64).unwrap_or(8);
    match scheme.get("strategy").and_then(Value::as_str) {
        Some(strategy) => short(&format!("{kind}{bits} per {strategy}").into()).replace('"', ""),
        None => short(&format!("{kind}{bits}").into()).replace('"', ""),
    }
}

const GROUP: &str = "quantization_config.config_groups.*.";
const WEIGHTS: &str = "quantization_config.config_groups.*.weights.";

const KEYS: &[&str] = &[
    "config_groups",
    "format",
    "global_compression_ratio",
    "ignore",
    "kv_cache_scheme",
    "quant_method",
    "quantization_status",
    "run_compressed",
    "sparsity_config",
    "transform_config",
    "version",
];

/// An observer is how scales were found; their types stand in the file.
const WEIGHT_KEYS: &[&str] = &[
    "actorder",
    "block_structure",
    "dynamic",
    "group_size",
    "num_bits",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "strategy",
    "symmetric",
    "type",
    "zp_dtype",
];
