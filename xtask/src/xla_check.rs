//! Modules for Neuron on real XLA: what they compute there against candle's logits, and their caches against the evaluator's.
//!
//! A pass says that XLA's verifier takes a module and computes with it what the model says. It says nothing of neuronx-cc's
//! operators, precision or speed.

mod compare;
mod large;
mod xla;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use njoule_conformance::steps::{self, CAPACITY};
use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::Op;
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::neuron::evaluated::EvaluatedBackend;
use njoule_runtime::backend::{Backend, Quant};

use self::xla::Xla;

/// Runs the check: of some families, or of all in every form.
pub fn run(all: bool) -> anyhow::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let target = workspace.join("target");
    let python = xla::python(&target)?;
    let start = Instant::now();
    let mut runs: Vec<(String, bool, usize)> = vec![];
    if all {
        for name in fixtures(&workspace.join("testdata"))? {
            for bf16 in [false, true] {
                runs.extend([1, 2, 4].map(|tp| (name.clone(), bf16, tp)));
            }
        }
    } else {
        runs.extend(SOME.map(|(name, bf16, tp)| (name.to_owned(), bf16, tp)));
    }
    let xla = Xla::new(python, target.join("xla-check"))?;
    let mut failures = vec![];
    let mut report = |what: &str, bf16: bool, tp: usize, result: anyhow::Result<String>| {
        let what = format!("{what} in {} on {tp}", if bf16 { "bf16" } else { "f32" });
        match result {
            Ok(figures) => println!("{what}: {figures}"),
            Err(error) => failures.push(format!("{what}: {error:#}")),
        }
    };
    for (name, bf16, tp) in runs {
        report(&name, bf16, tp, family(&workspace.join("testdata").join(&name), bf16, tp, &xla));
    }
    for (bf16, tp) in large::FORMS {
        report("layers of SmolLM2's size", bf16, tp, large::check(bf16, tp, &xla));
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    println!("{} modules in {:.0} s", xla.modules(), start.elapsed().as_secs_f32());
    Ok(())
}

fn fixtures(testdata: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = vec![];
    for entry in std::fs::read_dir(testdata)? {
        let path = entry?.path();
        if path.join("config.json").is_file()
            && let Some(name) = path.file_name()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A fixture through the steps of the conformance suite: prefill, decode and score.
fn family(dir: &Path, bf16: bool, tp: usize, xla: &Xla) -> anyhow::Result<String> {
    let checkpoint = Checkpoint::open(dir)?;
    let (program, source) = (checkpoint.config.program(), checkpoint.weights.as_ref());
    let quant = if bf16 { Quant::Bf16 } else { Quant::None };
    let mut candle = CandleBackend::on_cpu(quant).load(&program, source, CAPACITY)?;
    let want = steps::run(candle.as_mut(), program.vocab());
    let want: Vec<&[f32]> = want.rows().collect();

    let backend = if bf16 { EvaluatedBackend::bf16(tp) } else { EvaluatedBackend::f32(tp) };
    let mut evaluated = backend.load_evaluated(&program, source, CAPACITY)?;
    evaluated.spec_mut().candidates = CANDIDATES;
    steps::run(&mut evaluated, program.vocab());
    let mut model = backend.load_evaluated(&program, source, CAPACITY)?;
    model.spec_mut().candidates = CANDIDATES;
    model.run_by(Box::new(xla.clone()));
    let got = steps::run(&mut model, program.vocab());
    let got: Vec<&[f32]> = got.rows().collect();

    let bound = if bf16 {
        let golden = std::fs::read(dir.join("golden.json")).context("golden.json")?;
        let golden: serde_json::Value = serde_json::from_slice(&golden)?;
        golden["conditioning"]["bf16_logit_meandiff"].as_f64()
    } else {
        None
    };
    let experts = program.ops.iter().any(|op| matches!(op, Op::Route { .. }));
    let logits = compare::logits(&got, &want, if bf16 { Some(bound.unwrap_or(0.03)) } else { None }, experts)?;
    let caches = if experts && bf16 { String::new() } else { compare::caches(&model, &evaluated, bf16)? };
    Ok(format!("{logits}{caches}"))
}

/// Of a step that chooses. XLA takes seconds to compile the rounds of some hundred.
const CANDIDATES: usize = 8;

/// What every change must pass: each kind of attention, of norm and of feed-forward, and each number of cores.
const SOME: [(&str, bool, usize); 9] = [
    ("llama_tied", false, 1),
    ("llama_tied", true, 2),
    ("gemma2", false, 4),
    ("gpt2", false, 2),
    ("gpt_oss", false, 2),
    ("olmo2", true, 4),
    ("phi3_longrope", false, 1),
    ("qwen2_moe", false, 2),
    ("mistral", true, 1),
];
