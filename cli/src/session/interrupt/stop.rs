//! What long work is stopped by: Ctrl-C, SIGTERM or SIGHUP ask it to end, a second Ctrl-C ends the process.
//!
//! Invariant: however the process ends by Ctrl-C, no compiler outlives it, and none has to be ended by its keeper. They run in process groups of their own, which a
//! terminal's Ctrl-C does not reach.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use njoule_runtime::backend::neuron::compiler;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};

use super::{INTERRUPTED, defaults, take_default};

/// Asks for an end, for as long as it lives; the signals' default actions are back when it is dropped.
#[derive(Debug)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    hooks: Vec<SigId>,
    /// Signals that nobody else had taken.
    taken: Vec<i32>,
}

impl Stop {
    /// Takes the signals over, but for a SIGHUP that this process ignores (`nohup`). A shell without job control lets what it
    /// starts in the background ignore Ctrl-C: somebody who sends that to this process still means it.
    pub fn install() -> io::Result<Stop> {
        let mut stop = Stop { asked: Arc::default(), hooks: vec![], taken: vec![] };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let action = Action::of(signal)?;
            if action == Action::Ignore && signal == SIGHUP {
                continue;
            }
            stop.hooks.push(flag::register(signal, stop.asked.clone())?);
            // After that: in between, the signal still has its default action.
            if take_default(signal) || action == Action::Default {
                stop.taken.push(signal);
            }
        }
        // A byte for each press; the end of the file when the hook is gone.
        let (mut presses, hook) = UnixStream::pair()?;
        stop.hooks.push(low_level::pipe::register(SIGINT, hook)?);
        thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            if presses.read_exact(&mut [0; 2]).is_ok() {
                compiler::end_all();
                low_level::exit(INTERRUPTED);
            }
        })?;
        Ok(stop)
    }

    /// Set once somebody has asked.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// The same, for what lives on its own.
    pub fn shared(&self) -> Arc<AtomicBool> {
        self.asked.clone()
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        let mut defaults = defaults();
        for signal in self.taken.drain(..) {
            // Fails for signals that are not known, and these are.
            if let Ok(default) = flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true))) {
                defaults.push((signal, default));
            }
        }
        for hook in self.hooks.drain(..) {
            low_level::unregister(hook);
        }
    }
}

/// What a signal does to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Default,
    Ignore,
    Handler,
}

impl Action {
    fn of(signal: i32) -> io::Result<Action> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let has = |key: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask >> (signal - 1) & 1 == 1)
        };
        Ok(match (has("SigIgn:"), has("SigCgt:")) {
            (true, _) => Action::Ignore,
            (false, true) => Action::Handler,
            (false, false) => Action::Default,
        })
    }
}
