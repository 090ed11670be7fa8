//! One file per verb, and what they share.

pub mod completions;
pub mod models;
pub mod pull;

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
}
