//! One file per verb, and what they share.

pub mod batch;
pub mod bench;
#[cfg(target_os = "linux")]
pub mod build;
pub mod chat;
pub mod completions;
pub mod doctor;
pub mod energy;
pub mod generate;
pub mod health;
pub mod inspect;
pub mod models;
pub mod plan;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod probe;
pub mod pull;
pub mod score;
pub mod serve;
pub mod top;
pub mod tune;
mod whole;

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use crate::args::Global;
use crate::fetch::{Env, FetchOptions, Reporter, Silent, Terminal};

/// What a verb is given besides its arguments.
pub struct Context<'a> {
    /// The result goes here and nothing else.
    pub out: &'a mut dyn Write,
    /// How models are got: environment, offline, progress on stderr.
    pub fetch: FetchOptions,
    /// `--quiet`.
    pub quiet: bool,
    /// Whether colour may be used on `out`.
    pub colour: bool,
}

impl<'a> Context<'a> {
    /// The context of a process.
    pub fn new(global: &Global, out: &'a mut dyn Write) -> Self {
        let env = Env::from_process();
        let reporter: Arc<dyn Reporter> = if global.quiet { Arc::new(Silent) } else { Arc::new(Terminal::new()) };
        let colour = env.var("NO_COLOR").is_none() && std::io::stdout().is_terminal();
        let mut fetch = FetchOptions::new(env, reporter);
        fetch.offline |= global.offline;
        Context { out, fetch, quiet: global.quiet, colour }
    }

    /// Says something that is no result, unless `--quiet`.
    pub fn note(&self, text: &str) {
        self.fetch.reporter.note(text);
    }

    /// Whether a line of progress may be shown and wiped again.
    pub fn progress_line(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }
}

/// A size of /proc/self/status, such as `VmHWM:`, the largest resident size so far.
fn proc_status_bytes(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
