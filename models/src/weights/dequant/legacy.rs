//! Blocks of 32 values with one scale, and for the `_1` types one minimum.
//!
//! Low nibbles are values 0..16, high nibbles 16..32; the fifth bits of Q5 are 32 bits in value order.

use super::f16_at;

/// `d f16 | nibbles 16`; value `(q - 8) d`.
pub fn q4_0(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..16 {
        let q = b[2 + j];
        out[j] = (f32::from(q & 15) - 8.0) * d;
        out[j + 16] = (f32::from(q >> 4) - 8.0) * d;
    }
}

/// `d f16 | m f16 | nibbles 16`; value `q d + m`.
pub fn q4_1(b: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for j in 0..16 {
        let q = b[4 + j];
        out[j] = f32::from(q & 15) * d + m;
        out[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// `d f16 | fifth bits 4 | nibbles 16`; value `(q - 16) d`.
pub fn q5_0(b: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for j in 0..16 {
        let (low, up) = five_bits(b[6 + j], high, j);
        out[j] = (low - 16.0) * d;
        out[j + 16] = (up - 16.0) * d;
    }
}

/// `d f16 | m f16 | fifth bits 4 | nibbles 16`; value `q d + m`.
pub fn q5_1(b: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for j in 0..16 {
        let (low, up) = five_bits(b[8 + j], high, j);
        out[j] = low * d + m;
        out[j + 16] = up * d + m;
    }
}

/// `d f16 | i8 32`; value `q d`.
pub fn q8_0(b: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..32 {
        out[j] = f32::from(b[2 + j].cast_signed()) * d;
    }
}

/// Values `j` and `j + 16` with their fifth bits.
fn five_bits(nibbles: u8, high: u32, j: usize) -> (f32, f32) {
    let bit = |i: usize| if high >> i & 1 == 1 { 16.0 } else { 0.0 };
    (f32::from(nibbles & 15) + bit(j), f32::from(nibbles >> 4) + bit(j + 16))
}
