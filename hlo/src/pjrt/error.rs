//! What can go wrong between a module and its results.
#![deny(unsafe_code)]

use std::path::PathBuf;

use crate::{ArrayShape, Shape, VerifyError};

/// Why a plugin did not open, compile or run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // fields are what the message says they are
pub enum PjrtError {
    /// The loader does not take the file.
    #[error("{path} is no PJRT plugin: {problem}")]
    Open { path: PathBuf, problem: String },
    /// An API that is older than what was tried, or another.
    #[error("{path} has version {major}.{minor} of the PJRT C API with {functions} functions, 0.81 or later is needed")]
    Version { path: PathBuf, major: i32, minor: i32, functions: usize },
    /// A function that this plugin leaves out.
    #[error("the plugin has no {function}")]
    Missing { function: &'static str },
    /// The plugin's own words.
    #[error("{function}: {text}")]
    Call { function: &'static str, text: String },
    /// Not a module for XLA: found here, because there it may end the process.
    #[error(transparent)]
    Verify(Box<VerifyError>),
    /// A custom call without a plain lowering.
    #[error("instruction `{instruction}`: {target} has no plain form here")]
    CustomCall { instruction: String, target: String },
    /// Custom calls that would be a very long plain module.
    #[error("the custom calls take more than {limit} plain instructions")]
    Lowered { limit: usize },
    /// The client has fewer devices than replicas are asked for, or none is asked for.
    #[error("{replicas} replicas on {devices} devices")]
    Devices { replicas: usize, devices: usize },
    /// Inputs of more or fewer replicas than were compiled for.
    #[error("inputs of {got} replicas for a program of {want}")]
    Replicas { want: usize, got: usize },
    /// Too few or too many inputs.
    #[error("replica {replica}: {got} inputs for {want} parameters")]
    Inputs { replica: usize, want: usize, got: usize },
    /// An input of another shape.
    #[error("replica {replica}: parameter {parameter} is {want}, got {got}")]
    Input { replica: usize, parameter: usize, want: Shape, got: ArrayShape },
    /// The compiled program does not have the module's results.
    #[error("the compiled program has {got} results, the module {want}")]
    Results { want: usize, got: usize },
    /// A result that is not what the module says.
    #[error("a result is {want}, the plugin has {got} of {bytes} bytes")]
    Result { want: ArrayShape, got: String, bytes: usize },
}
