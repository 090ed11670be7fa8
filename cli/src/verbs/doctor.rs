//! `njoule doctor`: what this machine has of AWS Neuron, what does not go together, and the first thing to fix.
//!
//! It reads files and asks the library what it tells without being started: nothing is written (a write to a device's
//! `reset` resets it) and no core is taken, unless `--init` asks for that.
//!
//! Exit code: 1 if something that should work does not, that is where there is a device or something names one; else 0,
//! also where there is none at all.

mod facts;
mod host;
pub(super) mod library;
mod report;
mod software;
#[cfg(test)]
mod tests;
mod variables;
mod verdict;
mod versions;

use self::facts::Facts;
use self::report::Report;
use self::verdict::Verdict;
use super::Context;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Also start the runtime: takes the cores from every other process for a moment
    #[arg(long)]
    init: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The machine cannot serve although something says that it should: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsound(String);

impl Args {
    /// Looks and prints.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let facts = Facts::gather(&context.fetch.env, self.init);
        let (verdict, findings) = verdict::judge(&facts);
        let report = Report { facts: &facts, verdict, findings: &findings };
        match self.json {
            true => writeln!(context.out, "{}", report.json())?,
            false => report.print(context.out)?,
        }
        match (verdict, report.first()) {
            (Verdict::Broken, Some(first)) => Err(Unsound(first.what.clone()).into()),
            _ => Ok(()),
        }
    }
}

const EXAMPLES: &str = "\
Exit code: 0 if the machine can serve on Neuron, or has no Neuron device at all (CPU only); 1 if something that should
work does not: there is a device, or a variable or the instance's type names one.

Examples:
  njoule doctor                the report
  njoule doctor --init         the runtime as well: no other process may hold the cores
  njoule doctor --json | jq .first_fix
";
