//! Continuous batching: many requests, one model, one thread.
//!
//! [`Engine`] is a handle to the thread that owns the [`Executor`]. Each step the thread takes new requests in, drops
//! cancelled ones, lets the scheduler fill the one reused batch, runs it and samples. Where the executor computes by itself
//! ([`Limits::overlaps`]) it sends the events of the last step, takes requests in and makes masks meanwhile. In a step
//! without arrivals and departures the engine's side allocates nothing but what leaves it: the events' text and
//! log-probabilities and the channel's own nodes, outside `submit` and `collect`.
//!
//! Invariant: every accepted request gets exactly one terminal event, also when the executor fails, the thread panics or
//! the engine is shut down.

use std::num::NonZero;
use std::ops::RangeInclusive;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::backend::{Capacity, Executor, Limits};
use crate::policy::Objective;
use crate::request::{CancelToken, EventSink, Request, RequestError, RequestHandle, SubmitError};

mod doorbell;
mod energy;
mod figures;
mod inbox;
mod job;
mod late;
mod metering;
mod outputs;
mod sampler;
mod stats;
mod stop;
mod worker;

#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;

pub use crate::scheduler::{MOST_DRAFTS, Speculate};
pub(crate) use doorbell::Doorbell;
pub use energy::{Character, Energy, EnergySource, EnergyStats, Later, Metered, Reading, RequestEnergy, Utilised};
pub use figures::EngineFigures;
use inbox::{Inbox, lock};
use metering::Metering;
pub use stats::EngineStats;

/// How an engine schedules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// What the executor was loaded for.
    pub capacity: Capacity,
    /// Rows of a step at most: what bounds the time between two tokens of a running request.
    pub token_budget: usize,
    /// Rows of one sequence in a step at most.
    pub prefill_chunk: usize,
    /// Requests that may wait for their first step.
    pub max_queue: usize,
    /// Prompt tokens of the requests that may wait for their first step; one request may exceed it alone.
    pub max_queued_tokens: usize,
    /// Limit of [`Request::logprobs`] and [`Request::prompt_logprobs`].
    pub max_logprobs: usize,
    /// Rows of prompt logits of a request that may lie in its channel unread.
    pub max_unread_rows: usize,
    /// Whether requests start behind what the cache holds of their prompts.
    pub prefix_cache: bool,
    /// Whether tokens are guessed and checked several at a time. No effect where the backend cannot ([`Limits::drafts`]).
    pub speculate: Speculate,
    /// Sequences beyond which [`Speculate::Auto`] does not guess.
    pub speculate_sequences: usize,
    /// Whether steps wait for company.
    pub objective: Objective,
    /// Threads whose tokens cost the fewest joules, if that was measured; for [`Objective::TokensPerJoule`].
    pub thrifty_workers: Option<NonZero<usize>>,
    /// How long the end of a request that wants its energy waits for the meters.
    pub energy_wait: Duration,
    /// What the backend can do.
    pub limits: Limits,
}

impl EngineConfig {
    /// Whole capacity per step, chunks of at most 512 rows, a queue of 1024 requests, a prefix cache, and a backend without
    /// restrictions.
    pub fn new(capacity: Capacity) -> Self {
        EngineConfig {
            capacity,
            token_budget: capacity.max_rows,
            prefill_chunk: capacity.max_rows.min(512),
            max_queue: 1024,
            max_queued_tokens: 1 << 20,
            max_logprobs: 20,
            max_unread_rows: 128,
            prefix_cache: true,
            speculate: Speculate::Off,
            speculate_sequences: usize::MAX,
            objective: Objective::Latency,
            thrifty_workers: None,
            energy_wait: Duration::from_millis(250),
            limits: Limits::paged(capacity.block_len),
        }
    }

    fn validate(&self, vocab: usize) -> Result<(), StartError> {
        let capacity = &self.capacity;
        let positive = [
            ("vocab", vocab),
            ("capacity.blocks", capacity.blocks),
            ("capacity.block_len", capacity.block_len),
            ("capacity.max_rows", capacity.max_rows),
            ("capacity.max_seqs", capacity.max_seqs),
            ("capacity.max_outputs", capacity.max_outputs),
            ("capacity.max_len", capacity.max_len),
            ("token_budget", self.token_budget),
            ("prefill_chunk", self.prefill_chunk),
            ("max_queue", self.max_queue),
            ("max_unread_rows", self.max_unread_rows),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(StartError::Zero { field });
            }
        }
        if !self.limits.paged {
            let classes = &self.limits.classes;
            let rows: usize = classes.iter().map(|class| class.rows).sum();
            let longest = classes.last().map_or(0, |class| class.max_len);
            let ordered = classes.is_sorted_by_key(|class| class.max_len);
            if rows != capacity.blocks || longest > capacity.block_len || !ordered {
                return Err(StartError::Rows { rows, longest, blocks: capacity.blocks, block_len: capacity.block_len });
            }
        }
        // Slots, positions, rows and ids are u32 in a batch.
        let slots = capacity.blocks.checked_mul(capacity.block_len);
        let widths = [
            ("capacity.blocks * capacity.block_len", slots),
            ("capacity.max_len", Some(capacity.max_len)),
            ("capacity.max_rows", Some(capacity.max_rows)),
            ("vocab", Some(vocab)),
        ];
        for (field, value) in widths {
            if value.is_none_or(|value| u32::try_from(value).is_err()) {
                return Err(StartError::TooLarge { field });
            }
        }
        Ok(())
    }
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A size that must be positive.
    #[error("{field} is 0")]
    Zero {
        /// Field of the configuration.
        field: &'static str,
    },
    /// A size that does not fit into the batch's 32-bit indices.
    #[error("{field} exceeds 32 bits")]
    TooLarge {
        /// Field of the configuration.
        field: &'static str,
    },
    /// The capacity does not fit the backend's rows.
    #[error(
        "{rows} cache rows of up to {longest} tokens, in order of their length, are not the {blocks} of up to {block_len} \
         that the executor was loaded for"
    )]
    Rows {
        /// Rows of all classes.
        rows: usize,
        /// Tokens of the longest class.
        longest: usize,
        /// `capacity.blocks`.
        blocks: usize,
        /// `capacity.block_len`.
        block_len: usize,
    },
    /// The thread could not be had.
    #[error("cannot start the engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a shutdown did not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// The executor does not come back.
    #[error("a step has been running for {0:?}")]
    StepRunning(Duration),
}

/// A handle to a running engine. Clones share it; when the last one is dropped the engine accepts nothing more and its
/// thread ends after the requests in flight.
#[derive(Clone)]
pub struct Engine {
    owner: Arc<Owner>,
}

/// Loads what goes on where the device has failed for good, once, on the engine's thread; it is told the failure. What was
/// asked of the first executor must be possible for the second: sequences are as long, and no request is checked again.
pub type Standby = Box<dyn FnOnce(&RequestError) -> Result<(Box<dyn Executor>, EngineConfig), String> + Send>;

/// Where the newest description of the meters is.
type Describe = dyn Fn() -> Option<Arc<serde_json::Value>> + Send + Sync;

/// What all handles share; its drop closes the engine.
struct Owner {
    shared: Arc<Shared>,
    config: EngineConfig,
    vocab: usize,
    meters: Box<Describe>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What handles and thread share.
struct Shared {
    inbox: Mutex<Inbox>,
    doorbell: Arc<Doorbell>,
    stats: Mutex<EngineStats>,
    figures: Arc<EngineFigures>,
    ended: Doorbell,
    /// Why another executor goes on.
    moved: OnceLock<String>,
}

impl Engine {
    /// Starts the thread that owns `executor`, a model with a vocabulary of `vocab` tokens. Joules are unknown.
    pub fn start(executor: Box<dyn Executor>, vocab: usize, config: EngineConfig) -> Result<Engine, StartError> {
        Engine::start_metered(executor, vocab, config, None)
    }

    /// The same with what knows the energy that the engine uses.
    pub fn start_metered(
        executor: Box<dyn Executor>,
        vocab: usize,
        config: EngineConfig,
        source: Option<Box<dyn EnergySource>>,
    ) -> Result<Engine, StartError> {
        Engine::start_with_standby(executor, vocab, config, source, None)
    }

    /// The same with what goes on where the executor's device fails: requests keep what they have and lose nothing.
    pub fn start_with_standby(
        executor: Box<dyn Executor>,
        vocab: usize,
        config: EngineConfig,
        source: Option<Box<dyn EnergySource>>,
        standby: Option<Standby>,
    ) -> Result<Engine, StartError> {
        config.validate(vocab)?;
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox::new(config.max_queue, config.max_queued_tokens)),
            doorbell: Arc::new(Doorbell::default()),
            stats: Mutex::new(EngineStats::new(config.capacity.blocks)),
            figures: Arc::new(EngineFigures::new()),
            ended: Doorbell::default(),
            moved: OnceLock::new(),
        });
        let metering = {
            let (costs, cores) = (executor.cost_model(), executor.cores());
            let (doorbell, figures) = (shared.doorbell.clone(), shared.figures.clone());
            Metering::begin(costs, cores, source, doorbell, figures, config.energy_wait)?
        };
        let meters = Box::new(metering.description());
        let thread = {
            let (shared, config) = (shared.clone(), config.clone());
            std::thread::Builder::new()
                .name("njoule-engine".into())
                .spawn(move || worker::run(executor, vocab, config, metering, standby, &shared))?
        };
        Ok(Engine { owner: Arc::new(Owner { shared, config, vocab, meters, thread: Mutex::new(Some(thread)) }) })
    }

    /// Queues a request; never blocks.
    pub fn submit(&self, request: Request) -> Result<RequestHandle, SubmitError> {
        let (sender, events) = channel();
        let (id, token) = self.submit_to(request, Box::new(sender))?;
        Ok(RequestHandle { id, events, token, ended: false })
    }

    /// Queues a request whose events go to `sink`: for clients that do not wait on a channel. Returns its number and what
    /// cancels it.
    pub fn submit_to(&self, request: Request, sink: Box<dyn EventSink>) -> Result<(u64, CancelToken), SubmitError> {
        self.owner.check(&request)?;
        let shared = &self.owner.shared;
        let accepted = lock(&shared.inbox).push(request, sink)?;
        shared.doorbell.ring();
        let token = CancelToken { control: accepted.control, doorbell: shared.doorbell.clone() };
        Ok((accepted.id, token))
    }

    /// Figures as of the last step.
    pub fn stats(&self) -> EngineStats {
        let mut stats = *lock(&self.owner.shared.stats);
        let inbox = lock(&self.owner.shared.inbox);
        stats.queued = inbox.queued() + stats.preempted;
        stats.queued_tokens = inbox.queued_tokens();
        stats
    }

    /// Distributions over steps and requests.
    pub fn figures(&self) -> &EngineFigures {
        &self.owner.shared.figures
    }

    /// The meters behind [`EngineStats::energy`] as their source describes them; `None` before the first reading.
    pub fn meters(&self) -> Option<Arc<serde_json::Value>> {
        (self.owner.meters)()
    }

    /// Requests of `clients` that wait for their first step.
    pub fn queued_of(&self, clients: RangeInclusive<u64>) -> usize {
        lock(&self.owner.shared.inbox).queued_of(clients)
    }

    /// The configuration that the engine was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.owner.config
    }

    /// Size of the model's vocabulary.
    pub fn vocab(&self) -> usize {
        self.owner.vocab
    }

    /// Why the engine has stopped, if it has failed.
    pub fn failure(&self) -> Option<RequestError> {
        lock(&self.owner.shared.inbox).failure().cloned()
    }

    /// Why what stood by has taken over, if it has.
    pub fn moved(&self) -> Option<&str> {
        self.owner.shared.moved.get().map(String::as_str)
    }

    /// Accepts no more requests; those in flight go on.
    pub fn close(&self) {
        self.owner.close();
    }

    /// Closes the engine, lets the requests in flight run for at most `grace`, fails the rest with
    /// [`RequestError::ShutDown`] and waits for the thread. A step that hangs is given ten more seconds.
    pub fn shutdown(&self, grace: Duration) -> Result<(), ShutdownError> {
        let shared = &self.owner.shared;
        self.owner.close();
        if !shared.ended.wait(Some(Instant::now() + grace)) {
            lock(&shared.inbox).abort();
            shared.doorbell.ring();
            let patience = Instant::now() + LAST_STEP;
            if !shared.ended.wait(Some(patience)) {
                let running = lock(&shared.stats).step_running().unwrap_or_default();
                return Err(ShutdownError::StepRunning(running));
            }
        }
        if let Some(thread) = lock(&self.owner.thread).take() {
            // The thread catches its panics and reports them to the requests.
            let _ = thread.join();
        }
        Ok(())
    }
}

impl Owner {
    fn close(&self) {
        lock(&self.shared.inbox).close();
        self.shared.doorbell.ring();
    }

    /// Refuses what can never run.
    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let capacity = &self.config.capacity;
        let (prompt, max_new) = (request.prompt.len(), request.max_new_tokens);
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let total = prompt.saturating_add(max_new);
        let limits = &self.config.limits;
        let row = if limits.paged { usize::MAX } else { limits.classes.last().map_or(0, |class| class.max_len) };
        let max_len = capacity.max_len.min(row);
        if total > max_len {
            return Err(SubmitError::TooLong { prompt, max_new, max_len });
        }
        // The last token is never run, so it needs no slot.
        let needed = (total - max_new.min(1)).div_ceil(capacity.block_len);
        if needed > capacity.blocks {
            return Err(SubmitError::NeverFits { prompt, max_new, needed, blocks: capacity.blocks });
        }
        if request.min_tokens > max_new {
            return Err(SubmitError::MinTokens { min: request.min_tokens, max: max_new });
        }
        let ids = [("prompt", &request.prompt), ("stop_token_ids", &request.stop_token_ids)];
        for (field, ids) in ids {
            if let Some(&id) = ids.iter().find(|id| !self.has(**id)) {
                let vocab = self.vocab;
                return Err(SubmitError::TokenId { field, id, vocab });
            }
        }
        let alternatives = [("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)];
        for (field, asked) in alternatives {
            if let Some(asked) = asked.filter(|asked| *asked > self.config.max_logprobs) {
                let limit = self.config.max_logprobs;
                return Err(SubmitError::Logprobs { field, asked, limit });
            }
        }
        self.check_backend(request)?;
        if request.stop.iter().any(String::is_empty) {
            return Err(SubmitError::EmptyStop);
        }
        if !request.stop.is_empty() && request.text.is_none() {
            return Err(SubmitError::StopWithoutText);
        }
        Ok(request.sampling.validate(self.vocab)?)
    }

    /// Refuses what the backend cannot do.
    fn check_backend(&self, request: &Request) -> Result<(), SubmitError> {
        let limits = &self.config.limits;
        let scores = [("prompt_logits", request.prompt_logits), ("prompt_logprobs", request.prompt_logprobs.is_some())];
        if let Some((field, _)) = scores.into_iter().find(|(_, asked)| *asked && !limits.logits) {
            return Err(SubmitError::NoLogits { field });
        }
        let Some(candidates) = limits.candidates else {
            return Ok(());
        };
        if let Some(asked) = request.logprobs.filter(|asked| *asked > candidates) {
            return Err(SubmitError::Logprobs { field: "logprobs", asked, limit: candidates });
        }
        if request.mask.is_some() && !limits.masks {
            return Err(SubmitError::NoMasks);
        }
        let mut forbidden = Vec::new();
        if request.min_tokens > 0 {
            let eos = if request.ignore_eos { &[][..] } else { &request.eos_ids };
            forbidden.extend(eos.iter().chain(&request.stop_token_ids));
        }
        let asked = request.sampling.biases(&forbidden, self.vocab).len();
        if asked > limits.biases {
            return Err(SubmitError::Biases { asked, limit: limits.biases });
        }
        Ok(())
    }

    fn has(&self, id: u32) -> bool {
        usize::try_from(id).is_ok_and(|id| id < self.vocab)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

/// How long a shutdown waits for the step that is running when the grace is over.
const LAST_STEP: Duration = Duration::from_secs(10);
