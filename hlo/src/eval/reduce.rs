//! Folding dimensions away. Floats are folded in f32, in eight lanes along a row, and rounded once at the end.

use super::convert::Number;
use super::elementwise::Arithmetic;
use super::movement::for_each_index;
use crate::op::{Binary, Combiner};
use crate::tensor::with_type;
use crate::{ArrayShape, Tensor};

pub(super) fn reduce(
    x: &Tensor,
    init: &Tensor,
    dims: &[usize],
    combiner: Option<Combiner>,
    shape: ArrayShape,
) -> Tensor {
    let Some(Combiner::Binary(op)) = combiner else { unreachable!("verified: a reduction combines") };
    with_type!(shape.dtype(), T => {
        let source: &[T] = x.as_slice().unwrap_or_default();
        let init = init.as_slice::<T>().and_then(|v| v.first().copied()).unwrap_or_default();
        let out: Vec<T> = if shape.dtype().is_float() {
            let out = fold(source, x.shape(), dims, shape, op, init.to_float(), T::to_float);
            out.into_iter().map(T::from_float).collect()
        } else {
            fold(source, x.shape(), dims, shape, op, init, |v| v)
        };
        Tensor::from_vec(shape, out)
    })
}

fn fold<T: Copy, A: Arithmetic>(
    source: &[T],
    from: ArrayShape,
    dims: &[usize],
    to: ArrayShape,
    op: Binary,
    init: A,
    widen: impl Fn(T) -> A,
) -> Vec<A> {
    let mut out = vec![init; to.elements()];
    if source.is_empty() || out.is_empty() {
        return out;
    }
    if from.rank() == 0 {
        return vec![A::apply(op, init, widen(source[0]))];
    }
    let to_strides = to.dims().strides();
    let mut kept = to_strides.iter();
    let strides: Vec<usize> =
        (0..from.rank()).map(|d| if dims.contains(&d) { 0 } else { kept.next().copied().unwrap_or(0) }).collect();
    let last = from.rank() - 1;
    let len = from.dim(last);
    for_each_index(&from.dims().to_vec()[..last], |n, index| {
        let row = &source[n * len..(n + 1) * len];
        let at: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        if strides[last] == 0 {
            out[at] = A::apply(op, out[at], fold_row(row, op, &widen));
        } else {
            for (out, &v) in out[at..at + len].iter_mut().zip(row) {
                *out = A::apply(op, *out, widen(v));
            }
        }
    });
    out
}

/// A row's fold; the row is not empty.
fn fold_row<T: Copy, A: Arithmetic>(row: &[T], op: Binary, widen: &impl Fn(T) -> A) -> A {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = match chunks.first() {
        Some(first) => first.map(widen),
        None => {
            let first = widen(rest[0]);
            return rest[1..].iter().fold(first, |sum, &v| A::apply(op, sum, widen(v)));
        }
    };
    for chunk in &chunks[1..] {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = A::apply(op, *lane, widen(v));
        }
    }
    let [first, others @ ..] = lanes;
    let sum = others.into_iter().fold(first, |sum, v| A::apply(op, sum, v));
    rest.iter().fold(sum, |sum, &v| A::apply(op, sum, widen(v)))
}

const LANES: usize = 8;
