//! An SPMD team of threads: all run the same function, meet at barriers, and claim work from shared counters.
//!
//! The caller is worker 0. A job wakes the others once; inside it workers meet at [`Worker::barrier`]: a bounded spin (how
//! long, [`Waiting`] says), then a futex, so that a preempted worker costs the others no more than its own delay. There is no
//! other system call and no allocation. What a worker computes never depends on how many there are, so that a run may be
//! shared by fewer than all: the others sleep on.

use std::any::Any;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::thread::futex;

/// How long a member that waits for others polls before it sleeps. Whatever it is, a team without a job sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// As long as a futex call takes.
    #[default]
    Brief,
    /// Not at all: cores that others could use, or that clock higher alone.
    Park,
    /// For longer than most steps leave a core without work: it costs CPU time and saves wake-ups.
    Spin,
}

impl Waiting {
    /// Polls. One is a `pause`, about 40 cycles.
    fn polls(self) -> u32 {
        match self {
            Waiting::Brief => 300,
            Waiting::Park => 0,
            Waiting::Spin => 20_000,
        }
    }
}

/// Members of a team at most.
const MOST: u32 = 1024;

/// The bits of [`Shared::start`] that say how many members share a run; the others are its number.
const MEMBERS: u32 = 2 * MOST - 1;

/// A team of threads.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Members that share a run.
    active: u32,
    /// Runs that woke anybody.
    runs: u32,
}

/// One member of a team inside a job.
#[derive(Clone, Copy, Debug)]
pub struct Worker<'a> {
    /// 0 for the caller.
    pub id: usize,
    /// Members.
    pub count: usize,
    shared: &'a Shared,
}

/// Work to claim in chunks; each worker gets some until there is none.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counter(AtomicUsize);

/// A counter on which threads wait: spin, then sleep.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Gate {
    value: AtomicU32,
    sleepers: AtomicU32,
}

#[derive(Debug, Default)]
struct Shared {
    job: JobSlot,
    /// Changed to start a job (paired: workers' waits load it with Acquire). Holds the run's number and its members, so that
    /// one who wakes late knows from one look whether that very run waits for it.
    start: Gate,
    /// Bumped by the last to arrive at a barrier.
    phase: Gate,
    arrived: AtomicU32,
    stop: AtomicBool,
    /// Polls before a waiter sleeps.
    polls: u32,
}

/// The job of the current run. Written by the caller before `start` is bumped (Release), read by workers after they see
/// it (Acquire), and not written again before all have passed the job's last barrier.
#[derive(Debug, Default)]
struct JobSlot(std::cell::UnsafeCell<Option<JobPtr>>);

#[derive(Clone, Copy)]
struct JobPtr(*const (dyn Fn(Worker<'_>) + Sync));

impl std::fmt::Debug for JobPtr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JobPtr")
    }
}

// SAFETY: the slot's protocol (above) orders its one writer before its readers.
unsafe impl Sync for JobSlot {}
// SAFETY: the pointee is Sync, and outlives the run: `Team::run` returns only after the last barrier.
unsafe impl Send for JobSlot {}

impl Gate {
    /// Waits until the value is another than `seen`, polling so often before it sleeps; what it is then.
    fn wait(&self, seen: u32, polls: u32) -> u32 {
        for _ in 0..polls {
            let value = self.value.load(Ordering::Acquire);
            if value != seen {
                return value;
            }
            std::hint::spin_loop();
        }
        loop {
            let value = self.value.load(Ordering::Acquire);
            if value != seen {
                return value;
            }
            // SeqCst on both sides: either the opener sees this sleeper, or the futex call sees the new value.
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            // An interrupted or stale wait is retried by the loop.
            let _ = futex::wait(&self.value, futex::Flags::PRIVATE, seen, None);
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Lets everybody pass who has seen another value than this one.
    fn open(&self, value: u32) {
        self.value.store(value, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _ = futex::wake(&self.value, futex::Flags::PRIVATE, i32::MAX as u32);
        }
    }
}

impl Team {
    /// A team of `threads` members, the caller included, that waits briefly.
    pub fn new(threads: NonZero<usize>) -> std::io::Result<Self> {
        Team::waiting(threads, Waiting::Brief)
    }

    /// A team whose members wait for each other like this.
    pub fn waiting(threads: NonZero<usize>, waiting: Waiting) -> std::io::Result<Self> {
        let count = u32::try_from(threads.get()).unwrap_or(u32::MAX).min(MOST);
        let shared = Arc::new(Shared { polls: waiting.polls(), ..Shared::default() });
        let mut team = Team { shared, threads: vec![], active: count, runs: 0 };
        for id in 1..count as usize {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new().name(format!("njoule-{id}")).spawn(move || work(&shared, id))?;
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.threads.len() + 1
    }

    /// Lets later runs be shared by so many members, the caller included; at most all.
    pub fn set_active(&mut self, members: NonZero<usize>) {
        self.active = members.get().min(self.len()) as u32;
    }

    /// Never: the caller is a member.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Runs `job` on every active member and waits for these.
    ///
    /// A panic of any member aborts the process: the others may stand at a barrier that it will never reach, and a
    /// kernel panics only on a broken invariant.
    pub fn run(&mut self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let shared = &*self.shared;
        let worker = Worker { id: 0, count: self.active as usize, shared };
        if self.active > 1 {
            // SAFETY: only the lifetime is erased; all members leave the job before this function returns.
            let erased: *const (dyn Fn(Worker<'_>) + Sync + 'static) = unsafe { std::mem::transmute(job) };
            // SAFETY: between runs nobody reads the slot.
            unsafe { *shared.job.0.get() = Some(JobPtr(erased)) };
            self.runs = self.runs.wrapping_add(1);
            shared.start.open(start_value(self.runs, self.active));
        }
        run_job(worker, job);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.start.open(start_value(self.runs.wrapping_add(1), 0));
        for thread in self.threads.drain(..) {
            let _: Result<(), Box<dyn Any + Send>> = thread.join();
        }
    }
}

fn work(shared: &Shared, id: usize) {
    let mut seen = 0;
    loop {
        seen = shared.start.wait(seen, shared.polls);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // A run that this member has no part in may be over by now, and the slot belong to the next one.
        let count = (seen & MEMBERS) as usize;
        if id >= count {
            continue;
        }
        // SAFETY: `start` was opened for this run after the slot was written, and the run does not end without this member.
        let Some(job) = (unsafe { *shared.job.0.get() }) else { continue };
        // SAFETY: `Team::run` keeps the job alive until every member has passed the last barrier.
        let job = unsafe { &*job.0 };
        run_job(Worker { id, count, shared }, job);
    }
}

fn start_value(run: u32, members: u32) -> u32 {
    run.wrapping_mul(MEMBERS + 1) | members
}

fn run_job(worker: Worker<'_>, job: &(dyn Fn(Worker<'_>) + Sync)) {
    if catch_unwind(AssertUnwindSafe(|| job(worker))).is_err() {
        std::process::abort();
    }
    worker.barrier();
}

impl Worker<'_> {
    /// Waits until every member is here. What members wrote before is visible to all after.
    pub fn barrier(&self) {
        if self.count == 1 {
            return;
        }
        let shared = self.shared;
        let seen = shared.phase.value.load(Ordering::Acquire);
        // AcqRel: the last to arrive has seen every member's writes, and `open` passes them on.
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.count as u32 {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.phase.open(seen.wrapping_add(1));
        } else {
            shared.phase.wait(seen, shared.polls);
        }
    }

    /// Whether this member does what only one must do.
    pub fn is_first(&self) -> bool {
        self.id == 0
    }

    /// Runs `task` on chunks of `0..total` that this member claims.
    pub fn claim(&self, counter: &Counter, total: usize, chunk: usize, mut task: impl FnMut(std::ops::Range<usize>)) {
        if self.count == 1 {
            if total > 0 {
                task(0..total);
            }
            return;
        }
        loop {
            // Relaxed: the counter orders nothing but itself; barriers order the data.
            let start = counter.0.fetch_add(chunk, Ordering::Relaxed);
            if start >= total {
                return;
            }
            task(start..total.min(start + chunk));
        }
    }

    /// The same for equal pieces that lie one after the other in memory: each claim is half of an even share of what is
    /// left, so that most of the work is a few long streams, and the members still end together.
    pub fn claim_shares(&self, counter: &Counter, total: usize, mut task: impl FnMut(std::ops::Range<usize>)) {
        if self.count == 1 {
            return self.claim(counter, total, total, task);
        }
        let share = |start: usize| start + ((total - start) / (2 * self.count)).max(1);
        let next = |start| (start < total).then(|| share(start));
        // Relaxed: as in `claim`.
        while let Ok(start) = counter.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            task(start..share(start));
        }
    }
}

impl Counter {
    /// Sets it back for the next run.
    pub fn reset(&mut self) {
        *self.0.get_mut() = 0;
    }
}

#[cfg(test)]
mod tests;
