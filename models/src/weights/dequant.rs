//! Decodes stored values to f32.
//!
//! Dense types are converted exactly; GGUF blocks as ggml's reference `dequantize_row_*` does (`ggml-quants.c`), in the
//! same order of f32 operations. Callers pass whole rows: the byte count matches the value count.

mod k_quants;
mod legacy;
mod tables;

use half::slice::HalfFloatSliceExt;

use super::{DType, Encoding, GgmlType};

/// Decodes the bytes of `out.len()` values.
pub fn decode(encoding: Encoding, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), encoding.row_bytes(out.len()), "bytes of exactly these values");
    match encoding {
        Encoding::Dense(DType::F32) => {
            let (values, _) = bytes.as_chunks::<4>();
            out.iter_mut().zip(values).for_each(|(o, b)| *o = f32::from_le_bytes(*b));
        }
        Encoding::Dense(DType::BF16) => {
            let (values, _) = bytes.as_chunks::<2>();
            out.iter_mut().zip(values).for_each(|(o, b)| *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
        }
        Encoding::Dense(DType::F16) => decode_f16(bytes, out),
        Encoding::GgufBlock(t) => blocks(t, bytes, out),
        Encoding::Parts(_) => unreachable!("a row of parts has no bytes of its own"),
    }
}

/// In runs, since the hardware's conversion is chosen once per call of the `half` crate.
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    const RUN: usize = 256;
    let mut run = [half::f16::ZERO; RUN];
    for (bytes, out) in bytes.chunks(2 * RUN).zip(out.chunks_mut(RUN)) {
        let (values, _) = bytes.as_chunks::<2>();
        run.iter_mut().zip(values).for_each(|(r, b)| *r = half::f16::from_le_bytes(*b));
        run[..out.len()].convert_to_f32_slice(out);
    }
}

fn blocks(t: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match t {
        GgmlType::Q4_0 => each(bytes, out, legacy::q4_0),
        GgmlType::Q4_1 => each(bytes, out, legacy::q4_1),
        GgmlType::Q5_0 => each(bytes, out, legacy::q5_0),
        GgmlType::Q5_1 => each(bytes, out, legacy::q5_1),
        GgmlType::Q8_0 => each(bytes, out, legacy::q8_0),
        GgmlType::Q2_K => each(bytes, out, k_quants::q2_k),
        GgmlType::Q3_K => each(bytes, out, k_quants::q3_k),
        GgmlType::Q4_K => each(bytes, out, k_quants::q4_k),
        GgmlType::Q5_K => each(bytes, out, k_quants::q5_k),
        GgmlType::Q6_K => each(bytes, out, k_quants::q6_k),
        GgmlType::IQ4_NL => each(bytes, out, tables::iq4_nl),
        GgmlType::IQ4_XS => each(bytes, out, tables::iq4_xs),
        GgmlType::MXFP4 => each(bytes, out, tables::mxfp4),
    }
}

/// Runs `decode` over blocks of `B` bytes and `N` values.
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    let ((blocks, _), (outs, _)) = (bytes.as_chunks::<B>(), out.as_chunks_mut::<N>());
    blocks.iter().zip(outs).for_each(|(block, out)| decode(block, out));
}

/// The f16 at `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests;
