//! What time, operations and bytes cost, from periods of which all of these and the amount are known.

use super::Coefficients;

/// Sums over periods: E − P · seconds ≈ A · FLOPs + K · cache bytes + W · weight bytes, by least squares with nothing
/// negative. W holds whatever a step costs beside its rows, so that its part is the `b` of `a + b/B`.
///
/// P is measured apart, on periods without a step. It cannot be fitted beside the others: a step's time is itself nearly a sum
/// of its operations and bytes, so that the meter's noise would decide how much of the energy is static. Where it is unknown
/// the others carry it.
///
/// Kinds of work that the periods do not tell apart (decodes of one batch have as many operations as weight bytes, in
/// proportion) keep their declared ratio and are fitted as one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fit {
    /// Σ x xᵀ of seconds, operations, cache bytes and weight bytes.
    squares: [[f64; 4]; 4],
    /// Σ x E.
    products: [f64; 4],
    periods: u64,
    idle_s: f64,
    idle_j: f64,
}

impl Fit {
    /// Takes a period in: its seconds, operations, cache bytes and weight bytes, and its amount.
    pub fn add(&mut self, work: [f64; 4], amount: f64) {
        if !(amount.is_finite() && amount >= 0.0 && work.iter().all(|x| x.is_finite() && *x >= 0.0)) {
            return;
        }
        // Clocks and temperatures change: what was long ago counts less.
        let fade = (-work[0] / HALF_LIFE_S).exp2();
        for i in 0..4 {
            for j in 0..4 {
                self.squares[i][j] = fade * self.squares[i][j] + work[i] * work[j];
            }
            self.products[i] = fade * self.products[i] + work[i] * amount;
        }
        self.periods += 1;
    }

    /// Takes a time without a step in.
    pub fn add_idle(&mut self, seconds: f64, joules: f64) {
        if seconds.is_finite() && seconds >= 0.0 && joules.is_finite() && joules >= 0.0 {
            self.idle_s += seconds;
            self.idle_j += joules;
        }
    }

    /// Watts with nothing to do; `None` before a second of it was seen.
    pub fn idle_w(&self) -> Option<f64> {
        (self.idle_s >= 1.0).then(|| self.idle_j / self.idle_s)
    }

    /// Periods taken in.
    pub fn periods(&self) -> u64 {
        self.periods
    }

    /// The coefficients; `None` until enough periods were seen, of at least two kinds. Kinds of work that never occurred, or
    /// always together, stand to each other as in `declared`.
    pub fn solve(&self, declared: &Coefficients) -> Option<Coefficients> {
        if self.periods < ENOUGH {
            return None;
        }
        let idle_w = self.idle_w().or(declared.idle_w);
        let prices = [declared.joules_per_flop, declared.joules_per_kv_byte, declared.joules_per_weight_byte];
        // In declared amounts: columns of like size, and a factor of 1 is what was declared.
        let square = |i: usize, j: usize| prices[i] * prices[j] * self.squares[i + 1][j + 1];
        let product = |i: usize| prices[i] * (self.products[i + 1] - idle_w.unwrap_or(0.0) * self.squares[i + 1][0]);
        let best = GROUPINGS.iter().find_map(|groupings| {
            let systems = groupings.iter().map(|groups| System::of(groups, square, product));
            let told = systems.filter(|system| system.apart() * self.periods as f64 > TOLD && system.apart() > APART);
            told.max_by(|a, b| a.apart().total_cmp(&b.apart()))
        })?;
        let factors = best.solve();
        let of = |column: usize| prices[column] * factors[best.groups[column]];
        let any = factors[..best.count].iter().any(|factor| *factor > 0.0);
        any.then(|| Coefficients {
            joules_per_flop: of(0),
            joules_per_kv_byte: of(1),
            joules_per_weight_byte: of(2),
            idle_w,
            calibrated: true,
        })
    }
}

/// Normal equations of columns that were added up in groups, each column of length 1.
#[derive(Clone, Copy, Debug)]
struct System {
    /// The group of each column.
    groups: [usize; 3],
    count: usize,
    /// Lengths of the groups' columns.
    lengths: [f64; 3],
    /// Cosines.
    square: [[f64; 3]; 3],
    product: [f64; 3],
}

impl System {
    fn of(groups: &[usize; 3], square: impl Fn(usize, usize) -> f64, product: impl Fn(usize) -> f64) -> System {
        let count = groups.iter().max().map_or(0, |last| last + 1);
        let mut system = System { groups: *groups, count, lengths: [0.0; 3], square: [[0.0; 3]; 3], product: [0.0; 3] };
        for (i, &a) in groups.iter().enumerate() {
            system.product[a] += product(i);
            for (j, &b) in groups.iter().enumerate() {
                system.square[a][b] += square(i, j);
            }
        }
        system.lengths = [0, 1, 2].map(|i| system.square[i][i].sqrt());
        for i in 0..count {
            system.product[i] /= system.lengths[i];
            for j in 0..count {
                system.square[i][j] /= system.lengths[i] * system.lengths[j];
            }
        }
        system
    }

    /// Sine squared of the smallest angle between a column and the plane of the others; no number where one is nothing.
    fn apart(&self) -> f64 {
        let s = &self.square;
        match self.count {
            2 => 1.0 - s[0][1] * s[0][1],
            _ => {
                let (a, b, c) = (s[0][1], s[0][2], s[1][2]);
                let volume = 1.0 + 2.0 * a * b * c - a * a - b * b - c * c;
                // Of a column: the volume over the area that the other two span.
                let sines = [a, b, c].map(|cosine| volume / (1.0 - cosine * cosine));
                match sines.iter().all(|sine| sine.is_finite()) {
                    true => sines.into_iter().fold(f64::INFINITY, f64::min),
                    false => 0.0,
                }
            }
        }
    }

    /// What each group's column costs: of the subsets of columns whose optimum has nothing negative the one that explains
    /// most, which is the constrained optimum.
    fn solve(&self) -> [f64; 3] {
        let mut best = ([0.0; 3], 0.0);
        for subset in 1..1u8 << self.count {
            let chosen = |i: usize| subset >> i & 1 == 1;
            let mut rows = [[0.0; 4]; 3];
            for (i, row) in rows.iter_mut().enumerate() {
                for (j, cell) in row[..3].iter_mut().enumerate() {
                    *cell = match chosen(i) && chosen(j) {
                        true => self.square[i][j],
                        false => f64::from(u8::from(i == j)),
                    };
                }
                row[3] = if chosen(i) { self.product[i] } else { 0.0 };
            }
            let x = eliminate(rows);
            let explains: f64 = x.iter().zip(&self.product).map(|(x, y)| x * y).sum();
            if x.iter().all(|x| *x >= 0.0) && explains > best.1 {
                best = (x, explains);
            }
        }
        let mut factors = best.0;
        factors.iter_mut().zip(&self.lengths).take(self.count).for_each(|(factor, length)| *factor /= length);
        factors
    }
}

/// Solves three equations of a positive definite matrix, which needs no pivots.
fn eliminate(mut rows: [[f64; 4]; 3]) -> [f64; 3] {
    for at in 0..3 {
        let pivot = rows[at];
        for i in (0..3).filter(|i| *i != at) {
            let by = rows[i][at] / pivot[at];
            rows[i].iter_mut().zip(&pivot).for_each(|(cell, pivot)| *cell -= by * pivot);
        }
    }
    [0, 1, 2].map(|i| rows[i][3] / rows[i][i])
}

/// Groups that operations, cache bytes and weight bytes may form, those that tell most first. Two kinds at least: one would only
/// scale what was declared.
const GROUPINGS: [&[[usize; 3]]; 2] = [&[[0, 1, 2]], &[[0, 1, 1], [0, 1, 0], [0, 0, 1]]];

/// Periods that a fit needs.
const ENOUGH: u64 = 16;

/// Sine squared of an angle between kinds of work: below, they are one.
const APART: f64 = 1e-3;

/// The same times periods: few periods must differ more, for noise tells them apart as well.
const TOLD: f64 = 0.1;

/// Seconds of work after which a period counts half.
const HALF_LIFE_S: f64 = 600.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fit(periods: impl IntoIterator<Item = [f64; 4]>, joules: impl Fn([f64; 4]) -> f64) -> Fit {
        let mut fit = Fit::default();
        fit.add_idle(2.0, 80.0);
        periods.into_iter().for_each(|work| fit.add(work, joules(work)));
        fit
    }

    fn solve(fit: &Fit) -> Option<Coefficients> {
        fit.solve(&Coefficients::default())
    }

    fn work(i: u32) -> [f64; 4] {
        let of = |n: u32| f64::from(i % n + 1);
        [0.01 * of(3), 1e11 * of(5), 1e8 * of(7), 1e9 * of(4)]
    }

    #[test]
    fn costs_are_found_again() {
        let truth = |w: [f64; 4]| 40.0 * w[0] + 2e-12 * w[1] + 5e-10 * w[2] + 3e-10 * w[3];
        let found = solve(&fit((0..32).map(work), truth)).unwrap();
        assert_eq!(found.idle_w, Some(40.0));
        let near = |x: f64, truth: f64| assert!((x / truth - 1.0).abs() < 1e-9, "{x} is not {truth}");
        near(found.joules_per_flop, 2e-12);
        near(found.joules_per_kv_byte, 5e-10);
        near(found.joules_per_weight_byte, 3e-10);
        // Memory that seems to give energy back costs nothing.
        let odd = |w: [f64; 4]| 40.0 * w[0] + 4e-12 * w[1] - 1e-11 * w[2] + 3e-10 * w[3];
        let odd = solve(&fit((0..32).map(work), odd)).unwrap();
        assert!(odd.joules_per_kv_byte == 0.0 && odd.joules_per_flop > 0.0 && odd.joules_per_weight_byte > 0.0);
    }

    #[test]
    fn without_an_idle_power_the_work_carries_it() {
        let mut fit = Fit::default();
        (0..32).map(work).for_each(|w| fit.add(w, 2e-12 * w[1] + 5e-10 * w[3]));
        let found = solve(&fit).unwrap();
        assert!(found.idle_w.is_none() && found.calibrated);
        assert!((found.joules_per_flop / 2e-12 - 1.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn what_cannot_be_told_apart_has_no_costs() {
        let alike = |i: u32| [0.01, 1e11, 1e8, 1e9].map(|x| x * f64::from(i + 1));
        assert_eq!(solve(&fit((0..32).map(alike), |w| w[1] * 1e-12)), None);
        assert_eq!(solve(&fit((0..4).map(work), |_| 1.0)), None);
        assert_eq!(solve(&Fit::default()), None);
        assert_eq!(solve(&fit((0..32).map(|_| [0.0; 4]), |_| 1.0)), None);
    }

    /// Decodes of one batch: as many operations as weight bytes in proportion, and the cache grows.
    #[test]
    fn what_cannot_be_told_apart_keeps_its_ratio() {
        let declared = Coefficients::default();
        let decode = |i: u32| [0.01, 1e11, 1e8 * f64::from(i + 1), 1e9];
        let truth = |w: [f64; 4]| 40.0 * w[0] + 2.0 * declared.joules_per_flop * w[1] + 1e-9 * w[2];
        let found = solve(&fit((0..32).map(decode), truth)).unwrap();
        assert!((found.joules_per_kv_byte / 1e-9 - 1.0).abs() < 1e-6, "{found:?}");
        let factor = |x: f64, declared: f64| x / declared;
        let flops = factor(found.joules_per_flop, declared.joules_per_flop);
        assert!((flops / factor(found.joules_per_weight_byte, declared.joules_per_weight_byte) - 1.0).abs() < 1e-9);
        // Together they have the energy that both have.
        let both = found.joules_per_flop * 1e11 + found.joules_per_weight_byte * 1e9;
        assert!((both / (2.0 * declared.joules_per_flop * 1e11) - 1.0).abs() < 1e-6, "{found:?}");
    }

    proptest! {
        /// The constrained optimum: no small step within what is allowed explains more.
        #[test]
        fn nothing_allowed_explains_more(y in prop::collection::vec(0.0..1.0, 24), noise in 0.0..2.0) {
            let mut fit = fit([], |_| 0.0);
            let periods: Vec<([f64; 4], f64)> = y.iter().enumerate()
                .map(|(i, y)| { let w = work(i as u32); (w, 40.0 * w[0] + 1e-12 * w[1] + noise * y) }).collect();
            periods.iter().for_each(|(w, e)| fit.add(*w, *e));
            let found = solve(&fit).unwrap();
            let x = [found.joules_per_flop, found.joules_per_kv_byte, found.joules_per_weight_byte];
            // Fading weighs them differently: by at most a thousandth here.
            let off = |x: [f64; 3]| -> f64 {
                periods.iter().map(|(w, e)| (e - 40.0 * w[0] - x[0] * w[1] - x[1] * w[2] - x[2] * w[3]).powi(2)).sum()
            };
            let scale = [1e-12, 1e-9, 1e-10];
            for i in 0..3 {
                for by in [-1e-2, 1e-2] {
                    let mut moved = x;
                    moved[i] = (moved[i] + by * scale[i]).max(0.0);
                    prop_assert!(off(moved) >= off(x) * (1.0 - 1e-3), "{x:?} {moved:?}");
                }
            }
        }
    }
}
