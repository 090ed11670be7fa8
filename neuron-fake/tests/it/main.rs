//! The stand-in library, driven through neuron-sys as njoule drives the real one, and the stand-in compiler.
// A child finds its test by the name of the closure that it is to run.
#![allow(clippy::redundant_closure)]

mod abi;
mod child;
mod collectives;
mod compiler;
mod executor;
mod faults;
mod lifecycle;
mod memory;
mod modules;
mod runs;
mod step;
mod tool;
mod variants;
