//! Matrix products: any dimension numbers, accumulated in f32.
//!
//! Operands are brought to `[batch, m, k]` and `[batch, k, n]` or `[batch, n, k]`, whichever the right one already is, so
//! that a weight is never transposed nor widened as a whole: it passes through a tile of f32.

use super::convert::Number;
use super::movement::view;
use crate::op::DotDims;
use crate::tensor::with_type;
use crate::{ArrayShape, Tensor};

pub(super) fn dot(a: &Tensor, b: &Tensor, d: &DotDims, shape: ArrayShape) -> Tensor {
    let (sa, sb) = (a.shape(), b.shape());
    let free = |s: ArrayShape, batch: &[usize], contracting: &[usize]| -> Vec<usize> {
        (0..s.rank()).filter(|d| !batch.contains(d) && !contracting.contains(d)).collect()
    };
    let size = |s: ArrayShape, dims: &[usize]| dims.iter().map(|&d| s.dim(d)).product::<usize>();
    let (fa, fb) = (free(sa, &d.lhs_batch, &d.lhs_contracting), free(sb, &d.rhs_batch, &d.rhs_contracting));
    let (batch, m, n, k) = (size(sa, &d.lhs_batch), size(sa, &fa), size(sb, &fb), size(sa, &d.lhs_contracting));

    let a = arranged(a, &[&d.lhs_batch, &fa, &d.lhs_contracting].map(|v| v.as_slice()).concat());
    let by_rows = [&d.rhs_batch, &fb, &d.rhs_contracting].map(|v| v.as_slice()).concat();
    let transposed = by_rows.is_sorted();
    let b = arranged(b, &if transposed { by_rows } else { [&d.rhs_batch[..], &d.rhs_contracting, &fb].concat() });

    let mut out = vec![0f32; shape.elements()];
    with_type!(sa.dtype(), T => {
        let a: Vec<f32> = a.as_slice::<T>().unwrap_or_default().iter().map(|v| v.to_float()).collect();
        let b: &[T] = b.as_slice().unwrap_or_default();
        if out.is_empty() || k == 0 {
            // Sums of nothing.
        } else {
            for i in 0..batch {
                let (a, b) = (&a[i * m * k..(i + 1) * m * k], &b[i * k * n..(i + 1) * k * n]);
                let out = &mut out[i * m * n..(i + 1) * m * n];
                multiply(out, a, b, n, k, transposed);
            }
        }
    });
    with_type!(shape.dtype(), T => Tensor::from_vec(shape, out.into_iter().map(T::from_float).collect()))
}

/// out [m, n] += a [m, k] · b, by parts of `a` on threads where there is much to do: a row's sums are its own.
fn multiply<T: Number>(out: &mut [f32], a: &[f32], b: &[T], n: usize, k: usize, transposed: bool) {
    let m = out.len() / n;
    let threads = match m * n * k {
        MUCH.. if m >= MANY => std::thread::available_parallelism().map_or(1, |p| p.get()),
        _ => 1,
    };
    let kernel = match (transposed, m <= FEW) {
        (true, false) => rows,
        (false, false) => columns,
        (true, true) => few_rows,
        (false, true) => few_columns,
    };
    if threads == 1 {
        return kernel(out, a, b, n, k);
    }
    let part = m.div_ceil(threads);
    std::thread::scope(|s| {
        for (out, a) in out.chunks_mut(part * n).zip(a.chunks(part * k)) {
            s.spawn(move || kernel(out, a, b, n, k));
        }
    });
}

/// The operand with its dimensions in this order.
fn arranged(x: &Tensor, order: &[usize]) -> Tensor {
    if order.is_sorted() {
        return x.clone();
    }
    let shape = x.shape();
    let sizes: Vec<usize> = order.iter().map(|&d| shape.dim(d)).collect();
    let strides = shape.dims().strides();
    let strides: Vec<usize> = order.iter().map(|&d| strides[d]).collect();
    // A permutation of a shape is a shape.
    let to = ArrayShape::new(shape.dtype(), &sizes).unwrap_or(shape);
    view(x, 0, &strides, to)
}

/// out [m, n] += a [m, k] · b [k, n].
fn columns<T: Number>(out: &mut [f32], a: &[f32], b: &[T], n: usize, k: usize) {
    let mut tile = vec![0f32; TILE_LONG * TILE_SHORT];
    for n0 in (0..n).step_by(TILE_LONG) {
        let width = TILE_LONG.min(n - n0);
        for k0 in (0..k).step_by(TILE_SHORT) {
            let depth = TILE_SHORT.min(k - k0);
            for (r, row) in tile.chunks_exact_mut(TILE_LONG).take(depth).enumerate() {
                widen(&mut row[..width], &b[(k0 + r) * n + n0..][..width]);
            }
            for (out, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
                let tile = tile.chunks_exact(TILE_LONG).map(|row| &row[..width]);
                add_rows(&mut out[n0..n0 + width], &a[k0..k0 + depth], tile);
            }
        }
    }
}

/// [`columns`] for few rows of `a`: the tile would cost more than it saves. The same sums in the same order.
fn few_columns<T: Number>(out: &mut [f32], a: &[f32], b: &[T], n: usize, k: usize) {
    for n0 in (0..n).step_by(TILE_LONG) {
        let width = TILE_LONG.min(n - n0);
        for k0 in (0..k).step_by(TILE_SHORT) {
            let depth = TILE_SHORT.min(k - k0);
            for (out, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
                let rows = (k0..k0 + depth).map(|r| &b[r * n + n0..][..width]);
                add_rows(&mut out[n0..n0 + width], &a[k0..k0 + depth], rows);
            }
        }
    }
}

/// out += the sum of the rows, each times its number.
fn add_rows<'a, T: Number>(out: &mut [f32], a: &[f32], mut rows: impl Iterator<Item = &'a [T]>) {
    // Four rows at a time: a quarter of the loads and stores of the sums.
    let (fours, rest) = a.as_chunks::<4>();
    for &[a0, a1, a2, a3] in fours {
        let [Some(r0), Some(r1), Some(r2), Some(r3)] = std::array::from_fn(|_| rows.next()) else { break };
        for ((((out, x0), x1), x2), x3) in out.iter_mut().zip(r0).zip(r1).zip(r2).zip(r3) {
            *out = *out + a0 * x0.to_float() + a1 * x1.to_float() + a2 * x2.to_float() + a3 * x3.to_float();
        }
    }
    for (&a, row) in rest.iter().zip(rows) {
        for (out, x) in out.iter_mut().zip(row) {
            *out += a * x.to_float();
        }
    }
}

/// out [m, n] += a [m, k] · b [n, k]ᵀ.
fn rows<T: Number>(out: &mut [f32], a: &[f32], b: &[T], n: usize, k: usize) {
    let mut tile = vec![0f32; TILE_LONG * TILE_SHORT];
    for n0 in (0..n).step_by(TILE_SHORT) {
        let height = TILE_SHORT.min(n - n0);
        for k0 in (0..k).step_by(TILE_LONG) {
            let depth = TILE_LONG.min(k - k0);
            for (r, row) in tile.chunks_exact_mut(TILE_LONG).take(height).enumerate() {
                widen(&mut row[..depth], &b[(n0 + r) * k + k0..][..depth]);
            }
            for (out, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
                let a = &a[k0..k0 + depth];
                for (out, row) in out[n0..n0 + height].iter_mut().zip(tile.chunks_exact(TILE_LONG)) {
                    *out += product(a, &row[..depth]);
                }
            }
        }
    }
}

/// [`rows`] for few rows of `a`, likewise.
fn few_rows<T: Number>(out: &mut [f32], a: &[f32], b: &[T], n: usize, k: usize) {
    for (out, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
        for (out, row) in out.iter_mut().zip(b.chunks_exact(k)) {
            for (a, row) in a.chunks(TILE_LONG).zip(row.chunks(TILE_LONG)) {
                *out += product(a, row);
            }
        }
    }
}

fn widen<T: Number>(to: &mut [f32], from: &[T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_float();
    }
}

fn product<T: Number>(a: &[f32], b: &[T]) -> f32 {
    let mut lanes = [0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i].to_float();
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y.to_float()).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Elements of a tile along the rows of the right operand: 128 KB of f32 with the other.
const TILE_LONG: usize = 512;

/// Rows of the left operand, and multiplications, from which on threads are worth their start.
const MANY: usize = 32;
const MUCH: usize = 1 << 22;

/// Rows of the left operand that use a tile too seldom.
const FEW: usize = 2;

/// Rows of a tile.
const TILE_SHORT: usize = 64;
