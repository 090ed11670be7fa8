//! gemma, gemma2, gemma3: activations, caps, windows, the two ropes, and the model within a larger one.

use serde_json::{Value, json};

use crate::config::{Biases, Family, ModelConfig, RopeConfig, RopeScaling};
use crate::fixtures::{config_json, error, parse, with, without};
use crate::program::{Act, Op};

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let c = parse(json!({"model_type": "gemma"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (256_000, 3072, 28, 16, 16));
    assert_eq!((c.head_dim, c.ffn, c.max_len, c.norm_eps, c.tied), (256, 24576, 8192, 1e-6, true));
    assert_eq!((c.act, c.bos, c.eos, c.rope.theta), (Act::GeluTanh, Some(2), vec![1], 10_000.0));
    assert_eq!((c.attention_scale, c.embed_scale, c.norm_plus_one), (1.0 / 16.0, 3072f32.sqrt(), true));
    let c = parse(json!({"model_type": "gemma2"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (256_000, 2304, 26, 8, 4));
    assert_eq!((c.head_dim, c.ffn, c.max_len, c.tied), (256, 9216, 8192, true));
    assert_eq!((c.attention_softcap, c.logit_softcap, c.attention_scale), (Some(50.0), Some(30.0), 1.0 / 16.0));
    assert_eq!((&c.windows[..3], c.local_rope), (&[Some(4096), None, Some(4096)][..], None));
    let c = parse(json!({"model_type": "gemma3_text"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (262_208, 2304, 26, 8, 4));
    assert_eq!((c.head_dim, c.ffn, c.max_len, c.head_norms), (256, 9216, 131_072, true));
    assert_eq!((c.attention_softcap, c.logit_softcap), (None, None));
    let plain = |theta| RopeConfig { theta, scaling: RopeScaling::None };
    assert_eq!((c.rope, c.local_rope), (plain(1e6), Some(plain(1e4))));
    let full: Vec<usize> = (0..26).filter(|i| c.windows[*i].is_none()).collect();
    assert_eq!(full, [5, 11, 17, 23]);
}

#[test]
fn the_activation_is_the_one_that_the_reference_takes() {
    let act = |fixture, changes| parse(with(fixture, changes)).map(|c| c.act);
    // Official gemma files of the first weeks; 5.23 takes them for the approximation.
    assert_eq!(act("gemma", json!({"hidden_act": "gelu"})), Ok(Act::GeluTanh));
    assert_eq!(act("gemma", json!({"hidden_act": "silu"})), Ok(Act::Silu));
    assert_eq!(
        act("gemma", json!({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"})),
        Ok(Act::GeluTanh)
    );
    assert!(error(with("gemma", json!({"hidden_activation": "gelu"}))).contains("`hidden_activation`"));
    for fixture in ["gemma2", "gemma3_text"] {
        assert_eq!(act(fixture, json!({"hidden_activation": "gelu"})), Ok(Act::Gelu));
        assert_eq!(act(fixture, json!({"hidden_activation": null})), Ok(Act::GeluTanh));
        assert_eq!(act(fixture, json!({"hidden_act": "gelu_pytorch_tanh"})), Ok(Act::GeluTanh));
        assert!(error(with(fixture, json!({"hidden_act": "silu"}))).contains("`hidden_act`"));
    }
}

#[test]
fn caps_may_be_off_and_the_scale_is_of_its_own() {
    let c = parse(with("gemma2", json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}))).unwrap();
    assert_eq!((c.attention_softcap, c.logit_softcap), (None, None));
    assert!(!c.program().ops.iter().any(|op| matches!(op, Op::Softcap { .. } | Op::Attend { softcap: Some(_), .. })));
    assert!(error(with("gemma2", json!({"attn_logit_softcapping": 0.0}))).contains("attn_logit_softcapping"));
    // gemma3 keeps the first key and applies it nowhere; the second it applies.
    let c =
        parse(with("gemma3_text", json!({"attn_logit_softcapping": 50.0, "final_logit_softcapping": 9.0}))).unwrap();
    assert_eq!((c.attention_softcap, c.logit_softcap), (None, Some(9.0)));
    let c = parse(with("gemma3_text", json!({"query_pre_attn_scalar": 64, "attention_bias": true}))).unwrap();
    assert_eq!((c.attention_scale, c.bias), (0.125, Biases { qkv: true, o: true, mlp: false }));
    assert!(error(with("gemma2", json!({"query_pre_attn_scalar": 0}))).contains("query_pre_attn_scalar"));
    for fixture in ["gemma", "gemma2", "gemma3_text"] {
        let both_ways = with(fixture, json!({"use_bidirectional_attention": true}));
        assert!(error(both_ways).contains("use_bidirectional_attention"));
    }
}

#[test]
fn windows_follow_the_pattern_or_layer_types() {
    let windows = |fixture, changes| parse(with(fixture, changes)).unwrap().windows;
    let w = Some(12);
    assert_eq!(windows("gemma2", json!({})), [w, None, w, None]);
    assert_eq!(windows("gemma3_text", json!({})), [w, w, None, w]);
    assert_eq!(windows("gemma3_text", json!({"sliding_window_pattern": 2})), [w, None, w, None]);
    assert_eq!(windows("gemma3_text", json!({"sliding_window_pattern": 1})), [None; 4]);
    assert_eq!(parse(without("gemma3_text", &["sliding_window_pattern"])).unwrap().windows, [w; 4]);
    let types = json!(["full_attention", "sliding_attention", "sliding_attention", "full_attention"]);
    let full = vec!["full_attention"; 4];
    for fixture in ["gemma2", "gemma3_text"] {
        assert_eq!(windows(fixture, json!({"layer_types": types})), [None, w, w, None]);
        assert_eq!(windows(fixture, json!({"layer_types": full, "sliding_window": null})), [None; 4]);
        assert!(error(with(fixture, json!({"sliding_window": null}))).contains("`sliding_window`"));
        assert!(error(with(fixture, json!({"layer_types": types, "sliding_window": null}))).contains("layer_types[1]"));
    }
    assert!(error(with("gemma3_text", json!({"sliding_window_pattern": 0}))).contains("sliding_window_pattern"));
    let sliding = json!(["sliding_attention", "full_attention", "full_attention"]);
    assert!(error(with("gemma", json!({"layer_types": sliding}))).contains("layer_types"));
}

#[test]
fn only_layers_without_a_window_take_the_scaled_rope() {
    let scaled = parse(with("gemma3_text", json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}))).unwrap();
    assert_eq!(scaled.rope.scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(scaled.local_rope, Some(RopeConfig { theta: 1000.0, scaling: RopeScaling::None }));
    let program = scaled.program();
    let first = |op: &Op| match op {
        Op::Rope { table, .. } => Some(program.ropes[table.0 as usize].inv_freq[0]),
        _ => None,
    };
    let turns: Vec<f32> = program.ops.iter().filter_map(first).step_by(2).collect();
    assert_eq!(turns, [1.0, 1.0, 0.125, 1.0]);
    // The same as transformers 5 writes it, and what 5 takes for absent parts.
    let nested = |parameters: Value| {
        let mut json = without("gemma3_text", &["rope_theta", "rope_local_base_freq", "rope_scaling"]);
        json["rope_parameters"] = parameters;
        parse(json)
    };
    let full = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5});
    let local = json!({"rope_type": "default", "rope_theta": 1e3});
    assert_eq!(nested(json!({"full_attention": full, "sliding_attention": local})), Ok(scaled));
    let c = nested(json!({"full_attention": full, "sliding_attention": null})).unwrap();
    assert_eq!(c.local_rope.unwrap().theta, 1e4);
    let c = nested(json!({"sliding_attention": {"rope_type": "linear", "factor": 2.0}})).unwrap();
    assert_eq!((c.rope.theta, c.local_rope.unwrap().scaling), (1e6, RopeScaling::Linear { factor: 2.0 }));
    // 5.23 takes no notice of what is not nested.
    assert!(
        nested(json!({"rope_type": "default", "rope_theta": 5e5}))
            .unwrap_err()
            .to_string()
            .contains("rope_parameters.rope_t")
    );
    assert!(nested(json!({"chunked_attention": local})).unwrap_err().to_string().contains("chunked_attention"));
    let other = with("gemma3_text", json!({"rope_parameters": {"sliding_attention": {"rope_theta": 7e3}}}));
    assert!(error(other).contains("rope_parameters.sliding_attention.rope_theta"));
    let part = with("gemma3_text", json!({"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5}}}));
    assert!(error(part).contains("partial_rotary_factor"));
}

/// `gemma3_text` as the language model of a model that reads images, as such models are published.
fn within(outer: Value, inner: Value) -> Value {
    let mut text = config_json("gemma3_text");
    for key in ["architectures", "bos_token_id", "eos_token_id", "torch_dtype", "transformers_version"] {
        text.as_object_mut().unwrap().remove(key);
    }
    inner.as_object().unwrap().iter().for_each(|(key, value)| text[key] = value.clone());
    let mut json = json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "eos_token_id": [1, 106],
        "image_token_index": 262_144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "vision_use_head": false},
        "text_config": text,
    });
    outer.as_object().unwrap().iter().for_each(|(key, value)| json[key] = value.clone());
    json
}

#[test]
fn the_language_model_of_a_larger_one_is_the_same_model() {
    let alone = parse(config_json("gemma3_text")).unwrap();
    let c = parse(within(json!({}), json!({}))).unwrap();
    assert_eq!(c, ModelConfig { family: Family::Gemma3, eos: vec![1, 106], ..alone.clone() });
    let text = |program: crate::Program| program.to_string().replacen("gemma3_text", "gemma3", 1);
    assert_eq!(text(c.program()), text(alone.program()));
    // Its head does not cap, whatever the text config says.
    assert_eq!(parse(within(json!({}), json!({"final_logit_softcapping": 30.0}))).unwrap().logit_softcap, None);
    assert_eq!(parse(within(json!({"bos_token_id": 7}), json!({"bos_token_id": 3}))).unwrap().bos, Some(7));
    for (outer, inner, key) in [
        (json!({}), json!({"head_count": 3}), "text_config.head_count"),
        (json!({}), json!({"use_bidirectional_attention": true}), "text_config.use_bidirectional_attention"),
        (json!({}), json!({"hidden_size": "x"}), "text_config.hidden_size"),
        (json!({}), json!({"model_type": "llama"}), "text_config.model_type"),
        (json!({"hidden_size": 64}), json!({}), "`hidden_size`"),
        (json!({"tie_word_embeddings": false}), json!({}), "tie_word_embeddings"),
        (json!({"text_config": null}), json!({}), "`text_config` is missing"),
        (json!({"text_config": [1]}), json!({}), "text_config"),
    ] {
        let error = error(within(outer, inner));
        assert!(error.contains(key), "{key}: {error}");
    }
    let published = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    });
    let c = parse(published).unwrap();
    assert_eq!((c.layers, c.heads, c.kv_heads, c.head_dim, c.windows[5]), (34, 8, 4, 256, None));
    assert_eq!((c.windows[0], c.rope.scaling), (Some(1024), RopeScaling::Linear { factor: 8.0 }));
}
