//! A thread that calls the library, so that the caller can stop waiting.
//!
//! `nrt_execute` and loading cannot be cancelled, and a collective waits for its other ranks for ever. A lane bounds the
//! wait, not the call: after [`Error::Hung`] its thread and what it uses are lost, and the process should end.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::run::{Parts, Run};

/// A thread for one core's calls, one at a time.
pub struct Lane {
    name: String,
    jobs: SyncSender<Job>,
    runs: Receiver<(Box<Parts>, Result<(), Error>)>,
    /// What its thread never came back from.
    lost: Option<(String, Duration)>,
}

enum Job {
    Run(Box<Parts>),
    Call(Box<dyn FnOnce() + Send>),
}

impl Lane {
    /// Starts the thread. It ends when the lane is dropped, unless it hangs.
    pub fn new(name: &str) -> Result<Lane, Error> {
        let (jobs, inbox) = sync_channel(1);
        let (outbox, runs) = sync_channel(1);
        let (ready, is_ready) = sync_channel(1);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _ = inbox.recv_timeout(FIRST_WAIT); // nobody can send yet
                let _ = ready.send(()); // nobody there: the lane was not wanted after all
                for job in inbox {
                    match job {
                        Job::Run(mut parts) => {
                            let result = parts.execute();
                            let _ = outbox.send((parts, result)); // nobody there: the lane was dropped
                        }
                        Job::Call(call) => call(),
                    }
                }
            })
            .map_err(|error| Error::System { call: "starting a thread", reason: error.to_string() })?;
        let lane = Lane { name: name.to_owned(), jobs, runs, lost: None };
        is_ready.recv().map_err(|_| lane.ended())?;
        let _ = lane.runs.recv_timeout(FIRST_WAIT); // nothing runs yet
        Ok(lane)
    }

    /// Executes `run` within `limit`: scheduled where the library can, else on the lane's thread. Allocates nothing.
    pub fn execute(&mut self, run: &mut Run, limit: Duration) -> Result<(), Error> {
        self.usable()?;
        if run.can_schedule() {
            run.start()?;
            let result = run.wait(limit);
            if let Err(Error::Hung { what, .. }) = &result {
                self.lost = Some((what.clone(), limit));
            }
            return result;
        }
        if let Err(unsent) = self.jobs.send(Job::Run(run.take()?)) {
            if let Job::Run(parts) = unsent.0 {
                run.give(parts);
            }
            return Err(self.ended());
        }
        let error = match self.runs.recv_timeout(limit) {
            Ok((parts, result)) => {
                run.give(parts);
                return result;
            }
            Err(RecvTimeoutError::Timeout) => self.lose(&format!("a run of model `{}`", run.label()), limit),
            Err(RecvTimeoutError::Disconnected) => self.ended(),
        };
        run.lose(&error);
        Err(error)
    }

    /// Does `work` on the lane's thread and waits for it at most `limit`: for loading, above all.
    pub fn call<T: Send + 'static>(
        &mut self,
        what: &str,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.usable()?;
        let (answer, answered) = sync_channel(1);
        let call = Box::new(move || {
            let _ = answer.send(work()); // nobody there: the wait is over
        });
        self.jobs.send(Job::Call(call)).map_err(|_| self.ended())?;
        match answered.recv_timeout(limit) {
            Ok(value) => Ok(value),
            Err(RecvTimeoutError::Timeout) => Err(self.lose(what, limit)),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }

    fn usable(&self) -> Result<(), Error> {
        match &self.lost {
            None => Ok(()),
            Some((what, limit)) => Err(Error::Hung { what: format!("{what} (earlier)"), limit: *limit }),
        }
    }

    fn lose(&mut self, what: &str, limit: Duration) -> Error {
        let what = format!("{what} on lane `{}`", self.name);
        self.lost = Some((what.clone(), limit));
        Error::Hung { what, limit }
    }

    fn ended(&self) -> Error {
        Error::System { call: "waiting for a lane", reason: format!("the thread of `{}` ended in a panic", self.name) }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("name", &self.name).field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// A thread's first wait on a channel allocates what wakes it. Both sides wait once before there is work, so that it is not in
/// somebody's step: one that finds its message there at once would be left for later.
const FIRST_WAIT: Duration = Duration::from_millis(1);
