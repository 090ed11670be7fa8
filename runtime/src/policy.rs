//! When a step starts, at once or a little later and in more company, and how many threads share it.
//!
//! Model. A step of B rows costs `E(B) = a·B + b`, be it joules or CPU-seconds: `b` is reading the weights, whoever shares it.
//! A token therefore costs `a + b/B`, and where fewer tokens are asked for than could be made, the batch is small only because
//! every step starts as soon as it can. [`Objective::TokensPerJoule`] lets a step wait as long as the latency that was promised
//! allows: until the first of
//!
//! * a running sequence's next token would come later than `tpot` after its last one,
//! * a waiting request's first token would come later than `ttft` after it arrived,
//!
//! less the time that the step is expected to take. It does not wait where waiting saves little (`a·B` is most of the step),
//! where all places are taken so that nobody can join, or in the middle of a prompt. A step that starts at the latest possible moment serves all
//! who are there, so no schedule that keeps the same bounds has fewer steps (the exchange argument of lazy interval stabbing:
//! serving everybody only moves deadlines later); what is lost against one that knows the future is the margin of the
//! prediction alone. [`simulate`] measures that.
//!
//! Where a meter has told what a step costs ([`StepEnergy`]), whether waiting saves little is asked of joules, and so is whether
//! guessed tokens are worth their rows (`scheduler/speculate.rs`); of seconds otherwise, which on one number of busy cores are
//! joules but for a factor.
//!
//! Expected time: `t(rows) = c0 + c1·rows` by least squares of recent steps; rows beyond the longest of them are taken to cost what
//! a row of them costs on average, which is never less.
//!
//! Threads that share a step wait for each other, so that fewer of them take longer and less CPU time. A step is shared by
//! the [crew](Crews) that costs the fewest CPU-seconds among those that keep the promises; CPU-seconds stand in for joules where
//! nobody has measured these, and where `njoule tune` has, the crew that it found is taken instead.
//!
//! Invariant: nothing here changes a token or the order of requests; with the other objectives nothing ever waits, and all threads
//! share every step.

use std::num::NonZero;
use std::time::{Duration, Instant};

mod crew;
pub mod simulate;

use crew::{Crews, Work};

/// What a server is to be good at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// Every token as soon as possible.
    #[default]
    Latency,
    /// Tokens per second under load; steps are the same as with [`Objective::Latency`], which never waits either.
    Throughput,
    /// Tokens per joule, within promised latencies.
    TokensPerJoule(Bounds),
}

/// Latencies that are promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Between two tokens of a request.
    pub tpot: Duration,
    /// From a request's arrival to its first token.
    pub ttft: Duration,
}

impl Default for Bounds {
    /// Faster than most people read, and an answer that begins within two seconds.
    fn default() -> Bounds {
        Bounds { tpot: Duration::from_millis(200), ttft: Duration::from_secs(2) }
    }
}

/// What a step costs in joules, as fitted to a meter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepEnergy {
    /// Whatever its rows.
    pub fixed: f64,
    /// Each row, its context apart, which the row reads at whatever batch.
    pub per_row: f64,
    /// Watts that always flow.
    pub per_second: f64,
}

impl StepEnergy {
    /// Joules of a step of `rows` that takes `seconds`.
    pub fn joules(&self, rows: usize, seconds: f64) -> f64 {
        self.fixed + self.per_row * rows as f64 + self.per_second * seconds
    }
}

/// A request as far as time matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// When it arrived, or got its last token.
    pub since: Instant,
    /// Rows that it has to run before its next token.
    pub rows: usize,
    /// What it waits for.
    pub state: Waiting,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Its first step.
    Start,
    /// The rest of its prompt.
    Prompt,
    /// Its next token.
    Token,
}

/// Decides when steps start.
#[derive(Clone, Debug)]
pub struct Pace {
    objective: Objective,
    crews: Crews,
    /// Of joules, where they are known.
    energy: Option<StepEnergy>,
    /// Seconds that steps start earlier by, for those who join at the last moment.
    reserve: f64,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing before this moment, unless somebody comes or leaves.
    Wait(Instant),
    /// A step, shared by so many threads.
    Run(NonZero<usize>),
}

impl Pace {
    /// For an objective and a number of threads, with nothing measured yet. `thrifty` is the number of threads whose tokens cost
    /// the fewest joules, if that was measured.
    pub fn new(objective: Objective, workers: NonZero<usize>, thrifty: Option<NonZero<usize>>) -> Pace {
        Pace { objective, crews: Crews::new(workers, thrifty), energy: None, reserve: 0.0 }
    }

    /// Takes note of what a step of `rows` took that was shared by `workers`.
    pub fn observe(&mut self, workers: NonZero<usize>, rows: usize, seconds: f64) {
        self.crews.observe(workers, rows as f64, seconds);
    }

    /// Asks joules whether waiting saves enough, or time where they are not known.
    pub fn weigh(&mut self, energy: Option<StepEnergy>) {
        self.energy = energy;
    }

    /// Takes note of the longest time between two tokens that ended with a step, and of the longest to a first token: where a
    /// promise was broken, because somebody with a long prompt joined at the last moment, later steps start earlier for a while.
    pub fn observe_waits(&mut self, gap: f64, first: f64) {
        let Objective::TokensPerJoule(bounds) = self.objective else { return };
        let (tpot, ttft) = (bounds.tpot.as_secs_f64(), bounds.ttft.as_secs_f64());
        self.reserve = match (gap - tpot).max(first - ttft) {
            over if over > 0.0 => (self.reserve + over).min(tpot / 2.0),
            _ => RESERVE_FADE * self.reserve,
        };
    }

    /// Whether anything ever waits.
    pub fn may_wait(&self) -> bool {
        matches!(self.objective, Objective::TokensPerJoule(_))
    }

    /// What to do now. `room` are requests that may still start beside those that run, `budget` the rows of a step.
    pub fn decide(&self, now: Instant, waiters: impl Iterator<Item = Waiter>, room: usize, budget: usize) -> Decision {
        let at_once = Decision::Run(self.crews.all());
        let Objective::TokensPerJoule(bounds) = self.objective else { return at_once };
        let earliest = |promise: &mut Option<Instant>, latest: Instant| {
            *promise = Some(promise.map_or(latest, |promise| promise.min(latest)));
        };
        let (mut rows, mut starting, mut amid, mut token, mut first) = (0, 0, false, None, None);
        for waiter in waiters {
            rows += waiter.rows;
            starting += usize::from(waiter.state == Waiting::Start);
            amid |= waiter.state == Waiting::Prompt;
            match waiter.state {
                Waiting::Token => earliest(&mut token, waiter.since + bounds.tpot),
                Waiting::Start | Waiting::Prompt => earliest(&mut first, waiter.since + bounds.ttft),
            }
        }
        if starting > room || rows == 0 {
            return at_once;
        }
        // Whoever comes now can join nobody.
        let full = room == starting;
        // The next step brings the next tokens; the last of the prompts' rows may come some steps later.
        let budget = budget.max(1);
        let next = Work { steps: 1, rows: rows.min(budget) };
        let all = Work { steps: rows.div_ceil(budget), rows };
        let due = |crew: usize| -> Option<Instant> {
            let before = |promise: Option<Instant>, work: Work| -> Option<Option<Instant>> {
                let Some(promise) = promise else { return Some(None) };
                let takes = MARGIN * self.crews.seconds(crew, work)? + self.reserve;
                Some(Some(promise.checked_sub(Duration::from_secs_f64(takes)).unwrap_or(now)))
            };
            let (token, first) = (before(token, next)?, before(first, all)?);
            token.into_iter().chain(first).min()
        };
        let Some(crew) = self.crews.cheapest(next, |crew| due(crew).is_some_and(|due| due >= now)) else {
            return at_once;
        };
        let run = Decision::Run(self.crews.size(crew));
        if amid || full || !self.is_worth_company(crew, rows) {
            return run;
        }
        match due(crew).and_then(|due| due.checked_sub(SLACK)) {
            Some(due) if due > now => Decision::Wait(due),
            _ => run,
        }
    }

    /// Whether what a step shares is enough of it for company to save anything.
    fn is_worth_company(&self, crew: usize, rows: usize) -> bool {
        let Some((fixed, per_row)) = self.crews.line(crew) else { return false };
        let (shared, own) = match self.energy {
            None => (fixed, per_row),
            Some(e) => (e.fixed + e.per_second * fixed, e.per_row + e.per_second * per_row),
        };
        shared >= LITTLE * own * rows as f64
    }
}

/// Share of the expected time that is added to it.
const MARGIN: f64 = 1.2;

/// How fast the reserve is given up, a step.
const RESERVE_FADE: f64 = 0.997;

/// What is shared over what is each row's own, below which company saves too little to wait for.
const LITTLE: f64 = 0.05;

/// Time for waking up, which is added too.
const SLACK: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { tpot: Duration::from_millis(200), ttft: Duration::from_secs(2) };

    /// Steps take 10 ms and 1 ms a row.
    fn pace() -> Pace {
        let mut pace = alone(Objective::TokensPerJoule(BOUNDS));
        for rows in [1, 2, 8, 4, 32] {
            pace.observe(ONE, rows, 0.010 + 0.001 * rows as f64);
        }
        pace
    }

    const ONE: NonZero<usize> = NonZero::<usize>::MIN;

    /// With one thread.
    fn alone(objective: Objective) -> Pace {
        Pace::new(objective, ONE, None)
    }

    fn hold(pace: &Pace, now: Instant, waiters: &[Waiter], room: usize) -> Option<Instant> {
        match pace.decide(now, waiters.iter().copied(), room, 512) {
            Decision::Wait(until) => Some(until),
            Decision::Run(_) => None,
        }
    }

    fn waiter(since: Instant, rows: usize, state: Waiting) -> Waiter {
        Waiter { since, rows, state }
    }

    fn ms(from: Instant, due: Option<Instant>) -> f64 {
        due.map_or(0.0, |due| (due - from).as_secs_f64() * 1e3)
    }

    #[test]
    fn a_step_starts_when_the_first_promise_would_break() {
        let (pace, now) = (pace(), Instant::now());
        let token = waiter(now, 1, Waiting::Token);
        // 200 ms less 1.2 times 11 ms and 2 ms.
        let due = hold(&pace, now, &[token], 4);
        assert!((ms(now, due) - 184.8).abs() < 0.1, "{due:?}");
        // A request of 20 rows joins: the step takes longer, and the token is still first.
        let start = waiter(now, 20, Waiting::Start);
        let due = hold(&pace, now, &[token, start], 4);
        assert!((ms(now, due) - (198.0 - 1.2 * 31.0)).abs() < 0.1, "{due:?}");
        // Alone it may wait for its own bound.
        let due = hold(&pace, now, &[start], 4);
        assert!((ms(now, due) - (1998.0 - 1.2 * 30.0)).abs() < 0.1, "{due:?}");
        // Once that is near it starts.
        let late = now + Duration::from_millis(1970);
        assert_eq!(hold(&pace, late, &[start], 4), None);
    }

    #[test]
    fn prompts_longer_than_any_step_so_far_are_not_taken_for_cheap() {
        let mut pace = alone(Objective::TokensPerJoule(BOUNDS));
        (0..5).for_each(|_| pace.observe(ONE, 1, 0.003));
        let now = Instant::now();
        let due = hold(&pace, now, &[waiter(now, 300, Waiting::Start)], 4);
        // 2 s less 1.2 times 300 times 3 ms, and 2 ms.
        assert!((ms(now, due) - (1998.0 - 1.2 * 900.0)).abs() < 0.1, "{due:?}");
        // A broken promise of either kind lets later steps start earlier.
        let before = hold(&pace, now, &[waiter(now, 1, Waiting::Token)], 4);
        pace.observe_waits(0.0, 2.05);
        let after = hold(&pace, now, &[waiter(now, 1, Waiting::Token)], 4);
        assert!((ms(now, before) - ms(now, after) - 50.0).abs() < 0.1, "{before:?} {after:?}");
    }

    #[test]
    fn nothing_waits_without_a_reason() {
        let (paced, now) = (pace(), Instant::now());
        let token = waiter(now, 1, Waiting::Token);
        assert_eq!(hold(&paced, now, &[token], 0), None, "nobody can join");
        for objective in [Objective::Latency, Objective::Throughput] {
            let mut pace = alone(objective);
            pace.observe(ONE, 1, 0.01);
            assert!(!pace.may_wait());
            assert_eq!(hold(&pace, now, &[token], 4), None);
        }
        let prompt = waiter(now, 9, Waiting::Prompt);
        assert_eq!(hold(&paced, now, &[token, prompt], 4), None, "in the middle of a prompt");
        let start = waiter(now, 9, Waiting::Start);
        assert_eq!(hold(&paced, now, &[token, start, start], 1), None, "a queue for a place");
        let many = [token; 400];
        assert_eq!(hold(&paced, now, &many, 0), None, "company enough");
        let unmeasured = alone(Objective::TokensPerJoule(BOUNDS));
        assert_eq!(hold(&unmeasured, now, &[token], 4), None, "nothing measured");
        assert_eq!(hold(&paced, now, &[], 4), None);
    }

    /// What is shared and what is each row's own is asked of joules where they are known.
    #[test]
    fn joules_say_whether_company_saves_enough() {
        let (mut pace, now) = (pace(), Instant::now());
        let token = [waiter(now, 1, Waiting::Token)];
        pace.weigh(Some(StepEnergy { fixed: 0.001, per_row: 1.0, per_second: 0.0 }));
        assert_eq!(hold(&pace, now, &token, 4), None, "a row costs a thousand times what is shared");
        pace.weigh(Some(StepEnergy { fixed: 0.0, per_row: 0.0, per_second: 5.0 }));
        assert!(hold(&pace, now, &token, 4).is_some(), "watts flow for the fixed part of a step's time");
    }

    #[test]
    fn fewer_threads_share_a_step_while_promises_allow() {
        let two = NonZero::new(2).unwrap();
        let mut pace = Pace::new(Objective::TokensPerJoule(BOUNDS), two, None);
        for rows in [1, 2, 8, 4, 32] {
            pace.observe(ONE, rows, 0.010 + 0.001 * rows as f64);
            pace.observe(two, rows, 0.006 + 0.0006 * rows as f64);
        }
        let now = Instant::now();
        let decide = |pace: &Pace, late: u64, rows: usize| {
            let waiter = waiter(now, rows, Waiting::Token);
            pace.decide(now + Duration::from_millis(late), [waiter].into_iter(), 4, 512)
        };
        // 200 ms less 1.2 times 11 ms: one thread is in time until then, two until 1.2 times 6.6 ms before the end.
        assert_eq!(decide(&pace, 185, 1), Decision::Run(ONE));
        assert_eq!(decide(&pace, 191, 1), Decision::Run(two));
        assert_eq!(decide(&pace, 250, 1), Decision::Run(two), "too late, so as fast as can be");
        assert!(matches!(decide(&pace, 0, 1), Decision::Wait(_)));
        let fast = Pace::new(Objective::Latency, two, None);
        assert_eq!(decide(&fast, 0, 1), Decision::Run(two));
    }

    #[test]
    fn rows_beyond_the_next_step_hurry_no_running_sequence() {
        let (pace, now) = (pace(), Instant::now());
        let both = [waiter(now, 1, Waiting::Token), waiter(now, 99, Waiting::Start)];
        let decide = |budget| match pace.decide(now, both.into_iter(), 4, budget) {
            Decision::Wait(until) => until - now,
            Decision::Run(_) => Duration::ZERO,
        };
        assert!(decide(10) > Duration::from_millis(170), "{:?}", decide(10));
        assert!(decide(100) < Duration::from_millis(70), "{:?}", decide(100));
    }
}
