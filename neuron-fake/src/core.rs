//! A logical core: its memory budget, whose turn it is, and its runs in flight.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::status::{self, Answer, refuse};

/// A logical core of this process.
#[derive(Debug)]
pub(crate) struct Core {
    /// Relative: the first that the process owns is 0.
    pub index: u32,
    limit: usize,
    used: AtomicUsize,
    /// Where the next allocation lies, in the addresses of a memory that only ever grows.
    next_address: AtomicU64,
    /// A core runs one program at a time.
    turn: Mutex<()>,
    /// After status 101 nothing runs any more.
    dead: AtomicBool,
}

/// A part of a core's memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    core: std::sync::Arc<Core>,
    bytes: usize,
}

impl Core {
    pub(crate) fn new(index: u32, limit: usize, microcode: usize) -> Core {
        Core {
            index,
            limit,
            used: AtomicUsize::new(microcode),
            next_address: AtomicU64::new(u64::from(index) << 40),
            turn: Mutex::new(()),
            dead: AtomicBool::new(false),
        }
    }

    /// Bytes in use, and how many there are.
    pub(crate) fn memory(&self) -> (usize, usize) {
        (self.used.load(Ordering::Relaxed), self.limit)
    }

    /// Sets `bytes` aside, or says that there are not as many.
    pub(crate) fn charge(self: &std::sync::Arc<Core>, bytes: usize, what: &str) -> Answer<Charge> {
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Charge { core: self.clone(), bytes }),
            Err(used) => refuse(
                status::RESOURCE,
                format!(
                    "Failed to allocate {bytes} bytes of {what} on ND 0:NC {}: {used} of {} in use",
                    self.index, self.limit
                ),
            ),
        }
    }

    /// An address for so many bytes.
    pub(crate) fn place(&self, bytes: usize) -> u64 {
        self.next_address.fetch_add((bytes as u64).next_multiple_of(64), Ordering::Relaxed)
    }

    /// Waits until nothing else runs.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.core.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
