//! HLO modules as neuronx-cc takes them, without a line of XLA.
//!
//! A lowering writes a [`Module`] through a [`Builder`], which infers and checks every shape at the call. [`encode`] gives
//! the bytes of an `HloModuleProto`: the same module always gives the same bytes, because they are the compile cache's
//! key. [`verify`] holds what XLA's own verifier insists on and what neuronx-cc documents for each [`Target`].
//! [`Executable`] runs a module on the CPU, so that whatever was lowered can be compared with another backend without a
//! device; its results are themselves compared with XLA's in `tests/xla.rs`. With the feature `pjrt`, XLA itself can run it.
//!
//! Arrays are dense and row major, dimensions are static, tuples hold arrays only: nothing else is emitted, and the
//! decoder refuses it by name.
#![deny(unsafe_code)]

pub mod builder;
mod decode;
mod dtype;
mod encode;
pub mod eval;
mod fp8;
pub mod idioms;
mod infer;
mod module;
pub mod op;
#[cfg(feature = "pjrt")]
#[allow(unsafe_code)] // a C API: the one place
pub mod pjrt;
mod print;
mod shape;
mod tensor;
mod verify;
mod wire;

pub use builder::{Builder, Options, Val};
pub use decode::{DecodeError, Place, decode};
pub use dtype::DType;
pub use encode::encode;
pub use eval::{EvalError, EvalOptions, Executable, Failed};
pub use fp8::{F8E4M3, F8E4M3FN, F8E5M2};
pub use infer::ShapeError;
pub use module::{Alias, AliasKind, Computation, Id, Instruction, Module, Signature};
pub use op::Op;
pub use shape::{ArrayShape, Dims, Shape};
pub use tensor::{Data, Element, Tensor, TensorError};
pub use verify::{Target, VerifyError, verify};
pub use wire::WireError;
