//! What `tune` measured, and what follows from it: the frontier, the laws of each setup, the points to keep.

use std::num::NonZero;

use njoule_energy::bound::BatchLaw;
use njoule_runtime::backend::KvType;

use crate::session::operating::{Guesses, Setting};
use crate::session::options::{QuantArg, WaitArg, kv_name};

/// What a model is loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Stored type of the weights, as typed.
    pub quant: QuantArg,
    /// Type of the cache; the backend's own choice if `None`.
    pub kv: Option<KvType>,
    /// Threads that compute.
    pub threads: NonZero<usize>,
    /// How they wait for each other.
    pub wait: WaitArg,
}

impl Setup {
    /// Whether another computes the same tokens: threads and waiting change none.
    pub fn same_types(&self, other: &Setup) -> bool {
        (self.quant, self.kv) == (other.quant, other.kv)
    }
}

impl std::fmt::Display for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kv = self.kv.map_or("default", kv_name);
        write!(f, "weights {}, cache {kv}, threads {}, wait {}", self.quant.name(), self.threads, self.wait.name())
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Point {
    /// With what.
    pub setup: Setup,
    /// Sequences at once.
    pub batch: NonZero<usize>,
    /// Rows of each sequence beyond one, as guessed tokens have them.
    pub guesses: usize,
    /// Seconds of a step.
    pub step_s: f64,
    /// Of all sequences, guesses not counted.
    pub tokens_per_s: f64,
    /// CPU-seconds.
    pub cpu_s_per_token: f64,
    /// If every run's are known.
    pub joules_per_token: Option<f64>,
    /// Of the joules.
    pub method: Option<String>,
    /// Of the likeliest tokens of the last step.
    pub output_sha256: [u8; 32],
}

impl Point {
    /// What a token costs: joules if they are known of all points.
    pub fn cost(&self, joules: bool) -> f64 {
        self.joules_per_token.filter(|_| joules).unwrap_or(self.cpu_s_per_token)
    }
}

/// Whether nothing that computes the same is both faster for a request and cheaper.
pub fn on_frontier(point: &Point, points: &[Point], joules: bool) -> bool {
    let better = |other: &Point| {
        other.setup.same_types(&point.setup)
            && other.guesses == point.guesses
            && other.step_s < point.step_s
            && other.cost(joules) < point.cost(joules)
    };
    !points.iter().any(better)
}

/// The points among which one is chosen: of these types, a row a sequence.
pub fn of_types<'a>(points: &'a [Point], types: &Setup) -> impl Iterator<Item = &'a Point> + Clone {
    points.iter().filter(move |p| p.setup.same_types(types) && p.guesses == 0)
}

/// The cheapest point of these types within the latency; of points that are within 2 % of it the one with the shortest step.
pub fn cheapest<'a>(points: &'a [Point], types: &Setup, tpot: f64, joules: bool) -> Option<&'a Point> {
    let allowed = of_types(points, types).filter(|p| p.step_s <= tpot);
    let least = allowed.clone().map(|p| p.cost(joules)).fold(f64::INFINITY, f64::min);
    let near = allowed.filter(|p| p.cost(joules) <= 1.02 * least);
    near.min_by(|a, b| a.step_s.total_cmp(&b.step_s))
}

/// The point of these types with most tokens per second.
pub fn fastest<'a>(points: &'a [Point], types: &Setup) -> Option<&'a Point> {
    of_types(points, types).max_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s))
}

/// The point of these types with the shortest step, of as few sequences as were measured.
pub fn quickest<'a>(points: &'a [Point], types: &Setup) -> Option<&'a Point> {
    let fewest = of_types(points, types).map(|p| p.batch).min()?;
    of_types(points, types).filter(|p| p.batch == fewest).min_by(|a, b| a.step_s.total_cmp(&b.step_s))
}

/// What a guessed row costs of its step, by batch: the share of guesses that must be right for it to pay.
pub fn needed(points: &[Point], setup: &Setup, amount: impl Fn(&Point) -> f64) -> Vec<(NonZero<usize>, f64)> {
    let guessed = points.iter().filter(|p| p.setup == *setup && p.guesses == 1);
    let mut needed: Vec<_> = guessed
        .filter_map(|with| {
            let without = points.iter().find(|p| (p.setup, p.batch, p.guesses) == (*setup, with.batch, 0))?;
            Some((with.batch, (amount(with) / amount(without) - 1.0).max(0.0)))
        })
        .collect();
    needed.sort_by_key(|(batch, _)| *batch);
    needed
}

/// Up to how many sequences guesses may pay.
pub fn guesses(needed: &[(NonZero<usize>, f64)]) -> Option<Guesses> {
    if needed.is_empty() {
        return None;
    }
    let paying = needed.iter().take_while(|(_, share)| *share <= MOST_NEEDED);
    Some(paying.last().map_or(Guesses::Off, |(batch, _)| Guesses::UpTo(*batch)))
}

/// What serves an objective that is not about energy: the point, its batch if fewer are better than the most that was measured.
pub fn setting(point: &Point, points: &[Point], bounded: bool, guesses: Option<Guesses>) -> Setting {
    let most = points.iter().map(|p| p.batch).max();
    Setting {
        threads: Some(point.setup.threads),
        batch: Some(point.batch).filter(|batch| bounded && Some(*batch) < most),
        wait: Some(point.setup.wait),
        speculate: guesses,
    }
}

/// The laws of a setup.
#[derive(Clone, Copy, Debug)]
pub struct Laws {
    /// Of what.
    pub setup: Setup,
    /// What a token costs: `a + b/B`.
    pub cost: Option<BatchLaw>,
    /// Seconds of a step over its sequences: `a + b/B`.
    pub time: Option<BatchLaw>,
}

/// `a + b/B` of every setup that was measured at several batches.
pub fn laws(points: &[Point], joules: bool) -> Vec<Laws> {
    let mut setups: Vec<Setup> = vec![];
    for point in points.iter().filter(|p| p.guesses == 0) {
        if !setups.contains(&point.setup) {
            setups.push(point.setup);
        }
    }
    let law = |setup: Setup| {
        let mine = points.iter().filter(|p| p.setup == setup && p.guesses == 0);
        let fit = |amount: &dyn Fn(&Point) -> f64| {
            BatchLaw::fit(&mine.clone().map(|p| (p.batch.get() as f64, amount(p))).collect::<Vec<_>>())
        };
        let cost = fit(&|p| p.cost(joules));
        Laws { setup, cost, time: fit(&|p| p.step_s / p.batch.get() as f64) }
    };
    let several = |setup: &Setup| points.iter().filter(|p| p.setup == *setup && p.guesses == 0).count() > 1;
    setups.into_iter().filter(several).map(law).collect()
}

/// Share of guesses that must be right beyond which they are not made. The engine weighs each sequence's own guesses; this only
/// rules out what saves next to nothing even of text that repeats itself.
const MOST_NEEDED: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;

    fn n(n: usize) -> NonZero<usize> {
        NonZero::new(n).unwrap()
    }

    fn setup(threads: usize) -> Setup {
        Setup { quant: QuantArg::Auto, kv: None, threads: n(threads), wait: WaitArg::Brief }
    }

    fn point(threads: usize, batch: usize, step_s: f64, cpu: f64, joules: Option<f64>) -> Point {
        Point {
            setup: setup(threads),
            batch: n(batch),
            guesses: 0,
            step_s,
            tokens_per_s: batch as f64 / step_s,
            cpu_s_per_token: cpu,
            joules_per_token: joules,
            method: joules.map(|_| "measured".to_owned()),
            output_sha256: [0; 32],
        }
    }

    #[test]
    fn the_cheapest_point_within_the_latency_is_chosen() {
        let points = [
            point(1, 1, 0.02, 0.020, Some(0.5)),
            point(1, 8, 0.05, 0.006, Some(0.20)),
            point(2, 8, 0.03, 0.0075, Some(0.17)),
            point(2, 64, 0.30, 0.004, Some(0.10)),
        ];
        let chosen =
            |tpot, joules| cheapest(&points, &setup(1), tpot, joules).map(|p| (p.setup.threads.get(), p.batch.get()));
        assert_eq!(chosen(0.2, true), Some((2, 8)));
        assert_eq!(chosen(0.2, false), Some((1, 8)));
        assert_eq!(chosen(1.0, true), Some((2, 64)));
        assert_eq!(chosen(0.001, true), None);
        let other = Setup { quant: QuantArg::Int8, ..setup(1) };
        assert!(cheapest(&points, &other, 1.0, true).is_none(), "other weights are never chosen");
        let other = Setup { kv: Some(KvType::Int8), ..setup(1) };
        assert!(cheapest(&points, &other, 1.0, true).is_none(), "nor another cache");
        let frontier: Vec<bool> = points.iter().map(|p| on_frontier(p, &points, true)).collect();
        assert_eq!(frontier, [true, false, true, true]);
        // Other objectives.
        let best = |p: Option<&Point>| p.map(|p| (p.setup.threads.get(), p.batch.get()));
        assert_eq!(best(fastest(&points, &setup(1))), Some((2, 8)));
        assert_eq!(best(quickest(&points, &setup(1))), Some((1, 1)));
        let bounded = setting(&points[2], &points, true, None);
        assert_eq!((bounded.threads, bounded.batch), (Some(n(2)), Some(n(8))));
        assert_eq!(setting(&points[3], &points, true, None).batch, None, "more might be better still");
    }

    #[test]
    fn the_laws_are_recovered_for_each_setup() {
        let points: Vec<Point> = [1, 2]
            .into_iter()
            .flat_map(|t| {
                [1, 4, 16].map(|b| point(t, b, 0.02 + 0.001 * b as f64, 0.001 * t as f64 + 0.01 / b as f64, None))
            })
            .chain([point(3, 4, 0.1, 0.1, None)])
            .collect();
        let laws = laws(&points, false);
        assert_eq!(laws.len(), 2, "one batch makes no law");
        for (at, laws) in laws.iter().enumerate() {
            let (cost, time) = (laws.cost.unwrap(), laws.time.unwrap());
            assert_eq!(laws.setup.threads.get(), at + 1);
            assert!((cost.a / (0.001 * (at + 1) as f64) - 1.0).abs() < 1e-6 && (cost.b / 0.01 - 1.0).abs() < 1e-6);
            assert!((time.a / 0.001 - 1.0).abs() < 1e-6 && (time.b / 0.02 - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn guesses_pay_as_far_as_a_row_is_cheap() {
        let mut points = vec![];
        // A step takes 10 ms and 1 ms a row; at 1, 4, 8, 128 sequences as many rows more cost 9, 29, 44 and 93 % of it.
        for batch in [1, 4, 8, 128] {
            for guesses in [0, 1] {
                let step_s = 0.010 + 0.001 * (batch * (1 + guesses)) as f64;
                points.push(Point { guesses, ..point(1, batch, step_s, step_s / batch as f64, None) });
            }
        }
        let needed = needed(&points, &setup(1), |p| p.cost(false));
        assert!((needed[0].1 - 1.0 / 11.0).abs() < 1e-9 && (needed[3].1 - 128.0 / 138.0).abs() < 1e-9, "{needed:?}");
        assert_eq!(guesses(&needed), Some(Guesses::UpTo(n(8))));
        assert_eq!(guesses(&needed[3..]), Some(Guesses::Off));
        assert_eq!(guesses(&[]), None);
        assert!(fastest(&points, &setup(1)).is_some_and(|p| p.guesses == 0));
    }
}
