//! Masks that are made while the device computes the candidates that they are for.
//!
//! A grammar takes tens of microseconds for a mask, and one that the device is to apply must be there before the step is. A row
//! whose likeliest tokens are allowed ones anyway does not need that: its step goes without, the mask is made meanwhile, and
//! the candidates that it forbids are dropped here. Where those that are left say too little (`Sampler::sample_late`), the row
//! is run again with its mask, beside the other rows of its module, so that it is the same module: a step writes the same places
//! again.
//!
//! Invariant: which way a row goes depends on its sequence's own candidates alone, so that its tokens do not depend on others.

use crate::backend::{Batch, Bias, Masks, SeqSpan, Wants};

/// Whether a sequence's next mask may come late.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// Steps in a row in which the model wanted what its mask allowed.
    good: u32,
    /// So many are needed.
    needed: u32,
    /// Whether this step's does.
    pub now: bool,
}

impl Default for Late {
    fn default() -> Late {
        Late { good: 0, needed: FIRST, now: false }
    }
}

impl Late {
    /// Whether it may.
    pub fn is_ready(self) -> bool {
        self.good >= self.needed
    }

    /// A mask was applied by the device, and what it allowed has this much of the model's probability.
    pub fn applied(&mut self, mass: f64) {
        self.good = if mass >= WANTED { self.good.saturating_add(1) } else { 0 };
    }

    /// A mask came late, and the row has to be run again: a whole step for what tens of microseconds would have saved.
    pub fn failed(&mut self) {
        (self.good, self.needed) = (0, self.needed.saturating_mul(LONGER).min(MOST));
    }
}

/// Takes the rows of sequence `span` of a batch over into another; with its one output, that one's biases and this mask, if
/// they are `wanted`.
pub fn again(from: &Batch, span: usize, wanted: Option<(usize, &[u32])>, to: &mut Batch) {
    let seq = &from.seqs[span];
    let (row, table, last) = (to.rows(), to.tables.len(), to.outputs.len());
    to.wants = Wants::Tokens;
    to.tokens.extend_from_slice(&from.tokens[seq.rows.clone()]);
    to.positions.extend_from_slice(&from.positions[seq.rows.clone()]);
    to.slots.extend_from_slice(&from.slots[seq.rows.clone()]);
    to.tables.extend_from_slice(&from.tables[seq.table.clone()]);
    to.seqs.push(SeqSpan { rows: row..to.rows(), table: table..to.tables.len(), ..seq.clone() });
    let Some((output, mask)) = wanted else { return };
    // The engine checked that rows fit.
    let index = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    to.outputs.push(index(row) + from.outputs[output] - index(seq.rows.start));
    to.biases.extend(from.biases_of(output).iter().map(|bias| Bias { output: index(last), ..*bias }));
    to.masks.push(index(last)).iter_mut().zip(mask).for_each(|(to, word)| *to = *word);
}

/// No masks, of the same size, with room for as many as there are rows.
pub fn room(rows: usize, words: usize) -> Masks {
    Masks { outputs: Vec::with_capacity(rows), words, bits: Vec::new() }
}

/// Of the model's probability, what the allowed tokens should have.
const WANTED: f64 = 0.9;
const FIRST: u32 = 4;
const LONGER: u32 = 4;
const MOST: u32 = 1 << 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_failed_has_to_be_good_for_longer() {
        let mut late = Late::default();
        let ready_after = |late: &mut Late| {
            (0..10_000).position(|_| {
                late.applied(0.95);
                late.is_ready()
            })
        };
        assert_eq!(ready_after(&mut late), Some(3));
        late.failed();
        assert!(!late.is_ready());
        late.applied(0.95);
        late.applied(0.5);
        assert_eq!(ready_after(&mut late), Some(15), "what came before a bad step does not count");
        (0..20).for_each(|_| late.failed());
        assert_eq!(ready_after(&mut late), Some(4095));
    }
}
