//! One step: the executor is given the planned rows, their outputs are sampled and handed on, and who is done ends.
//!
//! Invariant: a step whose execution failed has sampled nothing.

use std::time::Instant;

use super::super::Shared;
use super::super::job::End;
use super::super::outputs::{Row, Sampled, check_output, prompt_outputs, sample};
use super::Worker;
use crate::backend::StepError;
use crate::request::{FinishReason, RequestError};
use crate::scheduler::Plan;

impl Worker {
    /// Runs what was planned, samples, and marks who has ended.
    pub(super) fn step(&mut self, plan: Plan, shared: &Shared) -> Result<(), RequestError> {
        self.metering.begin_step(self.stats.generated_tokens);
        let start = Instant::now();
        if let Some(idle_since) = self.idle_since {
            self.stats.host_seconds += (start - idle_since).as_secs_f64();
        }
        self.stats.step_started = Some(start);
        self.publish(shared);
        let done = self.execute(shared)?;
        let now = Instant::now();
        self.idle_since = Some(now);
        if !done {
            self.stats.step_started = None;
            self.answer(shared, now);
            return Ok(());
        }
        let (seconds, generated) = ((now - start).as_secs_f64(), self.stats.generated_tokens);
        shared.figures.step(self.batch.rows() + self.executor.padding().rows, seconds);
        self.count(plan, seconds);
        if self.pace.may_wait() {
            let sampled = self.scheduler.running().iter().filter(|s| s.samples_now());
            let (mut gap, mut first) = (0.0, 0.0);
            for sequence in sampled {
                let longest = if sequence.generated() > 0 { &mut gap } else { &mut first };
                *longest = f64::max(*longest, now.saturating_duration_since(sequence.job.since()).as_secs_f64());
            }
            self.pace.observe_waits(gap, first);
        }
        check_output(&self.output, &self.batch, self.vocab)?;
        self.undecided.clear();
        for i in 0..self.scheduler.running().len() {
            if self.scheduler.running()[i].chunk > 0 && !self.advance(i, now, None) {
                self.undecided.push(i);
            }
        }
        let now = if self.undecided.is_empty() { now } else { self.run_again(shared)? };
        shared.figures.iteration(plan.prefill as u64 + self.stats.generated_tokens - generated);
        self.account(start, now);
        self.scheduler.commit();
        for i in (0..self.scheduler.running().len()).rev() {
            let sequence = &mut self.scheduler.running_mut()[i];
            let done = sequence.max_tokens == sequence.prompt_len && sequence.computed == sequence.prompt_len;
            if done && sequence.job.end.is_none() {
                let reason = FinishReason::Length;
                sequence.job.end = Some(End::Finished(reason, None));
            }
            let sequence = match sequence.job.end {
                None => continue,
                // Its mask failed, not what it has written.
                Some(End::Failed(RequestError::Mask(_)) | End::Finished(..)) => self.scheduler.remove_running(i),
                Some(End::Failed(_)) => self.scheduler.discard_running(i),
            };
            self.ended.push(sequence);
        }
        if !self.config.limits.overlaps {
            self.deliver(shared);
        }
        Ok(())
    }

    /// Runs the planned step. False if the device refused some of its sequences: these have ended, and the others are to be
    /// planned again, from where they were.
    fn execute(&mut self, shared: &Shared) -> Result<bool, RequestError> {
        let mut again = false;
        loop {
            let mut result = self.executor.submit(&self.batch);
            if result.is_ok() {
                if self.config.limits.overlaps {
                    self.make_late();
                    self.deliver(shared);
                    self.receive(shared);
                }
                result = self.executor.collect(&mut self.output);
            }
            self.note_device_error(shared, result.is_err());
            match result {
                Ok(()) => return Ok(true),
                Err(StepError::Busy(_)) if !again => again = true,
                Err(StepError::OutOfBounds { seqs, what }) if self.refuse(&seqs, &what) => {
                    self.stats.retried_steps += 1;
                    return Ok(false);
                }
                Err(error) => return Err(self.failed(error)),
            }
            self.stats.retried_steps += 1;
        }
    }

    /// Ends the sequences of the batch that the device refused; false if there are none.
    fn refuse(&mut self, seqs: &[usize], what: &str) -> bool {
        let before = self.ended.len();
        for i in (0..self.scheduler.running().len()).rev() {
            let sequence = &mut self.scheduler.running_mut()[i];
            if sequence.chunk > 0 && seqs.contains(&sequence.span) {
                sequence.job.end = Some(End::Failed(RequestError::Refused(what.to_owned())));
                // What its part of the cache holds is not known any more.
                let sequence = self.scheduler.discard_running(i);
                self.ended.push(sequence);
            }
        }
        self.ended.len() > before
    }

    /// Delivers the prompt outputs of running sequence `i` and samples its next token, as far as this step has them, and those
    /// behind it as long as they were guessed right. False if its row says too little, so that it has to be run again; then
    /// `again` is its place in that.
    pub(super) fn advance(&mut self, i: usize, now: Instant, again: Option<usize>) -> bool {
        let Worker { scheduler, sampler, batch, output, stats, config, allowed, late, vocab, .. } = self;
        let sequence = &mut scheduler.running_mut()[i];
        if sequence.job.end.is_some() {
            return true;
        }
        let samples = sequence.samples_now();
        let first = sequence.computed.max(sequence.next_prompt_output);
        let end = (sequence.computed + sequence.chunk).min(sequence.prompt_len);
        if first < end {
            let outputs = sequence.outputs.start..sequence.outputs.start + (end - first);
            if let Err(error) = prompt_outputs(sequence, first, outputs, output, sampler) {
                sequence.job.end = Some(End::Failed(error));
                return true;
            }
            sequence.next_prompt_output = end;
        }
        if !samples {
            return true;
        }
        let mut accepted = 0;
        for (i, at) in sequence.sampled().enumerate() {
            if i > 0 {
                // The token before it was guessed right: its row is what would have been run next.
                allowed.clear();
                if let Err(error) = sequence.job.allow(&sequence.tokens[sequence.prompt_len..], *vocab, allowed) {
                    sequence.job.end = Some(End::Failed(RequestError::Mask(error)));
                    break;
                }
            }
            let row = match again {
                Some(at) => {
                    let (biases, mask) = (self.again.biases_of(at), self.again.masks.of(at));
                    Row { output: &mut self.answered, at, biases, mask, late: false }
                }
                None => {
                    let behind = || Some(&allowed[..]).filter(|mask| !mask.is_empty());
                    let mask = if i == 0 { batch.masks.of(at) } else { behind() };
                    let made = if i == 0 { late.of(at) } else { None };
                    Row { output, at, biases: batch.biases_of(at), mask: mask.or(made), late: made.is_some() }
                }
            };
            match sample(sequence, row, sampler, &mut stats.renormalised) {
                Ok(Sampled::Again) => return false,
                Ok(Sampled::Token(id, logprob)) => {
                    stats.generated_tokens += 1;
                    let index = sequence.generated();
                    sequence.tokens.push(id);
                    let last = sequence.tokens.len() == sequence.max_tokens;
                    sequence.job.take(id, index, last, logprob, now);
                    if !config.limits.overlaps {
                        sequence.job.deliver();
                    }
                    let right = sequence.drafts.get(i) == Some(&id);
                    accepted += usize::from(right);
                    if !right || sequence.job.end.is_some() {
                        break;
                    }
                }
                Err(_) => {
                    let position = sequence.tokens.len() - 1;
                    sequence.job.end = Some(End::Failed(RequestError::NonFiniteLogits { position }));
                    break;
                }
            }
        }
        if !sequence.drafts.is_empty() {
            stats.drafts += 1;
            stats.drafted_tokens += sequence.drafts.len() as u64;
            stats.accepted_tokens += accepted as u64;
            sequence.learn(accepted);
        }
        true
    }
}
