//! The stand-in library, driven through neuron-sys as njoule drives the real one, and the stand-in compiler.

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
