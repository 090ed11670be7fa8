//! Which points are measured: one axis at a time, from the best point so far.
//!
//! The product of all axes would take hours and most of it says nothing. Batches first; then threads and ways of waiting at
//! the batches that matter (the fewest, the cheapest within the latency, the fastest), and all batches again where one of
//! them is better, for the law; then guesses; then, at the cheapest point, what changes tokens and is shown only: types of
//! the cache and of the weights. Invariant: nothing is measured twice.

use std::num::NonZero;

use njoule_runtime::backend::KvType;

use super::points::{Point, Setup, cheapest, fastest};
use crate::session::options::{QuantArg, WaitArg};

/// What there is to try; an axis of none is left out.
#[derive(Clone, Debug, Default)]
pub struct Axes {
    /// Sequences at once.
    pub batches: Vec<NonZero<usize>>,
    /// Threads.
    pub threads: Vec<NonZero<usize>>,
    /// Ways of waiting.
    pub waits: Vec<WaitArg>,
    /// Whether rows of guessed tokens are measured.
    pub guesses: bool,
    /// Types of the cache beside the start's.
    pub kvs: Vec<KvType>,
    /// Types of the weights beside the start's.
    pub quants: Vec<QuantArg>,
}

impl Axes {
    /// Points that will be measured, more or less: batches that coincide are not known before.
    pub fn planned(&self) -> usize {
        let others = |all: usize| all.saturating_sub(1) * self.batches.len().min(3);
        let guesses = if self.guesses { self.batches.iter().filter(|b| b.get() <= MOST_GUESSING).count() } else { 0 };
        self.batches.len()
            + others(self.threads.len())
            + others(self.waits.len())
            + guesses
            + self.kvs.len()
            + self.quants.len()
    }
}

/// Measures all of these batches with a setup, each sequence with `guesses` rows beyond one.
pub trait Measure {
    /// The points.
    fn measure(&mut self, setup: &Setup, batches: &[NonZero<usize>], guesses: usize) -> anyhow::Result<Vec<Point>>;
}

/// Measures along the axes from `start`; the points in the order of their measurement.
pub fn descend(start: Setup, axes: &Axes, tpot: f64, measure: &mut dyn Measure) -> anyhow::Result<Vec<Point>> {
    let mut search = Search { start, axes, tpot, measure, points: vec![] };
    search.run(&start, &axes.batches, 0)?;
    for &threads in &axes.threads {
        let setup = Setup { threads, ..start };
        search.run(&setup, &search.marks(), 0)?;
    }
    search.run(&search.best(), &axes.batches, 0)?;
    for &wait in &axes.waits {
        let best = search.best();
        // One thread waits for nobody.
        if best.threads.get() > 1 {
            search.run(&Setup { wait, ..best }, &search.marks(), 0)?;
        }
    }
    search.run(&search.best(), &axes.batches, 0)?;
    let best = search.best();
    if axes.guesses {
        let few: Vec<_> = axes.batches.iter().copied().filter(|batch| batch.get() <= MOST_GUESSING).collect();
        search.run(&best, &few, 1)?;
    }
    let at = search.cheapest_batch();
    for &kv in &axes.kvs {
        search.run(&Setup { kv: Some(kv), ..best }, &at, 0)?;
    }
    for &quant in &axes.quants {
        search.run(&Setup { quant, ..best }, &at, 0)?;
    }
    Ok(search.points)
}

/// Whether joules are known of all points, so that they are what is made small.
pub fn in_joules(points: &[Point]) -> bool {
    points.iter().all(|point| point.joules_per_token.is_some())
}

struct Search<'a> {
    start: Setup,
    axes: &'a Axes,
    tpot: f64,
    measure: &'a mut dyn Measure,
    points: Vec<Point>,
}

impl Search<'_> {
    /// Measures what was not.
    fn run(&mut self, setup: &Setup, batches: &[NonZero<usize>], guesses: usize) -> anyhow::Result<()> {
        let known = |batch: &NonZero<usize>| {
            self.points.iter().any(|p| (p.setup, p.batch, p.guesses) == (*setup, *batch, guesses))
        };
        let mut new: Vec<NonZero<usize>> = batches.iter().copied().filter(|batch| !known(batch)).collect();
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() {
            self.points.extend(self.measure.measure(setup, &new, guesses)?);
        }
        Ok(())
    }

    fn cheapest(&self) -> Option<&Point> {
        let joules = in_joules(&self.points);
        // Where nothing is fast enough, the cheapest of all leads on.
        cheapest(&self.points, &self.start, self.tpot, joules)
            .or_else(|| cheapest(&self.points, &self.start, f64::INFINITY, joules))
    }

    fn best(&self) -> Setup {
        self.cheapest().map_or(self.start, |point| point.setup)
    }

    fn cheapest_batch(&self) -> Vec<NonZero<usize>> {
        self.cheapest().map(|point| point.batch).into_iter().collect()
    }

    /// The batches that the objectives ask for.
    fn marks(&self) -> Vec<NonZero<usize>> {
        let fewest = self.axes.batches.iter().min().copied();
        let fastest = fastest(&self.points, &self.start).map(|point| point.batch);
        fewest.into_iter().chain(self.cheapest_batch()).chain(fastest).collect()
    }
}

/// Sequences that guesses are measured with: twice as many rows are as many as the engine guesses in.
const MOST_GUESSING: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::points::{guesses, needed, quickest};
    use super::*;
    use crate::session::operating::Guesses;

    fn n(n: usize) -> NonZero<usize> {
        NonZero::new(n).unwrap()
    }

    /// A machine whose step takes `10 / threads` ms and 0.5 ms a row, and whose cores burn CPU time while they wait unless they
    /// park; the third and fourth thread are no help.
    struct Made(Vec<(Setup, usize, usize)>);

    impl Measure for Made {
        fn measure(&mut self, setup: &Setup, batches: &[NonZero<usize>], guesses: usize) -> anyhow::Result<Vec<Point>> {
            let point = |batch: &NonZero<usize>| {
                self.0.push((*setup, batch.get(), guesses));
                let threads = setup.threads.get();
                let rows = (batch.get() * (1 + guesses)) as f64;
                let step_s = 0.010 / threads.min(2) as f64 + 0.0005 * rows;
                let burnt = if setup.wait == WaitArg::Park { 0.8 } else { 1.0 };
                let smaller = if setup.kv.is_some() { 0.9 } else { 1.0 };
                Point {
                    setup: *setup,
                    batch: *batch,
                    guesses,
                    step_s: step_s * smaller,
                    tokens_per_s: batch.get() as f64 / step_s / smaller,
                    cpu_s_per_token: step_s * threads as f64 * burnt * smaller / batch.get() as f64,
                    joules_per_token: None,
                    method: None,
                    output_sha256: [0; 32],
                }
            };
            Ok(batches.iter().map(point).collect())
        }
    }

    fn axes() -> Axes {
        Axes {
            batches: [1, 2, 4, 8, 16, 32].map(n).into(),
            threads: [1, 2, 4].map(n).into(),
            waits: WaitArg::ALL.into(),
            guesses: true,
            kvs: vec![KvType::Int8],
            quants: vec![QuantArg::Int4],
        }
    }

    fn start() -> Setup {
        Setup { quant: QuantArg::Auto, kv: None, threads: n(4), wait: WaitArg::Brief }
    }

    #[test]
    fn the_best_point_is_found_without_the_product_of_all_axes() {
        let mut made = Made(vec![]);
        let points = descend(start(), &axes(), 0.2, &mut made).unwrap();
        let best = cheapest(&points, &start(), 0.2, false).unwrap();
        // One thread wastes nothing but takes the longest; batch 32 shares the fixed part best. It waits for nobody.
        assert_eq!((best.setup.threads, best.batch), (n(1), n(32)));
        assert!(made.0.len() <= axes().planned() + 2 * axes().batches.len(), "{}", made.0.len());
        let mut seen = vec![];
        for measured in &made.0 {
            assert!(!seen.contains(measured), "twice: {measured:?}");
            seen.push(*measured);
        }
        // All batches at the setup that is kept, so that a law can be fitted.
        assert_eq!(points.iter().filter(|p| p.setup == best.setup && p.guesses == 0).count(), 6);
        // What changes tokens was measured and is cheaper, and not chosen.
        let int8 = points.iter().find(|p| p.setup.kv == Some(KvType::Int8)).unwrap();
        assert!(int8.cost(false) < best.cost(false) && int8.batch == best.batch);
        assert!(points.iter().any(|p| p.setup.quant == QuantArg::Int4));
        assert!(quickest(&points, &start()).is_some_and(|p| p.batch == n(1) && p.setup.threads > n(1)));
    }

    #[test]
    fn a_tight_latency_leads_to_more_threads_and_their_way_of_waiting() {
        let mut made = Made(vec![]);
        // Two threads at most 0.0055 s at one sequence; one thread takes 0.0105 s.
        let points = descend(start(), &axes(), 0.008, &mut made).unwrap();
        let best = cheapest(&points, &start(), 0.008, false).unwrap();
        assert_eq!((best.setup.threads, best.setup.wait, best.batch), (n(2), WaitArg::Park, n(4)));
        let shares = needed(&points, &best.setup, |p| p.cost(false));
        // A row more of each: 0.5 of 5.5 ms at one sequence, 8 of 13 at sixteen.
        assert_eq!(shares.len(), 5);
        assert_eq!(guesses(&shares), Some(Guesses::UpTo(n(16))));
    }

    #[test]
    fn axes_that_are_left_out_cost_nothing() {
        let mut made = Made(vec![]);
        let axes = Axes { batches: vec![n(4), n(1), n(4)], ..Axes::default() };
        let points = descend(start(), &axes, 1e-6, &mut made).unwrap();
        assert_eq!(points.len(), 2);
        assert!(cheapest(&points, &start(), 1e-6, false).is_none());
    }
}
