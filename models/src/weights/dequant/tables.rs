//! Blocks whose codes are places in a table of sixteen values.

use super::f16_at;

/// `kvalues_iq4nl` of ggml-common.h.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of E2M1 (`kvalues_mxfp4`).
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `d f16 | nibbles 16`; value `IQ4[q] d`.
pub fn iq4_nl(b: &[u8; 18], out: &mut [f32; 32]) {
    nibbles(&b[2..], f16_at(b, 0), &IQ4, out);
}

/// `d f16 | high bits of the scales u16 | low ones 4 | nibbles 128`: of 32 values each, `IQ4[q] (s - 32) d`.
pub fn iq4_xs(b: &[u8; 136], out: &mut [f32; 256]) {
    let (d, high) = (f16_at(b, 0), u16::from_le_bytes([b[2], b[3]]));
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = b[4 + i / 2] >> (4 * (i % 2)) & 15;
        let scale = f32::from(low) + 16.0 * f32::from(high >> (2 * i) & 3);
        nibbles(&b[8 + 16 * i..][..16], d * (scale - 32.0), &IQ4, out);
    }
}

/// `e u8 | nibbles 16`; value `E2M1[q] 2^(e - 128)`.
pub fn mxfp4(b: &[u8; 17], out: &mut [f32; 32]) {
    // The two smallest are subnormal.
    let bits = if b[0] < 2 { 0x0020_0000 << b[0] } else { u32::from(b[0] - 1) << 23 };
    nibbles(&b[1..], f32::from_bits(bits), &E2M1, out);
}

/// Low nibbles are values 0..16, high nibbles 16..32.
fn nibbles(codes: &[u8], d: f32, table: &[i8; 16], out: &mut [f32; 32]) {
    for (j, q) in codes.iter().enumerate() {
        out[j] = d * f32::from(table[usize::from(q & 15)]);
        out[j + 16] = d * f32::from(table[usize::from(q >> 4)]);
    }
}
