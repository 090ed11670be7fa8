//! One run of the compiler: started, watched, measured, and ended with all of its children.
//!
//! It runs in a process group of its own. Its memory is that of the whole group, since neuronx-cc starts workers: read
//! from /proc on a period, so a peak between two looks is missed.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{CompileError, memory};

/// How a run ended.
#[derive(Debug)]
pub(super) enum End {
    /// By itself, with success.
    Done,
    /// By itself, with this code.
    Exit(i32),
    /// By a signal that was not ours.
    Signal(i32),
    /// Its time was up.
    Deadline(Duration),
    /// Somebody asked.
    Cancelled,
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    pub peak: u64,
    pub seconds: f64,
}

/// Runs `program` with `args` in `dir`, its output into `log`.
pub(super) fn run(
    program: &Path,
    args: &[&std::ffi::OsStr],
    dir: &Path,
    log: &Path,
    deadline: Option<Duration>,
    cancelled: &AtomicBool,
) -> Result<(End, Taken), CompileError> {
    let out = File::create(log).map_err(CompileError::io("write", log))?;
    let err = out.try_clone().map_err(CompileError::io("write", log))?;
    let started = Instant::now();
    let child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .spawn()
        .map_err(CompileError::io("start", program))?;
    let mut group = Group { child, ended: false };
    let mut peak = 0;
    let mut pause = FIRST_LOOK;
    let end = loop {
        peak = peak.max(memory::of_group(group.child.id()));
        if let Some(status) = group.child.try_wait().map_err(CompileError::io("wait for", program))? {
            group.ended = true;
            break end_of(status);
        }
        if cancelled.load(Ordering::Relaxed) {
            break End::Cancelled;
        }
        let elapsed = started.elapsed();
        if let Some(limit) = deadline.filter(|limit| elapsed >= *limit) {
            break End::Deadline(limit);
        }
        let left = deadline.map_or(pause, |limit| limit - elapsed);
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(LOOK);
    };
    Ok((end, Taken { peak, seconds: started.elapsed().as_secs_f64() }))
}

/// What `program` prints to stdout and stderr, each up to what a pipe holds, and how it ended; the error says why nothing
/// can be known.
pub(super) fn said(program: &Path, args: &[&str], patience: Duration) -> Result<(ExitStatus, [String; 2]), String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let started = Instant::now();
    let mut group = Group { child, ended: false };
    let status = loop {
        match group.child.try_wait().map_err(|error| format!("cannot be waited for: {error}"))? {
            Some(status) => break status,
            None if started.elapsed() > patience => {
                return Err(format!("did not answer {} within {patience:?}", args.join(" ")));
            }
            None => thread::sleep(FIRST_LOOK),
        }
    };
    group.ended = true;
    // One read: what it wrote is all there, and a process that it left behind may keep the pipe open.
    let read = |pipe: Option<&mut dyn Read>| {
        let mut bytes = vec![0; PIPE];
        let n = pipe.and_then(|pipe| pipe.read(&mut bytes).ok()).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    };
    let (out, err) = (group.child.stdout.as_mut().map(|p| p as _), group.child.stderr.as_mut().map(|p| p as _));
    Ok((status, [read(out), read(err)]))
}

/// A child with its group. Dropped, nothing of it runs any more.
struct Group {
    child: Child,
    ended: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group outlives its first process where that left workers behind (a compiler that crashed): they go too. While
        // one of them lives the number stays theirs; a group without processes is left alone.
        let left = !self.ended || memory::of_group(self.child.id()) > 0;
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).filter(|_| left) {
            let _ = kill_process_group(pid, Signal::KILL); // nobody left: nothing to do
        }
        if !self.ended {
            let _ = self.child.wait(); // killed: it ends
        }
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.success(), status.code(), status.signal()) {
        (true, ..) => End::Done,
        // A wrapper script reports a killed child as 128 + its signal.
        (_, Some(137), _) => End::Signal(9),
        (_, Some(code), _) => End::Exit(code),
        (_, None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}

const PIPE: usize = 1 << 16;
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// Costs a walk over /proc each.
const LOOK: Duration = Duration::from_millis(200);
