//! An executor for tests whose logits tell whether the engine kept its books.
//!
//! Its cache stores per slot the token, its position and a hash of the sequence up to there. A row reads every slot that a
//! model would attend to, through its block table, and its logits are a hash of what it found: a stale, foreign or missing
//! entry changes the tokens or fails the step.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::backend::{Batch, Capacity, Cost, CostModel, Executor, MemoryUse, Padding, SeqSpan, StepError, StepOutput};

mod device;
mod hidden;

pub use device::{DeviceFault, MockDevice};
pub use hidden::{Hidden, HiddenMeter, Prices, Work};

/// What goes wrong, and at which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error(u64),
    Panic(u64),
    WrongSize(u64),
    /// The row of a sequence that starts with this token and reaches this position is NaN.
    NotANumber {
        first: u32,
        position: u32,
    },
}

/// Lets a test hold the executor in a step.
#[derive(Debug, Default)]
pub struct Gate {
    /// Steps that may still run; `None` for all.
    steps: Mutex<Option<u64>>,
    changed: Condvar,
}

impl Gate {
    pub fn set(&self, closed: bool) {
        self.allow(closed.then_some(0));
    }

    /// Lets so many steps run, or all.
    pub fn allow(&self, steps: Option<u64>) {
        *self.steps.lock().unwrap() = steps;
        self.changed.notify_all();
    }

    /// Whether the next step has to wait.
    pub fn is_closed(&self) -> bool {
        *self.steps.lock().unwrap() == Some(0)
    }

    fn pass(&self) {
        let steps = self.steps.lock().unwrap();
        let mut steps = self.changed.wait_while(steps, |steps| *steps == Some(0)).unwrap();
        *steps = steps.map(|steps| steps - 1);
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    token: u32,
    position: u32,
    hash: u64,
}

/// The executor.
pub struct MockExecutor {
    pub capacity: Capacity,
    pub vocab: usize,
    /// Rows per step and per sequence that the configuration allows.
    pub budget: usize,
    pub chunk: usize,
    pub fault: Option<Fault>,
    pub gate: Arc<Gate>,
    /// Rows of every sequence, per step.
    pub log: Arc<Mutex<Vec<Vec<usize>>>>,
    /// Whether its model falls into loops of five tokens, and out of them.
    pub loops: bool,
    /// Sequences of more tokens have other keys.
    pub border: Option<usize>,
    /// How long a step takes at least, however many threads share it.
    pub takes: Duration,
    /// Threads that it has.
    pub workers: usize,
    /// Threads that shared a step, per step.
    pub shared_by: Arc<Mutex<Vec<usize>>>,
    active: usize,
    /// Accelerator cores that it says to have, and what it computes for nobody in every step.
    pub cores: Option<usize>,
    pub padding: Padding,
    /// What its steps cost, where somebody meters them.
    pub hidden: Option<Arc<Hidden>>,
    cache: Vec<Option<Entry>>,
    result: Vec<f32>,
    step: u64,
}

impl MockExecutor {
    pub fn new(capacity: Capacity, vocab: usize) -> Self {
        MockExecutor {
            capacity,
            vocab,
            budget: capacity.max_rows,
            chunk: capacity.max_rows,
            fault: None,
            gate: Arc::default(),
            log: Arc::default(),
            loops: false,
            border: None,
            takes: Duration::ZERO,
            workers: 1,
            shared_by: Arc::default(),
            active: usize::MAX,
            cores: None,
            padding: Padding::default(),
            hidden: None,
            cache: vec![None; capacity.blocks * capacity.block_len],
            result: Vec::new(),
            step: 0,
        }
    }

    fn check(&self, batch: &Batch) -> Result<(), String> {
        let c = &self.capacity;
        let ensure = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
        let rows = batch.rows();
        ensure(rows > 0, "no rows")?;
        ensure(rows <= c.max_rows && rows <= self.budget, "too many rows")?;
        ensure(batch.seqs.len() <= c.max_seqs, "too many sequences")?;
        ensure(batch.outputs.len() <= c.max_outputs, "too many outputs")?;
        ensure(batch.positions.len() == rows && batch.slots.len() == rows, "columns differ in length")?;
        ensure(batch.outputs.windows(2).all(|w| w[0] < w[1]), "outputs do not ascend")?;
        ensure(batch.outputs.iter().all(|&o| (o as usize) < rows), "an output is no row")?;
        let (mut row, mut table) = (0, 0);
        // Blocks may be shared, but not where rows are written.
        let mut owners = HashMap::new();
        batch.tables.iter().for_each(|block| *owners.entry(*block).or_insert(0) += 1);
        for seq in &batch.seqs {
            ensure(seq.rows.start == row && !seq.rows.is_empty(), "rows have gaps")?;
            ensure(seq.rows.len() <= self.chunk, "too long a chunk")?;
            ensure(seq.table.start == table, "tables have gaps")?;
            (row, table) = (seq.rows.end, seq.table.end);
            ensure(seq.context <= c.max_len && seq.context <= seq.rope_len, "too long a context")?;
            ensure(seq.table.len() == seq.context.div_ceil(c.block_len), "a table does not fit its context")?;
            let blocks_of_seq = batch.tables.get(seq.table.clone()).ok_or("a table is cut off")?;
            for block in blocks_of_seq {
                ensure((block.0 as usize) < c.blocks, "no such block")?;
            }
            for (r, position) in seq.rows.clone().zip(seq.context - seq.rows.len()..) {
                ensure(batch.positions[r] as usize == position, "positions are not consecutive")?;
                ensure(
                    batch.slots[r] as usize == self.slot(batch, seq, position),
                    "a slot is not where the table says",
                )?;
                let block = blocks_of_seq[position / c.block_len];
                ensure(owners[&block] == 1, "a block that is written to belongs to two places")?;
                ensure((batch.tokens[r] as usize) < self.vocab, "no such token")?;
            }
        }
        ensure(row == rows, "rows without a sequence")?;
        ensure(table == batch.tables.len(), "blocks without a sequence")
    }

    fn slot(&self, batch: &Batch, seq: &SeqSpan, position: usize) -> usize {
        let len = self.capacity.block_len;
        let block = batch.tables[seq.table.clone()][position / len];
        block.0 as usize * len + position % len
    }

    /// A sequence's part of the batch, by its first token.
    fn work(&self, batch: &Batch, seq: &SeqSpan) -> Work {
        let rows = seq.rows.len();
        let first = match batch.positions[seq.rows.start] {
            0 => batch.tokens[seq.rows.start],
            _ => self.cache[self.slot(batch, seq, 0)].map_or(u32::MAX, |entry| entry.token),
        };
        let outputs = batch.outputs.iter().filter(|row| seq.rows.contains(&(**row as usize))).count();
        Work { first, rows, context: seq.context - rows, outputs }
    }

    /// Writes a sequence's rows, then lets each row read what it attends to.
    fn run(&mut self, batch: &Batch, seq: &SeqSpan) -> Result<(), String> {
        let root = u64::from(self.border.is_some_and(|border| seq.rope_len > border));
        for r in seq.rows.clone() {
            let position = batch.positions[r] as usize;
            let before = match position.checked_sub(1) {
                None => root,
                Some(p) => self.cache[self.slot(batch, seq, p)].ok_or("an unwritten slot")?.hash,
            };
            let token = batch.tokens[r];
            let hash = extend(before, token);
            let slot = self.slot(batch, seq, position);
            self.cache[slot] = Some(Entry { token, position: position as u32, hash });
        }
        for r in seq.rows.clone() {
            let mut hash = root;
            for p in 0..=batch.positions[r] as usize {
                let entry = self.cache[self.slot(batch, seq, p)].ok_or("an unwritten slot")?;
                hash = extend(hash, entry.token);
                if entry.position as usize != p || entry.hash != hash {
                    return Err(format!("slot of position {p} holds another sequence's entry"));
                }
            }
            if !batch.outputs.contains(&(r as u32)) {
                continue;
            }
            let first = self.cache[self.slot(batch, seq, 0)].map(|entry| entry.token);
            let broken = matches!(self.fault, Some(Fault::NotANumber { first: f, position })
                if Some(f) == first && position == batch.positions[r]);
            let mut logits = logits(hash, seq.rope_len, self.vocab);
            // Seven times of eight the next token is the next of five.
            if self.loops && !mix(hash).is_multiple_of(8) {
                let last = batch.tokens[r] as usize;
                logits[(last / 5 * 5 + (last + 1) % 5).min(self.vocab - 1)] += 20.0;
            }
            if broken {
                self.result.extend(logits.iter().map(|_| f32::NAN));
            } else {
                self.result.extend(logits);
            }
        }
        Ok(())
    }
}

impl Executor for MockExecutor {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        self.gate.pass();
        match &self.hidden {
            None => std::thread::sleep(self.takes),
            Some(hidden) => {
                hidden.run(&batch.seqs.iter().map(|seq| self.work(batch, seq)).collect::<Vec<_>>(), self.takes)
            }
        }
        self.step += 1;
        match self.fault {
            Some(Fault::Error(step)) if step == self.step => {
                return Err(StepError::Device("as told".into()));
            }
            Some(Fault::Panic(step)) if step == self.step => panic!("as told"),
            _ => {}
        }
        self.check(batch).map_err(StepError::Batch)?;
        self.result.clear();
        for seq in &batch.seqs {
            self.run(batch, seq).map_err(StepError::Batch)?;
        }
        let rows = batch.seqs.iter().map(|seq| seq.rows.len()).collect();
        self.log.lock().unwrap().push(rows);
        self.shared_by.lock().unwrap().push(self.active.min(self.workers));
        Ok(())
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        // Rows apart, behind each other's rubbish, as a backend may pad them.
        (out.vocab, out.stride) = (self.vocab, self.vocab + 3);
        out.rows = self.result.len() / self.vocab;
        out.logits.clear();
        for row in self.result.chunks(self.vocab) {
            out.logits.extend_from_slice(row);
            out.logits.extend([f32::NAN; 3]);
        }
        if self.fault == Some(Fault::WrongSize(self.step)) {
            out.rows += 1;
        }
        Ok(())
    }

    fn cost(&self, _: &Batch) -> Cost {
        Cost::default()
    }

    fn workers(&self) -> NonZero<usize> {
        NonZero::new(self.workers).unwrap()
    }

    fn set_workers(&mut self, workers: NonZero<usize>) {
        self.active = workers.get();
    }

    fn padding(&self) -> Padding {
        self.padding
    }

    fn cores(&self) -> Option<usize> {
        self.cores
    }

    fn cost_model(&self) -> CostModel {
        self.hidden.as_ref().map_or_else(CostModel::default, |hidden| hidden.cost_model())
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
}

/// Logits after `tokens` of a sequence whose prompt and most new tokens are `rope_len`.
pub fn logits_after(tokens: &[u32], rope_len: usize, vocab: usize) -> Vec<f32> {
    let hash = tokens.iter().fold(0, |hash, token| extend(hash, *token));
    logits(hash, rope_len, vocab)
}

fn extend(hash: u64, token: u32) -> u64 {
    mix(hash.wrapping_mul(31).wrapping_add(u64::from(token) + 1))
}

fn logits(hash: u64, rope_len: usize, vocab: usize) -> Vec<f32> {
    let hash = mix(hash ^ (rope_len as u64) << 32);
    let logit = |i: u64| (mix(hash.wrapping_add(i)) >> 40) as f32 / (1 << 20) as f32 - 8.0;
    (0..vocab as u64).map(logit).collect()
}

/// MurmurHash3's finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    z = (z ^ (z >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    z ^ (z >> 33)
}

mod tests;
