//! What all connections share: the phase of the server's life, the model, the figures, and who may come in.
//!
//! Invariant: [`Phase`] only moves forward, and a request that was admitted is answered.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use njoule_runtime::Speculate;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::auth::{Hosts, Keys};
use crate::config::ServerConfig;
use crate::cors::Origins;
use crate::energy::Answers;
use crate::error::ApiError;
use crate::mailbox::Mailbox;
use crate::metrics::{Metrics, Scrape};
use crate::model::Model;
use crate::orca::Load;
use crate::replicas::{Claim, Replicas};
use crate::tenant::{Counts, Tenant};

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The model is not there yet.
    Loading,
    /// New requests are taken.
    Ready,
    /// Those that run may finish, new ones are refused.
    Draining,
    /// The engine is lost.
    Dead,
    /// Everything ends now.
    Ending,
}

/// What all connections share.
pub struct App {
    /// Settings.
    pub config: ServerConfig,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// What the last answers have used.
    pub(crate) answers: Answers,
    pub(crate) keys: Keys,
    pub(crate) hosts: Hosts,
    pub(crate) origins: Origins,
    model: OnceLock<Arc<Model>>,
    /// Who answers instead of a model of this process.
    replicas: OnceLock<Arc<Replicas>>,
    phase: watch::Sender<Phase>,
    mailboxes: Mutex<Vec<Weak<Mailbox>>>,
    preparing: AtomicUsize,
    /// Of these requests, those of each tenant.
    preparing_by: Counts,
    in_flight: AtomicUsize,
    /// Bytes of request bodies in memory.
    buffered: AtomicUsize,
    /// Who has it encodes a large text.
    large: Arc<Semaphore>,
    idle: Notify,
    ids: RandomState,
    next_id: AtomicUsize,
}

impl App {
    /// The state of a server that listens, on the loopback interface if `loopback`.
    pub fn new(config: ServerConfig, loopback: bool) -> App {
        App {
            preparing_by: Counts::default(),
            answers: Answers::default(),
            keys: Keys::new(&config.api_keys),
            hosts: Hosts::new(&config.allowed_hosts, loopback),
            origins: Origins::new(&config.allowed_origins),
            config,
            metrics: Arc::default(),
            model: OnceLock::new(),
            replicas: OnceLock::new(),
            phase: watch::Sender::new(Phase::Loading),
            mailboxes: Mutex::default(),
            preparing: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            buffered: AtomicUsize::new(0),
            large: Arc::new(Semaphore::new(1)),
            idle: Notify::new(),
            ids: RandomState::new(),
            next_id: AtomicUsize::new(0),
        }
    }

    /// Takes the model; requests are answered from now on.
    pub fn serve_model(&self, model: Model) {
        if self.model.set(Arc::new(model)).is_ok() {
            self.advance(Phase::Ready);
        }
    }

    /// Takes the replicas; requests are forwarded from now on.
    pub(crate) fn forward_to(&self, replicas: Arc<Replicas>) {
        let _ = self.replicas.set(replicas);
    }

    /// The replicas, where there are any.
    pub(crate) fn replicas(&self) -> Option<&Arc<Replicas>> {
        self.replicas.get()
    }

    /// The model, once it is there.
    pub fn model(&self) -> Option<&Arc<Model>> {
        self.model.get()
    }

    /// Moves on to `phase`, never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = *now < phase;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// Where the server is.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the server is at `phase` or beyond, and says where.
    pub async fn reached(&self, phase: Phase) -> Phase {
        // The sender lives as long as `self`.
        self.phase.subscribe().wait_for(|now| *now >= phase).await.map_or(Phase::Ending, |now| *now)
    }

    /// The model, if new requests are taken at all.
    pub fn open(&self) -> Result<&Arc<Model>, ApiError> {
        let model = match (self.phase(), self.model.get()) {
            (Phase::Ready, Some(model)) => model,
            (Phase::Loading | Phase::Ready, _) => return Err(ApiError::loading()),
            (Phase::Draining | Phase::Ending, _) => {
                self.metrics.rejected_draining.add(1);
                return Err(ApiError::draining());
            }
            (Phase::Dead, _) => return Err(lost()),
        };
        match model.engine().failure() {
            Some(failure) => Err(failure.into()),
            None => Ok(model),
        }
    }

    /// Lets a request for an answer in, or refuses it at once. A tenant that has nothing waiting is let in also where others
    /// have filled the queue.
    pub fn admit(self: &Arc<Self>, tenant: Tenant) -> Result<(Arc<Model>, Preparing), ApiError> {
        let model = self.open()?.clone();
        let (preparing, own) = Preparing::new(self, tenant);
        let stats = model.engine().stats();
        let waiting = stats.queued + self.preparing.load(Ordering::Relaxed);
        // Who finds a free place waits for nobody.
        let free = free_places(&model, stats.running);
        let most = self.config.max_queued_requests.saturating_add(free);
        let is_first = || {
            let most = tenant.most(self.config.max_queued_requests).saturating_add(free);
            waiting <= most && model.engine().queued_of(tenant.clients()) + own <= 1
        };
        if waiting > most && !is_first() {
            self.metrics.rejected_requests.add(1);
            return Err(ApiError::overloaded(self.retry_after(&model, waiting)));
        }
        Ok((model, preparing))
    }

    /// Refuses prompts of `tokens` that would make the queue too long, unless they are the first of a tenant.
    pub fn admit_tokens(&self, model: &Model, tokens: usize, tenant: Tenant) -> Result<(), ApiError> {
        let stats = model.engine().stats();
        let queued = stats.queued_tokens;
        let too_long = queued > 0 && queued.saturating_add(tokens) > self.config.max_queued_tokens;
        if too_long && model.engine().queued_of(tenant.clients()) > 0 {
            self.metrics.rejected_tokens.add(1);
            return Err(ApiError::overloaded(self.retry_after(model, stats.queued)));
        }
        Ok(())
    }

    /// When the queue will have gone down, about.
    fn retry_after(&self, model: &Model, waiting: usize) -> Duration {
        let together = model.engine().config().capacity.max_seqs.max(1);
        let seconds = self.metrics.service_seconds() * waiting as f64 / together as f64;
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0))
    }

    /// Whether a load balancer may send requests here.
    pub fn is_ready(&self) -> bool {
        if let Some(replicas) = self.replicas() {
            return self.phase() == Phase::Ready && replicas.has_room(Claim::Place(None));
        }
        self.phase() == Phase::Ready
            && self.model.get().is_some_and(|model| {
                let stats = model.engine().stats();
                let most = self.config.max_queued_requests.saturating_add(free_places(model, stats.running));
                model.engine().failure().is_none() && stats.queued < most
            })
    }

    /// Whether the model is loaded and the engine alive, also while draining.
    pub fn is_healthy(&self) -> bool {
        if let Some(replicas) = self.replicas() {
            return replicas.is_healthy();
        }
        let alive = self.model.get().is_some_and(|model| model.engine().failure().is_none());
        alive && matches!(self.phase(), Phase::Ready | Phase::Draining)
    }

    /// The figures as text.
    pub fn scrape(&self) -> String {
        let model = self.model.get();
        let config = model.map(|model| model.engine().config());
        let scrape = Scrape {
            model: match (model, self.replicas()) {
                (Some(model), _) => model.name(),
                (None, Some(replicas)) => replicas.model(),
                (None, None) => "",
            },
            stats: model.map(|model| model.engine().stats()),
            figures: model.map(|model| model.engine().figures()),
            meters: model.filter(|_| self.config.tells_meters).and_then(|model| model.engine().meters()),
            block_len: config.map_or(0, |config| config.capacity.block_len),
            speculates: config.is_some_and(|c| c.speculate != Speculate::Off && c.limits.can_draft()),
            prefix_cache: config.is_some_and(|config| config.prefix_cache),
            preparing: self.preparing.load(Ordering::Relaxed),
            in_flight: self.in_flight(),
            ready: self.is_ready(),
            load_seconds: model.map_or(0.0, |model| model.load().as_secs_f64()),
            compile_seconds: model.and_then(|model| model.compile()).map(|time| time.as_secs_f64()),
        };
        let own = self.metrics.write(&scrape, self.config.metric_names);
        match self.replicas() {
            Some(replicas) => replicas.figures(&own),
            None => own,
        }
    }

    /// How full it is; with replicas, all together as of their last figures.
    pub(crate) fn load(&self) -> Option<Load> {
        if let Some(replicas) = self.replicas() {
            return replicas.load_report();
        }
        let stats = self.model.get()?.engine().stats();
        let waiting = stats.queued + self.preparing.load(Ordering::Relaxed);
        Some(Load { cache: stats.blocks_used as f64 / stats.blocks_total.max(1) as f64, waiting: waiting as f64 })
    }

    /// A name that no other request has had.
    pub fn unique(&self) -> String {
        let next = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:08x}", self.ids.hash_one(next), next & 0xffff_ffff)
    }

    /// Remembers a mailbox so that it can be ended from outside.
    pub fn register(&self, mailbox: &Arc<Mailbox>) {
        let mut all = self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|mailbox| mailbox.strong_count() > 0);
        }
        all.push(Arc::downgrade(mailbox));
    }

    /// Ends every answer in the making by `error`.
    pub fn fail_all(&self, error: &ApiError) {
        if let Some(replicas) = self.replicas() {
            replicas.abort();
        }
        let all = std::mem::take(&mut *self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner));
        all.iter().filter_map(Weak::upgrade).for_each(|mailbox| mailbox.fail(error.clone()));
    }

    /// Counts a request until the guard is dropped, which is after its last byte was handed to the connection.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Requests that are being answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Waits until nothing is being answered.
    pub async fn idle(&self) {
        loop {
            // Made before looking, so that a change during the look is not lost.
            let changed = self.idle.notified();
            if self.in_flight() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Waits until a body of `bytes` may be read and its text encoded, which takes fifty times its memory: large ones one after the
    /// other, small ones at once. Its place must be kept until then.
    pub async fn turn(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes < LARGE {
            return None;
        }
        // Never closed.
        self.large.clone().acquire_owned().await.ok()
    }

    /// Room for `bytes` of a request body.
    pub fn buffer(self: &Arc<Self>, bytes: usize) -> Result<Buffered, ApiError> {
        let mut buffered = Buffered { app: self.clone(), bytes: 0 };
        buffered.grow(bytes)?;
        Ok(buffered)
    }
}

/// Places beside `running` sequences.
fn free_places(model: &Model, running: usize) -> usize {
    model.engine().config().capacity.max_seqs.saturating_sub(running)
}

/// The engine hangs or has failed.
pub fn lost() -> ApiError {
    ApiError::engine("engine_error", "the engine has stopped", true)
}

/// A request that is being read and tokenised.
pub struct Preparing {
    app: Arc<App>,
    tenant: Tenant,
}

impl Preparing {
    /// Counts one, and says how many its tenant has now.
    fn new(app: &Arc<App>, tenant: Tenant) -> (Preparing, usize) {
        app.preparing.fetch_add(1, Ordering::Relaxed);
        let own = app.preparing_by.add(tenant);
        (Preparing { app: app.clone(), tenant }, own)
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.app.preparing.fetch_sub(1, Ordering::Relaxed);
        self.app.preparing_by.remove(self.tenant);
    }
}

/// A request that is being answered.
pub struct InFlight(Arc<App>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Bytes of a request body in memory.
pub struct Buffered {
    app: Arc<App>,
    bytes: usize,
}

impl Buffered {
    /// Room for `bytes` more.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        let total = self.app.buffered.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // One alone always fits.
        if total > self.app.config.max_buffered_bodies && total > self.bytes {
            return Err(ApiError::overloaded(Duration::from_secs(1)));
        }
        Ok(())
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.app.buffered.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes of a body that is read alone.
const LARGE: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_bodies_are_read_one_after_the_other_and_small_ones_at_once() {
        let app = App::new(ServerConfig::default(), true);
        let first = app.turn(LARGE).await;
        assert!(first.is_some() && app.turn(LARGE - 1).await.is_none());
        let mut second = std::pin::pin!(app.turn(6 << 20));
        assert!(look(second.as_mut()).await.is_pending());
        drop(first);
        assert!(second.await.is_some());
    }

    /// What a look at it gives.
    async fn look<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> std::task::Poll<T> {
        std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context))).await
    }
}
