//! Shapes of the operations that address by index: gather, scatter, dynamic slices.

use super::{ShapeError, in_rank, sized};
use crate::op::{GatherDims, ScatterDims};
use crate::shape::MAX_RANK;
use crate::{ArrayShape, DType};

/// Result of a gather: batch dimensions (those of the indices without the vector) with the slice's at `offset_dims`.
pub(super) fn gather(d: &GatherDims, table: ArrayShape, indices: ArrayShape) -> Result<ArrayShape, ShapeError> {
    let bad = |what| ShapeError::Gather { what, dims: Box::new(d.clone()), table, indices };
    index_type(indices)?;
    if d.slice_sizes.len() != table.rank() || d.slice_sizes.iter().zip(table.dims().iter()).any(|(&s, n)| s > n) {
        return Err(bad("slice_sizes"));
    }
    in_rank("collapsed_slice_dims", &d.collapsed_slice_dims, table)?;
    if !d.collapsed_slice_dims.is_sorted() || d.collapsed_slice_dims.iter().any(|&c| d.slice_sizes[c] != 1) {
        return Err(bad("collapsed_slice_dims"));
    }
    in_rank("start_index_map", &d.start_index_map, table)?;
    let batch =
        batch_dims(d.index_vector_dim, d.start_index_map.len(), indices).ok_or_else(|| bad("index_vector_dim"))?;
    let mut window =
        (0..table.rank()).filter(|c| !d.collapsed_slice_dims.contains(c)).map(|c| d.slice_sizes[c]).collect::<Vec<_>>();
    let rank = batch.len() + window.len();
    if window.len() != d.offset_dims.len() || rank > MAX_RANK || !ascending_below(&d.offset_dims, rank) {
        return Err(bad("offset_dims"));
    }
    let mut batch = batch.into_iter();
    let mut window = window.drain(..);
    let size = |at: usize| {
        let next = if d.offset_dims.contains(&at) { window.next() } else { batch.next() };
        next.unwrap_or(0) // the counts add up, as just checked
    };
    sized(table.dtype(), (0..rank).map(size))
}

/// Result of a scatter: the buffer's shape. Checks that the updates are what a gather of the same windows would give.
pub(super) fn scatter(
    d: &ScatterDims,
    buffer: ArrayShape,
    indices: ArrayShape,
    updates: ArrayShape,
) -> Result<ArrayShape, ShapeError> {
    let bad =
        |what| ShapeError::Scatter { what, dims: Box::new(d.clone()), shapes: Box::new([buffer, indices, updates]) };
    index_type(indices)?;
    if buffer.dtype() != updates.dtype() {
        return Err(ShapeError::Differ { a: buffer, b: updates });
    }
    in_rank("inserted_window_dims", &d.inserted_window_dims, buffer)?;
    in_rank("scatter_dims_to_operand_dims", &d.scatter_dims_to_operand_dims, buffer)?;
    if !d.inserted_window_dims.is_sorted() {
        return Err(bad("inserted_window_dims"));
    }
    let components = d.scatter_dims_to_operand_dims.len();
    let batch = batch_dims(d.index_vector_dim, components, indices).ok_or_else(|| bad("index_vector_dim"))?;
    let window: Vec<usize> = (0..buffer.rank()).filter(|c| !d.inserted_window_dims.contains(c)).collect();
    if window.len() != d.update_window_dims.len() || !ascending_below(&d.update_window_dims, updates.rank()) {
        return Err(bad("update_window_dims"));
    }
    if d.update_window_dims.iter().zip(&window).any(|(&u, &b)| updates.dim(u) > buffer.dim(b)) {
        return Err(bad("window"));
    }
    let scattered = (0..updates.rank()).filter(|u| !d.update_window_dims.contains(u)).map(|u| updates.dim(u));
    if !scattered.eq(batch) {
        return Err(bad("updates"));
    }
    Ok(buffer)
}

pub(super) fn dynamic_slice(sizes: &[usize], x: ArrayShape, starts: &[ArrayShape]) -> Result<ArrayShape, ShapeError> {
    if sizes.len() != x.rank() || starts.len() != x.rank() {
        return Err(ShapeError::PerDimension { field: "dynamic_slice_sizes", got: starts.len(), of: x });
    }
    for &start in starts {
        index_type(start)?;
        if start.rank() != 0 || start != starts[0] {
            return Err(ShapeError::Differ { a: start, b: ArrayShape::scalar(starts[0].dtype()) });
        }
    }
    if sizes.iter().zip(x.dims().iter()).any(|(&s, n)| s > n) {
        return Err(ShapeError::Dimensions { field: "dynamic_slice_sizes", dims: sizes.to_vec(), of: x });
    }
    sized(x.dtype(), sizes.iter().copied())
}

fn index_type(indices: ArrayShape) -> Result<(), ShapeError> {
    if matches!(indices.dtype(), DType::S32 | DType::U32 | DType::S64) {
        return Ok(());
    }
    Err(ShapeError::Type(indices.dtype()))
}

/// The dimensions of the indices without the one that holds the components, which must be as many as given.
fn batch_dims(vector: usize, components: usize, indices: ArrayShape) -> Option<Vec<usize>> {
    let len = if vector == indices.rank() {
        1
    } else if vector < indices.rank() {
        indices.dim(vector)
    } else {
        0
    };
    if len == 0 || len != components {
        return None;
    }
    Some((0..indices.rank()).filter(|&d| d != vector).map(|d| indices.dim(d)).collect())
}

fn ascending_below(dims: &[usize], rank: usize) -> bool {
    dims.windows(2).all(|w| w[0] < w[1]) && dims.iter().all(|&d| d < rank)
}
