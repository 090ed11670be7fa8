//! What the binary `njoule` does, as a library: arguments, verbs, and everything that gets a model.
//!
//! Verbs write to the streams they are handed and return errors; [`main`] alone prints an error and chooses the exit
//! code: 0 done, 1 failed, 2 the command line was wrong, 70 the engine of a server was lost, 130 stopped by Ctrl-C;
//! `energy record -- COMMAND` ends with the command's own; `bench compare` says 10, 11 or 12 where it found a difference or
//! could not compare.
#![forbid(unsafe_code)]

pub mod args;
mod commit;
pub mod config;
pub mod fetch;
pub mod session;
pub mod verbs;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::args::UsageError;
use crate::config::{ParseError, Parsed};
use crate::session::Interrupted;
use crate::verbs::Context;
use crate::verbs::bench::Compared;
use crate::verbs::energy::CommandEnded;
use crate::verbs::serve::EngineLost;

/// Runs the process: its one exit point.
pub fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Some(code) = njoule_runtime::backend::neuron::compiler::keeper::enter() {
        return code;
    }
    let mut out = io::stdout().lock();
    let code = run(std::env::args_os(), &mut out, &mut io::stderr());
    #[cfg(target_os = "linux")]
    njoule_runtime::backend::neuron::executor::close();
    ExitCode::from(code)
}

/// Runs one command line and returns its exit code; `out` gets the result, `err` the one line of an error.
pub fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let cli = match config::parse(args) {
        Ok(Parsed::Run(cli)) => cli,
        Ok(Parsed::Print(text)) => return if write!(out, "{text}").is_ok() { 0 } else { FAILED },
        Err(ParseError::Config(error)) => {
            let _ = writeln!(err, "error: {error}");
            return USAGE;
        }
        Err(ParseError::Clap(error, file)) => {
            // Help and version are "errors" that go to stdout with code 0.
            let stream: &mut dyn Write = if error.use_stderr() { err } else { out };
            let text = error.render();
            let colour = std::env::var_os("NO_COLOR").is_none() && is_terminal(error.use_stderr());
            let written = if colour { write!(stream, "{}", text.ansi()) } else { write!(stream, "{text}") };
            // clap does not know where a default came from.
            if let Some(file) = file.filter(|_| error.use_stderr()) {
                let _ = writeln!(err, "with the settings of {}", file.display());
            }
            return if written.is_ok() { u8::try_from(error.exit_code()).unwrap_or(FAILED) } else { FAILED };
        }
    };
    // Before there is a second thread, and not where the environment is looked at as the user has it.
    #[cfg(target_os = "linux")]
    if cli.verb.may_open_a_device() {
        njoule_runtime::backend::neuron::executor::prepare_process();
    }
    let mut context = Context::new(&cli.global, out);
    let done = cli.verb.run(&mut context).and_then(|()| Ok(context.out.flush()?));
    match done {
        Ok(()) => 0,
        Err(error) if is_broken_pipe(&error) => 0, // the reader has seen enough, as with `njoule ... | head`
        Err(error) if error.is::<Interrupted>() => INTERRUPTED, // what there was has been printed
        // The command has said itself what went wrong.
        Err(error) if error.is::<CommandEnded>() => error.downcast_ref().map_or(FAILED, |CommandEnded(code)| *code),
        Err(error) if error.is::<Compared>() => error.downcast_ref().map_or(FAILED, |Compared(verdict)| verdict.code()),
        Err(error) => {
            // Nothing is left to do if even this cannot be written.
            let _ = writeln!(err, "error: {}", told(&error));
            match () {
                () if error.is::<UsageError>() => USAGE,
                () if error.is::<EngineLost>() => ENGINE_LOST,
                () => FAILED,
            }
        }
    }
}

/// An error and what led to it, in one line. Some say their cause themselves: that is not said twice.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.ends_with(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

fn is_terminal(stderr: bool) -> bool {
    use std::io::IsTerminal;
    if stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// EX_SOFTWARE of sysexits.h: a supervisor should start the process anew.
const ENGINE_LOST: u8 = 70;
/// 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;
