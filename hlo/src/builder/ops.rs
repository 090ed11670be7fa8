//! One method per operation.
//!
//! Names and operand order are HLO's. `add`, `reduce` and the like are not operator traits: an instruction is appended,
//! which should be seen.

use super::{Builder, Function, Val, identity};
use crate::op::*;
use crate::{ArrayShape, DType};

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident($($x:ident),*) = $via:ident($op:expr);)*) => {
        $($(#[$doc])* #[track_caller]
        pub fn $name(&mut self, $($x: Val),*) -> Val {
            self.$via($op, $($x),*)
        })*
    };
}

impl Builder {
    methods! {
        /// -x.
        negate(x) = unary(Unary::Negate);
        /// |x|.
        abs(x) = unary(Unary::Abs);
        /// e^x.
        exponential(x) = unary(Unary::Exponential);
        /// 1 / sqrt(x).
        rsqrt(x) = unary(Unary::Rsqrt);
        /// 1 / (1 + e^-x).
        logistic(x) = unary(Unary::Logistic);
        /// Cosine of radians.
        cosine(x) = unary(Unary::Cosine);
        /// Sine of radians.
        sine(x) = unary(Unary::Sine);
        /// Natural logarithm.
        log(x) = unary(Unary::Log);
        /// Hyperbolic tangent.
        tanh(x) = unary(Unary::Tanh);
        /// Square root.
        sqrt(x) = unary(Unary::Sqrt);
        /// Towards minus infinity.
        floor(x) = unary(Unary::Floor);
        /// a + b.
        add(a, b) = binary(Binary::Add);
        /// a - b.
        subtract(a, b) = binary(Binary::Subtract);
        /// a * b.
        multiply(a, b) = binary(Binary::Multiply);
        /// a / b.
        divide(a, b) = binary(Binary::Divide);
        /// The larger.
        maximum(a, b) = binary(Binary::Maximum);
        /// The smaller.
        minimum(a, b) = binary(Binary::Minimum);
        /// Bit by bit.
        and(a, b) = binary(Binary::And);
    }

    /// [`Op::Unary`].
    #[track_caller]
    pub fn unary(&mut self, op: Unary, x: Val) -> Val {
        self.array(Op::Unary(op), &[x], x.shape)
    }

    /// [`Op::Binary`].
    #[track_caller]
    pub fn binary(&mut self, op: Binary, a: Val, b: Val) -> Val {
        self.array(Op::Binary(op), &[a, b], a.shape)
    }

    /// [`Op::Iota`].
    #[track_caller]
    pub fn iota(&mut self, dtype: DType, dims: &[usize], along: usize) -> Val {
        let shape = self.shape(dtype, dims);
        self.array(Op::Iota(along), &[], shape)
    }

    /// [`Op::Broadcast`]: dimension k of x becomes dimension `map[k]` of `dims`.
    #[track_caller]
    pub fn broadcast(&mut self, x: Val, map: &[usize], dims: &[usize]) -> Val {
        let shape = self.shape(x.dtype(), dims);
        self.array(Op::Broadcast(map.to_vec()), &[x], shape)
    }

    /// [`Op::Reshape`].
    #[track_caller]
    pub fn reshape(&mut self, x: Val, dims: &[usize]) -> Val {
        let shape = self.shape(x.dtype(), dims);
        self.array(Op::Reshape, &[x], shape)
    }

    /// [`Op::Transpose`].
    #[track_caller]
    pub fn transpose(&mut self, x: Val, permutation: &[usize]) -> Val {
        self.array(Op::Transpose(permutation.to_vec()), &[x], x.shape)
    }

    /// [`Op::Convert`]; nothing where x is of that type.
    #[track_caller]
    pub fn convert(&mut self, x: Val, dtype: DType) -> Val {
        if x.dtype() == dtype { x } else { self.array(Op::Convert, &[x], x.shape.with_dtype(dtype)) }
    }

    /// [`Op::Copy`].
    #[track_caller]
    pub fn copy(&mut self, x: Val) -> Val {
        self.array(Op::Copy, &[x], x.shape)
    }

    /// [`Op::Clamp`].
    #[track_caller]
    pub fn clamp(&mut self, lo: Val, x: Val, hi: Val) -> Val {
        self.array(Op::Clamp, &[lo, x, hi], x.shape)
    }

    /// [`Op::Compare`].
    #[track_caller]
    pub fn compare(&mut self, direction: Direction, a: Val, b: Val) -> Val {
        self.array(Op::Compare(direction), &[a, b], a.shape.with_dtype(DType::Pred))
    }

    /// [`Op::Select`].
    #[track_caller]
    pub fn select(&mut self, p: Val, a: Val, b: Val) -> Val {
        self.array(Op::Select, &[p, a, b], a.shape)
    }

    /// [`Op::Reduce`], from the operation's identity: 0 of a sum, the lowest finite number of a maximum.
    #[track_caller]
    pub fn reduce(&mut self, op: Binary, x: Val, dims: &[usize]) -> Val {
        let Some(identity) = identity(op, x.dtype()) else {
            self.fail(&format!("no reduction by {op} of {}", x.dtype()));
        };
        let init = self.constant(identity);
        let to_apply = self.combiner(Combiner::Binary(op), x.dtype());
        self.array(Op::Reduce { dims: dims.to_vec(), to_apply }, &[x, init], x.shape)
    }

    /// [`Op::Dot`] with a result of type `dtype`.
    #[track_caller]
    pub fn dot(&mut self, a: Val, b: Val, dims: DotDims, dtype: DType) -> Val {
        self.array(Op::Dot(dims), &[a, b], ArrayShape::scalar(dtype))
    }

    /// `a [m, k] · b [k, n]`, or `b [n, k]` where `b_rows` says that b has its results as rows.
    #[track_caller]
    pub fn matmul(&mut self, a: Val, b: Val, b_rows: bool, dtype: DType) -> Val {
        let dims =
            DotDims { lhs_contracting: vec![1], rhs_contracting: vec![usize::from(b_rows)], ..DotDims::default() };
        self.dot(a, b, dims, dtype)
    }

    /// A product of floats of one type, in f32: accumulated and kept so, or by [`super::Options`] rounded to the operands' type
    /// on the way.
    #[track_caller]
    pub fn product(&mut self, a: Val, b: Val, dims: DotDims) -> Val {
        let dtype = if self.options().narrow_products { a.dtype() } else { DType::F32 };
        let product = self.dot(a, b, dims, dtype);
        self.convert(product, DType::F32)
    }

    /// [`Op::Gather`].
    #[track_caller]
    pub fn gather(&mut self, table: Val, indices: Val, dims: GatherDims) -> Val {
        self.array(Op::Gather(dims), &[table, indices], table.shape)
    }

    /// [`Op::Scatter`] that overwrites; `dims.to_apply` is filled in.
    #[track_caller]
    pub fn scatter(&mut self, buffer: Val, indices: Val, updates: Val, dims: ScatterDims) -> Val {
        let to_apply = self.combiner(Combiner::Assign, buffer.dtype());
        self.array(Op::Scatter(ScatterDims { to_apply, ..dims }), &[buffer, indices, updates], buffer.shape)
    }

    /// [`Op::Slice`], whole, one `start..limit` per dimension.
    #[track_caller]
    pub fn slice(&mut self, x: Val, ranges: &[std::ops::Range<usize>]) -> Val {
        let dims = ranges.iter().map(|r| SliceDim { start: r.start, limit: r.end, stride: 1 }).collect();
        self.slice_strided(x, dims)
    }

    /// [`Op::Slice`] of one dimension, all of the others.
    #[track_caller]
    pub fn slice_dim(&mut self, x: Val, dim: usize, range: std::ops::Range<usize>) -> Val {
        let ranges: Vec<_> = (0..x.rank()).map(|d| if d == dim { range.clone() } else { 0..x.dim(d) }).collect();
        self.slice(x, &ranges)
    }

    /// [`Op::Slice`].
    #[track_caller]
    pub fn slice_strided(&mut self, x: Val, dims: Vec<SliceDim>) -> Val {
        self.array(Op::Slice(dims), &[x], x.shape)
    }

    /// [`Op::DynamicSlice`].
    #[track_caller]
    pub fn dynamic_slice(&mut self, x: Val, starts: &[Val], sizes: &[usize]) -> Val {
        let operands = [&[x], starts].concat();
        self.array(Op::DynamicSlice(sizes.to_vec()), &operands, x.shape)
    }

    /// [`Op::DynamicUpdateSlice`].
    #[track_caller]
    pub fn dynamic_update_slice(&mut self, x: Val, update: Val, starts: &[Val]) -> Val {
        let operands = [&[x, update], starts].concat();
        self.array(Op::DynamicUpdateSlice, &operands, x.shape)
    }

    /// [`Op::Concatenate`].
    #[track_caller]
    pub fn concatenate(&mut self, parts: &[Val], dim: usize) -> Val {
        self.check(!parts.is_empty(), || "a concatenation of nothing".into());
        self.array(Op::Concatenate(dim), parts, parts[0].shape)
    }

    /// [`Op::Pad`].
    #[track_caller]
    pub fn pad(&mut self, x: Val, value: Val, dims: Vec<PadDim>) -> Val {
        self.array(Op::Pad(dims), &[x, value], x.shape)
    }

    /// [`Op::Sort`] by the first operand: `Lt` ascending, `Gt` descending.
    #[track_caller]
    pub fn sort(&mut self, operands: &[Val], dim: usize, direction: Direction, stable: bool) -> Vec<Val> {
        self.check(!operands.is_empty(), || "a sort of nothing".into());
        let comparator = self.comparator(direction, operands);
        let op = Op::Sort { dim, stable, comparator };
        match operands {
            [one] => vec![self.array(op, operands, one.shape)],
            _ => self.tuple_parts(op, operands, vec![]),
        }
    }

    /// [`Op::Call`].
    #[track_caller]
    pub fn call(&mut self, function: &Function, arguments: &[Val]) -> Vec<Val> {
        let shapes: Vec<ArrayShape> = arguments.iter().map(Val::shape).collect();
        self.check(shapes == function.parameters, || format!("{shapes:?} for {:?}", function.parameters));
        match function.results[..] {
            [one] => vec![self.array(Op::Call(function.id), arguments, one)],
            _ => self.tuple_parts(Op::Call(function.id), arguments, function.results.clone()),
        }
    }

    /// [`Op::AllReduce`] within each group; an empty list means all replicas.
    #[track_caller]
    pub fn all_reduce(&mut self, x: Val, op: Binary, groups: &[Vec<u32>]) -> Val {
        let to_apply = self.combiner(Combiner::Binary(op), x.dtype());
        self.array(Op::AllReduce { group: group(groups), to_apply }, &[x], x.shape)
    }

    /// [`Op::AllGather`] within each group, which must be written out: their size is the result's.
    #[track_caller]
    pub fn all_gather(&mut self, x: Val, dim: usize, groups: &[Vec<u32>]) -> Val {
        self.check(!groups.is_empty(), || "an all-gather names its groups".into());
        self.array(Op::AllGather { group: group(groups), dim }, &[x], x.shape)
    }

    /// [`Op::ReduceScatter`] within each group, which must be written out.
    #[track_caller]
    pub fn reduce_scatter(&mut self, x: Val, op: Binary, dim: usize, groups: &[Vec<u32>]) -> Val {
        self.check(!groups.is_empty(), || "a reduce-scatter names its groups".into());
        let to_apply = self.combiner(Combiner::Binary(op), x.dtype());
        self.array(Op::ReduceScatter { group: group(groups), dim, to_apply }, &[x], x.shape)
    }
}

fn group(groups: &[Vec<u32>]) -> Collective {
    Collective { groups: groups.to_vec(), channel_id: 0 }
}
