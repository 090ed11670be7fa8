//! The random number of an output token, and picking with it.
//!
//! Every logit becomes a weight, relative to the largest logit's, in one vectorised pass that also applies min-p; a token
//! is where the running sum of weights exceeds a random share of the total.
//!
//! Invariant: the number depends on (seed, output index) alone: nothing has to be saved or replayed.

use super::Sampler;
use super::filter::{self, Candidate, Nucleus};
use super::params::SamplingParams;
use super::simd::{self, BLOCK};

/// A number in `[0, 1)` from a seed and an output index: SplitMix64 (Steele, Lea, Flood 2014) at that index of the stream
/// that the scrambled seed starts.
pub fn uniform(seed: u64, index: u64) -> f64 {
    let stream = scramble(seed.wrapping_add(GAMMA));
    let bits = scramble(stream.wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// SplitMix64's increment.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function.
fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Sampler {
    /// Picks by temperature and filters; `most` is the largest logit, `u` the random number.
    pub(super) fn draw(&mut self, logits: &[f32], most: f32, params: &SamplingParams, u: f64) -> usize {
        let scale = 1.0 / params.temperature;
        let top_p = f64::from(params.top_p);
        if params.top_k > 0 && params.top_k < logits.len() {
            let candidates = &mut self.candidates;
            filter::top_k(logits, params.top_k, candidates);
            for candidate in &mut *candidates {
                candidate.weight = simd::exp((candidate.logit - most) * scale);
            }
            let kept = candidates.partition_point(|c| c.weight >= params.min_p);
            let mut kept = &candidates[..kept.max(1)];
            if top_p < 1.0 {
                kept = filter::reach(kept, total(kept) * top_p);
            }
            return draw_candidate(kept, u * total(kept));
        }
        self.weights.resize(logits.len(), 0.0);
        self.masses.clear();
        for (block, weights) in logits.chunks(BLOCK).zip(self.weights.chunks_mut(BLOCK)) {
            self.masses.push(simd::weigh(block, most, scale, params.min_p, weights));
        }
        let total: f64 = self.masses.iter().sum();
        if top_p >= 1.0 {
            return draw_weight(&self.weights, &self.masses, u * total);
        }
        // Tokens below a share of (1 - p) / vocab have less than 1 - p together, so the others reach p without them.
        let cut = ((1.0 - top_p) * total / logits.len() as f64).min(1.0) as f32;
        let Nucleus { above, mass, edge } =
            filter::nucleus(logits, &self.weights, cut, total * top_p, &mut self.peaks, &mut self.candidates);
        let target = u * (mass + self::total(edge));
        if target >= mass {
            return draw_candidate(edge, target - mass);
        }
        self.masses.clear();
        for weights in self.weights.chunks_mut(BLOCK) {
            self.masses.push(simd::keep(weights, above));
        }
        draw_weight(&self.weights, &self.masses, target)
    }
}

/// Sum of weights.
pub(super) fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

/// The position at which the running sum of `weights` exceeds `target`; `masses` are the sums of its blocks.
fn draw_weight(weights: &[f32], masses: &[f64], target: f64) -> usize {
    let mut sum = 0.0;
    for (i, &mass) in masses.iter().enumerate() {
        if sum + mass <= target {
            sum += mass;
            continue;
        }
        let (start, mut last) = (i * BLOCK, None);
        for (j, &weight) in weights[start..].iter().take(BLOCK).enumerate() {
            if weight > 0.0 {
                (sum, last) = (sum + f64::from(weight), Some(start + j));
            }
            if sum > target {
                break;
            }
        }
        // A block's mass and the sum of its weights may differ by rounding: then it is its last token.
        if let Some(last) = last {
            return last;
        }
    }
    // Rounding has put the target at the very end.
    weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
}

/// The candidate at which the running sum of weights exceeds `target`.
pub(super) fn draw_candidate(candidates: &[Candidate], target: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for candidate in candidates {
        if candidate.weight > 0.0 {
            (sum, last) = (sum + f64::from(candidate.weight), candidate.id as usize);
        }
        if sum > target {
            break;
        }
    }
    last
}
