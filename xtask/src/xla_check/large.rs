//! A few layers of SmolLM2-135M's sizes, with its whole vocabulary and random weights: nine query heads of three pairs, which
//! neither two nor four cores divide.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use njoule_hlo::{Element, Tensor};
use njoule_models::checkpoint::Checkpoint;
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::neuron::evaluated::EvaluatedBackend;
use njoule_runtime::backend::neuron::{Input, ModuleKind, ModuleSpec, Output};
use njoule_runtime::backend::{Backend, Batch, BlockId, Capacity, Quant, SeqSpan, StepOutput};

use super::compare;
use super::xla::Xla;

/// bf16 or not, and cores.
pub const FORMS: [(bool, usize); 4] = [(false, 1), (false, 2), (false, 4), (true, 2)];

/// Prefill, decode and score steps on XLA against candle.
pub fn check(bf16: bool, tp: usize, xla: &Xla) -> anyhow::Result<String> {
    let checkpoint = Checkpoint::random("smollm2-135m")?;
    let mut config = checkpoint.config.clone();
    config.layers = LAYERS;
    config.windows.truncate(LAYERS);
    config.rope_layers.truncate(LAYERS);
    let (program, source) = (config.program(), checkpoint.weights.as_ref());
    let capacity = Capacity { blocks: 2, block_len: 32, max_rows: 16, max_seqs: 2, max_outputs: 16, max_len: 32 };
    let vocab = program.vocab();
    let tokens: Vec<u32> = (0..=TOKENS as u32).map(|i| (i * 9973 + 17) % vocab as u32).collect();

    let quant = if bf16 { Quant::Bf16 } else { Quant::None };
    let mut candle = CandleBackend::on_cpu(quant).load(&program, source, capacity)?;
    candle.submit(&Batch {
        tokens: tokens.clone(),
        positions: (0..=TOKENS as u32).collect(),
        slots: (0..=TOKENS as u32).collect(),
        seqs: vec![SeqSpan { rows: 0..TOKENS + 1, context: TOKENS + 1, table: 0..1, rope_len: 32 }],
        tables: vec![BlockId(0)],
        outputs: (0..=TOKENS as u32).collect(),
        ..Batch::default()
    })?;
    let mut out = StepOutput::default();
    candle.collect(&mut out)?;
    let want: Vec<&[f32]> = (0..out.rows).map(|i| out.row(i)).collect();

    let backend = if bf16 { EvaluatedBackend::bf16(tp) } else { EvaluatedBackend::f32(tp) };
    let mut model = backend.load_evaluated(&program, source, capacity)?;
    model.spec_mut().candidates = CANDIDATES;
    model.run_by(Box::new(xla.clone()));
    let module = |kind, len| ModuleSpec { class: model.class(), kind, len, biases: 0, mask: false };
    let modules = [
        module(ModuleKind::Prefill { tokens: TOKENS }, 0),
        module(ModuleKind::Decode { batch: 1 }, 32),
        module(ModuleKind::Score { tokens: TOKENS }, 0),
    ];
    let ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
    let chunk = |row: i32| {
        HashMap::from([
            (Input::Tokens, vector(&ids[..TOKENS])),
            (Input::Start, Tensor::scalar(0i32)),
            (Input::Row, Tensor::scalar(row)),
            (Input::Last, Tensor::scalar(TOKENS as i32 - 1)),
        ])
    };
    let prefilled = model.step(&modules[0], &chunk(0))?;
    let place = || vector(&[TOKENS as i32]);
    let one = [(Input::Tokens, vector(&ids[TOKENS..])), (Input::Positions, place()), (Input::Slots, place())];
    let decoded = model.step(&modules[1], &one.into())?;
    let scored = model.step(&modules[2], &chunk(1))?;

    let logits = scored[&Output::Logits].as_slice::<f32>().context("logits of f32")?;
    let rows: Vec<&[f32]> = logits.chunks_exact(vocab).collect();
    // With random weights bf16's own error is that of its products' inputs: a 256th of each, over the layers.
    let size = want.iter().flat_map(|row| row.iter()).map(|x| x.abs()).fold(0.0, f32::max);
    let bound = bf16.then_some(f64::from(size) / 256.0);
    let figures = compare::logits(&rows, &want[..TOKENS], bound, false)?;
    for (results, want) in [(&prefilled, want[TOKENS - 1]), (&decoded, want[TOKENS])] {
        candidates(results, want, if bf16 { size / 64.0 } else { size * 1e-4 })?;
    }
    Ok(figures)
}

/// Candidates are the largest of candle's logits, but for what lies within twice `near` of the least of them.
fn candidates(results: &HashMap<Output, Tensor>, want: &[f32], near: f32) -> anyhow::Result<()> {
    let values = results[&Output::CandidateValues].as_slice::<f32>().context("values of f32")?;
    let ids = results[&Output::CandidateIds].as_slice::<i32>().context("ids of s32")?;
    let greedy = results[&Output::Greedy].as_slice::<i32>().context("ids of s32")?;
    let sum = results[&Output::LogSumExp].as_slice::<f32>().context("sums of f32")?[0];
    ensure!(greedy[0] == ids[0] && ids.len() == CANDIDATES, "the likeliest token is {}, not {}", greedy[0], ids[0]);
    for (id, value) in ids.iter().zip(values) {
        let off = (want[*id as usize] - value).abs();
        ensure!(off <= near, "candidate {id} is off by {off}");
    }
    let least = values[CANDIDATES - 1];
    let missed = want.iter().enumerate().find(|(id, x)| **x > least + 2.0 * near && !ids.contains(&(*id as i32)));
    ensure!(missed.is_none(), "{missed:?} is no candidate");
    let exact: f64 = want.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    ensure!((f64::from(sum) - exact).abs() <= f64::from(near), "log-sum-exp {sum}, not {exact}");
    Ok(())
}

fn vector<T: Element>(values: &[T]) -> Tensor {
    Tensor::new(&[values.len()], values.to_vec()).expect("as long as it is")
}

const LAYERS: usize = 2;
const TOKENS: usize = 8;
const CANDIDATES: usize = 64;
