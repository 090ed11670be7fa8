//! Memory and time of building and loading an artifact, on the stand-ins: `load [--model llama-3.1-8b] [--quant int8|bf16]
//! [--tp 2] [--times 3] [--dir DIR]`.
//!
//! `cargo run --release -p njoule-benches --bin load`. Models are random ones of a published shape. The artifact is written
//! to a directory that is removed afterwards, in DIR if given; disk and memory must hold its weights once.

use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn main() -> ExitCode {
    njoule_benches::load::main()
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn main() -> ExitCode {
    eprintln!("error: the stand-in for libnrt is for 64-bit Linux");
    ExitCode::from(2)
}
