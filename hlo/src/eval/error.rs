//! What can go wrong in a run.

use crate::{ArrayShape, Shape, VerifyError};

/// Why a module was not run to its end.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // fields are what the message says they are
pub enum EvalError {
    /// Not a module for the target.
    #[error(transparent)]
    Verify(Box<VerifyError>),
    /// A custom call without a plain lowering.
    #[error("instruction `{instruction}`: {target} is not known here")]
    CustomCall { instruction: String, target: String },
    /// Custom calls that would be a very long plain module.
    #[error("the custom calls take more than {limit} plain instructions")]
    Lowered { limit: usize },
    /// Too few or too many inputs.
    #[error("replica {replica}: {got} inputs for {want} parameters")]
    Inputs { replica: usize, want: usize, got: usize },
    /// An input of another shape.
    #[error("replica {replica}: parameter {parameter} is {want}, got {got}")]
    Input { replica: usize, parameter: usize, want: Shape, got: ArrayShape },
    /// A collective whose groups are not the replicas there are.
    #[error("instruction `{instruction}`: its groups do not hold each of {replicas} replicas once")]
    Replicas { instruction: String, replicas: usize },
    /// What the device reports as NRT_EXEC_OOB (1006).
    #[error("instruction `{instruction}`: index {index} is not in 0..={most}")]
    Index { instruction: String, index: i64, most: i64 },
    /// [`crate::EvalOptions::max_bytes`].
    #[error("instruction `{instruction}`: no room for {shape} in {limit} bytes")]
    Memory { instruction: String, shape: Shape, limit: usize },
    /// [`crate::EvalOptions::max_work`].
    #[error("more than {limit} elements of work")]
    Work { limit: u64 },
}
