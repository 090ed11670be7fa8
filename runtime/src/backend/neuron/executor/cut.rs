//! A batch as runs of modules: which module, which rows of it, where each result goes.
//!
//! Decodes share runs as [`Decodes`] has it: one run in the smallest bucket that covers rows and lengths of all classes, or
//! several where none does. A chunk takes the smallest bucket that holds it, or several of the largest. Where no prefill
//! bucket reaches, tokens go one by one. All is integer work on reused buffers: a step allocates nothing once they have grown.
//!
//! Invariant: every token of the batch is in exactly one line, a sequence's lines are in order of position, and no run
//! writes outside its class's rows and positions.

use std::ops::Range;

use crate::backend::neuron::artifact::Layout;
use crate::backend::neuron::decodes::{Decodes, Need};
use crate::backend::neuron::interface::ModuleKind;
use crate::backend::{Batch, RowClass, StepError, Wants};

/// The buckets of every class.
#[derive(Clone, Debug)]
pub struct Buckets {
    classes: Vec<Class>,
    decodes: Decodes,
}

#[derive(Clone, Debug)]
struct Class {
    /// Number of its first row, through all classes.
    first: usize,
    rows: usize,
    positions: usize,
    max_len: usize,
    prefill: Vec<Bucket>,
    score: Vec<Bucket>,
}

/// A module of a class's chunks.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Tokens.
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
    /// Row of the step: of a decode, through the classes of its module; of a chunk, of its class.
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
    /// By class, what is left to decode.
    needs: Vec<Need>,
}

impl Buckets {
    /// Of a layout that was checked.
    pub fn new(layout: &Layout) -> Buckets {
        let mut first = 0;
        let decodes = Decodes::new(&layout.classes, &layout.modules);
        let classes = layout.classes.iter().enumerate().map(|(i, &class)| {
            let (mut prefill, mut score) = (vec![], vec![]);
            for (module, spec) in layout.modules.iter().enumerate() {
                let Some(part) = spec.part(class) else { continue };
                let (list, size) = match spec.kind {
                    ModuleKind::Decode { .. } => continue,
                    ModuleKind::Prefill { tokens } => (&mut prefill, tokens),
                    ModuleKind::Score { tokens } => (&mut score, tokens),
                };
                list.push(Bucket { size, len: part.len, module });
            }
            for list in [&mut prefill, &mut score] {
                list.sort_by_key(|b| (b.size, b.len));
            }
            // A chunk at the last position still needs room for the smallest bucket, and idle rows write the last one.
            let chunk = prefill.iter().chain(&score).map(|b| b.size).min().unwrap_or(1).max(1);
            // A token reads what is before it, by a decode module of all rows.
            let read = decodes.longest(i, class.rows).unwrap_or(0);
            let max_len = (class.positions - chunk.min(class.positions)).min(read + 1).min(layout.context);
            let start = first;
            first += class.rows;
            Class { first: start, rows: class.rows, positions: class.positions, max_len, prefill, score }
        });
        let classes = classes.collect();
        Buckets { classes, decodes }
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
                self.chunks(batch, buckets, seq, (class, row), logits)?;
            }
        }
        self.decode(batch, buckets)
    }

    /// Runs of all decodes.
    fn decode(&mut self, batch: &Batch, buckets: &Buckets) -> Result<(), StepError> {
        let Cut { calls, lines, decodes, needs } = self;
        // A row of a class serves one sequence: keys differ.
        decodes.sort_unstable();
        needs.clear();
        needs.resize(buckets.classes.len(), Need::default());
        for &(class, row, seq) in &*decodes {
            let need = &mut needs[class];
            *need = Need { rows: need.rows.max(row + 1), len: need.len.max(batch.seqs[seq].context - 1) };
        }
        while let Some(decode) = buckets.decodes.choose(needs) {
            let first = lines.len();
            for &(class, row, seq) in decodes.iter().filter(|(class, ..)| decode.covers(*class, needs[*class])) {
                let tokens = batch.seqs[seq].rows.clone();
                let outputs = outputs_in(batch, &tokens);
                lines.push(Line { seq, row: decode.row(class, row), tokens, outputs });
            }
            for (class, need) in needs.iter_mut().enumerate() {
                if decode.covers(class, *need) {
                    *need = Need::default();
                }
            }
            calls.push(Call { module: decode.module, lines: first..lines.len() });
        }
        match needs.iter().position(|need| need.rows > 0) {
            None => Ok(()),
            Some(class) => {
                let Need { rows, len } = needs[class];
                Err(StepError::Batch(format!("no decode module of class {class} has {rows} rows of {len} positions")))
            }
        }
    }

    fn chunks(
        &mut self,
        batch: &Batch,
        buckets: &Buckets,
        seq: usize,
        (class, row): (usize, usize),
        logits: bool,
    ) -> Result<(), StepError> {
        let (span, number) = (&batch.seqs[seq], class);
        let class = &buckets.classes[number];
        let list = if logits { &class.score } else { &class.prefill };
        let mut done = span.rows.start;
        while done < span.rows.end {
            let start = span.context - (span.rows.end - done);
            let left = span.rows.end - done;
            let first = self.lines.len();
            let (module, taken, row) = match class.chunk(list, left, start) {
                Some(bucket) => (bucket.module, bucket.size.min(left), row),
                None if logits => return Err(no_module("score", left, start)),
                None => {
                    self.needs.clear();
                    self.needs.resize(buckets.classes.len(), Need::default());
                    self.needs[number] = Need { rows: row + 1, len: start };
                    match buckets.decodes.choose(&self.needs) {
                        Some(decode) => (decode.module, 1, decode.row(number, row)),
                        None => return Err(no_module("prefill or decode", left, start)),
                    }
                }
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
