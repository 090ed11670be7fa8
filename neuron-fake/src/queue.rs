//! Scheduled runs of a core: taken in order by a thread of their own. A run's status word is written before it counts as
//! completed, and not a moment earlier; its tensors are free by then.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::execute::Job;
use crate::misuse;
use crate::runtime::Runtime;
use crate::status::{self, Answer, refuse};

/// A core's queue.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Upper 16 bits of its sequence numbers.
    unit: u64,
    depth: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(Job, StatusWord)>,
    /// Of the last that was scheduled, and of the last that completed; all below have.
    scheduled: u64,
    completed: u64,
    /// Whom to tell, by number.
    eventfds: HashMap<u64, i32>,
    worker: bool,
    closed: bool,
}

/// Where a run's status goes.
#[derive(Debug)]
struct StatusWord(*mut u32);

// SAFETY: the caller of nrta_execute_schedule keeps the word valid until the run completes, whatever thread writes it.
unsafe impl Send for StatusWord {}

impl Queue {
    pub(crate) fn new(core: u32, depth: usize) -> Queue {
        Queue { unit: u64::from(core) + 1, depth, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Takes a run, or says that there are too many.
    ///
    /// # Safety
    ///
    /// `status` stays valid for writes until the run has completed.
    pub(crate) unsafe fn schedule(
        self: &Arc<Queue>,
        runtime: &Arc<Runtime>,
        job: impl FnOnce() -> Answer<Job>,
        status: *mut u32,
    ) -> Answer<u64> {
        let mut state = self.lock();
        if state.scheduled - state.completed >= self.depth as u64 {
            return refuse(status::QUEUE_FULL, format!("{} runs are in flight", self.depth));
        }
        state.waiting.push_back((job()?, StatusWord(status)));
        state.scheduled += 1;
        let seq = (self.unit << NUMBER_BITS) | state.scheduled;
        if !std::mem::replace(&mut state.worker, true) {
            let (queue, runtime) = (self.clone(), runtime.clone());
            let spawned =
                std::thread::Builder::new().name("neuron-fake".to_owned()).spawn(move || queue.work(&runtime));
            if let Err(error) = spawned {
                state.worker = false;
                state.scheduled -= 1;
                state.waiting.pop_back();
                return refuse(status::RESOURCE, format!("no thread: {error}"));
            }
        }
        self.changed.notify_all();
        Ok(seq)
    }

    /// Whether it has completed; None if no run of this queue has that number.
    pub(crate) fn is_completed(&self, seq: u64) -> Option<bool> {
        let state = self.lock();
        self.number(&state, seq).map(|n| n <= state.completed)
    }

    /// Tells the eventfd when the run completes, at once if it has; -1 tells nobody. False if there is no such run.
    pub(crate) fn register(&self, seq: u64, eventfd: i32) -> bool {
        let mut state = self.lock();
        let Some(n) = self.number(&state, seq) else { return false };
        match eventfd {
            ..0 => drop(state.eventfds.remove(&n)),
            fd if n <= state.completed => tell(fd),
            fd => drop(state.eventfds.insert(n, fd)),
        }
        true
    }

    /// Runs in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        let state = self.lock();
        state.scheduled - state.completed
    }

    /// Ends the worker once nothing waits.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn number(&self, state: &State, seq: u64) -> Option<u64> {
        let n = seq & ((1 << NUMBER_BITS) - 1);
        (seq >> NUMBER_BITS == self.unit && (1..=state.scheduled).contains(&n)).then_some(n)
    }

    fn work(&self, runtime: &Runtime) {
        let mut state = self.lock();
        loop {
            let Some((job, word)) = state.waiting.pop_front() else {
                if state.closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let answer = job.run(runtime);
            // What it used is free before anybody learns that it is done.
            drop(job);
            let status = crate::runtime::told("nrta_execute_schedule", answer);
            // SAFETY: valid until the run completes, by the caller's word; it is aligned, and nothing else writes it now.
            unsafe { AtomicU32::from_ptr(word.0) }.store(status, Ordering::Release);
            state = self.lock();
            state.completed += 1;
            let number = state.completed;
            if let Some(fd) = state.eventfds.remove(&number) {
                tell(fd);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds one to an eventfd's count.
fn tell(fd: i32) {
    // SAFETY: only written to, and not closed: it stays the caller's. If it is none of the process's, the write fails.
    let mut file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    if let Err(error) = file.write_all(&1u64.to_ne_bytes()) {
        misuse::record(format!("eventfd {fd} takes no count: {error}"));
    }
}

const NUMBER_BITS: u32 = 48;
