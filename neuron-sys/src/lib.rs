//! The Neuron Runtime (`libnrt.so.1`), opened at run time: nothing is linked, so njoule builds and runs where it is not.
//!
//! Three layers, each on the one before:
//! 1. [`bindings`]: made by bindgen from `include/njoule_nrt.h`, which this project wrote; committed, never edited.
//! 2. `call`: one function per call, a [`Status`] becomes a `Result`; still unsafe where order or lifetime matters.
//! 3. Handles that cannot be used wrongly: [`Library`] → [`Runtime`] → [`Model`], [`Tensor`], [`TensorSet`] → [`Run`].
//!
//! The Neuron runtime exists on 64-bit Linux only, and the layouts here are of that: elsewhere only [`sysfs`] is there,
//! which reads what the driver tells by files and needs no library.
//!
//! A handle keeps what it needs alive: dropped in any order, tensors go before their core and the runtime goes last.
//! Nothing here has run on Neuron hardware: the tests use a stand-in library that they compile.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use njoule_neuron_sys::{Lane, Library, Model, Run, Runtime, Tensor, TensorSet};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Environment variables (cores, timeout, logs) are set before this, while the process has one thread.
//! let runtime = Runtime::start(Library::open()?)?;
//! let core = runtime.core(0)?;
//! let model = Arc::new(Model::load(&runtime, core, &std::fs::read("decode.neff")?, "decode")?);
//!
//! let (mut inputs, mut outputs) = (TensorSet::new(&runtime)?, TensorSet::new(&runtime)?);
//! let cache = Tensor::on_core(&runtime, core, 1 << 20, "cache")?;
//! cache.fill(0, cache.size(), 0)?; // device memory is not zeroed
//! inputs.bind("input0", &cache)?;
//! outputs.bind("output0", &cache)?; // updated in place: the module says so with `input_output_alias`
//!
//! let mut run = Run::new(model, inputs, outputs)?;
//! Lane::new("core 0")?.execute(&mut run, Duration::from_secs(30))?;
//! # Ok(())
//! # }
//! ```

pub mod sysfs;

// Generated: C's names, no documentation but the header's, unsafe operations without comments.
#[rustfmt::skip]
#[allow(missing_docs, missing_debug_implementations, non_camel_case_types, non_snake_case, rustdoc::all)]
#[allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc, clippy::missing_const_for_fn, clippy::all)]
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod bindings;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod call;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod environment;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod error;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod instance;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod lane;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod layout;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod library;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod model;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod run;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod runtime;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod status;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod tensor;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod tensor_set;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod version;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use error::Error;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use instance::{Family, Instance};
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use lane::Lane;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use library::{Library, LoadError, Origin, Tried};
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use model::{DType, Model, TensorSpec};
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use run::Run;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use runtime::{Core, MemoryStats, Runtime};
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use status::{Action, Status};
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use tensor::{Allocation, Tensor};
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use tensor_set::TensorSet;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use version::Version;
