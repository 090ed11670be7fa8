//! Rows of a table by index.

use crate::op::{Direction, DotDims, GatherDims, ScatterDims};
use crate::{Builder, DType, Val};

/// Rows of `table [n, h]` at `ids s32[b]`: `[b, h]`. Ids are clamped in the graph, because the device ends a run at one
/// that is out of range, where XLA would clamp. By a product with one-hot rows where [`crate::Options`] says so.
#[track_caller]
pub fn take_rows(b: &mut Builder, table: Val, ids: Val) -> Val {
    b.check(table.rank() == 2 && ids.rank() == 1, || format!("rows {} of {}", ids.shape(), table.shape()));
    let ids = in_range(b, ids, table.dim(0));
    if b.options().one_hot_lookups {
        let ids = b.reshape(ids, &[ids.dim(0)]);
        return take_rows_by_dot(b, table, ids);
    }
    let dims = GatherDims {
        offset_dims: vec![1],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        index_vector_dim: 1,
        slice_sizes: vec![1, table.dim(1)],
        indices_are_sorted: false,
    };
    b.gather(table, ids, dims)
}

/// The same by a product with [`one_hot`], in f32: exact while the table is finite, and all matrix unit. An id that is out
/// of range gives zeros.
#[track_caller]
pub fn take_rows_by_dot(b: &mut Builder, table: Val, ids: Val) -> Val {
    // bf16 holds a signed byte; products of integers are refused or pass through floats (EVRF035).
    let wide = if table.dtype() == DType::S8 { b.convert(table, DType::BF16) } else { table };
    let hot = one_hot(b, ids, table.dim(0), wide.dtype());
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let rows = b.dot(hot, wide, dims, DType::F32);
    b.convert(rows, table.dtype())
}

/// Row numbers of caches `[rows, positions, ...]` viewed as `[rows * positions, ...]`: row · positions + slot, `row` and
/// `slot` both `s32[n]`.
#[track_caller]
pub fn cache_rows(b: &mut Builder, row: Val, slot: Val, positions: usize) -> Val {
    let positions = b.full(&row.dims(), i32::try_from(positions).unwrap_or(i32::MAX));
    let first = b.multiply(row, positions);
    b.add(first, slot)
}

/// 1 where the column is the row's id, else 0: `ids s32[b]` to `[b, n]`.
#[track_caller]
pub fn one_hot(b: &mut Builder, ids: Val, n: usize, dtype: DType) -> Val {
    let dims = [ids.dim(0), n];
    let columns = b.iota(ids.dtype(), &dims, 1);
    let ids = b.broadcast(ids, &[0], &dims);
    let equal = b.compare(Direction::Eq, columns, ids);
    b.convert(equal, dtype)
}

/// `buffer [n, w]` with `rows [b, w]` written at `ids s32[b]`: a scatter of whole rows with one index column, the form that
/// transformers-neuronx writes its caches in. Ids are clamped; two equal ids leave either row.
#[track_caller]
pub fn write_rows(b: &mut Builder, buffer: Val, ids: Val, rows: Val) -> Val {
    b.check(buffer.rank() == 2 && ids.rank() == 1, || format!("rows {} of {}", ids.shape(), buffer.shape()));
    let ids = in_range(b, ids, buffer.dim(0));
    let dims = ScatterDims::rows();
    b.scatter(buffer, ids, rows, dims)
}

/// Ids clamped to `0..n`, as a column of index vectors.
fn in_range(b: &mut Builder, ids: Val, n: usize) -> Val {
    b.check(n > 0 && ids.dtype() == DType::S32, || format!("ids {} of {n} rows", ids.shape()));
    let (first, last) = (b.scalar(0i32), b.scalar((n - 1) as i32)); // a dimension is below 2^31
    let ids = b.clamp(first, ids, last);
    b.reshape(ids, &[ids.dim(0), 1])
}
