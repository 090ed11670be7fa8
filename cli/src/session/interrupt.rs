//! Ctrl-C: the first stops what is being generated or built, the second the program.
//!
//! Invariant: a signal that somebody took for a while has its default action again afterwards, unless it is taken by others;
//! one that was ignored is ignored again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use njoule_runtime::{Event, RequestHandle};
use signal_hook::consts::SIGINT;
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
        take_default(SIGINT);
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

/// Signals whose default action is emulated: they were taken, and let go again. A handler cannot be removed without unsafe
/// code, and one without an action swallows its signal.
static DEFAULTS: Mutex<Vec<(i32, SigId)>> = Mutex::new(vec![]);

fn defaults() -> MutexGuard<'static, Vec<(i32, SigId)>> {
    DEFAULTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the emulation of a signal's default action, where there is one; whether there was.
fn take_default(signal: i32) -> bool {
    let mut defaults = defaults();
    let Some(at) = defaults.iter().position(|(of, _)| *of == signal) else { return false };
    low_level::unregister(defaults.swap_remove(at).1)
}

/// The answer was stopped by Ctrl-C.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// 128 + SIGINT, as shells have it.
pub const INTERRUPTED: i32 = 130;

#[cfg(target_os = "linux")]
mod stop;
#[cfg(target_os = "linux")]
pub use stop::Stop;

/// How late Ctrl-C may be noticed between two tokens.
const POLL: Duration = Duration::from_millis(50);

#[cfg(all(test, target_os = "linux"))]
mod tests;
