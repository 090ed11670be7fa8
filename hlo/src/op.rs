//! The operations we emit, each with its own attributes.
//!
//! A variant carries exactly the fields of `HloInstructionProto` that its opcode needs, so that an instruction without
//! its dimension numbers cannot be written down. Semantics are those of XLA's operation_semantics page; dimensions are
//! counted from the outermost.

use std::fmt;

use crate::module::Id;
use crate::{DType, Tensor};

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Input number `.0` of the computation.
    Parameter(u32),
    /// A literal.
    Constant(Tensor),
    /// Each element is its index along a dimension.
    Iota(usize),
    /// `(x)`, element by element.
    Unary(Unary),
    /// `(a, b)`, element by element; equal shapes, no implicit broadcast.
    Binary(Binary),
    /// `(x)`: operand dimension k becomes result dimension `.0[k]`; empty for a scalar.
    Broadcast(Vec<usize>),
    /// `(x)`: the same elements in other dimensions.
    Reshape,
    /// `(x)`: result dimension k is operand dimension `.0[k]`.
    Transpose(Vec<usize>),
    /// `(x)` in the result's type: floats to the nearest, ties to even; float to integer cut towards zero, saturating.
    Convert,
    /// `(x)` in memory of its own.
    Copy,
    /// `(lo, x, hi)`.
    Clamp,
    /// `(a, b)` to `pred`.
    Compare(Direction),
    /// `(p, a, b)`: a where p, else b.
    Select,
    /// `(x, init)`: folds the dimensions away.
    Reduce {
        /// Which.
        dims: Vec<usize>,
        /// `(T, T) -> T`.
        to_apply: Id,
    },
    /// `(a, b)`: result dimensions are batch, left free, right free; accumulates in f32, result in its own type.
    Dot(DotDims),
    /// `(table, indices)`: slices of a table.
    Gather(GatherDims),
    /// `(buffer, indices, updates)`: the buffer with slices written.
    Scatter(ScatterDims),
    /// `(x)`.
    Slice(Vec<SliceDim>),
    /// `(x, one s32 scalar per dimension)`: starts are clamped so that the slice is inside.
    DynamicSlice(Vec<usize>),
    /// `(x, update, one s32 scalar per dimension)`: starts are clamped likewise.
    DynamicUpdateSlice,
    /// `(x…)` one after the other along a dimension.
    Concatenate(usize),
    /// `(x, value)`.
    Pad(Vec<PadDim>),
    /// `(x…)`: root of the entry computation.
    Tuple,
    /// `(t)`: part number `.0`.
    GetTupleElement(usize),
    /// `(keys, payload…)` to a tuple, ordered along a dimension.
    Sort {
        /// Which.
        dim: usize,
        /// Whether equal keys keep their order.
        stable: bool,
        /// `(a, b, a0, b0, …) -> pred`: a single comparison of the keys.
        comparator: Id,
    },
    /// `(x…)`: the parameters of another computation.
    Call(Id),
    /// `(x)`: combined over the replicas of a group.
    AllReduce {
        /// Who takes part.
        group: Collective,
        /// `(T, T) -> T`.
        to_apply: Id,
    },
    /// `(x)`: the group's arrays one after the other along a dimension.
    AllGather {
        /// Who takes part.
        group: Collective,
        /// Along which dimension.
        dim: usize,
    },
    /// `(x)`: combined, and each replica of a group keeps its part.
    ReduceScatter {
        /// Who takes part.
        group: Collective,
        /// Which dimension is divided.
        dim: usize,
        /// `(T, T) -> T`.
        to_apply: Id,
    },
    /// An operation that the device's compiler knows by name.
    CustomCall(CustomCall),
}

macro_rules! names {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type {
            $($(#[$doc])* $variant,)*
        }

        impl $type {
            /// Every one.
            pub const ALL: &'static [$type] = &[$($type::$variant,)*];

            /// Its name in HLO.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }

            /// The one of this name.
            pub fn from_name(name: &str) -> Option<$type> {
                match name {
                    $($name => Some($type::$variant),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

names! {
    /// Operations on one value.
    Unary {
        /// -x, wrapping.
        Negate = "negate",
        /// |x|, wrapping.
        Abs = "abs",
        /// e^x.
        Exponential = "exponential",
        /// 1 / sqrt(x).
        Rsqrt = "rsqrt",
        /// 1 / (1 + e^-x).
        Logistic = "logistic",
        /// Of radians.
        Cosine = "cosine",
        /// Of radians.
        Sine = "sine",
        /// Natural logarithm.
        Log = "log",
        /// Hyperbolic tangent.
        Tanh = "tanh",
        /// Square root.
        Sqrt = "sqrt",
        /// Towards minus infinity.
        Floor = "floor",
    }
}

names! {
    /// Operations on two values.
    Binary {
        /// a + b, wrapping.
        Add = "add",
        /// a - b, wrapping.
        Subtract = "subtract",
        /// a * b, wrapping.
        Multiply = "multiply",
        /// a / b; integers towards zero, by zero all ones, the smallest by -1 itself.
        Divide = "divide",
        /// The larger, NaN if either is.
        Maximum = "maximum",
        /// The smaller, NaN if either is.
        Minimum = "minimum",
        /// Bit by bit.
        And = "and",
    }
}

names! {
    /// How `compare` compares; with NaN only NE holds.
    Direction {
        /// a == b.
        Eq = "EQ",
        /// a != b.
        Ne = "NE",
        /// a < b.
        Lt = "LT",
        /// a <= b.
        Le = "LE",
        /// a > b.
        Gt = "GT",
        /// a >= b.
        Ge = "GE",
    }
}

/// Which dimensions `dot` pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DotDims {
    /// Summed over, of the left operand.
    pub lhs_contracting: Vec<usize>,
    /// Their partners of the right.
    pub rhs_contracting: Vec<usize>,
    /// Kept, of the left.
    pub lhs_batch: Vec<usize>,
    /// Their partners of the right.
    pub rhs_batch: Vec<usize>,
}

/// How `gather` reads its indices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatherDims {
    /// Result dimensions that run over a slice.
    pub offset_dims: Vec<usize>,
    /// Slice dimensions of size 1 that the result leaves out.
    pub collapsed_slice_dims: Vec<usize>,
    /// Operand dimension of each index component.
    pub start_index_map: Vec<usize>,
    /// The dimension of the indices that holds the components; their rank where they are scalars.
    pub index_vector_dim: usize,
    /// Size of a slice, one per operand dimension.
    pub slice_sizes: Vec<usize>,
    /// A promise that the indices ascend.
    pub indices_are_sorted: bool,
}

/// How `scatter` reads its indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScatterDims {
    /// Dimensions of the updates that run over a window.
    pub update_window_dims: Vec<usize>,
    /// Window dimensions of size 1 that the updates leave out.
    pub inserted_window_dims: Vec<usize>,
    /// Operand dimension of each index component.
    pub scatter_dims_to_operand_dims: Vec<usize>,
    /// The dimension of the indices that holds the components; their rank where they are scalars.
    pub index_vector_dim: usize,
    /// A promise that the indices ascend.
    pub indices_are_sorted: bool,
    /// A promise that no index comes twice.
    pub unique_indices: bool,
    /// `(old, update) -> new`.
    pub to_apply: Id,
}

impl ScatterDims {
    /// Whole rows of a matrix, by a list of row numbers.
    pub fn rows() -> ScatterDims {
        ScatterDims {
            update_window_dims: vec![1],
            inserted_window_dims: vec![0],
            scatter_dims_to_operand_dims: vec![0],
            index_vector_dim: 1,
            indices_are_sorted: false,
            unique_indices: false,
            to_apply: Id::default(), // filled in by the builder
        }
    }
}

/// One dimension of a `slice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceDim {
    /// First index.
    pub start: usize,
    /// One past the last.
    pub limit: usize,
    /// At least 1.
    pub stride: usize,
}

/// One dimension of a `pad`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PadDim {
    /// Elements before; negative cuts.
    pub low: i64,
    /// Elements behind; negative cuts.
    pub high: i64,
    /// Elements between neighbours, not negative.
    pub interior: i64,
}

/// Who takes part in a collective.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collective {
    /// Replica numbers; empty means all replicas in one group.
    pub groups: Vec<Vec<u32>>,
    /// 0: replicas. Others tie partitions together, which we never do.
    pub channel_id: i64,
}

/// A `custom-call`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CustomCall {
    /// Such as `AwsNeuronTopK`.
    pub target: String,
    /// Its argument, ascii for all targets we know.
    pub config: Vec<u8>,
    /// 0 for Neuron.
    pub api_version: i32,
}

impl Op {
    /// Its opcode.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Parameter(_) => "parameter",
            Op::Constant(_) => "constant",
            Op::Iota(_) => "iota",
            Op::Unary(op) => op.name(),
            Op::Binary(op) => op.name(),
            Op::Broadcast(_) => "broadcast",
            Op::Reshape => "reshape",
            Op::Transpose(_) => "transpose",
            Op::Convert => "convert",
            Op::Copy => "copy",
            Op::Clamp => "clamp",
            Op::Compare(_) => "compare",
            Op::Select => "select",
            Op::Reduce { .. } => "reduce",
            Op::Dot(_) => "dot",
            Op::Gather(_) => "gather",
            Op::Scatter(_) => "scatter",
            Op::Slice(_) => "slice",
            Op::DynamicSlice(_) => "dynamic-slice",
            Op::DynamicUpdateSlice => "dynamic-update-slice",
            Op::Concatenate(_) => "concatenate",
            Op::Pad(_) => "pad",
            Op::Tuple => "tuple",
            Op::GetTupleElement(_) => "get-tuple-element",
            Op::Sort { .. } => "sort",
            Op::Call(_) => "call",
            Op::AllReduce { .. } => "all-reduce",
            Op::AllGather { .. } => "all-gather",
            Op::ReduceScatter { .. } => "reduce-scatter",
            Op::CustomCall(_) => "custom-call",
        }
    }

    /// The computation it calls.
    pub fn called(&self) -> Option<Id> {
        match self {
            Op::Reduce { to_apply, .. }
            | Op::Scatter(ScatterDims { to_apply, .. })
            | Op::AllReduce { to_apply, .. }
            | Op::ReduceScatter { to_apply, .. } => Some(*to_apply),
            Op::Sort { comparator, .. } => Some(*comparator),
            Op::Call(computation) => Some(*computation),
            _ => None,
        }
    }

    /// Its group, if it is a collective.
    pub fn collective(&self) -> Option<&Collective> {
        match self {
            Op::AllReduce { group, .. } | Op::AllGather { group, .. } | Op::ReduceScatter { group, .. } => Some(group),
            _ => None,
        }
    }
}

impl Unary {
    /// Whether it is defined on this type.
    pub fn takes(self, dtype: DType) -> bool {
        match self {
            Unary::Negate => dtype.is_float() || dtype.is_integer(),
            Unary::Abs => dtype.is_float() || matches!(dtype, DType::S8 | DType::S32 | DType::S64),
            _ => dtype.is_float(),
        }
    }
}

impl Binary {
    /// Whether it is defined on this type.
    pub fn takes(self, dtype: DType) -> bool {
        match self {
            Binary::And => dtype == DType::Pred || dtype.is_integer(),
            Binary::Maximum | Binary::Minimum => dtype == DType::Pred || dtype.is_integer() || dtype.is_float(),
            _ => dtype.is_float() || dtype.is_integer(),
        }
    }
}

/// What a called computation of two values does, as far as we call any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Combiner {
    /// `(a, b) -> a op b`.
    Binary(Binary),
    /// `(old, new) -> new`.
    Assign,
}

impl Combiner {
    /// Recognises a computation of two scalar parameters.
    pub fn of(computation: &crate::Computation) -> Option<Combiner> {
        let parameter = |id: Id| {
            let found = computation.instructions.iter().find(|i| i.id == id);
            found.and_then(|i| if let Op::Parameter(n) = i.op { Some(n) } else { None })
        };
        let root = computation.root()?;
        match (&root.op, &root.operands[..]) {
            (Op::Parameter(1), []) => Some(Combiner::Assign),
            (Op::Binary(op), &[a, b]) if parameter(a) == Some(0) && parameter(b) == Some(1) => {
                Some(Combiner::Binary(*op))
            }
            _ => None,
        }
    }

    /// Its name, for a computation.
    pub fn name(self) -> &'static str {
        match self {
            Combiner::Binary(op) => op.name(),
            Combiner::Assign => "assign",
        }
    }
}

/// The comparison of a sort's comparator: of the keys alone, `(a, b, a0, b0, …) -> a direction b`.
pub fn comparator(computation: &crate::Computation) -> Option<Direction> {
    let root = computation.root()?;
    let parameter = |id: Id, number| {
        computation.instructions.iter().any(|i| i.id == id && matches!(i.op, Op::Parameter(n) if n == number))
    };
    match (&root.op, &root.operands[..]) {
        (Op::Compare(direction), &[a, b]) if parameter(a, 0) && parameter(b, 1) => Some(*direction),
        _ => None,
    }
}

/// The opcodes of every [`Op`].
pub const OPCODES: [&str; 46] = [
    "abs",
    "add",
    "all-gather",
    "all-reduce",
    "and",
    "broadcast",
    "call",
    "clamp",
    "compare",
    "concatenate",
    "constant",
    "convert",
    "copy",
    "cosine",
    "custom-call",
    "divide",
    "dot",
    "dynamic-slice",
    "dynamic-update-slice",
    "exponential",
    "floor",
    "gather",
    "get-tuple-element",
    "iota",
    "log",
    "logistic",
    "maximum",
    "minimum",
    "multiply",
    "negate",
    "pad",
    "parameter",
    "reduce",
    "reduce-scatter",
    "reshape",
    "rsqrt",
    "scatter",
    "select",
    "sine",
    "slice",
    "sort",
    "sqrt",
    "subtract",
    "tanh",
    "transpose",
    "tuple",
];
