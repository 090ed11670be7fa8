//! GGUF blocks of 32 values into a panel, bit for bit.
//!
//! Layouts (ggml `ggml-common.h`): Q8_0 = f16 d, 32 x i8; Q4_0 = f16 d, 16 bytes with value `j` in the low nibble of
//! byte `j` and value `j + 16` in its high nibble; Q4_1 = f16 d, f16 m, the same 16 bytes.

use half::f16;

use super::{GROUP, PANEL, Stored, put};

/// Quads of [`GROUP`] codes: nibble step `j` pairs quad `j` with quad `j + 4`, which is how Q4 blocks pair value `j`
/// with value `j + 16`: a block's bytes are the panel's bytes. Says whether all scales and minima are finite.
pub fn scatter(blocks: &[u8], r: usize, cols: usize, stored: Stored, panel: &mut [u8]) -> bool {
    let groups = cols.div_ceil(GROUP);
    let mut finite = true;
    let mut half = |panel: &mut [u8], at: usize, g: usize, bytes: &[u8]| {
        finite &= f16::from_le_bytes([bytes[0], bytes[1]]).is_finite();
        put(panel, at + (g * PANEL + r) * 2, &[bytes[0], bytes[1]])
    };
    match stored {
        Stored::Int8 => {
            let scales = groups * PANEL * GROUP;
            for (g, block) in blocks.chunks_exact(34).enumerate() {
                half(panel, scales, g, block);
                for (j, quad) in block[2..].chunks_exact(4).enumerate() {
                    let quad = [quad[0] ^ 0x80, quad[1] ^ 0x80, quad[2] ^ 0x80, quad[3] ^ 0x80];
                    put(panel, (g * 8 + j) * 64 + r * 4, &quad);
                }
            }
        }
        Stored::Int4 | Stored::Int4Min => {
            let scales = groups * PANEL * GROUP / 2;
            let header = if stored == Stored::Int4 { 2 } else { 4 };
            for (g, block) in blocks.chunks_exact(header + 16).enumerate() {
                half(panel, scales, g, block);
                if stored == Stored::Int4Min {
                    half(panel, scales + groups * PANEL * 2, g, &block[2..]);
                }
                for (j, quad) in block[header..].chunks_exact(4).enumerate() {
                    put(panel, (g * 4 + j) * 64 + r * 4, &[quad[0], quad[1], quad[2], quad[3]]);
                }
            }
        }
        Stored::F32 | Stored::F16 | Stored::Bf16 => {}
    }
    finite
}
