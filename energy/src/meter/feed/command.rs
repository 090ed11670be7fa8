//! A command that is run for each reading: in bounded time, and, for meters that several threads share, without their lock.
//!
//! Invariant: one run of a command at a time, so that an older total never comes after a newer one; whatever the command
//! does, a run ends [`LONGEST`] after it began.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
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
}

impl SharedCommand {
    /// Not run yet.
    pub fn new(command: String) -> Arc<SharedCommand> {
        Arc::new(SharedCommand {
            command,
            running: Mutex::new(()),
            last: Mutex::new(None),
            apart: AtomicBool::new(false),
        })
    }

    /// Runs it now; readings take what it said and run nothing themselves from here on.
    pub fn run(&self) {
        self.apart.store(true, Ordering::Relaxed);
        let _one = lock(&self.running);
        let said = bounded(&self.command, LONGEST);
        *lock(&self.last) = Some(said);
    }

    /// Whether somebody runs it apart from readings.
    pub fn is_apart(&self) -> bool {
        self.apart.load(Ordering::Relaxed)
    }

    /// What it says, or why that is not known.
    pub fn said(&self) -> Result<String, String> {
        if !self.is_apart() {
            return bounded(&self.command, LONGEST);
        }
        lock(&self.last).clone().unwrap_or_else(|| Err("has not been run yet".into()))
    }
}

/// A panic elsewhere leaves the last words as they were.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a command of the shell prints within `longest`.
fn bounded(command: &str, longest: Duration) -> Result<String, String> {
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
    let said = match reader {
        Ok(_) => text.recv_timeout(end.saturating_duration_since(Instant::now())),
        Err(error) => {
            kill(&mut child);
            return Err(error.to_string());
        }
    };
    let Ok(said) = said else {
        kill(&mut child);
        return Err(late());
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
            let said = bounded(command, Duration::from_millis(100));
            assert_eq!(said, Err("took longer than 0.1 s".into()), "{command}");
        }
        assert!(began.elapsed() < Duration::from_secs(300));
        assert_eq!(bounded("echo 1,2", LONGEST), Ok("1,2\n".into()));
        assert!(bounded("exit 3", LONGEST).unwrap_err().contains("ended with"));
    }
}
