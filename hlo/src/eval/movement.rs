//! Operations that only move elements: all are one copy between strided views.

use super::convert::Number;
use crate::op::{PadDim, SliceDim};
use crate::tensor::with_type;
use crate::{ArrayShape, Data, Element, Tensor};

pub(super) fn iota(shape: ArrayShape, dim: usize) -> Tensor {
    let mut strides = vec![0; shape.rank()];
    strides[dim] = 1;
    with_type!(shape.dtype(), T => {
        let line: Vec<T> = (0..shape.dim(dim) as i64).map(T::from_integer).collect();
        Tensor::from_vec(shape, read(&line, 0, &strides, &shape.dims().to_vec()))
    })
}

pub(super) fn broadcast(x: &Tensor, dims: &[usize], shape: ArrayShape) -> Tensor {
    let mut strides = vec![0; shape.rank()];
    for (&d, stride) in dims.iter().zip(x.shape().dims().strides()) {
        strides[d] = stride;
    }
    view(x, 0, &strides, shape)
}

pub(super) fn transpose(x: &Tensor, permutation: &[usize], shape: ArrayShape) -> Tensor {
    let strides = x.shape().dims().strides();
    let strides: Vec<usize> = permutation.iter().map(|&d| strides[d]).collect();
    view(x, 0, &strides, shape)
}

pub(super) fn slice(x: &Tensor, dims: &[SliceDim], shape: ArrayShape) -> Tensor {
    let strides = x.shape().dims().strides();
    let offset = dims.iter().zip(&strides).map(|(d, s)| d.start * s).sum();
    let strides: Vec<usize> = dims.iter().zip(&strides).map(|(d, s)| d.stride * s).collect();
    view(x, offset, &strides, shape)
}

pub(super) fn dynamic_slice(x: &Tensor, starts: &[Tensor], shape: ArrayShape) -> Tensor {
    let offset = start(x.shape(), starts, shape);
    view(x, offset, &x.shape().dims().strides(), shape)
}

pub(super) fn dynamic_update_slice(mut x: Tensor, update: &Tensor, starts: &[Tensor]) -> Tensor {
    let offset = start(x.shape(), starts, update.shape());
    let strides = x.shape().dims().strides();
    put(&mut x, offset, &strides, update);
    x
}

pub(super) fn concatenate(parts: &[Tensor], dim: usize, shape: ArrayShape) -> Tensor {
    let strides = shape.dims().strides();
    with_type!(shape.dtype(), T => {
        let mut out = Tensor::from_vec(shape, vec![T::default(); shape.elements()]);
        let mut at = 0;
        for part in parts {
            put(&mut out, at * strides[dim], &strides, part);
            at += part.shape().dim(dim);
        }
        out
    })
}

pub(super) fn pad(x: &Tensor, value: &Tensor, dims: &[PadDim], shape: ArrayShape) -> Tensor {
    // Where each index of x goes; None if it is cut off.
    let places: Vec<Vec<Option<usize>>> = dims
        .iter()
        .enumerate()
        .map(|(d, pad)| {
            let step = pad.interior.saturating_add(1);
            let place = |i: i64| {
                let place = pad.low.saturating_add(i.saturating_mul(step));
                usize::try_from(place).ok().filter(|&p| p < shape.dim(d))
            };
            (0..x.shape().dim(d) as i64).map(place).collect()
        })
        .collect();
    let strides = shape.dims().strides();
    with_type!(shape.dtype(), T => {
        let fill = value.as_slice::<T>().and_then(|v| v.first().copied()).unwrap_or_default();
        let mut out = vec![fill; shape.elements()];
        let source = x.as_slice::<T>().unwrap_or_default();
        for_each_index(&x.shape().dims().to_vec(), |flat, index| {
            let to = index.iter().zip(&places).zip(&strides).map(|((&i, places), s)| places[i].map(|p| p * s)).sum();
            if let Some::<usize>(to) = to {
                out[to] = source[flat];
            }
        });
        Tensor::from_vec(shape, out)
    })
}

/// The scalars of indices, clamped so that a window of `size` fits into `x`, as a flat offset.
fn start(x: ArrayShape, starts: &[Tensor], size: ArrayShape) -> usize {
    let strides = x.dims().strides();
    let mut offset = 0;
    for (d, at) in starts.iter().enumerate() {
        let at = integers(at).first().copied().unwrap_or(0);
        let most = (x.dim(d) - size.dim(d)) as i64;
        offset += at.clamp(0, most) as usize * strides[d];
    }
    offset
}

/// The elements of an index array.
pub(super) fn integers(x: &Tensor) -> Vec<i64> {
    match x.data() {
        Data::S32(v) => v.iter().map(|&i| i.into()).collect(),
        Data::U32(v) => v.iter().map(|&i| i.into()).collect(),
        Data::S64(v) => v.to_vec(),
        _ => unreachable!("verified: integers"),
    }
}

/// An array of `shape` whose element at index i is x's at `offset + i · strides`.
pub(super) fn view(x: &Tensor, offset: usize, strides: &[usize], shape: ArrayShape) -> Tensor {
    with_type!(shape.dtype(), T => {
        let source = x.as_slice::<T>().unwrap_or_default();
        Tensor::from_vec(shape, read(source, offset, strides, &shape.dims().to_vec()))
    })
}

/// Writes all of `update` at `offset + i · strides` of `x`.
fn put(x: &mut Tensor, offset: usize, strides: &[usize], update: &Tensor) {
    let dims = update.shape().dims().to_vec();
    with_type!(x.shape().dtype(), T => {
        if let (Some(x), Some(update)) = (x.as_mut_slice::<T>(), update.as_slice::<T>()) {
            let mut from = 0;
            for_each_run(&dims, strides, |at, len, stride| {
                let update = &update[from..from + len];
                from += len;
                let at = offset + at;
                if stride == 1 {
                    x[at..at + len].copy_from_slice(update);
                } else {
                    for (i, &v) in update.iter().enumerate() {
                        x[at + i * stride] = v;
                    }
                }
            });
        }
    });
}

/// Elements of a strided view, in row-major order of `dims`.
pub(super) fn read<T: Element>(source: &[T], offset: usize, strides: &[usize], dims: &[usize]) -> Vec<T> {
    let mut out = Vec::with_capacity(dims.iter().product());
    for_each_run(dims, strides, |at, len, stride| {
        let at = offset + at;
        match stride {
            1 => out.extend_from_slice(&source[at..at + len]),
            0 => out.resize(out.len() + len, source[at]),
            _ => out.extend(source[at..].iter().step_by(stride).take(len)),
        }
    });
    out
}

/// Calls `f(offset, len, stride)` for each innermost row; dimensions that lie densely are taken as one.
fn for_each_run(dims: &[usize], strides: &[usize], mut f: impl FnMut(usize, usize, usize)) {
    if dims.contains(&0) {
        return;
    }
    let (mut sizes, mut steps): (Vec<usize>, Vec<usize>) = (vec![], vec![]);
    for (&size, &step) in dims.iter().zip(strides).rev() {
        match (sizes.last_mut(), steps.last()) {
            _ if size == 1 => {}
            // The outer dimension steps over exactly what the inner one spans.
            (Some(inner), Some(&stride)) if step == *inner * stride => *inner *= size,
            _ => {
                sizes.push(size);
                steps.push(step);
            }
        }
    }
    // Innermost first now.
    let (len, stride) = (sizes.first().copied().unwrap_or(1), steps.first().copied().unwrap_or(1));
    let mut index = vec![0; sizes.len()];
    let mut at = 0;
    loop {
        f(at, len, stride);
        let mut d = 1;
        loop {
            if d >= sizes.len() {
                return;
            }
            index[d] += 1;
            at += steps[d];
            if index[d] < sizes[d] {
                break;
            }
            at -= steps[d] * sizes[d];
            index[d] = 0;
            d += 1;
        }
    }
}

/// Calls `f(number, index)` for each index in row-major order.
pub(super) fn for_each_index(dims: &[usize], mut f: impl FnMut(usize, &[usize])) {
    if dims.contains(&0) {
        return;
    }
    let mut index = vec![0; dims.len()];
    for flat in 0..dims.iter().product() {
        f(flat, &index);
        for d in (0..dims.len()).rev() {
            index[d] += 1;
            if index[d] < dims[d] {
                break;
            }
            index[d] = 0;
        }
    }
}
