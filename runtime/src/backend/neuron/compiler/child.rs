//! One run of the compiler: started, watched, measured, and ended with all of its children.
//!
//! It runs in a process group of its own, which a terminal's Ctrl-C does not reach: whoever ends this process ends the groups
//! first ([`end_all`]), and where nobody can, its [`keeper`] does. Its memory is that of the whole group, since neuronx-cc starts workers: read from /proc on a period,
//! so a peak between two looks is missed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{CompileError, keeper, memory};

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
    let mut command = keeper::command(program, args);
    command.current_dir(dir).stdout(out).stderr(err);
    let mut group = Group::start(command).map_err(CompileError::io("start", program))?;
    let mut peak = 0;
    let mut pause = FIRST_LOOK;
    let end = loop {
        peak = peak.max(memory::of_group(group.child.id(), keeper::is_on()));
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

/// What `program` prints to stdout and stderr, the beginning of each where it is long, and how it ended; the error says why
/// nothing can be known. Waits for the program alone: what it leaves behind is ended, and may keep the pipes open.
pub fn said(program: &Path, args: &[&str], patience: Duration) -> Result<(ExitStatus, [String; 2]), String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut group = Group::start(command).map_err(|error| format!("cannot be started: {error}"))?;
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut out = Said::of(group.child.stdout.take()).map_err(unreadable)?;
    let mut err = Said::of(group.child.stderr.take()).map_err(unreadable)?;
    let status = loop {
        // Asked first: what it has written by its end is read after it.
        let status = group.child.try_wait().map_err(|error| format!("cannot be waited for: {error}"))?;
        out.hear();
        err.hear();
        match status {
            Some(status) => break status,
            None if started.elapsed() > patience => {
                return Err(format!("did not answer {} within {patience:?}", args.join(" ")));
            }
            None => thread::sleep(FIRST_LOOK),
        }
    };
    group.ended = true;
    Ok((status, [out.text(), err.text()]))
}

/// Ends every compiler that runs, with its children, and lets none start any more: for a process that is about to end.
pub fn end_all() {
    for pid in running().take().into_iter().flatten() {
        let _ = kill_process_group(pid, Signal::KILL); // nobody left: nothing to do
    }
}

/// A pipe that is read without waiting for it.
struct Said<P> {
    pipe: Option<P>,
    bytes: Vec<u8>,
}

impl<P: Read + AsFd> Said<P> {
    fn of(pipe: Option<P>) -> io::Result<Said<P>> {
        if let Some(pipe) = &pipe {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(Said { pipe, bytes: vec![] })
    }

    /// Reads what is there, a pipe's fill at most; what is too much is dropped, so that the writer can go on.
    fn hear(&mut self) {
        let mut some = [0; 4096];
        for _ in 0..PIPE / some.len() {
            match self.pipe.as_mut().map(|pipe| pipe.read(&mut some)) {
                Some(Ok(n)) if n > 0 => self.bytes.extend(&some[..n.min(PIPE - self.bytes.len())]),
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing now, or nothing any more.
                _ => return,
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A child with its group. Dropped, nothing of it runs any more.
struct Group {
    child: Child,
    ended: bool,
}

/// The groups that run; `None` once all were ended.
static RUNNING: Mutex<Option<Vec<Pid>>> = Mutex::new(Some(vec![]));

fn running() -> MutexGuard<'static, Option<Vec<Pid>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    fn start(mut command: Command) -> io::Result<Group> {
        // Held while it starts: no group is missed by `end_all`.
        let mut running = running();
        let Some(running) = running.as_mut() else { return Err(io::Error::other("this process is about to end")) };
        let group = Group { child: command.process_group(0).spawn()?, ended: false };
        running.extend(group.pid());
        Ok(group)
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group outlives its first process where that left workers behind (a compiler that crashed): they go too. While
        // one of them lives the number stays theirs; a group without processes is left alone.
        let left = !self.ended || memory::of_group(self.child.id(), false) > 0;
        if let Some(pid) = self.pid().filter(|_| left) {
            let _ = kill_process_group(pid, Signal::KILL); // nobody left: nothing to do
        }
        if !self.ended {
            let _ = self.child.wait(); // killed: it ends
        }
        if let Some(running) = running().as_mut() {
            running.retain(|pid| Some(*pid) != self.pid());
        }
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.success(), status.code(), status.signal()) {
        (true, ..) => End::Done,
        // A wrapper script reports a killed child as 128 + its signal.
        (_, Some(code @ 129..=159), _) => End::Signal(code - 128),
        (_, Some(code), _) => End::Exit(code),
        (_, None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}

const PIPE: usize = 1 << 16;
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// Costs a walk over /proc each.
const LOOK: Duration = Duration::from_millis(200);
