//! A mock of a device: contiguous rows in classes, candidates, work between submit and collect, failures.
//!
//! Built on [`MockExecutor`], whose cache notices foreign and stale entries; a row's slots are that cache's blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{Gate, MockExecutor};
use crate::backend::{
    Batch, Capacity, Cost, Executor, Limits, MemoryUse, Returned, RowClass, StepError, StepOutput, Wants,
};
use crate::sampler::tests::candidates::candidates;

/// What goes wrong at a call of submit, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFault {
    /// Submit says that it is busy.
    Busy,
    /// Collect does, after the step has run.
    BusyLate,
    /// Submit finds the device dead.
    Dead,
    /// Collect does.
    DeadLate,
    /// The step's first sequence is out of bounds.
    OutOfBounds,
    /// Names a sequence that is none.
    OutOfBoundsNowhere,
    /// The first output's candidates are NaN.
    NotANumber,
    /// A candidate is no token.
    NoToken,
    /// Collect panics.
    Panic,
}

pub struct MockDevice {
    pub limits: Limits,
    pub faults: BTreeMap<u64, DeviceFault>,
    /// Held in collect.
    pub gate: Arc<Gate>,
    pub latency: Duration,
    /// Whether a step was submitted and not collected.
    pub in_flight: Arc<AtomicBool>,
    /// Masks that it was given.
    pub masked: Arc<AtomicU64>,
    inner: MockExecutor,
    flight: Option<(Batch, Instant)>,
    calls: u64,
}

impl MockDevice {
    pub fn new(classes: &[RowClass], candidates: usize, vocab: usize) -> Self {
        let longest = classes.last().map_or(1, |class| class.max_len);
        let rows = classes.iter().map(|class| class.rows).sum();
        let capacity = Capacity {
            blocks: rows,
            block_len: longest,
            max_rows: 16,
            max_seqs: rows,
            max_outputs: 16,
            max_len: longest,
        };
        let limits = Limits {
            mixed_batches: false,
            candidates: Some(candidates),
            biases: 6,
            masks: true,
            paged: false,
            classes: classes.to_vec(),
            chunk: Some(8),
            drafts: false,
            overlaps: true,
            ..Limits::paged(longest)
        };
        MockDevice {
            limits,
            faults: BTreeMap::new(),
            gate: Default::default(),
            latency: Duration::ZERO,
            in_flight: Default::default(),
            masked: Default::default(),
            inner: MockExecutor::new(capacity, vocab),
            flight: None,
            calls: 0,
        }
    }

    pub fn capacity(&self) -> Capacity {
        self.inner.capacity
    }

    /// What a device needs beside what any executor does.
    fn check(&self, batch: &Batch) -> Result<(), String> {
        let ensure = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
        let single = batch.seqs.iter().all(|s| s.rows.len() == 1);
        ensure(single || batch.seqs.iter().all(|s| s.rows.len() <= 8), "too long a chunk")?;
        let outputs_of = |s: &crate::backend::SeqSpan| {
            batch.outputs.iter().filter(|o| s.rows.contains(&(**o as usize))).copied().collect::<Vec<_>>()
        };
        for seq in &batch.seqs {
            let row = batch.tables[seq.table.start].0 as usize;
            let mut first = 0;
            let class = self.limits.classes.iter().find(|c| {
                first += c.rows;
                row < first
            });
            ensure(class.is_some_and(|c| seq.rope_len <= c.max_len), "a sequence longer than its row")?;
            let outputs = outputs_of(seq);
            if batch.wants == Wants::Tokens {
                ensure(outputs.len() <= 1, "several tokens of a sequence")?;
                ensure(outputs.iter().all(|o| *o as usize + 1 == seq.rows.end), "a token of an inner row")?;
            }
        }
        ensure(batch.biases.is_sorted_by_key(|b| b.output), "biases out of order")?;
        ensure(batch.biases.is_empty() || batch.wants == Wants::Tokens, "biases of logits")?;
        for i in 0..batch.outputs.len() {
            let biases = batch.biases_of(i);
            ensure(biases.len() <= self.limits.biases, "too many biases")?;
            ensure(biases.windows(2).all(|w| w[0].id < w[1].id), "a token has two biases")?;
        }
        let masks = &batch.masks;
        ensure(masks.outputs.windows(2).all(|w| w[0] < w[1]), "masks out of order")?;
        ensure(masks.bits.len() == masks.outputs.len() * masks.words, "masks of another size")
    }

    /// A chunk is padded to 8 rows, which are written behind it.
    fn pad(&mut self, batch: &Batch) {
        for seq in batch.seqs.iter().filter(|s| s.rows.len() > 1) {
            let row_len = self.inner.capacity.block_len;
            let start = batch.tables[seq.table.start].0 as usize * row_len;
            let end = (seq.context + 8 - seq.rows.len()).min(row_len);
            self.inner.cache[start + seq.context..start + end].fill(None);
        }
    }
}

impl Executor for MockDevice {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        self.calls += 1;
        if self.flight.is_some() {
            return Err(StepError::Batch("a step is in flight".into()));
        }
        match self.faults.get(&self.calls) {
            Some(DeviceFault::Busy) => return Err(StepError::Busy("as told".into())),
            Some(DeviceFault::Dead) => return Err(StepError::Device("as told".into())),
            _ => {}
        }
        self.check(batch).map_err(StepError::Batch)?;
        self.masked.fetch_add(batch.masks.outputs.len() as u64, Relaxed);
        self.flight = Some((batch.clone(), Instant::now()));
        self.in_flight.store(true, Relaxed);
        Ok(())
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        self.gate.pass();
        self.in_flight.store(false, Relaxed);
        let fault = self.faults.get(&self.calls).copied();
        let (batch, start) = self.flight.take().ok_or(StepError::Batch("no step is in flight".into()))?;
        match fault {
            Some(DeviceFault::DeadLate) => return Err(StepError::Device("as told".into())),
            Some(DeviceFault::OutOfBounds) => {
                return Err(StepError::OutOfBounds { seqs: vec![0], what: "as told".into() });
            }
            Some(DeviceFault::OutOfBoundsNowhere) => {
                return Err(StepError::OutOfBounds { seqs: vec![900], what: "as told".into() });
            }
            Some(DeviceFault::Panic) => panic!("as told"),
            _ => {}
        }
        self.inner.submit(&batch)?;
        self.pad(&batch);
        std::thread::sleep((start + self.latency).saturating_duration_since(Instant::now()));
        if fault == Some(DeviceFault::BusyLate) {
            return Err(StepError::Busy("as told".into()));
        }
        if batch.wants == Wants::Logits {
            out.returned = Returned::Logits;
            return self.inner.collect(out);
        }
        out.returned = Returned::Candidates;
        out.rows = batch.outputs.len();
        let count = self.limits.candidates.unwrap_or(1);
        out.candidates.clear(count);
        for (i, logits) in self.inner.result.chunks(self.inner.vocab).enumerate() {
            let one = candidates(logits, batch.biases_of(i), batch.masks.of(i), count);
            out.candidates.values.extend(one.values);
            out.candidates.ids.extend(one.ids);
            out.candidates.log_sum_exp.extend(one.log_sum_exp);
            out.candidates.greedy.extend(one.greedy);
        }
        match fault {
            Some(DeviceFault::NotANumber) if out.rows > 0 => out.candidates.values[0] = f32::NAN,
            Some(DeviceFault::NoToken) if out.rows > 0 => out.candidates.ids[0] = u32::MAX,
            _ => {}
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
