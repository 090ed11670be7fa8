//! What can go wrong with a compile.

use std::path::PathBuf;
use std::time::Duration;

/// Why there is no NEFF.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// No compiler on this machine.
    #[error("no neuronx-cc: {tried}; {INSTALL}, or set NJOULE_NEURONX_CC to it")]
    NotFound {
        /// Where it was looked for.
        tried: String,
    },
    /// Something that is no compiler.
    #[error("{path} is no usable neuronx-cc: {what}; correct or unset NJOULE_NEURONX_CC, or {INSTALL}")]
    Unusable {
        /// Path.
        path: PathBuf,
        /// What it did.
        what: String,
    },
    /// A file or a process could not be had.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The compiler refused the module or failed.
    #[error("neuronx-cc failed on module {module} (exit code {exit}){}: {message}; {advice}; log: {log}", .code.as_ref().map(|c| format!(" with {c}")).unwrap_or_default())]
    Refused {
        /// Module.
        module: String,
        /// Exit code.
        exit: i32,
        /// Its error code, where it printed one.
        code: Option<String>,
        /// Its own words, shortened.
        message: String,
        /// What to do.
        advice: &'static str,
        /// Its whole output.
        log: PathBuf,
    },
    /// The compiler was killed from outside, or what it had started was.
    #[error("neuronx-cc was killed by signal {signal} on module {module}, after it had taken {}{}; log: {log}", Memory(*.peak), of_signal(*.signal))]
    Killed {
        /// Module.
        module: String,
        /// Signal.
        signal: i32,
        /// Most memory seen, in bytes; 0 where none could be read.
        peak: u64,
        /// Its output so far.
        log: PathBuf,
    },
    /// It took longer than was allowed.
    #[error("neuronx-cc had not finished module {module} after {limit:?} and was stopped; log: {log}")]
    Deadline {
        /// Module.
        module: String,
        /// What was allowed.
        limit: Duration,
        /// Its output so far.
        log: PathBuf,
    },
    /// Somebody asked to stop.
    #[error("the build was stopped; modules that are done stay in the cache, and the next build goes on from there")]
    Cancelled,
    /// It said success and left no NEFF, or a broken one.
    #[error("neuronx-cc reported success on module {module}, but its output is no NEFF: {what}; log: {log}")]
    Output {
        /// Module.
        module: String,
        /// What is wrong with it. Not by its path: it is removed with what the compile has left.
        what: String,
        /// Its output in words.
        log: PathBuf,
    },
}

impl CompileError {
    pub(super) fn io<'a>(
        action: &'static str,
        path: &'a std::path::Path,
    ) -> impl Fn(std::io::Error) -> CompileError + 'a {
        move |source| CompileError::Io { action, path: path.to_owned(), source }
    }
}

/// How to get the compiler.
const INSTALL: &str = "install it with `python3 -m pip install neuronx-cc --extra-index-url \
                       https://pip.repos.neuron.amazonaws.com` (x86-64 Linux, no Neuron device needed)";

/// Continues the sentence of [`CompileError::Killed`].
fn of_signal(signal: i32) -> &'static str {
    match signal {
        9 => {
            ": most likely the kernel ended it because memory ran out (see dmesg); build with --jobs 1, with smaller \
             buckets, or on a host with more memory: an artifact runs wherever it was built"
        }
        _ => "",
    }
}

struct Memory(u64);

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("an unknown amount of memory"),
            bytes => write!(f, "up to {:.2} GB of memory", bytes as f64 / 1e9),
        }
    }
}
