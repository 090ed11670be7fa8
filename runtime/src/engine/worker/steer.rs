//! What a step's outputs are for and what their tokens may be: told to the device before it begins, or, where a mask is made
//! while it runs, found out afterwards and told to it once more if need be.

use std::time::Instant;

use super::Worker;
use crate::backend::{Bias, StepError, Wants};
use crate::engine::Shared;
use crate::engine::job::{End, Job};
use crate::engine::late;
use crate::engine::outputs::check_output;
use crate::request::RequestError;
use crate::scheduler::Sequence;

impl Worker {
    /// Says what the outputs of the planned step are for, and what their tokens may be; of some it is said while the step runs.
    pub(super) fn steer(&mut self) {
        let Worker { scheduler, batch, late, config, vocab, .. } = self;
        late.clear();
        let scored = scheduler.running().iter().any(|s| s.chunk > 0 && s.scores());
        batch.wants = if scored { Wants::Logits } else { Wants::Tokens };
        let biased = !scored && config.limits.candidates.is_some();
        // The order in which the scheduler writes rows.
        for single in [true, false] {
            let here = |s: &&mut Box<Sequence<Job>>| s.samples_now() && (s.chunk == 1) == single;
            for sequence in scheduler.running_mut().iter_mut().filter(here) {
                let (at, index) = (sequence.sampled().start, sequence.generated());
                // Rows of a step fit into 32 bits, which the engine checks at its start.
                let output = at as u32;
                if biased {
                    let biases = sequence.job.biases(index).iter();
                    batch.biases.extend(biases.map(|&(id, value)| Bias { output, id, value }));
                }
                if sequence.job.mask.is_none() {
                    continue;
                }
                let decodes = single && sequence.generated() > 0 && sequence.drafts.is_empty();
                sequence.job.late.now = biased && config.limits.overlaps && decodes && sequence.job.late.is_ready();
                if sequence.job.late.now {
                    continue;
                }
                let allowed = batch.masks.push(output);
                let generated = &sequence.tokens[sequence.prompt_len..];
                if let Err(error) = sequence.job.fill_mask(generated, *vocab, allowed) {
                    // The step is planned: its row is run once more and nothing is drawn from it.
                    allowed.fill(u32::MAX);
                    sequence.job.end = Some(End::Failed(RequestError::Mask(error)));
                }
            }
        }
    }

    /// Makes the masks that the running step was begun without, once.
    pub(super) fn make_late(&mut self) {
        let Worker { scheduler, late, vocab, .. } = self;
        for sequence in scheduler.running_mut().iter_mut().filter(|s| s.samples_now() && s.job.late.now) {
            let at = sequence.sampled().start;
            if late.of(at).is_some() {
                continue;
            }
            let allowed = late.push(at as u32);
            let generated = &sequence.tokens[sequence.prompt_len..];
            if let Err(error) = sequence.job.fill_mask(generated, *vocab, allowed) {
                sequence.job.end = Some(End::Failed(RequestError::Mask(error)));
            }
        }
    }

    /// Counts what the device has answered to the last step, where that has `failed`.
    pub(super) fn note_device_error(&self, shared: &Shared, failed: bool) {
        if let Some(code) = self.executor.error_code().filter(|_| failed) {
            shared.figures.device_error(code);
        }
    }

    /// Runs the undecided rows once more, with their masks, and goes on with them. Says when they were done.
    pub(super) fn run_again(&mut self, shared: &Shared) -> Result<Instant, RequestError> {
        self.stats.step_started = Some(Instant::now());
        self.publish(shared);
        let mut busy = false;
        // Sequences of the batch that the device has refused now.
        let mut refused = Vec::new();
        while !self.undecided.is_empty() {
            self.again.clear();
            self.spans.clear();
            let Worker { scheduler, batch, late, undecided, spans, again, .. } = self;
            let mut asking = undecided.iter().map(|i| &scheduler.running()[*i]).peekable();
            for (span, seq) in batch.seqs.iter().enumerate() {
                if seq.rows.len() > 1 || refused.contains(&span) {
                    continue;
                }
                spans.push(span);
                let asks = asking.next_if(|sequence| sequence.span == span);
                let wanted = asks.map(|sequence| {
                    let at = sequence.sampled().start;
                    (at, late.of(at).unwrap_or_default())
                });
                late::again(batch, span, wanted, again);
            }
            self.stats.retried_steps += 1;
            let result = self.executor.submit(&self.again).and_then(|()| self.executor.collect(&mut self.answered));
            self.note_device_error(shared, result.is_err());
            match result {
                Ok(()) => break,
                Err(StepError::Busy(_)) if !busy => busy = true,
                Err(StepError::OutOfBounds { seqs, what }) => {
                    let before = refused.len();
                    refused.extend(seqs.iter().filter_map(|k| self.spans.get(*k)));
                    if refused.len() == before {
                        return Err(RequestError::Step(what));
                    }
                    let gone = |s: &&mut Box<Sequence<Job>>| s.chunk > 0 && refused.contains(&s.span);
                    for sequence in self.scheduler.running_mut().iter_mut().filter(gone) {
                        sequence.job.end = Some(End::Failed(RequestError::Refused(what.clone())));
                    }
                    self.undecided.retain(|i| self.scheduler.running()[*i].job.end.is_none());
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
        let now = Instant::now();
        self.stats.step_started = None;
        self.idle_since = Some(now);
        if !self.undecided.is_empty() {
            check_output(&self.answered, &self.again, self.vocab)?;
        }
        for k in 0..self.undecided.len() {
            self.advance(self.undecided[k], now, Some(k));
        }
        Ok(now)
    }
}
