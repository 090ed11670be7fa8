//! A hardware counter as a running total: wraps added, resets and gaps noticed.

use crate::clock::seconds;

/// A counter of fixed width, read from time to time.
#[derive(Clone, Debug)]
pub struct Counter {
    /// What it counts to before it begins again; `None` for one that never does.
    modulus: Option<u64>,
    /// Longest span between two reads in which it can have wrapped at most once.
    safe_s: f64,
    last: Option<(u64, u64)>,
    total: u128,
    wraps: u32,
    ambiguous: u32,
    holes: u32,
}

impl Counter {
    /// A counter that never wraps: going backwards is a reset.
    pub fn endless() -> Counter {
        Counter { modulus: None, safe_s: f64::INFINITY, last: None, total: 0, wraps: 0, ambiguous: 0, holes: 0 }
    }

    /// A counter that wraps at `modulus` and takes at least `safe_s` seconds for it.
    pub fn wrapping(modulus: u64, safe_s: f64) -> Counter {
        Counter { modulus: Some(modulus.max(1)), safe_s, ..Counter::endless() }
    }

    /// Takes a value in. `Err` on a reset (a fall that no wrap explains at the fastest rate): what was counted around it is unknown, and counting goes on from there.
    pub fn advance(&mut self, raw: u64, at_ns: u64) -> Result<(), Reset> {
        let last = self.last.replace((raw, at_ns));
        let Some((before, then)) = last else { return Ok(()) };
        if seconds(then, at_ns) > self.safe_s {
            self.ambiguous += 1;
        }
        let added = match self.modulus.filter(|modulus| raw <= *modulus) {
            _ if raw >= before => raw - before,
            // A wrap takes its time; what falls faster than the source can count began again, unless it fell from the very
            // end to the very beginning, where hardly any reset does.
            Some(modulus)
                if before < modulus
                    && (self.possible(modulus, modulus - before + raw, seconds(then, at_ns))
                        || (modulus - before).max(raw) <= modulus / AT_THE_END) =>
            {
                self.wraps += 1;
                modulus - before + raw
            }
            _ => {
                self.holes += 1;
                return Err(Reset);
            }
        };
        self.total += u128::from(added);
        Ok(())
    }

    /// Whether so many steps fit into so many seconds at the fastest.
    fn possible(&self, modulus: u64, steps: u64, span_s: f64) -> bool {
        steps as f64 <= modulus as f64 / self.safe_s * (span_s + UPDATE_SLACK_S)
    }

    /// Steps since the first value.
    pub fn total(&self) -> u128 {
        self.total
    }

    /// Wraps seen.
    pub fn wraps(&self) -> u32 {
        self.wraps
    }

    /// Reads that came so late that a wrap may be missing.
    pub fn ambiguous(&self) -> u32 {
        self.ambiguous
    }

    /// Resets.
    pub fn holes(&self) -> u32 {
        self.holes
    }
}

/// The counter began again at a place where none wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset;

/// The share of the range on either side of a wrap that is its end and its beginning, as a divisor.
const AT_THE_END: u64 = 1000;

/// A value may be this much older than its reading.
const UPDATE_SLACK_S: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the steps, each shorter than the range: the total is their sum and every wrap is seen.
        #[test]
        fn a_wrap_at_any_point_loses_nothing(
            modulus in 2u64..1 << 40, start in any::<u64>(), steps in prop::collection::vec(any::<u64>(), 1..50),
        ) {
            let mut counter = Counter::wrapping(modulus, 1.0);
            let mut raw = start % modulus;
            counter.advance(raw, 0).unwrap();
            let (mut sum, mut wraps) = (0u128, 0);
            for (i, step) in (1u64..).zip(steps) {
                let step = step % modulus;
                sum += u128::from(step);
                wraps += u32::from(raw + step >= modulus);
                raw = (raw + step) % modulus;
                counter.advance(raw, i * 1_000_000_000).unwrap();
            }
            prop_assert_eq!((counter.total(), counter.wraps(), counter.ambiguous()), (sum, wraps, 0));
        }
    }

    #[test]
    fn a_gap_longer_than_a_wrap_is_flagged() {
        let mut counter = Counter::wrapping(100, 60.0);
        counter.advance(10, 0).unwrap();
        counter.advance(20, 61_000_000_000).unwrap();
        assert_eq!((counter.total(), counter.ambiguous()), (10, 1));
    }

    /// At most 10 steps a second: 99 → 5 within a second is a wrap, 50 → 5 is none.
    #[test]
    fn a_fall_too_fast_for_a_wrap_is_a_reset() {
        let mut counter = Counter::wrapping(100, 10.0);
        counter.advance(99, 0).unwrap();
        counter.advance(5, 1_000_000_000).unwrap();
        counter.advance(50, 2_000_000_000).unwrap();
        assert_eq!(counter.advance(5, 3_000_000_000), Err(Reset));
        assert_eq!((counter.total(), counter.wraps(), counter.holes()), (51, 1, 1));
    }

    /// 100 J across the end of a RAPL range within a millisecond, as only a made-up tree has it.
    #[test]
    fn from_the_very_end_to_the_very_beginning_is_a_wrap_however_fast() {
        let modulus = 262_143_328_850;
        let mut counter = Counter::wrapping(modulus, 262.0);
        counter.advance(modulus - 10_000_000, 0).unwrap();
        counter.advance(90_000_000, 1_000_000).unwrap();
        assert_eq!((counter.total(), counter.wraps()), (100_000_000, 1));
        // From elsewhere, or to elsewhere, it is none.
        counter.advance(modulus / 2, 600_000_000_000).unwrap();
        assert_eq!(counter.advance(5, 601_000_000_000), Err(Reset));
    }

    #[test]
    fn a_reset_is_an_error_and_counting_goes_on() {
        let mut counter = Counter::endless();
        counter.advance(50, 0).unwrap();
        assert_eq!(counter.advance(5, 1), Err(Reset));
        counter.advance(8, 2).unwrap();
        assert_eq!((counter.total(), counter.holes()), (3, 1));
    }
}
