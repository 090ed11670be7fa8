//! The composite operations.

use njoule_hlo::idioms::*;
use njoule_hlo::{DType, F8E4M3, Tensor};

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
        sharded(),
    ]
}

fn choose() -> Case {
    let ties = Tensor::new(&[2, 5], vec![1f32, 7.0, 7.0, -1.0, 7.0, -5.0, -5.0, -9.0, -5.0, -6.0]).unwrap();
    let mut numbers = Numbers::new(31);
    let x = numbers.floats(DType::F32, &[3, 50], 10.0);
    let y = numbers.floats(DType::BF16, &[3, 50], 1.0);
    let nan = Tensor::new(&[1, 4], vec![f32::NAN, 1.0, 2.0, f32::NAN]).unwrap();
    Case::new("choose", EXACT, vec![ties, x, y, nan], |b, x| {
        let mut results = vec![arg_max(b, x[0], 1), arg_max(b, x[0], 0), arg_max(b, x[1], 1), arg_max(b, x[3], 1)];
        results.extend(top_k(b, x[0], 4));
        results.extend(top_k(b, x[1], 7));
        results.extend(top_k(b, x[2], 3));
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
        vec![silu(b, x[0]), gelu_tanh(b, x[0])]
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
        let place = cache_rows(b, x[4], x[2], 3);
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

fn decode(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(39);
    let (batch, kv, group, d, len) = (3, 2, 2, 8, 10);
    let inputs = vec![
        numbers.floats(dtype, &[batch, kv, group, d], 2.0),
        numbers.floats(dtype, &[len, batch, kv, d], 2.0),
        numbers.floats(dtype, &[len, batch, kv, d], 2.0),
        numbers.floats(dtype, &[batch, kv, d], 2.0),
        numbers.floats(dtype, &[batch, kv, d], 2.0),
        vector(&[0i32, 4, 10]),
    ];
    Case::new(name, tolerance, inputs, |b, x| {
        vec![decode_attention(b, x[0], [x[1], x[2]], [x[3], x[4]], x[5], 0.353_553_4)]
    })
}

fn chunk(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(40);
    let (t, kv, group, d, len) = (5, 2, 3, 8, 12);
    let inputs = vec![
        numbers.floats(dtype, &[t, kv, group, d], 2.0),
        numbers.floats(dtype, &[len, kv, d], 2.0),
        numbers.floats(dtype, &[len, kv, d], 2.0),
        numbers.floats(dtype, &[t, kv, d], 2.0),
        numbers.floats(dtype, &[t, kv, d], 2.0),
        Tensor::scalar(7i32),
    ];
    Case::new(name, tolerance, inputs, |b, x| {
        vec![chunk_attention(b, x[0], [x[1], x[2]], [x[3], x[4]], x[5], 0.353_553_4)]
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
