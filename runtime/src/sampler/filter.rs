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

    fn order(&self, other: &Self) -> Ordering {
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
/// A histogram over the leading bits of the weights (1/64 of an octave per bin) shows in which bin the target is reached;
/// only that bin is sorted.
pub fn nucleus<'a>(
    logits: &[f32],
    weights: &[f32],
    cut: f32,
    target: f64,
    histogram: &mut Vec<f64>,
    candidates: &'a mut Vec<Candidate>,
) -> Nucleus<'a> {
    const DROPPED_BITS: u32 = 17;
    let bin = |weight: f32| (weight.to_bits() >> DROPPED_BITS) as usize;
    let lightest = |bin: usize| f32::from_bits((bin as u32) << DROPPED_BITS);
    let (bins, first) = (bin(1.0) + 1, bin(cut));
    histogram.resize(bins, 0.0);
    histogram[first..].fill(0.0);
    for block in weights.chunks(BLOCK) {
        if simd::block_max(block).0 < cut {
            continue;
        }
        for &weight in block {
            if weight >= cut {
                histogram[bin(weight)] += f64::from(weight);
            }
        }
    }
    let (mut mass, mut edge) = (0.0, bins - 1);
    while edge > first && mass + histogram[edge] < target {
        mass += histogram[edge];
        edge -= 1;
    }
    let (above, least) = (lightest(edge + 1), lightest(edge).max(cut));
    candidates.clear();
    for (i, block) in weights.chunks(BLOCK).enumerate() {
        if simd::block_max(block).0 < least {
            continue;
        }
        for (j, &weight) in block.iter().enumerate() {
            if weight >= least && weight < above {
                let at = i * BLOCK + j;
                candidates.push(Candidate::new(logits[at], at, weight));
            }
        }
    }
    candidates.sort_unstable_by(Candidate::order);
    // Rounding may leave the bin empty; then what is above it has reached the target.
    Nucleus { above, mass, edge: reach(candidates, target - mass) }
}
