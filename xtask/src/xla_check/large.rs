//! A few layers of SmolLM2-135M's sizes, with its whole vocabulary and random weights: nine query heads of three pairs, which
//! neither two nor four cores divide. Steps that choose take biases and a mask, as those of an artifact do.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use njoule_hlo::{Element, Tensor};
use njoule_models::checkpoint::Checkpoint;
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::neuron::evaluated::EvaluatedBackend;
use njoule_runtime::backend::neuron::{Input, ModuleKind, ModuleSpec, Output};
use njoule_runtime::backend::{Batch, BlockId, Capacity, Executor, Masks, Quant, SeqSpan, StepOutput};

use super::compare::{self, BF16_ULPS, Bound};
use super::xla::Xla;

/// bf16 or not, and cores: what every change must pass.
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
    let mut candle = CandleBackend::on_cpu(quant).load_candle(&program, source, capacity)?;
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
    let (class, biases) = (model.class(), BIASES.len());
    let module = |kind, len, biases, mask| ModuleSpec { biases, mask, ..ModuleSpec::of(class, kind, len) };
    let modules = [
        module(ModuleKind::Prefill { tokens: TOKENS }, 0, biases, true),
        module(ModuleKind::Decode { batch: 1 }, 32, biases, true),
        module(ModuleKind::Score { tokens: TOKENS }, 0, 0, false),
    ];
    // A third of the tokens is forbidden; a bias is of one that is allowed, of one that is not, and of the last.
    let mask: Vec<u32> = (0..vocab.div_ceil(32)).map(|w| 0xdb6d_b6db_u32.rotate_left(w as u32)).collect();
    let (ids, values): (Vec<i32>, Vec<f32>) = BIASES.iter().copied().unzip();
    let choice = [
        (Input::BiasIds, Tensor::new(&[1, biases], ids)?),
        (Input::BiasValues, Tensor::new(&[1, biases], values)?),
        (Input::Mask, Tensor::new(&[1, mask.len()], mask.clone())?),
    ];
    let tokens: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
    let chunk = |row: i32| {
        HashMap::from([
            (Input::Tokens, vector(&tokens[..TOKENS])),
            (Input::Start, Tensor::scalar(0i32)),
            (Input::Row, Tensor::scalar(row)),
            (Input::Last, Tensor::scalar(TOKENS as i32 - 1)),
        ])
    };
    let mut first = chunk(0);
    first.extend(choice.clone());
    let prefilled = model.step(&modules[0], &first)?;
    let place = || vector(&[TOKENS as i32]);
    let one = [(Input::Tokens, vector(&tokens[TOKENS..])), (Input::Positions, place()), (Input::Slots, place())];
    let decoded = model.step(&modules[1], &one.into_iter().chain(choice).collect())?;
    let bound = if bf16 { BF16_ULPS } else { 1e-4 };
    let caches = compare::first_row(&model, &candle, &program, TOKENS + 1, bound)?;
    let scored = model.step(&modules[2], &chunk(1))?;

    let logits = scored[&Output::Logits].as_slice::<f32>().context("logits of f32")?;
    let rows: Vec<&[f32]> = logits.chunks_exact(vocab).collect();
    // With random weights bf16's own error is that of its products' inputs: a 256th of each, over the layers.
    let size = want.iter().flat_map(|row| row.iter()).map(|x| x.abs()).fold(0.0, f32::max);
    let bound = if bf16 { Bound::Mean(f64::from(size) / 256.0) } else { Bound::Worst(1e-4) };
    let figures = compare::logits(&rows, &want[..TOKENS], bound, &[true; TOKENS])?;
    for (results, want) in [(&prefilled, want[TOKENS - 1]), (&decoded, want[TOKENS])] {
        candidates(results, want, &mask, if bf16 { size / 64.0 } else { size * 1e-4 })?;
    }
    Ok(format!("{figures}, {caches}"))
}

/// Candidates are the largest of candle's logits, biases and mask applied, but for what lies within twice `near` of the least
/// of them.
fn candidates(results: &HashMap<Output, Tensor>, logits: &[f32], mask: &[u32], near: f32) -> anyhow::Result<()> {
    let mut want = logits.to_vec();
    BIASES.iter().for_each(|(id, value)| want[*id as usize] += value);
    want.iter_mut().enumerate().filter(|(id, _)| !Masks::allows(mask, *id as u32)).for_each(|(_, x)| *x = f32::MIN);
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
    let exact: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    ensure!((f64::from(sum) - exact).abs() <= f64::from(near), "log-sum-exp {sum}, not {exact}");
    Ok(())
}

fn vector<T: Element>(values: &[T]) -> Tensor {
    Tensor::new(&[values.len()], values.to_vec()).expect("as long as it is")
}

/// Tokens and what is added to their logits. Token 1 is allowed, token 5 is not.
const BIASES: [(i32, f32); 3] = [(1, 3.0), (5, 8.0), (49151, 2.5)];
const LAYERS: usize = 2;
const TOKENS: usize = 8;
const CANDIDATES: usize = 64;
