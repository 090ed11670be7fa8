//! olmo's defaults, its bound and its norms.

use serde_json::json;

use crate::config::Biases;
use crate::fixtures::{error, parse, with};
use crate::program::{Norm, NormKind, Op};

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let c = parse(json!({"model_type": "olmo"})).unwrap();
    assert_eq!((c.vocab, c.hidden, c.layers, c.heads, c.kv_heads, c.ffn), (50304, 4096, 32, 32, 32, 11008));
    assert_eq!((c.max_len, c.norm_eps, c.tied, c.rope.theta, c.head_dim), (2048, 1e-5, false, 10_000.0, 128));
    assert_eq!((c.bos, c.eos, c.bias, c.qkv_clip), (None, vec![50279], Biases::default(), None));
}

#[test]
fn queries_keys_and_values_are_clamped_before_they_are_rotated() {
    let clamps = |clip| {
        let program = parse(with("olmo", json!({"clip_qkv": clip}))).unwrap().program();
        let bound = |op: &Op| if let Op::Clamp { bound, .. } = op { Some(*bound) } else { None };
        (program.ops.iter().filter_map(bound).collect::<Vec<_>>(), program)
    };
    assert!(clamps(json!(null)).0.is_empty());
    let (bounds, program) = clamps(json!(8));
    assert_eq!(bounds, [8.0; 3 * 3]);
    let at = program.ops.iter().position(|op| op.name() == "linear").unwrap();
    let names: Vec<&str> = program.ops[at..at + 7].iter().map(Op::name).collect();
    assert_eq!(names, ["linear", "clamp", "clamp", "clamp", "rope", "rope", "attend"]);
    for clip in [json!(0.0), json!(-8.0), json!(1e300), json!("8")] {
        assert!(error(with("olmo", json!({"clip_qkv": clip}))).contains("`clip_qkv`"), "{clip}");
    }
}

#[test]
fn norms_have_no_weights_and_one_epsilon() {
    let c = parse(with("olmo", json!({"rms_norm_eps": 1e-5}))).unwrap();
    let program = c.program();
    let norms: Vec<Norm> = program
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::Norm { norm, .. } | Op::AddNorm { norm, .. } => Some(*norm),
            _ => None,
        })
        .collect();
    let bare = Norm { kind: NormKind::Layer, weight: None, bias: None, eps: 1e-5 };
    assert_eq!(norms, [bare; 3 * 2 + 1]);
    assert!(!program.weights.iter().any(|w| w.name.contains("norm")));
    assert!(error(with("olmo", json!({"rms_norm_eps": 1e-6}))).contains("`rms_norm_eps`"));
}

#[test]
fn only_attention_has_biases() {
    assert_eq!(parse(with("olmo", json!({}))).unwrap().bias, Biases { qkv: true, o: true, mlp: false });
    assert!(error(with("olmo", json!({"mlp_bias": true}))).contains("`mlp_bias`"));
}
