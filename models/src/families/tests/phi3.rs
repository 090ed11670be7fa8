//! phi3, and LongRoPE, which it alone is known by.

use serde_json::{Value, json};

use crate::config::RopeScaling;
use crate::fixtures::{config_json, error, parse, with, without};

/// `phi3_longrope` with changes in its `rope_scaling`.
fn scaled(changes: Value) -> Value {
    let mut json = config_json("phi3_longrope");
    for (key, value) in changes.as_object().unwrap() {
        json["rope_scaling"][key] = value.clone();
    }
    json
}

/// The same as transformers 5 writes it.
fn parameters(changes: Value) -> Value {
    let mut json = scaled(changes);
    let scaling = json["rope_scaling"].take();
    json["rope_parameters"] = scaling;
    json
}

/// Original length and amplitude.
fn long(json: Value) -> (usize, f64) {
    match parse(json).unwrap().rope.scaling {
        RopeScaling::Long { original_max_len, attention_factor, .. } => (original_max_len, attention_factor),
        other => panic!("{other:?}"),
    }
}

/// Of `factor`, for sequences of up to `original` tokens.
fn amplitude(factor: f64, original: f64) -> f64 {
    (1.0 + factor.ln() / original.ln()).sqrt()
}

#[test]
fn absent_keys_take_the_class_defaults() {
    let c = parse(json!({"model_type": "phi3"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (32064, 3072, 32, 32, 32));
    assert_eq!((c.ffn, c.max_len, c.norm_eps, c.rope.theta), (8192, 4096, 1e-5, 1e4));
    assert_eq!((c.head_dim, c.rope_width, c.tied, c.windows[0]), (96, 96, false, None));
    assert_eq!((c.bos, &c.eos[..]), (Some(1), &[32000][..]));
}

#[test]
fn heads_are_rotated_in_part() {
    // Phi-4-mini: 24 heads of 128, three quarters of each rotated.
    let mini = json!({
        "model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8,
        "partial_rotary_factor": 0.75, "tie_word_embeddings": true, "sliding_window": 262_144, "full_attn_mod": 1,
        "interpolate_factor": 1, "lm_head_bias": false, "mlp_bias": false, "attention_bias": false,
        "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![2.5; 48]},
    });
    let c = parse(mini.clone()).unwrap();
    assert_eq!((c.head_dim, c.rope_width, c.tied, c.windows[31]), (128, 96, true, Some(262_144)));
    assert_eq!(c.program().ropes[0].width(), 96);
    assert_eq!(long(mini.clone()), (4096, amplitude(32.0, 4096.0)));
    let mut whole = mini.clone();
    whole["partial_rotary_factor"] = json!(1.0);
    assert!(error(whole).contains("short_factor"));
    for key in ["full_attn_mod", "interpolate_factor", "lm_head_bias", "attention_bias"] {
        let mut other = mini.clone();
        other[key] = if key.ends_with("bias") { json!(true) } else { json!(2) };
        assert!(error(other).contains(&format!("`{key}`")));
    }
    assert!(error(with("phi3", json!({"partial_rotary_factor": 0.2}))).contains("head_dim"));
    assert!(error(with("phi3", json!({"partial_rotary_factor": 0.0}))).contains("partial_rotary_factor"));
}

#[test]
fn windows_cover_every_layer() {
    assert_eq!(parse(with("phi3", json!({"sliding_window": 2047}))).unwrap().windows, [Some(2047); 3]);
    let types = json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 9});
    assert!(error(with("phi3", types)).contains("layer_types"));
}

#[test]
fn every_scaling_of_phi3_is_longrope() {
    let expected = long(scaled(json!({})));
    assert_eq!(expected, (32, amplitude(4.0, 32.0)));
    for kind in ["su", "yarn"] {
        assert_eq!(long(scaled(json!({"type": kind}))), expected, "{kind}");
        // transformers 5 leaves the old name beside the new one.
        assert_eq!(long(parameters(json!({"type": kind, "rope_type": "longrope"}))), expected, "{kind}");
    }
    for kind in ["linear", "llama3", "dynamic"] {
        let error = error(scaled(json!({"type": kind})));
        assert!(error.contains("rope_scaling.") && error.contains(kind), "{error}");
    }
    // Another family's yarn is yarn.
    assert!(
        error(with("llama_plain", json!({"rope_scaling": {"type": "yarn", "short_factor": [1.0]}}))).contains("short")
    );
}

#[test]
fn the_original_length_is_the_outer_one_or_the_class_default() {
    let without_outer = |mut json: Value| {
        json.as_object_mut().unwrap().remove("original_max_position_embeddings");
        json
    };
    assert_eq!(long(without("phi3_longrope", &["original_max_position_embeddings"])), (4096, 1.0));
    assert_eq!(long(parameters(json!({"original_max_position_embeddings": 32}))).0, 32);
    let inner = scaled(json!({"original_max_position_embeddings": 64}));
    assert!(error(inner.clone()).contains("original_max_position_embeddings"));
    assert!(error(without_outer(inner)).contains("original_max_position_embeddings"));

    // A factor that is not the ratio of the lengths: 4.57 takes the ratio, 5.23 the factor.
    assert_eq!(long(scaled(json!({"factor": 4.0}))), (32, amplitude(4.0, 32.0)));
    assert!(error(scaled(json!({"factor": 2.0}))).contains("rope_scaling.factor"));
    assert_eq!(long(parameters(json!({"factor": 2.0}))), (32, amplitude(2.0, 32.0)));
    assert_eq!(long(scaled(json!({"attention_factor": 1.5}))), (32, 1.5));
}

#[test]
fn longrope_of_other_families_needs_what_both_versions_read_alike() {
    let factors = || vec![1.0; 8];
    let llama = |mut scaling: Value, outer: Option<usize>| {
        scaling["rope_type"] = json!("longrope");
        scaling["short_factor"] = json!(factors());
        scaling["long_factor"] = json!(factors());
        let mut json = with("llama_plain", json!({"rope_scaling": scaling}));
        if let Some(outer) = outer {
            json["original_max_position_embeddings"] = json!(outer);
        }
        json
    };
    assert_eq!(long(llama(json!({"factor": 2.0}), None)), (512, amplitude(2.0, 512.0)));
    assert_eq!(long(llama(json!({}), Some(128))), (128, amplitude(4.0, 128.0)));
    assert_eq!(long(llama(json!({"original_max_position_embeddings": 128}), None)), (128, amplitude(4.0, 128.0)));
    let disputed = json!({"original_max_position_embeddings": 128, "factor": 4.0});
    assert!(error(llama(disputed, None)).contains("rope_scaling.original_max_position_embeddings"));
    assert!(error(llama(json!({}), None)).contains("factor"));
}
