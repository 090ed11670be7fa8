//! The keys of published configs, which hold more than the classes write: of each family one or two, from memory of the
//! files. What they say beyond the class's keys must be taken where it changes nothing, and refused where it would.

use serde_json::{Value, json};

use crate::fixtures::{error, parse, with};

/// Name and config, all sizes as published.
fn published() -> Vec<(&'static str, Value)> {
    vec![
        (
            "gpt-neox-20b",
            json!({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0,
                "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu_fast", "hidden_dropout_prob": 0,
                "hidden_size": 6144, "initializer_range": 0.02, "intermediate_size": 24576, "layer_norm_eps": 1e-5,
                "max_position_embeddings": 2048, "num_attention_heads": 64, "num_hidden_layers": 44, "rotary_emb_base": 10000,
                "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16", "use_cache": true,
                "vocab_size": 50432}),
        ),
        (
            "opt-350m",
            json!({"_name_or_path": "opt-350m", "model_type": "opt", "activation_dropout": 0.0, "activation_function": "relu",
                "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
                "do_layer_norm_before": false, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 4096, "hidden_size": 1024,
                "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048, "num_attention_heads": 16,
                "num_hidden_layers": 24, "pad_token_id": 1, "prefix": "</s>", "vocab_size": 50272,
                "word_embed_proj_dim": 512}),
        ),
        (
            "nemotron-4 of 4 billion",
            json!({"model_type": "nemotron", "architectures": ["NemotronForCausalLM"], "attention_bias": false,
                "bos_token_id": 2, "eos_token_id": 3, "hidden_act": "relu2", "hidden_size": 3072,
                "initializer_range": 0.0134, "intermediate_size": 9216, "kv_channels": 128,
                "max_position_embeddings": 4096, "mlp_bias": false, "norm_eps": 1e-5, "num_attention_heads": 24,
                "num_hidden_layers": 32, "num_key_value_heads": 8, "partial_rotary_factor": 0.5, "rope_percent": 0.5,
                "rope_theta": 10000, "tie_word_embeddings": false, "vocab_size": 256000}),
        ),
        (
            "starcoder",
            json!({"model_type": "gpt_bigcode", "architectures": ["GPTBigCodeForCausalLM"],
                "activation_function": "gelu", "attention_softmax_in_fp32": true, "attn_pdrop": 0.1, "bos_token_id": 0,
                "embd_pdrop": 0.1, "eos_token_id": 0, "inference_runner": 0, "initializer_range": 0.02,
                "layer_norm_epsilon": 1e-5, "max_batch_size": null, "max_sequence_length": null, "multi_query": true,
                "n_embd": 6144, "n_head": 48, "n_inner": 24576, "n_layer": 40, "n_positions": 8192,
                "pad_key_length": true, "pre_allocate_kv_cache": false, "resid_pdrop": 0.1,
                "scale_attention_softmax_in_fp32": true, "scale_attn_weights": true, "summary_type": "cls_index",
                "summary_use_proj": true, "use_cache": true, "validate_runner_input": true, "vocab_size": 49152}),
        ),
        (
            "starcoder2-3b",
            json!({"model_type": "starcoder2", "architectures": ["Starcoder2ForCausalLM"], "activation_function": "gelu",
                "attention_dropout": 0.1, "attention_softmax_in_fp32": true, "bos_token_id": 0, "embedding_dropout": 0.1,
                "eos_token_id": 0, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072, "intermediate_size": 12288,
                "layer_norm_epsilon": 1e-5, "max_position_embeddings": 16384, "mlp_type": "default",
                "norm_epsilon": 1e-5, "norm_type": "layer_norm", "num_attention_heads": 24, "num_hidden_layers": 30,
                "num_key_value_heads": 2, "residual_dropout": 0.1, "rope_theta": 999999.4420358813,
                "scale_attention_softmax_in_fp32": true, "scale_attn_weights": true, "sliding_window": 4096,
                "use_bias": true, "vocab_size": 49152}),
        ),
        (
            "stablelm-3b-4e1t",
            json!({"model_type": "stablelm", "architectures": ["StableLmForCausalLM"], "bos_token_id": 0,
                "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 6912,
                "layer_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_heads": 32,
                "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000,
                "rotary_scaling_factor": 1.0, "tie_word_embeddings": false, "use_qkv_bias": false,
                "vocab_size": 50304}),
        ),
        (
            "falcon-7b",
            json!({"model_type": "falcon", "alibi": false, "apply_residual_connection_post_layernorm": false,
                "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0, "auto_map": {"AutoConfig": "x"},
                "bias": false, "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 4544,
                "layer_norm_epsilon": 1e-5, "multi_query": true, "new_decoder_architecture": false,
                "num_attention_heads": 71, "num_hidden_layers": 32, "parallel_attn": true, "vocab_size": 65024}),
        ),
        (
            "falcon-rw-1b",
            json!({"model_type": "falcon", "alibi": true, "apply_residual_connection_post_layernorm": false,
                "architectures": ["FalconForCausalLM"], "bias": true, "bos_token_id": 1, "eos_token_id": 2,
                "hidden_size": 2048, "layer_norm_epsilon": 1e-5, "multi_query": false,
                "new_decoder_architecture": false, "num_attention_heads": 32, "num_hidden_layers": 24,
                "parallel_attn": false, "vocab_size": 50304}),
        ),
        (
            "falcon-11B",
            json!({"model_type": "falcon", "activation": "gelu", "alibi": false, "architectures": ["FalconForCausalLM"],
                "bias": false, "bos_token_id": 11, "eos_token_id": 11, "ff_factor": 4, "ffn_hidden_size": 16384,
                "hidden_size": 4096, "layer_norm_epsilon": 1e-5, "max_position_embeddings": 8192, "multi_query": true,
                "new_decoder_architecture": true, "num_attention_heads": 32, "num_hidden_layers": 60,
                "num_kv_heads": 8, "num_ln_in_parallel_attn": 1, "parallel_attn": true, "rope_theta": 5000042.0,
                "vocab_size": 65024}),
        ),
        (
            "SmolLM3-3B",
            json!({"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "attention_bias": false,
                "attention_dropout": 0.0, "bos_token_id": null, "eos_token_id": 128012, "hidden_act": "silu",
                "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 11008,
                "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": false,
                "no_rope_layer_interval": 4, "num_attention_heads": 16, "num_hidden_layers": 36,
                "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-6,
                "rope_scaling": null, "rope_theta": 5000000.0, "sliding_window": null, "use_cache": true,
                "use_sliding_window": false, "vocab_size": 128256}),
        ),
        (
            "gemma-2-9b",
            json!({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attention_bias": false,
                "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
                "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584,
                "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 8192,
                "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
                "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
                "sliding_window_size": 4096, "use_cache": true, "vocab_size": 256000}),
        ),
        (
            "galactica-6.7b",
            json!({"model_type": "opt", "architectures": ["OPTForCausalLM"], "_remove_final_layer_norm": false,
                "activation_dropout": 0.0, "activation_function": "gelu", "attention_dropout": 0.1, "bos_token_id": 0,
                "do_layer_norm_before": true, "dropout": 0.1, "enable_bias": false, "eos_token_id": 2,
                "ffn_dim": 16384, "hidden_size": 4096, "init_std": 0.006, "layer_norm_elementwise_affine": false,
                "layerdrop": 0.0, "learned_embeddings": true, "max_position_embeddings": 2048,
                "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": 1, "scale_embeddings": false,
                "vocab_size": 50000, "word_embed_proj_dim": 4096}),
        ),
        (
            "dolly-v2-3b",
            json!({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0,
                "custom_pipelines": {"text-generation": {"impl": "instruct_pipeline.InstructionTextGenerationPipeline"}},
                "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 2560, "initializer_range": 0.02,
                "intermediate_size": 10240, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
                "num_attention_heads": 32, "num_hidden_layers": 32, "rotary_emb_base": 10000, "rotary_pct": 0.25,
                "tie_word_embeddings": false, "use_parallel_residual": true, "vocab_size": 50280}),
        ),
        (
            "EXAONE-4.0-32B",
            json!({"model_type": "exaone4", "architectures": ["Exaone4ForCausalLM"], "attention_dropout": 0.0,
                "bos_token_id": 1, "eos_token_id": 361, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
                "intermediate_size": 27392, "max_position_embeddings": 131072, "max_window_layers": 64,
                "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8, "pad_token_id": 0,
                "reorder_qk_norm": true, "rms_norm_eps": 1e-5, "rope_theta": 1000000,
                "rope_scaling": {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
                "layer_types": (1..=64).map(|i| if i % 4 == 0 { "full_attention" } else { "sliding_attention" })
                    .collect::<Vec<_>>(),
                "sliding_window": 4096, "sliding_window_pattern": "LLLG", "tie_word_embeddings": false,
                "vocab_size": 102400}),
        ),
        (
            "DeepSeek-V2-Lite",
            json!({"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false,
                "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001,
                "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
                "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408,
                "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
                "norm_topk_prob": false, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
                "num_key_value_heads": 16, "pretraining_tp": 1, "q_lora_rank": null, "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6,
                "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                    "original_max_position_embeddings": 4096, "type": "yarn"},
                "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": true,
                "tie_word_embeddings": false, "topk_group": 1, "topk_method": "greedy", "v_head_dim": 128,
                "vocab_size": 102400}),
        ),
    ]
}

#[test]
fn published_configs_are_read() {
    for (name, json) in published() {
        let config = parse(json).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(config.vocab > 40_000 && config.layers >= 24, "{name}: {config:?}");
    }
}

#[test]
fn what_they_say_beside_their_class_may_not_say_otherwise() {
    for (name, key, value) in [
        ("nemotron-4 of 4 billion", "kv_channels", json!(64)),
        ("nemotron-4 of 4 billion", "rope_percent", json!(0.25)),
        ("starcoder2-3b", "scale_attn_weights", json!(false)),
        ("starcoder2-3b", "mlp_type", json!("gated")),
        ("stablelm-3b-4e1t", "num_heads", json!(16)),
        ("stablelm-3b-4e1t", "rotary_scaling_factor", json!(2.0)),
        ("falcon-7b", "num_ln_in_parallel_attn", json!(2)),
        ("gemma-2-9b", "sliding_window_size", json!(2048)),
        ("galactica-6.7b", "learned_embeddings", json!(false)),
        ("galactica-6.7b", "scale_embeddings", json!(true)),
        ("EXAONE-4.0-32B", "reorder_qk_norm", json!(false)),
        ("falcon-11B", "parallel_attn", json!(false)),
        ("DeepSeek-V2-Lite", "scoring_func", json!("sigmoid")),
        ("DeepSeek-V2-Lite", "topk_method", json!("noaux_tc")),
        ("DeepSeek-V2-Lite", "norm_topk_prob", json!(true)),
        ("DeepSeek-V2-Lite", "moe_layer_freq", json!(2)),
    ] {
        let (_, mut json) = published().into_iter().find(|(n, _)| *n == name).unwrap();
        json[key] = value;
        assert!(error(json).contains(key), "{name} {key}");
    }
}

#[test]
fn groups_of_experts_that_make_no_sense_are_refused() {
    for (key, value) in
        [("n_group", 5), ("n_group", 0), ("topk_group", 9), ("topk_group", 0), ("num_experts_per_tok", 999)]
    {
        assert!(error(with("deepseek_v3", json!({key: value}))).contains(key), "{key} {value}");
    }
    assert!(error(with("deepseek_v3", json!({"topk_method": "greedy"}))).contains("topk_method"));
}

/// Sizes that only later checks would bound, and lists that are as long as another width.
#[test]
fn hostile_sizes_are_refused_before_anything_is_made_of_them() {
    for heads in [1_u64 << 40, 1 << 62] {
        let json = json!({"model_type": "falcon", "alibi": true, "num_attention_heads": heads, "hidden_size": heads});
        assert!(error(json).contains("num_attention_heads"), "{heads}");
    }
    for pairs in [28, 32] {
        let scaling = json!({"rope_type": "longrope", "factor": 1.0, "short_factor": vec![1.0; pairs], "long_factor": vec![1.0; pairs],
            "original_max_position_embeddings": 4096});
        let message = error(json!({"model_type": "deepseek_v3", "rope_scaling": scaling}));
        assert!(message.contains("rope_scaling") || message.contains("factor"), "{message}");
    }
}
