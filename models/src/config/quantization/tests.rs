//! What is read of published quantisation configs, and what is refused.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn parse(quantization: Value) -> Result<Option<Quantization>, ConfigError> {
    Quantization::from_hf_json(&json!({"quantization_config": quantization}))
}

fn method(quantization: Value) -> Method {
    parse(quantization).unwrap().unwrap().method
}

fn error(quantization: Value) -> String {
    parse(quantization.clone()).err().unwrap_or_else(|| panic!("{quantization} is refused")).to_string()
}

fn with(mut base: Value, key: &str, value: Value) -> Value {
    base[key] = value;
    base
}

fn gptq() -> Value {
    json!({"bits": 4, "group_size": 128, "damp_percent": 0.1, "desc_act": false, "sym": true, "true_sequential": true,
           "model_name_or_path": null, "model_file_base_name": "model", "quant_method": "gptq"})
}

fn awq() -> Value {
    json!({"bits": 4, "group_size": 128, "modules_to_not_convert": null, "quant_method": "awq", "version": "gemm",
           "zero_point": true})
}

fn compressed(weights: Value, format: &str) -> Value {
    let group = json!({"targets": ["Linear"], "output_activations": null, "weights": weights, "input_activations": {
        "dynamic": true, "num_bits": 8, "strategy": "token", "symmetric": true, "type": "int"}});
    json!({"config_groups": {"group_0": group}, "format": format, "ignore": ["lm_head"], "kv_cache_scheme": null,
           "quant_method": "compressed-tensors", "quantization_status": "frozen", "global_compression_ratio": 1.24})
}

fn channel(kind: &str) -> Value {
    json!({"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": true, "dynamic": false, "group_size": null,
           "observer": "minmax", "observer_kwargs": {}, "block_structure": null, "actorder": null})
}

#[test]
fn published_configs_are_understood() {
    let group = Group::Of(128);
    let v1 = Method::Gptq { bits: 4, group, zeros_less_one: true };
    assert_eq!(method(gptq()), v1);
    assert_eq!(method(with(gptq(), "checkpoint_format", json!("gptq"))), v1);
    let v2 = Method::Gptq { bits: 4, group, zeros_less_one: false };
    assert_eq!(method(with(gptq(), "checkpoint_format", json!("gptq_v2"))), v2);
    let rows = Method::Gptq { bits: 8, group: Group::Row, zeros_less_one: true };
    assert_eq!(method(with(with(gptq(), "group_size", json!(-1)), "bits", json!(8))), rows);
    assert_eq!(method(awq()), Method::Awq { group });
    assert_eq!(
        method(json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": true})),
        Method::Awq { group: Group::Of(64) }
    );
    let scale = ScaleOf::Row(Group::Row);
    assert_eq!(method(compressed(channel("int"), "int-quantized")), Method::Int8 { scale, symmetric: true });
    assert_eq!(method(compressed(channel("float"), "float-quantized")), Method::Fp8 { scale, compressed: true });
    assert_eq!(method(compressed(channel("float"), "naive-quantized")), Method::Fp8 { scale, compressed: true });
    let packed = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": false,
                        "actorder": "group"});
    let scale = ScaleOf::Row(group);
    assert_eq!(
        method(compressed(packed, "pack-quantized")),
        Method::Packed { bits: 4, scale, symmetric: false, reordered: true }
    );
    let block = with(with(channel("float"), "strategy", json!("block")), "block_structure", json!([128, 128]));
    let scale = ScaleOf::Block(128, 128);
    assert_eq!(method(compressed(block, "float-quantized")), Method::Fp8 { scale, compressed: true });
    let deepseek = json!({"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
                          "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]});
    assert_eq!(method(deepseek), Method::Fp8 { scale, compressed: false });
    let tensor = json!({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]});
    assert_eq!(method(tensor), Method::Fp8 { scale: ScaleOf::Tensor, compressed: false });
    assert_eq!(method(json!({"quant_method": "mxfp4", "modules_to_not_convert": []})), Method::Mxfp4);
    let old = json!({"compression_config": compressed(channel("int"), "int-quantized")});
    assert!(Quantization::from_hf_json(&old).unwrap().is_some());
}

#[test]
fn no_config_and_a_dense_one_are_none() {
    for json in [json!({}), json!({"quantization_config": null}), json!({"quantization_config": {}})] {
        assert_eq!(Quantization::from_hf_json(&json).unwrap(), None);
    }
    assert_eq!(parse(compressed(channel("int"), "dense")).unwrap(), None);
}

#[test]
fn what_changes_values_and_is_not_understood_is_named() {
    let int = || compressed(channel("int"), "int-quantized");
    let weights = |key: &str, value: Value| compressed(with(channel("int"), key, value), "int-quantized");
    for (config, words) in [
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), ["quant_method", "bitsandbytes"]),
        (json!({"quant_method": "fbgemm_fp8"}), ["quant_method", "fbgemm_fp8"]),
        (json!({"quant_method": "hqq"}), ["quant_method", "hqq"]),
        (json!({"bits": 4, "group_size": 128}), ["quant_method", "missing"]),
        (json!("gptq"), ["quantization_config", "object"]),
        (with(gptq(), "bits", json!(2)), ["bits", "2"]),
        (with(gptq(), "bits", json!(3)), ["bits", "3"]),
        (with(gptq(), "group_size", json!(0)), ["group_size", "0"]),
        (with(gptq(), "group_size", json!(-2)), ["group_size", "-2"]),
        (with(gptq(), "group_size", Value::Null), ["group_size", "missing"]),
        (with(gptq(), "checkpoint_format", json!("marlin")), ["checkpoint_format", "marlin"]),
        (with(gptq(), "is_marlin_format", json!(true)), ["is_marlin_format", "true"]),
        (with(gptq(), "dynamic", json!({"-:.*": {}})), ["dynamic", "-:"]),
        (with(gptq(), "pack_dtype", json!("int64")), ["pack_dtype", "int64"]),
        (with(gptq(), "rotation", json!("hadamard")), ["rotation", "hadamard"]),
        (with(awq(), "version", json!("gemv")), ["version", "gemv"]),
        (with(awq(), "bits", json!(8)), ["bits", "8"]),
        (with(awq(), "zero_point", json!(false)), ["zero_point", "false"]),
        (compressed(channel("int"), "marlin-24"), ["format", "marlin-24"]),
        (compressed(channel("float"), "nvfp4-pack-quantized"), ["format", "nvfp4-pack-quantized"]),
        (weights("num_bits", json!(4)), ["weights.num_bits", "4"]),
        (weights("dynamic", json!(true)), ["weights.dynamic", "true"]),
        (weights("strategy", json!("tensor_group")), ["weights.strategy", "tensor_group"]),
        (weights("actorder", json!("group")), ["weights.actorder", "group"]),
        (weights("outliers", json!(3)), ["weights.outliers", "3"]),
        (with(int(), "sparsity_config", json!({"format": "sparse-24-bitmask"})), ["sparsity_config", "sparse-24"]),
        (with(int(), "transform_config", json!({"config_groups": {"r1": {}}})), ["transform_config", "r1"]),
        (with(int(), "config_groups", json!({})), ["config_groups", "{}"]),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), ["fmt", "e5m2"]),
        (json!({"quant_method": "fp8", "weight_block_size": [128, 0]}), ["weight_block_size", "128"]),
        (json!({"quant_method": "fp8", "weight_block_size": [128]}), ["weight_block_size", "128"]),
    ] {
        let error = error(config);
        assert!(words.iter().all(|w| error.contains(w)) && error.contains("quantization_config"), "{error}");
    }
    let mut two = int();
    two["config_groups"]["group_1"] = two["config_groups"]["group_0"].clone();
    assert!(parse(two.clone()).is_ok(), "schemes that differ in their targets alone");
    two["config_groups"]["group_1"]["weights"]["strategy"] = json!("tensor");
    assert!(error(two).contains("2 schemes"));
    let mut outputs = int();
    outputs["config_groups"]["group_0"]["output_activations"] = json!({"num_bits": 8});
    assert!(error(outputs).contains("output_activations"));
}

#[test]
fn what_is_done_otherwise_is_noted() {
    let mut config = compressed(channel("int"), "int-quantized");
    config["kv_cache_scheme"] = json!({"num_bits": 8, "type": "float", "strategy": "tensor"});
    let notes = parse(config).unwrap().unwrap().notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("cache") && notes[0].contains("float8 per tensor"), "{notes:?}");
    assert!(notes[1].contains("activations") && notes[1].contains("int8 per token"), "{notes:?}");
    let fp8 = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    assert!(parse(fp8).unwrap().unwrap().notes[0].contains("fp8"));
    assert!(parse(gptq()).unwrap().unwrap().notes.is_empty());
}

proptest! {
    #[test]
    fn any_value_of_any_key_is_a_value_or_an_error(
        base in 0usize..5,
        at in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(json!(null)), Just(json!([])), Just(json!({"a": {}})), any::<i64>().prop_map(|n| json!(n)),
            any::<f64>().prop_map(|n| json!(n)), any::<bool>().prop_map(|b| json!(b)), ".{0,200}".prop_map(|s| json!(s)),
            prop::collection::vec(any::<i64>(), 0..3).prop_map(|v| json!(v)),
        ],
    ) {
        let mut config = match base {
            0 => gptq(),
            1 => awq(),
            2 => compressed(channel("int"), "int-quantized"),
            3 => json!({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}),
            _ => channel("float"),
        };
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        config[&keys[at.index(keys.len())]] = value;
        let config = if base == 4 { compressed(config, "float-quantized") } else { config };
        if let Err(e) = parse(config) {
            prop_assert!(e.to_string().len() < 600);
        }
    }
}
