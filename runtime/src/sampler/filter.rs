//! Narrows a row down to its likeliest tokens without sorting it.
//!
//! Invariant: tokens are ordered by logit, and by id where logits are equal, so that what is kept is always the same.

use std::cmp::Ordering;

use super::simd::{self, BLOCK};

/// A token that may be picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub logit: f32,
    pub id: u32,
    /// Probability relative to the likeliest token's.
    pub weight: f32,
}

impl Candidate {
    /// Vocabularies fit into 32 bits, which the engine checks at its start.
    fn new(logit: f32, at: usize, weight: f32) -> Self {
        Candidate { logit, id: at as u32, weight }
    }

    pub fn order(&self, other: &Self) -> Ordering {
        let logits = other.logit.total_cmp(&self.logit);
        logits.then(self.id.cmp(&other.id))
    }
}

/// Room for candidates that is reserved up front.
pub const ROOM: usize = 8192;

/// The `k >= 1` likeliest tokens in order; fewer if the others cannot be picked. Weights are left 0.
pub fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    let room = k.saturating_mul(4).max(1024);
    // What does not exceed it is not among the k best: they are all at least as likely and have smaller ids.
    let mut floor = f32::NEG_INFINITY;
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        if simd::block_max(block).0 <= floor {
            continue;
        }
        for (j, &logit) in block.iter().enumerate() {
            if logit > floor {
                out.push(Candidate::new(logit, i * BLOCK + j, 0.0));
            }
        }
        if out.len() >= room {
            out.select_nth_unstable_by(k - 1, Candidate::order);
            out.truncate(k);
            floor = out[k - 1].logit;
        }
    }
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, Candidate::order);
        out.truncate(k);
    }
    out.sort_unstable_by(Candidate::order);
}

/// The fewest of ordered candidates whose weights reach `target`, at least one.
pub fn reach(candidates: &[Candidate], target: f64) -> &[Candidate] {
    let mut sum = 0.0;
    let reaches = |candidate: &Candidate| {
        sum += f64::from(candidate.weight);
        sum >= target
    };
    let last = candidates.iter().position(reaches);
    &candidates[..last.map_or(candidates.len(), |last| last + 1)]
}

/// The fewest likeliest tokens that have a given weight together.
pub struct Nucleus<'a> {
    /// All tokens of at least this weight belong to it.
    pub above: f32,
    /// Their weight.
    pub mass: f64,
    /// So do these, which are lighter.
    pub edge: &'a [Candidate],
}

/// Finds the fewest likeliest tokens of at least weight `cut` whose weights, at most 1 each, reach `target`.
///
/// Bisection over the bits of a weight, by vectorised sums, narrows down to 1/64 of an octave where the target is
/// reached; only what lies in there is sorted. `peaks` is scratch.
pub fn nucleus<'a>(
    logits: &[f32],
    weights: &[f32],
    cut: f32,
    target: f64,
    peaks: &mut Vec<f32>,
    candidates: &'a mut Vec<Candidate>,
) -> Nucleus<'a> {
    peaks.clear();
    peaks.extend(weights.chunks(BLOCK).map(|block| simd::block_max(block).0));
    let (low, high, mass) = narrow(cut, target, |least| {
        let blocks = weights.chunks(BLOCK).zip(&*peaks).filter(|(_, peak)| **peak >= least);
        blocks.map(|(block, _)| simd::mass_at_least(block, least)).sum()
    });
    let (least, above) = (f32::from_bits(low), f32::from_bits(high));
    candidates.clear();
    for (i, block) in weights.chunks(BLOCK).enumerate() {
        if peaks[i] < least {
            continue;
        }
        for (j, &weight) in block.iter().enumerate() {
            if (weight >= least) & (weight < above) {
                let at = i * BLOCK + j;
                candidates.push(Candidate::new(logits[at], at, weight));
            }
        }
    }
    candidates.sort_unstable_by(Candidate::order);
    Nucleus { above, mass, edge: reach(candidates, target - mass) }
}

/// Bits of two weights, the first at least `cut`: tokens of at least the first have `target` together, those of at least
/// the second do not, but their weight, which is returned too. `mass_at_least` says what tokens of a weight have together.
pub fn narrow(cut: f32, target: f64, mass_at_least: impl Fn(f32) -> f64) -> (u32, u32, f64) {
    let (mut low, mut high, mut mass) = (cut.to_bits(), 1f32.to_bits() + 1, 0.0);
    while high - low > NARROW {
        let middle = low + (high - low) / 2;
        let sum = mass_at_least(f32::from_bits(middle));
        if sum >= target {
            low = middle;
        } else {
            (high, mass) = (middle, sum);
        }
    }
    (low, high, mass)
}

/// 1/64 of an octave, in bits of a weight.
const NARROW: u32 = 1 << 17;
