//! The clock of a stand-in library that this process has loaded: what its runs have taken, which is not the host's time.

use std::path::Path;
use std::time::Duration;

/// Reads it.
#[derive(Debug)]
pub struct Clock {
    read: unsafe extern "C" fn() -> u64,
    /// Where `read` is.
    _library: libloading::Library,
}

impl Clock {
    /// Of the library at `path`, which has one state per process, whoever loads it. Another library than a stand-in is an
    /// error.
    pub fn of(path: &Path) -> Result<Clock, libloading::Error> {
        // SAFETY: nothing runs when a stand-in is loaded; whoever names another library loads that one anyway.
        let library = unsafe { libloading::Library::new(path) }?;
        // SAFETY: the function's type in abi.rs.
        let read = *unsafe { library.get::<unsafe extern "C" fn() -> u64>(b"neuron_fake_run_time") }?;
        Ok(Clock { read, _library: library })
    }

    /// Time of all runs so far.
    pub fn run_time(&self) -> Duration {
        // SAFETY: it only reads a counter, and its library is loaded as long as `self` lives.
        Duration::from_nanos(unsafe { (self.read)() })
    }
}
