//! Configurations of the fixtures, of both generations, and hostile ones.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::fixtures::{self, error, parse, with, without};

#[test]
fn every_fixture_parses() {
    for name in fixtures::CHECKPOINTS {
        let c = parse(fixtures::config_json(name)).unwrap();
        assert!(name.starts_with(c.family.name()), "{name}");
        let tied = ["llama_tied", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "smollm3", "gpt2"];
        let since = ["starcoder2", "cohere", "cohere2", "gpt_bigcode", "opt", "falcon"];
        assert_eq!(c.tied, tied.contains(&name) || since.contains(&name), "{name}");
    }
    let c = parse(fixtures::config_json("llama3_rope")).unwrap();
    assert_eq!((c.bos, c.eos), (Some(1), vec![2, 3, 4]));
    assert_eq!(c.rope.theta, 500_000.0);
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_len: 32 };
    assert_eq!(c.rope.scaling, scaling);
    let c = parse(fixtures::config_json("mistral")).unwrap();
    assert_eq!((c.head_dim, &c.windows[..]), (16, &[Some(16); 3][..]));
    let c = parse(fixtures::config_json("qwen2")).unwrap();
    assert_eq!((c.bias, &c.windows[..]), (Biases { qkv: true, o: false, mlp: false }, &[None; 3][..]));
    let c = parse(fixtures::config_json("qwen3")).unwrap();
    assert_eq!((c.head_norms, c.head_dim, c.bias), (true, 32, Biases::default()));
}

#[test]
fn both_generations_of_the_format_mean_the_same() {
    for name in fixtures::CHECKPOINTS {
        let old = fixtures::config_json(name);
        let mut new = without(name, &["rope_theta", "rope_scaling", "rope_local_base_freq", "torch_dtype"]);
        let mut rope = old["rope_scaling"].as_object().cloned().unwrap_or_default();
        let kind = rope.remove("type").unwrap_or(json!("default"));
        rope.entry("rope_type").or_insert(kind);
        if let Some(theta) = old.get("rope_theta") {
            rope.insert("rope_theta".into(), theta.clone());
            new["rope_parameters"] = match old.get("rope_local_base_freq") {
                None => Value::Object(rope),
                Some(local) => json!({
                    "full_attention": rope,
                    "sliding_attention": {"rope_type": "default", "rope_theta": local},
                }),
            };
        }
        new["dtype"] = old["torch_dtype"].clone();
        assert_eq!(parse(new).unwrap(), parse(old.clone()).unwrap(), "{name}");
        // The oldest files say `type`.
        let mut oldest = old.clone();
        if let Some(Value::Object(scaling)) = oldest.get_mut("rope_scaling")
            && let Some(kind) = scaling.remove("rope_type")
        {
            scaling.insert("type".into(), kind);
        }
        assert_eq!(parse(oldest).unwrap(), parse(old).unwrap(), "{name}");
    }
}

#[test]
fn absent_keys_take_the_family_defaults_of_transformers() {
    let c = parse(json!({"model_type": "llama"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (32000, 4096, 32, 32, 32));
    assert_eq!((c.head_dim, c.ffn, c.max_len, c.norm_eps, c.tied), (128, 11008, 2048, 1e-6, false));
    assert_eq!((c.bos, c.eos, c.rope.theta), (Some(1), vec![2], 10_000.0));
    let c = parse(json!({"model_type": "mistral"})).unwrap();
    assert_eq!((c.kv_heads, c.ffn, c.max_len, c.windows[31]), (8, 14336, 131_072, Some(4096)));
    let c = parse(json!({"model_type": "mistral", "sliding_window": null, "num_key_value_heads": null})).unwrap();
    assert_eq!((c.kv_heads, c.windows[0]), (32, None));
    let c = parse(json!({"model_type": "qwen2"})).unwrap();
    assert_eq!((c.vocab, c.ffn, c.max_len, c.bos), (151_936, 22016, 32768, None));
    assert!(c.bias.qkv && c.eos.is_empty() && c.windows[31].is_none());
    let c = parse(json!({"model_type": "qwen3", "hidden_size": 1024})).unwrap();
    assert_eq!((c.head_dim, c.kv_heads), (128, 32));
    let c = parse(json!({"architectures": ["LlamaForCausalLM"], "head_dim": null})).unwrap();
    assert_eq!((c.family, c.head_dim), (Family::Llama, 128));
}

#[test]
fn windows_of_qwen_follow_their_three_keys_or_layer_types() {
    let windows = |changes| parse(with("qwen2", changes)).unwrap().windows;
    assert_eq!(windows(json!({"use_sliding_window": true})), [None, None, Some(16)]);
    assert_eq!(windows(json!({"use_sliding_window": true, "max_window_layers": 0})), [Some(16); 3]);
    assert_eq!(windows(json!({"use_sliding_window": true, "sliding_window": null})), [None; 3]);
    let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    let given = windows(json!({"use_sliding_window": true, "layer_types": types}));
    assert_eq!(given, [Some(16), None, Some(16)]);
    // A window that is not in use cannot slide.
    assert!(error(with("qwen2", json!({"layer_types": types}))).contains("layer_types[0]"));
    assert!(error(with("qwen2", json!({"layer_types": ["full_attention"]}))).contains("layer_types"));
    let chunked = json!(["chunked_attention", "full_attention", "full_attention"]);
    assert!(error(with("qwen2", json!({"layer_types": chunked}))).contains("chunked_attention"));
    // llama ignores the key; it must say what llama does.
    assert!(
        parse(with("llama_plain", json!({"layer_types": ["full_attention", "full_attention", "full_attention"]})))
            .is_ok()
    );
    assert!(
        error(with("mistral", json!({"layer_types": ["full_attention", "full_attention", "full_attention"]})))
            .contains("layer_types")
    );
}

#[test]
fn yarn_takes_the_factor_and_python_truth_for_the_rest() {
    let yarn = |changes: Value| {
        let mut json = fixtures::config_json("llama_yarn");
        for (key, value) in changes.as_object().unwrap() {
            json["rope_scaling"][key] = value.clone();
        }
        parse(json)
    };
    let RopeScaling::Yarn { factor, original_max_len, beta_fast, beta_slow, attention_factor, truncate, .. } =
        yarn(json!({})).unwrap().rope.scaling
    else {
        panic!("yarn expected")
    };
    assert_eq!((factor, original_max_len, beta_fast, beta_slow), (4.0, 32, 32.0, 1.0));
    assert_eq!((attention_factor, truncate), (None, true));
    // null: the ratio of the lengths, as 5.23 has it
    let RopeScaling::Yarn { factor, .. } = yarn(json!({"factor": null})).unwrap().rope.scaling else { panic!() };
    assert_eq!(factor, 16.0);
    let RopeScaling::Yarn { beta_fast, truncate, .. } =
        yarn(json!({"beta_fast": 0, "truncate": null})).unwrap().rope.scaling
    else {
        panic!()
    };
    assert_eq!((beta_fast, truncate), (32.0, false));
    let RopeScaling::Yarn { original_max_len, .. } =
        yarn(json!({"original_max_position_embeddings": null})).unwrap().rope.scaling
    else {
        panic!()
    };
    assert_eq!(original_max_len, 512);
    assert!(yarn(json!({"temperature": 2})).unwrap_err().to_string().contains("rope_scaling.temperature"));
    assert!(yarn(json!({"factor": "four"})).unwrap_err().to_string().contains("rope_scaling.factor"));
    assert!(yarn(json!({"factor": -1})).unwrap_err().to_string().contains("factor"));
}

/// `_compute_dynamic_ntk_parameters` of both versions: the base grows with sequences beyond `max_position_embeddings` alone.
#[test]
fn a_dynamic_rope_is_none_up_to_where_the_model_ends() {
    let plain = parse(fixtures::config_json("llama_plain")).unwrap();
    assert!(!plain.is_bounded());
    for key in ["rope_scaling", "rope_parameters"] {
        let dynamic = |more: Value| {
            let mut json = with("llama_plain", json!({key: {"rope_type": "dynamic", "factor": 2.0}}));
            json[key].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            parse(json).map_err(|e| e.to_string())
        };
        let c = dynamic(json!({"original_max_position_embeddings": plain.max_len})).unwrap();
        assert_eq!(c.rope.scaling, RopeScaling::Dynamic { factor: 2.0 });
        assert!(c.is_bounded());
        assert_eq!(c.program().ropes, plain.program().ropes);
        assert!(dynamic(json!({"original_max_position_embeddings": 7})).unwrap_err().contains("original_max"));
        assert!(dynamic(json!({"factor": null})).unwrap_err().contains("factor"));
        assert!(dynamic(json!({"factor": -2.0})).unwrap_err().contains("factor"));
        assert!(dynamic(json!({"mscale": 1.0})).unwrap_err().contains("mscale"));
    }
    for (name, is_bounded) in [("gpt2", true), ("opt", true), ("gpt_bigcode", true), ("falcon", false)] {
        assert_eq!(parse(fixtures::config_json(name)).unwrap().is_bounded(), is_bounded, "{name}");
    }
}

#[test]
fn contradictions_between_the_generations_are_refused() {
    assert!(
        error(with("llama_plain", json!({"rope_parameters": {"rope_theta": 5e5}})))
            .contains("rope_parameters.rope_theta")
    );
    assert!(
        parse(with("llama_plain", json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}))).is_ok()
    );
    let both = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0}});
    assert!(error(with("llama_linear", both)).contains("contradicts rope_scaling"));
    let types = json!({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}});
    assert!(error(with("llama_plain", types)).contains("contradicts type"));
    assert!(error(with("llama_yarn", json!({"original_max_position_embeddings": 64}))).contains("original_max"));
}

#[test]
fn keys_that_change_the_mathematics_are_refused_by_name() {
    for (key, value) in [
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("logit_scale", json!(0.0625)),
        ("logits_scaling", json!(8.0)),
        ("embedding_multiplier", json!(12.0)),
        ("partial_rotary_factor", json!(0.5)),
        ("num_experts", json!(8)),
        ("num_local_experts", json!(8)),
        ("query_pre_attn_scalar", json!(256)),
        ("no_rope_layers", json!([1, 1, 0])),
        ("rope_interleaved", json!(true)),
        ("use_qk_norm", json!(true)),
        ("sliding_window", json!(16)),
        ("is_encoder_decoder", json!(true)),
        ("is_causal", json!(false)),
        ("hidden_act", json!("quick_gelu")),
    ] {
        let error = error(with("llama_plain", json!({key: value})));
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
    let mrope = error(with("llama_plain", json!({"rope_scaling": {"rope_type": "mrope", "factor": 2.0}})));
    assert!(mrope.contains("rope_scaling.rope_type") && mrope.contains("mrope"), "{mrope}");
    let nested = json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}});
    assert!(error(with("qwen3", nested)).contains("rope_parameters.full_attention"));
}

#[test]
fn neutral_and_harmless_keys_are_ignored() {
    let plain = parse(fixtures::config_json("llama_plain")).unwrap();
    let noise = json!({
        "attn_logit_softcapping": null, "use_qk_norm": false, "quantization_config": {}, "pruned_heads": {},
        "adapter": "", "_name_or_path": "x", "_attn_implementation_internal": "sdpa", "attention_dropout": 0.1,
        "temperature": 0.7, "transformers.js_config": {"dtype": "q4"}, "pad_token_id": -1, "is_llama_config": true,
        "partial_rotary_factor": 1.0, "rope_scaling": {}, "hidden_act": "swish", "torch_dtype": "float16",
        "id2label": {"0": "LABEL_0"}, "max_length": 20, "layer_types": null,
    });
    assert_eq!(parse(with("llama_plain", noise)).unwrap(), plain);
}

#[test]
fn the_class_may_be_that_of_the_model_below_its_head() {
    for (name, class) in [
        ("llama_plain", "LlamaModel"),
        ("gpt2", "GPT2Model"),
        ("gemma3_text", "Gemma3TextModel"),
        ("gpt_bigcode", "GPTBigCodeLMHeadModel"),
        ("opt", "OPTModel"),
    ] {
        let config = parse(fixtures::config_json(name));
        assert_eq!(parse(with(name, json!({"architectures": [class]}))), config, "{class}");
    }
}

#[test]
fn other_architectures_are_refused_with_the_supported_ones() {
    for (model_type, class) in [
        ("mpt", "MptForCausalLM"),
        ("gptj", "GPTJForCausalLM"),
        ("phimoe", "PhimoeForCausalLM"),
        ("deepseek_v4", "DeepseekV4ForCausalLM"),
        ("qwen3_next", "Qwen3NextForCausalLM"),
    ] {
        let error = error(json!({"model_type": model_type, "architectures": [class]}));
        assert!(error.contains(model_type) && Family::ALL.iter().all(|f| error.contains(f.name())), "{error}");
    }
    for (name, class) in [
        ("qwen2", "Qwen3Model"),
        ("gemma3_text", "Gemma3ForConditionalGeneration"),
        ("gpt2", "GPT2DoubleHeadsModel"),
        ("opt", "Model"),
    ] {
        assert!(error(with(name, json!({"architectures": [class]}))).contains(class), "{class}");
    }
    let head = json!({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]});
    assert!(error(head).contains("LlamaForSequenceClassification"));
    assert!(error(json!({})).contains("model_type"));
    assert!(error(json!([1])).contains("not a JSON object"));
}

#[test]
fn impossible_sizes_are_refused_by_name() {
    for (key, value) in [
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
        ("head_dim", json!(15)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!(64.5)),
        ("num_hidden_layers", json!(1u64 << 40)),
        ("vocab_size", json!(-1)),
        ("intermediate_size", json!("96")),
        ("rms_norm_eps", json!(-1e-6)),
        ("rms_norm_eps", json!(1e300)),
        ("rope_theta", json!(0.0)),
        ("eos_token_id", json!("</s>")),
        ("eos_token_id", json!([2, "x"])),
    ] {
        let error = error(with("llama_plain", json!({key: value})));
        assert!(error.contains(key) || key == "num_attention_heads" && error.contains("hidden_size"), "{key}: {error}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..100_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
        prop_oneof![Just("yarn"), Just("llama3"), Just("linear"), Just("sliding_attention")].prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop_oneof![
            "[a-z_]{1,12}",
            Just("rope_type".to_owned()),
            Just("factor".to_owned()),
            Just("rope_theta".to_owned()),
            Just("original_max_position_embeddings".to_owned())
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4).prop_map(|kv| Value::Object(kv.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_change_of_a_config_gives_a_config_that_traces_or_an_error(
        fixture in 0..fixtures::CHECKPOINTS.len(),
        changes in prop::collection::vec((0usize..40, any_json()), 1..4),
    ) {
        let mut json = fixtures::config_json(fixtures::CHECKPOINTS[fixture]);
        for (key, value) in changes {
            let keys: Vec<String> = json.as_object().unwrap().keys().cloned().collect();
            let extra = [
                "rope_parameters",
                "layer_types",
                "head_dim",
                "sliding_window",
                "use_sliding_window",
                "sliding_window_pattern",
                "no_rope_layers",
            ];
            let key = keys.get(key).map_or(extra[key % extra.len()], String::as_str);
            json[key] = value;
        }
        if let Ok(config) = parse(json) {
            let program = config.program();
            prop_assert!(program.ropes.iter().all(|r| r.inv_freq.iter().all(|x| x.is_finite()) && r.amplitude.is_finite()));
        }
    }

    #[test]
    fn arbitrary_json_gives_a_value_or_an_error(json in any_json()) {
        let _ = parse(json);
    }
}

#[test]
fn configs_with_every_key_that_transformers_writes_mean_the_same() {
    for version in [4, 5] {
        let text = std::fs::read_to_string(fixtures::path(&format!("configs/transformers-{version}.json"))).unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        for name in fixtures::CHECKPOINTS {
            let expected = parse(fixtures::config_json(name)).unwrap();
            assert_eq!(parse(all[name].clone()), Ok(expected), "{name} by transformers {version}");
        }
    }
}
