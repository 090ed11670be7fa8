//! A step in the library beside the bare evaluator: a layer of SmolLM2-135M's size.

use std::sync::Arc;

use njoule_hlo::idioms::{Attention, KeysValues, attend, rms_norm, silu, write_rows};
use njoule_hlo::{ArrayShape, Builder, DType, Executable, Module, Target, Tensor as Array, Val};
use njoule_neuron_sys::{Model, Runtime, Tensor};

use crate::child::{EVALUATOR, child, faults, start};
use crate::modules::{bind, neff};

const HIDDEN: usize = 576;
const KV: usize = 3;
const GROUP: usize = 3;
const D: usize = 64;
const INNER: usize = 1536;
const VOCABULARY: usize = 49152;

/// Inputs are hidden states, positions, keys and values per layer, weights per layer, and the last product's; results are
/// logits and the caches in place.
fn stack(layers: usize, batch: usize, len: usize, dtype: DType) -> Module {
    let mut b = Builder::new("stack");
    let mut hidden = b.parameter("hidden", dtype, &[batch, HIDDEN]);
    let positions = b.parameter("positions", DType::S32, &[batch]);
    let caches: Vec<Val> =
        (0..2 * layers).map(|i| b.parameter(&format!("cache{i}"), dtype, &[len * batch, KV * D])).collect();
    let q = KV * GROUP * D;
    let row = b.iota(DType::S32, &[batch], 0);
    let len_of_each = b.full(&[batch], len as i32);
    let first = b.multiply(row, len_of_each);
    let slots = b.add(first, positions);
    let how = Attention { scale: 0.125, window: None, softcap: None, sinks: None, slopes: None, products: dtype };
    let mut rows = vec![];
    for layer in 0..layers {
        let weight = |b: &mut Builder, name: &str, dims: &[usize]| b.parameter(&format!("{name}{layer}"), dtype, dims);
        let gamma = weight(&mut b, "gamma", &[HIDDEN]);
        let qkv = weight(&mut b, "qkv", &[HIDDEN, q + 2 * KV * D]);
        let o = weight(&mut b, "o", &[q, HIDDEN]);
        let up = weight(&mut b, "up", &[HIDDEN, 2 * INNER]);
        let down = weight(&mut b, "down", &[HIDDEN, INNER]);
        let normal = rms_norm(&mut b, hidden, gamma, 1e-5);
        let heads = b.matmul(normal, qkv, false, dtype);
        let part = |b: &mut Builder, from: usize, dims: &[usize]| {
            let size: usize = dims.iter().product();
            let part = b.slice_dim(heads, 1, from..from + size);
            b.reshape(part, &[&[batch], dims].concat())
        };
        let query = part(&mut b, 0, &[1, KV, GROUP, D]);
        let query = b.convert(query, DType::F32);
        let new = [part(&mut b, q, &[1, KV, D]), part(&mut b, q + KV * D, &[1, KV, D])];
        let old = [caches[2 * layer], caches[2 * layer + 1]];
        let [keys, values] = old.map(|c| b.reshape(c, &[batch, len, KV, D]));
        let prior = KeysValues { keys, values, scales: None };
        let own = KeysValues { keys: new[0], values: new[1], scales: None };
        let out = attend(&mut b, query, Some(prior), own, positions, how);
        for (cache, new) in old.into_iter().zip(new) {
            let new = b.reshape(new, &[batch, KV * D]);
            rows.push(write_rows(&mut b, cache, slots, new));
        }
        let out = b.reshape(out, &[batch, q]);
        let out = b.convert(out, dtype);
        let out = b.matmul(out, o, false, dtype);
        hidden = b.add(hidden, out);
        let normal = rms_norm(&mut b, hidden, gamma, 1e-5);
        let both = b.matmul(normal, up, false, dtype);
        let gate = b.slice_dim(both, 1, 0..INNER);
        let up = b.slice_dim(both, 1, INNER..2 * INNER);
        let gate = silu(&mut b, gate);
        let inner = b.multiply(gate, up);
        let out = b.matmul(inner, down, true, dtype);
        hidden = b.add(hidden, out);
    }
    let head = b.parameter("head", dtype, &[VOCABULARY, HIDDEN]);
    let logits = b.matmul(hidden, head, true, DType::F32);
    caches.iter().enumerate().for_each(|(i, &cache)| b.alias(1 + i, cache));
    b.finish(&[vec![logits], rows].concat())
}

/// Small numbers, the same each time; zero for integers.
fn content(shape: ArrayShape, seed: usize) -> Vec<u8> {
    let value = |i: usize| ((i * 7 + seed * 13) % 41) as f32 / 410.0 - 0.05;
    match shape.dtype() {
        DType::BF16 => (0..shape.elements()).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect(),
        DType::F32 => (0..shape.elements()).flat_map(|i| value(i).to_le_bytes()).collect(),
        _ => vec![0; shape.bytes()],
    }
}

/// Runs `steps` steps in the library and in the evaluator; the last logits must be equal.
fn compare(runtime: &Runtime, module: Module, steps: usize) {
    let shapes: Vec<ArrayShape> = module.signature.parameters.iter().filter_map(|s| s.array()).collect();
    let aliases = module.aliases.clone();
    let core = runtime.core(0).unwrap();
    let model = Arc::new(Model::load(runtime, core, &neff(&module, Target::Inf2), "stack").unwrap());
    let inputs: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(i, &shape)| {
            let tensor = Tensor::on_core(runtime, core, shape.bytes(), "input").unwrap();
            tensor.write(0, &content(shape, i)).unwrap();
            tensor
        })
        .collect();
    let logits = Tensor::on_core(runtime, core, module.results()[0].bytes(), "logits").unwrap();
    let in_place = aliases.iter().map(|a| &inputs[a.parameter]);
    let outputs: Vec<&Tensor> = std::iter::once(&logits).chain(in_place).collect();
    let mut run = bind(runtime, &model, &inputs.iter().collect::<Vec<_>>(), &outputs).unwrap();

    let executable = Executable::new(module, Target::Inf2).unwrap();
    let mut arrays: Vec<Option<Array>> = shapes
        .iter()
        .enumerate()
        .map(|(i, &shape)| Some(Array::from_bytes(shape, &content(shape, i)).unwrap()))
        .collect();
    let (mut got, mut want) = (vec![0; logits.size()], vec![]);
    for _ in 0..steps {
        inputs[1].write(0, &content(shapes[1], 0)).unwrap();
        run.execute().unwrap();
        logits.read(0, &mut got).unwrap();
        let mut own = arrays.clone();
        aliases.iter().for_each(|a| own[a.parameter] = arrays[a.parameter].take());
        let results = executable.run(own.into_iter().flatten().collect()).unwrap();
        want = results[0].to_bytes();
        for (alias, result) in aliases.iter().zip(&results[1..]) {
            arrays[alias.parameter] = Some(result.clone());
        }
    }
    assert_eq!(got, want);
}

#[test]
fn a_stack_of_layers_gives_the_evaluators_bits() {
    child(EVALUATOR, || {
        compare(&start(), stack(1, 2, 16, DType::BF16), 2);
        assert_eq!(faults(), 0);
    });
}
