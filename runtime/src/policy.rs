//! When a step starts: at once, or a little later and in more company.
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
//! where requests queue for a place, or in the middle of a prompt. A step that starts at the latest possible moment serves all
//! who are there, so no schedule that keeps the same bounds has fewer steps (the exchange argument of lazy interval stabbing:
//! serving everybody only moves deadlines later); what is lost against one that knows the future is the margin of the
//! prediction alone. [`simulate`] measures that.
//!
//! Expected time: `t(rows) = c0 + c1·rows` by least squares of recent steps; rows beyond the longest of them are taken to cost what
//! a row of them costs on average, which is never less.
//!
//! Invariant: nothing here changes a token or the order of requests; with the other objectives nothing ever waits.

use std::time::{Duration, Instant};

pub mod simulate;

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
    costs: Costs,
    /// Seconds that steps start earlier by, for those who join at the last moment.
    reserve: f64,
}

impl Pace {
    /// For an objective, with nothing measured yet.
    pub fn new(objective: Objective) -> Pace {
        Pace { objective, costs: Costs::default(), reserve: 0.0 }
    }

    /// Takes note of what a step of `rows` took.
    pub fn observe(&mut self, rows: usize, seconds: f64) {
        self.costs.observe(rows as f64, seconds);
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

    /// When the next step should start; `None` is at once. `room` are requests that may still start beside those that run,
    /// `budget` the rows of a step.
    pub fn hold(
        &self,
        now: Instant,
        waiters: impl Iterator<Item = Waiter>,
        room: usize,
        budget: usize,
    ) -> Option<Instant> {
        let Objective::TokensPerJoule(bounds) = self.objective else { return None };
        let (mut rows, mut starting, mut promised) = (0, 0, None::<Instant>);
        for waiter in waiters {
            rows += waiter.rows;
            let bound = match waiter.state {
                Waiting::Prompt => return None,
                Waiting::Start => bounds.ttft,
                Waiting::Token => bounds.tpot,
            };
            starting += usize::from(waiter.state == Waiting::Start);
            let latest = waiter.since + bound;
            promised = Some(promised.map_or(latest, |promised| promised.min(latest)));
        }
        if starting > room || rows == 0 {
            return None;
        }
        let (fixed, per_row) = self.costs.line()?;
        if fixed < LITTLE * per_row * rows as f64 {
            return None;
        }
        // A step of everything that is there now; prompts beyond the budget take several.
        let steps = rows.div_ceil(budget.max(1)) as f64;
        let beyond = (rows as f64 - self.costs.most).max(0.0);
        let within = steps * fixed + per_row * (rows as f64 - beyond);
        let expected = MARGIN * (within + self.costs.average() * beyond) + self.reserve;
        let expected = Duration::from_secs_f64(expected) + SLACK;
        let due = promised.and_then(|promised| promised.checked_sub(expected));
        due.filter(|due| *due > now)
    }
}

/// Seconds of a step as a line in its rows: least squares, recent steps counting more.
#[derive(Clone, Debug, Default)]
struct Costs {
    /// Sums of 1, x, x², y, xy.
    n: f64,
    x: f64,
    xx: f64,
    y: f64,
    xy: f64,
    /// Rows of the longest step.
    most: f64,
}

impl Costs {
    fn observe(&mut self, x: f64, y: f64) {
        self.most = self.most.max(x);
        let fade = |sum: &mut f64, new: f64| *sum = FADE * *sum + new;
        fade(&mut self.n, 1.0);
        fade(&mut self.x, x);
        fade(&mut self.xx, x * x);
        fade(&mut self.y, y);
        fade(&mut self.xy, x * y);
    }

    /// Seconds of a row, its share of the steps' fixed part included.
    fn average(&self) -> f64 {
        self.y / self.x
    }

    /// Seconds of a step and of a row; `None` before anything was measured.
    fn line(&self) -> Option<(f64, f64)> {
        if self.n <= 0.0 {
            return None;
        }
        let spread = self.xx - self.x * self.x / self.n;
        let mean = (self.x / self.n, self.y / self.n);
        // All steps alike: what they took is taken for what any step takes.
        if spread < 0.25 * self.n {
            return Some((mean.1, 0.0));
        }
        let per_row = ((self.xy - self.x * self.y / self.n) / spread).max(0.0);
        let fixed = mean.1 - per_row * mean.0;
        Some(if fixed > 0.0 { (fixed, per_row) } else { (0.0, mean.1 / mean.0) })
    }
}

/// How fast old steps are forgotten: half within 70.
const FADE: f64 = 0.99;

/// Share of the expected time that is added to it.
const MARGIN: f64 = 1.2;

/// How fast the reserve is given up, a step.
const RESERVE_FADE: f64 = 0.997;

/// Time for waking up, which is added too.
const SLACK: Duration = Duration::from_millis(2);

/// The fixed part of a step over that of its rows, below which company saves too little to wait for.
const LITTLE: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { tpot: Duration::from_millis(200), ttft: Duration::from_secs(2) };

    /// Steps take 10 ms and 1 ms a row.
    fn pace() -> Pace {
        let mut pace = Pace::new(Objective::TokensPerJoule(BOUNDS));
        for rows in [1, 2, 8, 4, 32] {
            pace.observe(rows, 0.010 + 0.001 * rows as f64);
        }
        pace
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
        let due = pace.hold(now, [token].into_iter(), 4, 512);
        assert!((ms(now, due) - 184.8).abs() < 0.1, "{due:?}");
        // A request of 20 rows joins: the step takes longer, and the token is still first.
        let start = waiter(now, 20, Waiting::Start);
        let due = pace.hold(now, [token, start].into_iter(), 4, 512);
        assert!((ms(now, due) - (198.0 - 1.2 * 31.0)).abs() < 0.1, "{due:?}");
        // Alone it may wait for its own bound.
        let due = pace.hold(now, [start].into_iter(), 4, 512);
        assert!((ms(now, due) - (1998.0 - 1.2 * 30.0)).abs() < 0.1, "{due:?}");
        // Once that is near it starts.
        let late = now + Duration::from_millis(1970);
        assert_eq!(pace.hold(late, [start].into_iter(), 4, 512), None);
    }

    #[test]
    fn prompts_longer_than_any_step_so_far_are_not_taken_for_cheap() {
        let mut pace = Pace::new(Objective::TokensPerJoule(BOUNDS));
        (0..5).for_each(|_| pace.observe(1, 0.003));
        let now = Instant::now();
        let due = pace.hold(now, [waiter(now, 300, Waiting::Start)].into_iter(), 4, 512);
        // 2 s less 1.2 times 300 times 3 ms, and 2 ms.
        assert!((ms(now, due) - (1998.0 - 1.2 * 900.0)).abs() < 0.1, "{due:?}");
        // A broken promise of either kind lets later steps start earlier.
        let before = pace.hold(now, [waiter(now, 1, Waiting::Token)].into_iter(), 4, 512);
        pace.observe_waits(0.0, 2.05);
        let after = pace.hold(now, [waiter(now, 1, Waiting::Token)].into_iter(), 4, 512);
        assert!((ms(now, before) - ms(now, after) - 50.0).abs() < 0.1, "{before:?} {after:?}");
    }

    #[test]
    fn nothing_waits_without_a_reason() {
        let (paced, now) = (pace(), Instant::now());
        let token = waiter(now, 1, Waiting::Token);
        for objective in [Objective::Latency, Objective::Throughput] {
            let mut pace = Pace::new(objective);
            pace.observe(1, 0.01);
            assert!(!pace.may_wait());
            assert_eq!(pace.hold(now, [token].into_iter(), 4, 512), None);
        }
        let prompt = waiter(now, 9, Waiting::Prompt);
        assert_eq!(paced.hold(now, [token, prompt].into_iter(), 4, 512), None, "in the middle of a prompt");
        let start = waiter(now, 9, Waiting::Start);
        assert_eq!(paced.hold(now, [token, start, start].into_iter(), 1, 512), None, "a queue for a place");
        let many = std::iter::repeat_n(token, 400);
        assert_eq!(paced.hold(now, many, 0, 512), None, "company enough");
        let unmeasured = Pace::new(Objective::TokensPerJoule(BOUNDS));
        assert_eq!(unmeasured.hold(now, [token].into_iter(), 4, 512), None, "nothing measured");
        assert_eq!(paced.hold(now, std::iter::empty(), 4, 512), None);
    }

    #[test]
    fn the_line_is_recovered_and_follows_a_change() {
        let mut costs = Costs::default();
        (0..500).for_each(|i| costs.observe(f64::from(1 + i % 7), 0.02 + 0.003 * f64::from(1 + i % 7)));
        let (fixed, per_row) = costs.line().unwrap();
        assert!((fixed / 0.02 - 1.0).abs() < 1e-6 && (per_row / 0.003 - 1.0).abs() < 1e-6, "{fixed} {per_row}");
        (0..1000).for_each(|i| costs.observe(f64::from(1 + i % 7), 0.04));
        let (fixed, per_row) = costs.line().unwrap();
        assert!((fixed / 0.04 - 1.0).abs() < 0.01 && per_row < 1e-4, "{fixed} {per_row}");
        let mut same = Costs::default();
        (0..10).for_each(|_| same.observe(4.0, 0.05));
        let (fixed, per_row) = same.line().unwrap();
        assert!((fixed - 0.05).abs() < 1e-12 && per_row == 0.0);
    }
}
