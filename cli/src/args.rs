//! The raw command line: what was typed, and no more.
//!
//! Two layers, as in ripgrep: the types here hold what clap parsed; each verb's `run` turns its own `Args` into values
//! that cannot be wrong before it does anything. A new verb is one variant of [`Verb`] and one file in `verbs/`.

use clap::{Args, Parser, Subcommand};

use crate::fetch::{Env, ModelRef};
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
    /// Answer a prompt, or many in one batch.
    Generate(verbs::generate::Args),
    /// Talk with a model.
    Chat(verbs::chat::Args),
    /// Serve a model over HTTP: OpenAI's and Anthropic's interfaces.
    Serve(Box<verbs::serve::Args>),
    /// What a server does right now: tokens per second, batch, queue, latencies.
    Top(verbs::top::Args),
    /// Whether a server answers: exit code 0 or 1.
    Health(verbs::health::Args),
    /// Answer a file of requests in OpenAI's batch format.
    Batch(Box<verbs::batch::Args>),
    /// Log-probabilities of given text or token ids; perplexity of a text file.
    Score(verbs::score::Args),
    /// Measure prefill and batched decode.
    Bench(Box<verbs::bench::Args>),
    /// Find the cheapest way to run a model on this machine, and keep it for `serve --objective tokens-per-joule`.
    Tune(Box<verbs::tune::Args>),
    /// Plan, compile and pack a model for AWS Inferentia2 or Trainium.
    #[cfg(target_os = "linux")]
    Build(verbs::build::Args),
    /// What a model is and what it costs, without loading it.
    Inspect(verbs::inspect::Args),
    /// How to serve a model on an AWS Neuron instance: cores, batch, buckets, memory, bounds of speed.
    Plan(verbs::plan::Args),
    /// What this machine has of AWS Neuron, and the first thing to fix.
    Doctor(verbs::doctor::Args),
    /// Find out on a Neuron chip what works: forms of modules, a layer, a model's logits, its speed.
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    Probe(verbs::probe::Args),
    /// Joules of this machine, of a command, a process, or another machine's agent.
    Energy(verbs::energy::Args),
    /// Get a model and print where it is.
    Pull(verbs::pull::Args),
    /// List the models that the caches hold.
    Models(verbs::models::Args),
    /// Print a completion script for a shell.
    Completions(verbs::completions::Args),
}

impl Verb {
    /// Whether it runs a model, on a Neuron device perhaps.
    pub fn may_open_a_device(&self) -> bool {
        #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
        if matches!(self, Verb::Probe(_)) {
            return true;
        }
        matches!(
            self,
            Verb::Generate(_)
                | Verb::Chat(_)
                | Verb::Serve(_)
                | Verb::Batch(_)
                | Verb::Score(_)
                | Verb::Bench(_)
                | Verb::Tune(_)
        )
    }

    /// Does it.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        match self {
            Verb::Generate(args) => args.run(context),
            Verb::Chat(args) => args.run(context),
            Verb::Serve(args) => args.run(context),
            Verb::Top(args) => args.run(context),
            Verb::Health(args) => args.run(context),
            Verb::Batch(args) => args.run(context),
            Verb::Score(args) => args.run(context),
            Verb::Bench(args) => args.run(context),
            Verb::Tune(args) => args.run(context),
            #[cfg(target_os = "linux")]
            Verb::Build(args) => args.run(context),
            Verb::Inspect(args) => args.run(context),
            Verb::Plan(args) => args.run(context),
            Verb::Doctor(args) => args.run(context),
            #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
            Verb::Probe(args) => args.run(context),
            Verb::Energy(args) => args.run(context),
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
    /// The same as a flag; without either, $NJOULE_MODEL or the default model
    #[arg(short, long, value_name = "MODEL", conflicts_with = "positional")]
    pub model: Option<String>,
}

impl ModelArgs {
    /// The model that was asked for: on the command line, else by `NJOULE_MODEL`, else the default one.
    ///
    /// The variable is read here because clap would take it for a flag that conflicts with the positional argument.
    pub fn resolve(&self, env: &Env) -> Result<ModelRef, UsageError> {
        let typed = self.positional.as_deref().or(self.model.as_deref());
        match typed.or_else(|| env.var("NJOULE_MODEL")) {
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
  njoule generate \"Explain why the sky is blue.\"   answer with the default model
  njoule chat -m model.gguf                        talk with a model
  njoule serve model.gguf --port 8000              an OpenAI-compatible server
  njoule batch -i in.jsonl -o out.jsonl            requests in OpenAI's batch format
  njoule bench -m model.gguf --batch 1,4,16        how fast this machine is
  njoule pull                                      get the default model
  njoule pull HuggingFaceTB/SmolLM2-135M-Instruct  get a model from the hub
  njoule models                                    what is in the caches
  njoule energy record -- COMMAND                  joules while a command runs
";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_model_on_the_command_line_goes_before_the_variable() {
        let env = Env::from_pairs([("NJOULE_MODEL", "random:of-the-variable")]);
        let resolve = |positional: Option<&str>, model: Option<&str>, env: &Env| {
            let args = ModelArgs { positional: positional.map(str::to_owned), model: model.map(str::to_owned) };
            args.resolve(env).unwrap().to_string()
        };
        assert_eq!(resolve(Some("random:a"), None, &env), "random:a");
        assert_eq!(resolve(None, Some("random:b"), &env), "random:b");
        assert_eq!(resolve(None, None, &env), "random:of-the-variable");
        assert_eq!(resolve(None, None, &Env::default()), crate::fetch::DEFAULT_MODEL);
    }

    #[test]
    fn exit_codes_tell_usage_from_failure() {
        let run = |line: &str| {
            let (mut out, mut err) = (vec![], vec![]);
            let code = crate::run(line.split(' ').map(Into::into), &mut out, &mut err);
            (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
        };
        let (code, out, err) = run("njoule pull -q random:tiny");
        assert_eq!((code, out.as_str(), err.as_str()), (0, "random:tiny\n", ""));
        let (code, out, err) = run("njoule pull -q /nowhere/m.gguf");
        assert_eq!((code, out.as_str(), err.as_str()), (1, "", "error: /nowhere/m.gguf: no such file or directory\n"));
        let (code, out, err) = run("njoule pull nonsense");
        assert!(code == 2 && out.is_empty() && err.starts_with("error: \"nonsense\" names no model"), "{code} {err}");
        let (code, out, err) = run("njoule pull -m random:a random:b");
        assert!(code == 2 && out.is_empty() && err.contains("cannot be used with"), "{code} {err}");
        let (code, out, err) = run("njoule --help");
        assert!(code == 0 && err.is_empty() && out.contains("Examples:"), "{code} {out}");
    }
}
