//! What time, operations and bytes cost, from periods of which all three and the joules are known.

use super::Coefficients;

/// Sums over periods: E − P · seconds ≈ A · FLOPs + M · bytes, by least squares with nothing negative.
///
/// P is measured apart, on periods without a step. It cannot be fitted beside A and M: a step's time is itself nearly a sum
/// of its operations and bytes, so that the meter's noise would decide how much of the energy is static.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fit {
    /// Σ x xᵀ of seconds, operations and bytes.
    squares: [[f64; 3]; 3],
    /// Σ x E.
    products: [f64; 3],
    periods: u64,
    idle_s: f64,
    idle_j: f64,
}

impl Fit {
    /// Takes a period in: its seconds, operations and bytes, and its joules.
    pub fn add(&mut self, work: [f64; 3], joules: f64) {
        if !(joules.is_finite() && joules >= 0.0 && work.iter().all(|x| x.is_finite() && *x >= 0.0)) {
            return;
        }
        for i in 0..3 {
            for j in 0..3 {
                self.squares[i][j] += work[i] * work[j];
            }
            self.products[i] += work[i] * joules;
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

    /// The coefficients; `None` until idling and enough periods of different kinds were seen.
    pub fn solve(&self) -> Option<Coefficients> {
        let idle_w = self.idle_w().filter(|_| self.periods >= ENOUGH)?;
        let [flops, bytes] = [self.squares[1][1], self.squares[2][2]];
        // Columns of like size: operations and bytes differ by orders. The cross term is their cosine then.
        let scale = [flops.sqrt(), bytes.sqrt()];
        let cosine = self.squares[1][2] / (scale[0] * scale[1]);
        let apart = 1.0 - cosine * cosine;
        // Not greater, or no number: all periods are alike, or did nothing.
        if !(apart > APART) {
            return None;
        }
        let y = [1, 2].map(|i| (self.products[i] - idle_w * self.squares[i][0]) / scale[i - 1]);
        let both = [(y[0] - cosine * y[1]) / apart, (y[1] - cosine * y[0]) / apart];
        // Where one would be negative the other explains all: with two columns that is the constrained optimum.
        let x = match both {
            [a, b] if a >= 0.0 && b >= 0.0 => [a, b],
            [a, _] if a < 0.0 => [0.0, y[1].max(0.0)],
            _ => [y[0].max(0.0), 0.0],
        };
        let [joules_per_flop, joules_per_byte] = [x[0] / scale[0], x[1] / scale[1]];
        let any = joules_per_flop + joules_per_byte > 0.0;
        any.then_some(Coefficients { joules_per_flop, joules_per_byte, idle_w: Some(idle_w), calibrated: true })
    }
}

/// Periods that a fit needs.
const ENOUGH: u64 = 16;

/// Sine squared of the angle between operations and bytes: below, the periods are all of one kind.
const APART: f64 = 1e-3;

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(periods: impl IntoIterator<Item = [f64; 3]>, joules: impl Fn([f64; 3]) -> f64) -> Fit {
        let mut fit = Fit::default();
        fit.add_idle(2.0, 80.0);
        periods.into_iter().for_each(|work| fit.add(work, joules(work)));
        fit
    }

    #[test]
    fn costs_are_found_again() {
        let work = |i: u32| [0.01 * f64::from(i % 3 + 1), 1e11 * f64::from(i % 5 + 1), 1e9 * f64::from(i % 7 + 1)];
        let found = fit((0..32).map(work), |w| 40.0 * w[0] + 2e-12 * w[1] + 5e-10 * w[2]).solve().unwrap();
        assert_eq!(found.idle_w, Some(40.0));
        assert!(
            (found.joules_per_flop / 2e-12 - 1.0).abs() < 1e-9 && (found.joules_per_byte / 5e-10 - 1.0).abs() < 1e-9
        );
        // Memory that seems to give energy back costs nothing.
        let odd = fit((0..32).map(work), |w| 40.0 * w[0] + 4e-12 * w[1] - 1e-11 * w[2]).solve().unwrap();
        assert!(odd.joules_per_byte == 0.0 && odd.joules_per_flop > 0.0);
    }

    #[test]
    fn what_cannot_be_told_apart_has_no_costs() {
        let alike = |i: u32| [0.01, 1e11 * f64::from(i + 1), 1e9 * f64::from(i + 1)];
        assert_eq!(fit((0..32).map(alike), |w| w[1] * 1e-12).solve(), None);
        assert_eq!(fit((0..4).map(|i| [0.1, f64::from(i), 1.0]), |_| 1.0).solve(), None);
        assert_eq!(Fit::default().solve(), None);
        assert_eq!(fit((0..32).map(|_| [0.0; 3]), |_| 1.0).solve(), None);
    }
}
