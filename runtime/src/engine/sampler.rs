//! The thread that reads an [`EnergySource`], and what the engine sees of it.
//!
//! Invariant: the engine never waits for a reading: a look is one atomic load, and taking a reading an uncontended lock. A
//! reading that nobody has taken is added to the next, so none is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Doorbell;
use super::energy::{EnergySource, Metered, Reading};
use super::inbox::lock;

/// The engine's hold on the thread, which ends after it.
pub struct Sampler {
    shared: Arc<Shared>,
    /// Readings taken.
    taken: u64,
}

struct Shared {
    slot: Mutex<Slot>,
    changed: Condvar,
    /// Readings made.
    made: AtomicU64,
}

#[derive(Default)]
struct Slot {
    /// The first reading, of the time before the engine, until it is taken.
    first: Option<Read>,
    /// What else was not taken yet.
    untaken: Option<Read>,
    /// Readings that were asked for, and the last of them that began before a reading that is there.
    asked: u64,
    asked_at: Option<Instant>,
    answered: u64,
    /// The same of readings that had something of the energy to say.
    metered: u64,
    description: Option<Arc<Value>>,
    ended: bool,
}

/// A reading and when it was made: what it holds lies before that.
#[derive(Clone, Copy)]
struct Read {
    reading: Reading,
    at: Instant,
}

/// Readings up to a request's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What is new.
pub struct Sample {
    pub reading: Reading,
    /// When it was made.
    pub at: Instant,
    /// Whether it is the first.
    pub first: bool,
    /// Up to where it holds CPU time, and energy.
    pub answered: Ticket,
    pub metered: Ticket,
}

impl Sampler {
    /// Reads `source` at once and from time to time, and often for `patience` after somebody asked. Where it `wakes`, `doorbell`
    /// is rung at every reading, else at those that were asked for.
    pub fn start(
        source: Box<dyn EnergySource>,
        wakes: bool,
        doorbell: Arc<Doorbell>,
        patience: Duration,
    ) -> std::io::Result<Sampler> {
        let shared = Arc::new(Shared { slot: Mutex::default(), changed: Condvar::new(), made: AtomicU64::new(0) });
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("njoule-energy".into())
            .spawn(move || run(source, wakes, &doorbell, patience, &theirs))?;
        Ok(Sampler { shared, taken: 0 })
    }

    /// Where the meters' description will be.
    pub fn description(&self) -> impl Fn() -> Option<Arc<Value>> + Send + Sync + use<> {
        let shared = self.shared.clone();
        move || lock(&shared.slot).description.clone()
    }

    /// Asks for a reading from now on.
    pub fn ask(&self) -> Ticket {
        let mut slot = lock(&self.shared.slot);
        slot.asked += 1;
        slot.asked_at = Some(Instant::now());
        let ticket = Ticket(slot.asked);
        drop(slot);
        self.shared.changed.notify_one();
        ticket
    }

    /// Waits for the first reading, of the time before the engine.
    pub fn wait_first(&self, until: Instant) {
        let mut slot = lock(&self.shared.slot);
        while self.shared.made.load(Ordering::Acquire) == 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let changed = self.shared.changed.wait_timeout(slot, left);
            slot = changed.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// What was read since the last look.
    pub fn take(&mut self) -> Option<Sample> {
        let made = self.shared.made.load(Ordering::Acquire);
        if made == self.taken {
            return None;
        }
        let mut slot = lock(&self.shared.slot);
        let first = slot.first.take();
        let reading = first.or_else(|| slot.untaken.take());
        // What came behind the first is for the next look.
        self.taken = if slot.untaken.is_some() { made - 1 } else { made };
        let (Read { reading, at }, first) = (reading?, first.is_some());
        Some(Sample { reading, at, first, answered: Ticket(slot.answered), metered: Ticket(slot.metered) })
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        lock(&self.shared.slot).ended = true;
        self.shared.changed.notify_one();
    }
}

fn run(mut source: Box<dyn EnergySource>, wakes: bool, doorbell: &Doorbell, patience: Duration, shared: &Shared) {
    let mut first = true;
    loop {
        let began = Instant::now();
        let asked = lock(&shared.slot).asked;
        let reading = source.read();
        let at = Instant::now();
        let description = Arc::new(source.describe());
        let mut slot = lock(&shared.slot);
        if std::mem::take(&mut first) {
            slot.first = Some(Read { reading, at });
        } else {
            let reading = slot.untaken.map_or(reading, |before| before.reading.and(reading));
            slot.untaken = Some(Read { reading, at });
        }
        let answers = asked > slot.answered;
        slot.answered = asked;
        let says = reading.energy != Metered::NotYet;
        if says {
            slot.metered = asked;
        }
        slot.description = Some(description);
        if shared.made.fetch_add(1, Ordering::Release) == 0 {
            // The engine's first step waits for it.
            shared.changed.notify_all();
        }
        if (wakes || answers) && !slot.ended {
            doorbell.ring();
        }
        // Somebody waits for joules that were not there yet: look again soon, as long as they wait.
        let waits = |slot: &Slot| slot.asked > slot.metered && slot.asked_at.is_some_and(|at| at.elapsed() < patience);
        let due = began + if waits(&slot) { AGAIN } else { PERIOD };
        loop {
            if slot.ended {
                return;
            }
            let now = Instant::now();
            // Requests that end together share a reading.
            let soon = began + LEAST;
            let until = if slot.asked > slot.answered { soon.min(due) } else { due };
            if now >= until {
                break;
            }
            slot = shared.changed.wait_timeout(slot, until - now).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

const PERIOD: Duration = Duration::from_secs(1);

/// Between two readings, however many are asked for.
const LEAST: Duration = Duration::from_millis(10);

/// Between two readings while meters have nothing new.
const AGAIN: Duration = Duration::from_millis(25);
