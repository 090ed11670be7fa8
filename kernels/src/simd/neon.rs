//! 64-bit Arm's base vectors: four lanes. Products of codes go through `smull`/`smlal` in 16 bits, since the dot-product
//! instructions are not stable in Rust; halves are converted by integer operations for the same reason.
//!
//! Status: compiled with Rust 1.95 for aarch64-unknown-linux-musl, and this crate's tests pass there under qemu-user 7.2.
//! It has never run on an Arm machine, its speed is unknown, and no build of ours compiles it regularly.

use std::arch::aarch64::*;

use super::Simd;

/// The vectors every aarch64 has.
#[derive(Clone, Copy)]
pub struct Neon;

// SAFETY: for the whole impl, the trait's contract gives valid pointers; the instruction set is the target's own.
unsafe impl Simd for Neon {
    type F = float32x4_t;
    type I = int32x4_t;
    const LANES: usize = 4;
    const TILE: usize = 6;
    const BF16: bool = false;

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> float32x4_t {
        // SAFETY: trait contract: `n` elements are valid.
        unsafe {
            if n == 4 {
                return vld1q_f32(p);
            }
            let mut x = [0.0; 4];
            for i in 0..n {
                x[i] = *p.add(i);
            }
            vld1q_f32(x.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: float32x4_t) {
        // SAFETY: trait contract.
        unsafe { vst1q_f32(p, x) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, x: float32x4_t, n: usize) {
        // SAFETY: trait contract: `n` elements are valid.
        unsafe {
            if n == 4 {
                return vst1q_f32(p, x);
            }
            let mut lanes = [0.0; 4];
            vst1q_f32(lanes.as_mut_ptr(), x);
            for i in 0..n {
                *p.add(i) = lanes[i];
            }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> float32x4_t {
        // SAFETY: trait contract: four halves.
        unsafe {
            let h = vmovl_u16(vld1_u16(p));
            let sign = vshlq_n_u32::<16>(vandq_u32(h, vdupq_n_u32(0x8000)));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(h, vdupq_n_u32(0x7fff)));
            // Exponents are biased by 15, not 127: 2^112 makes up for it, exactly for denormals too.
            let x = vmulq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(f32::from_bits((127 + 112) << 23)));
            let special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00 << 13));
            let exponent = vandq_u32(special, vdupq_n_u32(0x7f80_0000));
            vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(vreinterpretq_u32_f32(x), exponent), sign))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> float32x4_t {
        // SAFETY: trait contract: four values.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (float32x4_t, float32x4_t) {
        // SAFETY: trait contract: eight values.
        unsafe {
            let x = vreinterpretq_u32_u16(vld1q_u16(p));
            let odd = vandq_u32(x, vdupq_n_u32(0xffff_0000));
            (vreinterpretq_f32_u32(vshlq_n_u32::<16>(x)), vreinterpretq_f32_u32(odd))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> float32x4_t {
        // SAFETY: trait contract: four bytes.
        unsafe {
            let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: float32x4_t) {
        // SAFETY: trait contract: four halves.
        unsafe {
            let bits = vreinterpretq_u32_f32(x);
            let sign = vandq_u32(bits, vdupq_n_u32(0x8000_0000));
            let size = veorq_u32(bits, sign);
            // Normal results: rebias the exponent, round the last 13 bits to even.
            let odd = vandq_u32(vshrq_n_u32::<13>(size), vdupq_n_u32(1));
            let rebias = vdupq_n_u32((15_u32.wrapping_sub(127) << 23).wrapping_add(0xfff));
            let normal = vshrq_n_u32::<13>(vaddq_u32(vaddq_u32(size, rebias), odd));
            // Denormal results: adding 0.5 lets the adder round at the bit that half's last bit is.
            let half = vdupq_n_f32(0.5);
            let sum = vaddq_f32(vreinterpretq_f32_u32(size), half);
            let denormal = vsubq_u32(vreinterpretq_u32_f32(sum), vreinterpretq_u32_f32(half));
            // 2^16 and more, infinity, NaN.
            let is_nan = vcgtq_u32(size, vdupq_n_u32(0x7f80_0000));
            let large = vbslq_u32(is_nan, vdupq_n_u32(0x7e00), vdupq_n_u32(0x7c00));
            let out = vbslq_u32(vcltq_u32(size, vdupq_n_u32(113 << 23)), denormal, normal);
            let out = vbslq_u32(vcgeq_u32(size, vdupq_n_u32(143 << 23)), large, out);
            vst1_u16(p, vmovn_u32(vorrq_u32(out, vshrq_n_u32::<16>(sign))));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: float32x4_t) {
        // SAFETY: trait contract: four values.
        unsafe {
            let bits = vreinterpretq_u32_f32(x);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
            let number = vceqq_f32(x, x);
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            vst1_u16(p, vshrn_n_u32::<16>(vbslq_u32(number, rounded, quiet)));
        }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: trait contract. Not `fmax`: the other sets give `b` where one is NaN.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as `max`.
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn sum(x: float32x4_t) -> f32 {
        // SAFETY: trait contract.
        unsafe {
            let pairs = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(pairs) + vget_lane_f32::<1>(pairs)
        }
    }
    #[inline(always)]
    unsafe fn hmax(x: float32x4_t) -> f32 {
        // SAFETY: trait contract.
        unsafe { vmaxnmvq_f32(x) }
    }
    #[inline(always)]
    unsafe fn swap_pairs(x: float32x4_t) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vrev64q_f32(x) }
    }
    #[inline(always)]
    unsafe fn mask_range(x: float32x4_t, at: i32, from: i32, to: i32) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe {
            let lane = vaddq_s32(vld1q_s32([0, 1, 2, 3].as_ptr()), vdupq_n_s32(at));
            let inside = vandq_u32(vcgeq_s32(lane, vdupq_n_s32(from)), vcltq_s32(lane, vdupq_n_s32(to)));
            vbslq_f32(inside, x, vdupq_n_f32(f32::NEG_INFINITY))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch faults nowhere, and changes nothing but caches.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn isplat(x: i32) -> int32x4_t {
        // SAFETY: trait contract.
        unsafe { vdupq_n_s32(x) }
    }
    #[inline(always)]
    unsafe fn iadd(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: trait contract.
        unsafe { vaddq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn isum(x: int32x4_t) -> i32 {
        // SAFETY: trait contract.
        unsafe { vaddvq_s32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: int32x4_t) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe { vcvtq_f32_s32(x) }
    }
    #[inline(always)]
    unsafe fn round(x: float32x4_t) -> int32x4_t {
        // SAFETY: trait contract.
        unsafe { vcvtnq_s32_f32(x) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: int32x4_t) {
        // SAFETY: trait contract: four bytes.
        unsafe {
            let x = vmovn_s32(x);
            let x = vmovn_s16(vcombine_s16(x, x));
            p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(x)));
        }
    }
    #[inline(always)]
    unsafe fn abs_bits(x: float32x4_t) -> int32x4_t {
        // SAFETY: trait contract.
        unsafe { vandq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x7fff_ffff)) }
    }
    #[inline(always)]
    unsafe fn imax(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: trait contract.
        unsafe { vmaxq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn ihmax(x: int32x4_t) -> i32 {
        // SAFETY: trait contract.
        unsafe { vmaxvq_s32(x) }
    }
    #[inline(always)]
    unsafe fn scale_by_pow2(x: float32x4_t, n: int32x4_t) -> float32x4_t {
        // SAFETY: trait contract.
        unsafe {
            let scale = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
            let normal = vcgtq_s32(n, vdupq_n_s32(-127));
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(vmulq_f32(x, scale)), normal))
        }
    }

    #[inline(always)]
    unsafe fn dot2_bf16(acc: float32x4_t, w: *const u16, a: *const u16) -> float32x4_t {
        // SAFETY: trait contract: eight weights and one pair.
        unsafe {
            let (even, odd) = Self::load_bf16_pairs(w);
            let (x, y) = (u32::from(*a) << 16, u32::from(*a.add(1)) << 16);
            let acc = vfmaq_f32(acc, even, vdupq_n_f32(f32::from_bits(x)));
            vfmaq_f32(acc, odd, vdupq_n_f32(f32::from_bits(y)))
        }
    }

    #[inline(always)]
    unsafe fn dot_i4<const NT: usize>(w: *const u8, a: *const i8, init: *const i32) -> [int32x4_t; NT] {
        // SAFETY: trait contract: these rows of four 64-byte steps, 8 * NT quads, NT starts.
        unsafe {
            // A 16-bit lane sums 8 products of at most 15 * 127: 15240.
            let mut low = [vdupq_n_s16(0); NT];
            let mut high = low;
            for j in 0..4 {
                let both = vld1q_u8(w.add(64 * j));
                let first = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                let second = vreinterpretq_s8_u8(vshrq_n_u8::<4>(both));
                for t in 0..NT {
                    let (x, y) = (quad(a, j * NT + t), quad(a, (j + 4) * NT + t));
                    low[t] = vmlal_s8(vmlal_s8(low[t], vget_low_s8(first), x), vget_low_s8(second), y);
                    high[t] = vmlal_s8(vmlal_s8(high[t], vget_high_s8(first), x), vget_high_s8(second), y);
                }
            }
            std::array::from_fn(|t| {
                let sums = vpaddq_s32(vpaddlq_s16(low[t]), vpaddlq_s16(high[t]));
                vaddq_s32(vdupq_n_s32(*init.add(t)), sums)
            })
        }
    }

    #[inline(always)]
    unsafe fn dot_i8<const NT: usize>(w: *const u8, a: *const i8, _init: *const i32) -> [int32x4_t; NT] {
        // SAFETY: trait contract: these rows of eight 64-byte steps, 8 * NT quads.
        unsafe {
            let flip = vdupq_n_u8(0x80);
            let mut low = [vdupq_n_s32(0); NT];
            let mut high = low;
            for j in (0..8).step_by(2) {
                let first = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w.add(64 * j)), flip));
                let second = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w.add(64 * j + 64)), flip));
                for t in 0..NT {
                    // Two products of at most 128 * 127 fit 16 bits.
                    let (x, y) = (quad(a, j * NT + t), quad(a, (j + 1) * NT + t));
                    let lower = vmlal_s8(vmull_s8(vget_low_s8(first), x), vget_low_s8(second), y);
                    let upper = vmlal_s8(vmull_s8(vget_high_s8(first), x), vget_high_s8(second), y);
                    low[t] = vpadalq_s16(low[t], lower);
                    high[t] = vpadalq_s16(high[t], upper);
                }
            }
            std::array::from_fn(|t| vpaddq_s32(low[t], high[t]))
        }
    }
}

/// Four codes of one token, twice.
#[inline(always)]
unsafe fn quad(a: *const i8, i: usize) -> int8x8_t {
    // SAFETY: the caller's quads are valid.
    unsafe { vreinterpret_s8_u32(vdup_n_u32(a.add(4 * i).cast::<u32>().read_unaligned())) }
}
