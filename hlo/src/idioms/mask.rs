//! What may be attended to, or chosen.

use crate::op::Direction;
use crate::{Builder, DType, Tensor, Val};

/// The score of what is masked: finite, because -inf can become NaN in a product on trn1; the value of AWS's own stacks.
pub const MASKED: f32 = -30000.0;

/// x where allowed, else [`MASKED`].
#[track_caller]
pub fn masked(b: &mut Builder, allowed: Val, x: Val) -> Val {
    let low = b.full_like(x, MASKED);
    b.select(allowed, x, low)
}

/// Whether the column is below the row's position: `positions s32[b]` to `pred[b, n]`.
#[track_caller]
pub fn before(b: &mut Builder, positions: Val, n: usize) -> Val {
    let dims = [positions.dim(0), n];
    let columns = b.iota(DType::S32, &dims, 1);
    let positions = b.broadcast(positions, &[0], &dims);
    b.compare(Direction::Lt, columns, positions)
}

/// Whether the column is at or below the row: `pred[n, n]`.
#[track_caller]
pub fn causal(b: &mut Builder, n: usize) -> Val {
    let rows = b.iota(DType::S32, &[n, n], 0);
    let columns = b.iota(DType::S32, &[n, n], 1);
    b.compare(Direction::Le, columns, rows)
}

/// Bits to booleans, the lowest bit first: `u32[b, ⌈n/32⌉]` to `pred[b, n]`; a mask over a vocabulary in 1/8 of the bytes.
///
/// By `and` with a literal of powers of two: shifts are in no list of operators seen.
#[track_caller]
pub fn from_bits(b: &mut Builder, bits: Val, n: usize) -> Val {
    b.check(bits.rank() == 2 && bits.dim(1) == n.div_ceil(32), || format!("{n} bits in {}", bits.shape()));
    let (rows, words) = (bits.dim(0), bits.dim(1));
    let dims = [rows, words, 32];
    let powers = Tensor::new(&[32], (0..32).map(|i| 1u32 << i).collect()).expect("32 powers of two");
    let powers = b.constant(powers);
    let powers = b.broadcast(powers, &[2], &dims);
    let bits = b.broadcast(bits, &[0, 1], &dims);
    let set = b.and(bits, powers);
    let zero = b.full(&dims, 0u32);
    let set = b.compare(Direction::Ne, set, zero);
    let set = b.reshape(set, &[rows, words * 32]);
    if words * 32 == n { set } else { b.slice_dim(set, 1, 0..n) }
}
