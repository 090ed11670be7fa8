//! One vector type per instruction set: the vocabulary every kernel of this crate is written in.
//!
//! A kernel is a generic `#[inline(always)]` function over [`Simd`]; the `entry_points!` macro instantiates it inside a
//! `#[target_feature]` function for each instruction set. A vector has [`Simd::LANES`] lanes, a divisor of
//! [`PANEL`](crate::packed::PANEL): code that walks a panel does so in `PANEL / LANES` parts. Every method is the same
//! function on every set up to the rounding of [`Simd::fma`], which the scalar set does in two steps.

#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod scalar;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

/// Vectors of one instruction set.
///
/// # Safety
/// Every method may be called only where the instruction set is available; pointers must be valid for the lanes (or
/// the stated number of elements) read or written. No alignment is required.
pub unsafe trait Simd: Copy + 'static {
    /// `LANES` values of f32.
    type F: Copy;
    /// `LANES` values of i32.
    type I: Copy;
    /// Lanes of a vector.
    const LANES: usize;
    /// Tokens a matrix tile holds in registers.
    const TILE: usize;
    /// Whether [`Simd::dot2_bf16`] multiplies bf16 pairs in hardware.
    const BF16: bool;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    /// The first `n <= LANES` values, the rest zero.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// Stores the first `n <= LANES` lanes.
    unsafe fn store_n(p: *mut f32, x: Self::F, n: usize);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Even (`.0`) and odd (`.1`) elements of `2 * LANES` bf16 values.
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F);
    unsafe fn load_i8(p: *const i8) -> Self::F;
    /// Rounds to nearest even.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    /// Rounds to nearest even; NaN stays NaN.
    unsafe fn store_bf16(p: *mut u16, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Lanes summed pairwise: lane `i` with `i + LANES/2`, and so on.
    unsafe fn sum(x: Self::F) -> f32;
    unsafe fn hmax(x: Self::F) -> f32;
    /// Lanes `2i` and `2i + 1` exchanged.
    unsafe fn swap_pairs(x: Self::F) -> Self::F;
    /// `x` where lane index `+ at` lies in `from..to`, else minus infinity.
    unsafe fn mask_range(x: Self::F, at: i32, from: i32, to: i32) -> Self::F;

    /// Asks for the line of `p` to be brought near; any address will do.
    unsafe fn prefetch(p: *const u8);

    unsafe fn isplat(x: i32) -> Self::I;
    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn isum(x: Self::I) -> i32;
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// Rounds to nearest even.
    unsafe fn round(x: Self::F) -> Self::I;
    /// Stores the low bytes; lanes hold -128..=127.
    unsafe fn store_i8(p: *mut i8, x: Self::I);
    /// `|x|` as bits, which order like integers: NaN above infinity above every number.
    unsafe fn abs_bits(x: Self::F) -> Self::I;
    unsafe fn imax(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn ihmax(x: Self::I) -> i32;
    /// `x * 2^n` for normal results; 0 where `n <= -127`.
    unsafe fn scale_by_pow2(x: Self::F, n: Self::I) -> Self::F;

    /// `acc + w[2i]*a[0] + w[2i+1]*a[1]` over bf16 pairs: `w` holds `2 * LANES` values, `a` one pair.
    unsafe fn dot2_bf16(acc: Self::F, w: *const u16, a: *const u16) -> Self::F;

    /// Dot products of one group of 32 four-bit codes (0..=15) of `LANES` rows with `NT` tokens' codes.
    ///
    /// `w` points at this part's rows within the first of the group's four 64-byte steps; step `j` holds quad `j` in
    /// the low and quad `j + 4` in the high nibbles. `a` holds `[8 quads][NT][4]` codes, `init` the start per token.
    unsafe fn dot_i4<const NT: usize>(w: *const u8, a: *const i8, init: *const i32) -> [Self::I; NT];

    /// The same for signed codes of eight bits stored with their top bit flipped: eight 64-byte steps, one quad each.
    /// `init` is -128 times the sum of the token's codes, for the sets whose product takes one operand unsigned; the
    /// others ignore it.
    unsafe fn dot_i8<const NT: usize>(w: *const u8, a: *const i8, init: *const i32) -> [Self::I; NT];
}

/// `e^x` to 3 ulp; exactly 1 at 0 and 0 below -87.3 (minus infinity included). `x` must not exceed 88.
///
/// Cody-Waite reduction by ln 2 and the Taylor polynomial of degree 6, whose error is below 1.2e-7 relative on
/// `|r| <= ln2 / 2`.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's instruction set is S's.
    unsafe {
        let clamped = S::max(x, S::splat(-100.0));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let nf = S::to_f32(n);
        let r = S::fma(nf, S::splat(-0.693_359_4), clamped);
        let r = S::fma(nf, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.388_888_9e-3);
        for c in [8.333_334e-3, 4.166_666_8e-2, 0.166_666_67, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::scale_by_pow2(p, n)
    }
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's instruction set is S's.
    unsafe {
        // e^88 is finite and so is 1 + e^88; the quotient is then x / 1.6e38.
        let e = exp::<S>(S::min(S::sub(S::zero(), x), S::splat(88.0)));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// `1 / (1 + e^-x)`; NaN stays NaN.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's instruction set is S's.
    unsafe {
        // In this order `max` and `min` keep a NaN, which `exp` would lose.
        let x = S::max(S::splat(-88.0), S::min(S::splat(88.0), x));
        let e = exp::<S>(S::sub(S::zero(), x));
        S::div(S::fma(x, S::zero(), S::splat(1.0)), S::add(S::splat(1.0), e))
    }
}

/// `tanh(x)` to a few ulp, however small `x`; NaN stays NaN.
///
/// `e / (e + 2)` with `e = e^2x - 1`, which [`exp`]'s polynomial gives without its constant term and without
/// cancellation. Beyond 9.1 the result rounds to 1.
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's instruction set is S's.
    unsafe {
        let x = S::max(S::splat(-9.1), S::min(S::splat(9.1), x));
        let twice = S::add(x, x);
        let n = S::round(S::mul(twice, S::splat(std::f32::consts::LOG2_E)));
        let nf = S::to_f32(n);
        let r = S::fma(nf, S::splat(-0.693_359_4), twice);
        let r = S::fma(nf, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.388_888_9e-3);
        for c in [8.333_334e-3, 4.166_666_8e-2, 0.166_666_67, 0.5, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        let power = S::scale_by_pow2(S::splat(1.0), n);
        let e = S::fma(power, S::mul(p, r), S::sub(power, S::splat(1.0)));
        S::fma(x, S::zero(), S::div(e, S::add(e, S::splat(2.0))))
    }
}

/// `x * Phi(x)`, Phi the normal distribution's function, to 2e-7 of `|x|`.
///
/// Phi(-|x|) is `erfc(|x| / sqrt 2) / 2` by Abramowitz and Stegun 1964, 7.1.26, whose error is below 1.5e-7 and shrinks
/// with the tail.
#[inline(always)]
pub unsafe fn gelu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's instruction set is S's.
    unsafe {
        let size = S::max(S::sub(S::zero(), x), x);
        let z = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(S::splat(1.0), S::fma(z, S::splat(0.327_591_1), S::splat(1.0)));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = S::fma(p, t, S::splat(c));
        }
        let tail = exp::<S>(S::sub(S::zero(), S::mul(z, z)));
        let below = S::mul(S::mul(S::mul(p, t), S::splat(0.5)), tail);
        S::sub(S::max(S::zero(), x), S::mul(size, below))
    }
}

/// The same by `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, which is `x * sigmoid` of twice that argument.
#[inline(always)]
pub unsafe fn gelu_tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's instruction set is S's.
    unsafe {
        let cube = S::mul(S::mul(x, x), x);
        let inner = S::fma(cube, S::splat(0.044_715), x);
        // -2 sqrt(2/pi).
        let e = exp::<S>(S::min(S::mul(inner, S::splat(-1.595_769_2)), S::splat(88.0)));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

#[cfg(test)]
mod tests;
