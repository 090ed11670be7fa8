//! The binary `njoule`: hands the process's arguments and streams to the library and exits with what it says.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    njoule_cli::main()
}
