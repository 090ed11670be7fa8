//! Distributions of what steps and requests were like, for who scrapes: beside [`EngineStats`](super::EngineStats), which is
//! copied at every step.
//!
//! Invariant: a step writes here without an allocation or a lock; errors of a device, which are no ordinary steps, may.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::histogram::Histogram;

/// What an engine has seen since it was started.
#[derive(Debug)]
pub struct EngineFigures {
    iteration_tokens: Histogram,
    /// By rows, rounded up to a power of two: the place is its exponent.
    steps: Vec<Histogram>,
    request_joules: Histogram,
    device_errors: Mutex<BTreeMap<u32, u64>>,
}

impl EngineFigures {
    pub(super) fn new() -> EngineFigures {
        EngineFigures {
            iteration_tokens: Histogram::new(ITERATION_TOKENS),
            steps: (0..=LARGEST_EXPONENT).map(|_| Histogram::new(STEP_SECONDS)).collect(),
            request_joules: Histogram::new(REQUEST_JOULES),
            device_errors: Mutex::default(),
        }
    }

    /// Tokens of a step: those of prompts that it ran, and those that it generated.
    pub fn iteration_tokens(&self) -> &Histogram {
        &self.iteration_tokens
    }

    /// Seconds of steps by the rows that were computed, those for nobody included, rounded up to a power of two; the last bucket
    /// holds all beyond. Buckets without steps are left out.
    pub fn step_seconds(&self) -> impl Iterator<Item = (usize, &Histogram)> {
        let ran = |steps: &&Histogram| steps.mean().is_some();
        (0..)
            .zip(&self.steps)
            .filter(move |(_, steps)| ran(steps))
            .map(|(exponent, steps)| (1_usize << exponent, steps))
    }

    /// Joules of sequences that have ended, as far as they were known at the reading behind their end.
    pub fn request_joules(&self) -> &Histogram {
        &self.request_joules
    }

    /// What a device has answered instead of doing a step, and how often, by the runtime's code.
    pub fn device_errors(&self) -> Vec<(u32, u64)> {
        let errors = self.device_errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.iter().map(|(code, count)| (*code, *count)).collect()
    }

    /// A step has computed `rows` rows.
    pub(super) fn step(&self, rows: usize, seconds: f64) {
        let exponent = rows.max(1).checked_next_power_of_two().map_or(LARGEST_EXPONENT, |rows| rows.ilog2() as usize);
        self.steps[exponent.min(LARGEST_EXPONENT)].observe(seconds);
    }

    pub(super) fn iteration(&self, tokens: u64) {
        self.iteration_tokens.observe(tokens as f64);
    }

    pub(super) fn request(&self, joules: f64) {
        self.request_joules.observe(joules);
    }

    pub(super) fn device_error(&self, code: u32) {
        *self.device_errors.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }
}

/// Of 16384 rows: more than any step is given unless it is asked for.
const LARGEST_EXPONENT: usize = 14;

/// Those of vLLM 0.32.
const ITERATION_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

const STEP_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

const REQUEST_JOULES: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0,
    1000.0, 2500.0, 5000.0, 10000.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_stand_in_the_bucket_that_holds_their_rows() {
        let figures = EngineFigures::new();
        for rows in [1, 3, 4, 5, 16384, 16385, usize::MAX] {
            figures.step(rows, 0.5);
        }
        let count = |steps: &Histogram| steps.read().0.last().map(|(_, count)| *count);
        let seen: Vec<_> = figures.step_seconds().map(|(rows, steps)| (rows, count(steps))).collect();
        assert_eq!(seen, [(1, Some(1)), (4, Some(2)), (8, Some(1)), (16384, Some(3))]);
    }
}
