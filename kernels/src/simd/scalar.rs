//! Plain Rust: the fallback of every machine and the oracle of every other set. Its multiply-add rounds twice, since
//! a fused one without hardware is a library call.

use half::{bf16, f16};

use super::Simd;

const N: usize = 8;

/// Eight-lane arrays that the compiler may vectorise as it can.
#[derive(Clone, Copy)]
pub struct Scalar;

#[inline(always)]
fn map2<T: Copy>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> T) -> [T; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn halve<T: Copy>(x: [T; N], f: impl Fn(T, T) -> T) -> T {
    let x: [T; 4] = std::array::from_fn(|i| f(x[i], x[i + 4]));
    let x: [T; 2] = std::array::from_fn(|i| f(x[i], x[i + 2]));
    f(x[0], x[1])
}

// SAFETY: for the whole impl, the trait's contract makes every pointer valid for what is read or written through it; no
// instruction set is needed.
unsafe impl Simd for Scalar {
    type F = [f32; N];
    type I = [i32; N];
    const LANES: usize = N;
    const TILE: usize = 4;
    const BF16: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        [0.0; N]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: trait contract.
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F {
        // SAFETY: trait contract: `n` elements are valid.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: trait contract.
        unsafe { p.cast::<[f32; N]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, x: Self::F, n: usize) {
        for (i, x) in x.into_iter().enumerate().take(n) {
            // SAFETY: trait contract: `n` elements are valid.
            unsafe { *p.add(i) = x }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: trait contract.
        std::array::from_fn(|i| f16::from_bits(unsafe { *p.add(i) }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: trait contract.
        std::array::from_fn(|i| bf16::from_bits(unsafe { *p.add(i) }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F) {
        // SAFETY: trait contract: 2 * LANES elements are valid.
        let at = |i: usize| bf16::from_bits(unsafe { *p.add(i) }).to_f32();
        (std::array::from_fn(|i| at(2 * i)), std::array::from_fn(|i| at(2 * i + 1)))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        // SAFETY: trait contract.
        std::array::from_fn(|i| f32::from(unsafe { *p.add(i) }))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: trait contract.
            unsafe { *p.add(i) = f16::from_f32(x).to_bits() }
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: trait contract.
            unsafe { *p.add(i) = bf16::from_f32(x).to_bits() }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        halve(x, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn hmax(x: Self::F) -> f32 {
        halve(x, f32::max)
    }
    #[inline(always)]
    unsafe fn swap_pairs(x: Self::F) -> Self::F {
        std::array::from_fn(|i| x[i ^ 1])
    }
    #[inline(always)]
    unsafe fn mask_range(x: Self::F, at: i32, from: i32, to: i32) -> Self::F {
        std::array::from_fn(|i| if (from..to).contains(&(at + i as i32)) { x[i] } else { f32::NEG_INFINITY })
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        let _ = p;
    }

    #[inline(always)]
    unsafe fn isplat(x: i32) -> Self::I {
        [x; N]
    }
    #[inline(always)]
    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn isum(x: Self::I) -> i32 {
        halve(x, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: trait contract.
            unsafe { *p.add(i) = x as i8 }
        }
    }
    #[inline(always)]
    unsafe fn abs_bits(x: Self::F) -> Self::I {
        x.map(|x| (x.to_bits() & 0x7fff_ffff) as i32)
    }
    #[inline(always)]
    unsafe fn imax(a: Self::I, b: Self::I) -> Self::I {
        map2(a, b, Ord::max)
    }
    #[inline(always)]
    unsafe fn ihmax(x: Self::I) -> i32 {
        halve(x, Ord::max)
    }
    #[inline(always)]
    unsafe fn scale_by_pow2(x: Self::F, n: Self::I) -> Self::F {
        std::array::from_fn(|i| {
            if n[i] <= -127 { 0.0 } else { x[i] * f32::from_bits(((n[i].min(127) + 127) as u32) << 23) }
        })
    }

    #[inline(always)]
    unsafe fn dot2_bf16(acc: Self::F, w: *const u16, a: *const u16) -> Self::F {
        // SAFETY: trait contract: 2 * LANES weights and one pair are valid.
        unsafe {
            let (even, odd) = Self::load_bf16_pairs(w);
            let (x, y) = (bf16::from_bits(*a).to_f32(), bf16::from_bits(*a.add(1)).to_f32());
            std::array::from_fn(|i| acc[i] + even[i] * x + odd[i] * y)
        }
    }

    #[inline(always)]
    unsafe fn dot_i4<const NT: usize>(w: *const u8, a: *const i8, init: *const i32) -> [Self::I; NT] {
        // SAFETY: trait contract: four 64-byte steps, 8 * NT quads, NT starts.
        std::array::from_fn(|t| unsafe {
            let mut acc = [*init.add(t); N];
            for j in 0..4 {
                for row in 0..N {
                    for k in 0..4 {
                        let byte = *w.add(j * 64 + row * 4 + k);
                        let (lo, hi) = (i32::from(byte & 15), i32::from(byte >> 4));
                        acc[row] += lo * i32::from(*a.add((j * NT + t) * 4 + k));
                        acc[row] += hi * i32::from(*a.add(((j + 4) * NT + t) * 4 + k));
                    }
                }
            }
            acc
        })
    }

    #[inline(always)]
    unsafe fn dot_i8<const NT: usize>(w: *const u8, a: *const i8, _init: *const i32) -> [Self::I; NT] {
        // SAFETY: trait contract: eight 64-byte steps, 8 * NT quads.
        std::array::from_fn(|t| unsafe {
            let mut acc = [0; N];
            for j in 0..8 {
                for row in 0..N {
                    for k in 0..4 {
                        let w = i32::from(*w.add(j * 64 + row * 4 + k)) - 128;
                        acc[row] += w * i32::from(*a.add((j * NT + t) * 4 + k));
                    }
                }
            }
            acc
        })
    }
}
