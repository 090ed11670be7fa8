//! What needs no plugin; `tests/pjrt.rs` has what does.
#![deny(unsafe_code)]

use std::borrow::Cow;

use super::plain::plain;
use super::*;
use crate::builder::{Custom, Options};
use crate::idioms::{arg_max, rms_norm, silu, softmax, top_k};
use crate::op::{CustomCall, Op};
use crate::{Builder, DType, Executable};

fn with_calls() -> Module {
    let mut b = Builder::with_options("calls", Options { custom_calls: Custom::ALL.into(), ..Options::default() });
    let x = b.parameter("x", DType::F32, &[3, 20]);
    let gamma = b.full(&[20], half::bf16::from_f32(0.5));
    let mut results = vec![silu(&mut b, x), softmax(&mut b, x, 1), softmax(&mut b, x, 1), arg_max(&mut b, x, 1)];
    results.push(rms_norm(&mut b, x, gamma, 1e-5));
    results.extend(top_k(&mut b, x, 5));
    b.finish(&results)
}

#[test]
fn custom_calls_become_plain_and_compute_the_same() {
    let module = with_calls();
    let plain = plain(&module).unwrap();
    verify(&plain, Target::Xla).unwrap();
    let values: Vec<f32> = (0..60).map(|i| ((i * 37) % 60) as f32 / 7.0 - 4.0).collect();
    let x = Tensor::new(&[3, 20], values).unwrap();
    let run = |module: Module, target| Executable::new(module, target).unwrap().run(vec![x.clone()]).unwrap();
    assert_eq!(run(plain.clone().into_owned(), Target::Xla), run(module.clone(), Target::Trn1));
    // Alike calls share a computation: two softmaxes, one callee.
    let calls = |m: &Module| {
        let all = m.computations.iter().flat_map(|c| &c.instructions);
        all.filter_map(|i| if let Op::Call(id) = i.op { Some(id) } else { None }).collect::<Vec<_>>()
    };
    let calls = calls(&plain);
    let distinct: std::collections::BTreeSet<_> = calls.iter().collect();
    assert_eq!(distinct.len() + 1, calls.len());
}

#[test]
fn scalar_bounds_of_a_clamp_are_broadcast() {
    let mut b = Builder::new("clamped");
    let x = b.parameter("x", DType::S32, &[4]);
    let (lo, hi) = (b.scalar(-1i32), b.scalar(2i32));
    let y = b.clamp(lo, x, hi);
    let module = b.finish(&[y]);
    let plain = plain(&module).unwrap().into_owned();
    verify(&plain, Target::Xla).unwrap();
    let broadcasts = plain.computations.iter().flat_map(|c| &c.instructions).filter(|i| i.op.name() == "broadcast");
    assert_eq!(broadcasts.count(), 2, "{plain}");
    let x = Tensor::new(&[4], vec![-5i32, -1, 1, 9]).unwrap();
    let results = Executable::new(plain, Target::Xla).unwrap().run(vec![x]).unwrap();
    assert_eq!(results[0].as_slice::<i32>(), Some(&[-1, -1, 1, 2][..]));
}

#[test]
fn a_module_without_custom_calls_is_left_as_it_is() {
    let mut b = Builder::new("plain");
    let x = b.parameter("x", DType::F32, &[4]);
    let y = silu(&mut b, x);
    let module = b.finish(&[y]);
    assert!(matches!(plain(&module), Ok(Cow::Borrowed(_))));
}

#[test]
fn a_custom_call_without_a_plain_form_is_refused_by_name() {
    let mut module = with_calls();
    let all = module.computations.iter_mut().flat_map(|c| &mut c.instructions);
    let found = all.filter_map(|i| if let Op::CustomCall(call) = &mut i.op { Some((&i.name, call)) } else { None });
    let (name, call): (&String, &mut CustomCall) = found.into_iter().next().unwrap();
    call.target = "AwsNeuronNobody".to_owned();
    let want = PjrtError::CustomCall { instruction: name.clone(), target: "AwsNeuronNobody".to_owned() };
    assert_eq!(plain(&module).unwrap_err(), want);
}

#[test]
fn options_have_the_documented_bytes() {
    // { 7: { 1: "xla_cpu_enable_fast_min_max", 2: { 2: false } } }
    let overrides = [&[0x3a, 33, 0x0a, 27][..], b"xla_cpu_enable_fast_min_max", &[0x12, 2, 0x10, 0]].concat();
    assert_eq!(compile_options(1), [&[0x1a, 4, 0x20, 1, 0x28, 1], &overrides[..]].concat());
    // { 4: 2, 5: 1, 9: { 1: 2, 2: 1, 3: { 1: [0, 1] } } }
    let two = [0x1a, 16, 0x20, 2, 0x28, 1, 0x4a, 10, 8, 2, 0x10, 1, 0x1a, 4, 0x0a, 2, 0, 1];
    assert_eq!(compile_options(2), [&two, &overrides[..]].concat());
}

#[test]
fn structs_have_the_sizes_of_the_header() {
    // On a 64-bit host, by hand from the field lists.
    assert_eq!(size_of::<Head>(), 40);
    assert_eq!(size_of::<Args<ClientCreate>>(), 16 + 9 * 8);
    assert_eq!(size_of::<Args<BufferFromHost>>(), 16 + 13 * 8);
    assert_eq!(size_of::<Args<Execute>>(), 16 + 8 * 8);
    assert_eq!(std::mem::offset_of!(ExecuteOptions, context), 7 * 8);
}

#[test]
fn what_is_no_plugin_is_refused_by_name() {
    let error = Plugin::open(Path::new("/nonexistent/plugin.so")).unwrap_err();
    assert!(matches!(&error, PjrtError::Open { path, .. } if path.ends_with("plugin.so")), "{error}");
}
