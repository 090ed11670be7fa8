//! `neuronx-cc-fake`: stands in for neuronx-cc, reached through `NJOULE_NEURONX_CC`. See [`neuron_fake::compiler`].

use std::process::{Command, ExitCode};

use neuron_fake::compiler::{End, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        End::Exit(code) => ExitCode::from(code),
        End::Abort => std::process::abort(),
        End::Kill => {
            // As the kernel does when memory runs out: no word, no exit code.
            let killed = Command::new("sh").args(["-c", "kill -9 $PPID"]).status();
            eprintln!("neuronx-cc-fake: kill -9 did not work: {killed:?}");
            ExitCode::FAILURE
        }
    }
}
