//! A model with its two sets, executed again and again: built once per (program, bucket, batch), reused at each step.
//!
//! A run is either executed (the thread blocks in the library, which gives up after NEURON_RT_EXEC_TIMEOUT at best) or,
//! from libnrt 2.31 on, started and waited for. A call that hangs cannot be cancelled, so what a run in flight uses is
//! never freed before its end was seen: a `Run` that is dropped in flight leaks its parts instead.
//!
//! A step allocates nothing here.

use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::bindings as b;
use crate::error::Error;
use crate::library::ScheduleCalls;
use crate::model::Model;
use crate::runtime::failed;
use crate::status::Status;
use crate::tensor_set::TensorSet;

/// A model bound to its inputs and outputs. It may move to another thread and is not shared between threads.
pub struct Run {
    /// Gone only while a lane executes it, and for ever if that hangs.
    parts: Option<Box<Parts>>,
    /// Why it is gone for ever.
    lost: Option<Error>,
    model: String,
    can_schedule: bool,
}

/// What a run in flight uses.
pub(crate) struct Parts {
    model: ManuallyDrop<Arc<Model>>,
    inputs: ManuallyDrop<TensorSet>,
    outputs: ManuallyDrop<TensorSet>,
    /// Written by the library at a scheduled run's end, from a thread of its own; read here with `Acquire`, after the
    /// library said that the run is over.
    word: ManuallyDrop<Arc<AtomicU32>>,
    flight: Option<b::nrta_seq_t>,
    event: ManuallyDrop<Option<OwnedFd>>,
    /// The library has been given `event` and has not signalled it yet: it may write to that number at any time.
    event_armed: bool,
}

impl Run {
    /// Binds them, if the sets hold exactly the model's tensors, each of the right size. For a model whose caches are
    /// updated in place, one tensor stands in both sets.
    pub fn new(model: Arc<Model>, inputs: TensorSet, outputs: TensorSet) -> Result<Run, Error> {
        model.check(&inputs, &outputs)?;
        let (label, can_schedule) = (model.label().to_owned(), model.runtime().library().can_schedule());
        let parts = Parts {
            model: ManuallyDrop::new(model),
            inputs: ManuallyDrop::new(inputs),
            outputs: ManuallyDrop::new(outputs),
            word: ManuallyDrop::new(Arc::new(AtomicU32::new(NOT_WRITTEN))),
            flight: None,
            event: ManuallyDrop::new(None),
            event_armed: false,
        };
        Ok(Run { parts: Some(Box::new(parts)), lost: None, model: label, can_schedule })
    }

    /// Runs it and returns at its end.
    pub fn execute(&mut self) -> Result<(), Error> {
        self.idle()?.execute()
    }

    /// Starts it and returns. Where [`crate::Library::can_schedule`] says so. A full queue is
    /// [`Status::QUEUE_FULL`]: wait for another run, then start again.
    pub fn start(&mut self) -> Result<(), Error> {
        self.idle()?.start()
    }

    /// Whether it is not in flight (any more). The end of a run that failed is its error, once.
    pub fn is_finished(&mut self) -> Result<bool, Error> {
        self.present()?.is_finished()
    }

    /// Waits for the run that was started. After [`Error::Hung`] it is still in flight: it may be waited for again, but
    /// the process should end.
    pub fn wait(&mut self, limit: Duration) -> Result<(), Error> {
        self.present()?.wait(limit)
    }

    /// The model's label.
    pub fn label(&self) -> &str {
        &self.model
    }

    pub(crate) fn can_schedule(&self) -> bool {
        self.can_schedule
    }

    /// Its parts, to execute elsewhere: they come back by `give`, or `lose` says why not.
    pub(crate) fn take(&mut self) -> Result<Box<Parts>, Error> {
        self.idle()?;
        self.parts.take().ok_or_else(|| gone(&self.lost))
    }

    pub(crate) fn give(&mut self, parts: Box<Parts>) {
        self.parts = Some(parts);
    }

    pub(crate) fn lose(&mut self, why: &Error) {
        self.lost = Some(why.clone());
    }

    fn present(&mut self) -> Result<&mut Parts, Error> {
        match &mut self.parts {
            Some(parts) => Ok(parts),
            None => Err(gone(&self.lost)),
        }
    }

    fn idle(&mut self) -> Result<&mut Parts, Error> {
        let parts = self.present()?;
        match parts.flight {
            None => Ok(parts),
            Some(_) => Err(Error::InFlight { model: parts.label().to_owned() }),
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("model", &self.model).field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Parts {
    fn label(&self) -> &str {
        self.model.label()
    }

    pub(crate) fn execute(&mut self) -> Result<(), Error> {
        let library = self.model.runtime().library();
        // SAFETY: all three are live; no other run uses the sets, since they belong to this one, which is not in flight.
        unsafe { library.execute(self.model.raw(), self.inputs.raw(), self.outputs.raw()) }
            .map_err(|status| self.failed("nrt_execute", status))
    }

    fn start(&mut self) -> Result<(), Error> {
        const CALL: &str = "nrta_execute_schedule";
        let calls = self.calls()?;
        self.disarm();
        let (model, inputs, outputs) = (self.model.raw(), self.inputs.raw(), self.outputs.raw());
        let mut seq = 0;
        self.word.store(NOT_WRITTEN, Ordering::Relaxed); // no run is in flight: nobody else looks at it
        let word = self.word.as_ptr();
        // SAFETY: all are live and stay so until the end was seen: `Drop` leaks them otherwise. The library's version
        // is one whose fifth argument is the status word.
        let status =
            unsafe { (calls.schedule)(model.as_ptr(), inputs.as_ptr(), outputs.as_ptr(), QUEUE, word, &raw mut seq) };
        Status(status).ok().map_err(|status| self.failed(CALL, status))?;
        self.flight = Some(seq);
        Ok(())
    }

    fn is_finished(&mut self) -> Result<bool, Error> {
        let Some(seq) = self.flight else { return Ok(true) };
        let mut done = false;
        // SAFETY: the out pointer is to a local; the number is the library's own.
        let status = Status(unsafe { (self.calls()?.is_completed)(seq, &raw mut done) });
        status.ok().map_err(|status| self.failed("nrta_is_completed", status))?;
        // Both: the order in which the library sets them is not documented, and until the word is written it must stay.
        let word = self.word.load(Ordering::Acquire);
        if !done || word == NOT_WRITTEN {
            return Ok(false);
        }
        self.flight = None;
        Status(word).ok().map(|()| true).map_err(|status| self.failed("a scheduled run", status))
    }

    fn wait(&mut self, limit: Duration) -> Result<(), Error> {
        // None is further away than any process lives.
        let deadline = Instant::now().checked_add(limit);
        loop {
            if self.is_finished()? {
                return Ok(());
            }
            let left = deadline.map_or(LONGEST_SLEEP, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Error::Hung { what: format!("a run of model `{}`", self.label()), limit });
            }
            self.sleep(left.min(LONGEST_SLEEP))?;
        }
    }

    /// Sleeps until the library signals the end, or for `most`; without that call, for a moment.
    fn sleep(&mut self, most: Duration) -> Result<(), Error> {
        if !self.arm()? {
            std::thread::sleep(most.min(POLL_PERIOD));
            return Ok(());
        }
        let Some(event) = self.event.as_ref() else { return Ok(()) };
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(most.subsec_nanos()) };
        match poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(Error::System { call: "poll", reason: error.to_string() }),
        }
        self.event_armed = !take_count(event);
        Ok(())
    }

    /// Takes the signal of an earlier run that was seen to end before it came. If it is still to come, that descriptor
    /// is given up, open: a later run must not be woken by it, and the library must not write to another file.
    fn disarm(&mut self) {
        if self.event_armed && !self.event.as_ref().is_some_and(take_count) {
            std::mem::forget(self.event.take());
        }
        self.event_armed = false;
    }

    /// Has the library signal the end of the run in flight, if it can.
    fn arm(&mut self) -> Result<bool, Error> {
        let (Some(register), Some(seq)) = (self.model.runtime().library().0.eventfd, self.flight) else {
            return Ok(false);
        };
        if self.event_armed {
            return Ok(true);
        }
        if self.event.is_none() {
            let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
            *self.event = Some(made.map_err(|error| Error::System { call: "eventfd", reason: error.to_string() })?);
        }
        let Some(event) = self.event.as_ref() else { return Ok(false) };
        // SAFETY: the descriptor stays open while the library may write to it: `Drop` leaks it otherwise.
        self.event_armed = Status(unsafe { register(seq, event.as_raw_fd()) }).is_success();
        Ok(self.event_armed)
    }

    fn calls(&self) -> Result<ScheduleCalls, Error> {
        let runtime = self.model.runtime();
        let found = runtime.library().0.schedule;
        found.ok_or_else(|| runtime.unsupported("scheduling a run", "libnrt 2.31 with nrta_execute_schedule"))
    }

    fn failed(&self, call: &'static str, status: Status) -> Error {
        failed(call, format_args!("model `{}` on {}", self.label(), self.model.core()), status)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // An error of a run that is over is no reason to keep anything; one of asking leaves it in flight.
        let _ = self.is_finished();
        if self.flight.is_some() {
            return;
        }
        if !self.event_armed {
            // SAFETY: dropped here only, once; the library does not write to it any more.
            unsafe { ManuallyDrop::drop(&mut self.event) }
        }
        // SAFETY: dropped here only, once; no run is in flight. Likewise below.
        unsafe { ManuallyDrop::drop(&mut self.inputs) }
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.outputs) }
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.model) }
        // SAFETY: as above; the word was written.
        unsafe { ManuallyDrop::drop(&mut self.word) }
    }
}

/// Why a run's parts are not there.
fn gone(lost: &Option<Error>) -> Error {
    let unknown = || Error::Hung { what: "an earlier run".to_owned(), limit: Duration::ZERO };
    lost.clone().unwrap_or_else(unknown)
}

/// Whether the event had been signalled; it is not afterwards. Never blocks.
fn take_count(event: &OwnedFd) -> bool {
    rustix::io::read(event.as_fd(), &mut [0; 8]).is_ok()
}

/// What the status word holds before the library writes it; no status.
const NOT_WRITTEN: u32 = u32::MAX;
/// The only one that AWS allows.
const QUEUE: i32 = 0;
/// A lost signal costs no more than this. Below a second.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// A decode step takes 5 to 50 ms: this adds at most one per cent, and costs the host nothing worth counting.
const POLL_PERIOD: Duration = Duration::from_micros(50);
