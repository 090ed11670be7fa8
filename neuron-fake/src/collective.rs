//! Ranks of a collective program meet: each brings its inputs, the last to come computes for all, in lockstep.
//!
//! Ranks are threads of one process. One that does not come in time fails those that wait, with status 1200, as a device
//! does; a rank whose inputs are being computed with waits as long as that takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use njoule_hlo::Tensor;

use crate::status::{self, Answer, Refusal, refuse};

/// What a run gives a rank: its outputs, or why not and what is left of its inputs.
pub(crate) type Outcome = Result<Vec<Tensor>, Lost>;

/// A run that failed.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    pub refusal: Refusal,
    /// By input; None where the run had consumed it. Empty: nothing is left.
    pub left: Vec<Option<Tensor>>,
}

/// The ranks of one loaded program.
#[derive(Debug)]
pub(crate) struct Group {
    pub hash: [u8; 32],
    pub world: u32,
    meeting: Mutex<Meeting>,
    changed: Condvar,
    seats: Mutex<BTreeSet<u32>>,
}

/// A rank's place in its group, given up when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    pub group: Arc<Group>,
    pub rank: u32,
}

#[derive(Debug, Default)]
struct Meeting {
    arrived: BTreeMap<u32, Vec<Tensor>>,
    outcomes: BTreeMap<u32, Outcome>,
}

impl Group {
    pub(crate) fn new(hash: [u8; 32], world: u32) -> Group {
        Group { hash, world, meeting: Mutex::default(), changed: Condvar::new(), seats: Mutex::default() }
    }

    /// Takes the rank's seat, unless it is taken.
    pub(crate) fn sit(self: &Arc<Group>, rank: u32) -> Option<Seat> {
        let new = self.seats.lock().unwrap_or_else(PoisonError::into_inner).insert(rank);
        new.then(|| Seat { group: self.clone(), rank })
    }
}

impl Seat {
    /// Meets the others. `compute` is called by the last, with the inputs of all in order of rank.
    pub(crate) fn meet(
        &self,
        inputs: Vec<Tensor>,
        timeout: Duration,
        compute: impl FnOnce(Vec<Vec<Tensor>>) -> Vec<Outcome>,
    ) -> Outcome {
        let Group { world, meeting, changed, .. } = &*self.group;
        let lost = |text: String, left: Vec<Tensor>| {
            let refusal = Refusal { status: status::EXEC_HW_ERR_COLLECTIVES, text };
            Err(Lost { refusal, left: left.into_iter().map(Some).collect() })
        };
        let mut now = meeting.lock().unwrap_or_else(PoisonError::into_inner);
        now.arrived.insert(self.rank, inputs);
        if now.arrived.len() == *world as usize {
            let all = std::mem::take(&mut now.arrived);
            drop(now);
            let outcomes = compute(all.into_values().collect());
            now = meeting.lock().unwrap_or_else(PoisonError::into_inner);
            now.outcomes.extend((0..).zip(outcomes));
            changed.notify_all();
        }
        let start = Instant::now();
        loop {
            if let Some(outcome) = now.outcomes.remove(&self.rank) {
                return outcome;
            }
            let waited = start.elapsed();
            if waited >= timeout
                && let Some(left) = now.arrived.remove(&self.rank)
            {
                let here = now.arrived.len() + 1;
                return lost(format!("rank {}: {here} of {world} ranks came within {timeout:?}", self.rank), left);
            }
            let rest = timeout.saturating_sub(waited).max(Duration::from_millis(1));
            now = changed.wait_timeout(now, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.group.seats.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.rank);
    }
}

/// The global communicator: the first collective load makes it, and waits without limit until every rank does.
#[derive(Debug, Default)]
pub(crate) struct Communicator {
    /// Ranks that have come, by size of the world.
    joined: Mutex<BTreeMap<u32, BTreeSet<u32>>>,
    changed: Condvar,
}

impl Communicator {
    /// Joins; returns once a communicator of at least this size stands, or after the limit.
    pub(crate) fn join(&self, rank: u32, world: u32, limit: Option<Duration>) -> Answer {
        let start = Instant::now();
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        joined.entry(world).or_default().insert(rank);
        self.changed.notify_all();
        loop {
            if joined.range(world..).any(|(&size, ranks)| ranks.len() == size as usize) {
                return Ok(());
            }
            let here = joined.get(&world).map_or(0, BTreeSet::len);
            let rest = match limit {
                None => Duration::from_secs(3600),
                Some(limit) if start.elapsed() < limit => limit - start.elapsed(),
                Some(limit) => {
                    let text = format!("{here} of {world} ranks joined within {limit:?} (NJOULE_FAKE_HANG_LIMIT)");
                    return refuse(status::TIMEOUT, text);
                }
            };
            joined = self.changed.wait_timeout(joined, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(all: Vec<Vec<Tensor>>) -> Vec<Outcome> {
        let value = |t: &[Tensor]| t[0].as_slice::<i32>().unwrap()[0];
        let total: i32 = all.iter().map(|t| value(t)).sum();
        all.iter().map(|_| Ok(vec![Tensor::scalar(total)])).collect()
    }

    #[test]
    fn the_last_computes_for_all_again_and_again() {
        let group = Arc::new(Group::new([0; 32], 3));
        let seats: Vec<Seat> = (0..3).map(|rank| group.sit(rank).unwrap()).collect();
        assert!(group.sit(1).is_none(), "taken");
        std::thread::scope(|s| {
            for seat in &seats {
                s.spawn(move || {
                    for step in 0..50 {
                        let mine = Tensor::scalar(seat.rank as i32 + step);
                        let got = seat.meet(vec![mine], Duration::from_secs(60), sum).unwrap();
                        assert_eq!(got, [Tensor::scalar(3 + 3 * step)]);
                    }
                });
            }
        });
    }

    #[test]
    fn who_waits_in_vain_gets_its_inputs_back() {
        let group = Arc::new(Group::new([0; 32], 2));
        let seat = group.sit(0).unwrap();
        let lost = seat.meet(vec![Tensor::scalar(7)], Duration::from_millis(5), sum).unwrap_err();
        assert_eq!((lost.refusal.status, lost.left), (1200, vec![Some(Tensor::scalar(7))]));
        assert!(lost.refusal.text.contains("1 of 2 ranks"), "{}", lost.refusal.text);
        drop(seat);
        assert!(group.sit(0).is_some());
    }

    #[test]
    fn a_communicator_serves_smaller_worlds() {
        let communicator = Communicator::default();
        std::thread::scope(|s| {
            for rank in 0..2 {
                let communicator = &communicator;
                s.spawn(move || communicator.join(rank, 2, None).unwrap());
            }
        });
        communicator.join(0, 1, None).unwrap();
        let late = communicator.join(0, 4, Some(Duration::from_millis(5))).unwrap_err();
        assert_eq!(late.status, status::TIMEOUT);
    }
}
