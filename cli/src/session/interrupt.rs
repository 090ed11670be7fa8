//! Ctrl-C: the first stops what is being generated, the second the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use njoule_runtime::{Event, RequestHandle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};

/// Whether Ctrl-C was pressed.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes Ctrl-C over. Pressed while [`Interrupt::pressed`] is true, it ends the process with code 130.
    pub fn install() -> std::io::Result<Interrupt> {
        let pressed = Arc::new(AtomicBool::new(false));
        // In this order: the second press finds the flag that the first has set.
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, pressed.clone())?;
        flag::register(SIGINT, pressed.clone())?;
        Ok(Interrupt(pressed))
    }

    /// Whether it was pressed since the last [`Interrupt::set`].
    pub fn pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets a press, or (with `true`) makes the next one end the process.
    pub fn set(&self, pressed: bool) {
        self.0.store(pressed, Ordering::Relaxed);
    }

    /// The next event of a request, which is cancelled when Ctrl-C is pressed; `None` after the last.
    pub fn next_event(&self, handle: &mut RequestHandle) -> Option<Event> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        loop {
            if self.pressed() {
                handle.cancel();
            }
            match handle.recv_timeout(POLL) {
                Ok(event) => return Some(event),
                Err(Timeout) => {}
                Err(Disconnected) => return None,
            }
        }
    }
}

/// Asks long work to end by Ctrl-C, SIGTERM or SIGHUP, for as long as it lives; a second Ctrl-C ends the process.
#[derive(Debug)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    hooks: Vec<SigId>,
}

impl Stop {
    /// Takes the signals over.
    pub fn install() -> std::io::Result<Stop> {
        let mut stop = Stop { asked: Arc::default(), hooks: vec![] };
        stop.hooks.push(flag::register_conditional_shutdown(SIGINT, INTERRUPTED, stop.asked.clone())?);
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            stop.hooks.push(flag::register(signal, stop.asked.clone())?);
        }
        Ok(stop)
    }

    /// Set once somebody has asked.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        for hook in self.hooks.drain(..) {
            low_level::unregister(hook);
        }
    }
}

/// The answer was stopped by Ctrl-C.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// 128 + SIGINT, as shells have it.
pub const INTERRUPTED: i32 = 130;

/// How late Ctrl-C may be noticed between two tokens.
const POLL: Duration = Duration::from_millis(50);
