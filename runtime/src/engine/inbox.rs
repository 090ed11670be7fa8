//! The bounded queue between clients and the engine thread.
//!
//! Invariant: under its lock a request is either refused or owned by the engine; after [`Inbox::fail`] none is accepted.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::request::{Control, EventSink, Reply, Request, RequestError, SubmitError};

/// Locks; the data behind these locks is valid at any point where a thread could have panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An accepted request on its way to the engine thread.
pub struct Submission {
    pub id: u64,
    pub request: Request,
    pub reply: Reply,
    pub submitted: Instant,
}

/// What a client keeps of an accepted request.
pub struct Accepted {
    pub id: u64,
    pub control: Arc<Control>,
}

/// Whether the engine goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Open,
    /// Finish what is in flight.
    Closed,
    /// Fail what is in flight.
    Aborted,
    /// The thread has ended by this.
    Failed(RequestError),
}

/// The queue.
pub struct Inbox {
    phase: Phase,
    arrived: Vec<Submission>,
    next_id: u64,
    /// Requests that wait for their first step, here and in the scheduler, and their prompt tokens.
    requests: usize,
    tokens: usize,
    /// Of these requests, how many are whose.
    clients: BTreeMap<u64, usize>,
    max_requests: usize,
    max_tokens: usize,
}

impl Inbox {
    pub fn new(max_requests: usize, max_tokens: usize) -> Self {
        Inbox {
            phase: Phase::Open,
            arrived: Vec::new(),
            next_id: 0,
            requests: 0,
            tokens: 0,
            clients: BTreeMap::new(),
            max_requests,
            max_tokens,
        }
    }

    pub fn push(&mut self, request: Request, sink: Box<dyn EventSink>) -> Result<Accepted, SubmitError> {
        match &self.phase {
            Phase::Open => {}
            Phase::Closed | Phase::Aborted => return Err(SubmitError::Closed),
            Phase::Failed(error) => return Err(SubmitError::Stopped(error.clone())),
        }
        let tokens = self.tokens.saturating_add(request.prompt.len());
        if self.requests >= self.max_requests || (self.requests > 0 && tokens > self.max_tokens) {
            return Err(SubmitError::Overloaded {
                requests: self.requests,
                tokens: self.tokens,
                max_requests: self.max_requests,
                max_tokens: self.max_tokens,
            });
        }
        let (id, control) = (self.next_id, Arc::new(Control::new(&request)));
        self.next_id += 1;
        self.requests += 1;
        self.tokens = tokens;
        *self.clients.entry(request.client).or_default() += 1;
        self.arrived.push(Submission {
            id,
            request,
            reply: Reply::new(sink, control.clone()),
            submitted: Instant::now(),
        });
        Ok(Accepted { id, control })
    }

    /// Moves what has arrived to `out` and says whether to go on.
    pub fn take(&mut self, out: &mut Vec<Submission>) -> Phase {
        out.append(&mut self.arrived);
        self.phase.clone()
    }

    /// A request of `client` with a prompt of `tokens` waits no longer for its first step.
    pub fn left_queue(&mut self, client: u64, tokens: usize) {
        self.requests -= 1;
        self.tokens -= tokens;
        if let Some(count) = self.clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(&client);
            }
        }
    }

    /// Requests of `clients` that wait.
    pub fn queued_of(&self, clients: RangeInclusive<u64>) -> usize {
        self.clients.range(clients).map(|(_, count)| count).sum()
    }

    pub fn queued(&self) -> usize {
        self.requests
    }

    pub fn queued_tokens(&self) -> usize {
        self.tokens
    }

    pub fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
    }

    pub fn abort(&mut self) {
        if !matches!(self.phase, Phase::Failed(_)) {
            self.phase = Phase::Aborted;
        }
    }

    /// Accepts nothing any more because of `error`; returns what had arrived.
    pub fn fail(&mut self, error: RequestError) -> Vec<Submission> {
        self.phase = Phase::Failed(error);
        (self.requests, self.tokens) = (0, 0);
        self.clients.clear();
        std::mem::take(&mut self.arrived)
    }

    pub fn failure(&self) -> Option<&RequestError> {
        match &self.phase {
            Phase::Failed(error) => Some(error),
            _ => None,
        }
    }
}
