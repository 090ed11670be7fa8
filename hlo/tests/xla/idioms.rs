//! The composite operations.

use njoule_hlo::idioms::*;
use njoule_hlo::{Builder, DType, F8E4M3, Tensor, Val};

use crate::cases::{BF16, Case};
use crate::inputs::{Numbers, vector};
use crate::tensors::{EXACT, Tolerance};

/// Long chains of functions and sums.
const CHAINS: Tolerance = Tolerance { abs: 2e-6, rel: 1e-5 };

/// Chains with products of bf16 weights: where two f32 round apart the results differ by 2^-9 of a term.
const BF16_CHAINS: Tolerance = Tolerance { abs: 2e-3, rel: 4e-3 };

pub fn all() -> Vec<Case> {
    vec![
        choose(),
        norms("norms_f32", DType::F32, CHAINS),
        norms("norms_bf16", DType::BF16, BF16),
        activations("activations_f32", DType::F32, CHAINS),
        activations("activations_bf16", DType::BF16, BF16),
        rows(),
        masks(),
        sampling(),
        rope("rope_f32", DType::F32, Tolerance { abs: 2e-6, rel: 1e-5 }),
        rope("rope_bf16", DType::BF16, Tolerance { abs: 2e-5, rel: 0.0079 }),
        quantised(),
        decode("decode_attention_f32", DType::F32, CHAINS),
        decode("decode_attention_bf16", DType::BF16, BF16_CHAINS),
        chunk("chunk_attention_f32", DType::F32, CHAINS),
        chunk("chunk_attention_bf16", DType::BF16, BF16_CHAINS),
        scaled_attention(),
        sharded(),
    ]
}

fn choose() -> Case {
    let ties = Tensor::new(&[2, 5], vec![1f32, 7.0, 7.0, -1.0, 7.0, -5.0, -5.0, -9.0, -5.0, -6.0]).unwrap();
    let mut numbers = Numbers::new(31);
    let x = numbers.floats(DType::F32, &[3, 50], 10.0);
    let y = numbers.floats(DType::BF16, &[3, 50], 1.0);
    let long = numbers.floats(DType::F32, &[2, 203], 10.0);
    let nan = Tensor::new(&[1, 4], vec![f32::NAN, 1.0, 2.0, f32::NAN]).unwrap();
    Case::new("choose", EXACT, vec![ties, x, y, nan, long], |b, x| {
        let mut results = vec![arg_max(b, x[0], 1), arg_max(b, x[0], 0), arg_max(b, x[1], 1), arg_max(b, x[3], 1)];
        results.extend(top_k(b, x[0], 4));
        results.extend(top_k(b, x[1], 7));
        results.extend(top_k(b, x[2], 3));
        results.extend(top_k(b, x[4], 3));
        results
    })
}

fn norms(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(32);
    let inputs = vec![numbers.floats(dtype, &[4, 64], 4.0), numbers.floats(dtype, &[64], 2.0)];
    Case::new(name, tolerance, inputs, |b, x| {
        vec![rms_norm(b, x[0], x[1], 1e-5), softmax(b, x[0], 1), softmax(b, x[0], 0), log_sum_exp(b, x[0], 1)]
    })
}

fn activations(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(33);
    // Where tanh is near -1 the sum 1 + tanh cancels: an absolute bound says what is meant.
    let tolerance = Tolerance { abs: tolerance.abs.max(4e-6), ..tolerance };
    Case::new(name, tolerance, vec![numbers.floats(dtype, &[6, 33], 6.0)], |b, x| {
        vec![silu(b, x[0]), gelu_tanh(b, x[0]), gelu(b, x[0]), soft_cap(b, x[0], 2.5)]
    })
}

fn rows() -> Case {
    let mut numbers = Numbers::new(34);
    let inputs = vec![
        numbers.floats(DType::BF16, &[9, 16], 1.0),
        vector(&[3i32, 8, 0, -4, 99]),
        vector(&[5i32, 1]),
        numbers.floats(DType::BF16, &[2, 16], 1.0),
        vector(&[2i32, 0]),
    ];
    Case::new("rows", EXACT, inputs, |b, x| {
        let place = cache_rows(b, x[2], x[4], 3);
        vec![
            take_rows(b, x[0], x[1]),
            take_rows_by_dot(b, x[0], x[1]),
            one_hot(b, x[1], 9, DType::F32),
            write_rows(b, x[0], x[2], x[3]),
            place,
        ]
    })
}

fn masks() -> Case {
    let mut numbers = Numbers::new(35);
    let inputs =
        vec![numbers.bits(DType::U32, &[3, 3]), vector(&[0i32, 5, 2]), numbers.floats(DType::F32, &[3, 70], 1.0)];
    Case::new("masks", EXACT, inputs, |b, x| {
        let bits = from_bits(b, x[0], 70);
        vec![bits, from_bits(b, x[0], 96), before(b, x[1], 6), causal(b, 5), masked(b, bits, x[2])]
    })
}

fn sampling() -> Case {
    let mut numbers = Numbers::new(36);
    let inputs = vec![
        numbers.floats(DType::F32, &[3, 40], 1.0),
        numbers.floats(DType::F32, &[3, 700], 4.0),
        vector(&[1f32, 0.5, 1.5]),
        vector(&[0f32, 0.37, 0.999]),
    ];
    let mut case = Case::new("sampling", EXACT, inputs, |b, x| {
        vec![cumulative_sum(b, x[0]), cumulative_sum(b, x[1]), draw(b, x[0], x[2], x[3]), draw(b, x[1], x[2], x[3])]
    });
    // Sums of 700 terms of up to 4 in another order.
    let sums = Tolerance { abs: 2e-4, rel: 1e-6 };
    case.tolerances = vec![Tolerance { abs: 4e-6, rel: 1e-6 }, sums, EXACT, EXACT];
    case
}

fn rope(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(37);
    let inputs = vec![numbers.floats(dtype, &[4, 2, 12], 1.0), vector(&[0i32, 1, 77, 300])];
    Case::new(name, tolerance, inputs, |b, x| {
        let full = angles(b, x[1], &[1.0, 0.5, 0.1, 0.05, 0.01, 0.001], 1.0);
        let part = angles(b, x[1], &[1.0, 0.1, 0.01], 1.25);
        vec![
            rotate(b, x[0], full, Pairing::Halves),
            rotate(b, x[0], full, Pairing::Neighbours),
            rotate(b, x[0], part, Pairing::Halves),
            rotate(b, x[0], part, Pairing::Neighbours),
        ]
    })
}

fn quantised() -> Case {
    let mut numbers = Numbers::new(38);
    let codes = (0..160).map(|i| F8E4M3((i * 11 % 64 + 16 + i % 2 * 128) as u8)).collect();
    let inputs = vec![
        numbers.floats(DType::BF16, &[3, 32], 1.0),
        numbers.bits(DType::S8, &[32, 5]),
        numbers.bits(DType::S8, &[5, 32]),
        Tensor::new(&[5, 32], codes).unwrap(),
        numbers.floats(DType::F32, &[5], 0.01),
    ];
    Case::new("quantised", Tolerance { abs: 2e-6, rel: 2e-6 }, inputs, |b, x| {
        vec![
            scaled_matmul(b, x[0], x[1], x[4], false),
            scaled_matmul(b, x[0], x[2], x[4], true),
            scaled_matmul(b, x[0], x[3], x[4], true),
        ]
    })
}

/// A decode step: rows of one token, at the cache's start, within it, and at its end.
fn decode(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(39);
    let (batch, kv, group, d, v, len) = (3, 2, 2, 8, 6, 10);
    let inputs = vec![
        numbers.floats(DType::F32, &[batch, 1, kv, group, d], 2.0),
        numbers.floats(dtype, &[batch, len, kv, d], 2.0),
        numbers.floats(dtype, &[batch, len, kv, v], 2.0),
        numbers.floats(dtype, &[batch, 1, kv, d], 2.0),
        numbers.floats(dtype, &[batch, 1, kv, v], 2.0),
        vector(&[0i32, 4, 10]),
        numbers.floats(DType::F32, &[kv, group], 2.0),
    ];
    Case::new(name, tolerance, inputs, move |b, x| attentions(b, x, dtype))
}

/// A chunk of one row.
fn chunk(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(40);
    let (t, kv, group, d, len) = (5, 2, 3, 8, 12);
    let inputs = vec![
        numbers.floats(DType::F32, &[1, t, kv, group, d], 2.0),
        numbers.floats(dtype, &[1, len, kv, d], 2.0),
        numbers.floats(dtype, &[1, len, kv, d], 2.0),
        numbers.floats(dtype, &[1, t, kv, d], 2.0),
        numbers.floats(dtype, &[1, t, kv, d], 2.0),
        vector(&[7i32]),
        numbers.floats(DType::F32, &[kv, group], 2.0),
    ];
    Case::new(name, tolerance, inputs, move |b, x| attentions(b, x, dtype))
}

/// Plain, with each option, with all of them, and without a cache.
fn attentions(b: &mut Builder, x: &[Val], products: DType) -> Vec<Val> {
    let part = |keys, values| KeysValues { keys, values, scales: None };
    let (prior, new) = (part(x[1], x[2]), part(x[3], x[4]));
    let plain = Attention { scale: 0.353_553_4, window: None, softcap: None, sinks: None, slopes: None, products };
    let hows = [
        plain,
        Attention { window: Some(1), ..plain },
        Attention { window: Some(4), ..plain },
        Attention { softcap: Some(1.5), ..plain },
        Attention { sinks: Some(x[6]), ..plain },
        Attention { window: Some(3), softcap: Some(2.0), sinks: Some(x[6]), ..plain },
        Attention { slopes: Some(x[6]), ..plain },
        Attention { window: Some(4), softcap: Some(2.0), slopes: Some(x[6]), ..plain },
    ];
    let mut results: Vec<Val> = hows.into_iter().map(|how| attend(b, x[0], Some(prior), new, x[5], how)).collect();
    results.push(attend(b, x[0], None, new, x[5], plain));
    results
}

/// Keys and values of 8 bits, with a scale per token and head.
fn scaled_attention() -> Case {
    let mut numbers = Numbers::new(41);
    let (t, kv, group, d, len) = (3, 2, 2, 8, 6);
    let inputs = vec![
        numbers.floats(DType::F32, &[1, t, kv, group, d], 2.0),
        numbers.bits(DType::S8, &[1, len, kv, d]),
        numbers.bits(DType::S8, &[1, len, kv, d]),
        numbers.floats(DType::F32, &[1, len, kv], 0.02),
        numbers.floats(DType::F32, &[1, len, kv], 0.02),
        numbers.bits(DType::S8, &[1, t, kv, d]),
        numbers.bits(DType::S8, &[1, t, kv, d]),
        numbers.floats(DType::F32, &[1, t, kv], 0.02),
        numbers.floats(DType::F32, &[1, t, kv], 0.02),
        vector(&[5i32]),
    ];
    Case::new("scaled_attention", BF16_CHAINS, inputs, |b, x| {
        let prior = KeysValues { keys: x[1], values: x[2], scales: Some([x[3], x[4]]) };
        let new = KeysValues { keys: x[5], values: x[6], scales: Some([x[7], x[8]]) };
        let products = DType::BF16;
        let how = Attention { scale: 0.353_553_4, window: None, softcap: None, sinks: None, slopes: None, products };
        vec![attend(b, x[0], Some(prior), new, x[9], how)]
    })
}

fn sharded() -> Case {
    let inputs = [0, 1].map(|rank: i32| {
        let mut numbers = Numbers::new(50 + rank as u64);
        let mut x = numbers.floats(DType::F32, &[3, 20], 5.0);
        if let Some(x) = x.as_mut_slice::<f32>() {
            x[7] = 9.0; // a tie over the shards: the lower rank's is taken
        }
        vec![x, Tensor::scalar(rank * 20)]
    });
    let mut case = Case::replicas("sharded", EXACT, inputs.to_vec(), |b, x| {
        let groups = [vec![0, 1]];
        let shard = Sharded { first_id: x[1], groups: &groups };
        let mut results = vec![sharded_arg_max(b, x[0], shard)];
        results.extend(sharded_top_k(b, x[0], 6, shard));
        results.push(log_sum_exp(b, x[0], 1));
        results
    });
    case.tolerances = vec![EXACT, EXACT, EXACT, CHAINS];
    case
}
