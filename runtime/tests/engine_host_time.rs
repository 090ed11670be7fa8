//! What a step costs the engine beside the device's own time: scheduling, masks, sampling, text, events.
//!
//! `cargo test --release -p njoule-runtime --test engine_host_time -- --ignored --nocapture`, on a machine that does nothing
//! else. The device is a clock: it returns the same candidates a fixed time after the step was submitted.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use njoule_runtime::backend::{
    Batch, Capacity, Cost, Executor, Limits, MemoryUse, Returned, RowClass, StepError, StepOutput,
};
use njoule_runtime::request::{MaskError, MaskStream, TextStream, TokenMask, TokenText};
use njoule_runtime::{Engine, EngineConfig, Request, SamplingParams};

const VOCAB: usize = 151_936;
const BATCH: usize = 32;
const CANDIDATES: usize = 64;
const LATENCY: Duration = Duration::from_millis(5);

struct Clock {
    submitted: Instant,
    outputs: usize,
    /// Time from one submit to the next and rows, per step.
    periods: Arc<Mutex<Vec<(Duration, usize)>>>,
    last: (Instant, usize),
}

impl Executor for Clock {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        let now = Instant::now();
        self.periods.lock().unwrap().push((now - self.last.0, self.last.1));
        self.last = (now, batch.rows());
        (self.submitted, self.outputs) = (now, batch.outputs.len());
        Ok(())
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        out.returned = Returned::Candidates;
        out.rows = self.outputs;
        out.candidates.clear(CANDIDATES);
        for _ in 0..self.outputs {
            let ids = 0..CANDIDATES as u32;
            out.candidates.values.extend(ids.clone().map(|i| 10.0 - 0.15 * i as f32));
            out.candidates.ids.extend(ids.map(|i| 1 + (i * 7919) % (VOCAB as u32 - 1)));
            out.candidates.log_sum_exp.push(12.2);
            out.candidates.greedy.push(1);
        }
        // A sleep ends late by more than what is measured.
        while self.submitted.elapsed() < LATENCY {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn cost(&self, _: &Batch) -> Cost {
        Cost::default()
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
}

/// Allows everything.
struct All;

impl TokenMask for All {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn MaskStream> {
        Box::new(All)
    }
}

impl MaskStream for All {
    fn fill(&mut self, _: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        allowed.fill(u32::MAX);
        Ok(())
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

#[test]
#[ignore = "prints times"]
fn host_time_per_step_of_32_sequences() {
    let greedy = SamplingParams::default();
    let hot = SamplingParams { temperature: 0.8, seed: Some(1), ..greedy.clone() };
    let top_k = SamplingParams { top_k: 20, top_p: 0.95, ..hot.clone() };
    let top_p = SamplingParams { top_p: 0.9, ..hot.clone() };
    let penalised = SamplingParams { frequency_penalty: 0.2, ..top_k.clone() };
    let cases = [
        ("greedy", greedy, false),
        ("temperature", hot, false),
        ("top-k 20, top-p 0.95", top_k.clone(), false),
        ("top-p 0.9", top_p.clone(), false),
        ("top-k, penalties", penalised, false),
        ("top-k, masks", top_k, true),
        ("top-p, masks", top_p, true),
    ];
    for overlaps in [false, true] {
        for (name, sampling, masked) in &cases {
            let capacity = Capacity {
                blocks: BATCH,
                block_len: 512,
                max_rows: 512,
                max_seqs: BATCH,
                max_outputs: BATCH,
                max_len: 512,
            };
            let limits = Limits {
                mixed_batches: false,
                candidates: Some(CANDIDATES),
                biases: 16,
                masks: true,
                paged: false,
                classes: vec![RowClass { rows: BATCH, max_len: 512 }],
                overlaps,
                ..Limits::paged(512)
            };
            let (now, periods) = (Instant::now(), Arc::new(Mutex::new(Vec::with_capacity(1000))));
            let clock = Clock { submitted: now, outputs: 0, periods: periods.clone(), last: (now, 0) };
            let config = EngineConfig { limits, ..EngineConfig::new(capacity) };
            let engine = Engine::start(Box::new(clock), VOCAB, config).unwrap();
            let request = |i: u32| {
                let mask: Option<Arc<dyn TokenMask>> = if *masked { Some(Arc::new(All)) } else { None };
                let text: Option<Arc<dyn TokenText>> = Some(Arc::new(Word));
                Request { sampling: sampling.clone(), mask, text, ..Request::new(vec![i; 16], 300) }
            };
            let handles: Vec<_> = (0..BATCH as u32).map(|i| engine.submit(request(i)).unwrap()).collect();
            for handle in handles {
                assert_eq!(handle.wait().unwrap().token_ids.len(), 300);
            }
            let mut full: Vec<Duration> =
                periods.lock().unwrap().iter().filter(|p| p.1 == BATCH).map(|p| p.0.saturating_sub(LATENCY)).collect();
            full.sort_unstable();
            let tenth = |n: usize| full[full.len() * n / 10];
            let overlap = if overlaps { "overlapping" } else { "in turn" };
            // On a machine that does other things too the lower ones say more.
            println!("{overlap:11} {name:22} tenths 1, 5, 9: {:9.1?} {:9.1?} {:9.1?}", tenth(1), tenth(5), tenth(9));
        }
    }
}
