//! Stand-ins for what njoule needs of AWS Neuron: `libnrt.so.1` and `neuronx-cc`. Neither is a device nor a compiler, and
//! nothing that passes here has run on Neuron hardware.
//!
//! * The cdylib is reached through `NJOULE_NRT` alone and says FAKE in its version. It keeps the rules of a device: states,
//!   exclusive cores, memory budgets, poisoned memory, tensors by name and size, aliases, ranks that meet. What it executes
//!   it computes, with the evaluator of `njoule-hlo`, or with XLA (`NJOULE_PJRT`). Misuse is recorded, written to stderr, and
//!   counted by the extra symbol `neuron_fake_faults`. [`config`] lists the switches.
//! * `neuronx-cc-fake` is reached through `NJOULE_NEURONX_CC`: it verifies a module and packs it as a [`neff`].
//! * [`sysfs`] writes the driver's files for `NJOULE_SYSFS_ROOT`; [`variant`] hides symbols, as older libraries lack them.
//!
//! Invariant: no argument of a call, no handle and no file makes it fail otherwise than by a status, as long as pointers
//! point to what the ABI says they point to.

#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod abi;
pub mod clock;
mod collective;
pub mod compiler;
pub mod config;
mod core;
mod engine;
pub mod env;
mod execute;
mod handles;
mod inject;
pub mod instance;
mod memory;
mod misuse;
mod model;
pub mod neff;
mod queue;
mod runtime;
mod status;
pub mod sysfs;
pub mod tar;
mod tensor;
pub mod variant;
mod window;
