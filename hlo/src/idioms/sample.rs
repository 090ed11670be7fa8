//! Drawing from a distribution in the graph.

use super::{MAX_INDEX, along};
use crate::op::{Binary, Direction, DotDims, PadDim};
use crate::{Builder, DType, Val};

/// Sums of everything up to each column, itself included: `f32[rows, n]`.
///
/// By products with triangles of ones, which the matrix unit does well, where a scan is a loop; in blocks, so that the
/// triangle stays small.
#[track_caller]
pub fn cumulative_sum(b: &mut Builder, x: Val) -> Val {
    b.check(x.rank() == 2 && x.dtype() == DType::F32, || format!("running sums of {}", x.shape()));
    let (rows, n) = (x.dim(0), x.dim(1));
    if n <= BLOCK {
        let triangle = triangle(b, n, Direction::Le);
        return b.matmul(x, triangle, false, DType::F32);
    }
    let blocks = n.div_ceil(BLOCK);
    let zero = b.scalar(0f32);
    let high = (blocks * BLOCK - n) as i64;
    let padded =
        if high == 0 { x } else { b.pad(x, zero, vec![PadDim::default(), PadDim { high, ..PadDim::default() }]) };
    let padded = b.reshape(padded, &[rows, blocks, BLOCK]);
    let inside = triangle(b, BLOCK, Direction::Le);
    let dims = DotDims { lhs_contracting: vec![2], rhs_contracting: vec![0], ..DotDims::default() };
    let inside = b.dot(padded, inside, dims, DType::F32);
    let totals = b.reduce(Binary::Add, padded, &[2]);
    let up_to = cumulative_sum(b, totals);
    let ahead = b.subtract(up_to, totals);
    let ahead = b.broadcast(ahead, &[0, 1], &[rows, blocks, BLOCK]);
    let sums = b.add(inside, ahead);
    let sums = b.reshape(sums, &[rows, blocks * BLOCK]);
    if high == 0 { sums } else { b.slice_dim(sums, 1, 0..n) }
}

/// One index per row of `logits f32[rows, n]`, as s32: the inverse of the cumulative distribution of
/// softmax(logits / temperature) at `uniform f32[rows]` in [0, 1). Temperatures `f32[rows]` are above 0.
///
/// The uniform is an input, so that seeds are the host's and a draw can be repeated. The count of sums that are not above
/// the target is the index; f32 counts exactly to 2^24.
#[track_caller]
pub fn draw(b: &mut Builder, logits: Val, temperature: Val, uniform: Val) -> Val {
    let dims = logits.dims();
    b.check(dims.len() == 2 && (1..MAX_INDEX).contains(&dims[1]), || format!("a draw from {}", logits.shape()));
    let (rows, n) = (dims[0], dims[1]);
    let max = b.reduce(Binary::Maximum, logits, &[1]);
    let max = along(b, max, &dims, 1);
    let shifted = b.subtract(logits, max);
    let temperature = along(b, temperature, &dims, 1);
    let shifted = b.divide(shifted, temperature);
    let weights = b.exponential(shifted);
    let sums = cumulative_sum(b, weights);
    let total = b.slice_dim(sums, 1, n - 1..n);
    let total = b.reshape(total, &[rows]);
    let target = b.multiply(uniform, total);
    let target = along(b, target, &dims, 1);
    let passed = b.compare(Direction::Le, sums, target);
    let passed = b.convert(passed, DType::F32);
    let count = b.reduce(Binary::Add, passed, &[1]);
    let last = b.full(&[rows], (n - 1) as f32);
    let index = b.minimum(count, last);
    b.convert(index, DType::S32)
}

/// Ones where row `direction` column, else zeros.
fn triangle(b: &mut Builder, n: usize, direction: Direction) -> Val {
    let rows = b.iota(DType::S32, &[n, n], 0);
    let columns = b.iota(DType::S32, &[n, n], 1);
    let ones = b.compare(direction, rows, columns);
    b.convert(ones, DType::F32)
}

/// Columns of a triangle.
const BLOCK: usize = 256;
