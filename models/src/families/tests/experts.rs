//! mixtral, qwen2_moe, qwen3_moe and gpt_oss.

use serde_json::{Value, json};

use crate::config::{Biases, RopeScaling};
use crate::fixtures::{error, parse, with, without};
use crate::program::{Op, Program};

fn moe(json: Value) -> (usize, usize, usize, Option<usize>, bool) {
    let moe = parse(json).unwrap().moe.unwrap();
    (moe.experts, moe.top_k, moe.ffn, moe.shared_ffn, moe.normalise)
}

fn expert_layers(json: Value) -> Option<Vec<bool>> {
    parse(json).unwrap().moe.map(|moe| moe.layers)
}

/// Name and text of the weights whose names end in one of `ends`, of the first layer.
fn weights(p: &Program, ends: &[&str]) -> Vec<String> {
    let first = p.weights.iter().filter(|w| w.name.contains("layers.0.") && ends.iter().any(|e| w.name.ends_with(e)));
    first.map(|w| w.to_string()).collect()
}

#[test]
fn absent_keys_take_the_class_defaults() {
    let c = parse(json!({"model_type": "mixtral"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (32000, 4096, 32, 32, 8));
    assert_eq!((c.ffn, c.max_len, c.norm_eps, c.rope.theta, c.head_dim), (14336, 131_072, 1e-5, 1e6, 128));
    assert_eq!((c.bos, &c.eos[..], c.tied, c.windows[0]), (Some(1), &[2][..], false, None));
    assert_eq!(moe(json!({"model_type": "mixtral"})), (8, 2, 14336, None, true));

    let c = parse(json!({"model_type": "qwen2_moe"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (151_936, 2048, 24, 16, 16));
    assert_eq!((c.ffn, c.max_len, c.norm_eps, c.rope.theta, c.head_dim), (5632, 32768, 1e-6, 1e4, 128));
    assert_eq!(c.bias, Biases { qkv: true, o: false, mlp: false });
    assert_eq!((c.bos, &c.eos[..], c.tied, c.windows[0]), (None, &[][..], false, None));
    assert_eq!(moe(json!({"model_type": "qwen2_moe"})), (60, 4, 1408, Some(5632), false));
    assert_eq!(expert_layers(json!({"model_type": "qwen2_moe"})), Some(vec![true; 24]));

    let c = parse(json!({"model_type": "qwen3_moe"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (151_936, 2048, 24, 32, 4));
    assert_eq!((c.ffn, c.max_len, c.norm_eps, c.head_dim), (6144, 32768, 1e-6, 64));
    assert_eq!((c.bias, c.head_norms), (Biases::default(), true));
    assert_eq!(moe(json!({"model_type": "qwen3_moe"})), (128, 8, 768, None, false));

    let c = parse(json!({"model_type": "gpt_oss"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (201_088, 2880, 36, 64, 8));
    assert_eq!((c.ffn, c.max_len, c.norm_eps, c.head_dim, c.rope.theta), (2880, 131_072, 1e-5, 64, 150_000.0));
    assert_eq!((c.bias, c.tied), (Biases { qkv: true, o: true, mlp: false }, false));
    assert_eq!(c.windows[..4], [Some(128), None, Some(128), None]);
    assert_eq!(moe(json!({"model_type": "gpt_oss"})), (128, 4, 2880, None, true));
    let RopeScaling::Yarn { factor, original_max_len, truncate, .. } = c.rope.scaling else { panic!() };
    assert_eq!((factor, original_max_len, truncate), (32.0, 4096, false));
}

#[test]
fn layers_have_experts_by_step_and_exception() {
    let layers = |changes| expert_layers(with("qwen3_moe", changes));
    let base = |step: u64, dense: Value| {
        layers(json!({"num_hidden_layers": 5, "decoder_sparse_step": step, "mlp_only_layers": dense}))
    };
    assert_eq!(base(1, json!([])), Some(vec![true; 5]));
    assert_eq!(base(2, json!(null)), Some(vec![false, true, false, true, false]));
    assert_eq!(base(2, json!([3, 99])), Some(vec![false, true, false, false, false]));
    assert_eq!(base(1, json!([0, 4])), Some(vec![false, true, true, true, false]));
    // Dense throughout: the numbers of the experts do not matter.
    assert_eq!(base(6, json!([])), None);
    assert_eq!(layers(json!({"num_experts": 0})), None);
    assert!(error(with("qwen3_moe", json!({"decoder_sparse_step": 0}))).contains("`decoder_sparse_step`"));
    assert!(error(with("qwen3_moe", json!({"mlp_only_layers": [-1]}))).contains("`mlp_only_layers`"));

    let dense = parse(with("qwen2_moe", json!({"num_experts": 0}))).unwrap().program();
    assert!(!dense.ops.iter().any(|op| matches!(op, Op::MoeMlp { .. } | Op::Route { .. })));
    assert_eq!(weights(&dense, &["mlp.up_proj.weight"]).len(), 1);
}

#[test]
fn the_number_of_experts_goes_by_either_name() {
    // transformers 5 writes num_local_experts for qwen3_moe.
    let mut json = without("qwen3_moe", &["num_experts"]);
    json["num_local_experts"] = json!(6);
    assert_eq!(parse(json.clone()), parse(with("qwen3_moe", json!({}))));
    json["num_experts"] = json!(5);
    assert!(error(json).contains("`num_local_experts`"));
    assert!(error(with("mixtral", json!({"num_experts": 8}))).contains("`num_experts`"));
}

#[test]
fn qwen3_moe_takes_the_keys_of_published_files() {
    let known = json!({
        "shared_expert_intermediate_size": 0, "use_qk_norm": true, "qkv_bias": false, "max_window_layers": 28,
    });
    assert_eq!(parse(with("qwen3_moe", known)), parse(with("qwen3_moe", json!({}))));
    assert!(error(with("qwen3_moe", json!({"use_qk_norm": false}))).contains("`use_qk_norm`"));
}

#[test]
fn impossible_experts_are_refused_by_name() {
    for (fixture, key, value) in [
        ("mixtral", "num_local_experts", json!(0)),
        ("mixtral", "num_local_experts", json!(1u64 << 40)),
        ("mixtral", "num_experts_per_tok", json!(5)),
        ("qwen2_moe", "num_experts_per_tok", json!(0)),
        ("qwen2_moe", "moe_intermediate_size", json!(0)),
        ("qwen2_moe", "shared_expert_intermediate_size", json!(0)),
        ("qwen3_moe", "norm_topk_prob", json!("yes")),
        ("qwen3_moe", "shared_expert_intermediate_size", json!(64)),
        ("qwen3_moe", "qkv_bias", json!(true)),
        ("gpt_oss", "num_experts_per_tok", json!(9)),
    ] {
        let error = error(with(fixture, json!({key: value})));
        assert!(error.contains(key), "{fixture} {key}: {error}");
    }
}

#[test]
fn windows_are_those_that_both_versions_apply() {
    let windows = |fixture, changes| parse(with(fixture, changes)).unwrap().windows;
    assert_eq!(windows("mixtral", json!({"sliding_window": 7})), [Some(7); 2]);
    // In every layer, whatever max_window_layers says.
    let used = json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 1});
    assert_eq!(windows("qwen3_moe", used.clone()), [Some(7); 2]);
    assert_eq!(windows("qwen3_moe", json!({"use_sliding_window": true, "sliding_window": null})), [None; 2]);
    assert_eq!(windows("qwen3_moe", json!({"sliding_window": 7})), [None; 2]);
    let mut absent = without("qwen3_moe", &["sliding_window"]);
    absent["use_sliding_window"] = json!(true);
    assert_eq!(parse(absent).unwrap().windows, [Some(4096); 2]);

    // qwen2_moe: every layer by 4.57, every other one or those of layer_types by 5.23.
    assert!(error(with("qwen2_moe", used.clone())).contains("`use_sliding_window`"));
    let types = |kinds: [&str; 3]| {
        let mut json = used.clone();
        json["layer_types"] = json!(kinds);
        json
    };
    let (slides, full) = ("sliding_attention", "full_attention");
    assert_eq!(windows("qwen2_moe", types([slides; 3])), [Some(7); 3]);
    assert!(error(with("qwen2_moe", types([slides, full, slides]))).contains("`use_sliding_window`"));
    // transformers 5 writes 0 for a window that is not in use.
    assert_eq!(windows("qwen2_moe", json!({"sliding_window": 0, "layer_types": [full, full, full]})), [None; 3]);
    assert!(error(with("qwen2_moe", json!({"layer_types": [full, slides, full]}))).contains("layer_types[1]"));
}

#[test]
fn gpt_oss_derives_its_windows_and_its_rope() {
    let derived = parse(without("gpt_oss", &["layer_types"])).unwrap();
    assert_eq!(derived, parse(with("gpt_oss", json!({}))).unwrap());
    let types = json!(["full_attention", "full_attention", "sliding_attention"]);
    assert_eq!(parse(with("gpt_oss", json!({"layer_types": types}))).unwrap().windows, [None, None, Some(12)]);
    assert!(error(with("gpt_oss", json!({"layer_types": null, "sliding_window": null}))).contains("`sliding_window`"));

    let plain = json!({"rope_type": "default", "rope_theta": 5e4});
    let mut new = without("gpt_oss", &["rope_scaling", "rope_theta"]);
    new["rope_parameters"] = plain;
    let rope = parse(new).unwrap().rope;
    assert_eq!((rope.theta, rope.scaling), (5e4, RopeScaling::None));
    // No scaling to 4.57, the class's default to 5.23.
    assert!(error(with("gpt_oss", json!({"rope_scaling": null}))).contains("`rope_scaling`"));
    let mut empty = without("gpt_oss", &["rope_scaling"]);
    empty["rope_parameters"] = json!({});
    assert!(error(empty).contains("`rope_parameters`"));
}

#[test]
fn gpt_oss_takes_the_keys_of_published_files() {
    let known = json!({
        "experts_per_token": 2, "initial_context_length": 4096, "swiglu_limit": 7.0, "swiglu_alpha": 1.702,
        "hidden_act": "silu",
    });
    assert_eq!(parse(with("gpt_oss", known)), parse(with("gpt_oss", json!({}))));
    for (key, value) in [("swiglu_limit", json!(8.0)), ("swiglu_alpha", json!(1.0)), ("experts_per_token", json!(3))] {
        assert!(error(with("gpt_oss", json!({key: value}))).contains(&format!("`{key}`")));
    }
    let c = parse(with("gpt_oss", json!({"attention_bias": false}))).unwrap();
    assert_eq!(c.bias, Biases::default());
}

#[test]
fn experts_are_views_of_what_checkpoints_hold() {
    let of = |fixture: &str, ends: &[&str]| weights(&parse(with(fixture, json!({}))).unwrap().program(), ends);
    assert_eq!(
        of("mixtral", &["w1.weight", "w2.weight"]),
        [
            "model.layers.0.block_sparse_moe.experts.{}.w1.weight 4 experts [48, 64] Linear Column",
            "model.layers.0.block_sparse_moe.experts.{}.w2.weight 4 experts [64, 48] Linear Row",
        ]
    );
    assert_eq!(
        of("gpt_oss", &["gate_up_proj", "gate_up_proj_bias", "down_proj"]),
        [
            "model.layers.0.mlp.experts.gate_up_proj 4 experts [32, 64] from row 0 of 64 1 of every 2 transposed Linear Column",
            "model.layers.0.mlp.experts.gate_up_proj_bias 4 experts [1, 32] from row 0 of 64 1 of every 2 Vector Column",
            "model.layers.0.mlp.experts.gate_up_proj 4 experts [32, 64] from row 1 of 64 1 of every 2 transposed Linear Column",
            "model.layers.0.mlp.experts.gate_up_proj_bias 4 experts [1, 32] from row 1 of 64 1 of every 2 Vector Column",
            "model.layers.0.mlp.experts.down_proj 4 experts [64, 32] transposed Linear Row",
        ]
    );
}

#[test]
fn the_shares_are_normalised_where_the_config_says_so() {
    let normalises = |fixture: &str, changes| {
        let p = parse(with(fixture, changes)).unwrap().program();
        let of = |op: &Op| if let Op::Route { routing, .. } = op { Some(routing.normalise) } else { None };
        p.ops.iter().find_map(of).unwrap()
    };
    assert!(normalises("mixtral", json!({})) && normalises("gpt_oss", json!({})));
    assert!(!normalises("qwen2_moe", json!({})) && normalises("qwen2_moe", json!({"norm_topk_prob": true})));
    assert!(normalises("qwen3_moe", json!({})) && !normalises("qwen3_moe", json!({"norm_topk_prob": false})));
}
