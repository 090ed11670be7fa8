//! Row-local kernels: norms, rotation, cache writes. A row is padded with zeros to a multiple of
//! [`GROUP`](crate::packed::GROUP), so whole-row loops have no tail; per-head loops mask theirs.

use crate::simd::Simd;

/// `sum = x + delta` (where given) and `out = sum / sqrt(mean(sum^2) + eps) * weight` over `cols` values padded to
/// `padded`. `sum` may be `x`; both `weight` and the inputs are zero in the padding.
#[inline(always)]
pub unsafe fn add_rms_norm<S: Simd>(
    x: *const f32,
    delta: Option<*const f32>,
    weight: *const f32,
    eps: f32,
    (cols, padded): (usize, usize),
    sum: *mut f32,
    out: *mut f32,
) {
    // SAFETY: the caller vouches for the instruction set and rows of `padded` values.
    unsafe {
        let mut squares = S::zero();
        for i in (0..padded).step_by(S::LANES) {
            let mut v = S::load(x.add(i));
            if let Some(delta) = delta {
                v = S::add(v, S::load(delta.add(i)));
                S::store(sum.add(i), v);
            }
            squares = S::fma(v, v, squares);
        }
        let from = if delta.is_some() { sum.cast_const() } else { x };
        let scale = S::splat(1.0 / (S::sum(squares) / cols as f32 + eps).sqrt());
        for i in (0..padded).step_by(S::LANES) {
            S::store(out.add(i), S::mul(S::mul(S::load(from.add(i)), scale), S::load(weight.add(i))));
        }
    }
}

/// RMS norm of each run of `head` values; `out` may be `x`.
#[inline(always)]
pub unsafe fn head_rms_norm<S: Simd>(
    x: *const f32,
    weight: *const f32,
    eps: f32,
    head: usize,
    cols: usize,
    out: *mut f32,
) {
    // SAFETY: the caller vouches for the instruction set, rows of `cols` values and a weight of `head`.
    unsafe {
        for start in (0..cols).step_by(head) {
            let (x, out) = (x.add(start), out.add(start));
            let mut squares = S::zero();
            for i in (0..head).step_by(S::LANES) {
                let v = S::load_n(x.add(i), (head - i).min(S::LANES));
                squares = S::fma(v, v, squares);
            }
            let scale = S::splat(1.0 / (S::sum(squares) / head as f32 + eps).sqrt());
            for i in (0..head).step_by(S::LANES) {
                let n = (head - i).min(S::LANES);
                let v = S::mul(S::mul(S::load_n(x.add(i), n), scale), S::load_n(weight.add(i), n));
                S::store_n(out.add(i), v, n);
            }
        }
    }
}

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

#[cfg(test)]
mod tests;
