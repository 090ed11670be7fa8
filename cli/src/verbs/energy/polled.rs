//! This machine's meters, read once a second by a thread of their own.
//!
//! Invariant: nobody who reads them waits for a feed's command that somebody else has started, and what is traced in a block is
//! what the meters told between its two readings, with what was done between the same two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use njoule_energy::conditions::Conditions;
use njoule_energy::meter::feed::SharedCommand;
use njoule_energy::{Meters, Root, Snapshot, Wanted, Window};

/// Meters that are read once a second, so that no counter wraps unseen and no minute is missed.
pub struct Polled {
    meters: Arc<Mutex<Meters>>,
    trace: Arc<Mutex<Option<Trace>>>,
    root: Root,
    commands: Vec<Arc<SharedCommand>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What was done in about [`BLOCK`], and what that took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// As its counter had it.
    pub done: u64,
    /// By the meters' total; `None` is unknown.
    pub joules: Option<f64>,
}

/// Blocks in the making.
struct Trace {
    last: Snapshot,
    due: Instant,
    counter: Arc<AtomicU64>,
    counted: u64,
    blocks: Vec<Block>,
}

impl Trace {
    /// A block ends with this reading, unless it is of a time before.
    fn end(&mut self, now: Snapshot, counted: u64) {
        while self.due <= Instant::now() {
            self.due += BLOCK;
        }
        let Ok(window) = Window::between(&self.last, &now) else { return };
        let done = counted.saturating_sub(std::mem::replace(&mut self.counted, counted));
        self.blocks.push(Block { done, joules: window.total.joules.map(|joules| joules.best()) });
        self.last = now.brief();
    }
}

impl Polled {
    /// Opens them.
    pub fn open(wanted: &Wanted) -> anyhow::Result<Polled> {
        let meters = Meters::open(wanted);
        let (commands, root) = (meters.commands(), meters.root().clone());
        let (meters, ours) = (Arc::new(Mutex::new(meters)), commands.clone());
        let trace = Arc::new(Mutex::new(None));
        let (stop, stopped) = mpsc::channel::<()>();
        let (polled, traced) = (meters.clone(), trace.clone());
        let body = move || {
            let start = Instant::now();
            let mut round = 1u32;
            loop {
                // Absolute deadlines with a fifth of jitter: a program of a steady rhythm must not hide between the looks.
                let jitter = 0.2 * (f64::from(round.wrapping_mul(2_654_435_769)) / f64::from(u32::MAX) * 2.0 - 1.0);
                let look = start + Duration::from_secs_f64((f64::from(round) + jitter).max(0.0));
                let block = lock(&traced).as_ref().map(|trace: &Trace| trace.due);
                let due = block.map_or(look, |block| block.min(look));
                match stopped.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
                if look <= Instant::now() {
                    commands.iter().for_each(|command| command.run());
                    lock(&polled).poll();
                    round = round.wrapping_add(1);
                }
                end_block(&polled, &traced);
            }
        };
        let thread = std::thread::Builder::new().name("njoule-meters".into()).spawn(body);
        let thread = Some(thread.context("cannot start a thread for the meters")?);
        Ok(Polled { meters, trace, root, commands: ours, stop: Some(stop), thread })
    }

    /// Where all stand at a window's beginning. What it costs to read the conditions lies before it.
    pub fn begin(&self) -> Snapshot {
        let conditions = Some(Conditions::read(&self.root));
        Snapshot { conditions, ..self.snapshot() }
    }

    /// The same at its end, and behind it. The end is now: a feed's command that takes its time is waited for afterwards,
    /// and the stamp of what it says tells how far behind the end that is.
    pub fn end(&self) -> Snapshot {
        let end = self.now();
        Snapshot { conditions: Some(Conditions::read(&self.root)), ..end }
    }

    /// Where all stand now, as far as feeds' commands can say.
    pub fn now(&self) -> Snapshot {
        let mut now = lock(&self.meters).snapshot();
        if !self.commands.is_empty() {
            self.commands.iter().for_each(|command| command.run_if_it_answers());
            lock(&self.meters).refresh(&mut now);
        }
        now
    }

    /// Where all stand. Waits for the command of a feed, if there is one, and holds nobody else up meanwhile.
    pub fn snapshot(&self) -> Snapshot {
        self.commands.iter().for_each(|command| command.run());
        lock(&self.meters).snapshot()
    }

    /// Keeps blocks from `start` on, which was read at `at`; `counter` has what is done.
    pub fn trace(&self, start: &Snapshot, at: Instant, counter: Arc<AtomicU64>) {
        let counted = counter.load(Ordering::Relaxed);
        let last = start.clone().brief();
        *lock(&self.trace) = Some(Trace { last, due: at + BLOCK, counter, counted, blocks: vec![] });
    }

    /// The whole blocks since then.
    pub fn traced(&self) -> Vec<Block> {
        lock(&self.trace).take().map(|trace| trace.blocks).unwrap_or_default()
    }
}

/// Ends a block whose time is over.
fn end_block(meters: &Mutex<Meters>, trace: &Mutex<Option<Trace>>) {
    let due = lock(trace).as_ref().filter(|trace| trace.due <= Instant::now()).map(|trace| trace.counter.clone());
    let Some(counter) = due else { return };
    let now = lock(meters).snapshot();
    // A count alone, of which nothing else depends: it need not be in step with other memory.
    let counted = counter.load(Ordering::Relaxed);
    if let Some(trace) = &mut *lock(trace)
        && Arc::ptr_eq(&trace.counter, &counter)
    {
        trace.end(now, counted);
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.stop = None;
        self.commands.iter().for_each(|command| command.stop());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A panic of another thread leaves totals as they were.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block of a trace: long beside what a meter's renewal and a step take, short beside a run.
pub const BLOCK: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_what_was_done_and_used_between_its_two_readings() {
        let dir = tempfile::tempdir().unwrap();
        let zone = dir.path().join("sys/class/powercap/intel-rapl:0");
        std::fs::create_dir_all(&zone).unwrap();
        std::fs::write(zone.join("name"), "package-0\n").unwrap();
        std::fs::write(zone.join("max_energy_range_uj"), "262143328850\n").unwrap();
        let stands = |joules: u64| std::fs::write(zone.join("energy_uj"), format!("{}\n", joules * 1_000_000)).unwrap();
        stands(1);
        let mut meters = Meters::open(&Wanted::all(Root::at(dir.path())));
        let last = meters.snapshot();
        let now = Instant::now();
        let mut trace = Trace { last, due: now, counter: Arc::default(), counted: 7, blocks: vec![] };
        stands(101);
        trace.end(meters.snapshot(), 507);
        assert!(trace.due > now && trace.due <= now + 2 * BLOCK);
        stands(351);
        trace.end(meters.snapshot(), 509);
        // A counter that does not move is not zero joules.
        trace.end(meters.snapshot(), 512);
        let expected = [(500, Some(100.0)), (2, Some(250.0)), (3, None)];
        assert_eq!(trace.blocks, expected.map(|(done, joules)| Block { done, joules }));
        // A reading of before is no block's end, and the time goes on.
        let (early, due) = (trace.last.clone(), Instant::now());
        trace.due = due;
        trace.end(early, 600);
        assert!(trace.blocks.len() == 3 && trace.counted == 512 && trace.due > due);
    }
}
