//! AVX2 with FMA and F16C: eight lanes. Products of codes go through `vpmaddubsw` (4 bits) and `vpmaddwd` (8 bits).

use std::arch::x86_64::*;

use crate::simd::Simd;

/// AVX2, FMA, F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

/// Lane `i` with lane `i + 4`, and so on.
#[inline(always)]
pub unsafe fn sum8(x: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}

/// The first `n` lanes as all-ones.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

// SAFETY: for the whole impl, the trait's contract gives the instruction set and valid pointers; every load and store is the
// unaligned or masked form.
unsafe impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    const LANES: usize = 8;
    const TILE: usize = 6;
    const BF16: bool = false;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m256 {
        // SAFETY: trait contract; masked lanes are not read.
        unsafe { _mm256_maskload_ps(p, first(n)) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        // SAFETY: trait contract.
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, x: __m256, n: usize) {
        // SAFETY: trait contract; masked lanes are not written.
        unsafe { _mm256_maskstore_ps(p, first(n), x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        // SAFETY: trait contract.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (__m256, __m256) {
        // SAFETY: trait contract: 16 values.
        unsafe {
            let x = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)), _mm256_castsi256_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m256 {
        // SAFETY: trait contract: eight bytes.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m256) {
        // SAFETY: trait contract.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m256) {
        // SAFETY: trait contract.
        unsafe {
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let out = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256::<1>(out));
            _mm_storeu_si128(p.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sum(x: __m256) -> f32 {
        // SAFETY: trait contract.
        unsafe { sum8(x) }
    }
    #[inline(always)]
    unsafe fn hmax(x: __m256) -> f32 {
        // SAFETY: trait contract.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn swap_pairs(x: __m256) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_permute_ps::<0b10_11_00_01>(x) }
    }
    #[inline(always)]
    unsafe fn mask_range(x: __m256, at: i32, from: i32, to: i32) -> __m256 {
        // SAFETY: trait contract.
        unsafe {
            let lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(at));
            let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane);
            let inside = _mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane));
            _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), x, _mm256_castsi256_ps(inside))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // To the second level: it can have more lines under way than the first.
        // SAFETY: trait contract; a prefetch faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn isplat(x: i32) -> __m256i {
        // SAFETY: trait contract.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn iadd(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: trait contract.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn isum(x: __m256i) -> i32 {
        // SAFETY: trait contract.
        unsafe {
            let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
            _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)))
        }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m256i) -> __m256 {
        // SAFETY: trait contract.
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn round(x: __m256) -> __m256i {
        // SAFETY: trait contract.
        unsafe { _mm256_cvtps_epi32(x) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: __m256i) {
        // SAFETY: trait contract: eight bytes.
        unsafe {
            let x = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(x, x));
        }
    }
    #[inline(always)]
    unsafe fn abs_bits(x: __m256) -> __m256i {
        // SAFETY: trait contract.
        unsafe { _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff)) }
    }
    #[inline(always)]
    unsafe fn imax(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: trait contract.
        unsafe { _mm256_max_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn ihmax(x: __m256i) -> i32 {
        // SAFETY: trait contract.
        unsafe {
            let x = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_max_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
            _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)))
        }
    }
    #[inline(always)]
    unsafe fn scale_by_pow2(x: __m256, n: __m256i) -> __m256 {
        // SAFETY: trait contract.
        unsafe {
            let scale = _mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)));
            let normal = _mm256_cmpgt_epi32(n, _mm256_set1_epi32(-127));
            _mm256_and_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(scale)), _mm256_castsi256_ps(normal))
        }
    }

    #[inline(always)]
    unsafe fn dot2_bf16(acc: __m256, w: *const u16, a: *const u16) -> __m256 {
        // SAFETY: trait contract: 16 weights and one pair.
        unsafe {
            let (even, odd) = Self::load_bf16_pairs(w);
            let (x, y) = (u32::from(*a) << 16, u32::from(*a.add(1)) << 16);
            let acc = Self::fma(even, Self::splat(f32::from_bits(x)), acc);
            Self::fma(odd, Self::splat(f32::from_bits(y)), acc)
        }
    }

    #[inline(always)]
    unsafe fn dot_i4<const NT: usize>(w: *const u8, a: *const i8, init: *const i32) -> [__m256i; NT] {
        // SAFETY: trait contract: this half of four 64-byte steps, 8 * NT quads, NT starts.
        unsafe {
            let low = _mm256_set1_epi8(15);
            // A 16-bit lane sums 2 products per quad over 8 quads: at most 16 * 15 * 127 = 30480, so it cannot wrap.
            let mut acc = [_mm256_setzero_si256(); NT];
            for j in 0..4 {
                let both = _mm256_loadu_si256(w.add(64 * j).cast());
                let lo = _mm256_and_si256(both, low);
                let hi = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                for t in 0..NT {
                    acc[t] = _mm256_add_epi16(acc[t], _mm256_maddubs_epi16(lo, quad(a, j * NT + t)));
                }
                for t in 0..NT {
                    acc[t] = _mm256_add_epi16(acc[t], _mm256_maddubs_epi16(hi, quad(a, (j + 4) * NT + t)));
                }
            }
            let ones = _mm256_set1_epi16(1);
            std::array::from_fn(|t| _mm256_add_epi32(_mm256_set1_epi32(*init.add(t)), _mm256_madd_epi16(acc[t], ones)))
        }
    }

    #[inline(always)]
    unsafe fn dot_i8<const NT: usize>(w: *const u8, a: *const i8, _init: *const i32) -> [__m256i; NT] {
        // SAFETY: trait contract: this half of eight 64-byte steps, 8 * NT quads.
        unsafe {
            // vpmaddubsw saturates at 16 bits: it takes |w| and the token's codes with the sign of w instead, so that a
            // pair is at most 2 * 128 * 127 = 32512.
            let flip = _mm256_set1_epi8(-128);
            let ones = _mm256_set1_epi16(1);
            let mut acc = [_mm256_setzero_si256(); NT];
            for j in 0..8 {
                let w = _mm256_xor_si256(_mm256_loadu_si256(w.add(64 * j).cast()), flip);
                let magnitude = _mm256_abs_epi8(w);
                for t in 0..NT {
                    let signed = _mm256_sign_epi8(quad(a, j * NT + t), w);
                    let products = _mm256_maddubs_epi16(magnitude, signed);
                    acc[t] = _mm256_add_epi32(acc[t], _mm256_madd_epi16(products, ones));
                }
            }
            acc
        }
    }
}

/// Four codes of one token in every lane.
#[inline(always)]
unsafe fn quad(a: *const i8, i: usize) -> __m256i {
    // SAFETY: the caller's quads are valid.
    unsafe { _mm256_set1_epi32(a.add(4 * i).cast::<i32>().read_unaligned()) }
}
