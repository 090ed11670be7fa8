//! The engine's side of a steady decode step allocates nothing.
//!
//! An executor that allocates nothing itself reads its thread's allocation count at every step; a sink that allocates
//! nothing either takes the events.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use njoule_energy::{Joules, Method};
use njoule_runtime::backend::{
    Batch, Capacity, Cost, Executor, Limits, MemoryUse, Returned, RowClass, StepError, StepOutput,
};
use njoule_runtime::engine::{EnergySource, Metered, Reading, Utilised};
use njoule_runtime::request::{EventSink, MaskError, MaskStream, SinkClosed, TokenMask};
use njoule_runtime::{Engine, EngineConfig, Event, Request, SamplingParams, Speculate};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged; counting touches a thread-local integer that needs
// neither initialisation nor destruction, so it cannot allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const VOCAB: usize = 1000;

/// Returns logits that depend on tokens and positions, or candidates, from memory that it reserved at its start.
struct Flat {
    candidates: Option<usize>,
    /// Masks that it was given.
    masked: Arc<AtomicU64>,
    /// The likeliest token is the number of the position modulo this, if any.
    period: Option<u32>,
    outputs: Vec<(u32, u32)>,
    /// Sequences, rows, and allocations since the step before, per step.
    counts: Arc<Mutex<Vec<(usize, usize, u64)>>>,
    last: u64,
}

impl Executor for Flat {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        let now = ALLOCATIONS.with(Cell::get);
        self.counts.lock().unwrap().push((batch.seqs.len(), batch.rows(), now - self.last));
        self.masked.fetch_add(batch.masks.outputs.len() as u64, Ordering::Relaxed);
        self.outputs.clear();
        let output = |&row: &u32| {
            let row = row as usize;
            (batch.tokens[row], batch.positions[row])
        };
        self.outputs.extend(batch.outputs.iter().map(output));
        Ok(())
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        (out.vocab, out.stride, out.rows) = (VOCAB, VOCAB, self.outputs.len());
        out.logits.clear();
        if let Some(count) = self.candidates {
            out.returned = Returned::Candidates;
            out.candidates.clear(count);
            for (token, position) in &self.outputs {
                let first = (token + position) % 900;
                out.candidates.values.extend((0..count as u32).map(|i| 5.0 - i as f32 * 0.1));
                out.candidates.ids.extend((0..count as u32).map(|i| (first + 7 * i) % VOCAB as u32));
                // Of these values, and hardly any others: what the mask allows is all that is wanted.
                out.candidates.log_sum_exp.push(7.36);
                out.candidates.greedy.push(first);
            }
            self.last = ALLOCATIONS.with(Cell::get);
            return Ok(());
        }
        for (token, position) in &self.outputs {
            let mix = |i: u32| (i * 7919 + token * 104_729 + position * 1_299_709) % 1009;
            let next = self.period.map_or(u32::MAX, |period| (position + 1) % period);
            out.logits.extend((0..VOCAB as u32).map(|i| mix(i) as f32 * 0.01 + if i == next { 100.0 } else { 0.0 }));
        }
        self.last = ALLOCATIONS.with(Cell::get);
        Ok(())
    }

    fn cost(&self, _: &Batch) -> Cost {
        Cost::default()
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
}

/// Counts tokens.
struct Count {
    tokens: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl EventSink for Count {
    fn send(&mut self, event: Event) -> Result<(), SinkClosed> {
        match event {
            Event::Token { .. } => {
                self.tokens.fetch_add(1, Ordering::Relaxed);
            }
            event => self.ended.store(event.is_terminal(), Ordering::Relaxed),
        }
        Ok(())
    }
}

#[test]
fn a_steady_decode_step_allocates_nothing() {
    let capacity = Capacity { blocks: 512, block_len: 16, max_rows: 64, max_seqs: 16, max_outputs: 16, max_len: 512 };
    steady_steps(capacity, None, None, Limits::paged(16));
    steady_steps(capacity, None, Some(7), Limits::paged(16));
    let rows = Capacity { blocks: 16, block_len: 512, ..capacity };
    let classes = vec![RowClass { rows: 16, max_len: 512 }];
    let limits = Limits { candidates: Some(64), biases: 8, masks: true, paged: false, classes, ..Limits::paged(512) };
    steady_steps(rows, Some(64), None, Limits { overlaps: true, ..limits.clone() });
    steady_steps(rows, Some(64), None, limits);
}

/// Tells a joule at every reading, so that steps are booked and periods settled.
struct Meter;

impl EnergySource for Meter {
    fn read(&mut self) -> Reading {
        let energy = Metered::Known(Joules::new(1.0).unwrap(), Method::Measured);
        Reading { cpu_s: 0.1, core_s: Some(0.1), util: Utilised::Known(0.05), energy, lag_s: 0.0 }
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// Allows the same tokens always.
struct Half;

impl TokenMask for Half {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn MaskStream> {
        Box::new(Half)
    }
}

impl MaskStream for Half {
    fn fill(&mut self, _: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        allowed.fill(0x5555_ffff);
        Ok(())
    }
}

fn steady_steps(capacity: Capacity, candidates: Option<usize>, period: Option<u32>, limits: Limits) {
    let counts = Arc::new(Mutex::new(Vec::with_capacity(4096)));
    let (masked, overlaps) = (Arc::new(AtomicU64::new(0)), limits.overlaps);
    let outputs = Vec::with_capacity(64);
    let executor = Flat { candidates, masked: masked.clone(), period, outputs, counts: counts.clone(), last: 0 };
    let speculate = if period.is_some() { Speculate::UpTo(3) } else { Speculate::Off };
    let config = EngineConfig { limits, speculate, ..EngineConfig::new(capacity) };
    let engine = Engine::start_metered(Box::new(executor), VOCAB, config, Some(Box::new(Meter))).unwrap();
    let tokens = Arc::new(AtomicU64::new(0));
    let cases = [
        SamplingParams::default(),
        SamplingParams { temperature: 0.8, top_p: 0.95, seed: Some(1), ..SamplingParams::default() },
        SamplingParams {
            temperature: 0.8,
            top_k: 40,
            min_p: 0.05,
            repetition_penalty: 1.1,
            seed: Some(2),
            ..SamplingParams::default()
        },
        SamplingParams {
            temperature: 1.0,
            frequency_penalty: 0.1,
            presence_penalty: 0.1,
            logit_bias: vec![(5, 1.0)],
            seed: Some(3),
            ..SamplingParams::default()
        },
    ];
    for (i, sampling) in cases.into_iter().enumerate() {
        let mask: Option<Arc<dyn TokenMask>> = if i % 2 == 1 { Some(Arc::new(Half)) } else { None };
        let request =
            Request { sampling, mask, min_tokens: 400, eos_ids: vec![1], ..Request::new((0..20).collect(), 400) };
        let request = Request { ignore_eos: i == 0, ..request };
        let sink = Count { tokens: tokens.clone(), ended: Arc::default() };
        engine.submit_to(request, Box::new(sink)).unwrap();
    }
    engine.shutdown(Duration::from_secs(120)).unwrap();
    assert_eq!(tokens.load(Ordering::Relaxed), 4 * 400);
    // Two requests have a mask; where the device computes meanwhile it is hardly ever given one;
    // elsewhere always, once for several tokens where they are guessed.
    let masked = masked.load(Ordering::Relaxed);
    assert!(if overlaps { masked < 100 } else { masked > 150 }, "{masked} masks");
    // The first decode steps may still grow scratch; the first and last steps have arrivals and departures.
    let counts = counts.lock().unwrap();
    let steady: Vec<_> = counts.iter().filter(|(seqs, ..)| *seqs == 4).collect();
    let most = if period.is_some() { 16 } else { 4 };
    assert!(steady.len() > 300 * 4 / most && steady.iter().any(|(_, rows, _)| *rows == most));
    let late: u64 = steady[16..].iter().map(|(.., count)| count).sum();
    assert_eq!(late, 0, "{:?}", &steady[16..]);
}
