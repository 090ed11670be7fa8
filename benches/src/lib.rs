//! Benchmarks of njoule. Binaries: `step` times whole steps of the cpu backend without an engine around them.
//! `compare` runs njoule and llama.cpp in turn and prints the ratios. `serving` does so with their servers, under clients that
//! wait for their answers, and `arrivals` under requests that arrive by the clock. `host` tells what a step costs the host beside a
//! Neuron device, `load` what building and loading an artifact does, on stand-ins. `simulate` runs the server's policy on a
//! made-up machine, for its tokens per joule under declared watts.

pub mod flags;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod host;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod load;
pub mod servers;
pub mod simulated;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod standin;
