//! GGUF blocks of 32 values into a panel, bit for bit.
//!
//! Layouts (ggml `ggml-common.h`): Q8_0 = f16 d, 32 x i8; Q4_0 = f16 d, 16 bytes with value `j` in the low nibble of
//! byte `j` and value `j + 16` in its high nibble; Q4_1 = f16 d, f16 m, the same 16 bytes.

use half::f16;

use super::{PANEL, Stored, put};

/// Quads of 32 codes: nibble step `j` pairs quad `j` with quad `j + 4`, which is how Q4 blocks pair value `j`
/// with value `j + 16`: a block's bytes are the panel's bytes. Says whether all scales and minima are finite.
pub fn scatter(blocks: &[u8], r: usize, stored: Stored, panel: &mut [u8]) -> bool {
    let header = match stored {
        Stored::Int8 | Stored::Int4 => 2,
        Stored::Int4Min => 4,
        Stored::F32 | Stored::F16 | Stored::Bf16 => return true,
    };
    let mut finite = true;
    let mut half = |panel: &mut [u8], at: usize, bytes: &[u8]| {
        finite &= f16::from_le_bytes([bytes[0], bytes[1]]).is_finite();
        put(panel, at + r * 2, &[bytes[0], bytes[1]])
    };
    // Q8_0's codes are signed, a panel's are not.
    let flip = if stored == Stored::Int8 { 0x80 } else { 0 };
    for (g, block) in blocks.chunks_exact(header + stored.code_bytes() / PANEL).enumerate() {
        let at = stored.group(g);
        half(panel, at.scales, block);
        if stored == Stored::Int4Min {
            half(panel, at.minima, &block[2..]);
        }
        for (j, quad) in block[header..].chunks_exact(4).enumerate() {
            let quad = [quad[0] ^ flip, quad[1] ^ flip, quad[2] ^ flip, quad[3] ^ flip];
            put(panel, at.codes + j * 64 + r * 4, &quad);
        }
    }
    finite
}
