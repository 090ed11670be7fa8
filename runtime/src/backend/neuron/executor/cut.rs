//! A batch as runs of modules: which module, which rows of it, where each result goes.
//!
//! Decodes of a class share one run in the smallest bucket that covers their rows and the longest of them; a chunk takes
//! the smallest bucket that holds it, or several of the largest. Where no prefill bucket reaches, tokens go one by one.
//! All is integer work on reused buffers: a step allocates nothing once they have grown.
//!
//! Invariant: every token of the batch is in exactly one line, a sequence's lines are in order of position, and no run
//! writes outside its class's rows and positions.

use std::ops::Range;

use crate::backend::neuron::artifact::Layout;
use crate::backend::neuron::interface::ModuleKind;
use crate::backend::{Batch, RowClass, StepError, Wants};

/// The buckets of every class.
#[derive(Clone, Debug)]
pub struct Buckets {
    classes: Vec<Class>,
}

#[derive(Clone, Debug)]
struct Class {
    /// Number of its first row, through all classes.
    first: usize,
    rows: usize,
    positions: usize,
    max_len: usize,
    decode: Vec<Bucket>,
    prefill: Vec<Bucket>,
    score: Vec<Bucket>,
}

/// A module of a class.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Rows or tokens.
    size: usize,
    /// Positions that it reads.
    len: usize,
    /// Index of the module.
    module: usize,
}

/// One run of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Index of the module.
    pub module: usize,
    /// Its lines.
    pub lines: Range<usize>,
}

/// Consecutive tokens of one sequence in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Index into [`Batch::seqs`].
    pub seq: usize,
    /// Row of the class.
    pub row: usize,
    /// Their rows of the batch.
    pub tokens: Range<usize>,
    /// Outputs among them: indices into [`Batch::outputs`].
    pub outputs: Range<usize>,
}

/// The runs of a step; reused.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// In order.
    pub calls: Vec<Call>,
    /// Of all of them.
    pub lines: Vec<Line>,
    /// Decodes: class, row, index into `seqs`.
    decodes: Vec<(usize, usize, usize)>,
}

impl Buckets {
    /// Of a layout that was checked.
    pub fn new(layout: &Layout) -> Buckets {
        let mut first = 0;
        let classes = layout.classes.iter().map(|&class| {
            let (mut decode, mut prefill, mut score) = (vec![], vec![], vec![]);
            for (module, spec) in layout.modules.iter().enumerate().filter(|(_, spec)| spec.class == class) {
                let (list, size) = match spec.kind {
                    ModuleKind::Decode { batch } => (&mut decode, batch),
                    ModuleKind::Prefill { tokens } => (&mut prefill, tokens),
                    ModuleKind::Score { tokens } => (&mut score, tokens),
                };
                list.push(Bucket { size, len: spec.len, module });
            }
            for list in [&mut decode, &mut prefill, &mut score] {
                list.sort_by_key(|b| (b.size, b.len));
            }
            // A chunk at the last position still needs room for the smallest bucket, and idle rows write the last one.
            let chunk = prefill.iter().chain(&score).map(|b| b.size).min().unwrap_or(1).max(1);
            // A token reads what is before it, by a decode module of all rows.
            let read = decode.iter().filter(|b| b.size == class.rows).map(|b| b.len).max().unwrap_or(0);
            let max_len = (class.positions - chunk.min(class.positions)).min(read + 1).min(layout.context);
            let start = first;
            first += class.rows;
            Class { first: start, rows: class.rows, positions: class.positions, max_len, decode, prefill, score }
        });
        Buckets { classes: classes.collect() }
    }

    /// The rows as the engine sees them.
    pub fn row_classes(&self) -> Vec<RowClass> {
        self.classes.iter().map(|c| RowClass { rows: c.rows, max_len: c.max_len }).collect()
    }

    /// Tokens of the largest chunk that every class takes in one run.
    pub fn chunk(&self) -> usize {
        self.classes.iter().map(|c| c.prefill.iter().map(|b| b.size).max().unwrap_or(1)).min().unwrap_or(1)
    }

    /// Whether prompts can be scored in every class.
    pub fn scores(&self) -> bool {
        self.classes.iter().all(|c| !c.score.is_empty())
    }

    /// Class and row of a block.
    fn find(&self, block: usize) -> Option<(usize, usize)> {
        let class = self.classes.partition_point(|c| c.first <= block).checked_sub(1)?;
        let row = block - self.classes[class].first;
        (row < self.classes[class].rows).then_some((class, row))
    }
}

impl Class {
    /// The smallest that covers.
    fn decode(&self, rows: usize, len: usize) -> Option<Bucket> {
        self.decode.iter().find(|b| b.size >= rows && b.len >= len).copied()
    }

    /// For `tokens` from position `start` on: the smallest that holds them, else the largest that fits.
    fn chunk(&self, list: &[Bucket], tokens: usize, start: usize) -> Option<Bucket> {
        let fit = || list.iter().filter(|b| b.len >= start && start + b.size <= self.positions);
        // Of equal sizes the shortest read comes first.
        let holds = fit().find(|b| b.size >= tokens);
        let largest = || fit().max_by_key(|b| (b.size, std::cmp::Reverse(b.len)));
        holds.or_else(largest).copied()
    }
}

impl Cut {
    /// Cuts a batch whose contract was checked.
    pub fn cut(&mut self, batch: &Batch, buckets: &Buckets) -> Result<(), StepError> {
        self.calls.clear();
        self.lines.clear();
        self.decodes.clear();
        for (seq, span) in batch.seqs.iter().enumerate() {
            let block = batch.tables.get(span.table.start).map(|b| b.0 as usize);
            let Some((class, row)) = block.and_then(|block| buckets.find(block)) else {
                return Err(StepError::Batch(format!("sequence {seq} has no cache row: {block:?}")));
            };
            let max_len = buckets.classes[class].max_len;
            if span.context > max_len {
                let what = format!("sequence {seq} has {} tokens, its row holds {max_len}", span.context);
                return Err(StepError::Batch(what));
            }
            let outputs = outputs_in(batch, &span.rows);
            let logits = batch.wants == Wants::Logits && !outputs.is_empty();
            if span.rows.len() == 1 && !logits {
                self.decodes.push((class, row, seq));
            } else {
                self.chunks(batch, &buckets.classes[class], seq, row, logits)?;
            }
        }
        // A row of a class serves one sequence: keys differ.
        self.decodes.sort_unstable();
        let mut at = 0;
        while let Some(&(class, ..)) = self.decodes.get(at) {
            let end = at + self.decodes[at..].iter().take_while(|d| d.0 == class).count();
            let first = self.lines.len();
            let (mut rows, mut len) = (0, 0);
            for i in at..end {
                let (_, row, seq) = self.decodes[i];
                let span = &batch.seqs[seq];
                (rows, len) = (rows.max(row + 1), len.max(span.context - 1));
                let (tokens, outputs) = (span.rows.clone(), outputs_in(batch, &span.rows));
                self.lines.push(Line { seq, row, tokens, outputs });
            }
            let Some(bucket) = buckets.classes[class].decode(rows, len) else {
                return Err(StepError::Batch(format!(
                    "no decode module of class {class} has {rows} rows of {len} positions"
                )));
            };
            self.calls.push(Call { module: bucket.module, lines: first..self.lines.len() });
            at = end;
        }
        Ok(())
    }

    fn chunks(&mut self, batch: &Batch, class: &Class, seq: usize, row: usize, logits: bool) -> Result<(), StepError> {
        let span = &batch.seqs[seq];
        let list = if logits { &class.score } else { &class.prefill };
        let mut done = span.rows.start;
        while done < span.rows.end {
            let start = span.context - (span.rows.end - done);
            let left = span.rows.end - done;
            let first = self.lines.len();
            let (module, taken) = match class.chunk(list, left, start) {
                Some(bucket) => (bucket.module, bucket.size.min(left)),
                None if logits => return Err(no_module("score", left, start)),
                None => match class.decode(row + 1, start) {
                    Some(bucket) => (bucket.module, 1),
                    None => return Err(no_module("prefill or decode", left, start)),
                },
            };
            let tokens = done..done + taken;
            let outputs = outputs_in(batch, &tokens);
            done = tokens.end;
            self.lines.push(Line { seq, row, tokens, outputs });
            self.calls.push(Call { module, lines: first..first + 1 });
        }
        Ok(())
    }
}

/// Outputs of these rows.
fn outputs_in(batch: &Batch, rows: &Range<usize>) -> Range<usize> {
    let before = |row: usize| batch.outputs.partition_point(|o| (*o as usize) < row);
    before(rows.start)..before(rows.end)
}

fn no_module(kind: &str, tokens: usize, start: usize) -> StepError {
    StepError::Batch(format!("no {kind} module takes {tokens} tokens from position {start} on"))
}

#[cfg(test)]
mod tests;
