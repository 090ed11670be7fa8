//! Whole decode steps of a Llama: everything an emitted module has, together.
//!
//! Inputs are token ids, positions, the rank's first vocabulary id, then keys and values per layer, then weights; results
//! are greedy ids, candidates, log-sum-exp, then the caches, aliased to their inputs.

use njoule_hlo::idioms::*;
use njoule_hlo::op::Binary;
use njoule_hlo::{Builder, DType, Tensor, Val};

use crate::cases::Case;
use crate::inputs::{Numbers, vector};
use crate::tensors::{EXACT, Tolerance};

/// Sizes of one rank.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub hidden: usize,
    pub kv: usize,
    pub group: usize,
    pub d: usize,
    pub inner: usize,
    pub layers: usize,
    pub vocabulary: usize,
    pub batch: usize,
    pub rows: usize,
    pub len: usize,
    pub ranks: usize,
}

const SMALL: Sizes = Sizes {
    hidden: 48,
    kv: 2,
    group: 2,
    d: 8,
    inner: 64,
    layers: 2,
    vocabulary: 40,
    batch: 3,
    rows: 4,
    len: 12,
    ranks: 1,
};

/// Logits pass through two layers of bf16 products, log-sum-exp through all of them.
const STEP: Tolerance = Tolerance { abs: 2e-3, rel: 4e-3 };

pub fn all() -> Vec<Case> {
    vec![
        step("decode_step", SMALL),
        step("decode_step_tp2", Sizes { kv: 1, inner: 32, vocabulary: 20, ranks: 2, ..SMALL }),
    ]
}

fn step(name: &'static str, s: Sizes) -> Case {
    let inputs = (0..s.ranks).map(|rank| inputs(s, rank)).collect();
    let mut case = Case::replicas(name, STEP, inputs, |b, x| lower(b, s, x));
    case.tolerances = vec![EXACT, STEP, EXACT, STEP];
    case.tolerances.resize(4 + 2 * s.layers, Tolerance { abs: 1e-3, rel: 0.0079 });
    case
}

fn inputs(s: Sizes, rank: usize) -> Vec<Tensor> {
    // What is the same on every rank comes first, and from one sequence.
    let mut numbers = Numbers::new(60);
    let ids: Vec<i32> = (0..s.batch).map(|i| (i * 7 % (s.vocabulary * s.ranks)) as i32).collect();
    let positions: Vec<i32> = (0..s.batch).map(|i| (i * 5 % s.len) as i32).collect();
    let mut inputs = vec![vector(&ids), vector(&positions), Tensor::scalar((rank * s.vocabulary) as i32)];
    let h = s.hidden;
    let scale = |n: usize| (3.0 / n as f32).sqrt();
    let bf16 = DType::BF16;
    let table = numbers.floats(bf16, &[s.vocabulary * s.ranks, h], 1.0);
    let norms: Vec<Tensor> = (0..2 * s.layers + 1).map(|_| numbers.floats(bf16, &[h], 1.0)).collect();
    let mut numbers = Numbers::new(61 + rank as u64);
    let cache = [s.rows, s.len, s.kv, s.d];
    inputs.extend((0..2 * s.layers).map(|_| numbers.floats(bf16, &cache, 1.0)));
    inputs.push(table);
    inputs.extend(norms);
    let q = s.kv * s.group * s.d;
    for _ in 0..s.layers {
        inputs.push(numbers.floats(bf16, &[h, q + 2 * s.kv * s.d], scale(h)));
        inputs.push(numbers.floats(bf16, &[q, h], scale(q)));
        inputs.push(numbers.floats(bf16, &[h, 2 * s.inner], scale(h)));
        inputs.push(numbers.floats(bf16, &[h, s.inner], scale(s.inner)));
    }
    inputs.push(numbers.floats(bf16, &[s.vocabulary, h], scale(h)));
    inputs
}

fn lower(b: &mut Builder, s: Sizes, x: &[Val]) -> Vec<Val> {
    let groups = [(0..s.ranks as u32).collect::<Vec<_>>()];
    let (ids, positions, first_id) = (x[0], x[1], x[2]);
    let (caches, rest) = x[3..].split_at(2 * s.layers);
    let (table, rest) = (rest[0], &rest[1..]);
    let (norms, weights) = rest.split_at(2 * s.layers + 1);
    let frequencies: Vec<f32> = (0..s.d / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / s.d as f32)).collect();
    let angles = angles(b, positions, &frequencies, 1.0);
    let row = b.iota(DType::S32, &[s.batch], 0);
    let places = cache_rows(b, row, positions, s.len);

    let mut hidden = take_rows(b, table, ids);
    let mut written = vec![];
    for layer in 0..s.layers {
        b.scope(&format!("layers.{layer}"), |b| {
            let w = &weights[4 * layer..4 * layer + 4];
            let normal = rms_norm(b, hidden, norms[2 * layer], 1e-5);
            let qkv = b.matmul(normal, w[0], false, DType::BF16);
            let heads = |b: &mut Builder, from: usize, n: usize| {
                let part = b.slice_dim(qkv, 1, from * s.d..(from + n) * s.d);
                b.reshape(part, &[s.batch, n, s.d])
            };
            let q_heads = s.kv * s.group;
            let q = heads(b, 0, q_heads);
            let k = heads(b, q_heads, s.kv);
            let v = heads(b, q_heads + s.kv, s.kv);
            let q = rotate(b, q, angles, Pairing::Halves);
            let k = rotate(b, k, angles, Pairing::Halves);
            let q = b.reshape(q, &[s.batch, 1, s.kv, s.group, s.d]);
            let old = [caches[2 * layer], caches[2 * layer + 1]];
            let [keys, values] = old.map(|c| b.slice_dim(c, 0, 0..s.batch));
            let prior = KeysValues { keys, values, scales: None };
            let [keys, values] = [k, v].map(|x| b.reshape(x, &[s.batch, 1, s.kv, s.d]));
            let new = KeysValues { keys, values, scales: None };
            let how = Attention {
                scale: (s.d as f32).powf(-0.5),
                window: None,
                softcap: None,
                sinks: None,
                slopes: None,
                products: DType::BF16,
            };
            let out = attend(b, q, Some(prior), new, positions, how);
            for (cache, new) in old.into_iter().zip([k, v]) {
                let rows = b.reshape(cache, &[s.rows * s.len, s.kv * s.d]);
                let new = b.reshape(new, &[s.batch, s.kv * s.d]);
                let rows = write_rows(b, rows, places, new);
                written.push(b.reshape(rows, &cache.dims()));
            }
            let out = b.reshape(out, &[s.batch, q_heads * s.d]);
            let out = b.convert(out, DType::BF16);
            let out = b.matmul(out, w[1], false, DType::F32);
            hidden = add(b, hidden, out, &groups);

            let normal = rms_norm(b, hidden, norms[2 * layer + 1], 1e-5);
            let both = b.matmul(normal, w[2], false, DType::BF16);
            let gate = b.slice_dim(both, 1, 0..s.inner);
            let up = b.slice_dim(both, 1, s.inner..2 * s.inner);
            let gate = silu(b, gate);
            let inner = b.multiply(gate, up);
            let out = b.matmul(inner, w[3], true, DType::F32);
            hidden = add(b, hidden, out, &groups);
        });
    }
    let normal = rms_norm(b, hidden, norms[2 * s.layers], 1e-5);
    let logits = b.matmul(normal, weights[4 * s.layers], true, DType::F32);
    let shard = Sharded { first_id, groups: &groups };
    let greedy = sharded_arg_max(b, logits, shard);
    let [values, candidates] = sharded_top_k(b, logits, 4, shard);
    let sum = log_sum_exp(b, logits, 1);
    let sum = b.reshape(sum, &[s.batch, 1]);
    let sums = b.all_gather(sum, 1, &groups);
    let sum = log_sum_exp(b, sums, 1);
    for (i, &cache) in caches.iter().enumerate() {
        b.alias(4 + i, cache);
    }
    [vec![greedy, values, candidates, sum], written].concat()
}

/// The residual and what all ranks have computed of its change.
fn add(b: &mut Builder, hidden: Val, change: Val, groups: &[Vec<u32>]) -> Val {
    let change = b.all_reduce(change, Binary::Add, groups);
    let wide = b.convert(hidden, DType::F32);
    let sum = b.add(wide, change);
    b.convert(sum, DType::BF16)
}
