//! Custom calls against the plain forms, and what the comparison with XLA does not cover.

use super::*;
use crate::builder::{Custom, Options};
use crate::{Executable, Target, Tensor};

/// Runs a module of one or more results on one input, with or without custom calls.
fn run(custom: bool, x: &Tensor, body: impl Fn(&mut Builder, Val) -> Vec<Val>) -> Vec<Tensor> {
    let custom_calls = if custom { Custom::ALL.into() } else { Default::default() };
    let mut b = Builder::with_options("idiom", Options { custom_calls, ..Options::default() });
    let p = b.parameter("x", x.shape().dtype(), &x.shape().dims().to_vec());
    let results = body(&mut b, p);
    let module = b.finish(&results);
    let calls = module.computations.iter().flat_map(|c| &c.instructions).filter(|i| i.op.name() == "custom-call");
    assert_eq!(calls.count() > 0, custom, "{module}");
    let target = if custom { Target::Trn1 } else { Target::Xla };
    Executable::new(module, target).unwrap().run(vec![x.clone()]).unwrap()
}

#[test]
fn a_custom_call_and_its_plain_form_give_the_same() {
    let values: Vec<f32> = (0..60).map(|i| ((i * 37) % 60) as f32 / 7.0 - 4.0).collect();
    let x = Tensor::new(&[3, 20], values).unwrap();
    type Body = fn(&mut Builder, Val) -> Vec<Val>;
    let bodies: [(&str, Body); 6] = [
        ("silu", |b, x| vec![silu(b, x)]),
        ("gelu", |b, x| vec![gelu_tanh(b, x)]),
        ("softmax", |b, x| vec![softmax(b, x, 1), softmax(b, x, 0)]),
        ("arg_max", |b, x| vec![arg_max(b, x, 1), arg_max(b, x, 0)]),
        ("top_k", |b, x| top_k(b, x, 5).to_vec()),
        ("rms_norm", |b, x| {
            let gamma = b.full(&[20], half::bf16::from_f32(0.5));
            vec![rms_norm(b, x, gamma, 1e-5)]
        }),
    ];
    for (name, body) in bodies {
        assert_eq!(run(true, &x, body), run(false, &x, body), "{name}");
    }
}

#[test]
fn a_row_without_numbers_still_gives_an_id_in_range() {
    let x = Tensor::new(&[2, 3], vec![f32::NAN; 6]).unwrap();
    let results = run(false, &x, |b, x| {
        let mut results = vec![arg_max(b, x, 1)];
        results.extend(top_k(b, x, 3));
        results
    });
    for ids in [&results[0], &results[2]] {
        assert!(ids.as_slice::<i32>().unwrap().iter().all(|id| (0..3).contains(id)), "{ids:?}");
    }
}

#[test]
fn masked_rows_and_infinities_of_a_vocabulary_choose_what_is_left() {
    let x = Tensor::new(&[1, 4], vec![f32::NEG_INFINITY, -7.0, f32::NEG_INFINITY, -9.0]).unwrap();
    let results = run(false, &x, |b, x| vec![arg_max(b, x, 1)]);
    assert_eq!(results[0].as_slice::<i32>(), Some(&[1][..]));
}

#[test]
fn a_draw_follows_the_cumulative_distribution() {
    // Probabilities 1/2, 1/4, 1/4.
    let logits = Tensor::new(&[1, 3], vec![2f32.ln(), 0.0, 0.0]).unwrap();
    for (uniform, want) in [(0.0, 0), (0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (0.999_999_94, 2), (1.0, 2)] {
        let results = run(false, &logits, |b, x| {
            let one = b.full(&[1], 1f32);
            let u = b.full(&[1], uniform);
            vec![draw(b, x, one, u)]
        });
        assert_eq!(results[0].as_slice::<i32>(), Some(&[want][..]), "{uniform}");
    }
}

#[test]
fn lowering_refuses_what_would_be_as_long_as_the_vocabulary() {
    let call = |target: &str, config: &str| crate::op::CustomCall {
        target: target.into(),
        config: config.into(),
        api_version: 0,
    };
    let shape = |n| crate::ArrayShape::new(DType::F32, &[n]).unwrap();
    let lowered = |target, config, n| lower(&call(target, config), &[shape(n)], &shape(n).into());
    assert!(lowered("AwsNeuronTopK", "2000", 4096).is_none());
    assert!(lowered("AwsNeuronArgMax", "0", 1 << 24).is_none());
    assert!(lowered("AwsNeuronArgMax", "0", 0).is_none());
    assert!(lowered("AwsNeuronErf", "", 4).is_none());
    assert!(lowered("AwsNeuronSilu", "", 4).is_some());
}

proptest::proptest! {
    /// Long rows go through maxima of blocks, several times over; few distinct values make many ties.
    #[test]
    fn the_k_largest_are_those_of_a_stable_sort(
        n in 1usize..3000, k in 1usize..20, distinct in 1u64..400, seed in proptest::num::u64::ANY,
    ) {
        let k = k.min(n);
        let values: Vec<f32> = (0..2 * n as u64)
            .map(|i| (seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % distinct)
            .map(|v| v as f32 - 7.0)
            .collect();
        for one_hot_lookups in [false, true] {
            let options = Options { one_hot_lookups, ..Options::default() };
            let mut b = Builder::with_options("top_k", options);
            let x = b.parameter("x", DType::F32, &[2, n]);
            let results = top_k(&mut b, x, k);
            let module = b.finish(&results);
            let x = Tensor::new(&[2, n], values.clone()).unwrap();
            let results = Executable::new(module, Target::Xla).unwrap().run(vec![x]).unwrap();
            for (row, values) in values.chunks(n).enumerate() {
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
                let want: Vec<i32> = order[..k].iter().map(|id| *id as i32).collect();
                let ids = &results[1].as_slice::<i32>().unwrap()[row * k..][..k];
                proptest::prop_assert_eq!(ids, &want[..]);
                let got = &results[0].as_slice::<f32>().unwrap()[row * k..][..k];
                proptest::prop_assert!(got.iter().zip(&want).all(|(v, id)| *v == values[*id as usize]));
            }
        }
    }
}

#[test]
fn a_large_vocabulary_is_not_read_once_per_candidate() {
    let mut b = Builder::new("top_k");
    let x = b.parameter("x", DType::F32, &[1, 49152]);
    let results = top_k(&mut b, x, 64);
    let module = b.finish(&results);
    let wide = |i: &&crate::Instruction| i.shape.array().is_some_and(|s| s.elements() >= 49152);
    let count = module.computations.iter().flat_map(|c| &c.instructions).filter(wide).count();
    assert!(count <= 3, "{count} instructions over the vocabulary");
}

#[test]
fn gelu_is_the_normal_distributions() {
    // x / 2 * math.erfc(-x / math.sqrt(2)) of Python.
    let want = [(-6.0, -5.919_526e-9), (-2.0, -0.045_500_264), (-0.5, -0.154_268_77), (0.0, 0.0), (1.0, 0.841_344_7)];
    let x = Tensor::new(&[5], want.iter().map(|w| w.0).collect::<Vec<f32>>()).unwrap();
    let got = run(false, &x, |b, x| vec![gelu(b, x)]);
    for (got, (x, want)) in got[0].as_slice::<f32>().unwrap().iter().zip(want) {
        assert!((got - want).abs() <= 2e-7, "{x}: {got}, {want}");
    }
}
