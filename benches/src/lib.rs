//! Benchmarks of njoule. Binaries: `step` times whole steps of the cpu backend without an engine around them.
//! `compare` runs njoule and llama.cpp in turn and prints the ratios. `serving` does so with their servers, under clients that
//! wait for their answers, and `arrivals` under requests that arrive by the clock.

pub mod flags;
pub mod servers;
