//! granite's factors, smollm3's layers without a rope, olmo2's norms.

use serde_json::json;

use crate::config::{Biases, RopeScaling};
use crate::fixtures::{error, parse, with, without};
use crate::program::{NormGroup, Op};

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let c = parse(json!({"model_type": "granite"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads, c.ffn), (32000, 4096, 32, 32, 32, 11008));
    assert_eq!((c.max_len, c.norm_eps, c.tied, c.bos, c.eos), (2048, 1e-6, false, Some(1), vec![2]));
    assert_eq!((c.embed_scale, c.attention_scale, c.residual_scale, c.logit_scale), (1.0, 1.0, 1.0, 1.0));
    let c = parse(json!({"model_type": "smollm3"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads, c.ffn), (128_256, 2048, 36, 16, 4, 11008));
    assert_eq!((c.max_len, c.tied, c.rope.theta), (32768, true, 2_000_000.0));
    assert_eq!((c.bos, c.eos, c.windows[35]), (Some(128_000), vec![128_001], None));
    assert_eq!(c.rope_layers[..8], [true, true, true, false, true, true, true, false]);
    assert_eq!(parse(json!({"model_type": "smollm3", "num_key_value_heads": null})).unwrap().kv_heads, 16);
    let c = parse(json!({"model_type": "olmo2"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads, c.ffn), (50304, 4096, 32, 32, 32, 11008));
    assert_eq!((c.max_len, c.norm_eps, c.tied, c.bos, c.eos), (2048, 1e-5, false, None, vec![50279]));
}

#[test]
fn factors_of_granite_are_read_and_may_not_be_zero() {
    let c = parse(with("granite", json!({"logits_scaling": 8, "attention_bias": true, "mlp_bias": true}))).unwrap();
    assert_eq!((c.embed_scale, c.attention_scale, c.residual_scale, c.logit_scale), (6.0, 0.0625, 0.6, 0.125));
    assert_eq!(c.bias, Biases { qkv: true, o: true, mlp: true });
    let names = ["attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"];
    for (key, value) in names.into_iter().flat_map(|key| [(key, json!(0.0)), (key, json!(1e300)), (key, json!("x"))]) {
        let error = error(with("granite", json!({key: value})));
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
    let scaling = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
    assert_eq!(parse(with("granite", scaling)).unwrap().rope.scaling, RopeScaling::Linear { factor: 2.0 });
    // Relatives with other layers have other names.
    for key in ["num_local_experts", "shared_intermediate_size"] {
        assert!(error(with("granite", json!({key: 8}))).contains(key));
    }
}

#[test]
fn layers_of_smollm3_rotate_by_the_list_or_the_interval() {
    let c = |changes| parse(with("smollm3", changes)).unwrap();
    assert_eq!(c(json!({})).rope_layers, [true, true, true, false]);
    let interval = |n| c(json!({"no_rope_layers": null, "no_rope_layer_interval": n})).rope_layers;
    assert_eq!(interval(2), [true, false, true, false]);
    assert_eq!(interval(1), [false; 4]);
    assert_eq!(parse(without("smollm3", &["no_rope_layers", "no_rope_layer_interval"])).unwrap(), c(json!({})));
    let none = c(json!({"no_rope_layers": [0, 0, 0, 0]})).program();
    assert!(none.ropes.is_empty() && !none.ops.iter().any(|op| matches!(op, Op::Rope { .. })));
    for (changes, key) in [
        (json!({"no_rope_layers": null, "no_rope_layer_interval": 0}), "no_rope_layer_interval"),
        (json!({"no_rope_layers": [1, 1]}), "no_rope_layers"),
        (json!({"no_rope_layers": [1, 1, 1, "x"]}), "no_rope_layers"),
    ] {
        assert!(error(with("smollm3", changes)).contains(key));
    }
}

#[test]
fn windows_of_smollm3_are_of_the_layers_that_do_not_rotate_or_of_layer_types() {
    let windows = |changes| {
        let mut json = with("smollm3", changes);
        // The fixture's own list says what it derives.
        if json["layer_types"] == json!(vec!["full_attention"; 4]) {
            json.as_object_mut().unwrap().remove("layer_types");
        }
        parse(json).map(|c| c.windows)
    };
    assert_eq!(windows(json!({"sliding_window": 8})), Ok(vec![None; 4]));
    assert_eq!(windows(json!({"use_sliding_window": true})), Ok(vec![None; 4]));
    let used = json!({"use_sliding_window": true, "sliding_window": 8, "no_rope_layers": [1, 0, 1, 0]});
    assert_eq!(windows(used), Ok(vec![None, Some(8), None, Some(8)]));
    let types = json!(["sliding_attention", "full_attention", "full_attention", "full_attention"]);
    let given = json!({"use_sliding_window": true, "sliding_window": 8, "layer_types": types});
    assert_eq!(windows(given), Ok(vec![Some(8), None, None, None]));
    // Which of its two masks the reference takes depends on its attention implementation.
    let disputed = windows(json!({"sliding_window": 8, "layer_types": types})).unwrap_err().to_string();
    assert!(disputed.contains("layer_types[0]"), "{disputed}");
}

#[test]
fn olmo2_norms_all_queries_together_and_what_its_parts_give() {
    let c = parse(with("olmo2", json!({"attention_bias": true, "head_dim": 24}))).unwrap();
    assert_eq!(c.bias, Biases { qkv: true, o: true, mlp: false });
    let program = c.program();
    let norms: Vec<usize> = program
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::Norm { x, group: NormGroup::Row, .. } => Some(program.info(*x).cols),
            _ => None,
        })
        .collect();
    assert_eq!(norms[..4], [4 * 24, 2 * 24, 64, 64], "queries, keys, attention, mlp");
    let names: Vec<&str> = program.weights.iter().map(|w| w.name.as_str()).collect();
    assert!(!names.iter().any(|name| name.contains("input_layernorm")));
    assert!(error(with("olmo2", json!({"mlp_bias": true}))).contains("mlp_bias"));
    assert!(error(with("olmo2", json!({"clip_qkv": 8.0}))).contains("clip_qkv"));
}
