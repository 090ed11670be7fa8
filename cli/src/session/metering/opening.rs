//! Meters that are open while a model is loaded, so that loading is in what they count.
//!
//! Invariant: until the engine has them they are looked at once a second: a driver that shows its newest minute alone forgets the
//! one before.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use njoule_energy::Wanted;

use super::MachineMeters;

/// A thread that has the meters.
pub struct Opening {
    /// Its drop ends the thread.
    until: Sender<()>,
    thread: JoinHandle<MachineMeters>,
}

impl Opening {
    /// Opens them, where no first token waits for it.
    pub fn begin(wanted: Wanted) -> Opening {
        let (until, ended) = channel();
        let thread = std::thread::spawn(move || {
            let mut meters = MachineMeters::open(&wanted);
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                meters.watch();
            }
            meters
        });
        Opening { until, thread }
    }

    /// The meters, for their reader.
    pub fn end(self) -> anyhow::Result<MachineMeters> {
        drop(self.until);
        self.thread.join().map_err(|_| anyhow!("opening the meters panicked"))
    }
}

const PERIOD: Duration = Duration::from_secs(1);
