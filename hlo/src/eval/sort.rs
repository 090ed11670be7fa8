//! Sorting by the first operand; the others follow. Always stable. NaN comes last.

use std::cmp::Ordering;

use crate::op::Direction;
use crate::tensor::with_type;
use crate::{Element, Tensor};

pub(super) fn run(dim: usize, order: Option<Direction>, operands: Vec<Tensor>) -> Vec<Tensor> {
    let Some(keys) = operands.first() else { return operands };
    let shape = keys.shape();
    let (len, stride) = (shape.dim(dim), shape.dims().strides()[dim]);
    if shape.elements() == 0 {
        return operands;
    }
    let descending = matches!(order, Some(Direction::Gt | Direction::Ge));
    // Flat places in sorted order: result element i is operand element places[i].
    let mut places: Vec<usize> = (0..shape.elements()).collect();
    let mut line: Vec<usize> = vec![0; len];
    for first in (0..shape.elements()).filter(|at| at / stride % len == 0) {
        for (i, place) in line.iter_mut().enumerate() {
            *place = first + i * stride;
        }
        with_type!(shape.dtype(), T => {
            let keys: &[T] = keys.as_slice().unwrap_or_default();
            line.sort_by(|&a, &b| compare(keys[a], keys[b], descending));
        });
        for (i, &place) in line.iter().enumerate() {
            places[first + i * stride] = place;
        }
    }
    let take = |x: Tensor| {
        with_type!(x.shape().dtype(), T => {
            let from: &[T] = x.as_slice().unwrap_or_default();
            Tensor::from_vec::<T>(x.shape(), places.iter().map(|&p| from[p]).collect())
        })
    };
    operands.into_iter().map(take).collect()
}

/// A total order: all NaN are equal, and behind everything.
fn compare<T: Element + PartialOrd>(a: T, b: T, descending: bool) -> Ordering {
    let nan = |x: T| x.partial_cmp(&x).is_none();
    match a.partial_cmp(&b) {
        Some(order) => {
            if descending {
                order.reverse()
            } else {
                order
            }
        }
        None => nan(a).cmp(&nan(b)),
    }
}
