//! `njoule completions SHELL`: the completion script of a shell, on stdout.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Context;
use crate::args::Cli;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell to print for.
    shell: Shell,
}

impl Args {
    /// Prints the script.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        clap_complete::generate(self.shell, &mut Cli::command(), "njoule", &mut context.out);
        Ok(())
    }
}
