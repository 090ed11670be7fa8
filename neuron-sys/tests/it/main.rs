//! The crate against a stand-in library that is compiled here. None of this ran on Neuron hardware.

#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod headers;
mod lifecycle;
mod load;
mod runs;
mod standin;
mod status;
mod tensors;
