//! The engine thread: requests in, steps, events out.
//!
//! Invariant: between steps every accepted request is in the inbox or in the scheduler, and whatever ends the loop answers
//! both.

use std::any::Any;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::inbox::{Phase, Submission, lock};
use super::job::{End, Job, Spent};
use super::late::room;
use super::metering::{Metering, Rows, Wait};
use super::outputs::{roomy_batch, roomy_output};
use super::stats::EngineStats;
use super::{EngineConfig, Shared, Standby};
use crate::backend::{Batch, Executor, Masks, StepOutput};
use crate::kv::Kv;
use crate::policy::{Decision, Pace, Waiter, Waiting};
use crate::request::{Event, FinishReason, RequestError};
use crate::sampler::Sampler;
use crate::scheduler::{Key, Plan, Scheduler, Sequence, StepLimits};

mod moving;
mod steer;
mod step;

/// Body of the engine thread.
pub fn run(
    executor: Box<dyn Executor>,
    vocab: usize,
    config: EngineConfig,
    metering: Metering,
    standby: Option<Standby>,
    shared: &Shared,
) {
    // Rings when all is over, whatever happens.
    struct Ended<'a>(&'a Shared);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.ended.ring();
        }
    }
    let _ended = Ended(shared);
    let mut worker = Worker::new(executor, vocab, config, metering);
    worker.standby = standby;
    let result = catch_unwind(AssertUnwindSafe(|| worker.serve(shared)));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(panic) => Some(RequestError::Panicked(message(&*panic))),
    };
    worker.fail_all(shared, failure);
}

/// What the thread owns.
struct Worker {
    executor: Box<dyn Executor>,
    config: EngineConfig,
    scheduler: Scheduler<Job>,
    sampler: Sampler,
    vocab: usize,
    stats: EngineStats,
    /// Reused from step to step.
    batch: Batch,
    output: StepOutput,
    /// The mask of a row behind a draft.
    allowed: Vec<u32>,
    /// Masks that are made while the step runs, by its outputs.
    late: Masks,
    /// Running sequences for which those were not enough, and single rows once more, by their place in the batch.
    undecided: Vec<usize>,
    spans: Vec<usize>,
    again: Batch,
    answered: StepOutput,
    arrived: Vec<Submission>,
    #[allow(clippy::vec_box)] // the scheduler hands sequences over in the boxes it keeps them in
    ended: Vec<Box<Sequence<Job>>>,
    metering: Metering,
    /// Sequences that have ended and wait for their energy, with their ends.
    settling: Vec<Settling>,
    /// Whether somebody found no place in the last step.
    crowded: bool,
    /// No request's deadline is earlier.
    earliest: Option<Instant>,
    leaving: Vec<(Key, FinishReason)>,
    /// End of the last step.
    idle_since: Option<Instant>,
    /// When steps start, and how many threads share them.
    pace: Pace,
    /// Threads that share the next step.
    workers: NonZero<usize>,
    /// What goes on where the executor's device fails.
    standby: Option<Standby>,
    /// It has failed.
    lost: bool,
}

/// A sequence that has ended, and what it waits for.
struct Settling {
    sequence: Box<Sequence<Job>>,
    ended: Instant,
    wait: Wait,
}

impl Worker {
    fn new(executor: Box<dyn Executor>, vocab: usize, config: EngineConfig, metering: Metering) -> Self {
        let capacity = &config.capacity;
        let limits = StepLimits::new(capacity, config.token_budget, config.prefill_chunk, &config.limits);
        let kv = Kv::new(capacity, &config.limits, config.prefix_cache);
        let workers = executor.workers();
        Worker {
            executor,
            scheduler: Scheduler::new(limits, kv, config.speculate).guess_up_to(config.speculate_sequences),
            sampler: Sampler::new(vocab),
            vocab,
            stats: EngineStats::new(capacity.blocks),
            batch: roomy_batch(&config, vocab),
            output: StepOutput::default(),
            allowed: Vec::with_capacity(Masks::words_for(vocab)),
            late: room(capacity.max_seqs, Masks::words_for(vocab)),
            undecided: Vec::with_capacity(capacity.max_seqs),
            spans: Vec::with_capacity(capacity.max_seqs),
            again: roomy_batch(&config, vocab),
            answered: roomy_output(&config),
            arrived: Vec::new(),
            ended: Vec::new(),
            metering,
            settling: Vec::new(),
            crowded: false,
            earliest: None,
            leaving: Vec::new(),
            idle_since: None,
            pace: Pace::new(config.objective, workers, config.thrifty_workers),
            workers,
            standby: None,
            lost: false,
            config,
        }
    }

    /// Runs until the engine is closed and empty, or aborted, or a step fails.
    fn serve(&mut self, shared: &Shared) -> Result<(), RequestError> {
        loop {
            // Taken before looking, so that a ring during the look is not lost.
            let rung = shared.doorbell.take();
            let phase = self.receive(shared);
            if phase == Phase::Aborted {
                return Ok(());
            }
            self.reap(shared, rung);
            self.settle(shared);
            self.look_at_readers();
            if let Some(until) = self.pace(phase == Phase::Open) {
                self.deliver(shared);
                self.publish(shared);
                self.idle_since = None;
                let until = self.next_wake().map_or(until, |wake| wake.min(until));
                shared.doorbell.wait(Some(until));
                self.account_waiting();
                continue;
            }
            let plan = self.plan(shared);
            let before = std::mem::replace(&mut self.crowded, self.scheduler.waiting().next().is_some());
            if plan == Plan::default() {
                if self.crowded && !before && self.scheduler.running().iter().any(|s| s.stands) {
                    continue;
                }
                self.deliver(shared);
                self.publish(shared);
                if phase == Phase::Closed && self.scheduler.is_empty() && self.settling.is_empty() {
                    self.metering.end(&shared.doorbell, self.stats.generated_tokens);
                    self.publish(shared);
                    return Ok(());
                }
                self.idle_since = None;
                shared.doorbell.wait(self.next_wake());
                self.account_waiting();
                continue;
            }
            if let Err(error) = self.step(plan, shared) {
                self.move_on(error, shared)?;
            }
        }
    }

    /// When somebody who waits has to be looked at without a ring.
    fn next_wake(&self) -> Option<Instant> {
        let settled = self.settling.iter().map(|s| s.wait.until());
        settled.chain(self.next_deadline()).min()
    }

    /// When the next step should start, if it is to wait for company. At the end nobody else can come.
    fn pace(&mut self, open: bool) -> Option<Instant> {
        if !self.pace.may_wait() {
            return None;
        }
        match self.decide() {
            Decision::Wait(until) if open => Some(until),
            Decision::Wait(_) => None,
            Decision::Run(workers) => {
                if workers != self.workers {
                    self.workers = workers;
                    self.executor.set_workers(workers);
                }
                None
            }
        }
    }

    fn decide(&self) -> Decision {
        let waiter = |s: &Sequence<Job>| {
            let rows = s.pending();
            let state = match s.job.started {
                None => Waiting::Start,
                Some(_) if rows == 1 && s.generated() > 0 => Waiting::Token,
                Some(_) => Waiting::Prompt,
            };
            Waiter { since: s.job.since(), rows, state }
        };
        let running = self.scheduler.running();
        let waiters =
            running.iter().filter(|s| !s.stands).map(|s| waiter(s)).chain(self.scheduler.waiting().map(waiter));
        let room = self.scheduler.places() - running.len();
        self.pace.decide(Instant::now(), waiters, room, self.config.token_budget)
    }

    /// Takes new requests in.
    fn receive(&mut self, shared: &Shared) -> Phase {
        let phase = lock(&shared.inbox).take(&mut self.arrived);
        for submission in self.arrived.drain(..) {
            self.scheduler.add(Job::sequence(submission, &self.config, self.vocab));
        }
        phase
    }

    /// Sends the events of the last step that were put off.
    fn deliver(&mut self, shared: &Shared) {
        for sequence in self.scheduler.running_mut() {
            sequence.job.deliver();
        }
        if !self.ended.is_empty() {
            self.answer(shared, Instant::now());
        }
    }

    /// Takes in what the meters say, and answers those who have waited for it.
    fn settle(&mut self, shared: &Shared) {
        self.metering.settle(self.stats.generated_tokens);
        if self.settling.is_empty() {
            return;
        }
        let now = Instant::now();
        self.publish(shared);
        for i in (0..self.settling.len()).rev() {
            let Some(energy) = self.metering.take(&self.settling[i].wait, now) else { continue };
            let Settling { mut sequence, ended, .. } = self.settling.remove(i);
            let spent = Spent { energy: Some(energy), ..Spent::from(&*sequence) };
            sequence.job.finish(spent, ended);
        }
    }

    /// Ends what was cancelled or has run out of time. Waiting requests are looked at when somebody rang or a deadline has
    /// passed.
    fn reap(&mut self, shared: &Shared, rung: bool) {
        let (now, before) = (Instant::now(), self.ended.len());
        for i in (0..self.scheduler.running().len()).rev() {
            if let Some(reason) = self.scheduler.running()[i].job.given_up(now) {
                let mut sequence = self.scheduler.remove_running(i);
                sequence.job.end = Some(End::Finished(reason, None));
                self.ended.push(sequence);
            }
        }
        let due = self.earliest.is_some_and(|deadline| now >= deadline);
        if rung || due {
            let given_up = |s: &Sequence<Job>| s.job.given_up(now).map(|reason| (Key::of(s), reason));
            let mut leaving = std::mem::take(&mut self.leaving);
            leaving.extend(self.scheduler.waiting().filter_map(given_up));
            for (key, reason) in leaving.drain(..) {
                let Some(mut sequence) = self.scheduler.remove_waiting(key) else { continue };
                if sequence.job.started.is_none() {
                    lock(&shared.inbox).left_queue(sequence.client, sequence.prompt_len);
                }
                sequence.job.end = Some(End::Finished(reason, None));
                self.ended.push(sequence);
            }
            self.leaving = leaving;
            self.earliest = self.next_deadline();
        }
        if self.ended.len() > before {
            self.stats.cancelled += (self.ended.len() - before) as u64;
            self.answer(shared, now);
        }
    }

    /// Lets nobody get further ahead of its reader than it may, unless others wait for its place: then it is to get done, and what
    /// it has made is read in larger pieces.
    fn look_at_readers(&mut self) {
        for sequence in self.scheduler.running_mut() {
            let control = sequence.job.reply.control();
            sequence.stands = !self.crowded && control.is_full();
            if sequence.job.prompt_logits {
                sequence.prompt_allowance = self.config.max_unread_rows.saturating_sub(control.unread_rows());
            }
        }
    }

    fn plan(&mut self, shared: &Shared) -> Plan {
        let (stats, looks) = (&mut self.stats, self.config.prefix_cache);
        let plan = self.scheduler.plan(&mut self.batch, |sequence| {
            if sequence.job.started.is_none() {
                sequence.job.started = Some(Instant::now());
                lock(&shared.inbox).left_queue(sequence.client, sequence.prompt_len);
                if looks && !sequence.scores() {
                    stats.looked_up_tokens += sequence.prompt_len as u64;
                    stats.cached_tokens += sequence.cached as u64;
                }
            }
        });
        self.steer();
        plan
    }

    /// Books the time in which a step waited for company, or for readers: it is theirs who hold a slot.
    fn account_waiting(&mut self) {
        for sequence in self.scheduler.running() {
            if let Some(account) = &sequence.job.account {
                self.metering.holds(account, sequence.computed < sequence.prompt_len);
            }
        }
        self.metering.waited(Instant::now(), self.stats.generated_tokens);
    }

    /// Books the work of the step that began at `start`, before its rows are committed.
    fn account(&mut self, start: Instant, now: Instant) {
        for sequence in self.scheduler.running_mut() {
            let run = sequence.chunk;
            if run == 0 {
                continue;
            }
            let kept = sequence.kept_rows();
            let Sequence { computed, prompt_len, outputs, .. } = &**sequence;
            let rows = Rows { computed: *computed, run, kept, outputs: outputs.len(), prompt_len: *prompt_len };
            self.metering.rows(&mut sequence.job.account, rows);
        }
        let padding = self.executor.padding();
        self.stats.padded_rows += padding.rows as u64;
        self.metering.step(start, now, self.stats.generated_tokens, padding.cost);
    }

    /// Sends the terminal events of `ended`, after the figures that they should be seen in; of those that want their energy,
    /// when it is known.
    fn answer(&mut self, shared: &Shared, now: Instant) {
        for sequence in &self.ended {
            match sequence.job.end {
                Some(End::Finished(..)) => self.stats.finished += 1,
                _ => self.stats.failed += 1,
            }
        }
        self.publish(shared);
        for mut sequence in self.ended.drain(..) {
            let job = &mut sequence.job;
            // Nobody gets what these have made.
            let wasted = !matches!(job.end, Some(End::Finished(reason, _)) if reason != FinishReason::Cancelled);
            match self.metering.leave(job.account.take(), wasted, job.wants_energy, now) {
                Some(wait) => self.settling.push(Settling { sequence, ended: now, wait }),
                None => {
                    let spent = Spent::from(&*sequence);
                    sequence.job.finish(spent, now);
                }
            }
        }
    }

    fn count(&mut self, plan: Plan, seconds: f64) {
        let stats = &mut self.stats;
        let decode = (plan.decode + plan.drafted) as f64;
        let rows = decode + plan.prefill as f64;
        stats.step_started = None;
        stats.steps += 1;
        stats.rows += self.batch.rows() as u64;
        stats.prefill_tokens += plan.prefill as u64;
        stats.decode_tokens += plan.decode as u64;
        stats.prefill_seconds += seconds * plan.prefill as f64 / rows;
        stats.decode_seconds += seconds * decode / rows;
        self.pace.observe(self.workers, self.batch.rows(), seconds);
        let energy = self.metering.step_energy().filter(|_| self.pace.may_wait());
        // Guesses are to save what the objective is about; steps of few threads are not to be taken for dear ones.
        let counts_cpu = self.pace.may_wait() && energy.is_none();
        let spent = if counts_cpu { seconds * self.workers.get() as f64 } else { seconds };
        self.scheduler.observe(self.batch.rows(), self.batch.outputs.len(), spent);
        self.pace.weigh(energy);
        self.scheduler.weigh(energy);
    }

    fn publish(&mut self, shared: &Shared) {
        self.stats.preemptions = self.scheduler.preemptions();
        self.stats.preempted = self.scheduler.preempted_waiting();
        self.stats.running = self.scheduler.running().len();
        self.stats.blocks_used = self.scheduler.kv().used();
        self.stats.blocks_idle = self.scheduler.kv().idle();
        self.stats.energy = self.metering.stats();
        *lock(&shared.stats) = self.stats;
    }

    fn next_deadline(&self) -> Option<Instant> {
        let running = self.scheduler.running().iter().map(|s| s.job.deadline);
        let waiting = self.scheduler.waiting().map(|s| s.job.deadline);
        running.chain(waiting).flatten().min()
    }

    /// Answers everything that is still here when the loop has ended.
    fn fail_all(&mut self, shared: &Shared, failure: Option<RequestError>) {
        let error = failure.clone().unwrap_or(RequestError::ShutDown);
        let arrived = {
            let mut inbox = lock(&shared.inbox);
            match failure {
                Some(failure) => inbox.fail(failure),
                None => {
                    let mut arrived = Vec::new();
                    inbox.abort();
                    inbox.take(&mut arrived);
                    arrived
                }
            }
        };
        self.stats.step_started = None;
        let mut ended: Vec<_> = self.ended.drain(..).chain(self.scheduler.drain()).collect();
        self.stats.failed += (ended.len() + arrived.len() + self.arrived.len()) as u64;
        self.publish(shared);
        // These had their ends; their energy will not be known.
        for Settling { mut sequence, ended, .. } in self.settling.drain(..) {
            let spent = Spent::from(&*sequence);
            sequence.job.finish(spent, ended);
        }
        for sequence in &mut ended {
            // One that ended in the very step that failed keeps its own end.
            let failed = || End::Failed(error.clone());
            sequence.job.end.get_or_insert_with(failed);
            let spent = Spent::from(&**sequence);
            sequence.job.finish(spent, Instant::now());
        }
        for mut submission in self.arrived.drain(..).chain(arrived) {
            submission.reply.send(Event::Failed(error.clone()));
        }
    }
}

/// The text of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
