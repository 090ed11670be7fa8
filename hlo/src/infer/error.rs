//! What can be wrong with the shapes around an operation.

use crate::op::{DotDims, GatherDims, PadDim, ScatterDims, SliceDim};
use crate::{ArrayShape, DType};

/// Why an operation does not fit its operands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// The number of operands.
    #[error("{opcode} does not take {got} operands")]
    Operands {
        /// Its opcode.
        opcode: &'static str,
        /// How many there are.
        got: usize,
    },
    /// A tuple where an array belongs.
    #[error("an operand is a tuple")]
    TupleOperand,
    /// A tuple where an array belongs.
    #[error("the result is a tuple")]
    TupleResult,
    /// No such part.
    #[error("part {index} of a tuple of {parts}")]
    TupleIndex {
        /// Which was asked for.
        index: usize,
        /// How many there are.
        parts: usize,
    },
    /// Not defined on this type.
    #[error("not defined on {0}")]
    Type(DType),
    /// Shapes that must be equal.
    #[error("{a} and {b} differ")]
    Differ {
        /// One.
        a: ArrayShape,
        /// The other.
        b: ArrayShape,
    },
    /// Dimension numbers that are too large or come twice.
    #[error("{field} {dims:?} do not fit {of}")]
    Dimensions {
        /// Their name.
        field: &'static str,
        /// What they are.
        dims: Vec<usize>,
        /// Of what.
        of: ArrayShape,
    },
    /// Not one entry per dimension.
    #[error("{field}: {got} entries for {of}")]
    PerDimension {
        /// Its name.
        field: &'static str,
        /// How many entries.
        got: usize,
        /// Of what.
        of: ArrayShape,
    },
    /// Sizes out of range ([`crate::Dims::new`]).
    #[error("dimensions {dims:?} are out of range")]
    Range {
        /// What they would be.
        dims: Vec<usize>,
    },
    /// A reshape that gains or loses elements.
    #[error("{from} has not as many elements as {to}")]
    Elements {
        /// The operand.
        from: ArrayShape,
        /// The result.
        to: ArrayShape,
    },
    /// A broadcast whose dimensions do not ascend, or differ in size.
    #[error("{from} does not broadcast to {to} by dimensions {dims:?}")]
    Broadcast {
        /// Where the operand's dimensions go.
        dims: Vec<usize>,
        /// The operand.
        from: ArrayShape,
        /// The result.
        to: ArrayShape,
    },
    /// A dot whose paired dimensions differ.
    #[error("dot of {a} and {b} by {dims:?}")]
    Dot {
        /// The pairs.
        dims: Box<DotDims>,
        /// Left.
        a: ArrayShape,
        /// Right.
        b: ArrayShape,
    },
    /// A slice that is not inside.
    #[error("slice {slice:?} of dimension {dim} of {of}")]
    Slice {
        /// Which dimension.
        dim: usize,
        /// From where to where.
        slice: SliceDim,
        /// Of what.
        of: ArrayShape,
    },
    /// Padding that leaves less than nothing.
    #[error("padding {pad:?} of dimension {dim} of {of}")]
    Pad {
        /// Which dimension.
        dim: usize,
        /// How.
        pad: PadDim,
        /// Of what.
        of: ArrayShape,
    },
    /// Dimension numbers of a gather that contradict each other or the shapes.
    #[error("gather of {indices} from {table}: {what} in {dims:?}")]
    Gather {
        /// Which rule.
        what: &'static str,
        /// The dimension numbers.
        dims: Box<GatherDims>,
        /// Operand.
        table: ArrayShape,
        /// Indices.
        indices: ArrayShape,
    },
    /// Dimension numbers of a scatter that contradict each other or the shapes.
    #[error("scatter of {} by {} into {}: {what} in {dims:?}", .shapes[2], .shapes[1], .shapes[0])]
    Scatter {
        /// Which rule.
        what: &'static str,
        /// The dimension numbers.
        dims: Box<ScatterDims>,
        /// Buffer, indices, updates.
        shapes: Box<[ArrayShape; 3]>,
    },
    /// A custom call's argument that is not a number.
    #[error("backend_config of {target} is {config:?}, not a number")]
    Config {
        /// The target.
        target: String,
        /// Its argument.
        config: Vec<u8>,
    },
}
