//! The [policy](super) against made-up clocks: thousands of requests in milliseconds.
//!
//! A discrete-event simulation of one engine: requests arrive, [`Pace`] says when a step starts, a step runs every
//! sequence's next token and as much of the prompts as its budget allows, and takes what the given curves say. The same
//! `Pace` runs in the engine. Joules come from a profile that is an input, never from a constant here; without one,
//! the figure is busy seconds.

use std::collections::VecDeque;
use std::num::NonZero;
use std::time::{Duration, Instant};

use super::{Bounds, Decision, Objective, Pace, Waiter, Waiting};
use crate::backend::neuron::plan::Request;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When it comes, in seconds from the beginning; not before the one in front of it.
    pub at: f64,
    /// Prompt tokens, at least 1.
    pub prompt: usize,
    /// Tokens of the answer, at least 1.
    pub output: usize,
}

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Seconds of a step, whatever its rows.
    pub step_s: f64,
    /// Seconds more for each row.
    pub row_s: f64,
    /// Sequences that run together.
    pub slots: usize,
    /// Rows of a step.
    pub budget: usize,
    /// Watts while a step runs, beyond those that always flow.
    pub busy_w: f64,
    /// Watts that always flow.
    pub idle_w: f64,
}

/// What a run of the simulator did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Tokens generated.
    pub tokens: usize,
    /// Steps.
    pub steps: usize,
    /// Seconds in steps.
    pub busy_s: f64,
    /// From the first arrival to the last token.
    pub seconds: f64,
    /// By the machine's watts.
    pub joules: f64,
    /// Seconds from arrival to first token, sorted.
    pub ttft: Vec<f64>,
    /// Seconds between two tokens of a request, sorted.
    pub gaps: Vec<f64>,
}

impl Outcome {
    /// Tokens per joule.
    pub fn tokens_per_joule(&self) -> f64 {
        self.tokens as f64 / self.joules
    }

    /// The value below which `share` of the sorted values are.
    pub fn percentile(sorted: &[f64], share: f64) -> f64 {
        let at = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(at.max(1) - 1).copied().unwrap_or(f64::NAN)
    }
}

/// Requests of these lengths, in turn, arriving as a Poisson process of `rate` a second.
pub fn poisson(lengths: &[Request], rate: f64, count: usize, seed: u64) -> Vec<Arrival> {
    let (mut at, mut state) = (0.0, seed);
    let arrival = |r: &Request| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = (state >> 11) as f64 / (1u64 << 53) as f64;
        // Exponential gaps, by inversion.
        at -= (1.0 - uniform).ln() / rate;
        Arrival { at, prompt: r.prompt, output: r.output }
    };
    lengths.iter().cycle().take(if lengths.is_empty() { 0 } else { count }).map(arrival).collect()
}

impl Machine {
    /// Requests of these lengths a second that keep it busy with all slots taken.
    pub fn capacity(&self, lengths: &[Request]) -> f64 {
        let sum = |of: fn(&Request) -> usize| lengths.iter().map(of).sum::<usize>() as f64;
        let per_token = self.step_s / self.slots as f64 + self.row_s;
        lengths.len() as f64 / (sum(|r| r.output) * per_token + sum(|r| r.prompt) * self.row_s)
    }
}

/// Who decides when steps start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Player {
    /// The engine's policy.
    Policy(Objective),
    /// One that knows exactly what every step will take and waits until the last possible moment.
    Clairvoyant(Bounds),
}

struct Running {
    since: f64,
    prompt_left: usize,
    output_left: usize,
    first: bool,
}

/// Runs all arrivals to their end.
pub fn simulate(arrivals: &[Arrival], machine: &Machine, player: Player) -> Outcome {
    let epoch = Instant::now();
    let at = |seconds: f64| epoch + Duration::from_secs_f64(seconds);
    let objective = match player {
        Player::Policy(objective) => objective,
        Player::Clairvoyant(bounds) => Objective::TokensPerJoule(bounds),
    };
    let mut pace = Pace::new(objective, WORKERS, None);
    let mut outcome = Outcome::default();
    let (mut now, mut next) = (0.0, 0);
    let mut waiting: VecDeque<Arrival> = VecDeque::new();
    let mut running: Vec<Running> = vec![];
    loop {
        while let Some(arrival) = arrivals.get(next).filter(|a| a.at <= now) {
            waiting.push_back(*arrival);
            next += 1;
        }
        if running.is_empty() && waiting.is_empty() {
            match arrivals.get(next) {
                Some(arrival) => now = arrival.at,
                None => break,
            }
            continue;
        }
        let waiters = running
            .iter()
            .map(|s| {
                let (rows, state) =
                    if s.prompt_left > 0 { (s.prompt_left, Waiting::Prompt) } else { (1, Waiting::Token) };
                Waiter { since: at(s.since), rows, state }
            })
            .chain(waiting.iter().map(|a| Waiter { since: at(a.at), rows: a.prompt, state: Waiting::Start }));
        let room = machine.slots - running.len();
        let hold = match player {
            Player::Policy(_) => match pace.decide(at(now), waiters, room, machine.budget) {
                Decision::Wait(until) => Some(until),
                Decision::Run(_) => None,
            },
            Player::Clairvoyant(bounds) => latest(at(now), waiters, room, machine, bounds),
        };
        if let Some(until) = hold {
            let until = (until - epoch).as_secs_f64();
            // Somebody may come meanwhile, and be heard.
            now = arrivals.get(next).map_or(until, |a| a.at.min(until)).max(now + 1e-9);
            continue;
        }
        step(machine, &mut now, &mut waiting, &mut running, &mut pace, &mut outcome);
    }
    let first = arrivals.first().map_or(0.0, |a| a.at);
    outcome.seconds = now - first;
    outcome.joules = machine.idle_w * outcome.seconds + machine.busy_w * outcome.busy_s;
    outcome.ttft.sort_by(f64::total_cmp);
    outcome.gaps.sort_by(f64::total_cmp);
    outcome
}

/// The last moment at which all promises can be kept, with the true times.
fn latest(
    now: Instant,
    waiters: impl Iterator<Item = Waiter>,
    room: usize,
    machine: &Machine,
    bounds: Bounds,
) -> Option<Instant> {
    let waiters: Vec<Waiter> = waiters.collect();
    let rows: usize = waiters.iter().map(|w| w.rows).sum();
    let starting = waiters.iter().filter(|w| w.state == Waiting::Start).count();
    if starting > room || waiters.iter().any(|w| w.state == Waiting::Prompt) {
        return None;
    }
    let steps = rows.div_ceil(machine.budget) as f64;
    let takes = Duration::from_secs_f64(steps * machine.step_s + machine.row_s * rows as f64);
    let bound = |w: &Waiter| if w.state == Waiting::Token { bounds.tpot } else { bounds.ttft };
    let due = waiters.iter().filter_map(|w| (w.since + bound(w)).checked_sub(takes)).min()?;
    (due > now).then_some(due)
}

fn step(
    machine: &Machine,
    now: &mut f64,
    waiting: &mut VecDeque<Arrival>,
    running: &mut Vec<Running>,
    pace: &mut Pace,
    outcome: &mut Outcome,
) {
    while running.len() < machine.slots
        && let Some(a) = waiting.pop_front()
    {
        running.push(Running { since: a.at, prompt_left: a.prompt, output_left: a.output, first: true });
    }
    // Decodes first, then prompts in order, as the scheduler has it.
    let mut rows = running.iter().filter(|s| s.prompt_left == 0).count();
    let mut left = machine.budget.saturating_sub(rows);
    let mut done: Vec<bool> = running.iter().map(|s| s.prompt_left == 0).collect();
    for (sequence, done) in running.iter_mut().zip(&mut done).filter(|(s, _)| s.prompt_left > 0) {
        let chunk = sequence.prompt_left.min(left);
        sequence.prompt_left -= chunk;
        (left, rows) = (left - chunk, rows + chunk);
        *done = sequence.prompt_left == 0 && chunk > 0;
    }
    let seconds = machine.step_s + machine.row_s * rows as f64;
    pace.observe(WORKERS, rows, seconds);
    *now += seconds;
    outcome.busy_s += seconds;
    outcome.steps += 1;
    let (mut gap, mut first) = (0.0f64, 0.0f64);
    for (sequence, _) in running.iter_mut().zip(&done).filter(|(_, done)| **done) {
        let waited = *now - sequence.since;
        let longest = if sequence.first { &mut first } else { &mut gap };
        *longest = longest.max(waited);
        if sequence.first { &mut outcome.ttft } else { &mut outcome.gaps }.push(waited);
        (sequence.since, sequence.first) = (*now, false);
        sequence.output_left -= 1;
        outcome.tokens += 1;
    }
    pace.observe_waits(gap, first);
    running.retain(|s| s.output_left > 0);
}

/// A machine is one device.
const WORKERS: NonZero<usize> = NonZero::<usize>::MIN;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::neuron::plan::Lengths;

    const BOUNDS: Bounds = Bounds { tpot: Duration::from_millis(200), ttft: Duration::from_secs(2) };

    /// Requests of the built-in trace at a share of the machine's capacity, as a Poisson process.
    fn load(machine: &Machine, share: f64, count: usize) -> Vec<Arrival> {
        let lengths = Lengths::default().requests;
        let requests: Vec<Request> = (0..count).map(|i| lengths[i % lengths.len()]).collect();
        poisson(&requests, share * machine.capacity(&requests), count, 1)
    }

    /// A device whose step is mostly reading weights.
    const DEVICE: Machine =
        Machine { step_s: 0.012, row_s: 0.00002, slots: 128, budget: 2048, busy_w: 100.0, idle_w: 0.0 };

    #[test]
    fn waiting_saves_a_quarter_at_low_load_within_the_bounds() {
        for (share, least) in [(0.2, 0.25), (0.5, 0.25)] {
            let arrivals = load(&DEVICE, share, 3000);
            let fast = simulate(&arrivals, &DEVICE, Player::Policy(Objective::Latency));
            let paced = simulate(&arrivals, &DEVICE, Player::Policy(Objective::TokensPerJoule(BOUNDS)));
            assert_eq!(fast.tokens, paced.tokens);
            let saved = 1.0 - paced.busy_s / fast.busy_s;
            assert!(saved > least, "load {share}: saved {saved}");
            let p99 = |values: &[f64]| Outcome::percentile(values, 0.99);
            assert!(p99(&paced.gaps) <= 0.2 && p99(&paced.ttft) <= 2.0, "{} {}", p99(&paced.gaps), p99(&paced.ttft));
        }
    }

    #[test]
    fn it_is_near_one_that_knows_all_times() {
        for share in [0.2, 0.5, 0.8] {
            let arrivals = load(&DEVICE, share, 3000);
            let paced = simulate(&arrivals, &DEVICE, Player::Policy(Objective::TokensPerJoule(BOUNDS)));
            let best = simulate(&arrivals, &DEVICE, Player::Clairvoyant(BOUNDS));
            let ratio = paced.busy_s / best.busy_s;
            assert!((0.95..1.10).contains(&ratio), "load {share}: {ratio}");
        }
    }

    #[test]
    fn nobody_queues_longer_on_a_full_machine() {
        let arrivals = load(&DEVICE, 1.5, 4000);
        let fast = simulate(&arrivals, &DEVICE, Player::Policy(Objective::Latency));
        let paced = simulate(&arrivals, &DEVICE, Player::Policy(Objective::TokensPerJoule(BOUNDS)));
        let p90 = |outcome: &Outcome| Outcome::percentile(&outcome.ttft, 0.9);
        assert!(p90(&fast) > 2.0, "it is full: {}", p90(&fast));
        assert!(p90(&paced) < 1.1 * p90(&fast), "{} against {}", p90(&paced), p90(&fast));
    }

    #[test]
    fn every_token_is_made_and_counted_once() {
        let arrivals = [Arrival { at: 1.0, prompt: 3000, output: 5 }, Arrival { at: 1.5, prompt: 4, output: 1 }];
        let outcome = simulate(&arrivals, &DEVICE, Player::Policy(Objective::Latency));
        assert_eq!((outcome.tokens, outcome.ttft.len(), outcome.gaps.len()), (6, 2, 4));
        // Two steps for the long prompt, four for its other tokens, one for the second request.
        assert_eq!(outcome.steps, 7);
        let watts = Machine { idle_w: 10.0, ..DEVICE };
        let with_idle = simulate(&arrivals, &watts, Player::Policy(Objective::Latency));
        assert!((with_idle.joules - outcome.joules - 10.0 * outcome.seconds).abs() < 1e-9);
        assert_eq!(simulate(&[], &DEVICE, Player::Policy(Objective::Latency)), Outcome::default());
    }
}
