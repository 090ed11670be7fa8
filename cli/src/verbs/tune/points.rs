//! What `tune` measured, and what follows from it: the frontier, the law of each number of threads, the point to keep.

use std::num::NonZero;

use njoule_energy::bound::BatchLaw;

/// What was measured.
#[derive(Clone, Debug)]
pub struct Point {
    /// Stored type of the weights, as typed.
    pub quant: &'static str,
    /// Threads that compute.
    pub threads: NonZero<usize>,
    /// Sequences at once.
    pub batch: NonZero<usize>,
    /// Seconds of a step.
    pub step_s: f64,
    /// Of all sequences.
    pub tokens_per_s: f64,
    /// CPU-seconds.
    pub cpu_s_per_token: f64,
    /// If every run's are known.
    pub joules_per_token: Option<f64>,
    /// Of the joules.
    pub method: Option<String>,
}

impl Point {
    /// What a token costs: joules if they are known of all points.
    pub fn cost(&self, joules: bool) -> f64 {
        self.joules_per_token.filter(|_| joules).unwrap_or(self.cpu_s_per_token)
    }
}

/// Whether nothing of the same weights is both faster for a request and cheaper.
pub fn on_frontier(point: &Point, points: &[Point], joules: bool) -> bool {
    let better = |other: &Point| {
        other.quant == point.quant && other.step_s < point.step_s && other.cost(joules) < point.cost(joules)
    };
    !points.iter().any(better)
}

/// The cheapest point of these weights within the latency; of points that are within 2 % of it the one with the shortest step.
pub fn choose(points: &[Point], quant: &str, tpot: f64, joules: bool) -> Option<Point> {
    let allowed: Vec<&Point> = points.iter().filter(|p| p.quant == quant && p.step_s <= tpot).collect();
    let least = allowed.iter().map(|p| p.cost(joules)).fold(f64::INFINITY, f64::min);
    let near = allowed.into_iter().filter(|p| p.cost(joules) <= 1.02 * least);
    near.min_by(|a, b| a.step_s.total_cmp(&b.step_s)).cloned()
}

/// `a + b/B` for every number of threads and type.
pub fn laws(points: &[Point], joules: bool) -> Vec<(&'static str, NonZero<usize>, Option<BatchLaw>)> {
    let mut groups: Vec<(&'static str, NonZero<usize>)> = points.iter().map(|p| (p.quant, p.threads)).collect();
    groups.dedup();
    let law = |(quant, threads): (&'static str, NonZero<usize>)| {
        let mine = points.iter().filter(|p| (p.quant, p.threads) == (quant, threads));
        let samples: Vec<(f64, f64)> = mine.map(|p| (p.batch.get() as f64, p.cost(joules))).collect();
        (quant, threads, BatchLaw::fit(&samples))
    };
    groups.into_iter().map(law).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(threads: usize, batch: usize, step_s: f64, cpu: f64, joules: Option<f64>) -> Point {
        Point {
            quant: "auto",
            threads: NonZero::new(threads).unwrap(),
            batch: NonZero::new(batch).unwrap(),
            step_s,
            tokens_per_s: batch as f64 / step_s,
            cpu_s_per_token: cpu,
            joules_per_token: joules,
            method: joules.map(|_| "measured".to_owned()),
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
        let chosen = |tpot, joules| choose(&points, "auto", tpot, joules).map(|p| (p.threads.get(), p.batch.get()));
        assert_eq!(chosen(0.2, true), Some((2, 8)));
        assert_eq!(chosen(0.2, false), Some((1, 8)));
        assert_eq!(chosen(1.0, true), Some((2, 64)));
        assert_eq!(chosen(0.001, true), None);
        assert_eq!(choose(&points, "int8", 1.0, true).map(|p| p.batch), None, "other weights are never chosen");
        let frontier: Vec<bool> = points.iter().map(|p| on_frontier(p, &points, true)).collect();
        assert_eq!(frontier, [true, false, true, true]);
    }

    #[test]
    fn the_law_is_recovered_for_each_number_of_threads() {
        let points: Vec<Point> = [1, 2]
            .into_iter()
            .flat_map(|t| [1, 4, 16].map(|b| point(t, b, 0.1, 0.001 * t as f64 + 0.01 / b as f64, None)))
            .collect();
        let laws = laws(&points, false);
        assert_eq!(laws.len(), 2);
        for (at, (_, threads, law)) in laws.iter().enumerate() {
            let law = law.unwrap();
            assert_eq!(threads.get(), at + 1);
            assert!((law.a / (0.001 * (at + 1) as f64) - 1.0).abs() < 1e-6 && (law.b / 0.01 - 1.0).abs() < 1e-6);
        }
    }
}
