//! One step: what the engine hands over and what comes back.
//!
//! Invariant: a buffer is reused from step to step; nothing here allocates once it has been as large as it gets.

use std::ops::Range;

use super::BlockId;

/// One sequence's part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeqSpan {
    /// Its rows, consecutive and in position order.
    pub rows: Range<usize>,
    /// Tokens in its cache once these rows are written: the last row's position + 1.
    pub context: usize,
    /// Its part of [`Batch::tables`]: block `i` holds positions `i * block_len ..`.
    pub table: Range<usize>,
    /// Prompt and most new tokens, fixed at admission (rope variants that depend on the whole length).
    pub rope_len: usize,
}

/// What a step's outputs are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wants {
    /// Logits of every output, as the model gives them: the engine applies biases and masks itself.
    #[default]
    Logits,
    /// A token is drawn from each output, and no sequence has more than one, its last row (or its last rows, where
    /// [`Limits::drafts`](super::Limits::drafts)): a backend may return candidates, biases and masks applied.
    Tokens,
}

/// What is added to a logit of an output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bias {
    /// Index into [`Batch::outputs`].
    pub output: u32,
    /// Token.
    pub id: u32,
    /// Added to its logit; `-inf` forbids the token. A device may take a finite number below every logit instead.
    pub value: f32,
}

/// Which tokens are allowed, for the outputs that do not allow all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// Indices into [`Batch::outputs`], ascending.
    pub outputs: Vec<u32>,
    /// Words per output: a bit per token.
    pub words: usize,
    /// `[outputs, words]`: bit `i % 32` of word `i / 32` says whether token `i` is allowed.
    pub bits: Vec<u32>,
}

impl Masks {
    /// Words of a mask of `vocab` tokens.
    pub fn words_for(vocab: usize) -> usize {
        vocab.div_ceil(32)
    }

    /// Adds a mask without any token for `output`, which is larger than those before, and returns it to be filled.
    pub fn push(&mut self, output: u32) -> &mut [u32] {
        self.outputs.push(output);
        let start = self.bits.len();
        self.bits.resize(start + self.words, 0);
        &mut self.bits[start..]
    }

    /// The mask of an output, if it has one.
    pub fn of(&self, output: usize) -> Option<&[u32]> {
        let i = self.outputs.binary_search_by_key(&output, |o| *o as usize).ok()?;
        Some(&self.bits[i * self.words..][..self.words])
    }

    /// Whether `mask` allows token `id`.
    pub fn allows(mask: &[u32], id: u32) -> bool {
        mask.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    pub(crate) fn clear(&mut self) {
        self.outputs.clear();
        self.bits.clear();
    }
}

/// One step's work, as a struct of arrays; reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token per row.
    pub tokens: Vec<u32>,
    /// Position per row.
    pub positions: Vec<u32>,
    /// Cache slot per row: `block * block_len + position % block_len`.
    pub slots: Vec<u32>,
    /// The sequences.
    pub seqs: Vec<SeqSpan>,
    /// Block tables, end to end.
    pub tables: Vec<BlockId>,
    /// Rows whose logits are wanted, ascending.
    pub outputs: Vec<u32>,
    /// What the outputs are for.
    pub wants: Wants,
    /// Biases, in the order of the outputs, each token once per output; only for a backend that returns candidates, and at
    /// most [`Limits::biases`](super::Limits::biases) per output.
    pub biases: Vec<Bias>,
    /// Masks; also there where the backend returns logits and need not look at them.
    pub masks: Masks,
}

impl Batch {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.seqs.clear();
        self.tables.clear();
        self.outputs.clear();
        self.wants = Wants::Logits;
        self.biases.clear();
        self.masks.clear();
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Biases of output `i`.
    pub fn biases_of(&self, i: usize) -> &[Bias] {
        let start = self.biases.partition_point(|b| (b.output as usize) < i);
        let end = self.biases.partition_point(|b| b.output as usize <= i);
        &self.biases[start..end]
    }
}

/// What a [`StepOutput`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Returned {
    /// Logits.
    #[default]
    Logits,
    /// Candidates.
    Candidates,
}

/// What a step returns; reused. An executor that returns candidates sets [`StepOutput::returned`] at every step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// Which of the two was written; the other is what an earlier step left.
    pub returned: Returned,
    /// `[outputs, vocab]` at `stride`, in the order of [`Batch::outputs`]; may be longer.
    pub logits: Vec<f32>,
    /// Columns of `logits`.
    pub vocab: usize,
    /// Distance of rows in `logits`.
    pub stride: usize,
    /// Rows of `logits` or `candidates` that this step wrote.
    pub rows: usize,
    /// The likeliest tokens of every output.
    pub candidates: Candidates,
}

impl StepOutput {
    /// Logits of output `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.logits[i * self.stride..][..self.vocab]
    }
}

/// The likeliest tokens of every output, instead of all logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Candidates per output.
    pub count: usize,
    /// `[outputs, count]`: the largest logits, biases added and masked tokens last, descending.
    pub values: Vec<f32>,
    /// `[outputs, count]`: whose they are; no token twice in an output.
    pub ids: Vec<u32>,
    /// `[outputs]`: logarithm of the sum of the exponentials of all logits, before biases and masks.
    pub log_sum_exp: Vec<f32>,
    /// `[outputs]`: the likeliest token, biases and masks included; the lowest of equals.
    pub greedy: Vec<u32>,
}

impl Candidates {
    /// Empties it for outputs of `count` candidates, keeping its memory.
    pub fn clear(&mut self, count: usize) {
        self.count = count;
        self.values.clear();
        self.ids.clear();
        self.log_sum_exp.clear();
        self.greedy.clear();
    }

    /// Those of output `i`.
    pub fn row(&self, i: usize) -> CandidateRow<'_> {
        let span = i * self.count..(i + 1) * self.count;
        CandidateRow {
            values: &self.values[span.clone()],
            ids: &self.ids[span],
            log_sum_exp: self.log_sum_exp[i],
            greedy: self.greedy[i],
        }
    }
}

/// The likeliest tokens of one output; see [`Candidates`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CandidateRow<'a> {
    /// Logits, descending.
    pub values: &'a [f32],
    /// Whose they are.
    pub ids: &'a [u32],
    /// Over all logits.
    pub log_sum_exp: f32,
    /// The likeliest token.
    pub greedy: u32,
}

/// Why a step failed, by what the engine does about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The batch breaks the contract, a bug in the engine: every request fails and the engine stops.
    #[error("invalid batch: {0}")]
    Batch(String),
    /// The device failed: every request fails and the engine stops.
    #[error("device failure: {0}")]
    Device(String),
    /// The same, with what of it a client may be told: neither places nor addresses are in that.
    #[error("device failure: {what}")]
    Status {
        /// Everything, for the log.
        what: String,
        /// What the device said and what it means.
        told: String,
    },
    /// The device takes no more runs for the moment: the step is run again, once.
    #[error("device busy: {0}")]
    Busy(String),
    /// The device found an index out of bounds in rows of these sequences: they fail, the others are run again.
    #[error("index out of bounds in sequences {seqs:?} of the batch: {what}")]
    OutOfBounds {
        /// Indices into [`Batch::seqs`].
        seqs: Vec<usize>,
        /// What the device says.
        what: String,
    },
}
