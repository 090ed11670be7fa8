//! Families that may have attention and feed-forward part side by side: gpt_neox, stablelm, phi, cohere, cohere2, falcon.

use serde_json::{Value, json};

use crate::config::Biases;
use crate::fixtures::{error, parse, with, without};
use crate::program::{NormKind, Op, Pairing};

/// Whether the program of a config has a weight whose name contains `part`.
fn has(config: Value, part: &str) -> bool {
    parse(config).unwrap().program().weights.iter().any(|decl| decl.name.contains(part))
}

/// Every case is refused by the name of its key.
fn refused(fixture: &str, cases: &[(&str, Value)]) {
    for (key, value) in cases {
        let error = error(with(fixture, json!({*key: value})));
        assert!(error.contains(&format!("`{key}`")), "{fixture}: {error}");
    }
}

#[test]
fn a_layer_whose_parts_stand_side_by_side_has_one_norm_or_two() {
    // stablelm and falcon leave the second out, gpt_neox does not.
    let second = "post_attention_layernorm";
    assert!(has(with("stablelm", json!({"use_parallel_residual": false})), second));
    assert!(!has(with("stablelm", json!({"use_parallel_residual": true})), second));
    for parallel in [true, false] {
        assert!(has(with("gpt_neox", json!({"use_parallel_residual": parallel})), second));
    }
    assert!(parse(without("gpt_neox", &["use_parallel_residual"])).unwrap().is_parallel);
    assert!(!parse(without("stablelm", &["use_parallel_residual"])).unwrap().is_parallel);
    assert!(has(with("falcon", json!({"parallel_attn": false})), second));
    assert!(!has(with("falcon", json!({})), second));
    // One part after the other: what the second reads is of the sum.
    let adds = |config| parse(config).unwrap().program().ops.iter().filter(|op| matches!(op, Op::Add { .. })).count();
    assert_eq!(adds(with("gpt_neox", json!({"use_parallel_residual": false}))), 0);
    assert_eq!(adds(with("gpt_neox", json!({}))), 3, "of what both parts give, in each layer");
}

#[test]
fn norms_of_heads_are_layer_norms_of_one_vector_each_or_of_one_for_all() {
    let kinds = |config| {
        let program = parse(config).unwrap().program();
        let of_heads = program.weights.iter().filter(|d| d.name.contains("_norm") || d.name.contains("q_layernorm"));
        of_heads.filter(|d| d.name.contains("layers.0.self_attn")).map(|d| d.experts).collect::<Vec<_>>()
    };
    let on = json!({"qk_layernorm": true});
    assert_eq!(kinds(with("stablelm", on.clone())), [Some(4)], "queries'; keys' are called k_layernorm");
    assert_eq!(kinds(with("phi", on.clone())), [None, None], "weight and bias");
    assert_eq!(kinds(with("cohere", json!({"use_qk_norm": true}))), [Some(4), Some(2)]);
    for config in [with("stablelm", on.clone()), with("phi", on), with("cohere", json!({"use_qk_norm": true}))] {
        let program = parse(config).unwrap().program();
        let is_layer = |op: &Op| matches!(op, Op::Norm { norm, .. } if norm.kind == NormKind::Layer);
        assert!(program.ops.iter().any(is_layer));
    }
    for name in ["stablelm", "phi", "cohere"] {
        assert!(kinds(with(name, json!({}))).is_empty());
    }
}

#[test]
fn biases_are_where_the_keys_say() {
    let bias = |config| parse(config).unwrap().bias;
    let all = Biases { qkv: true, o: true, mlp: true };
    assert_eq!(bias(with("gpt_neox", json!({"attention_bias": false}))), Biases { mlp: true, ..Biases::default() });
    assert_eq!(bias(without("stablelm", &["use_qkv_bias"])), Biases::default());
    assert_eq!(bias(with("phi", json!({}))), all);
    assert_eq!(bias(with("cohere", json!({"attention_bias": true}))), Biases { mlp: false, ..all });
    assert_eq!(bias(without("falcon", &["bias"])), Biases::default());
    assert!(has(with("phi", json!({})), "lm_head.bias"));
}

#[test]
fn heads_rotate_in_part_and_cohere_pairs_neighbours() {
    let width = |config| parse(config).unwrap().rope_width;
    assert_eq!(width(without("stablelm", &["partial_rotary_factor"])), 4);
    assert_eq!(width(without("phi", &["partial_rotary_factor"])), 8);
    assert_eq!(width(without("gpt_neox", &["partial_rotary_factor", "rotary_pct"])), 4);
    // Version 4 reads its own name of it alone.
    assert!(error(without("gpt_neox", &["rotary_pct"])).contains("partial_rotary_factor"));
    assert!(error(without("gpt_neox", &["rotary_emb_base"])).contains("rope_theta"));
    for (name, pairing) in [("cohere", Pairing::Neighbours), ("cohere2", Pairing::Neighbours), ("phi", Pairing::Half)] {
        assert_eq!(parse(with(name, json!({}))).unwrap().rope_pairing, pairing);
    }
}

#[test]
fn layers_of_cohere2_rotate_where_they_have_a_window() {
    let c = |config| parse(config).unwrap();
    let usual = c(without("cohere2", &["layer_types"]));
    assert_eq!(usual.windows, [Some(5), Some(5), Some(5), None]);
    assert_eq!(usual.rope_layers, [true, true, true, false]);
    let every = |n| c(json_of("cohere2", &["layer_types"], json!({"sliding_window_pattern": n}))).windows;
    assert_eq!(every(2), [Some(5), None, Some(5), None]);
    assert_eq!(every(1), [None; 4]);
    assert_eq!(c(without("cohere2", &["layer_types", "sliding_window"])).windows[0], Some(4096));
    assert_eq!(parse(without("cohere", &["logit_scale"])).unwrap().logit_scale, 0.0625);
    let no_list = |changes| error(json_of("cohere2", &["layer_types"], changes));
    assert!(no_list(json!({"sliding_window_pattern": 0})).contains("sliding_window_pattern"));
    assert!(no_list(json!({"layer_switch": 3})).contains("layer_switch"));
    refused(
        "cohere2",
        &[
            ("sliding_window", Value::Null),
            ("position_embedding_type", json!("alibi")),
            ("use_parallel_block", json!(false)),
            ("use_gated_activation", json!(false)),
            ("rotary_pct", json!(0.5)),
            ("order_of_interleaved_layers", json!("global_attn_first")),
        ],
    );
}

/// A fixture's config without some keys and with others.
fn json_of(fixture: &str, drop: &[&str], changes: Value) -> Value {
    let mut json = without(fixture, drop);
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

#[test]
fn falcon_has_three_layouts_and_no_mixture_of_them() {
    let c = |changes| parse(with("falcon", changes)).unwrap();
    let (first, groups) = (c(json!({})), json!({"new_decoder_architecture": true, "num_kv_heads": 2}));
    assert_eq!((first.kv_heads, first.is_parallel, first.norm_per_part), (1, true, false), "one head of keys");
    let second = c(groups.clone());
    assert_eq!((second.kv_heads, second.norm_per_part), (2, true));
    let program = second.program();
    assert!(program.weights.iter().any(|d| d.name.ends_with("h.0.ln_mlp.weight")));
    let one = c(json!({"new_decoder_architecture": true, "num_ln_in_parallel_attn": 1}));
    assert_eq!((one.kv_heads, one.norm_per_part), (4, false));
    let third = c(json!({"alibi": true, "multi_query": false, "parallel_attn": false}));
    assert_eq!((third.kv_heads, third.is_parallel, third.rope_width), (4, false, 0));
    assert!(third.program().ropes.is_empty());
    // A slope of a quarter, by the root of the heads' length.
    assert_eq!(third.alibi.unwrap()[0], 0.25 / 8f32.sqrt());
    assert_eq!(parse(without("falcon", &["ffn_hidden_size"])).unwrap().ffn, 128);
    for (key, changes) in [
        ("parallel_attn", json!({"new_decoder_architecture": true, "parallel_attn": false})),
        ("num_ln_in_parallel_attn", json!({"num_ln_in_parallel_attn": 2})),
        ("num_kv_heads", json!({"multi_query": false, "num_kv_heads": 2})),
        ("num_key_value_heads", json!({"num_key_value_heads": 1})),
        ("head_dim", json!({"head_dim": 16})),
    ] {
        let error = error(with("falcon", changes));
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn what_these_classes_do_not_read_may_only_repeat_what_they_do() {
    refused("stablelm", &[("num_heads", json!(8)), ("rotary_scaling_factor", json!(2.0)), ("head_dim", json!(8))]);
    refused("gpt_neox", &[("num_key_value_heads", json!(2)), ("head_dim", json!(8))]);
    refused("phi", &[("head_dim", json!(8))]);
    let same = json!({"num_heads": 4, "rotary_scaling_factor": 1.0, "head_dim": 16});
    assert_eq!(parse(with("stablelm", same)).unwrap(), parse(with("stablelm", json!({}))).unwrap());
}
