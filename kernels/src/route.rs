//! A router's logits as the experts' shares: scores, the largest of them, their sum. All in f32, one row at a time.

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Logits to scores.
    pub score: RouteScore,
    /// Experts that are kept: those of the largest scores; of equal scores, the lower number.
    pub top_k: usize,
    /// Whether the kept scores are divided by their sum.
    pub normalise: bool,
    /// Factor of the shares.
    pub factor: f32,
}

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
        // The last that is kept, and the kept scores' sum in order of size: no list of them is needed.
        let (mut least, mut sum) = ((f32::INFINITY, 0), 0.0);
        for _ in 0..routing.top_k {
            let mut next = (f32::NEG_INFINITY, 0);
            for (i, s) in out.iter().enumerate() {
                if *s > next.0 && comes_after((*s, i), least) {
                    next = (*s, i);
                }
            }
            least = next;
            sum += least.0;
        }
        let divisor = if routing.normalise { sum } else { 1.0 };
        for (i, s) in out.iter_mut().enumerate() {
            *s = if comes_after((*s, i), least) { 0.0 } else { *s / divisor * routing.factor };
        }
    }
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
