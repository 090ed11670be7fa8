//! A closed loop: clients that always find a next request, lap after lap, until the time is over.
//!
//! Invariant: requests of a lap go out in their order and laps follow each other without a pause, so that no client waits for
//! another; once one has found nothing left, nobody finds anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::steady::{Edge, Slots};
use crate::verbs::bench::client::{Asked, Load};

/// Laps of a plan.
pub struct Laps<'a> {
    plan: &'a (dyn Fn(usize) -> Vec<Asked> + Sync),
    start: Instant,
    least: Duration,
    pieces: &'a AtomicU64,
    state: Mutex<State>,
}

struct State {
    lap: usize,
    left: std::vec::IntoIter<Asked>,
    taken: usize,
    /// Requests of a lap, and those that failed since the last good answer.
    lap_len: usize,
    failed: usize,
    over: bool,
    slots: Slots,
    edges: Sender<Edge>,
}

impl<'a> Laps<'a> {
    /// From `start` on for at least so long, beginning with `first`, the plan's lap 0. `pieces` counts what comes; `edges` is
    /// told where the steady window begins and ends.
    pub fn new(
        (plan, first): (&'a (dyn Fn(usize) -> Vec<Asked> + Sync), Vec<Asked>),
        clients: usize,
        (start, least): (Instant, Duration),
        pieces: &'a AtomicU64,
        edges: Sender<Edge>,
    ) -> Laps<'a> {
        let state = State {
            lap: 0,
            taken: 0,
            lap_len: first.len(),
            left: first.into_iter(),
            failed: 0,
            over: false,
            slots: Slots::of(clients),
            edges,
        };
        Laps { plan, start, least, pieces, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&self, edge: Option<Edge>) {
        if let Some(edge) = edge {
            // Who listens no more has heard enough.
            let _ = self.edges.send(edge);
        }
    }
}

impl Load for Laps<'_> {
    fn next(&self) -> Option<(usize, Asked)> {
        let mut state = self.state();
        // A server that refuses a whole lap will not answer the next.
        let ends = |state: &State| self.start.elapsed() >= self.least || state.failed >= state.lap_len;
        if state.left.len() == 0 && !state.over {
            state.over = ends(&state);
            if !state.over {
                state.lap += 1;
                state.left = (self.plan)(state.lap).into_iter();
            }
        }
        let asked = state.left.next()?;
        state.taken += 1;
        Some((state.taken - 1, asked))
    }

    fn piece(&self, client: usize) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        let edge = state.slots.has_token(client);
        state.tell(edge);
    }

    fn answered(&self, good: bool) {
        let mut state = self.state();
        state.failed = if good { 0 } else { state.failed + 1 };
    }

    fn nothing_left(&self, _client: usize) {
        let mut state = self.state();
        let edge = state.slots.is_empty();
        state.tell(edge);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: usize) -> Asked {
        Asked { prompt: name.to_string(), tokens: 1, at: None }
    }

    fn laps<'a>(plan: &'a (dyn Fn(usize) -> Vec<Asked> + Sync), least: Duration, pieces: &'a AtomicU64) -> Laps<'a> {
        let (edges, _) = std::sync::mpsc::channel();
        Laps::new((plan, plan(0)), 2, (Instant::now(), least), pieces, edges)
    }

    fn prompts(laps: &Laps<'_>, most: usize) -> Vec<(usize, String)> {
        std::iter::from_fn(|| laps.next().map(|(at, asked)| (at, asked.prompt))).take(most).collect()
    }

    #[test]
    fn laps_follow_each_other_until_the_time_is_over_and_are_whole() {
        let (plan, pieces) = (|lap: usize| (0..3).map(|i| asked(10 * lap + i)).collect::<Vec<_>>(), AtomicU64::new(0));
        let one = laps(&plan, Duration::ZERO, &pieces);
        assert_eq!(
            prompts(&one, 9).iter().map(|(at, p)| (*at, p.as_str())).collect::<Vec<_>>(),
            [(0, "0"), (1, "1"), (2, "2")]
        );
        let long = laps(&plan, Duration::from_secs(3600), &pieces);
        let taken = prompts(&long, 7);
        assert_eq!(taken.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!((taken[3].1.as_str(), taken[6].1.as_str()), ("10", "20"));
    }

    /// A lap of failures without a good answer ends it, and one good answer among them does not.
    #[test]
    fn a_server_that_answers_nobody_is_given_up() {
        let (plan, pieces) = (|_: usize| vec![asked(0), asked(1)], AtomicU64::new(0));
        let hour = Duration::from_secs(3600);
        let dead = laps(&plan, hour, &pieces);
        let sent = std::iter::from_fn(|| dead.next().inspect(|_| dead.answered(false))).take(9).count();
        assert_eq!(sent, 2);
        let poor = laps(&plan, hour, &pieces);
        let sent = std::iter::from_fn(|| poor.next().inspect(|(at, _)| poor.answered(at % 2 == 1))).take(9).count();
        assert_eq!(sent, 9);
    }
}
