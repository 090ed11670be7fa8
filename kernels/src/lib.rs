//! CPU kernels of njoule.
//!
//! Weights are packed once ([`packed`]); a step is a [`plan::Plan`] of phases over one arena, run by a [`team::Team`]
//! with the kernels of the instruction set found at run time ([`isa::Kernels`]). The crate knows no model: it offers
//! matrix products over stored types, norms, rotary embedding, paged attention.
//!
//! Every result is bit-identical for any batch, chunking and number of threads (see [`gemm`] and [`attention`]).

// The traits and kernels below are documented where their meaning is not their name.
#![allow(clippy::missing_safety_doc)] // one contract for all kernels, stated at `Simd` and `Kernels`
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod acts;
pub mod attention;
pub mod buffer;
#[cfg(test)]
mod fixture;
pub mod gemm;
pub mod isa;
pub mod kv;
pub mod packed;
pub mod plan;
pub mod probe;
pub mod route;
pub mod rows;
#[cfg(target_os = "linux")]
pub mod shared;
#[allow(missing_docs)]
pub mod simd;
pub mod team;
