//! What a step costs the host beside the device: engine, grammars, sampler and executor on a stand-in whose runs take a fixed
//! time and compute nothing.
//!
//! A period is from one submit to the next; what the stand-in says that its runs took is taken off. What is left has
//! everything else: scheduling, masks, sampling, text, events, index tensors written to the stand-in's memory, results read,
//! threads woken. Candidates are made up, since a device that computes nothing returns zeros; that is taken off too.

mod answers;
mod cases;
mod timed;
mod vocabulary;

use std::ffi::OsStr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use neuron_fake::clock::Clock;
use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::Program;
use njoule_runtime::backend::neuron::artifact::Layout;
use njoule_runtime::backend::neuron::{CacheShape, ModuleKind, ModuleSpec, NeuronBackend, Profile};
use njoule_runtime::backend::{Backend, KvType, Quant};
use njoule_runtime::{Engine, EngineConfig};

use self::answers::Answers;
use self::cases::{Case, Masks, cases};
use self::timed::{Step, Steps, Timed};
use crate::flags::Flags;
use crate::standin;

/// Of the command line.
struct Options {
    latency: String,
    tokens: usize,
    batches: Vec<usize>,
    only: String,
    tokenizer: String,
}

impl Options {
    fn read() -> Result<Options> {
        let mut flags = Flags::read()?;
        let batches = flags.take("batches", Some("1,8,32"))?;
        let options = Options {
            latency: flags.take("latency", Some("5ms"))?,
            tokens: flags.take("tokens", Some("400"))?.parse().context("--tokens")?,
            batches: batches.split(',').map(str::parse).collect::<Result<_, _>>().context("--batches")?,
            only: flags.take("only", Some(""))?,
            tokenizer: flags.take("tokenizer", Some(""))?,
        };
        flags.finish()?;
        ensure!(options.tokens > SKIPPED, "--tokens must be more than {SKIPPED}");
        ensure!(!options.batches.contains(&0), "--batches must be positive");
        Ok(options)
    }
}

/// Measures, in a child process; or compiles, where it is that child's compiler.
pub fn main() -> ExitCode {
    standin::program(Options::read, run)
}

fn run(options: &Options) -> Result<()> {
    if standin::is_child() {
        return measure(options);
    }
    let switches = [
        ("NJOULE_FAKE_INSTANCE", "inf2.xlarge"),
        ("NJOULE_FAKE_EVALUATE", "0"),
        ("NJOULE_FAKE_LATENCY", options.latency.as_str()),
        ("NEURON_RT_ROOT_COMM_ID", "127.0.0.1:20000"),
    ];
    let status = standin::child(&standin::library()?, &switches)?.status()?;
    ensure!(status.success(), "the child that measures ended with {status}");
    Ok(())
}

fn measure(options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let checkpoint = model()?;
    let program = checkpoint.config.program();
    let artifact = standin::build(&program, &layout(options), None, &dir.path().join("model"))?;
    let backend = NeuronBackend::new(artifact);
    let executor = backend.load_neuron(&program, checkpoint.weights.as_ref(), backend.capacity())?;
    let clock = Arc::new(Clock::of(&standin::library()?)?);
    let masks = Masks::new(&options.tokenizer, dir.path(), program.vocab())?;
    let timed = Timed::new(executor, clock, Answers::new(None, masks.end, PROMPT));
    println!(
        "ms of a step beside the device ({}; vocabulary {}, {} candidates); CPU ms of a step: engine's thread, rank's; \
         steps run again with masks",
        options.latency,
        program.vocab(),
        CANDIDATES
    );
    println!(
        "{:52} {:>5} {:>7} {:>7} {:>7} {:>7} {:>7} {:>6}",
        "", "batch", "tenth", "median", "p99", "engine", "rank", "again"
    );
    let (mut ran, mut over) = (0, vec![]);
    for case in cases().iter().filter(|case| case.name.contains(&options.only)) {
        for &batch in &options.batches {
            let figures = one(case, batch, options, &backend, &program, &timed, &masks)?;
            println!("{:52} {batch:5} {figures}", case.name);
            ran += 1;
            if figures.median > LIMIT {
                over.push(format!("{} at {batch}", case.name));
            }
        }
    }
    if ran == 0 {
        bail!("no case has `{}` in its name", options.only);
    }
    match over.is_empty() {
        true => println!("every median is below {:.1} ms", LIMIT.as_secs_f64() * 1e3),
        false => println!("above {:.1} ms in the median: {}", LIMIT.as_secs_f64() * 1e3, over.join("; ")),
    }
    Ok(())
}

/// A few layers of SmolLM2's size: what the host does depends on rows and vocabulary.
fn model() -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::random("smollm2-135m")?;
    let config = &mut checkpoint.config;
    config.layers = LAYERS;
    config.windows.truncate(LAYERS);
    config.rope_layers.truncate(LAYERS);
    Ok(checkpoint)
}

fn layout(options: &Options) -> Layout {
    let mut batches = options.batches.clone();
    batches.sort_unstable();
    batches.dedup();
    let rows = batches.last().copied().unwrap_or(1);
    let positions = (PROMPT + options.tokens + CHUNK + 1).next_multiple_of(128);
    let class = CacheShape { rows, positions };
    let spec = |kind| ModuleSpec { biases: 8, mask: true, ..ModuleSpec::of(class, kind, positions) };
    let decodes = batches.iter().map(|&batch| spec(ModuleKind::Decode { batch }));
    Layout {
        instance: "inf2.xlarge".to_owned(),
        target: njoule_hlo::Target::Inf2,
        lnc: None,
        tp: 1,
        replicas: 1,
        weights: Quant::Bf16,
        kv: KvType::Bf16,
        candidates: CANDIDATES,
        context: positions,
        profile: Profile::default(),
        classes: vec![class],
        modules: [spec(ModuleKind::Prefill { tokens: CHUNK })].into_iter().chain(decodes).collect(),
    }
}

fn one(
    case: &Case,
    batch: usize,
    options: &Options,
    backend: &NeuronBackend,
    program: &Program,
    timed: &Timed,
    masks: &Masks,
) -> Result<Figures> {
    let steps = Steps::with_capacity(options.tokens * 2 + batch * 2);
    let config = EngineConfig { limits: backend.limits(program), ..EngineConfig::new(backend.capacity()) };
    let engine = Engine::start(Box::new(timed.noting(&steps, case.mask(masks))), program.vocab(), config)?;
    let before = THREADS.map(computing);
    let requests = (0..batch).map(|i| case.request(i, PROMPT, options.tokens, masks));
    let handles = requests.map(|request| engine.submit(request)).collect::<Result<Vec<_>, _>>()?;
    for handle in handles {
        let completion = handle.wait()?;
        ensure!(completion.token_ids.len() == options.tokens, "{}: {} tokens", case.name, completion.token_ids.len());
    }
    let after = THREADS.map(computing);
    let again = engine.stats().retried_steps;
    engine.shutdown(Duration::from_secs(10))?;
    let steps = steps.lock();
    let whole = |step: &&Step| step.sequences == batch && step.rows == batch;
    let mut over: Vec<Duration> = steps.iter().filter(whole).skip(SKIPPED).map(Step::beside).collect();
    ensure!(!over.is_empty(), "{}: no step had all {batch} sequences", case.name);
    over.sort_unstable();
    let at = |share: f64| over[((over.len() - 1) as f64 * share) as usize];
    let computed = [0, 1].map(|i| after[i].saturating_sub(before[i]) / steps.len().max(1) as u32);
    Ok(Figures { tenth: at(0.1), median: at(0.5), p99: at(0.99), computed, again })
}

struct Figures {
    tenth: Duration,
    median: Duration,
    p99: Duration,
    computed: [Duration; 2],
    /// Steps for rows whose masks came too late.
    again: u64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { tenth, median, p99, computed: [engine, rank], again } = self;
        let [tenth, median, p99, engine, rank] = [tenth, median, p99, engine, rank].map(|d| d.as_secs_f64() * 1e3);
        write!(f, "{tenth:7.3} {median:7.3} {p99:7.3} {engine:7.3} {rank:7.3} {again:6}")
    }
}

/// Time that this process's threads of a name were computing.
fn computing(name: &str) -> Duration {
    let mut sum = Duration::ZERO;
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return sum };
    for task in tasks.flatten() {
        let task = task.path();
        let read = |file: &str| std::fs::read_to_string(task.join(OsStr::new(file))).unwrap_or_default();
        if read("comm").trim() == name {
            let nanoseconds = read("schedstat").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            sum += Duration::from_nanos(nanoseconds);
        }
    }
    sum
}

const THREADS: [&str; 2] = ["njoule-engine", "neuron rank 0"];
const LAYERS: usize = 2;
const CANDIDATES: usize = 64;
const CHUNK: usize = 64;
const PROMPT: usize = 16;
/// Whole steps at the beginning that are not counted: caches are cold, and room grows.
const SKIPPED: usize = 16;
/// What a step at batch 32 is to stay below.
const LIMIT: Duration = Duration::from_micros(300);
