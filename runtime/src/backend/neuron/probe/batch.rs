//! Steps of a loaded model without an engine: one sequence in pieces, or many that decode.

use super::model::DecodeBucket;
use crate::backend::{Batch, BlockId, Capacity, Executor, Returned, SeqSpan, StepError, StepOutput, Wants};

/// What is fed, and how.
pub(super) struct Feed<'a> {
    pub executor: &'a mut dyn Executor,
    pub capacity: Capacity,
    /// Tokens of a sequence in a step, at most.
    pub chunk: usize,
}

/// The likeliest token and, where the device gives logits, all of them.
pub(super) enum Answer {
    Logits(Vec<f32>),
    Token(u32),
}

impl Answer {
    /// The likeliest token, the lowest of equals.
    pub(super) fn token(&self) -> u32 {
        match self {
            Answer::Token(token) => *token,
            Answer::Logits(logits) => likeliest(logits),
        }
    }
}

impl Feed<'_> {
    /// Runs `tokens` as the first of row `row`; what follows the last of them.
    pub(super) fn prompt(&mut self, row: u32, tokens: &[u32], wants: Wants) -> Result<Answer, StepError> {
        let mut at = 0;
        loop {
            let end = (at + self.chunk.max(1)).min(tokens.len());
            let last = end == tokens.len();
            let mut batch = Batch::default();
            self.add(&mut batch, row, &tokens[at..end], at, last);
            batch.wants = if last { wants } else { Wants::Tokens };
            let out = self.step(&batch)?;
            if last {
                return answer(&out, 0);
            }
            at = end;
        }
    }

    /// Runs one token of row `row` at a position; what follows it.
    pub(super) fn decode(&mut self, row: u32, token: u32, position: usize, wants: Wants) -> Result<Answer, StepError> {
        let mut batch = Batch::default();
        self.add(&mut batch, row, &[token], position, true);
        batch.wants = wants;
        let out = self.step(&batch)?;
        answer(&out, 0)
    }

    /// A step in which the rows of each part decode, each behind as many tokens as the part says.
    pub(super) fn decodes(&self, bucket: &DecodeBucket) -> Batch {
        let mut batch = Batch { wants: Wants::Tokens, ..Batch::default() };
        for part in &bucket.parts {
            // The token's own position must be within its row.
            let position = part.len.min(self.capacity.max_len.saturating_sub(1));
            for (row, token) in (part.first..).zip(1..).take(part.rows) {
                self.add(&mut batch, row, &[token], position, true);
            }
        }
        batch
    }

    /// Runs a step.
    pub(super) fn step(&mut self, batch: &Batch) -> Result<StepOutput, StepError> {
        let mut out = StepOutput::default();
        self.executor.submit(batch)?;
        self.executor.collect(&mut out)?;
        Ok(out)
    }

    fn add(&self, batch: &mut Batch, row: u32, tokens: &[u32], start: usize, output: bool) {
        let Capacity { block_len, max_len, .. } = self.capacity;
        let blocks = max_len.div_ceil(block_len.max(1)).max(1) as u32; // of few thousand positions
        let (first, table) = (batch.rows(), batch.tables.len());
        batch.tables.extend((0..blocks).map(|i| BlockId(row * blocks + i)));
        for (position, token) in (start..).zip(tokens) {
            let block = row as usize * blocks as usize + position / block_len;
            batch.tokens.push(*token);
            batch.positions.push(position as u32);
            batch.slots.push((block * block_len + position % block_len) as u32);
        }
        batch.seqs.push(SeqSpan {
            rows: first..batch.rows(),
            context: start + tokens.len(),
            table: table..batch.tables.len(),
            rope_len: max_len,
        });
        if output {
            batch.outputs.push(batch.rows() as u32 - 1);
        }
    }
}

fn answer(out: &StepOutput, i: usize) -> Result<Answer, StepError> {
    let missing = || StepError::Device("a step without a result".to_owned());
    match out.returned {
        Returned::Candidates => out.candidates.greedy.get(i).map(|token| Answer::Token(*token)).ok_or_else(missing),
        Returned::Logits if i < out.rows => Ok(Answer::Logits(out.row(i).to_vec())),
        Returned::Logits => Err(missing()),
    }
}

pub(super) fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(id, _)| id as u32)
}
