//! A distribution over fixed buckets, which threads fill and read at once.
//!
//! Invariant: an observation neither allocates nor locks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A distribution over fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One per bound and one beyond.
    counts: Vec<AtomicU64>,
    /// In millionths: an integer adds without a loop.
    sum: AtomicU64,
}

impl Histogram {
    /// Of what lies up to each of `bounds`, which rise, and beyond them.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        let mut counts = Vec::new();
        counts.resize_with(bounds.len() + 1, AtomicU64::default);
        Histogram { bounds, counts, sum: AtomicU64::default() }
    }

    /// Counts a value, which is not negative.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        // Relaxed: nothing else is read by them.
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6).round() as u64, Ordering::Relaxed);
    }

    /// The same of a number of things.
    pub fn observe_count(&self, value: usize) {
        self.observe(value as f64);
    }

    /// Mean of what was counted.
    pub fn mean(&self) -> Option<f64> {
        let (buckets, sum) = self.read();
        let count = buckets.last().map_or(0, |(_, count)| *count);
        (count > 0).then(|| sum / count as f64)
    }

    /// Cumulative counts per bound (the last one is infinite), and the sum.
    pub fn read(&self) -> (Vec<(f64, u64)>, f64) {
        let mut total = 0;
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets = bounds.zip(&self.counts).map(|(bound, count)| {
            total += count.load(Ordering::Relaxed);
            (bound, total)
        });
        (buckets.collect(), self.sum.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_and_including_its_bounds() {
        let histogram = Histogram::new(&[1.0, 2.0, 5.0, 10.0, 20.0]);
        for value in [1.0, 2.0, 2.5, 100.0] {
            histogram.observe(value);
        }
        let (buckets, sum) = histogram.read();
        let counts: Vec<u64> = buckets.iter().map(|(_, n)| *n).collect();
        assert_eq!((counts, sum), (vec![1, 2, 3, 3, 3, 4], 105.5));
    }
}
