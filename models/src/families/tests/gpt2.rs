//! gpt2: defaults, scales, widths, names of its own, and keys that it does not have.

use serde_json::json;

use crate::fixtures::{config_json, error, parse, with, without};
use crate::program::{Act, Op};

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let c = parse(json!({"model_type": "gpt2"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim), (50257, 768, 12, 12, 12, 64));
    assert_eq!((c.ffn, c.max_len, c.norm_eps, c.tied, c.act), (3072, 1024, 1e-5, true, Act::GeluTanh));
    assert_eq!((c.bos, &c.eos[..], c.attention_scale), (Some(50256), &[50256][..], 0.125));
    let first_files = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_ctx": 1024, "n_positions": 1024,
        "summary_type": "cls_index", "summary_use_proj": true, "summary_proj_to_labels": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
    });
    assert_eq!(parse(first_files).unwrap(), c);
}

#[test]
fn scores_are_scaled_by_the_root_the_layer_both_or_nothing() {
    let scales = |changes| -> Vec<f32> {
        let program = parse(with("gpt2", changes)).unwrap().program();
        let scale = |op: &Op| if let Op::Attend { scale, .. } = op { Some(*scale) } else { None };
        program.ops.iter().filter_map(scale).collect()
    };
    let root = 1.0 / 12f32.sqrt();
    assert_eq!(scales(json!({})), [root, root]);
    assert_eq!(scales(json!({"scale_attn_weights": false})), [1.0, 1.0]);
    assert_eq!(scales(json!({"scale_attn_by_inverse_layer_idx": true})), [root, root / 2.0]);
    let both = json!({"scale_attn_by_inverse_layer_idx": true, "scale_attn_weights": false});
    assert_eq!(scales(both), [1.0, 0.5]);
}

#[test]
fn the_inner_width_the_activation_and_the_head_may_be_others() {
    let c = parse(with("gpt2", json!({"n_inner": 80, "activation_function": "relu"}))).unwrap();
    assert_eq!((c.ffn, c.act), (80, Act::Relu));
    // Heads of odd length are no obstacle where nothing rotates.
    let odd = parse(with("gpt2", json!({"n_embd": 60}))).unwrap();
    assert_eq!((odd.head_dim, odd.ffn), (15, 240));
    assert!(odd.program().ropes.is_empty());
    let untied = parse(with("gpt2", json!({"tie_word_embeddings": false}))).unwrap().program();
    assert_eq!(untied.weights.last().unwrap().name, "lm_head.weight");
    assert_eq!(parse(with("gpt2", json!({"reorder_and_upcast_attn": true}))), parse(config_json("gpt2")));
}

#[test]
fn both_names_of_a_key_are_read_and_may_not_contradict() {
    let mut json = without("gpt2", &["n_embd", "n_layer", "n_head", "n_positions"]);
    let common = json!({
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
    });
    common.as_object().unwrap().iter().for_each(|(key, value)| json[key] = value.clone());
    assert_eq!(parse(json), parse(config_json("gpt2")));
    let error = error(with("gpt2", json!({"hidden_size": 64})));
    assert!(error.contains("`n_embd` = 48 contradicts hidden_size = 64"), "{error}");
}

#[test]
fn what_it_does_not_have_is_refused_by_name() {
    for (key, value) in [
        ("add_cross_attention", json!(true)),
        ("num_key_value_heads", json!(2)),
        ("rope_theta", json!(1e4)),
        ("head_dim", json!(24)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("n_embd", json!(50)),
        ("n_layer", json!(0)),
        ("n_inner", json!(0)),
        ("layer_norm_epsilon", json!("x")),
        ("activation_function", json!("quick_gelu")),
    ] {
        let error = error(with("gpt2", json!({key: value})));
        // Sizes are checked under the names that families share.
        let shared = [("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers"), ("n_inner", "intermediate_size")];
        let shared = shared.into_iter().find(|(own, _)| *own == key).map_or(key, |(_, name)| name);
        assert!(error.contains(key) || error.contains(shared), "{key}: {error}");
    }
}
