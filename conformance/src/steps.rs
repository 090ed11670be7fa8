//! How a case is fed: three sequences of unequal length in scattered blocks, prefills in chunks beside decodes.
//!
//! Positions cross the blocks' and the key tiles' ends; some steps want every row's logits, some the last ones alone.

use njoule_runtime::backend::{Batch, BlockId, Capacity, Executor, SeqSpan, StepOutput};

/// What executors are loaded for.
pub const CAPACITY: Capacity =
    Capacity { blocks: 12, block_len: 32, max_rows: 80, max_seqs: 4, max_outputs: 80, max_len: 128 };

/// Blocks of each sequence: out of order, and interleaved with the others'.
const TABLES: [[u32; 4]; 3] = [[7, 0, 11, 3], [2, 9, 4, 5], [1, 10, 6, 8]];

/// Prompt and most new tokens of each sequence, for rotations that depend on it; the second lies on the cases' border.
const ROPE_LEN: [usize; 3] = [128, 44, 16];

/// Rows of one sequence in a step.
struct Part {
    seq: usize,
    rows: std::ops::Range<usize>,
    /// Whether the logits of all of them are wanted, else of the last.
    all: bool,
}

const fn part(seq: usize, start: usize, end: usize, all: bool) -> Part {
    Part { seq, rows: start..end, all }
}

/// The steps, as long as a model has positions for them.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Tokens of the first sequence, the longest.
    longest: usize,
    /// Which tokens.
    variant: usize,
}

/// Logits of all rows that were wanted, in the order of the script.
pub struct Logits {
    values: Vec<f32>,
    vocab: usize,
}

impl Logits {
    /// One slice per row.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.vocab)
    }
}

/// Sequences of the script.
pub const SEQUENCES: usize = TABLES.len();

impl Script {
    /// For models of any length: it crosses the end of a tile of keys.
    pub const FULL: Script = Script { longest: 73, variant: 0 };

    /// For a model of `max_len` positions; `None` where the second sequence alone has more.
    pub fn within(max_len: usize) -> Option<Script> {
        (max_len > 43).then(|| Script { longest: max_len.min(Script::FULL.longest), ..Script::FULL })
    }

    /// The same steps with other tokens, those of this number; 0 is the first.
    pub fn variant(self, variant: usize) -> Script {
        Script { variant, ..self }
    }

    fn token(self, seq: usize, position: usize, vocab: usize) -> u32 {
        let place = position * 7919 + seq * 104_729 + position * position + 11;
        ((place + self.variant * (31 + 17 * position)) % vocab) as u32
    }

    fn parts(self) -> [Vec<Part>; 6] {
        let n = self.longest;
        [
            vec![part(0, 0, 40, true), part(1, 0, 33, false)],
            vec![part(0, 40, n - 3, true), part(1, 33, 34, true), part(2, 0, 5, true)],
            vec![part(2, 5, 6, true), part(0, n - 3, n - 2, true), part(1, 34, 35, true)],
            vec![part(1, 35, 36, true)],
            vec![part(0, n - 2, n - 1, true), part(2, 6, 12, false)],
            vec![part(0, n - 1, n, true), part(1, 36, 43, true), part(2, 12, 13, true)],
        ]
    }

    /// `(sequence, position)` of each row of [`Logits`].
    pub fn wanted(self) -> Vec<(usize, usize)> {
        let rows = |part: Part| {
            let first = if part.all { part.rows.start } else { part.rows.end - 1 };
            (first..part.rows.end).map(move |position| (part.seq, position))
        };
        self.parts().into_iter().flatten().flat_map(rows).collect()
    }

    /// All tokens of a sequence, and the length that rotations may depend on.
    pub fn sequence(self, seq: usize, vocab: usize) -> (Vec<u32>, usize) {
        let parts = || self.parts().into_iter().flatten().filter(move |p| p.seq == seq);
        let len = parts().map(|p| p.rows.end).max().unwrap_or(0);
        ((0..len).map(|position| self.token(seq, position, vocab)).collect(), ROPE_LEN[seq])
    }

    /// First block of a sequence, and its slot of each position so far.
    pub fn slots(self, seq: usize) -> (BlockId, Vec<usize>) {
        let (tokens, _) = self.sequence(seq, 2);
        let slot = |position: usize| TABLES[seq][position / 32] as usize * 32 + position % 32;
        (BlockId(TABLES[seq][0]), (0..tokens.len()).map(slot).collect())
    }

    /// Runs the script. Panics where a step fails: the batches are valid.
    pub fn run(self, executor: &mut dyn Executor, vocab: usize) -> Logits {
        let mut logits = Logits { values: vec![], vocab };
        let mut out = StepOutput::default();
        for parts in self.parts() {
            let mut batch = Batch::default();
            for Part { seq, rows, all } in parts {
                let (first, table) = (batch.rows(), TABLES[seq]);
                for position in rows.clone() {
                    batch.tokens.push(self.token(seq, position, vocab));
                    batch.positions.push(position as u32);
                    batch.slots.push(table[position / 32] * 32 + (position % 32) as u32);
                }
                let last = batch.rows() as u32;
                let at = batch.tables.len();
                batch.tables.extend(table.map(BlockId));
                batch.seqs.push(SeqSpan {
                    rows: first..last as usize,
                    context: rows.end,
                    table: at..at + table.len(),
                    rope_len: ROPE_LEN[seq],
                });
                batch.outputs.extend(if all { first as u32..last } else { last - 1..last });
            }
            // What a step does not write stays NaN. An executor may keep the buffer and hand it back a step later.
            out.logits.resize(CAPACITY.max_outputs * (vocab + 64), f32::NAN);
            out.logits.fill(f32::NAN);
            executor.submit(&batch).expect("a valid batch");
            executor.collect(&mut out).expect("a step that was submitted");
            assert_eq!((out.rows, out.vocab), (batch.outputs.len(), vocab));
            (0..out.rows).for_each(|i| logits.values.extend_from_slice(out.row(i)));
        }
        logits
    }
}
