//! The binary `njoule`: hands the process's arguments and streams to the library and exits with what it says.
#![forbid(unsafe_code)]

mod allocator;

fn main() -> std::process::ExitCode {
    allocator::bound();
    njoule_cli::main()
}
