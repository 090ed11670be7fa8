//! Modules of arithmetic: sums, products, norms, angles, candidates.

use half::bf16;
use njoule_hlo::builder::Custom;
use njoule_hlo::op::DotDims;
use njoule_hlo::{Builder, DType, Options, Tensor, idioms};

use crate::backend::neuron::Profile;
use crate::backend::neuron::probe::Trial;
use crate::backend::neuron::profile::Lookup;

pub(super) fn add(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_add");
    let [x, y] = ["x", "y"].map(|name| b.parameter(name, DType::F32, &[128]));
    let sum = b.add(x, y);
    let inputs = vec![floats(&[128], |i| i as f32 - 64.0), floats(&[128], |i| 0.25 * i as f32)];
    vec![Trial { module: b.finish(&[sum]), inputs, runs: 1, tolerance: 0.0 }]
}

pub(super) fn alias(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_alias");
    let total = b.parameter("total", DType::F32, &[4, 64]);
    let more = b.parameter("more", DType::F32, &[4, 64]);
    b.alias(0, total);
    let sum = b.add(total, more);
    let inputs = vec![floats(&[4, 64], |i| i as f32), floats(&[4, 64], |_| 0.5)];
    vec![Trial { module: b.finish(&[sum]), inputs, runs: 3, tolerance: 0.0 }]
}

pub(super) fn dot_f32(_: &Profile) -> Vec<Trial> {
    vec![product("probe_dot_f32", DType::F32)]
}

pub(super) fn dot_operand(_: &Profile) -> Vec<Trial> {
    vec![product("probe_dot_operand", DType::BF16)]
}

/// Sums of 512 that pass 256, where steps of bf16 are larger than the terms.
fn product(name: &str, result: DType) -> Trial {
    let mut b = Builder::new(name);
    let x = b.parameter("x", DType::BF16, &[32, 512]);
    let w = b.parameter("w", DType::BF16, &[512, 64]);
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let y = b.dot(x, w, dims, result);
    let inputs =
        vec![halves(&[32, 512], |i| 0.5 + (i % 5) as f32 * 0.25), halves(&[512, 64], |i| 0.5 + (i % 7) as f32 * 0.125)];
    // One rounding to bf16, and none in f32: the terms are multiples of 1/32.
    Trial { module: b.finish(&[y]), inputs, runs: 1, tolerance: if result == DType::F32 { 1e-6 } else { 1.0 / 256.0 } }
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
    vec![Trial { module: b.finish(&[norm, softmax, sum, act]), inputs, runs: 1, tolerance: 2e-3 }]
}

pub(super) fn rope_computed(_: &Profile) -> Vec<Trial> {
    let mut b = Builder::new("probe_rope_computed");
    let positions = b.parameter("positions", DType::S32, &[POSITIONS.len()]);
    let x = b.parameter("x", DType::F32, &[POSITIONS.len(), 2, 64]);
    let angles = idioms::angles(&mut b, positions, &frequencies(), 1.0);
    let turned = idioms::rotate(&mut b, x, angles, idioms::Pairing::Halves);
    vec![Trial { module: b.finish(&[turned]), inputs: rope_inputs(), runs: 1, tolerance: 2e-3 }]
}

/// Cosines and sines as rows of a table, looked up and applied to halves.
pub(super) fn rope_table(profile: &Profile) -> Vec<Trial> {
    let (name, options) = looking_up("probe_rope_table", profile);
    let mut b = Builder::with_options(&name, options);
    let tokens = POSITIONS.len();
    let positions = b.parameter("positions", DType::S32, &[tokens]);
    let x = b.parameter("x", DType::F32, &[tokens, 2, 64]);
    let f = frequencies();
    let [cosine, sine] = [f32::cos as fn(f32) -> f32, f32::sin].map(|function| {
        let table = floats(&[TABLE, 32], |i| function((i / 32) as f32 * f[i % 32]));
        let table = b.constant(table);
        let rows = idioms::take_rows(&mut b, table, positions);
        b.broadcast(rows, &[0, 2], &[tokens, 2, 32])
    });
    let (first, second) = (b.slice_dim(x, 2, 0..32), b.slice_dim(x, 2, 32..64));
    let [fc, fs, sc, ss] =
        [(first, cosine), (first, sine), (second, cosine), (second, sine)].map(|(x, t)| b.multiply(x, t));
    let parts = [b.subtract(fc, ss), b.add(sc, fs)];
    let turned = b.concatenate(&parts, 2);
    vec![Trial { module: b.finish(&[turned]), inputs: rope_inputs(), runs: 1, tolerance: 1e-5 }]
}

fn rope_inputs() -> Vec<Tensor> {
    let positions = Tensor::new(&[POSITIONS.len()], POSITIONS.to_vec()).expect("as long as it is");
    vec![positions, floats(&[POSITIONS.len(), 2, 64], |i| ((i % 17) as f32 - 8.0) * 0.125)]
}

fn frequencies() -> Vec<f32> {
    (0..32).map(|i| 10_000f32.powf(-(i as f32) / 32.0)).collect()
}

pub(super) fn top_k_rounds(profile: &Profile) -> Vec<Trial> {
    let (name, options) = looking_up("probe_top_k_rounds", profile);
    vec![top_k(&name, options)]
}

pub(super) fn top_k_custom(_: &Profile) -> Vec<Trial> {
    let mut options = Options::default();
    options.custom_calls.insert(Custom::TopK);
    vec![top_k("probe_top_k_custom", options)]
}

/// Distinct values in no order, so that the ids have one answer.
fn top_k(name: &str, options: Options) -> Trial {
    let mut b = Builder::with_options(name, options);
    let x = b.parameter("x", DType::F32, &[4, 2048]);
    let [values, ids] = idioms::top_k(&mut b, x, 16);
    let inputs = vec![floats(&[4, 2048], |i| ((i % 2048 * 773 + i / 2048 * 41) % 2048) as f32 * 0.5)];
    Trial { module: b.finish(&[values, ids]), inputs, runs: 1, tolerance: 0.0 }
}

/// Name and options of a module that looks rows up on its way: as the profile has found that it can be done.
fn looking_up(name: &str, profile: &Profile) -> (String, Options) {
    match profile.lookup {
        Lookup::Gather => (name.to_owned(), Options::default()),
        Lookup::OneHot => (format!("{name}_one_hot"), Options { one_hot_lookups: true, ..Options::default() }),
    }
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
