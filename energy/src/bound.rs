//! The least energy that a token can cost on given hardware, and the law E(B) = a + b/B.
//!
//! The bound is arithmetic on declared constants. They are printed wherever the ratio is, because two of them are unverified.

use serde::Serialize;

/// Joules of moving a bit and of an operation, and what flows while nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LimitConstants {
    /// Reading a bit of device memory: 3.9 pJ for HBM2 (O'Connor et al., MICRO 2017; the number itself unverified).
    pub eps_m_pj_bit: f64,
    /// A bf16 operation: 0.71 pJ, an H100's rated power over its rated speed (unverified).
    pub eps_f_pj_flop: f64,
    /// Watts with the model loaded and nothing to do; unknown unless measured.
    pub p_static_w: Option<f64>,
}

impl Default for LimitConstants {
    fn default() -> LimitConstants {
        LimitConstants { eps_m_pj_bit: 3.9, eps_f_pj_flop: 0.71, p_static_w: None }
    }
}

/// What a decode step does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeStep {
    /// Weight bytes, read once per step.
    pub weight_bytes: f64,
    /// Parameters that a token passes.
    pub active_params: f64,
    /// Cache bytes per token of context.
    pub kv_bytes_per_token: f64,
    /// Sequences.
    pub batch: f64,
    /// Tokens of context of each.
    pub context: f64,
}

/// Bytes and operations per second of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// Of its memory.
    pub bytes_per_s: f64,
    /// Of its arithmetic.
    pub flops_per_s: f64,
}

impl DecodeStep {
    /// Joules per output token at least; with static power only where that and the speeds are known.
    pub fn least_joules_per_token(&self, constants: &LimitConstants, speeds: Option<Speeds>) -> f64 {
        let cache = self.kv_bytes_per_token * self.context;
        let flops = 2.0 * self.active_params;
        let moved = 8.0 * constants.eps_m_pj_bit * 1e-12 * (self.weight_bytes / self.batch + cache);
        let computed = flops * constants.eps_f_pj_flop * 1e-12;
        let flowing = constants.p_static_w.zip(speeds).map_or(0.0, |(watts, speeds)| {
            let memory = (self.weight_bytes + self.batch * cache) / speeds.bytes_per_s;
            watts * memory.max(flops * self.batch / speeds.flops_per_s) / self.batch
        });
        moved + computed + flowing
    }
}

/// E(B) = a + b/B: joules per token at a mean batch, for one set of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BatchLaw {
    /// Joules that each token costs.
    pub a: f64,
    /// Joules of a step, whatever its batch.
    pub b: f64,
    /// Largest relative distance of a point from it.
    pub worst_residual: f64,
}

impl BatchLaw {
    /// By least squares of the relative distances; `None` with fewer than two different batches, or if it is none of the kind.
    pub fn fit(points: &[(f64, f64)]) -> Option<BatchLaw> {
        // Minimises Σ ((a + b/B)/E − 1)²: linear in a and b.
        let (mut xx, mut xy, mut yy, mut x, mut y) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &(batch, joules) in points {
            if !(batch >= 1.0 && joules > 0.0 && joules.is_finite()) {
                return None;
            }
            let (p, q) = (1.0 / joules, 1.0 / (batch * joules));
            (xx, xy, yy) = (xx + p * p, xy + p * q, yy + q * q);
            (x, y) = (x + p, y + q);
        }
        let det = xx * yy - xy * xy;
        if !(det > 1e-12 * xx * yy) {
            return None;
        }
        let (a, b) = ((x * yy - y * xy) / det, (xx * y - xy * x) / det);
        let law = BatchLaw { a, b, worst_residual: 0.0 };
        let worst = points.iter().map(|&(batch, joules)| (law.at(batch) / joules - 1.0).abs()).fold(0.0, f64::max);
        (a >= 0.0 && b >= 0.0).then_some(BatchLaw { worst_residual: worst, ..law })
    }

    /// Joules per token at this batch.
    pub fn at(&self, batch: f64) -> f64 {
        self.a + self.b / batch
    }

    /// The batch at which waiting for more sequences can no longer halve the energy.
    pub fn half_energy_batch(&self) -> Option<f64> {
        (self.a > 0.0).then(|| self.b / self.a)
    }

    /// b as picojoules per weight bit.
    pub fn pj_per_weight_bit(&self, weight_bytes: f64) -> f64 {
        self.b * 1e12 / (8.0 * weight_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Llama-3.1-8B on an H100 at a context that does not matter: 0.076 J at 8 sequences, 0.0142 J at 512.
    #[test]
    fn bound_of_the_published_case() {
        let step = |batch| DecodeStep {
            weight_bytes: 1.606e10,
            active_params: 8.03e9,
            kv_bytes_per_token: 131_072.0,
            batch,
            context: 500.0,
        };
        let least = |batch| step(batch).least_joules_per_token(&LimitConstants::default(), None);
        assert!((least(8.0) - 0.076).abs() < 0.001, "{}", least(8.0));
        assert!((least(512.0) - 0.0142).abs() < 0.0003, "{}", least(512.0));
        let constants = LimitConstants { p_static_w: Some(100.0), ..LimitConstants::default() };
        let speeds = Speeds { bytes_per_s: 3.35e12, flops_per_s: 9.89e14 };
        let with = step(8.0).least_joules_per_token(&constants, Some(speeds));
        let step_s = (1.606e10 + 8.0 * 500.0 * 131_072.0) / 3.35e12;
        assert!((with - least(8.0) - 100.0 * step_s / 8.0).abs() < 1e-9);
    }

    /// Published points of Llama-3.1-8B on one H100 (ml.energy v3) give the law that its table prints.
    #[test]
    fn law_of_published_points() {
        let points = [
            (8.0, 0.455),
            (16.0, 0.263),
            (32.0, 0.165),
            (64.0, 0.119),
            (128.0, 0.0951),
            (256.0, 0.0766),
            (512.0, 0.0702),
        ];
        let law = BatchLaw::fit(&points).unwrap();
        assert!((law.a - 0.0664).abs() < 0.001 && (law.b - 3.16).abs() < 0.05 && law.worst_residual < 0.05, "{law:?}");
        assert!((law.pj_per_weight_bit(1.606e10) - 24.6).abs() < 0.5);
        assert!((law.half_energy_batch().unwrap() - 48.0).abs() < 1.5);
    }

    #[test]
    fn one_batch_makes_no_law() {
        assert_eq!(BatchLaw::fit(&[(8.0, 1.0), (8.0, 1.1)]), None);
        assert_eq!(BatchLaw::fit(&[(1.0, 1.0), (2.0, 4.0)]), None);
    }

    proptest! {
        #[test]
        fn a_and_b_are_found_again_within_two_percent(
            a in 0.01..1.0, b in 0.1..10.0, noise in prop::collection::vec(-0.005..0.005, 16),
        ) {
            let batches = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
            // A law whose parts are both visible in these batches.
            prop_assume!(b / a > 4.0 && b / a < 100.0);
            let points: Vec<(f64, f64)> =
                batches.iter().zip(&noise).map(|(&batch, n): (&f64, &f64)| (batch, (a + b / batch) * (1.0 + n))).collect();
            let law = BatchLaw::fit(&points).unwrap();
            let off = [law.a / a - 1.0, law.b / b - 1.0].map(f64::abs);
            prop_assert!(off[0] < 0.02 && off[1] < 0.02, "{:?} of {} {}", law, a, b);
        }
    }
}
