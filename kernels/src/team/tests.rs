//! Teams of one to eight members (more than this machine may have cores): barriers order, claims cover, rest costs
//! nothing.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::*;

fn team(threads: usize) -> Team {
    Team::new(NonZero::new(threads).expect("not zero")).expect("threads")
}

#[test]
fn every_member_runs_the_job_once_under_its_own_number() {
    for threads in 1..=8 {
        let mut team = team(threads);
        assert_eq!(team.len(), threads);
        for _ in 0..50 {
            let seen = Mutex::new(vec![]);
            team.run(&|worker| {
                assert_eq!((worker.count, worker.is_first()), (threads, worker.id == 0));
                seen.lock().expect("no panics").push(worker.id);
            });
            let mut seen = seen.into_inner().expect("no panics");
            seen.sort_unstable();
            assert_eq!(seen, (0..threads).collect::<Vec<_>>());
        }
    }
}

#[test]
fn nobody_passes_a_barrier_before_all_have_arrived() {
    const ROUNDS: usize = 200;
    for threads in 1..=8 {
        let mut team = team(threads);
        let arrived: Vec<AtomicUsize> = (0..ROUNDS).map(|_| AtomicUsize::new(0)).collect();
        let early = AtomicUsize::new(0);
        team.run(&|worker| {
            for count in &arrived {
                // Relaxed: the barrier is what must order it.
                count.fetch_add(1, Ordering::Relaxed);
                worker.barrier();
                early.fetch_add(usize::from(count.load(Ordering::Relaxed) != threads), Ordering::Relaxed);
            }
        });
        assert_eq!(early.into_inner(), 0, "{threads} threads");
    }
}

#[test]
fn what_was_written_before_a_barrier_is_read_after_it() {
    for threads in 2..=8 {
        let mut team = team(threads);
        let cells: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
        let wrong = AtomicUsize::new(0);
        team.run(&|worker| {
            for round in 1..=200_u64 {
                cells[worker.id].store(round, Ordering::Relaxed);
                worker.barrier();
                let stale = cells.iter().filter(|c| c.load(Ordering::Relaxed) != round).count();
                wrong.fetch_add(stale, Ordering::Relaxed);
                worker.barrier();
            }
        });
        assert_eq!(wrong.into_inner(), 0, "{threads} threads");
    }
}

#[test]
fn claims_cover_everything_exactly_once() {
    for threads in 1..=8 {
        let mut team = team(threads);
        for (total, chunk) in [(0, 1), (1, 1), (1, 7), (2, 1), (7, 3), (64, 16), (100, 7), (1000, 1), (1000, 2000)] {
            let taken: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
            let mut counter = Counter::default();
            // Twice, since a counter is used again after a reset.
            for round in 1..=2 {
                counter.reset();
                team.run(&|worker| {
                    worker.claim(&counter, total, chunk, |range| {
                        assert!(!range.is_empty() && (range.len() <= chunk || threads == 1));
                        range.for_each(|i| _ = taken[i].fetch_add(1, Ordering::Relaxed));
                    });
                });
                let wrong = taken.iter().filter(|t| t.load(Ordering::Relaxed) != round).count();
                assert_eq!(wrong, 0, "{threads} threads, {total} by {chunk}");
            }
        }
    }
}

#[test]
fn shares_cover_everything_exactly_once_and_shrink() {
    for threads in 1..=8 {
        let mut team = team(threads);
        for total in [0, 1, 2, 7, 64, 1000] {
            let taken: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
            let mut counter = Counter::default();
            for round in 1..=2 {
                counter.reset();
                team.run(&|worker| {
                    let mut last = usize::MAX;
                    worker.claim_shares(&counter, total, |range| {
                        assert!(!range.is_empty() && range.len() <= last);
                        assert!(threads == 1 || range.len() <= (total / (2 * threads)).max(1));
                        last = range.len();
                        range.for_each(|i| _ = taken[i].fetch_add(1, Ordering::Relaxed));
                    });
                });
                let wrong = taken.iter().filter(|t| t.load(Ordering::Relaxed) != round).count();
                assert_eq!(wrong, 0, "{threads} threads, {total}");
            }
        }
    }
}

#[test]
fn many_short_runs_neither_hang_nor_skip_anyone() {
    const RUNS: usize = 10_000;
    for threads in [2, 3, 8] {
        let mut team = team(threads);
        let ran = AtomicUsize::new(0);
        // Fewer where most of a run is the system finding a core for each member.
        let runs = if threads > 3 { RUNS / 10 } else { RUNS };
        for run in 0..runs {
            team.run(&|worker| {
                ran.fetch_add(1, Ordering::Relaxed);
                if run % 3 == 0 {
                    worker.barrier();
                }
            });
        }
        assert_eq!(ran.into_inner(), runs * threads, "{threads} threads");
    }
}

/// Whoever polls longer or not at all: barriers order, and a team without a job sleeps.
#[test]
fn every_way_of_waiting_orders_and_rests() {
    const ROUNDS: usize = 100;
    for waiting in [Waiting::Brief, Waiting::Park, Waiting::Spin] {
        let mut team = Team::waiting(NonZero::new(3).expect("not zero"), waiting).expect("threads");
        let arrived: Vec<AtomicUsize> = (0..ROUNDS).map(|_| AtomicUsize::new(0)).collect();
        let early = AtomicUsize::new(0);
        team.run(&|worker| {
            for count in &arrived {
                count.fetch_add(1, Ordering::Relaxed);
                worker.barrier();
                early.fetch_add(usize::from(count.load(Ordering::Relaxed) != 3), Ordering::Relaxed);
            }
        });
        assert_eq!(early.into_inner(), 0, "{waiting:?}");
        wait_until_parked(&worker_threads(&mut team));
    }
}

#[test]
fn a_run_may_be_shared_by_fewer_than_all() {
    for threads in [2, 3, 8] {
        let mut team = team(threads);
        // Numbers that grow and shrink, by one and by many, with those who sleep through several runs.
        for run in 0..3000 {
            let active = 1 + (run * 5 + run / 7) % threads;
            team.set_active(NonZero::new(active).expect("at least one"));
            let ran: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            team.run(&|worker| {
                assert_eq!(worker.count, active);
                worker.barrier();
                ran[worker.id].fetch_add(1, Ordering::Relaxed);
            });
            let ran: Vec<usize> = ran.into_iter().map(AtomicUsize::into_inner).collect();
            assert!((0..threads).all(|id| ran[id] == usize::from(id < active)), "{active} of {threads}: {ran:?}");
        }
        team.set_active(NonZero::new(99).expect("at least one"));
        let ran = AtomicUsize::new(0);
        team.run(&|_| _ = ran.fetch_add(1, Ordering::Relaxed));
        assert_eq!(ran.into_inner(), threads);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn members_without_a_part_sleep_on() {
    let mut team = team(2);
    let (ids, before) = at_rest(&mut team);
    team.set_active(NonZero::<usize>::MIN);
    (0..1000).for_each(|_| team.run(&|worker| worker.barrier()));
    assert_eq!(before, ids.iter().map(|id| switches(*id)).collect::<Vec<_>>());
}

#[test]
fn a_job_may_borrow_from_the_caller() {
    let mut team = team(3);
    for round in 0..100_usize {
        let local = [round; 3];
        let sum = AtomicUsize::new(0);
        team.run(&|worker| _ = sum.fetch_add(local[worker.id], Ordering::Relaxed));
        assert_eq!(sum.into_inner(), 3 * round);
    }
}

#[test]
fn a_team_can_be_dropped_unused_or_while_its_workers_rest() {
    for threads in 1..=8 {
        drop(team(threads));
        let mut used = team(threads);
        used.run(&|_| {});
        drop(used);
    }
    let mut team = team(4);
    let ids = worker_threads(&mut team);
    wait_until_parked(&ids);
    drop(team);
    // The system lists a thread a moment longer than it can be joined.
    let start = Instant::now();
    while ids.iter().any(|id| state(*id).is_some()) {
        assert!(start.elapsed() < Duration::from_secs(10), "threads are joined");
        std::thread::yield_now();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn resting_workers_use_no_processor_time() {
    let mut team = team(4);
    let (ids, before) = at_rest(&mut team);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        std::hint::spin_loop();
    }
    // Not woken once: neither used up a time slice nor went to sleep again.
    assert_eq!(before, ids.iter().map(|id| switches(*id)).collect::<Vec<_>>());
    assert!(ids.iter().all(|id| state(*id) == Some('S')));
}

/// The members but the caller, asleep, and how often each has been taken off a core.
fn at_rest(team: &mut Team) -> (Vec<i32>, Vec<Vec<String>>) {
    let ids = worker_threads(team);
    wait_until_parked(&ids);
    let switches = ids.iter().map(|id| switches(*id)).collect();
    (ids, switches)
}

/// The system's numbers of the members but the caller.
fn worker_threads(team: &mut Team) -> Vec<i32> {
    let ids = Mutex::new(vec![]);
    team.run(&|worker| {
        if !worker.is_first() {
            ids.lock().expect("no panics").push(rustix::thread::gettid().as_raw_nonzero().get());
        }
    });
    ids.into_inner().expect("no panics")
}

/// A thread's scheduling state, while it exists.
fn state(id: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{id}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// How often it has been taken off a core.
fn switches(id: i32) -> Vec<String> {
    let status = std::fs::read_to_string(format!("/proc/self/task/{id}/status")).expect("a live thread");
    status.lines().filter(|l| l.contains("ctxt_switches")).map(str::to_owned).collect()
}

fn wait_until_parked(ids: &[i32]) {
    let start = Instant::now();
    while !ids.iter().all(|id| state(*id) == Some('S')) {
        assert!(start.elapsed() < Duration::from_secs(20), "workers never rest");
        std::thread::yield_now();
    }
}
