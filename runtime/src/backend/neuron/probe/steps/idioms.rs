//! Modules of arithmetic: sums, products, norms, angles, attention, candidates; all by the code that lowering emits.

use half::bf16;
use njoule_hlo::idioms::{Attention, KeysValues};
use njoule_hlo::op::DotDims;
use njoule_hlo::{Builder, DType, Tensor, Val, idioms};

use crate::backend::neuron::Profile;
use crate::backend::neuron::lower::{options, rope};
use crate::backend::neuron::probe::Trial;
use crate::backend::neuron::profile::{DotResult, Lookup, TopK};

pub(super) fn add(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_add");
    let [x, y] = ["x", "y"].map(|name| b.parameter(name, DType::F32, &[128]));
    let sum = b.add(x, y);
    let inputs = vec![floats(&[128], |i| i as f32 - 64.0), floats(&[128], |i| 0.25 * i as f32)];
    vec![Trial::exact(b.finish(&[sum]), inputs)]
}

pub(super) fn alias(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_alias");
    let total = b.parameter("total", DType::F32, &[4, 64]);
    let more = b.parameter("more", DType::F32, &[4, 64]);
    b.alias(0, total);
    let sum = b.add(total, more);
    let inputs = vec![floats(&[4, 64], |i| i as f32), floats(&[4, 64], |_| 0.5)];
    vec![Trial { runs: 3, ..Trial::exact(b.finish(&[sum]), inputs) }]
}

pub(super) fn dot_f32(_: &Profile) -> Vec<Trial> {
    vec![product("probe_dot_f32", DotResult::F32)]
}

pub(super) fn dot_operand(_: &Profile) -> Vec<Trial> {
    vec![product("probe_dot_operand", DotResult::Operand)]
}

/// Sums of 512 that pass 256, where steps of bf16 are larger than the terms.
fn product(name: &str, dot_result: DotResult) -> Trial {
    let mut b = Builder::with_options(name, options(&Profile { dot_result, ..Profile::default() }));
    let x = b.parameter("x", DType::BF16, &[32, 512]);
    let w = b.parameter("w", DType::BF16, &[512, 64]);
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let y = b.product(x, w, dims);
    let inputs =
        vec![halves(&[32, 512], |i| 0.5 + (i % 5) as f32 * 0.25), halves(&[512, 64], |i| 0.5 + (i % 7) as f32 * 0.125)];
    // One rounding to bf16, and none in f32: the terms are multiples of 1/32.
    let tolerance = if dot_result == DotResult::F32 { 1e-6 } else { 1.0 / 256.0 };
    Trial { tolerance, ..Trial::exact(b.finish(&[y]), inputs) }
}

pub(super) fn normalise(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_normalise");
    let x = b.parameter("x", DType::F32, &[8, 256]);
    let gamma = b.parameter("gamma", DType::F32, &[256]);
    let norm = idioms::rms_norm(&mut b, x, gamma, 1e-5);
    let softmax = idioms::softmax(&mut b, x, 1);
    let sum = idioms::log_sum_exp(&mut b, x, 1);
    let act = idioms::silu(&mut b, x);
    let inputs =
        vec![floats(&[8, 256], |i| ((i * 37) % 101) as f32 * 0.1 - 5.0), floats(&[256], |i| 1.0 + (i % 3) as f32)];
    vec![Trial { tolerance: 2e-3, ..Trial::exact(b.finish(&[norm, softmax, sum, act]), inputs) }]
}

pub(super) fn rope_computed(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_rope_computed");
    let positions = b.parameter("positions", DType::S32, &[POSITIONS.len()]);
    let x = b.parameter("x", DType::F32, &[POSITIONS.len(), 2, 64]);
    let angles = idioms::angles(&mut b, positions, &frequencies(), 1.0);
    vec![Trial { tolerance: 2e-3, ..turned(b, x, angles) }]
}

pub(super) fn rope_table(profile: &Profile) -> Vec<Trial> {
    let mut b = looking_up("probe_rope_table", profile);
    let positions = b.parameter("positions", DType::S32, &[POSITIONS.len()]);
    let x = b.parameter("x", DType::F32, &[POSITIONS.len(), 2, 64]);
    let angles = rope::looked_up(&mut b, positions, TABLE, &frequencies(), 1.0);
    vec![Trial { tolerance: 1e-5, ..turned(b, x, angles) }]
}

/// Both pairings of what is turned.
fn turned(mut b: Builder, x: Val, angles: idioms::Angles) -> Trial {
    let turned = [idioms::Pairing::Halves, idioms::Pairing::Neighbours]
        .map(|pairing| idioms::rotate(&mut b, x, angles, pairing));
    Trial::exact(b.finish(&turned), rope_inputs())
}

fn rope_inputs() -> Vec<Tensor> {
    let positions = Tensor::new(&[POSITIONS.len()], POSITIONS.to_vec()).expect("as long as it is");
    vec![positions, floats(&[POSITIONS.len(), 2, 64], |i| ((i % 17) as f32 - 8.0) * 0.125)]
}

fn frequencies() -> Vec<f32> {
    (0..32).map(|i| 10_000f32.powf(-(i as f32) / 32.0)).collect()
}

/// A decode step's attention and a chunk's: to what the caches hold and to the step's own.
pub(super) fn attention(_: &Profile) -> Vec<Trial> {
    vec![attend("probe_attention_decode", 4, 1), attend("probe_attention_chunk", 1, 16)]
}

/// `t` tokens of `n` rows after 40 positions of 64, by four query heads in two groups.
fn attend(name: &str, n: usize, t: usize) -> Trial {
    let mut b = Builder::new(name);
    let [heads, group, dim, prior] = [2, 2, 32, 64];
    let q = b.parameter("q", DType::F32, &[n, t, heads, group, dim]);
    let [keys, values] = ["keys", "values"].map(|name| b.parameter(name, DType::BF16, &[n, t, heads, dim]));
    let [old_keys, old_values] =
        ["old_keys", "old_values"].map(|name| b.parameter(name, DType::BF16, &[n, prior, heads, dim]));
    let first = b.parameter("first", DType::S32, &[n]);
    let old = KeysValues { keys: old_keys, values: old_values, scales: None };
    let new = KeysValues { keys, values, scales: None };
    let how = Attention { scale: 0.25, window: None, softcap: None, sinks: None, slopes: None, products: DType::BF16 };
    let out = idioms::attend(&mut b, q, Some(old), new, first, how);
    // Scores of several units, so that a wrong mask or factor shows.
    let wave = |i: usize| ((i * 37) % 41) as f32 * 0.0625 - 1.25;
    let first = Tensor::new(&[n], (0..n as i32).map(|i| 40 - 13 * i).collect()).expect("as long as it is");
    let inputs = vec![
        floats(&[n, t, heads, group, dim], wave),
        halves(&[n, t, heads, dim], |i| wave(i + 3)),
        halves(&[n, t, heads, dim], |i| wave(i + 5)),
        halves(&[n, prior, heads, dim], |i| wave(i * 3 + 7)),
        halves(&[n, prior, heads, dim], |i| wave(i * 5 + 1)),
        first,
    ];
    Trial { tolerance: 1e-2, ..Trial::exact(b.finish(&[out]), inputs) }
}

pub(super) fn top_k_rounds(profile: &Profile) -> Vec<Trial> {
    vec![top_k(looking_up("probe_top_k_rounds", profile))]
}

pub(super) fn top_k_custom(_: &Profile) -> Vec<Trial> {
    let profile = Profile { top_k: TopK::Custom, ..Profile::default() };
    vec![top_k(Builder::with_options("probe_top_k_custom", options(&profile)))]
}

/// Distinct values in no order, so that the ids have one answer.
fn top_k(mut b: Builder) -> Trial {
    let x = b.parameter("x", DType::F32, &[4, 2048]);
    let [values, ids] = idioms::top_k(&mut b, x, 16);
    Trial::exact(b.finish(&[values, ids]), vec![scattered()])
}

pub(super) fn greedy(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_greedy");
    let x = b.parameter("x", DType::F32, &[4, 2048]);
    let id = idioms::arg_max(&mut b, x, 1);
    vec![Trial::exact(b.finish(&[id]), vec![scattered()])]
}

fn scattered() -> Tensor {
    floats(&[4, 2048], |i| ((i % 2048 * 773 + i / 2048 * 41) % 2048) as f32 * 0.5)
}

/// What only some families have.
pub(super) fn activations(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_activations");
    let x = b.parameter("x", DType::F32, &[8, 256]);
    let results = [idioms::gelu(&mut b, x), idioms::gelu_tanh(&mut b, x), idioms::soft_cap(&mut b, x, 3.0)];
    let inputs = vec![floats(&[8, 256], |i| ((i * 37) % 101) as f32 * 0.1 - 5.0)];
    vec![Trial { tolerance: 2e-3, ..Trial::exact(b.finish(&results), inputs) }]
}

/// A module that looks rows up on its way: as the profile has found that it can be done.
fn looking_up(name: &str, profile: &Profile) -> Builder {
    let name = if profile.lookup == Lookup::OneHot { format!("{name}_one_hot") } else { name.to_owned() };
    Builder::with_options(&name, options(&Profile { lookup: profile.lookup, ..Profile::default() }))
}

pub(super) fn floats(dims: &[usize], value: impl Fn(usize) -> f32) -> Tensor {
    Tensor::new(dims, (0..dims.iter().product()).map(value).collect()).expect("as many as the dimensions say")
}

pub(super) fn halves(dims: &[usize], value: impl Fn(usize) -> f32) -> Tensor {
    let values = (0..dims.iter().product()).map(|i| bf16::from_f32(value(i)));
    Tensor::new(dims, values.collect()).expect("as many as the dimensions say")
}

/// Beyond 256 bf16 holds no odd number; near the table's end an angle is many turns.
const POSITIONS: [i32; 8] = [0, 1, 255, 257, 511, 777, 1000, 1023];
const TABLE: usize = 1024;
