//! What a step of 32 sequences costs the host beside the device: engine and executor, on a device that is a clock.
//!
//! `cargo test --release -p neuron-fake --test it host_time -- --ignored --nocapture`. A period is from one submit to the
//! next; what the stand-in says that its runs took is taken off. What is left has everything else: scheduling, sampling,
//! text, events, index tensors and masks written to the stand-in's memory, results read, threads woken. On a machine that
//! does other things too the lower tenths say more, and the time that the threads were computing.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use njoule_models::checkpoint::Checkpoint;
use njoule_runtime::backend::neuron::executor::NeuronExecutor;
use njoule_runtime::backend::{Backend, Batch, Cost, Executor, MemoryUse, StepError, StepOutput};
use njoule_runtime::request::{TextStream, TokenText};
use njoule_runtime::{Engine, EngineConfig, Request, SamplingParams};

use super::{Shape, Some32, backend, build, environment, load, place};
use crate::child::{count, spawn};

const BATCH: usize = 32;
const LARGE: Shape = Shape { tp: 1, rows: BATCH, positions: 512, chunks: &[64], candidates: 64 };

/// A few layers of SmolLM2's size: what the host does depends on rows and vocabulary.
fn model() -> Checkpoint {
    let mut checkpoint = Checkpoint::random("smollm2-135m").unwrap();
    let config = &mut checkpoint.config;
    config.layers = 2;
    config.windows.truncate(2);
    config.rope_layers.truncate(2);
    checkpoint
}

/// Notes when steps are submitted. The clock returns zeros; in their place come candidates that are worth sampling from.
struct Timed {
    executor: NeuronExecutor,
    /// Of each step: rows, period, of that runs.
    steps: Arc<Mutex<Vec<(usize, Duration, Duration)>>>,
    last: (Instant, u64, usize),
    made_up: Duration,
}

impl Executor for Timed {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        let (now, runs) = (Instant::now(), count("neuron_fake_run_time"));
        let period = (now - self.last.0).saturating_sub(std::mem::take(&mut self.made_up));
        let step = (self.last.2, period, Duration::from_nanos(runs - self.last.1));
        self.steps.lock().unwrap().push(step);
        self.last = (Instant::now(), runs, batch.rows());
        self.executor.submit(batch)
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        self.executor.collect(out)?;
        let start = Instant::now();
        let k = out.candidates.count;
        for row in 0..out.rows {
            for i in 0..k {
                out.candidates.values[row * k + i] = 10.0 - 0.15 * i as f32;
                out.candidates.ids[row * k + i] = 1 + (i as u32 * 7919) % 49151;
            }
            out.candidates.log_sum_exp[row] = 12.2;
            out.candidates.greedy[row] = 1;
        }
        self.made_up = start.elapsed();
        Ok(())
    }

    fn cost(&self, batch: &Batch) -> Cost {
        self.executor.cost(batch)
    }

    fn memory(&self) -> MemoryUse {
        self.executor.memory()
    }
}

struct Word;

impl TokenText for Word {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn TextStream> {
        Box::new(Word)
    }
}

impl TextStream for Word {
    fn push(&mut self, _: u32, out: &mut String) {
        out.push_str(" word");
    }

    fn finish(&mut self, _: &mut String) {}
}

/// Time that this process's threads of a name were computing.
fn computing(name: &str) -> Duration {
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let read = |file: &str| std::fs::read_to_string(task.join(OsStr::new(file))).unwrap_or_default();
        if read("comm").trim() == name {
            let nanoseconds = read("schedstat").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            sum += Duration::from_nanos(nanoseconds);
        }
    }
    sum
}

fn measure() {
    let (model, backend) = (model(), backend(&place()));
    let program = model.config.program();
    let greedy = SamplingParams::default();
    let top = SamplingParams { temperature: 0.8, top_k: 20, top_p: 0.95, seed: Some(1), ..greedy.clone() };
    let penalised = SamplingParams { frequency_penalty: 0.2, ..top.clone() };
    let cases = [
        ("greedy", &greedy, 0),
        ("top-k, top-p", &top, 0),
        ("top-k, penalties", &penalised, 0),
        ("top-k, 4 masks", &top, 4),
        ("greedy, 32 masks", &greedy, 32),
        ("top-k, 32 masks", &top, 32),
    ];
    for (name, sampling, masked) in cases {
        let steps = Arc::new(Mutex::new(Vec::with_capacity(1000)));
        let executor = load(&backend, &model);
        let last = (Instant::now(), count("neuron_fake_run_time"), 0);
        let timed = Timed { executor, steps: steps.clone(), last, made_up: Duration::ZERO };
        let config = EngineConfig { limits: backend.limits(&program), ..EngineConfig::new(backend.capacity()) };
        let engine = Engine::start(Box::new(timed), program.vocab(), config).unwrap();
        let request = |i: u32| {
            let mask = (i < masked).then(|| Arc::new(Some32(u32::MAX)) as Arc<_>);
            let text: Option<Arc<dyn TokenText>> = Some(Arc::new(Word));
            let sampling = sampling.clone();
            Request { sampling, mask, text, ignore_eos: true, ..Request::new(vec![i + 5; 16], NEW) }
        };
        let before = ["njoule-engine", "neuron rank 0"].map(computing);
        let handles: Vec<_> = (0..BATCH as u32).map(|i| engine.submit(request(i)).unwrap()).collect();
        for handle in handles {
            assert_eq!(handle.wait().unwrap().token_ids.len(), NEW);
        }
        let after = ["njoule-engine", "neuron rank 0"].map(computing);
        let steps = steps.lock().unwrap();
        let computed = [0, 1].map(|i| (after[i] - before[i]).as_secs_f64() * 1e3 / steps.len() as f64);
        let full = steps.iter().filter(|step| step.0 == BATCH);
        let mut over: Vec<Duration> = full.map(|(_, period, runs)| period.saturating_sub(*runs)).collect();
        over.sort_unstable();
        let tenth = |n: usize| over[over.len() * n / 10].as_secs_f64() * 1e3;
        println!(
            "{name:18} ms beside the device, tenths 1, 3, 5, 9: {:.3} {:.3} {:.3} {:.3}; computing: engine {:.3}, rank {:.3}",
            tenth(1),
            tenth(3),
            tenth(5),
            tenth(9),
            computed[0],
            computed[1],
        );
    }
}

#[test]
#[ignore = "prints times"]
fn host_time_per_step_of_32_sequences() {
    if !crate::child::is_child() {
        let dir = tempfile::tempdir().unwrap();
        build(&model().config.program(), LARGE, dir.path());
        let clock = [("NJOULE_FAKE_EVALUATE", "0"), ("NJOULE_FAKE_LATENCY", "5ms")];
        let environment = [environment(dir.path()), clock.to_vec()].concat();
        let output = spawn(&environment, || measure()).unwrap();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert!(spawn(&[], || measure()).is_none());
}

/// Tokens of each request.
const NEW: usize = 200;
