//! Row-local kernels: norms, rotation, elementwise work, routing. A row is padded to a multiple of
//! [`GROUP`](crate::packed::GROUP), so whole-row loops have no tail; per-head loops mask theirs.

use crate::simd::{self, Simd};

/// The mean of what a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)`.
    Rms,
    /// `(x - mean) / sqrt(mean((x - mean)^2) + eps)`.
    Layer,
}

/// A norm as its kernels take it: `norm(x) * weight + bias`.
#[derive(Clone, Copy, Debug)]
pub struct NormArgs {
    /// What is divided by what.
    pub kind: NormKind,
    /// Scales, one per column.
    pub weight: *const f32,
    /// Added last, one per column; or null.
    pub bias: *const f32,
    /// Added to the mean square.
    pub eps: f32,
}

/// `sum = x + delta` (where given) and `out = norm(sum)` over `cols` values padded to `padded`. `sum` may be `x`;
/// weights, biases and inputs are zero in the padding.
#[inline(always)]
pub unsafe fn add_norm<S: Simd>(
    norm: &NormArgs,
    x: *const f32,
    delta: Option<*const f32>,
    (cols, padded): (usize, usize),
    sum: *mut f32,
    out: *mut f32,
) {
    // SAFETY: the caller vouches for the instruction set and rows of `padded` values.
    unsafe {
        let (mut total, mut squares) = (S::zero(), S::zero());
        for i in (0..padded).step_by(S::LANES) {
            let mut v = S::load(x.add(i));
            if let Some(delta) = delta {
                v = S::add(v, S::load(delta.add(i)));
                S::store(sum.add(i), v);
            }
            total = S::add(total, v);
            squares = S::fma(v, v, squares);
        }
        let from = if delta.is_some() { sum.cast_const() } else { x };
        divide::<S, true>(norm, 0, from, (S::sum(total), S::sum(squares)), (cols, padded), out);
    }
}

/// Norm of each run of `head` values; `out` may be `x`.
#[inline(always)]
pub unsafe fn head_norm<S: Simd>(norm: &NormArgs, x: *const f32, head: usize, cols: usize, out: *mut f32) {
    // SAFETY: the caller vouches for the instruction set, and for rows and weights of `cols` values.
    unsafe {
        for start in (0..cols).step_by(head) {
            let (x, out) = (x.add(start), out.add(start));
            let (mut total, mut squares) = (S::zero(), S::zero());
            for i in (0..head).step_by(S::LANES) {
                let v = S::load_n(x.add(i), (head - i).min(S::LANES));
                total = S::add(total, v);
                squares = S::fma(v, v, squares);
            }
            divide::<S, false>(norm, start, x, (S::sum(total), S::sum(squares)), (head, head), out);
        }
    }
}

/// The second half of a norm: `len` values of `x` with these sums of values and squares, written up to `end`. `WHOLE`
/// vectors may be read and written; the weights of the values start at `at`.
#[inline(always)]
unsafe fn divide<S: Simd, const WHOLE: bool>(
    norm: &NormArgs,
    at: usize,
    x: *const f32,
    (total, mut squares): (f32, f32),
    (len, end): (usize, usize),
    out: *mut f32,
) {
    // SAFETY: as `add_norm` and `head_norm`.
    unsafe {
        let mut mean = S::zero();
        if norm.kind == NormKind::Layer {
            mean = S::splat(total / len as f32);
            // From the deviations: the difference of two means would cancel.
            let mut sum = S::zero();
            for i in (0..len).step_by(S::LANES) {
                let n = (len - i).min(S::LANES);
                let deviation = S::sub(S::load_n(x.add(i), n), S::mul(mean, S::load_n(ONES.as_ptr(), n)));
                sum = S::fma(deviation, deviation, sum);
            }
            squares = S::sum(sum);
        }
        let scale = S::splat(1.0 / (squares / len as f32 + norm.eps).sqrt());
        let (weight, bias) = (norm.weight.add(at), norm.bias.wrapping_add(at));
        for i in (0..end).step_by(S::LANES) {
            let left = end - i;
            let v = S::sub(load::<S, WHOLE>(x.add(i), left), mean);
            let mut v = S::mul(S::mul(v, scale), load::<S, WHOLE>(weight.add(i), left));
            if !norm.bias.is_null() {
                v = S::add(v, load::<S, WHOLE>(bias.add(i), left));
            }
            if WHOLE { S::store(out.add(i), v) } else { S::store_n(out.add(i), v, left.min(S::LANES)) }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd, const WHOLE: bool>(p: *const f32, left: usize) -> S::F {
    // SAFETY: the caller's values are valid.
    unsafe { if WHOLE { S::load(p) } else { S::load_n(p, left.min(S::LANES)) } }
}

/// As many as the widest vector has lanes.
const ONES: [f32; 16] = [1.0; 16];

/// Rotates every head in place: pair `i` is values `i` and `i + pairs`, its angle's cosine and sine are given.
#[inline(always)]
pub unsafe fn rope_half<S: Simd>(
    x: *mut f32,
    head: usize,
    cols: usize,
    cos: *const f32,
    sin: *const f32,
    pairs: usize,
) {
    // SAFETY: the caller vouches for the instruction set, a row of `cols` values and `pairs` angles.
    unsafe {
        for start in (0..cols).step_by(head) {
            let (lo, hi) = (x.add(start), x.add(start + pairs));
            for i in (0..pairs).step_by(S::LANES) {
                let n = (pairs - i).min(S::LANES);
                let (a, b) = (S::load_n(lo.add(i), n), S::load_n(hi.add(i), n));
                let (c, s) = (S::load_n(cos.add(i), n), S::load_n(sin.add(i), n));
                S::store_n(lo.add(i), S::sub(S::mul(a, c), S::mul(b, s)), n);
                S::store_n(hi.add(i), S::fma(a, s, S::mul(b, c)), n);
            }
        }
    }
}

/// The same for pairs of neighbours, `2i` and `2i + 1`: `cos` and `sin` hold two values per pair, `c, c` and `-s, s`.
#[inline(always)]
pub unsafe fn rope_neighbours<S: Simd>(
    x: *mut f32,
    head: usize,
    cols: usize,
    cos: *const f32,
    sin: *const f32,
    pairs: usize,
) {
    // SAFETY: the caller vouches for the instruction set, a row of `cols` values and `2 * pairs` cosines and sines.
    unsafe {
        for start in (0..cols).step_by(head) {
            let x = x.add(start);
            for i in (0..2 * pairs).step_by(S::LANES) {
                let n = (2 * pairs - i).min(S::LANES);
                let v = S::load_n(x.add(i), n);
                let (c, s) = (S::load_n(cos.add(i), n), S::load_n(sin.add(i), n));
                S::store_n(x.add(i), S::fma(S::swap_pairs(v), s, S::mul(v, c)), n);
            }
        }
    }
}

/// `out = x + y` over `padded` values.
#[inline(always)]
pub unsafe fn add<S: Simd>(x: *const f32, y: *const f32, out: *mut f32, padded: usize) {
    // SAFETY: the caller vouches for the instruction set and rows of `padded` values.
    unsafe {
        for i in (0..padded).step_by(S::LANES) {
            S::store(out.add(i), S::add(S::load(x.add(i)), S::load(y.add(i))));
        }
    }
}

/// `out = x * y` over `padded` values.
#[inline(always)]
pub unsafe fn mul<S: Simd>(x: *const f32, y: *const f32, out: *mut f32, padded: usize) {
    // SAFETY: the caller vouches for the instruction set and rows of `padded` values.
    unsafe {
        for i in (0..padded).step_by(S::LANES) {
            S::store(out.add(i), S::mul(S::load(x.add(i)), S::load(y.add(i))));
        }
    }
}

/// `out = x * factor` over `padded` values.
#[inline(always)]
pub unsafe fn scale<S: Simd>(x: *const f32, factor: f32, out: *mut f32, padded: usize) {
    // SAFETY: the caller vouches for the instruction set and rows of `padded` values.
    unsafe {
        for i in (0..padded).step_by(S::LANES) {
            S::store(out.add(i), S::mul(S::load(x.add(i)), S::splat(factor)));
        }
    }
}

/// `out += x * factor` over `padded` values.
#[inline(always)]
pub unsafe fn add_scaled<S: Simd>(x: *const f32, factor: f32, out: *mut f32, padded: usize) {
    // SAFETY: the caller vouches for the instruction set and rows of `padded` values.
    unsafe {
        for i in (0..padded).step_by(S::LANES) {
            S::store(out.add(i), S::fma(S::load(x.add(i)), S::splat(factor), S::load(out.add(i))));
        }
    }
}

/// `out = cap * tanh(x / cap)` over `padded` values.
#[inline(always)]
pub unsafe fn softcap<S: Simd>(x: *const f32, cap: f32, out: *mut f32, padded: usize) {
    // SAFETY: the caller vouches for the instruction set and rows of `padded` values.
    unsafe {
        let (cap, inverse) = (S::splat(cap), S::splat(1.0 / cap));
        for i in (0..padded).step_by(S::LANES) {
            S::store(out.add(i), S::mul(simd::tanh::<S>(S::mul(S::load(x.add(i)), inverse)), cap));
        }
    }
}

/// `out = min(max(x, -bound), bound)` over `padded` values; a NaN stays one.
#[inline(always)]
pub unsafe fn clamp<S: Simd>(x: *const f32, bound: f32, out: *mut f32, padded: usize) {
    // SAFETY: the caller vouches for the instruction set and rows of `padded` values.
    unsafe {
        let (lo, hi) = (S::splat(-bound), S::splat(bound));
        for i in (0..padded).step_by(S::LANES) {
            // In this order `min` and `max` keep a NaN.
            S::store(out.add(i), S::min(hi, S::max(lo, S::load(x.add(i)))));
        }
    }
}

#[cfg(test)]
mod tests;
