//! AVX-512 with VNNI: sixteen lanes, one `vpdpbusd` per quad of codes, one `vdpbf16ps` per pair where `BF16` is set.
//!
//! Needs avx512f, bw, dq, vl, vnni (and bf16), fma, f16c, avx2.

use std::arch::x86_64::*;

use crate::simd::Simd;

/// AVX-512 F/BW/DQ/VL/VNNI; `BF16` adds the bf16 dot product.
#[derive(Clone, Copy)]
pub struct Avx512<const HAS_BF16: bool>;

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}

// SAFETY: for the whole impl, the trait's contract gives the instruction set and valid pointers; every load and store is the
// unaligned or masked form.
unsafe impl<const HAS_BF16: bool> Simd for Avx512<HAS_BF16> {
    type F = __m512;
    type I = __m512i;
    const LANES: usize = 16;
    // Twelve would fit the registers, but a tile makes its second pass where any of its tokens needs one.
    const TILE: usize = 8;
    const BF16: bool = HAS_BF16;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
        // SAFETY: trait contract; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        // SAFETY: trait contract.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, x: __m512, n: usize) {
        // SAFETY: trait contract; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(p, first(n), x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        // SAFETY: trait contract.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (__m512, __m512) {
        // SAFETY: trait contract: 32 values.
        unsafe {
            let x = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m512) {
        // SAFETY: trait contract.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m512) {
        // SAFETY: trait contract.
        unsafe {
            // Integer rounding, not vcvtneps2bf16, so that denormals round alike on every set.
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let out = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(out));
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sum(x: __m512) -> f32 {
        // SAFETY: trait contract.
        unsafe {
            let y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            super::avx2::sum8(y)
        }
    }
    #[inline(always)]
    unsafe fn hmax(x: __m512) -> f32 {
        // SAFETY: trait contract.
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    unsafe fn swap_pairs(x: __m512) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_permute_ps::<0b10_11_00_01>(x) }
    }
    #[inline(always)]
    unsafe fn mask_range(x: __m512, at: i32, from: i32, to: i32) -> __m512 {
        // SAFETY: trait contract.
        unsafe {
            let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let lane = _mm512_add_epi32(lane, _mm512_set1_epi32(at));
            let inside = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(from))
                & _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(to));
            _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), inside, x)
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // To the second level: it can have more lines under way than the first.
        // SAFETY: trait contract; a prefetch faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn isplat(x: i32) -> __m512i {
        // SAFETY: trait contract.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn iadd(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: trait contract.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn isum(x: __m512i) -> i32 {
        // SAFETY: trait contract.
        unsafe { _mm512_reduce_add_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m512i) -> __m512 {
        // SAFETY: trait contract.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512i {
        // SAFETY: trait contract.
        unsafe { _mm512_cvtps_epi32(x) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: __m512i) {
        // SAFETY: trait contract.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x)) }
    }
    #[inline(always)]
    unsafe fn abs_bits(x: __m512) -> __m512i {
        // SAFETY: trait contract.
        unsafe { _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff)) }
    }
    #[inline(always)]
    unsafe fn imax(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: trait contract.
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn ihmax(x: __m512i) -> i32 {
        // SAFETY: trait contract.
        unsafe { _mm512_reduce_max_epi32(x) }
    }
    #[inline(always)]
    unsafe fn scale_by_pow2(x: __m512, n: __m512i) -> __m512 {
        // SAFETY: trait contract.
        unsafe {
            let scale = _mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127)));
            let normal = _mm512_cmpgt_epi32_mask(n, _mm512_set1_epi32(-127));
            _mm512_maskz_mul_ps(normal, x, _mm512_castsi512_ps(scale))
        }
    }

    #[inline(always)]
    unsafe fn dot2_bf16(acc: __m512, w: *const u16, a: *const u16) -> __m512 {
        // SAFETY: trait contract: 32 weights and one pair; BF16 is set only where the CPU has the instruction.
        unsafe {
            if HAS_BF16 {
                let w: __m512bh = std::mem::transmute(_mm512_loadu_si512(w.cast()));
                let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(a.cast::<i32>().read_unaligned()));
                _mm512_dpbf16_ps(acc, w, a)
            } else {
                let (even, odd) = Self::load_bf16_pairs(w);
                let (x, y) = (u32::from(*a) << 16, u32::from(*a.add(1)) << 16);
                let acc = Self::fma(even, Self::splat(f32::from_bits(x)), acc);
                Self::fma(odd, Self::splat(f32::from_bits(y)), acc)
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_i4<const NT: usize>(w: *const u8, a: *const i8, init: *const i32) -> [__m512i; NT] {
        // SAFETY: trait contract: four 64-byte steps, 8 * NT quads, NT starts.
        unsafe {
            let low = _mm512_set1_epi8(15);
            let mut acc: [__m512i; NT] = std::array::from_fn(|t| _mm512_set1_epi32(*init.add(t)));
            for j in 0..4 {
                let both = _mm512_loadu_si512(w.add(64 * j).cast());
                let lo = _mm512_and_si512(both, low);
                let hi = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                for t in 0..NT {
                    acc[t] = _mm512_dpbusd_epi32(acc[t], lo, quad(a, j * NT + t));
                }
                for t in 0..NT {
                    acc[t] = _mm512_dpbusd_epi32(acc[t], hi, quad(a, (j + 4) * NT + t));
                }
            }
            acc
        }
    }

    #[inline(always)]
    unsafe fn dot_i8<const NT: usize>(w: *const u8, a: *const i8, init: *const i32) -> [__m512i; NT] {
        // SAFETY: trait contract: eight 64-byte steps, 8 * NT quads, NT starts.
        unsafe {
            let mut acc: [__m512i; NT] = std::array::from_fn(|t| _mm512_set1_epi32(*init.add(t)));
            for j in 0..8 {
                let w = _mm512_loadu_si512(w.add(64 * j).cast());
                for t in 0..NT {
                    acc[t] = _mm512_dpbusd_epi32(acc[t], w, quad(a, j * NT + t));
                }
            }
            acc
        }
    }
}

/// Four codes of one token in every lane.
#[inline(always)]
unsafe fn quad(a: *const i8, i: usize) -> __m512i {
    // SAFETY: the caller's quads are valid.
    unsafe { _mm512_set1_epi32(a.add(4 * i).cast::<i32>().read_unaligned()) }
}
