//! The random number of an output token, and picking with it.
//!
//! Invariant: the number depends on (seed, output index) alone: nothing has to be saved or replayed.

use super::Sampler;
use super::filter::{self, Candidate};
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
        let floor = if params.min_p > 0.0 { most + params.temperature * params.min_p.ln() } else { f32::NEG_INFINITY };
        let limit = params.top_p < 1.0;
        let candidates = &mut self.candidates;
        if params.top_k > 0 && params.top_k < logits.len() {
            filter::top_k(logits, params.top_k, candidates);
            candidates.truncate(candidates.partition_point(|c| c.logit >= floor));
        } else if params.min_p > 0.0 {
            filter::at_least(logits, floor, candidates);
        } else {
            let total = masses(logits, most, scale, &mut self.masses);
            if !limit {
                return draw_row(logits, most, scale, &self.masses, u * total);
            }
            // Tokens less likely than (1 - p) / vocab have less than 1 - p together, so the others reach p without them.
            let share = (1.0 - f64::from(params.top_p)) / logits.len() as f64 * total;
            let floor = f64::from(most) + f64::from(params.temperature) * share.ln();
            filter::at_least(logits, (floor as f32).min(most), candidates);
            let kept = filter::top_p(candidates, most, scale, total * f64::from(params.top_p));
            return draw_candidate(&candidates[..kept], most, scale, u);
        }
        let mut kept = candidates.len();
        if limit {
            let total: f64 = candidates.iter().map(|c| c.mass(most, scale)).sum();
            kept = filter::top_p(candidates, most, scale, total * f64::from(params.top_p));
        }
        draw_candidate(&candidates[..kept], most, scale, u)
    }
}

/// Probability mass of every block, relative to the largest logit's; returns their sum.
pub fn masses(logits: &[f32], most: f32, scale: f32, masses: &mut Vec<f64>) -> f64 {
    masses.clear();
    let blocks = logits.chunks(BLOCK);
    masses.extend(blocks.map(|block| simd::block_mass(block, most, scale)));
    masses.iter().sum()
}

/// The token of a row at which the running sum of masses exceeds `target`.
fn draw_row(logits: &[f32], most: f32, scale: f32, masses: &[f64], target: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for (i, &mass) in masses.iter().enumerate() {
        if sum + mass <= target {
            sum += mass;
            continue;
        }
        let start = i * BLOCK;
        let block = &logits[start..logits.len().min(start + BLOCK)];
        for (j, &logit) in block.iter().enumerate() {
            let mass = f64::from(simd::exp((logit - most) * scale));
            if mass > 0.0 {
                (sum, last) = (sum + mass, start + j);
            }
            if sum > target {
                break;
            }
        }
        return last;
    }
    // Rounding has put the target at the very end: the last token that has any mass.
    let has_mass = |logit: &f32| simd::exp((logit - most) * scale) > 0.0;
    logits.iter().rposition(has_mass).unwrap_or(last)
}

/// The candidate at which the running sum of masses exceeds `u` of all.
fn draw_candidate(candidates: &[Candidate], most: f32, scale: f32, u: f64) -> usize {
    let total: f64 = candidates.iter().map(|c| c.mass(most, scale)).sum();
    let (target, mut sum, mut last) = (u * total, 0.0, 0);
    for candidate in candidates {
        let mass = candidate.mass(most, scale);
        if mass > 0.0 {
            (sum, last) = (sum + mass, candidate.id as usize);
        }
        if sum > target {
            break;
        }
    }
    last
}
