//! A command that is run for each reading: in bounded time, and, for meters that several threads share, without their lock.
//!
//! Invariant: one run of a command at a time, so that an older total never comes after a newer one; whatever the command
//! does, a run ends [`LONGEST`] after it began, and at once when nobody wants it any more. Who asks while it runs takes what
//! that run says: its stamp tells when that was.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A command and what it said last.
#[derive(Debug)]
pub struct SharedCommand {
    command: String,
    /// Held while it runs.
    running: Mutex<()>,
    last: Mutex<Option<Result<String, String>>>,
    /// Whether somebody runs it apart from readings.
    apart: AtomicBool,
    /// Runs that took longer than [`INTERVAL`].
    late: AtomicU32,
    /// Runs so far, and whether one of them said anything.
    runs: AtomicU32,
    answered: AtomicBool,
    /// Whether nobody wants it any more.
    stopped: AtomicBool,
}

impl SharedCommand {
    /// Not run yet.
    pub fn new(command: String) -> Arc<SharedCommand> {
        Arc::new(SharedCommand {
            command,
            running: Mutex::new(()),
            last: Mutex::new(None),
            apart: AtomicBool::new(false),
            late: AtomicU32::new(0),
            runs: AtomicU32::new(0),
            answered: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        })
    }

    /// Runs it now, or waits for the run that is under way; readings take what it said and run nothing themselves from here on.
    pub fn run(&self) {
        self.apart.store(true, Ordering::Relaxed);
        let before = self.runs.load(Ordering::Relaxed);
        let _one = lock(&self.running);
        if self.runs.load(Ordering::Relaxed) == before {
            let said = self.once();
            *lock(&self.last) = Some(said);
        }
    }

    /// The same at the end of a window: of a command that has said nothing yet the window has no beginning, so that its end
    /// is not waited for.
    pub fn run_if_it_answers(&self) {
        if self.answered.load(Ordering::Relaxed) {
            self.run();
        }
    }

    /// Ends a run that is under way, and all later ones at once.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Runs that took longer than the time between two readings.
    pub fn late(&self) -> u32 {
        self.late.load(Ordering::Relaxed)
    }

    fn once(&self) -> Result<String, String> {
        let began = Instant::now();
        let said = bounded(&self.command, LONGEST, &self.stopped);
        if began.elapsed() > INTERVAL {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
        self.answered.fetch_or(said.is_ok(), Ordering::Relaxed);
        self.runs.fetch_add(1, Ordering::Relaxed);
        said
    }

    /// Whether somebody runs it apart from readings.
    pub fn is_apart(&self) -> bool {
        self.apart.load(Ordering::Relaxed)
    }

    /// What it says, or why that is not known.
    pub fn said(&self) -> Result<String, String> {
        if !self.is_apart() {
            return self.once();
        }
        lock(&self.last).clone().unwrap_or_else(|| Err("has not been run yet".into()))
    }
}

/// A panic elsewhere leaves the last words as they were.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a command of the shell prints within `longest`, unless it is `stopped`.
fn bounded(command: &str, longest: Duration, stopped: &AtomicBool) -> Result<String, String> {
    let end = Instant::now() + longest;
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A group of its own, so that all of it can be ended.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut shell, 0);
    let mut child = shell.spawn().map_err(|e| e.to_string())?;
    let late = || format!("took longer than {} s", longest.as_secs_f64());
    let Some(out) = child.stdout.take() else { return Err("has no output".into()) };
    let (sender, text) = mpsc::channel();
    // Apart, because a reading of a pipe has no time limit; it ends with the last that holds the pipe.
    let reader = std::thread::Builder::new().name("njoule-feed".into()).spawn(move || {
        let mut bytes = vec![];
        let read = out.take(MOST_BYTES).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes));
    });
    if let Err(error) = reader {
        kill(&mut child);
        return Err(error.to_string());
    }
    let said = loop {
        match text.recv_timeout(LOOK) {
            Ok(said) => break said,
            Err(RecvTimeoutError::Timeout) if Instant::now() < end && !stopped.load(Ordering::Relaxed) => {}
            Err(_) => {
                kill(&mut child);
                return Err(late());
            }
        }
    };
    // Its output has ended; it may go on for a moment.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) => {
                kill(&mut child);
                return Err(late());
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    match said {
        Ok(bytes) if status.success() => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Ok(_) => Err(format!("ended with {status}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Ends a command and what it started.
fn kill(child: &mut Child) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Meters are read once a second.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often it is asked whether anybody still waits.
const LOOK: Duration = Duration::from_millis(20);

/// How long a command may take.
const LONGEST: Duration = Duration::from_secs(5);

/// Bytes that are read of what it prints.
const MOST_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_does_not_end_is_ended_with_its_children() {
        let began = Instant::now();
        for command in ["sleep 600", "sleep 600 & sleep 600", "exec >&-; sleep 600"] {
            let said = bounded(command, Duration::from_millis(100), &AtomicBool::new(false));
            assert_eq!(said, Err("took longer than 0.1 s".into()), "{command}");
        }
        assert!(began.elapsed() < Duration::from_secs(300));
        let goes_on = AtomicBool::new(false);
        assert_eq!(bounded("echo 1,2", LONGEST, &goes_on), Ok("1,2\n".into()));
        assert!(bounded("exit 3", LONGEST, &goes_on).unwrap_err().contains("ended with"));
        assert!(bounded("sleep 600", Duration::from_secs(600), &AtomicBool::new(true)).is_err());
        assert!(began.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn late_answers_are_counted_and_a_dumb_command_is_not_waited_for() {
        let quick = SharedCommand::new("echo 1,2".into());
        quick.run();
        assert_eq!((quick.late(), quick.said()), (0, Ok("1,2\n".into())));
        let slow = SharedCommand::new("sleep 1.2; echo 1,2".into());
        slow.run();
        assert_eq!((slow.late(), slow.said()), (1, Ok("1,2\n".into())));
        let dumb = SharedCommand::new("sleep 600".into());
        let began = Instant::now();
        dumb.run_if_it_answers();
        assert!(began.elapsed() < Duration::from_secs(1) && dumb.late() == 0);
    }
}
