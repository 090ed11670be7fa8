//! A device that has failed is left: another executor takes its sequences over, with what they have written so far.
//!
//! Nothing that was told is told again: a sequence keeps its tokens and its sampler's state, as it does when it gives up its
//! cache, and the new executor computes them once more.

use std::time::Instant;

use super::Worker;
use crate::backend::{Executor, Masks, StepError, StepOutput};
use crate::engine::outputs::{roomy_batch, roomy_output};
use crate::engine::{EngineConfig, Shared, late};
use crate::kv::Kv;
use crate::policy::Pace;
use crate::request::RequestError;
use crate::scheduler::StepLimits;

impl Worker {
    /// What a step's error is to requests; notes whether it is the device's.
    pub(super) fn failed(&mut self, error: StepError) -> RequestError {
        self.lost |= matches!(error, StepError::Device(_) | StepError::Status { .. });
        let what = error.to_string();
        match error {
            StepError::Status { told, .. } => RequestError::Device { what, told },
            _ => RequestError::Step(what),
        }
    }

    /// Goes on with what stands by, where the device has failed and there is something.
    pub(super) fn move_on(&mut self, error: RequestError, shared: &Shared) -> Result<(), RequestError> {
        let Some(standby) = self.standby.take().filter(|_| self.lost) else { return Err(error) };
        // Loading is no step that hangs.
        self.stats.step_started = None;
        self.publish(shared);
        let found = standby(&error).and_then(|(executor, config)| match config.validate(self.vocab) {
            Ok(()) => Ok((executor, config)),
            Err(error) => Err(error.to_string()),
        });
        match found {
            Ok((executor, config)) => {
                self.take_over(executor, config, shared);
                let _ = shared.moved.set(error.to_string()); // nothing stands by twice
                Ok(())
            }
            Err(why) => Err(RequestError::Step(format!("{error}; and what was to go on cannot: {why}"))),
        }
    }

    fn take_over(&mut self, executor: Box<dyn Executor>, config: EngineConfig, shared: &Shared) {
        // What was put off for the step that failed, and who ended within it.
        for i in (0..self.scheduler.running().len()).rev() {
            if self.scheduler.running()[i].job.end.is_some() {
                let sequence = self.scheduler.discard_running(i);
                self.ended.push(sequence);
            }
        }
        self.deliver(shared);
        let capacity = &config.capacity;
        let limits = StepLimits::new(capacity, config.token_budget, config.prefill_chunk, &config.limits);
        self.scheduler.move_to(limits, Kv::new(capacity, &config.limits, config.prefix_cache));
        self.metering.move_to(executor.cost_model(), executor.cores());
        self.workers = executor.workers();
        self.pace = Pace::new(config.objective, self.workers, config.thrifty_workers);
        self.batch = roomy_batch(&config, self.vocab);
        self.again = roomy_batch(&config, self.vocab);
        // Who returns logits alone says nothing of it.
        (self.output, self.answered) = (StepOutput::default(), roomy_output(&config));
        self.late = late::room(capacity.max_seqs, Masks::words_for(self.vocab));
        self.stats.blocks_total = capacity.blocks;
        self.idle_since = None;
        self.lost = false;
        (self.executor, self.config) = (executor, config);
        self.metering.waited(Instant::now(), self.stats.generated_tokens);
        self.publish(shared);
    }
}
