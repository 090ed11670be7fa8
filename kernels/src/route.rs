//! A router's logits as the experts' shares: scores, the largest of them, their sum. All in f32, one row at a time.

use std::ops::Range;
use std::sync::Arc;

use crate::simd::{self, Simd};

/// Scores of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteScore {
    /// Over all experts.
    Softmax,
    /// Each on its own.
    Sigmoid,
}

/// How logits become shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Logits to scores.
    pub score: RouteScore,
    /// Added to the scores where experts are chosen, not where they are weighed.
    pub bias: Option<Arc<[f32]>>,
    /// Groups of neighbours that experts are chosen from.
    pub groups: Option<RouteGroups>,
    /// Experts that are kept: those of the largest scores; of equal scores, the lower number.
    pub top_k: usize,
    /// Whether the kept scores are divided by their sum.
    pub normalise: bool,
    /// Factor of the shares.
    pub factor: f32,
}

/// Which groups experts are chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteGroups {
    /// Groups, at most [`MOST_GROUPS`]; divides the number of experts.
    pub count: usize,
    /// Groups that are kept; they have `top_k` experts at least.
    pub kept: usize,
    /// A group ranks by the sum of this many of its largest scores.
    pub best: usize,
}

/// Groups at most.
pub const MOST_GROUPS: usize = 64;

/// Shares of `experts` experts from as many logits; at most `top_k` are not zero. Where a logit is NaN, so are the shares
/// of the first `top_k`.
#[inline(always)]
pub unsafe fn route<S: Simd>(routing: &Routing, x: *const f32, experts: usize, out: *mut f32) {
    // SAFETY: the caller vouches for the instruction set and rows of `experts` values, at least one and `top_k`.
    unsafe {
        let x = std::slice::from_raw_parts(x, experts);
        let out = std::slice::from_raw_parts_mut(out, experts);
        scores::<S>(routing.score, x, out);
        let total = out.iter().sum::<f32>();
        if !total.is_finite() {
            out[..routing.top_k].fill(f32::NAN);
            return out[routing.top_k..].fill(0.0);
        }
        let bias = routing.bias.as_deref();
        let chosen_by = |i: usize, score: f32| bias.map_or(score, |bias| score + bias[i]);
        let mut size = experts;
        // A bit for each group that is out.
        let mut dropped = 0_u64;
        if let Some(RouteGroups { count, kept, best }) = routing.groups {
            size = experts / count;
            let mut sums = [0.0_f32; MOST_GROUPS];
            for (g, sum) in sums[..count].iter_mut().enumerate() {
                nth(g * size..(g + 1) * size, best, |i| chosen_by(i, out[i]), |(score, _)| *sum += score);
            }
            let least = nth(0..count, kept, |g| sums[g], |_| {});
            for g in (0..count).filter(|g| comes_after((sums[*g], *g), least)) {
                dropped |= 1 << g;
            }
        }
        let rank = |i: usize, score: f32| match dropped >> (i / size) & 1 {
            0 => chosen_by(i, score),
            _ => f32::NEG_INFINITY,
        };
        // The last that is kept, and the kept scores' sum in order of rank: no list of them is needed.
        let mut sum = 0.0;
        let least = nth(0..experts, routing.top_k, |i| rank(i, out[i]), |(_, i)| sum += out[i]);
        let divisor = if routing.normalise { sum } else { 1.0 };
        for (i, s) in out.iter_mut().enumerate() {
            *s = if comes_after((rank(i, *s), i), least) { 0.0 } else { *s / divisor * routing.factor };
        }
    }
}

/// The `n`th of `range` by `value`, and before it each that goes before, shown to `each` in order.
#[inline(always)]
fn nth(
    range: Range<usize>,
    n: usize,
    value: impl Fn(usize) -> f32,
    mut each: impl FnMut((f32, usize)),
) -> (f32, usize) {
    let mut last = (f32::INFINITY, 0);
    for _ in 0..n {
        let mut next = (f32::NEG_INFINITY, 0);
        for i in range.clone() {
            let x = value(i);
            if x > next.0 && comes_after((x, i), last) {
                next = (x, i);
            }
        }
        last = next;
        each(last);
    }
    last
}

/// Whether score `a` of an expert ranks below `b`.
#[inline(always)]
fn comes_after(a: (f32, usize), b: (f32, usize)) -> bool {
    a.0 < b.0 || a.0 == b.0 && a.1 > b.1
}

#[inline(always)]
unsafe fn scores<S: Simd>(score: RouteScore, x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's instruction set is S's; both slices are equally long.
    unsafe {
        let vector = |i: usize| (x.len() - i).min(S::LANES);
        match score {
            RouteScore::Sigmoid => {
                for i in (0..x.len()).step_by(S::LANES) {
                    let s = simd::sigmoid::<S>(S::load_n(x.as_ptr().add(i), vector(i)));
                    S::store_n(out.as_mut_ptr().add(i), s, vector(i));
                }
            }
            RouteScore::Softmax => {
                let largest = x.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
                for i in (0..x.len()).step_by(S::LANES) {
                    let below = S::sub(S::load_n(x.as_ptr().add(i), vector(i)), S::splat(largest));
                    S::store_n(out.as_mut_ptr().add(i), simd::exp::<S>(below), vector(i));
                }
                let total: f32 = out.iter().sum();
                let bad = x.iter().any(|x| x.is_nan());
                let inverse = if bad { f32::NAN } else { 1.0 / total };
                out.iter_mut().for_each(|s| *s *= inverse);
            }
        }
    }
}

#[cfg(test)]
mod tests;
