//! Super-blocks of 256 values: sub-blocks of 16 or 32 with small integer scales under one or two f16 scales.
//!
//! Layouts are those of `block_q*_K` in ggml-common.h. Within each half of 128 values, a byte of `qs` carries the same
//! position of several sub-blocks, 32 values apart.

use super::f16_at;

/// `scale|min nibbles 16 | 2-bit 64 | d f16 | dmin f16`; value `d s q - dmin m`.
pub fn q2_k(b: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, qs) = (&b[..16], &b[16..80]);
    let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(scales[i] & 15), dmin * f32::from(scales[i] >> 4));
        let (start, shift) = two_bits(i);
        for l in 0..16 {
            out[l] = scale * f32::from(qs[start + l] >> shift & 3) - min;
        }
    }
}

/// `high bits 32 | 2-bit 64 | 6-bit scales 12 | d f16`; value `d (s - 32) (q - 4)`.
pub fn q3_k(b: &[u8; 110], out: &mut [f32; 256]) {
    let (high, qs, scales) = (&b[..32], &b[32..96], &b[96..108]);
    let d = f16_at(b, 108);
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Four low bits of scale i in a nibble of the first eight bytes, two high bits in the last four.
        let low = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
        let scale = low | (scales[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        let (start, shift) = two_bits(i);
        let high_bit = i / 2;
        for l in 0..16 {
            let third = high[i % 2 * 16 + l] >> high_bit & 1;
            let q = (qs[start + l] >> shift & 3) | third << 2;
            out[l] = scale * (f32::from(q) - 4.0);
        }
    }
}

/// `d f16 | dmin f16 | 6-bit scales and mins 12 | nibbles 128`; value `d s q - dmin m`.
pub fn q4_k(b: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, qs) = (&b[4..16], &b[16..144]);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(scales, i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for l in 0..32 {
            out[l] = scale * f32::from(qs[i / 2 * 32 + l] >> (4 * (i % 2)) & 15) - min;
        }
    }
}

/// `d f16 | dmin f16 | 6-bit scales and mins 12 | fifth bits 32 | nibbles 128`; value `d s q - dmin m`.
pub fn q5_k(b: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, high, qs) = (&b[4..16], &b[16..48], &b[48..176]);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(scales, i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for l in 0..32 {
            let q = (qs[i / 2 * 32 + l] >> (4 * (i % 2)) & 15) | (high[l] >> i & 1) << 4;
            out[l] = scale * f32::from(q) - min;
        }
    }
}

/// `nibbles 128 | 2-bit 64 | i8 scales 16 | d f16`; value `d s (q - 32)`.
pub fn q6_k(b: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&b[..128], &b[128..192], &b[192..208]);
    let d = f16_at(b, 208);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (i / 4, i % 4);
        for l in 0..32 {
            let nibble = low[half * 64 + quarter % 2 * 32 + l] >> (4 * (quarter / 2)) & 15;
            let q = nibble | (high[half * 32 + l] >> (2 * quarter) & 3) << 4;
            let scale = d * f32::from(scales[i * 2 + l / 16].cast_signed());
            out[l] = scale * (f32::from(q) - 32.0);
        }
    }
}

/// First byte and shift of the 2-bit values of sub-block `i` of 16.
fn two_bits(i: usize) -> (usize, usize) {
    (i / 8 * 32 + i % 2 * 16, i % 8 / 2 * 2)
}

/// Six-bit scale and minimum of sub-block `i` (`get_scale_min_k4`).
fn scale_min(scales: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (scales[i] & 63, scales[i + 4] & 63)
    } else {
        (scales[i + 4] & 15 | scales[i - 4] >> 6 << 4, scales[i + 4] >> 4 | scales[i] >> 6 << 4)
    }
}
