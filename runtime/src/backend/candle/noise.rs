//! Differences as another order of sums makes them, put into a step on purpose.
//!
//! Invariant: the same seed gives the same differences, and none is larger than asked for.

use candle_core::{Result, Tensor};
use njoule_models::program::{Op, Val};

use crate::sampler::uniform;

/// What each value is multiplied with: a number within `size` of 1, another for each.
#[derive(Clone, Debug)]
pub struct Noise {
    seed: u64,
    /// Of the next value.
    index: u64,
    size: f32,
}

impl Noise {
    /// By a seed.
    pub fn new(seed: u64, size: f32) -> Noise {
        Noise { seed, index: 0, size }
    }

    pub(super) fn on(&mut self, values: &Tensor) -> Result<Tensor> {
        let factors: Vec<f32> = (0..values.elem_count()).map(|_| 1.0 + self.size * self.next()).collect();
        values * Tensor::from_vec(factors, values.shape(), values.device())?
    }

    /// -1 to 1.
    fn next(&mut self) -> f32 {
        self.index += 1;
        // Rounds: what is nearer to 1 than an f32 can tell is 1.
        (2.0 * uniform(self.seed, self.index) - 1.0) as f32
    }
}

/// What an op writes that is a sum of many, or a function of one.
pub(super) fn summed(op: &Op) -> Vec<Val> {
    match op {
        Op::LinearN { .. } | Op::GatedMlpIn { .. } | Op::MoeMlp { .. } | Op::Attend { .. } | Op::Norm { .. } => {
            op.outputs()
        }
        Op::AddNorm { out, .. } => vec![*out],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn values_are_off_by_no_more_than_asked_for_and_the_same_again_by_the_same_seed() {
        let values = Tensor::full(2.0_f32, (3, 400), &Device::Cpu).unwrap();
        let of = |seed| -> Vec<f32> {
            let disturbed = Noise::new(seed, 0.01).on(&values).unwrap();
            assert_eq!(disturbed.dims(), values.dims());
            disturbed.flatten_all().unwrap().to_vec1().unwrap()
        };
        let one = of(1);
        assert!(one.iter().all(|x| (x - 2.0).abs() <= 0.02 * 1.0001), "{one:?}");
        // Of all sizes and both signs.
        let [least, most] =
            [one.iter().copied().reduce(f32::min).unwrap(), one.iter().copied().reduce(f32::max).unwrap()];
        assert!(least < 1.9802 && most > 2.0198, "{least} to {most}");
        assert!((one.iter().sum::<f32>() / 1200.0 - 2.0).abs() < 2e-3);
        assert_eq!(one, of(1));
        assert_ne!(one, of(2));
    }
}
