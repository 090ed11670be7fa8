//! Whether guessed tokens are worth their rows.
//!
//! A step that holds decodes alone may run the [guessed tokens](super::draft) of its sequences behind their newest ones;
//! sampling accepts those that it would have drawn anyway. A row more costs little while a step is bound by reading weights
//! and as much as any other once it is bound by computing, so that guesses pay in small batches alone. The model:
//!
//! * `T(rows)`, the time of a step: what steps of that many rows took lately, else that of the nearest smaller number plus, for
//!   each row more, what a row costs in long prefill steps. Without one of these, half of what a row of the smaller step
//!   took: cautious where weights bind, and soon measured.
//! * `p`, a sequence's share of guesses that were accepted lately. It drifts back to a half while none are made, so that they
//!   are tried again now and then.
//!
//! Guesses are kept, likeliest first, as far as expected tokens per second grow: `(sequences + sum of p^j) / T(rows)`. Where joules
//! are what counts and a meter has told what a step costs, `E(rows)` ([`crate::policy::StepEnergy`]) stands in the place of `T(rows)`.
//!
//! Invariant: tokens do not depend on any of it; only how many steps they take does.

use super::{Scheduler, Sequence, draft};
use crate::kv::Kv;

/// Whether tokens are guessed from a sequence's own text and checked several at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculate {
    /// Never.
    #[default]
    Off,
    /// While it pays.
    Auto,
    /// At most so many per sequence and step, whenever a step has few rows.
    UpTo(usize),
}

/// Guesses of one sequence in a step at most.
pub const MOST_DRAFTS: usize = 15;
/// Rows of a step with guesses at most: beyond, every CPU computes longer than it reads.
const MOST_ROWS: usize = 32;
/// Gain below which it is not worth the noise.
const MARGIN: f64 = 1.05;
/// What is assumed of a sequence's guesses at first.
pub const ACCEPTANCE: f64 = 0.5;

impl<J> Scheduler<J> {
    /// Adds guesses to a planned step of single rows, as far as they pay.
    pub(super) fn speculate(&mut self) {
        let limits = self.limits;
        let most = match self.speculate {
            Speculate::Off => return,
            Speculate::Auto => MOST_DRAFTS,
            Speculate::UpTo(most) => most.min(MOST_DRAFTS),
        };
        let most = most.min(limits.chunk.saturating_sub(1));
        let rows: usize = self.running.iter().map(|s| s.chunk).sum();
        let room = limits.rows.min(limits.outputs).min(MOST_ROWS).saturating_sub(rows);
        let measured = self.speculate == Speculate::Auto;
        if !limits.drafts || room == 0 || rows == 0 || self.running.iter().any(|s| s.chunk > 1) {
            return;
        }
        let running = self.running.len();
        if measured && (running > self.most_guessing || !self.may_pay(rows)) {
            return;
        }
        for sequence in self.running.iter_mut().filter(|s| s.samples_now() && !s.scores()) {
            // The last token of all is never run.
            let left = sequence.max_tokens - sequence.tokens.len() - 1;
            draft::look_back(&sequence.tokens, most.min(left), &mut sequence.drafts);
            if let Kv::Blocks(pool) = &mut self.kv {
                // Nobody is to wait for a block because of a guess.
                let wanted = pool.blocks_for(sequence.tokens.len() + sequence.drafts.len());
                if pool.free() >= wanted.saturating_sub(sequence.blocks.len()) + running {
                    pool.grow(&mut sequence.blocks, wanted);
                }
                let held = sequence.blocks.len() * pool.block_len();
                sequence.drafts.truncate(held.saturating_sub(sequence.tokens.len()));
            }
        }
        let kept = if measured { self.worth(rows, room) } else { room };
        for sequence in &mut self.running {
            sequence.kept = 0;
        }
        for _ in 0..kept {
            keep_one(&mut self.running, measured);
        }
        for sequence in &mut self.running {
            if sequence.kept == 0 && !sequence.drafts.is_empty() {
                sequence.acceptance += (ACCEPTANCE - sequence.acceptance) / 128.0;
            }
            sequence.drafts.truncate(sequence.kept);
            sequence.chunk += sequence.kept;
        }
    }

    /// What a step of `rows` will take, or cost where that counts; unknown where nothing like it has run lately.
    fn price(&self, rows: usize) -> Option<f64> {
        let seconds = self.costs.seconds(rows)?;
        Some(self.energy.map_or(seconds, |energy| energy.joules(rows, seconds)))
    }

    /// Whether guesses would pay if all were right.
    fn may_pay(&self, rows: usize) -> bool {
        let gain = |more: usize| {
            let (alone, together) = (self.price(rows)?, self.price(rows + more)?);
            Some((rows + more) as f64 / together > MARGIN * rows as f64 / alone)
        };
        [1, 3, MOST_DRAFTS].into_iter().any(|more| gain(more).unwrap_or(false))
    }

    /// How many guesses of all sequences give most tokens per second or joule, in a step of `rows` and at most `room` more.
    fn worth(&mut self, rows: usize, room: usize) -> usize {
        let Some(alone) = self.price(rows) else { return 0 };
        let mut best = (MARGIN * rows as f64 / alone, 0);
        let mut expected = rows as f64;
        for sequence in &mut self.running {
            sequence.kept = 0;
        }
        for more in 1..=room {
            let (Some(gain), Some(price)) = (keep_one(&mut self.running, true), self.price(rows + more)) else { break };
            expected += gain;
            if expected / price > best.0 {
                best = (expected / price, more);
            }
        }
        best.1
    }

    /// Takes note of what a step took. One of few rows counts only if all have an output, as guesses do.
    pub fn observe(&mut self, rows: usize, outputs: usize, seconds: f64) {
        if rows > MOST_ROWS || rows == outputs {
            self.costs.observe(rows, seconds);
        }
    }
}

/// Keeps one more guess, the likeliest (where all count the same, the sequence's with fewest), and says how likely it is.
fn keep_one<J>(running: &mut [Box<Sequence<J>>], measured: bool) -> Option<f64> {
    let gain = |s: &Sequence<J>| if measured { s.acceptance.powi(s.kept as i32 + 1) } else { 1.0 };
    let open = running.iter_mut().filter(|s| s.kept < s.drafts.len());
    let best = open.max_by(|a, b| gain(a).total_cmp(&gain(b)).then(b.kept.cmp(&a.kept)))?;
    let likely = gain(best);
    best.kept += 1;
    Some(likely)
}

impl<J> Sequence<J> {
    /// Takes note of how many guesses were accepted, of those that were looked at.
    pub fn learn(&mut self, accepted: usize) {
        for tested in 0..self.drafts.len().min(accepted + 1) {
            let outcome = if tested < accepted { 1.0 } else { 0.0 };
            self.acceptance += (outcome - self.acceptance) / 8.0;
        }
    }
}

/// What steps take, by their rows.
#[derive(Debug)]
pub struct StepCosts {
    /// Seconds per step of that many rows.
    narrow: [Option<Cell>; MOST_ROWS + 1],
    /// Seconds per row of long prefill steps, and the rows that it was measured at first.
    wide: Option<(f64, usize)>,
    steps: u64,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    seconds: f64,
    step: u64,
}

impl StepCosts {
    pub fn new() -> StepCosts {
        StepCosts { narrow: [None; MOST_ROWS + 1], wide: None, steps: 0 }
    }

    fn observe(&mut self, rows: usize, seconds: f64) {
        let expected = self.seconds(rows);
        self.steps += 1;
        let step = self.steps;
        if let Some(cell) = self.narrow.get_mut(rows) {
            // One that was disturbed at first must not put an end to guessing.
            let known = expected.unwrap_or(seconds);
            *cell = Some(Cell { seconds: smoothed(known, seconds), step });
        } else {
            let per_row = seconds / rows as f64;
            // Longer steps say better what a row costs where weights no longer matter.
            self.wide = match self.wide {
                Some((known, at)) if rows >= WIDE.min(at) => Some((smoothed(known, per_row), at.max(rows))),
                Some(known) => Some(known),
                None => Some((per_row, rows)),
            };
        }
    }

    /// What a step of `rows` will take; unknown where nothing like it has run lately.
    fn seconds(&self, rows: usize) -> Option<f64> {
        let fresh = |rows: usize| self.narrow[rows].filter(|cell| self.steps - cell.step < STALE);
        let (at, cell) = (1..=rows.min(MOST_ROWS)).rev().find_map(|at| fresh(at).map(|cell| (at, cell)))?;
        let more = self.wide.map_or(cell.seconds / at as f64 / 2.0, |(per_row, _)| per_row);
        Some(cell.seconds + more * (rows - at) as f64)
    }
}

/// What is known after one more measurement. What disturbs a step makes it longer, so that a shorter one says more.
fn smoothed(known: f64, measured: f64) -> f64 {
    known + (measured - known) / if measured < known { 2.0 } else { 8.0 }
}

/// Steps after which a measurement is forgotten, so that one that was disturbed does not last.
const STALE: u64 = 512;
/// Rows from which a step counts as bound by computing.
const WIDE: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Batch, Capacity, Limits};
    use crate::policy::StepEnergy;
    use crate::scheduler::StepLimits;

    /// A machine that reads weights in `read` and computes a row in `row` seconds.
    fn costs(read: f64, row: f64) -> StepCosts {
        let mut costs = StepCosts::new();
        costs.observe(256, 256.0 * row);
        for rows in [1, 2, 4, 8].repeat(30) {
            costs.observe(rows, read.max(rows as f64 * row));
        }
        costs
    }

    fn rounded(costs: &StepCosts, rows: usize) -> Option<f64> {
        costs.seconds(rows).map(|seconds| (seconds * 1e3).round() / 1e3)
    }

    #[test]
    fn what_was_measured_is_believed_and_the_rest_lies_on_a_line() {
        let costs = costs(10.0, 1.0);
        assert_eq!(rounded(&costs, 1), Some(10.0));
        assert_eq!(rounded(&costs, 3), Some(11.0), "one row more than two");
        assert_eq!(rounded(&costs, 20), Some(22.0));
        assert_eq!(StepCosts::new().seconds(1), None);
        let mut short = StepCosts::new();
        short.observe(1, 10.0);
        assert_eq!(short.seconds(3), Some(20.0), "half a step for a row until something is known");
    }

    #[test]
    fn old_measurements_are_forgotten() {
        let mut costs = costs(10.0, 1.0);
        (0..STALE).for_each(|_| costs.observe(1, 10.0));
        assert_eq!(rounded(&costs, 8), Some(17.0), "not the 10 of long ago");
    }

    #[test]
    fn one_disturbed_step_does_not_end_guessing() {
        let mut costs = costs(10.0, 1.0);
        costs.observe(3, 500.0);
        assert!(costs.seconds(3).is_some_and(|seconds| seconds < 80.0));
        (0..8).for_each(|_| costs.observe(3, 10.0));
        assert!(costs.seconds(3).is_some_and(|seconds| seconds < 10.5));
    }

    /// How many guesses a step of `sequences` that repeat themselves gets.
    fn guesses(sequences: u64, speculate: Speculate, costs: StepCosts, acceptance: f64) -> usize {
        guesses_of(sequences, speculate, costs, acceptance, |scheduler| scheduler)
    }

    fn guesses_of(
        sequences: u64,
        speculate: Speculate,
        costs: StepCosts,
        acceptance: f64,
        adjust: impl Fn(Scheduler<()>) -> Scheduler<()>,
    ) -> usize {
        let capacity =
            Capacity { blocks: 400, block_len: 4, max_rows: 64, max_seqs: 64, max_outputs: 64, max_len: 100 };
        let limits = StepLimits::new(&capacity, 64, 64, &Limits::paged(4));
        let kv = Kv::new(&capacity, &Limits::paged(4), true);
        let mut s = adjust(Scheduler::new(limits, kv, speculate));
        for id in 0..sequences {
            s.add(Box::new(Sequence::new((0, id), vec![7; 1], 90, 4, ())));
        }
        s.plan(&mut Batch::default(), |_| {});
        for sequence in s.running_mut() {
            sequence.tokens.extend([7; 3]);
            (sequence.computed, sequence.chunk) = (2, 1);
            sequence.acceptance = acceptance;
        }
        s.commit();
        s.costs = costs;
        s.plan(&mut Batch::default(), |_| {}).drafted
    }

    #[test]
    fn guesses_are_made_while_they_pay() {
        let auto = |sequences, read, p| guesses(sequences, Speculate::Auto, costs(read, 1.0), p);
        assert_eq!(auto(1, 10.0, 0.9), 7, "eight rows cost what one costs");
        assert_eq!(
            (auto(1, 3.0, 0.9), auto(1, 3.0, 0.5)),
            (3, 1),
            "each row from the third on costs a third of a step"
        );
        assert_eq!(auto(1, 10.0, 0.02), 0, "what is never right is not guessed");
        assert_eq!(auto(1, 1.0, 0.9), 0, "every row costs as much as the first");
        assert_eq!(auto(32, 10.0, 1.0), 0, "the batch is large");
        assert!(auto(4, 10.0, 0.9) > 0);
        assert_eq!(guesses(1, Speculate::Auto, StepCosts::new(), 0.9), 0, "nothing is known yet");
    }

    #[test]
    fn joules_decide_where_they_are_known_and_an_operating_point_says_when_to_stop() {
        let auto = |sequences, energy: Option<StepEnergy>, most: usize| {
            guesses_of(sequences, Speculate::Auto, costs(10.0, 1.0), 0.9, |scheduler| {
                let mut scheduler = scheduler.guess_up_to(most);
                scheduler.weigh(energy);
                scheduler
            })
        };
        assert_eq!(auto(1, None, usize::MAX), 7, "eight rows take as long as one");
        // They cost as many joules as eight steps, however long they take.
        let rows = StepEnergy { fixed: 0.0, per_row: 1.0, per_second: 0.0 };
        assert_eq!(auto(1, Some(rows), usize::MAX), 0);
        // A step costs the same whatever its rows.
        let steps = StepEnergy { fixed: 1.0, per_row: 0.0, per_second: 0.0 };
        assert_eq!(auto(1, Some(steps), usize::MAX), MOST_DRAFTS);
        assert_eq!((auto(2, None, 1), auto(2, None, 2) > 0), (0, true));
    }

    #[test]
    fn a_number_is_taken_as_it_is_and_off_is_off() {
        assert_eq!(guesses(1, Speculate::UpTo(4), StepCosts::new(), 0.0), 4);
        assert_eq!(guesses(3, Speculate::UpTo(4), StepCosts::new(), 0.0), 12);
        assert_eq!(guesses(30, Speculate::UpTo(4), StepCosts::new(), 0.0), 2, "as many rows as a step may have");
        assert_eq!(guesses(1, Speculate::Off, costs(10.0, 1.0), 1.0), 0);
    }

    #[test]
    fn a_sequence_learns_from_what_was_looked_at() {
        let mut sequence = Sequence::new((0, 0), vec![1], 4, 4, ());
        sequence.drafts = vec![1, 2, 3];
        sequence.learn(1);
        let once = 0.5 + 0.5 / 8.0;
        assert_eq!(sequence.acceptance, once - once / 8.0, "the third was not looked at");
        sequence.learn(3);
        assert!(sequence.acceptance > once);
    }
}
