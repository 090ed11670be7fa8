//! One sequence: its tokens, how far they are computed, and its rows in a step.
//!
//! Invariant: its vectors never grow beyond what is reserved for it at first.

use std::ops::Range;

use super::speculate::{ACCEPTANCE, MOST_DRAFTS};
use crate::backend::{Batch, BlockId, SeqSpan};
use crate::kv::{BlockPool, Digest};

/// Priority (lower first), then arrival.
pub type Order = (i64, u64);

/// One sequence as the scheduler sees it, with the engine's own data.
#[derive(Debug)]
pub struct Sequence<J> {
    pub order: Order,
    /// Whose it is.
    pub client: u64,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Prompt and most new tokens.
    pub max_tokens: usize,
    /// First prompt position whose output is still wanted; `prompt_len` if none is.
    pub next_prompt_output: usize,
    /// Prompt outputs that may be produced in this step.
    pub prompt_allowance: usize,
    /// Whether it stands in this step: its last tokens have not been read.
    pub stands: bool,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    /// Its rows in this step.
    pub chunk: usize,
    /// Tokens that may follow, which are run in this step behind its newest one.
    pub drafts: Vec<u32>,
    /// Of these, how many are worth it, while that is being found out.
    pub(super) kept: usize,
    /// Share of its drafts that were accepted lately.
    pub(super) acceptance: f64,
    /// Its place among the batch's sequences in this step.
    pub span: usize,
    /// Its part of the batch's outputs in this step.
    pub outputs: Range<usize>,
    /// Times it gave up its cache.
    pub preemptions: u32,
    /// Tokens of its prompt that it found in the cache.
    pub cached: usize,
    /// Whose cached prefixes it shares.
    pub salt: Option<String>,
    /// Generated tokens that its client was charged for.
    pub(super) charged: usize,
    /// Its cache.
    pub(super) blocks: Vec<BlockId>,
    /// Digests of its full blocks, as far as they were needed.
    pub(super) chain: Vec<Digest>,
    /// Of its blocks, those that are listed.
    pub(super) listed: usize,
    /// The engine's data.
    pub job: J,
}

impl<J> Sequence<J> {
    /// A sequence whose vectors never grow beyond what is reserved here. `block_len` is the pool's.
    pub fn new(order: Order, prompt: Vec<u32>, max_new: usize, block_len: usize, job: J) -> Self {
        let prompt_len = prompt.len();
        let mut tokens = prompt;
        tokens.reserve_exact(max_new);
        let max_tokens = prompt_len + max_new;
        Sequence {
            order,
            client: 0,
            tokens,
            prompt_len,
            max_tokens,
            next_prompt_output: prompt_len,
            prompt_allowance: usize::MAX,
            stands: false,
            computed: 0,
            chunk: 0,
            drafts: Vec::with_capacity(MOST_DRAFTS.min(max_new)),
            kept: 0,
            acceptance: ACCEPTANCE,
            span: 0,
            outputs: 0..0,
            preemptions: 0,
            cached: 0,
            salt: None,
            charged: 0,
            blocks: Vec::with_capacity(max_tokens.div_ceil(block_len)),
            chain: Vec::with_capacity(max_tokens / block_len),
            listed: 0,
            job,
        }
    }

    /// Tokens that are not in the cache.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens generated.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Whether the row of the newest token is sampled.
    pub(super) fn samples(&self) -> bool {
        self.tokens.len() < self.max_tokens
    }

    /// Whether outputs of its prompt are still wanted.
    pub fn scores(&self) -> bool {
        self.next_prompt_output < self.prompt_len
    }

    /// Whether position `p` has an output if it is run now.
    pub(super) fn has_output(&self, p: usize) -> bool {
        (self.next_prompt_output..self.prompt_len).contains(&p) || (p + 1 >= self.tokens.len() && self.samples())
    }

    /// Whether this step's rows end with one that is sampled.
    pub fn samples_now(&self) -> bool {
        self.chunk > 0 && self.computed + self.chunk == self.tokens.len() + self.drafts.len() && self.samples()
    }

    /// Rows of this step that need not be run again, once their outputs were looked at: those of drafts that were not accepted
    /// are written again.
    pub fn kept_rows(&self) -> usize {
        match self.drafts.is_empty() {
            true => self.chunk,
            // The newest token has not been run.
            false => self.chunk.min((self.tokens.len() - self.computed - 1).max(1)),
        }
    }

    /// The outputs of this step that are sampled, if it has any: that of its newest token, then those of drafts.
    pub fn sampled(&self) -> Range<usize> {
        self.outputs.end - 1 - self.drafts.len()..self.outputs.end
    }

    /// Plans at most `rows` rows with at most `outputs` outputs and returns what it took.
    pub(super) fn plan(&mut self, rows: usize, outputs: usize) -> (usize, usize) {
        let mut end = self.computed + self.pending().min(rows);
        let first = self.computed.max(self.next_prompt_output);
        if first < self.prompt_len {
            end = end.min(first + outputs.min(self.prompt_allowance));
        }
        let wanted = end.min(self.prompt_len).saturating_sub(first);
        // The sampled row counts once when it is the prompt's last and wanted anyway.
        let extra = end == self.tokens.len() && self.samples() && !(first..self.prompt_len).contains(&(end - 1));
        if extra && wanted == outputs {
            end -= 1;
        }
        self.chunk = end - self.computed;
        (self.chunk, wanted + usize::from(extra && wanted < outputs))
    }

    /// Lists what is full and was not listed.
    pub(super) fn list(&mut self, pool: &mut BlockPool) {
        let (full, len) = (self.computed / pool.block_len(), pool.block_len());
        if self.listed == full {
            return;
        }
        pool.digest(&mut self.chain, full, &self.tokens, self.salt.as_deref(), self.max_tokens);
        for i in self.listed..full.min(self.chain.len()) {
            pool.publish(&mut self.blocks[i], &self.chain[i], &self.tokens[i * len..][..len]);
        }
        self.listed = full;
    }

    pub(super) fn write(&mut self, batch: &mut Batch, block_len: usize) {
        let index = |n: usize| u32::try_from(n).expect("sizes fit into 32 bits, which the engine checks at its start");
        let (rows, table) = (batch.rows(), batch.tables.len());
        let outputs = batch.outputs.len();
        let context = self.computed + self.chunk;
        for p in self.computed..context {
            if self.has_output(p) {
                batch.outputs.push(index(batch.tokens.len()));
            }
            let slot = self.blocks[p / block_len].0 as usize * block_len + p % block_len;
            let token = self.tokens.get(p).copied().unwrap_or_else(|| self.drafts[p - self.tokens.len()]);
            batch.tokens.push(token);
            batch.positions.push(index(p));
            batch.slots.push(index(slot));
        }
        batch.tables.extend_from_slice(&self.blocks[..context.div_ceil(block_len)]);
        self.span = batch.seqs.len();
        batch.seqs.push(SeqSpan {
            rows: rows..batch.rows(),
            context,
            table: table..batch.tables.len(),
            rope_len: self.max_tokens,
        });
        self.outputs = outputs..batch.outputs.len();
    }
}
