//! What of the architectures the converted files of `testdata/gguf` do not show: defaults, older layouts, refusals.

use super::*;
use crate::program::RouteGroups;

/// A key's value, of the types that architectures have.
#[derive(Clone, Copy)]
enum Is<'a> {
    N(u32),
    X(f32),
    Yes(bool),
    Word(&'a str),
}
use Is::{N, Word, X, Yes};

/// Metadata of a tiny model: 8 wide, 2 heads of 4.
fn model(arch: &str, layers: u32, keys: &[(&str, Is<'_>)]) -> Writer {
    let name = |key: &str| format!("{arch}.{key}");
    let writer = Writer::new()
        .text("general.architecture", arch)
        .u32(&name("block_count"), layers)
        .u32(&name("context_length"), 64)
        .u32(&name("embedding_length"), 8)
        .u32(&name("feed_forward_length"), 16)
        .u32(&name("attention.head_count"), 2)
        .f32(&name("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&name("attention.layer_norm_epsilon"), 1e-5)
        .f32s("token_embd.weight", &[8, 3], &[0.0; 24]);
    keys.iter().fold(writer, |writer, (key, value)| match value {
        N(n) => writer.u32(&name(key), *n),
        X(x) => writer.f32(&name(key), *x),
        Yes(yes) => writer.entry(&name(key), 7, &[u8::from(*yes)]),
        Word(word) => writer.text(&name(key), word),
    })
}

#[test]
fn architectures_that_llama_cpp_or_this_program_lacks_are_refused_by_name() {
    for arch in ["opt", "mamba"] {
        let error = refused(model(arch, 1, &[]));
        assert!(error.contains(&format!("`{arch}`")) && error.contains("llama, qwen2, qwen2moe"), "{error}");
    }
}

#[test]
fn windows_come_by_pattern_or_are_refused() {
    let windows = |arch: &str, layers, keys: &[(&str, Is<'_>)]| config(model(arch, layers, keys)).unwrap().windows;
    assert_eq!(windows("gemma2", 3, &[]), [Some(4096), None, Some(4096)]);
    let key = "attention.sliding_window";
    let pattern = "attention.sliding_window_pattern";
    assert_eq!(windows("gemma2", 3, &[(key, N(5)), (pattern, N(3))]), [Some(5), Some(5), None]);
    assert_eq!(windows("gemma3", 2, &[(key, N(5)), (pattern, N(0))]), [Some(5); 2]);
    assert_eq!(windows("gemma3", 7, &[]), [None; 7]);
    assert_eq!(windows("phi3", 2, &[(key, N(64))]), [None; 2], "as long as the context");
    assert_eq!(windows("phi3", 2, &[(key, N(63))]), [Some(63); 2]);
    for arch in ["qwen2", "qwen3moe", "olmo2", "starcoder2", "granite"] {
        let error = refused(model(arch, 1, &[(key, N(5))]));
        assert!(error.contains("attention.sliding_window` = 5"), "{error}");
    }
    let flags =
        |of: &[u8]| [7u32.to_le_bytes().to_vec(), (of.len() as u64).to_le_bytes().to_vec(), of.to_vec()].concat();
    let listed = |of| model("gemma3", 2, &[(key, N(5))]).entry(&format!("gemma3.{pattern}"), 9, &flags(of));
    assert_eq!(config(listed(&[0, 1])).unwrap().windows, [None, Some(5)]);
    assert!(refused(listed(&[1])).contains(pattern));
    // Of these two the file must say how many keys.
    let experts = [("expert_count", N(2)), ("expert_used_count", N(1))];
    for missing in [model("cohere2", 1, &[]), model("gpt-oss", 1, &experts)] {
        assert!(refused(missing).contains(&format!("{key}` is missing")));
    }
}

#[test]
fn exaone4_of_64_layers_has_windows_though_its_file_may_not_say_so() {
    let c = config(model("exaone4", 64, &[])).unwrap();
    assert_eq!((c.windows[0], c.windows[3]), (Some(4096), None));
    assert_eq!(c.rope_layers[..4], [true, true, true, false]);
    let c = config(model("exaone4", 4, &[])).unwrap();
    assert_eq!((&c.windows[..], &c.rope_layers[..]), (&[None; 4][..], &[true; 4][..]));
}

#[test]
fn the_largest_gemmas_divide_scores_by_the_width_over_the_heads() {
    for (arch, layers) in [("gemma2", 46), ("gemma3", 62)] {
        let scale = |layers| config(model(arch, layers, &[("attention.key_length", N(16))])).unwrap().attention_scale;
        assert_eq!((scale(layers), scale(layers - 1)), (0.5, 0.25));
    }
}

#[test]
fn factors_that_are_absent_are_neutral_and_granite_must_have_one() {
    let c = config(model("command-r", 1, &[])).unwrap();
    assert_eq!(c.logit_scale, 1.0);
    let c = config(model("granite", 1, &[("logit_scale", X(4.0))])).unwrap();
    assert_eq!((c.logit_scale, c.attention_scale, c.embed_scale, c.residual_scale), (0.25, 0.5, 1.0, 1.0));
    assert!(refused(model("granite", 1, &[])).contains("`granite.logit_scale` is missing"));
    let still = model("granite", 1, &[("logit_scale", X(4.0)), ("rope.scaling.finetuned", Yes(false))]);
    assert!(refused(still).contains("rope.scaling.finetuned"));
    assert!(refused(model("olmo", 1, &[("attention.clamp_kqv", X(-1.0))])).contains("clamp_kqv"));
    assert!(refused(model("gpt2", 1, &[("attention.head_count_kv", N(1))])).contains("head_count_kv"));
    assert!(refused(model("gpt2", 1, &[("attention.key_length", N(3))])).contains("key_length"));
}

#[test]
fn shares_of_experts_are_llama_cpps() {
    let two = [("expert_count", N(4)), ("expert_used_count", N(2))];
    let moe = |arch| config(model(arch, 1, &two)).unwrap().moe.unwrap();
    let (mixtral, qwen2, qwen3, olmoe) = (moe("llama"), moe("qwen2moe"), moe("qwen3moe"), moe("olmoe"));
    assert_eq!([&mixtral, &qwen2, &qwen3, &olmoe].map(|m| m.normalise), [true, false, true, false]);
    // Without a key, the experts that a token goes through share the width.
    assert_eq!([&mixtral, &qwen2, &qwen3, &olmoe].map(|m| m.ffn), [16, 8, 8, 16]);
    assert_eq!((qwen2.shared_ffn, qwen3.shared_ffn), (Some(16), None));
    for key in ["expert_shared_feed_forward_length", "expert_group_count", "expert_gating_func"] {
        assert!(refused(model("qwen3moe", 1, &[two, [(key, N(2)), ("vocab_size", N(3))]].concat())).contains(key));
    }
    let one = |top_k| model("qwen3moe", 1, &[("expert_count", N(4)), ("expert_used_count", N(top_k))]);
    assert!(refused(one(0)).contains("num_experts_per_tok") && refused(one(5)).contains("num_experts_per_tok"));
}

/// Two heads of 2 values, of which 2 more are rotated, and values of 3; latents of 32.
fn deepseek2(keys: Vec<(&str, Is<'_>)>) -> Writer {
    let own = [
        ("rope.dimension_count", N(2)),
        ("attention.kv_lora_rank", N(32)),
        ("attention.key_length_mla", N(4)),
        ("attention.value_length_mla", N(3)),
        ("leading_dense_block_count", N(1)),
    ];
    model("deepseek2", 1, &own.into_iter().chain(keys).collect::<Vec<_>>())
}

#[test]
fn keys_and_values_of_a_latent_are_read_apart_or_together() {
    // Keys [head, latent, value] transposed, in blocks; values [head, value, latent].
    let of = |head: usize, row: usize, col: usize| (head * 7 + row * 3) as f32 - col as f32;
    let wanted = |rows: [usize; 2], start: usize| -> Vec<f32> {
        let rows = (0..2).flat_map(move |head| (rows[0]..rows[1]).map(move |row| (head, row + start)));
        rows.flat_map(|(head, row)| (0..32).map(move |col| of(head, row, col))).collect()
    };
    let part = |start: usize, run: usize| WeightDecl {
        view: View::every(start, (run, 5), 10),
        ..decl("model.layers.0.self_attn.kv_b_proj.weight", 2 * run, 32)
    };
    let (keys, values) = (part(0, 2), part(2, 3));
    let each = |planes: [usize; 3], at: &dyn Fn(usize, usize, usize) -> f32| -> Vec<f32> {
        let [heads, rows, cols] = planes;
        (0..heads * rows * cols).map(|i| at(i / (rows * cols), i / cols % rows, i % cols)).collect()
    };
    let k = each([2, 32, 2], &|head, col, row| of(head, row, col));
    let v = each([2, 3, 32], &|head, row, col| of(head, row + 2, col));
    let apart =
        deepseek2(vec![]).f32s("blk.0.attn_k_b.weight", &[2, 32, 2], &k).f32s("blk.0.attn_v_b.weight", &[32, 3, 2], &v);
    let whole = each([2, 5, 32], &of);
    let together = deepseek2(vec![]).f32s("blk.0.attn_kv_b.weight", &[32, 10], &whole);
    for writer in [apart, together] {
        let gguf = open(&writer.bytes()).unwrap();
        let c = gguf.config().unwrap();
        let latent = c.latent.unwrap();
        assert_eq!((latent.plain, latent.rotated, latent.value, latent.q_rank, c.kv_heads), (2, 2, 3, None, 2));
        assert!(c.moe.is_none(), "its one layer is dense");
        assert_eq!(read(&gguf, &keys), wanted([0, 2], 0));
        assert_eq!(read(&gguf, &values), wanted([0, 3], 2));
    }
}

/// llama.cpp's quantised files have them so: the blocks lie across the rows that are asked for.
#[test]
fn keys_of_a_latent_are_read_across_blocks() {
    let lengths =
        [("rope.dimension_count", N(2)), ("attention.kv_lora_rank", N(3)), ("attention.key_length_mla", N(34))];
    let rest = [("attention.value_length_mla", N(3)), ("leading_dense_block_count", N(1)), ("vocab_size", N(3))];
    // Q8_0: an f16 scale of 1 and 32 codes; head, latent, value.
    let code = |head: usize, latent: usize, i: usize| (head * 40 + latent * 33 + i) as u8 as i8;
    let blocks: Vec<u8> = (0..6)
        .flat_map(|b| [0x00, 0x3c].into_iter().chain((0..32).map(move |i| code(b / 3, b % 3, i) as u8)))
        .collect();
    let writer = model("deepseek2", 1, &[lengths, rest].concat());
    let gguf = open(&writer.tensor("blk.0.attn_k_b.weight", &[32, 3, 2], 8, &blocks).bytes()).unwrap();
    let keys =
        WeightDecl { view: View::every(0, (32, 35), 70), ..decl("model.layers.0.self_attn.kv_b_proj.weight", 64, 3) };
    let want: Vec<f32> = (0..64).flat_map(|row| (0..3).map(move |c| f32::from(code(row / 32, c, row % 32)))).collect();
    assert_eq!(read(&gguf, &keys), want);
    let mut some = [f32::NAN; 6];
    gguf.get(&keys).unwrap().read_f32(31..33, &mut some);
    assert_eq!(some, want[93..99], "of two heads");
}

#[test]
fn deepseek2_scales_its_scores_by_the_files_tenth_of_mscale() {
    let yarn = || vec![("rope.scaling.type", Word("yarn")), ("rope.scaling.factor", X(std::f32::consts::E))];
    assert!(refused(deepseek2(yarn())).contains("yarn_log_multiplier"));
    let with = yarn().into_iter().chain([("rope.scaling.yarn_log_multiplier", X(0.1))]).collect();
    let c = config(deepseek2(with)).unwrap();
    // 1 + 0.1 ln e, squared; cosine and sine are left alone.
    assert!((c.attention_scale - 1.21 / 2.0).abs() < 1e-6, "{}", c.attention_scale);
    assert!(matches!(c.rope.scaling, RopeScaling::Yarn { attention_factor: Some(1.0), .. }));
    // The first files call their lengths as everybody does.
    let old = [("attention.key_length", N(4)), ("attention.value_length", N(3)), ("attention.kv_lora_rank", N(32))];
    let rest = [("rope.dimension_count", N(2)), ("leading_dense_block_count", N(1)), ("vocab_size", N(3))];
    let c = config(model("deepseek2", 1, &[old, rest].concat())).unwrap();
    assert_eq!((c.head_dim, c.latent.unwrap().value), (4, 3));
}

#[test]
fn deepseek2_takes_its_groups_by_the_best_expert_or_the_best_two() {
    let keys = |gating| {
        vec![
            ("nextn_predict_layers", N(0)),
            ("expert_count", N(4)),
            ("expert_used_count", N(1)),
            ("expert_feed_forward_length", N(6)),
            ("expert_shared_count", N(2)),
            ("expert_group_count", N(2)),
            ("expert_group_used_count", N(1)),
            ("expert_gating_func", N(gating)),
            ("rope.dimension_count", N(2)),
            ("attention.kv_lora_rank", N(32)),
            ("attention.key_length_mla", N(4)),
            ("attention.value_length_mla", N(3)),
        ]
    };
    for (gating, family, best) in [(1, Family::DeepseekV2, 1), (2, Family::DeepseekV3, 2)] {
        let c = config(model("deepseek2", 1, &keys(gating))).unwrap();
        let moe = c.moe.unwrap();
        assert_eq!((c.family, moe.shared_ffn, moe.factor), (family, Some(12), 1.0));
        assert_eq!(moe.groups, Some(RouteGroups { count: 2, kept: 1, best }));
    }
    assert!(refused(model("deepseek2", 1, &keys(3))).contains("expert_gating_func` = 3"));
}

/// Layers that guess further tokens stand behind the model's own, and are counted in.
#[test]
fn layers_behind_the_last_are_left_alone() {
    let two = |nextn| {
        let keys = [("nextn_predict_layers", N(nextn)), ("rope.dimension_count", N(4))];
        let writer = model("glm4", 2, &keys).f32s("blk.1.nextn.enorm.weight", &[8], &[0.0; 8]);
        config(writer)
    };
    assert_eq!(two(1).unwrap().layers, 1);
    assert!(two(0).unwrap_err().to_string().contains("blk.1.nextn.enorm.weight"));
    assert!(refused(model("glm4", 2, &[("nextn_predict_layers", N(2))])).contains("block_count"));
}

/// Files of `--fuse-qkv`, and phi2's first ones: queries, keys and values one below the other.
#[test]
fn queries_keys_and_values_in_one_tensor_are_cut_by_the_heads() {
    // Two heads of queries of 4, one of keys and values; llama's are interleaved within each head.
    let rows: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 13, 14, 15].map(|r| r as f32).to_vec();
    let matrix: Vec<f32> = rows.iter().flat_map(|r| [*r; 8]).collect();
    let kv = ("attention.head_count_kv", N(1));
    let writer = model("llama", 1, &[kv]).f32s("blk.0.attn_qkv.weight", &[8, 16], &matrix);
    let gguf = open(&writer.bytes()).unwrap();
    gguf.config().unwrap();
    let first = |name: &str, n: usize| -> Vec<f32> {
        let all = read(&gguf, &decl(&format!("model.layers.0.self_attn.{name}.weight"), n, 8));
        all.chunks(8).map(|row| row[0]).collect()
    };
    assert_eq!(first("q_proj", 8), (0..8).map(|r| r as f32).collect::<Vec<_>>());
    assert_eq!(first("k_proj", 4), [8.0, 9.0, 10.0, 11.0]);
    assert_eq!(first("v_proj", 4), [12.0, 13.0, 14.0, 15.0]);
    // Another number of heads would cut it elsewhere.
    let other = model("llama", 1, &[]).f32s("blk.0.attn_qkv.weight", &[8, 16], &matrix);
    assert!(refused(other).contains("`blk.0.attn_qkv.weight` = 16"));
}

#[test]
fn long_rope_needs_both_lists_and_no_other_scaling() {
    let long = |n: usize| vec![2.0; n];
    let both = model("phi3", 1, &[("rope.scaling.attn_factor", X(1.5))])
        .f32s("rope_factors_short.weight", &[2], &[1.0; 2])
        .f32s("rope_factors_long.weight", &[2], &long(2));
    let gguf = open(&both.clone().bytes()).unwrap();
    let RopeScaling::Long { short, long: found, original_max_len, attention_factor } =
        gguf.config().unwrap().rope.scaling
    else {
        panic!("LongRoPE expected")
    };
    assert_eq!((short, found, original_max_len, attention_factor), (vec![1.0; 2], vec![2.0; 2], 64, 1.5));
    let Head { bytes, whole } = gguf.head();
    assert_eq!(Gguf::open_head(file(&bytes).path(), whole).unwrap().config(), gguf.config(), "a head has the lists");
    let one = model("phi3", 1, &[]).f32s("rope_factors_long.weight", &[2], &long(2));
    assert!(refused(one).contains("`rope_factors_short.weight` is missing"));
    assert!(refused(both.f32("phi3.rope.scaling.factor", 2.0)).contains("rope_factors_long.weight"));
}

/// The converter's `int(partial_rotary_factor * hidden_size) // num_attention_heads`, which is less than half of a head where
/// heads are longer than the width over their number.
#[test]
fn half_of_nemotrons_heads_is_rotated_however_long_they_are() {
    let width = |keys: &[(&str, Is<'_>)]| config(model("nemotron", 1, keys)).map(|c| c.rope_width);
    let (long, rotated) = (("attention.key_length", N(12)), "rope.dimension_count");
    let values = ("attention.value_length", N(12));
    assert_eq!(width(&[(rotated, N(2))]).unwrap(), 2, "heads of 4");
    assert_eq!(width(&[(rotated, N(4))]).unwrap(), 4);
    assert_eq!(width(&[long, values, (rotated, N(2))]).unwrap(), 6, "half of the width over the heads is meant");
    assert_eq!(width(&[long, values, (rotated, N(6))]).unwrap(), 6);
    let error = refused(model("nemotron", 1, &[long, values, (rotated, N(4))]));
    assert!(error.contains("nemotron.rope.dimension_count"), "{error}");
}
