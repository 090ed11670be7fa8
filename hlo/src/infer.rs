//! The shape of an operation's result, and what its operands must be: one place for the builder and the verifier.
//!
//! For operations whose result does not follow from their operands (iota, reshape, convert, dot's type, ...) the declared
//! shape says what is missing; the rest of it must then agree with what is inferred, which the caller compares.

mod error;
mod index;

pub use error::ShapeError;

use crate::op::{Binary, CustomCall, Direction, DotDims, Op, PadDim, SliceDim};
use crate::{ArrayShape, DType, Shape};

/// The result's shape.
pub(crate) fn infer(op: &Op, operands: &[&Shape], declared: &Shape) -> Result<Shape, ShapeError> {
    if let (Op::GetTupleElement(index), [Shape::Tuple(parts)]) = (op, operands) {
        let part = parts.get(*index);
        return part.map(|&p| p.into()).ok_or(ShapeError::TupleIndex { index: *index, parts: parts.len() });
    }
    let arrays: Option<Vec<ArrayShape>> = operands.iter().map(|s| s.array()).collect();
    let arrays = arrays.ok_or(ShapeError::TupleOperand)?;
    let declared_array = || declared.array().ok_or(ShapeError::TupleResult);
    let shape = match (op, &arrays[..]) {
        (Op::Parameter(_), []) => return Ok(declared.clone()),
        (Op::Call(_), _) => return Ok(declared.clone()), // the verifier compares with the callee
        (Op::CustomCall(call), operands) => return custom_call(call, operands, declared),
        (Op::Tuple, operands) => return Ok(Shape::Tuple(operands.to_vec())),
        (Op::Sort { dim, .. }, operands @ [keys, ..]) => return sort(*dim, *keys, operands),
        (Op::Constant(literal), []) => literal.shape(),
        (Op::Iota(dim), []) => {
            let shape = declared_array()?;
            takes(shape.dtype().is_float() || shape.dtype().is_integer(), shape)?;
            in_rank("iota_dimension", &[*dim], shape)?;
            shape
        }
        (Op::Unary(op), &[x]) => {
            takes(op.takes(x.dtype()), x)?;
            x
        }
        (Op::Binary(op), &[a, b]) => binary(*op, a, b)?,
        (Op::Broadcast(dims), &[x]) => broadcast(dims, x, declared_array()?)?,
        (Op::Reshape, &[x]) => {
            let shape = declared_array()?;
            if shape.elements() != x.elements() {
                return Err(ShapeError::Elements { from: x, to: shape });
            }
            shape.with_dtype(x.dtype())
        }
        (Op::Transpose(permutation), &[x]) => {
            in_rank("dimensions", permutation, x)?;
            if permutation.len() != x.rank() {
                return Err(bad_dims("dimensions", permutation, x));
            }
            sized(x.dtype(), permutation.iter().map(|&d| x.dim(d)))?
        }
        (Op::Convert, &[x]) => x.with_dtype(declared_array()?.dtype()),
        (Op::Copy, &[x]) => x,
        (Op::Clamp, &[lo, x, hi]) => {
            takes(x.dtype().is_float() || x.dtype().is_integer(), x)?;
            for bound in [lo, hi] {
                if bound != x && bound != ArrayShape::scalar(x.dtype()) {
                    return Err(ShapeError::Differ { a: bound, b: x });
                }
            }
            x
        }
        (Op::Compare(direction), &[a, b]) => compare(*direction, a, b)?,
        (Op::Select, &[p, a, b]) => {
            same(a, b)?;
            same(p, a.with_dtype(DType::Pred))?;
            a
        }
        (Op::Reduce { dims, .. }, &[x, init]) => {
            same(init, ArrayShape::scalar(x.dtype()))?;
            takes(!x.dtype().is_fp8(), x)?;
            in_rank("dimensions", dims, x)?;
            sized(x.dtype(), (0..x.rank()).filter(|d| !dims.contains(d)).map(|d| x.dim(d)))?
        }
        (Op::Dot(dims), &[a, b]) => dot(dims, a, b, declared_array()?.dtype())?,
        (Op::Gather(dims), &[table, indices]) => index::gather(dims, table, indices)?,
        (Op::Scatter(dims), &[buffer, indices, updates]) => index::scatter(dims, buffer, indices, updates)?,
        (Op::Slice(dims), &[x]) => slice(dims, x)?,
        (Op::DynamicSlice(sizes), [x, starts @ ..]) => index::dynamic_slice(sizes, *x, starts)?,
        (Op::DynamicUpdateSlice, [x, update, starts @ ..]) => {
            let sizes = update.dims().to_vec();
            same(*update, index::dynamic_slice(&sizes, *x, starts)?)?;
            *x
        }
        (Op::Concatenate(dim), parts @ [first, ..]) => concatenate(*dim, *first, parts)?,
        (Op::Pad(dims), &[x, value]) => pad(dims, x, value)?,
        (Op::AllReduce { .. }, &[x]) => x,
        (Op::AllGather { group, dim }, &[x]) => {
            in_rank("all_gather_dimension", &[*dim], x)?;
            let n = x.dim(*dim);
            let out = match group.groups.first() {
                Some(replicas) => n.checked_mul(replicas.len()),
                None => declared_array()?.dims().iter().nth(*dim).filter(|out| out.is_multiple_of(n)),
            };
            let out = out.ok_or_else(|| bad_dims("all_gather_dimension", &[*dim], x))?;
            resized(x, *dim, out)?
        }
        (Op::ReduceScatter { group, dim, .. }, &[x]) => {
            in_rank("scatter_dimension", &[*dim], x)?;
            let divisor = match group.groups.first() {
                Some(replicas) => replicas.len(),
                None => {
                    let out = declared_array()?;
                    let out = if *dim < out.rank() { out.dim(*dim) } else { 0 };
                    x.dim(*dim).checked_div(out).unwrap_or(0)
                }
            };
            if divisor == 0 || !x.dim(*dim).is_multiple_of(divisor) {
                return Err(bad_dims("scatter_dimension", &[*dim], x));
            }
            resized(x, *dim, x.dim(*dim) / divisor)?
        }
        _ => return Err(ShapeError::Operands { opcode: op.name(), got: operands.len() }),
    };
    Ok(shape.into())
}

fn binary(op: Binary, a: ArrayShape, b: ArrayShape) -> Result<ArrayShape, ShapeError> {
    same(a, b)?;
    takes(op.takes(a.dtype()), a)?;
    Ok(a)
}

fn compare(direction: Direction, a: ArrayShape, b: ArrayShape) -> Result<ArrayShape, ShapeError> {
    same(a, b)?;
    let equality = matches!(direction, Direction::Eq | Direction::Ne);
    takes(!a.dtype().is_fp8() && (equality || a.dtype() != DType::Pred), a)?;
    Ok(a.with_dtype(DType::Pred))
}

fn broadcast(dims: &[usize], x: ArrayShape, to: ArrayShape) -> Result<ArrayShape, ShapeError> {
    in_rank("dimensions", dims, to)?;
    let ascending = dims.is_sorted();
    if dims.len() != x.rank() || !ascending || dims.iter().zip(x.dims().iter()).any(|(&d, n)| to.dim(d) != n) {
        return Err(ShapeError::Broadcast { dims: dims.to_vec(), from: x, to });
    }
    Ok(to.with_dtype(x.dtype()))
}

fn dot(dims: &DotDims, a: ArrayShape, b: ArrayShape, result: DType) -> Result<ArrayShape, ShapeError> {
    takes(a.dtype().is_float() || a.dtype().is_fp8(), a)?;
    takes(result.is_float(), ArrayShape::scalar(result))?;
    if a.dtype() != b.dtype() {
        return Err(ShapeError::Differ { a, b });
    }
    let of_a = [&dims.lhs_batch[..], &dims.lhs_contracting].concat();
    let of_b = [&dims.rhs_batch[..], &dims.rhs_contracting].concat();
    in_rank("lhs dimensions", &of_a, a)?;
    in_rank("rhs dimensions", &of_b, b)?;
    let paired = dims.lhs_batch.len() == dims.rhs_batch.len() && of_a.len() == of_b.len();
    if !paired || of_a.iter().zip(&of_b).any(|(&d, &e)| a.dim(d) != b.dim(e)) {
        return Err(ShapeError::Dot { dims: Box::new(dims.clone()), a, b });
    }
    let batch = dims.lhs_batch.iter().map(|&d| a.dim(d));
    let left = (0..a.rank()).filter(|d| !of_a.contains(d)).map(|d| a.dim(d));
    let right = (0..b.rank()).filter(|d| !of_b.contains(d)).map(|d| b.dim(d));
    sized(result, batch.chain(left).chain(right))
}

fn slice(dims: &[SliceDim], x: ArrayShape) -> Result<ArrayShape, ShapeError> {
    if dims.len() != x.rank() {
        return Err(ShapeError::PerDimension { field: "slice_dimensions", got: dims.len(), of: x });
    }
    for (dim, d) in dims.iter().enumerate() {
        if d.start > d.limit || d.limit > x.dim(dim) || d.stride == 0 {
            return Err(ShapeError::Slice { dim, slice: *d, of: x });
        }
    }
    sized(x.dtype(), dims.iter().map(|d| (d.limit - d.start).div_ceil(d.stride)))
}

fn concatenate(dim: usize, first: ArrayShape, parts: &[ArrayShape]) -> Result<ArrayShape, ShapeError> {
    in_rank("concatenate_dimension", &[dim], first)?;
    let mut total = 0usize;
    for &part in parts {
        if part.rank() != first.rank() {
            return Err(ShapeError::Differ { a: first, b: part });
        }
        same(resized(part, dim, first.dim(dim))?, first)?;
        total = total.saturating_add(part.dim(dim));
    }
    resized(first, dim, total)
}

fn pad(dims: &[PadDim], x: ArrayShape, value: ArrayShape) -> Result<ArrayShape, ShapeError> {
    same(value, ArrayShape::scalar(x.dtype()))?;
    if dims.len() != x.rank() {
        return Err(ShapeError::PerDimension { field: "padding_config", got: dims.len(), of: x });
    }
    let size = |(dim, d): (usize, &PadDim)| {
        let n = x.dim(dim) as i64;
        let interior = d.interior.checked_mul((n - 1).max(0)).filter(|&i| i >= 0 && d.interior >= 0);
        let size = interior.and_then(|i| n.checked_add(i)?.checked_add(d.low)?.checked_add(d.high));
        size.and_then(|s| usize::try_from(s).ok()).ok_or(ShapeError::Pad { dim, pad: *d, of: x })
    };
    let sizes: Vec<usize> = dims.iter().enumerate().map(size).collect::<Result<_, _>>()?;
    sized(x.dtype(), sizes)
}

fn sort(dim: usize, keys: ArrayShape, operands: &[ArrayShape]) -> Result<Shape, ShapeError> {
    in_rank("sort dimension", &[dim], keys)?;
    for &x in operands {
        takes(!x.dtype().is_fp8(), x)?;
        same(x, keys.with_dtype(x.dtype()))?;
    }
    Ok(if operands.len() == 1 { keys.into() } else { Shape::Tuple(operands.to_vec()) })
}

/// Of the targets whose operands HLO.md's sources tell; of others the declared shape stands.
fn custom_call(call: &CustomCall, operands: &[ArrayShape], declared: &Shape) -> Result<Shape, ShapeError> {
    let config = || {
        let text = std::str::from_utf8(&call.config).ok();
        let number = text.and_then(|t| t.parse::<usize>().ok());
        number.ok_or_else(|| ShapeError::Config { target: call.target.clone(), config: call.config.clone() })
    };
    let float = |x: ArrayShape| takes(x.dtype().is_float(), x);
    Ok(match (call.target.as_str(), operands) {
        ("AwsNeuronTopK", &[x]) => {
            float(x)?;
            let (k, last) = (config()?, x.rank().checked_sub(1));
            let last = last.filter(|&d| k <= x.dim(d)).ok_or_else(|| bad_dims("k", &[k], x))?;
            let values = resized(x, last, k)?;
            Shape::Tuple(vec![values, values.with_dtype(DType::U32)])
        }
        ("AwsNeuronArgMax", &[x]) => {
            float(x)?;
            let dim = config()?;
            in_rank("dim", &[dim], x)?;
            sized(DType::U32, (0..x.rank()).filter(|&d| d != dim).map(|d| x.dim(d)))?.into()
        }
        ("AwsNeuronRmsNorm", &[x, weight, eps]) => {
            float(x)?;
            let dim = config()?;
            in_rank("dim", &[dim], x)?;
            same(eps, ArrayShape::scalar(x.dtype()))?;
            same(weight, sized(weight.dtype(), [x.dim(dim)])?)?;
            float(weight)?;
            // The type "of the original hidden", which the operand may have been widened from.
            let dtype = declared.array().ok_or(ShapeError::TupleResult)?.dtype();
            takes(dtype.is_float(), x.with_dtype(dtype))?;
            x.with_dtype(dtype).into()
        }
        ("AwsNeuronSoftmax", &[x]) => {
            float(x)?;
            in_rank("dim", &[config()?], x)?;
            x.into()
        }
        ("AwsNeuronSilu" | "AwsNeuronGeluApprxTanh", &[x]) => {
            float(x)?;
            x.into()
        }
        ("AwsNeuronTransferWithStaticRing", &[x]) => x.into(),
        (
            "AwsNeuronTopK"
            | "AwsNeuronArgMax"
            | "AwsNeuronRmsNorm"
            | "AwsNeuronSoftmax"
            | "AwsNeuronSilu"
            | "AwsNeuronGeluApprxTanh"
            | "AwsNeuronTransferWithStaticRing",
            _,
        ) => return Err(ShapeError::Operands { opcode: "custom-call", got: operands.len() }),
        _ => declared.clone(),
    })
}

/// Checks that `dims` are different dimensions of `of`.
fn in_rank(field: &'static str, dims: &[usize], of: ArrayShape) -> Result<(), ShapeError> {
    let mut seen = [false; crate::shape::MAX_RANK];
    for &d in dims {
        if d >= of.rank() || std::mem::replace(&mut seen[d], true) {
            return Err(bad_dims(field, dims, of));
        }
    }
    Ok(())
}

fn bad_dims(field: &'static str, dims: &[usize], of: ArrayShape) -> ShapeError {
    ShapeError::Dimensions { field, dims: dims.to_vec(), of }
}

fn same(a: ArrayShape, b: ArrayShape) -> Result<(), ShapeError> {
    if a == b { Ok(()) } else { Err(ShapeError::Differ { a, b }) }
}

fn takes(holds: bool, shape: ArrayShape) -> Result<(), ShapeError> {
    if holds { Ok(()) } else { Err(ShapeError::Type(shape.dtype())) }
}

fn sized(dtype: DType, dims: impl IntoIterator<Item = usize>) -> Result<ArrayShape, ShapeError> {
    let dims: Vec<usize> = dims.into_iter().collect();
    ArrayShape::new(dtype, &dims).ok_or(ShapeError::Range { dims })
}

fn resized(x: ArrayShape, dim: usize, size: usize) -> Result<ArrayShape, ShapeError> {
    sized(x.dtype(), x.dims().iter().enumerate().map(|(d, n)| if d == dim { size } else { n }))
}
