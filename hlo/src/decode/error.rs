//! What can be wrong with a file.

use crate::TensorError;
use crate::wire::WireError;

/// Why bytes are not a module of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not protobuf, or not of this schema.
    #[error("{place}: {source}")]
    Wire {
        /// The message.
        place: Place,
        /// What is wrong with it.
        source: WireError,
    },
    /// A field that the opcode needs.
    #[error("{place}: {field} is missing")]
    Missing {
        /// The message.
        place: Place,
        /// Its name in `hlo.proto`.
        field: &'static str,
    },
    /// An opcode that we do not emit.
    #[error("{place}: unknown opcode `{opcode}`")]
    Opcode {
        /// The instruction.
        place: Place,
        /// What it says.
        opcode: String,
    },
    /// A reduce of several arrays at once, which neuronx-cc has not.
    #[error("{place}: a reduce takes one array, this one has {operands} operands")]
    VariadicReduce {
        /// The instruction.
        place: Place,
        /// How many there are.
        operands: usize,
    },
    /// Not one of [`crate::DType::ALL`].
    #[error("{place}: element type {number} is not supported")]
    ElementType {
        /// The message.
        place: Place,
        /// PrimitiveType's number.
        number: i64,
    },
    /// Not row major, or a literal without layout.
    #[error("{place}: a layout is missing or not row major")]
    Layout {
        /// The message.
        place: Place,
    },
    /// A dimension whose size is known at run time only.
    #[error("{place}: dynamic dimensions are not supported")]
    Dynamic {
        /// The message.
        place: Place,
    },
    /// A tuple in a tuple.
    #[error("{place}: a tuple holds arrays only")]
    NestedTuple {
        /// The message.
        place: Place,
    },
    /// Sizes out of range ([`crate::Dims::new`]).
    #[error("{place}: dimensions {dims:?} are out of range")]
    Dims {
        /// The message.
        place: Place,
        /// As they are in the file.
        dims: Vec<i64>,
    },
    /// A number that cannot be.
    #[error("{place}: {field} is {value}")]
    Number {
        /// The message.
        place: Place,
        /// Its name in `hlo.proto`.
        field: &'static str,
        /// What it says.
        value: i64,
    },
    /// A literal whose elements are not as many as its shape says.
    #[error("{place}: literal: {source}")]
    Literal {
        /// The instruction.
        place: Place,
        /// What is wrong with it.
        source: TensorError,
    },
    /// A field that changes the meaning and that we do not read.
    #[error("{place}: {field} is not supported")]
    Unsupported {
        /// The message.
        place: Place,
        /// Its name in `hlo.proto`.
        field: &'static str,
    },
}

/// A message of a module, for an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The module itself.
    Module,
    /// A computation, by name.
    Computation(String),
    /// An instruction, by name.
    Instruction(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Module => f.write_str("module"),
            Place::Computation(name) => write!(f, "computation `{name}`"),
            Place::Instruction(name) => write!(f, "instruction `{name}`"),
        }
    }
}
