//! Products with 8-bit weights.

use crate::{Builder, DType, Val};

/// `x [m, k]` times an s8 or fp8 weight `[n, k]` (`rows`) or `[k, n]`, with one f32 scale per output `[n]`: `f32[m, n]`.
///
/// The weight is widened to x's type, which holds it exactly (bf16 has 8 bits), and the **result** is scaled: half the
/// bytes from memory, the product itself in bf16, and one multiplication per output instead of one per weight.
#[track_caller]
pub fn scaled_matmul(b: &mut Builder, x: Val, weight: Val, scales: Val, rows: bool) -> Val {
    let weight = b.convert(weight, x.dtype());
    let product = b.matmul(x, weight, rows, DType::F32);
    let scales = b.broadcast(scales, &[1], &product.dims());
    b.multiply(product, scales)
}
