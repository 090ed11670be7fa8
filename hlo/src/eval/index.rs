//! Gather and scatter.

use super::elementwise::Arithmetic;
use super::movement::{for_each_index, integers};
use crate::op::{Combiner, GatherDims, ScatterDims};
use crate::tensor::with_type;
use crate::{ArrayShape, Tensor};

/// An index, and the most it may be.
pub(super) type OutOfRange = (i64, i64);

pub(super) fn gather(
    table: &Tensor,
    indices: &Tensor,
    d: &GatherDims,
    shape: ArrayShape,
    clamp: bool,
) -> Result<Tensor, OutOfRange> {
    let window: Vec<usize> = (0..d.slice_sizes.len()).filter(|w| !d.collapsed_slice_dims.contains(w)).collect();
    let sizes: Vec<usize> = window.iter().map(|&w| d.slice_sizes[w]).collect();
    let from = Strides::of(table.shape(), &window);
    let to = Strides::of(shape, &d.offset_dims);
    let batch: Vec<usize> = (0..shape.rank()).filter(|o| !d.offset_dims.contains(o)).collect();
    let batch = Strides::of(shape, &batch);
    let starts = Starts::new(indices, d.index_vector_dim, &d.start_index_map);
    with_type!(shape.dtype(), T => {
        let source: &[T] = table.as_slice().unwrap_or_default();
        let mut out = vec![T::default(); shape.elements()];
        let mut failed = None;
        for_each_index(&starts.dims, |n, index| {
            match starts.offset(n, table.shape(), |dim| d.slice_sizes[dim], clamp) {
                Ok(offset) => {
                    let at = batch.at(index);
                    walk(&sizes, &from, &to, |f, t, len| {
                        copy_row(&mut out[at + t..], &source[offset + f..], to.last(), from.last(), len);
                    });
                }
                Err(range) => failed = failed.or(Some(range)),
            }
        });
        failed.map_or(Ok(Tensor::from_vec(shape, out)), Err)
    })
}

pub(super) fn scatter(
    mut buffer: Tensor,
    indices: &Tensor,
    updates: &Tensor,
    d: &ScatterDims,
    combiner: Option<Combiner>,
    skip: bool,
) -> Result<Tensor, OutOfRange> {
    let shape = buffer.shape();
    let window: Vec<usize> = (0..shape.rank()).filter(|w| !d.inserted_window_dims.contains(w)).collect();
    let sizes: Vec<usize> = d.update_window_dims.iter().map(|&u| updates.shape().dim(u)).collect();
    let size = |dim: usize| window.iter().position(|&w| w == dim).map_or(1, |w| sizes[w]);
    let to = Strides::of(shape, &window);
    let from = Strides::of(updates.shape(), &d.update_window_dims);
    let batch: Vec<usize> = (0..updates.shape().rank()).filter(|u| !d.update_window_dims.contains(u)).collect();
    let batch = Strides::of(updates.shape(), &batch);
    let starts = Starts::new(indices, d.index_vector_dim, &d.scatter_dims_to_operand_dims);
    let mut failed = None;
    with_type!(shape.dtype(), T => {
        let source: &[T] = updates.as_slice().unwrap_or_default();
        let out: &mut [T] = buffer.as_mut_slice().unwrap_or_default();
        for_each_index(&starts.dims, |n, index| {
            match starts.offset(n, shape, size, false) {
                Ok(offset) => {
                    let at = batch.at(index);
                    walk(&sizes, &from, &to, |f, t, len| {
                        let (out, source) = (&mut out[offset + t..], &source[at + f..]);
                        match combiner {
                            Some(Combiner::Binary(op)) => {
                                for i in 0..len {
                                    let out = &mut out[i * to.last()];
                                    *out = T::apply(op, *out, source[i * from.last()]);
                                }
                            }
                            _ => copy_row(out, source, to.last(), from.last(), len),
                        }
                    });
                }
                // XLA leaves out a window that is not inside.
                Err(range) if !skip => failed = failed.or(Some(range)),
                Err(_) => {}
            }
        });
    });
    failed.map_or(Ok(buffer), Err)
}

/// The first index of a scatter whose window is not inside the buffer.
pub(super) fn out_of_range(
    buffer: ArrayShape,
    indices: &Tensor,
    updates: ArrayShape,
    d: &ScatterDims,
) -> Option<OutOfRange> {
    let window: Vec<usize> = (0..buffer.rank()).filter(|w| !d.inserted_window_dims.contains(w)).collect();
    let size = |dim: usize| window.iter().position(|&w| w == dim).map_or(1, |w| updates.dim(d.update_window_dims[w]));
    let starts = Starts::new(indices, d.index_vector_dim, &d.scatter_dims_to_operand_dims);
    (0..starts.dims.iter().product()).find_map(|n| starts.offset(n, buffer, size, false).err())
}

/// Steps along some dimensions of an array.
struct Strides(Vec<usize>);

impl Strides {
    fn of(shape: ArrayShape, dims: &[usize]) -> Strides {
        let strides = shape.dims().strides();
        Strides(dims.iter().map(|&d| strides[d]).collect())
    }

    fn at(&self, index: &[usize]) -> usize {
        index.iter().zip(&self.0).map(|(i, s)| i * s).sum()
    }

    fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }
}

/// The index vectors of an index array.
struct Starts<'a> {
    /// The array's dimensions without that of the components.
    dims: Vec<usize>,
    values: Vec<i64>,
    /// Steps along `dims`.
    strides: Strides,
    /// Step from one component to the next.
    component: usize,
    /// Operand dimension of each component.
    map: &'a [usize],
}

impl<'a> Starts<'a> {
    fn new(indices: &Tensor, vector: usize, map: &'a [usize]) -> Self {
        let shape = indices.shape();
        let others: Vec<usize> = (0..shape.rank()).filter(|&d| d != vector).collect();
        let component = shape.dims().strides().get(vector).copied().unwrap_or(0);
        Starts {
            dims: others.iter().map(|&d| shape.dim(d)).collect(),
            values: integers(indices),
            strides: Strides::of(shape, &others),
            component,
            map,
        }
    }

    /// Where the window of index vector number `n` begins in an operand.
    fn offset(
        &self,
        n: usize,
        operand: ArrayShape,
        size: impl Fn(usize) -> usize,
        clamp: bool,
    ) -> Result<usize, OutOfRange> {
        let mut at = 0;
        let mut rest = n;
        for (&dim, &stride) in self.dims.iter().zip(&self.strides.0).rev() {
            at += rest % dim * stride;
            rest /= dim;
        }
        let strides = operand.dims().strides();
        let mut offset = 0;
        for (c, &dim) in self.map.iter().enumerate() {
            let most = operand.dim(dim) as i64 - size(dim) as i64;
            let index = self.values[at + c * self.component];
            let inside = index.clamp(0, most.max(0));
            // Nothing fits into a dimension of no elements.
            if (inside != index && !clamp) || most < 0 {
                return Err((index, most));
            }
            offset += inside as usize * strides[dim];
        }
        Ok(offset)
    }
}

/// Calls `f(from, to, len)` for each row of a window.
fn walk(sizes: &[usize], from: &Strides, to: &Strides, mut f: impl FnMut(usize, usize, usize)) {
    let (outer, len) = match sizes.split_last() {
        Some((&len, outer)) => (outer, len),
        None => (sizes, 1),
    };
    if len > 0 {
        for_each_index(outer, |_, index| f(from.at(index), to.at(index), len));
    }
}

fn copy_row<T: Copy>(to: &mut [T], from: &[T], to_step: usize, from_step: usize, len: usize) {
    if to_step == 1 && from_step == 1 {
        to[..len].copy_from_slice(&from[..len]);
        return;
    }
    for i in 0..len {
        to[i * to_step] = from[i * from_step];
    }
}
