//! What a step costs the host beside a Neuron device: `host [--latency 5ms] [--tokens 400] [--batches 1,8,32] [--only CASE]
//! [--tokenizer DIR]`.
//!
//! `cargo run --release -p njoule-benches --bin host`, on a machine that does nothing else; two idle cores are enough. The
//! stand-in's library is built along. Grammars are over a made-up vocabulary of the model's size, or that of `DIR`.

use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn main() -> ExitCode {
    njoule_benches::host::main()
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn main() -> ExitCode {
    eprintln!("error: the stand-in for libnrt is for 64-bit Linux");
    ExitCode::from(2)
}
