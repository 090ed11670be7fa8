//! What steps take, by the threads that share them, and which crew is the cheapest.
//!
//! Crews are 1, 2, 4, ... and all threads. Of each the line `t(rows) = c0 + c1·rows` is fitted to its own recent steps; a crew
//! that has not run yet is taken to need as much CPU time as the next larger one that has, so that it is tried as soon as there is
//! time enough for that. The one that has not run for longest gets a step now and then: machines change.
//!
//! Invariant: with one thread, or where joules were measured, nothing is tried.

use std::num::NonZero;

/// Threads that may share a step, and what their steps took.
#[derive(Clone, Debug)]
pub struct Crews {
    /// By size, smallest first; the last is all.
    crews: Vec<Crew>,
    /// Whether the first is the cheapest whatever CPU time says.
    known: bool,
    /// Steps so far.
    steps: u64,
}

#[derive(Clone, Debug)]
struct Crew {
    size: NonZero<usize>,
    costs: Costs,
    /// When its last step was.
    last: u64,
}

/// Rows to run, and the steps that they take.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub steps: usize,
    pub rows: usize,
}

impl Crews {
    pub fn new(workers: NonZero<usize>, thrifty: Option<NonZero<usize>>) -> Crews {
        let powers = (0..usize::BITS).map(|bit| 1 << bit).take_while(|size| *size < workers.get());
        let smaller: Vec<NonZero<usize>> = match thrifty {
            Some(size) => Some(size).filter(|size| *size < workers).into_iter().collect(),
            None => powers.filter_map(NonZero::new).collect(),
        };
        let sizes = smaller.into_iter().chain([workers]);
        let crews = sizes.map(|size| Crew { size, costs: Costs::default(), last: 0 }).collect();
        Crews { crews, known: thrifty.is_some(), steps: 0 }
    }

    /// All threads.
    pub fn all(&self) -> NonZero<usize> {
        self.crews[self.crews.len() - 1].size
    }

    /// Threads of a crew.
    pub fn size(&self, crew: usize) -> NonZero<usize> {
        self.crews[crew].size
    }

    /// Takes note of a step.
    pub fn observe(&mut self, workers: NonZero<usize>, rows: f64, seconds: f64) {
        self.steps += 1;
        if let Some(crew) = self.crews.iter_mut().find(|crew| crew.size == workers) {
            crew.costs.observe(rows, seconds);
            crew.last = self.steps;
        }
    }

    /// The crew that would take the least CPU time among those that `may` do the work; `None` where none may, or nothing is known.
    pub fn cheapest(&self, work: Work, may: impl Fn(usize) -> bool) -> Option<usize> {
        let able = || (0..self.crews.len()).filter(|crew| may(*crew));
        if self.known {
            return able().next();
        }
        if self.crews.len() > 1 && self.steps % TRY == TRY - 1 {
            return able().min_by_key(|crew| self.crews[*crew].last);
        }
        let cost = |crew: usize| Some((crew, self.seconds(crew, work)? * self.crews[crew].size.get() as f64));
        able().filter_map(cost).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(crew, _)| crew)
    }

    /// Seconds that a crew will take; `None` before anything was measured.
    pub fn seconds(&self, crew: usize, work: Work) -> Option<f64> {
        let size = |crew: usize| self.crews[crew].size.get() as f64;
        let larger = (crew..self.crews.len()).find_map(|at| Some((at, self.crews[at].costs.seconds(work)?)));
        let smaller = || (0..crew).rev().find_map(|at| self.crews[at].costs.seconds(work));
        // One that is smaller takes all the longer; one that is larger may be no faster.
        larger.map(|(at, seconds)| seconds * size(at) / size(crew)).or_else(smaller)
    }

    /// Seconds of a step and of a row of it, of the crew or, if it has not run, of another.
    pub fn line(&self, crew: usize) -> Option<(f64, f64)> {
        (crew..self.crews.len()).chain(0..crew).find_map(|at| self.crews[at].costs.line())
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

    /// Seconds of some work; rows beyond the longest step so far are not taken for cheap.
    fn seconds(&self, work: Work) -> Option<f64> {
        let (fixed, per_row) = self.line()?;
        let rows = work.rows as f64;
        let beyond = (rows - self.most).max(0.0);
        // A row's seconds, its share of the steps' fixed part included.
        let average = self.y / self.x;
        Some(work.steps as f64 * fixed + per_row * (rows - beyond) + average * beyond)
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

/// Steps, one of which goes to the crew that has not run for longest.
const TRY: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Work = Work { steps: 1, rows: 4 };

    fn number(size: usize) -> NonZero<usize> {
        NonZero::new(size).unwrap()
    }

    /// The sizes that steps of 4 rows got, where a step takes `seconds(size)`.
    fn chosen(crews: &mut Crews, seconds: impl Fn(usize) -> f64, left: f64, steps: usize) -> Vec<usize> {
        let step = |_| {
            let crew = crews.cheapest(ANY, |crew| crews.seconds(crew, ANY).is_some_and(|takes| takes <= left));
            let size = crew.map_or(crews.all(), |crew| crews.size(crew));
            crews.observe(size, 4.0, seconds(size.get()));
            size.get()
        };
        (0..steps).map(step).collect()
    }

    #[test]
    fn the_crew_of_fewest_cpu_seconds_is_found_and_kept() {
        // Two threads are 1.7 times as fast as one, four 2.4 times.
        let seconds = |size: usize| 0.1 / [0.0, 1.0, 1.7, 0.0, 2.4][size];
        let mut crews = Crews::new(number(4), None);
        let sizes = chosen(&mut crews, seconds, 1.0, 600);
        assert_eq!(sizes[0], 4, "nothing is known");
        assert!(sizes.iter().filter(|size| **size != 1).count() <= 6, "{sizes:?}");
        assert!([2, 4].iter().all(|size| sizes[10..].contains(size)), "tried again");
        // One thread is too slow for what was promised, two are not.
        let mut crews = Crews::new(number(4), None);
        let sizes = chosen(&mut crews, seconds, 0.09, 600);
        assert!(!sizes.contains(&1));
        assert!(sizes[1..].iter().filter(|size| **size == 2).count() > 590, "{sizes:?}");
        // Nor are any: then all.
        let sizes = chosen(&mut crews, seconds, 0.01, 20);
        assert!(sizes.iter().all(|size| *size == 4), "{sizes:?}");
    }

    #[test]
    fn threads_that_gain_more_than_their_number_stay_together() {
        // Two small caches hold what one does not.
        let mut crews = Crews::new(number(2), None);
        let sizes = chosen(&mut crews, |size| [0.0, 0.1, 0.03][size], 1.0, 100);
        assert_eq!(sizes.iter().filter(|size| **size == 1).count(), 1, "{sizes:?}");
    }

    #[test]
    fn measured_joules_decide() {
        let mut crews = Crews::new(number(8), Some(number(3)));
        let seconds = |size: usize| 1.0 / size as f64;
        let sizes = chosen(&mut crews, seconds, 1.0, 400);
        assert!(sizes[1..].iter().all(|size| *size == 3), "{sizes:?}");
        let sizes = chosen(&mut crews, seconds, 0.2, 20);
        assert!(sizes.iter().all(|size| *size == 8), "{sizes:?}");
        // One that is all, or more than all.
        for thrifty in [8, 9] {
            let mut crews = Crews::new(number(8), Some(number(thrifty)));
            assert!(chosen(&mut crews, seconds, 9.0, 300).iter().all(|size| *size == 8));
        }
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
