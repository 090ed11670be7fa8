//! Families whose layers differ in one thing each: exaone4, glm4, nemotron, starcoder2, gpt_bigcode, opt, granitemoe, olmoe,
//! and deepseek's latents.

use serde_json::{Value, json};

use crate::config::{Biases, RopeScaling};
use crate::fixtures::{error, parse, with, without};
use crate::program::{Op, Pairing};

/// Every change is refused by the name of its key.
fn refused(fixture: &str, cases: &[(&str, Value)]) {
    for (key, value) in cases {
        let error = error(with(fixture, json!({*key: value})));
        assert!(error.contains(key), "{fixture}: {error}");
    }
}

fn without_and(fixture: &str, drop: &[&str], changes: Value) -> Value {
    let mut json = without(fixture, drop);
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

#[test]
fn layers_of_exaone4_without_a_window_do_not_rotate_beside_those_with_one() {
    let listed = parse(with("exaone4", json!({}))).unwrap();
    assert_eq!(listed.rope_layers, [true, true, false, true]);
    let by_pattern = |n| parse(without_and("exaone4", &["layer_types"], json!({"sliding_window_pattern": n})));
    assert_eq!(by_pattern(2).unwrap().windows, [Some(5), None, Some(5), None]);
    assert!(by_pattern(0).unwrap_err().to_string().contains("sliding_window_pattern"));
    let full = json!({"sliding_window": null, "layer_types": vec!["full_attention"; 4]});
    assert_eq!(parse(with("exaone4", full)).unwrap().rope_layers, [true; 4]);
    let neither = without_and("exaone4", &["layer_types"], json!({"sliding_window": null}));
    assert!(error(neither).contains("sliding_window"));
}

#[test]
fn glm4_rotates_half_of_each_head_neighbours_together() {
    let c = parse(without("glm4", &["attention_bias", "partial_rotary_factor"])).unwrap();
    assert_eq!((c.bias, c.rope_width), (Biases { qkv: true, o: false, mlp: false }, 8));
    assert_eq!(c.rope_pairing, Pairing::Neighbours);
    let without_bias = parse(with("glm4", json!({"attention_bias": false}))).unwrap();
    assert_eq!(without_bias.bias, Biases::default());
}

#[test]
fn nemotron_has_no_scaling_and_two_names_of_two_numbers() {
    let c = parse(with("nemotron", json!({"kv_channels": 12, "rope_percent": 0.5}))).unwrap();
    assert_eq!((c.rope_width, c.norm_plus_one), (6, true));
    refused("nemotron", &[("kv_channels", json!(8)), ("rope_percent", json!(0.25))]);
    refused("nemotron", &[("rope_scaling", json!({"rope_type": "linear", "factor": 2.0}))]);
    // Without a gate: one matrix up, its rows squared.
    let program = c.program();
    assert!(!program.weights.iter().any(|d| d.name.contains("gate_proj")));
    assert!(!program.ops.iter().any(|op| matches!(op, Op::GatedMlpIn { .. })));
}

#[test]
fn starcoder2_and_gpt_bigcode_say_by_keys_what_they_do() {
    let c = parse(with("starcoder2", json!({"use_bias": false}))).unwrap();
    assert_eq!((c.bias, c.windows[0]), (Biases::default(), Some(16)));
    let of_norms = |d: &&crate::program::WeightDecl| d.name.ends_with("layernorm.bias");
    assert_eq!(c.program().weights.iter().filter(of_norms).count(), 6, "norms keep theirs");
    assert_eq!(parse(with("starcoder2", json!({"sliding_window": null}))).unwrap().windows, [None; 3]);
    refused(
        "starcoder2",
        &[("mlp_type", json!("gated")), ("norm_type", json!("rms_norm")), ("scale_attn_weights", json!(false))],
    );
    let heads = |changes| parse(with("gpt_bigcode", changes)).unwrap().kv_heads;
    assert_eq!(heads(json!({})), 1);
    assert_eq!(heads(json!({"multi_query": false, "num_key_value_heads": 4})), 4);
    assert_eq!(parse(with("gpt_bigcode", json!({"scale_attn_weights": false}))).unwrap().attention_scale, 1.0);
    refused("gpt_bigcode", &[("num_key_value_heads", json!(2)), ("head_dim", json!(8)), ("rope_theta", json!(1e4))]);
}

#[test]
fn opt_norms_before_or_behind_and_with_weights_or_without() {
    let weights = |changes| {
        let program = parse(with("opt", changes)).unwrap().program();
        program.weights.iter().map(|d| d.name.clone()).collect::<Vec<_>>()
    };
    let has = |names: &[String], part: &str| names.iter().any(|name| name.contains(part));
    let last = "decoder.final_layer_norm";
    assert!(has(&weights(json!({})), last));
    assert!(!has(&weights(json!({"_remove_final_layer_norm": true})), last));
    assert!(!has(&weights(json!({"do_layer_norm_before": false})), last));
    assert!(!has(&weights(json!({"layer_norm_elementwise_affine": false})), "layer_norm"));
    assert!(!has(&weights(json!({"enable_bias": false})), "proj.bias"));
    assert!(has(&weights(json!({"word_embed_proj_dim": 24})), "project_in"));
    assert!(!has(&weights(json!({"word_embed_proj_dim": 32})), "project_in"), "as wide as the layers");
    refused("opt", &[("rms_norm_eps", json!(1e-5)), ("num_key_value_heads", json!(4)), ("rope_theta", json!(1e4))]);
}

#[test]
fn experts_of_granitemoe_and_olmoe_have_their_own_defaults_and_shares() {
    let c = parse(without("granitemoe", &["num_local_experts", "num_experts_per_tok"])).unwrap();
    let moe = c.moe.unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.normalise, moe.ffn), (8, 2, true, 20));
    refused("granitemoe", &[("position_embedding_type", json!("nope")), ("head_dim", json!(16))]);
    let moe = parse(without("olmoe", &["norm_topk_prob", "num_experts", "num_experts_per_tok"])).unwrap().moe.unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.normalise), (64, 8, false));
    refused("olmoe", &[("clip_qkv", json!(0.0)), ("head_dim", json!(16))]);
}

#[test]
fn deepseeks_latents_and_groups_follow_their_keys() {
    let v2 = |changes| parse(with("deepseek_v2", changes)).unwrap();
    let direct = v2(json!({"q_lora_rank": null}));
    assert_eq!(direct.latent.unwrap().q_rank, None);
    let names: Vec<_> = direct.program().weights.iter().map(|d| d.name.clone()).collect();
    assert!(names.iter().any(|n| n.ends_with("q_proj.weight")) && !names.iter().any(|n| n.contains("q_a_")));
    assert!(v2(json!({"topk_method": "greedy"})).moe.unwrap().groups.is_none());
    let groups = v2(json!({})).moe.unwrap().groups.unwrap();
    assert_eq!((groups.count, groups.kept, groups.best), (3, 2, 1));
    assert!(v2(json!({"first_k_dense_replace": 3})).moe.is_none());
    assert_eq!(v2(json!({"n_shared_experts": 3})).moe.unwrap().shared_ffn, Some(36));
    assert!(error(without("deepseek_v2", &["n_group"])).contains("n_group"));
    refused(
        "deepseek_v2",
        &[
            ("topk_method", json!("noaux_tc")),
            ("norm_topk_prob", json!(true)),
            ("scoring_func", json!("sigmoid")),
            ("mlp_bias", json!(true)),
            ("moe_layer_freq", json!(2)),
            ("num_key_value_heads", json!(2)),
        ],
    );
    let v3 = |changes| parse(with("deepseek_v3", changes)).unwrap();
    assert_eq!(v3(json!({})).moe.unwrap().groups.unwrap().best, 2);
    assert_eq!(v3(json!({})).rope_pairing, Pairing::Neighbours);
    assert_eq!(v3(json!({"rope_interleave": false})).rope_pairing, Pairing::Half);
    refused("deepseek_v3", &[("scoring_func", json!("softmax")), ("topk_method", json!("greedy"))]);
    // Scores by the square of yarn's factor where the config says over which of the numbers.
    let yarn = |all: Value| {
        let scaling = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0,
            "mscale_all_dim": all});
        v3(json!({"rope_scaling": scaling}))
    };
    let plain = v3(json!({})).attention_scale;
    assert!(matches!(yarn(json!(1.0)).rope.scaling, RopeScaling::Yarn { .. }));
    let mscale = 0.1 * 4f32.ln() + 1.0;
    assert!((yarn(json!(1.0)).attention_scale / plain - mscale * mscale).abs() < 1e-5);
    assert_eq!(yarn(json!(0.0)).attention_scale, plain);
}
