//! A process between njoule and a compiler, which ends the compiler however njoule ends: nobody can act on SIGKILL.
//!
//! njoule starts its own program with [`WORD`] before the compiler's command line, first in a process group of its own. The
//! keeper's stdin is a pipe into which njoule never writes and whose other end it alone holds: the end of the file says that
//! njoule is gone, also where that was before the keeper looked. (A parent-death signal is bound to a thread, not to a process,
//! and reaches no grandchildren.) The keeper then ends its group, and itself with it.
//!
//! Invariant: a compiler's keeper lives as long as it, in its group, and ends as it did.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Resource, Rlimit, Signal};
use rustix::process::{getpgrp, getpid, kill_current_process_group, kill_process, setrlimit};

/// Whether this process's program can be a keeper.
static KEPT: AtomicBool = AtomicBool::new(false);

/// For the first line of a program's `main`: where the process was started as a keeper it is one, and this is its exit code;
/// else compilers of this process have keepers from now on.
pub fn enter() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == WORD) {
        return Some(keep(args));
    }
    KEPT.store(true, Ordering::Relaxed);
    None
}

/// Whether compilers have keepers: the first process of a compiler's group is one then.
pub(super) fn is_on() -> bool {
    KEPT.load(Ordering::Relaxed)
}

/// The command of a compiler, its stdin included.
pub(super) fn command(program: &Path, args: &[&OsStr]) -> Command {
    if !is_on() {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        return command;
    }
    // Also where another version has taken the file's place since.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("njoule").arg(WORD).arg(program).args(args).stdin(Stdio::piped());
    command
}

fn keep(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(program) = args.next().filter(|_| getpgrp() == getpid()) else {
        eprintln!("error: {WORD} is what njoule calls itself with, to watch over a compiler");
        return ExitCode::from(2);
    };
    // Before the compiler starts: it is never without.
    if let Err(error) = thread::Builder::new().name("keeper".to_owned()).spawn(watch) {
        eprintln!("error: cannot watch over {}: {error}", program.display());
        return ExitCode::FAILURE;
    }
    let ended = Command::new(&program).args(args).stdin(Stdio::null()).status();
    match ended {
        Ok(status) => end_like(status),
        Err(error) => {
            eprintln!("error: cannot start {}: {error}", program.display());
            ExitCode::from(NOT_STARTED)
        }
    }
}

/// Ends the group when njoule is gone.
fn watch() {
    let mut stdin = io::stdin();
    loop {
        match stdin.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
    }
    // It has this process in it: it cannot fail for want of one.
    let _ = kill_current_process_group(Signal::KILL);
}

/// By the same code, or by the same signal.
fn end_like(status: ExitStatus) -> ExitCode {
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    let Some(number) = status.signal() else { return ExitCode::from(byte(status.code().unwrap_or(1))) };
    // One core dump is enough.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if let Some(signal) = Signal::from_named_raw(number) {
        let _ = kill_process(getpid(), signal);
    }
    // One that this process ignores: as a shell has it.
    ExitCode::from(byte(number.saturating_add(128)))
}

/// The hidden verb.
const WORD: &str = "__keep-compiler";
/// As a shell has it.
const NOT_STARTED: u8 = 127;
