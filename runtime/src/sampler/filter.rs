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
}

impl Candidate {
    /// Probability mass relative to the largest logit's.
    pub fn mass(&self, most: f32, scale: f32) -> f64 {
        f64::from(simd::exp((self.logit - most) * scale))
    }

    fn order(&self, other: &Self) -> Ordering {
        let logits = other.logit.total_cmp(&self.logit);
        logits.then(self.id.cmp(&other.id))
    }
}

/// Room for candidates that is reserved up front.
pub const ROOM: usize = 8192;

/// The `k >= 1` likeliest tokens in order; fewer if the others cannot be picked.
pub fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    let room = (4 * k).max(1024);
    // What does not exceed it is not among the k best: they are all at least as likely and have smaller ids.
    let mut floor = f32::NEG_INFINITY;
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        if simd::block_max(block).0 <= floor {
            continue;
        }
        for (j, &logit) in block.iter().enumerate() {
            if logit > floor {
                out.push(candidate(logit, i * BLOCK + j));
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

/// Tokens with at least `floor`, by id.
pub fn at_least(logits: &[f32], floor: f32, out: &mut Vec<Candidate>) {
    out.clear();
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        if simd::block_max(block).0 < floor {
            continue;
        }
        for (j, &logit) in block.iter().enumerate() {
            if logit >= floor {
                out.push(candidate(logit, i * BLOCK + j));
            }
        }
    }
}

/// Moves the fewest likeliest candidates whose masses reach `target` to the front, in order; returns their number, which
/// is at least 1.
pub fn top_p(candidates: &mut [Candidate], most: f32, scale: f32, target: f64) -> usize {
    let (mut sorted, mut sum) = (0, 0.0);
    let mut next = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let n = next.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, Candidate::order);
        }
        rest[..n].sort_unstable_by(Candidate::order);
        for (i, candidate) in rest[..n].iter().enumerate() {
            sum += candidate.mass(most, scale);
            if sum >= target {
                return sorted + i + 1;
            }
        }
        sorted += n;
        next *= 4;
    }
    candidates.len()
}

/// Vocabularies fit into 32 bits, which the engine checks at its start.
fn candidate(logit: f32, at: usize) -> Candidate {
    Candidate { logit, id: at as u32 }
}
