//! Whether a batch keeps its contract: every index that a backend will follow is checked here, before it is followed.
//!
//! The cpu backend's plan makes the same checks itself, because its pointers rest on them.

use njoule_models::program::{EmbedIndex, Op, Program};

use super::{Batch, Capacity, StepError};

impl Batch {
    /// Checks sizes, tokens, positions, tables and slots against what was loaded.
    pub fn check(&self, program: &Program, capacity: &Capacity) -> Result<(), StepError> {
        let fail = |what: String| Err(StepError::Batch(what));
        let (rows, seqs, outputs) = (self.rows(), self.seqs.len(), self.outputs.len());
        if rows > capacity.max_rows || seqs > capacity.max_seqs || outputs > capacity.max_outputs {
            return fail(format!("{rows} rows, {seqs} sequences or {outputs} outputs exceed the capacity"));
        }
        if self.positions.len() != rows || self.slots.len() != rows {
            return fail("positions and slots are one per row".into());
        }
        if let Some(o) = self.outputs.iter().find(|o| **o as usize >= rows) {
            return fail(format!("output row {o} of {rows}"));
        }
        if let Some(b) = self.tables.iter().find(|b| b.0 as usize >= capacity.blocks) {
            return fail(format!("block {} of {}", b.0, capacity.blocks));
        }
        let mut row = 0;
        for seq in &self.seqs {
            if seq.rows.start != row || seq.rows.is_empty() || seq.rows.end > rows {
                return fail("sequences must cover the rows in order".into());
            }
            row = seq.rows.end;
            let Some(table) = self.tables.get(seq.table.clone()) else {
                return fail("a sequence exceeds the block tables".into());
            };
            let Some(first) = seq.context.checked_sub(seq.rows.len()) else {
                return fail(format!("{} rows of a sequence of {} tokens", seq.rows.len(), seq.context));
            };
            let len = capacity.block_len;
            if seq.context.div_ceil(len) > table.len() {
                return fail(format!("{} blocks do not hold {} positions", table.len(), seq.context));
            }
            for (position, r) in (first..).zip(seq.rows.clone()) {
                if self.positions[r] as usize != position {
                    return fail("positions of a sequence are consecutive and end at its context".into());
                }
                // Slots follow the table: no two rows of a valid batch share one.
                if self.slots[r] as usize != table[position / len].0 as usize * len + position % len {
                    return fail(format!("slot of row {r} is not the table's"));
                }
            }
        }
        if row != rows {
            return fail(format!("sequences cover {row} of {rows} rows"));
        }
        self.check_embeddings(program)
    }

    fn check_embeddings(&self, program: &Program) -> Result<(), StepError> {
        for op in &program.ops {
            let Op::Embed { table, index, .. } = op else { continue };
            let entries = program.weight(*table).rows;
            let (what, largest) = match index {
                EmbedIndex::Tokens => ("token", self.tokens.iter().max().map(|t| *t as usize)),
                EmbedIndex::Positions { offset } => {
                    ("position", self.positions.iter().max().map(|p| (*p as usize).saturating_add(*offset)))
                }
            };
            if let Some(largest) = largest.filter(|n| *n >= entries) {
                return Err(StepError::Batch(format!("{what} {largest} of a table of {entries}")));
            }
        }
        Ok(())
    }
}
