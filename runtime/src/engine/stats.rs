//! What an engine has done so far.
//!
//! Invariant: counters never decrease; gauges describe the moment after the last step.

use std::time::{Duration, Instant};

use super::energy::EnergyStats;

/// A snapshot of an engine's figures. The time of a step that holds both prefill and decode rows is split by rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineStats {
    /// Steps run.
    pub steps: u64,
    /// Rows run, recomputed ones included.
    pub rows: u64,
    /// Rows that a device computed beside them, to fill its buckets.
    pub padded_rows: u64,
    /// Rows of prompts, and of whole sequences after a preemption.
    pub prefill_tokens: u64,
    /// Time of their steps.
    pub prefill_seconds: f64,
    /// Rows that continued a sequence by its newest token.
    pub decode_tokens: u64,
    /// Time of their steps, and of the guesses beside them.
    pub decode_seconds: f64,
    /// Time spent between the executor's steps: scheduling, sampling, text, events.
    pub host_seconds: f64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Times that guesses for a sequence were checked.
    pub drafts: u64,
    /// Tokens that were guessed and run.
    pub drafted_tokens: u64,
    /// Of these, tokens that were the ones to come.
    pub accepted_tokens: u64,
    /// Tokens drawn from candidates although others might have been drawn.
    pub renormalised: u64,
    /// Prompt tokens that were looked for in the cache: all but those of prompts that are scored.
    pub looked_up_tokens: u64,
    /// Prompt tokens that were in the cache already and were not run.
    pub cached_tokens: u64,
    /// Steps that were run again because the device was busy, without the sequences that it refused, or for rows whose masks were
    /// made too late.
    pub retried_steps: u64,
    /// Times a sequence gave up its cache.
    pub preemptions: u64,
    /// Requests that were answered, cancelled ones included.
    pub finished: u64,
    /// Requests that were cancelled or ran out of time.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Prompt tokens of the requests that wait for their first step.
    pub queued_tokens: usize,
    /// Requests that wait.
    pub queued: usize,
    /// Of these, requests that had started before.
    pub preempted: usize,
    /// Requests that run.
    pub running: usize,
    /// Cache blocks in use.
    pub blocks_used: usize,
    /// Cache blocks that are not in use and can be found again by what they hold.
    pub blocks_idle: usize,
    /// Cache blocks there are.
    pub blocks_total: usize,
    /// Energy and CPU time, as of the last reading.
    pub energy: EnergyStats,
    pub(super) step_started: Option<Instant>,
}

impl EngineStats {
    pub(super) fn new(blocks_total: usize) -> Self {
        EngineStats {
            steps: 0,
            rows: 0,
            padded_rows: 0,
            prefill_tokens: 0,
            prefill_seconds: 0.0,
            decode_tokens: 0,
            decode_seconds: 0.0,
            host_seconds: 0.0,
            generated_tokens: 0,
            drafts: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            renormalised: 0,
            looked_up_tokens: 0,
            cached_tokens: 0,
            retried_steps: 0,
            preemptions: 0,
            finished: 0,
            cancelled: 0,
            failed: 0,
            queued_tokens: 0,
            queued: 0,
            preempted: 0,
            running: 0,
            blocks_used: 0,
            blocks_idle: 0,
            blocks_total,
            energy: EnergyStats::default(),
            step_started: None,
        }
    }

    /// How long the executor has been busy with the step that is running, for a watchdog.
    pub fn step_running(&self) -> Option<Duration> {
        self.step_started.map(|start| start.elapsed())
    }
}
