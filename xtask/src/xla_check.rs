//! Modules for Neuron on real XLA: what they compute there against candle's logits, and the caches that they leave against
//! candle's.
//!
//! A pass says that XLA's verifier takes a module and computes with it what the model says. It says nothing of neuronx-cc's
//! operators, precision or speed.

mod compare;
mod large;
mod xla;

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};
use njoule_conformance::steps::{self, CAPACITY};
use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::{Op, Program};
use njoule_models::weights::WeightSource;
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::neuron::evaluated::EvaluatedBackend;
use njoule_runtime::backend::{Backend, Quant, Routes};

use self::compare::Bound;
use self::xla::{Host, Xla};

#[cfg(feature = "pjrt")]
pub use self::xla::serve;

/// One model in one form.
struct Check {
    /// A fixture; layers of SmolLM2's size without.
    fixture: Option<PathBuf>,
    bf16: bool,
    tp: usize,
}

/// Runs the check: of some families, or of all in every form.
pub fn run(all: bool) -> anyhow::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let (target, testdata) = (workspace.join("target"), workspace.join("testdata"));
    let host = Host::find(&target)?;
    let start = Instant::now();
    let every = || [false, true].into_iter().flat_map(|bf16| [1, 2, 4].map(|tp| (bf16, tp)));
    let mut checks = VecDeque::new();
    // The longest first.
    let large: Vec<(bool, usize)> = if all { every().collect() } else { large::FORMS.into() };
    checks.extend(large.into_iter().map(|(bf16, tp)| Check { fixture: None, bf16, tp }));
    let fixture = |name: &str, (bf16, tp): (bool, usize)| Check { fixture: Some(testdata.join(name)), bf16, tp };
    if all {
        checks.extend(fixtures(&testdata)?.iter().flat_map(|name| every().map(move |form| fixture(name, form))));
    } else {
        checks.extend(SOME.map(|(name, bf16, tp)| fixture(name, (bf16, tp))));
    }
    let checks = Mutex::new(checks);
    let (failures, modules) = (Mutex::new(vec![]), Mutex::new(HashSet::new()));
    let worker = |number: usize| -> anyhow::Result<()> {
        let xla = Xla::new(host.clone(), target.join("xla-check").join(number.to_string()))?;
        xla.check_isolation()?;
        loop {
            let Some(check) = taken(&checks).pop_front() else { break };
            match check.run(&xla) {
                Ok(figures) => println!("{}: {figures}", check.name()),
                Err(error) => taken(&failures).push(format!("{}: {error:#}", check.name())),
            }
            xla.forget()?;
        }
        taken(&modules).extend(xla.modules());
        Ok(())
    };
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_WORKERS));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|number| scope.spawn(move || worker(number))).collect();
        let ended = |worker: std::thread::ScopedJoinHandle<'_, anyhow::Result<()>>| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().map(ended).collect::<anyhow::Result<Vec<()>>>()
    })?;
    let failures = taken(&failures);
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    println!("{} modules in {:.0} s", taken(&modules).len(), start.elapsed().as_secs_f32());
    Ok(())
}

fn taken<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Check {
    fn name(&self) -> String {
        let name = self.fixture.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_else(|| "layers of SmolLM2's size".to_owned());
        format!("{name} in {} on {}", if self.bf16 { "bf16" } else { "f32" }, self.tp)
    }

    fn run(&self, xla: &Xla) -> anyhow::Result<String> {
        match &self.fixture {
            Some(dir) => family(dir, self.bf16, self.tp, xla),
            None => large::check(self.bf16, self.tp, xla),
        }
    }
}

/// A fixture through the steps of the conformance suite: prefill, decode and score.
fn family(dir: &Path, bf16: bool, tp: usize, xla: &Xla) -> anyhow::Result<String> {
    let checkpoint = Checkpoint::open(dir)?;
    let (program, source) = (checkpoint.config.program(), checkpoint.weights.as_ref());
    let quant = if bf16 { Quant::Bf16 } else { Quant::None };
    let mut candle = CandleBackend::on_cpu(quant).load_candle(&program, source, CAPACITY)?;
    // A near-tie of a router is decided by the last bit: in bf16 either way.
    let routed = bf16 && program.ops.iter().any(|op| matches!(op, Op::Route { .. }));
    if routed {
        candle.note_routes();
    }
    let want = steps::run(&mut candle, program.vocab());
    let want: Vec<&[f32]> = want.rows().collect();

    let backend = if bf16 { EvaluatedBackend::bf16(tp) } else { EvaluatedBackend::f32(tp) };
    let mut model = backend.load_evaluated(&program, source, CAPACITY)?;
    (model.spec_mut().candidates, model.spec_mut().shares) = (CANDIDATES, routed);
    model.run_by(Box::new(xla.clone()));
    let got = steps::run(&mut model, program.vocab());
    let got: Vec<&[f32]> = got.rows().collect();

    let agrees = |seq: usize, position: usize| match candle.routes() {
        Some(routes) => alike(routes, model.routes(), seq, position),
        None => true,
    };
    let bound = if bf16 { Bound::Mean(bf16_itself(dir, &program, source, &want)?) } else { Bound::Worst(1e-4) };
    let kept: Vec<bool> = steps::wanted().into_iter().map(|(seq, position)| agrees(seq, position)).collect();
    let logits = compare::logits(&got, &want, bound, &kept)?;
    let caches = compare::caches(&model, &candle, &program, if bf16 { 2.0 / 128.0 } else { 1e-4 }, &agrees)?;
    Ok(format!("{logits}, {caches}"))
}

/// Whether both routed a token, and all before it in its sequence, to the same experts: it attends to those.
fn alike(a: &Routes, b: &Routes, seq: usize, position: usize) -> bool {
    let (first, _) = steps::slots(seq);
    let chosen = |routes: &Routes, p: u32| routes.get(&(first, p)).cloned().unwrap_or_default();
    // What the last router chose is known of outputs alone.
    (0..=position as u32).all(|p| chosen(a, p).iter().zip(&chosen(b, p)).all(|(a, b)| a == b))
}

/// How far bf16 is from f32 in the mean: by the reference implementation, else by candle, but no more than [`MOST_MEAN`].
fn bf16_itself(dir: &Path, program: &Program, source: &dyn WeightSource, bf16: &[&[f32]]) -> anyhow::Result<f64> {
    let golden = std::fs::read(dir.join("golden.json")).context("golden.json")?;
    let golden: serde_json::Value = serde_json::from_slice(&golden)?;
    if let Some(mean) = golden["conditioning"]["bf16_logit_meandiff"].as_f64() {
        return Ok(mean);
    }
    let mut exact = CandleBackend::on_cpu(Quant::None).load(program, source, CAPACITY)?;
    let exact = steps::run(exact.as_mut(), program.vocab());
    let differences = exact.rows().zip(bf16).flat_map(|(a, b)| a.iter().zip(*b)).map(|(a, b)| f64::from((a - b).abs()));
    Ok((differences.sum::<f64>() / (bf16.len() * program.vocab()) as f64).min(MOST_MEAN))
}

/// What bf16 may cost in the mean where no reference says it: a model that is far off in candle as well is no excuse.
const MOST_MEAN: f64 = 0.03;

/// Of a step that chooses. XLA takes seconds to compile the rounds of some hundred.
const CANDIDATES: usize = 8;
/// Each has a Python and the processes of one model's modules.
const MOST_WORKERS: usize = 4;

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
