//! Modules of every family with the weights of `testdata`, run by `hlo`'s evaluator on one core and several: against candle,
//! and what a step chooses against what its logits say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use njoule_conformance::steps::{CAPACITY, Script};
use njoule_hlo::{Element, Tensor};
use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::{Op, Program};
use njoule_runtime::backend::candle::{CandleBackend, CandleExecutor};
use njoule_runtime::backend::neuron::evaluated::{Evaluated, EvaluatedBackend, Outputs};
use njoule_runtime::backend::neuron::{Input, ModuleKind, ModuleSpec, Output};
use njoule_runtime::backend::{Backend, Quant};

fn fixtures() -> Vec<(String, Checkpoint, Option<f64>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    // A norm's vector for each head and slopes of heads, which cores divide.
    let of_heads = ["cohere_normed", "stablelm_parallel", "falcon_alibi"];
    dirs.extend(of_heads.map(|name| root.join("variants").join(name)));
    dirs.sort();
    let open = |dir: PathBuf| {
        dir.join("config.json").is_file().then(|| {
            let name = dir.file_name().unwrap().to_string_lossy().into_owned();
            let golden = std::fs::read(dir.join("golden.json")).unwrap();
            let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
            (name, Checkpoint::open(&dir).unwrap(), golden["conditioning"]["bf16_logit_meandiff"].as_f64())
        })
    };
    let all: Vec<_> = dirs.into_iter().filter_map(open).collect();
    assert!(all.len() >= 30, "{}", all.len());
    all
}

fn rows(backend: &dyn Backend, program: &Program, checkpoint: &Checkpoint) -> Vec<Vec<f32>> {
    let mut executor = backend.load(program, checkpoint.weights.as_ref(), CAPACITY).unwrap();
    let script = Script::within(checkpoint.config.max_len).unwrap();
    script.run(executor.as_mut(), program.vocab()).rows().map(<[f32]>::to_vec).collect()
}

fn rms(rows: &[Vec<f32>]) -> f32 {
    let count = rows.iter().flatten().count() as f32;
    (rows.iter().flatten().map(|x| x * x).sum::<f32>() / count).sqrt()
}

/// Prefill, decode and score steps; the executor itself compares greedy choice, candidates and log-sum-exp.
#[test]
fn every_family_in_f32_gives_candles_logits() {
    for (name, checkpoint, _) in fixtures() {
        let program = checkpoint.config.program();
        let want = rows(&CandleBackend::on_cpu(Quant::None), &program, &checkpoint);
        let scale = rms(&want);
        // Heads that do not divide, and more cores than heads.
        let uneven = ["deepseek_v2", "deepseek_v3", "falcon_alibi"].contains(&name.as_str());
        for tp in [1, 2, 4].into_iter().chain([3, 8].into_iter().filter(|_| uneven)) {
            let got = rows(&EvaluatedBackend::f32(tp), &program, &checkpoint);
            let differences = got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (a - b).abs());
            // A NaN is the worst.
            let worst = differences.fold(0.0, |a, b| if b <= a { a } else { b });
            println!("{name} on {tp}: {:.1e}", worst / scale);
            assert!(got.len() == want.len() && worst / scale < 1e-4, "{name} on {tp}: {}", worst / scale);
        }
    }
}

/// Of rows that a near-tie of a router's sends to other experts the figures say nothing: there may be a third of them.
#[test]
fn every_family_in_bf16_is_as_near_to_candle_as_bf16_is_to_f32() {
    for (name, checkpoint, mean) in fixtures() {
        let program = checkpoint.config.program();
        let want = rows(&CandleBackend::on_cpu(Quant::Bf16), &program, &checkpoint);
        let exact = rows(&CandleBackend::on_cpu(Quant::None), &program, &checkpoint);
        let mean_of = |a: &[Vec<f32>], b: &[Vec<f32>]| {
            let mut rows: Vec<f64> = a
                .iter()
                .zip(b)
                .map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / a.len() as f64)
                .collect();
            rows.sort_by(f64::total_cmp);
            if program.ops.iter().any(|op| matches!(op, Op::Route { .. })) {
                rows.truncate(rows.len() * 2 / 3);
            }
            rows.iter().sum::<f64>() / rows.len() as f64
        };
        let bound = mean.unwrap_or_else(|| mean_of(&want, &exact));
        for tp in [1, 2] {
            let got = rows(&EvaluatedBackend::bf16(tp), &program, &checkpoint);
            let off = mean_of(&got, &want);
            println!("{name} on {tp}: {off:.1e} of {bound:.1e}");
            assert!(off <= bound, "{name} on {tp}: mean difference {off}, of bf16 itself {bound}");
        }
    }
}

/// Candle's layers over what the modules' layers below have given: its own logits, and others where that is something else.
#[test]
fn candle_follows_the_streams_that_modules_tell() {
    let followed = ["llama_tied", "gemma2", "cohere", "gpt_oss", "phi3_longrope"];
    for (name, checkpoint, _) in fixtures().into_iter().filter(|(name, ..)| followed.contains(&name.as_str())) {
        let program = checkpoint.config.program();
        let (source, script) = (checkpoint.weights.as_ref(), Script::within(checkpoint.config.max_len).unwrap());
        let mut model = EvaluatedBackend::f32(2).load_evaluated(&program, source, CAPACITY).unwrap();
        model.spec_mut().streams = true;
        script.run(&mut model, program.vocab());
        let mut candle = CandleBackend::on_cpu(Quant::None).load_candle(&program, source, CAPACITY).unwrap();
        let rows = |candle: &mut CandleExecutor| -> Vec<Vec<f32>> {
            script.run(candle, program.vocab()).rows().map(<[f32]>::to_vec).collect()
        };
        let own = rows(&mut candle);
        let mut streams = model.streams().clone();
        candle.follow_streams(streams.clone());
        let off = |rows: &[Vec<f32>]| {
            let differences = rows.iter().flatten().zip(own.iter().flatten()).map(|(a, b)| (a - b).abs());
            differences.fold(0.0, |a, b| if b <= a { a } else { b }) / rms(&own)
        };
        let followed = off(&rows(&mut candle));
        assert!(followed < 1e-4, "{name}: {followed}");
        // What the last layer reads is among them; of those before it nothing is carried on.
        streams.values_mut().flatten().for_each(|stream| stream[0] += 1.0);
        candle.follow_streams(streams);
        let misled = off(&rows(&mut candle));
        assert!(misled > 1e-3, "{name}: {misled}");
    }
}

fn vector<T: Element>(dims: &[usize], values: Vec<T>) -> Tensor {
    Tensor::new(dims, values).unwrap()
}

fn run(model: &mut Evaluated, kind: ModuleKind, len: usize, choice: bool, given: &HashMap<Input, Tensor>) -> Outputs {
    let biases = if choice { BIASES } else { 0 };
    let module = ModuleSpec { biases, mask: choice, ..ModuleSpec::of(model.class(), kind, len) };
    model.step(&module, given).unwrap()
}

const BIASES: usize = 4;
const K: usize = 7;

/// What is chosen must follow from logits, biases and mask by the plainest reading.
fn expect(results: &Outputs, row: usize, logits: &[f32], biases: &[(i32, f32)], mask: &[u32], about: &str) {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum = max + logits.iter().map(|x| (x - max).exp()).sum::<f32>().ln();
    let got = results[&Output::LogSumExp].as_slice::<f32>().unwrap()[row];
    assert!((got - sum).abs() < 1e-4, "{about}: log-sum-exp {got}, {sum}");
    let mut raised = logits.to_vec();
    for (id, value) in biases.iter().filter(|b| b.0 >= 0) {
        raised[*id as usize] += value;
    }
    let allowed = |id: &usize| mask[id / 32] >> (id % 32) & 1 == 1;
    let mut order: Vec<usize> = (0..logits.len()).filter(allowed).collect();
    order.sort_by(|a, b| raised[*b].total_cmp(&raised[*a]));
    let ids = &results[&Output::CandidateIds].as_slice::<i32>().unwrap()[row * K..][..K];
    let values = &results[&Output::CandidateValues].as_slice::<f32>().unwrap()[row * K..][..K];
    for (i, (id, value)) in ids.iter().zip(values).enumerate() {
        match order.get(i) {
            Some(want) => {
                let near = (raised[*want] - value).abs() < 1e-5;
                assert!(near && (raised[*id as usize] - value).abs() < 1e-5, "{about}: candidate {i} is {id}");
            }
            // Fewer are allowed than wanted.
            None => assert_eq!(*value, f32::MIN, "{about}: candidate {i} is {id}"),
        }
        assert!((0..logits.len() as i32).contains(id));
    }
    let greedy = results[&Output::Greedy].as_slice::<i32>().unwrap()[row];
    let first = order.first().copied().unwrap_or(0);
    assert!(
        raised[first] - raised[greedy as usize] < 1e-5 && (order.is_empty() || allowed(&(greedy as usize))),
        "{about}"
    );
}

#[test]
fn choices_follow_from_logits_biases_and_masks() {
    // 99 tokens on four cores: 32 each, the last with 3.
    for (name, tp) in [("olmo", 1), ("olmo", 2), ("olmo", 4), ("llama_tied", 2), ("gpt2", 4)] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let program = checkpoint.config.program();
        let vocab = program.vocab();
        let mut model =
            EvaluatedBackend::f32(tp).load_evaluated(&program, checkpoint.weights.as_ref(), CAPACITY).unwrap();
        model.spec_mut().candidates = K;
        let tokens: Vec<i32> = (0..8).map(|i| (i * 37 + 5) % vocab as i32).collect();
        let words = vocab.div_ceil(32);
        let mut masks = vec![vec![u32::MAX; words]];
        masks.push((0..words as u32).map(|w| 0x9249_2492_u32.rotate_left(w)).collect());
        // Fewer allowed than candidates, on one core alone; the last token among them.
        masks.push(vec![0; words]);
        masks[2][(vocab - 1) / 32] |= 1 << ((vocab - 1) % 32);
        masks[2][0] |= 0b1010;
        let biases = [
            vec![(-1, 9.0); BIASES],
            vec![(vocab as i32 - 1, 4.0), (3, 2.5), (3, 2.5), (-1, 50.0)],
            vec![(64, -100.0), (1, 0.25), (33, 3.0), (2, 1e-3)],
        ];
        for row in 0..2 {
            let common = [
                (Input::Tokens, vector(&[8], tokens.clone())),
                (Input::Start, Tensor::scalar(0i32)),
                (Input::Row, Tensor::scalar(row)),
                (Input::Last, Tensor::scalar(6i32)),
            ];
            let scored = run(&mut model, ModuleKind::Score { tokens: 8 }, 0, false, &common.clone().into());
            let logits = scored[&Output::Logits].as_slice::<f32>().unwrap().to_vec();
            for (mask, biases) in masks.iter().zip(&biases) {
                let (ids, values): (Vec<i32>, Vec<f32>) = biases.iter().copied().unzip();
                let mut given: HashMap<Input, Tensor> = common.clone().into();
                given.insert(Input::BiasIds, vector(&[1, BIASES], ids));
                given.insert(Input::BiasValues, vector(&[1, BIASES], values));
                given.insert(Input::Mask, vector(&[1, words], mask.clone()));
                let results = run(&mut model, ModuleKind::Prefill { tokens: 8 }, 0, true, &given);
                expect(&results, 0, &logits[6 * vocab..][..vocab], biases, mask, &format!("{name} prefill on {tp}"));
            }
        }
        // The eighth token again, as a decode step of both rows, each with its own biases and mask.
        let scored = run(
            &mut model,
            ModuleKind::Score { tokens: 8 },
            0,
            false,
            &[
                (Input::Tokens, vector(&[8], tokens.clone())),
                (Input::Start, Tensor::scalar(0i32)),
                (Input::Row, Tensor::scalar(0i32)),
            ]
            .into(),
        );
        let logits = scored[&Output::Logits].as_slice::<f32>().unwrap()[7 * vocab..].to_vec();
        let (ids, values): (Vec<i32>, Vec<f32>) = biases[1..].iter().flatten().copied().unzip();
        let given: HashMap<Input, Tensor> = [
            (Input::Tokens, vector(&[2], vec![tokens[7]; 2])),
            (Input::Positions, vector(&[2], vec![7i32; 2])),
            (Input::Slots, vector(&[2], vec![7i32; 2])),
            (Input::BiasIds, vector(&[2, BIASES], ids)),
            (Input::BiasValues, vector(&[2, BIASES], values)),
            (Input::Mask, vector(&[2, words], masks[1..].concat())),
        ]
        .into();
        let results = run(&mut model, ModuleKind::Decode { batch: 2 }, 40, true, &given);
        for row in 0..2 {
            let about = format!("{name} decode on {tp}, row {row}");
            expect(&results, row, &logits, &biases[row + 1], &masks[row + 1], &about);
        }
        // The likeliest token does not depend on how many candidates are wanted.
        let greedy = results[&Output::Greedy].clone();
        model.spec_mut().candidates = 1;
        let one = run(&mut model, ModuleKind::Decode { batch: 2 }, 40, true, &given);
        assert_eq!(one[&Output::Greedy], greedy, "{name}");
    }
}
