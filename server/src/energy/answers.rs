//! The last answers whose energy was asked for, for who wants to know what meters have told since.
//!
//! Invariant: an answer is shown to its tenant alone; memory is bounded whatever clients do, and who asks for many answers loses
//! its own before those of others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Energy, Used};
use crate::tenant::Tenant;

/// Answers, the oldest first.
#[derive(Debug, Default)]
pub struct Answers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    answers: VecDeque<Answer>,
    /// Room that the answers of each tenant take.
    taken: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Answer {
    id: String,
    tenant: Tenant,
    since: Instant,
    /// What it takes of [`ROOM`].
    room: usize,
    used: Used,
}

impl Answers {
    /// Keeps what an answer to `tenant` has used.
    pub fn keep(&self, id: &str, tenant: Tenant, used: Used, now: Instant) {
        let room = used.open().max(1);
        if room > ROOM {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget_old(now);
        kept.make_room(room);
        kept.answers.push_back(Answer { id: id.to_owned(), tenant, since: now, room, used });
        *kept.taken.entry(tenant.number()).or_default() += room;
    }

    /// What the answer `id` to `tenant` has used, as far as it is known now; `None` if it is not kept.
    pub fn find(&self, id: &str, tenant: Tenant, now: Instant) -> Option<Energy> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget_old(now);
        let answer = kept.answers.iter_mut().find(|answer| answer.id == id && answer.tenant == tenant)?;
        answer.used.settle()
    }
}

impl Kept {
    fn forget_old(&mut self, now: Instant) {
        while self.answers.front().is_some_and(|answer| now.saturating_duration_since(answer.since) > AGE) {
            self.forget(0);
        }
    }

    /// Forgets answers of whoever has most, until `room` is left.
    fn make_room(&mut self, room: usize) {
        while self.taken.values().sum::<usize>() + room > ROOM {
            let Some((&most, _)) = self.taken.iter().max_by_key(|(_, taken)| **taken) else { return };
            let Some(oldest) = self.answers.iter().position(|answer| answer.tenant.number() == most) else { return };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, at: usize) {
        let Some(answer) = self.answers.remove(at) else { return };
        if let Some(taken) = self.taken.get_mut(&answer.tenant.number()) {
            *taken = taken.saturating_sub(answer.room);
            if *taken == 0 {
                self.taken.remove(&answer.tenant.number());
            }
        }
    }
}

/// Answers that are kept, of which one takes as much room as it had sequences that were not settled: some megabytes.
const ROOM: usize = 4096;

/// How long they are kept: longer than a driver can be silent before it is said to be.
const AGE: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn used(cpu_s: f64) -> Used {
        let energy = njoule_runtime::engine::RequestEnergy { cpu_s, settled: true, ..Default::default() };
        Used { settled: Some(energy.into()), later: Vec::new() }
    }

    #[test]
    fn an_answer_is_shown_to_its_tenant_and_for_a_while() {
        let (answers, begun) = (Answers::default(), Instant::now());
        let (one, other) = (Tenant::of_key(0), Tenant::of_key(1));
        answers.keep("a", one, used(1.5), begun);
        assert_eq!(answers.find("a", one, begun + AGE).map(|energy| energy.cpu_s), Some(1.5));
        assert_eq!(answers.find("a", other, begun), None);
        assert_eq!(answers.find("b", one, begun), None);
        assert_eq!(answers.find("a", one, begun + AGE + Duration::from_secs(1)), None);
        assert!(answers.0.lock().unwrap().taken.is_empty());
    }

    #[test]
    fn who_asks_for_many_loses_its_own() {
        let (answers, now) = (Answers::default(), Instant::now());
        let (modest, greedy) = (Tenant::of_key(0), Tenant::of_key(1));
        answers.keep("mine", modest, used(1.0), now);
        for i in 0..2 * ROOM {
            answers.keep(&i.to_string(), greedy, used(2.0), now);
        }
        assert!(answers.find("mine", modest, now).is_some());
        let last = (2 * ROOM - 1).to_string();
        assert!(answers.find(&last, greedy, now).is_some() && answers.find("0", greedy, now).is_none());
        assert_eq!(answers.0.lock().unwrap().answers.len(), ROOM);
    }
}
