//! Flags that people type from memory of other servers: what is here under another name, and what is not needed.
//!
//! Invariant: a flag does what it says or is refused; one that changes nothing here is taken with a line that says so.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use njoule_models::chat::ChatTemplate;

use crate::args::UsageError;
use crate::fetch::ModelRef;
use crate::session::options::QuantArg;
use crate::session::{RunOptions, Text};
use crate::verbs::Context;

/// As typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "As other servers have them")]
pub struct FamiliarArgs {
    /// A chat template (Jinja) in the place of the model's
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// A directory whose tokenizer.json, with its chat template, is used in the place of the model's
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Branch, tag or commit of a model of the hub: MODEL@REVISION
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Seed of requests that give none [default: another one for each]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How weights are stored, by PyTorch's names: `bfloat16` is --quant bf16, `float32` is --quant none
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<DType>,
    /// Tokens of a cache block, which cannot be chosen: what is not so is refused
    #[arg(long, value_name = "N")]
    block_size: Option<NonZero<usize>>,
    #[command(flatten)]
    unneeded: Unneeded,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DType {
    /// As --quant says
    Auto,
    /// --quant bf16
    Bfloat16,
    /// There is no such type here
    #[value(alias = "half")]
    Float16,
    /// --quant none: the file's values, computed in f32
    #[value(alias = "float")]
    Float32,
}

/// What vLLM needs and this server does not.
#[derive(Debug, clap::Args)]
struct Unneeded {
    #[arg(long, hide = true)]
    enable_auto_tool_choice: bool,
    #[arg(long, hide = true, value_name = "NAME")]
    tool_call_parser: Option<String>,
    #[arg(long, hide = true, value_name = "NAME")]
    reasoning_parser: Option<String>,
    #[arg(long, hide = true, value_name = "SHARE")]
    gpu_memory_utilization: Option<f64>,
    #[arg(long, hide = true)]
    trust_remote_code: bool,
    #[arg(long, hide = true, alias = "no-enable-log-requests")]
    disable_log_requests: bool,
}

impl FamiliarArgs {
    /// Says of each flag that is not needed why.
    pub fn note_unneeded(&self, context: &Context<'_>) {
        let Unneeded { trust_remote_code, disable_log_requests, enable_auto_tool_choice, .. } = self.unneeded;
        let all = [
            (enable_auto_tool_choice, "--enable-auto-tool-choice", "tool calls are always read"),
            (self.unneeded.tool_call_parser.is_some(), "--tool-call-parser", "the chat template shows how calls look"),
            (
                self.unneeded.reasoning_parser.is_some(),
                "--reasoning-parser",
                "the chat template shows how thoughts look",
            ),
            (
                self.unneeded.gpu_memory_utilization.is_some(),
                "--gpu-memory-utilization",
                "the cache has room for --max-num-seqs sequences of --max-model-len tokens, within half of the free memory",
            ),
            (trust_remote_code, "--trust-remote-code", "no code of a model is ever run"),
            (
                disable_log_requests,
                "--disable-log-requests",
                "the log holds no prompts; --log-level warn leaves requests out",
            ),
        ];
        for (_, flag, why) in all.iter().filter(|(given, ..)| *given) {
            context.note(&format!("{flag} is not needed: {why}"));
        }
    }

    /// The model, in the revision that was named.
    pub fn revised(&self, model: ModelRef) -> Result<ModelRef, UsageError> {
        let Some(revision) = &self.revision else { return Ok(model) };
        let ModelRef::Hub(mut hub) = model else {
            return Err(UsageError(format!("--revision {revision}: {model} is no model of the hub")));
        };
        if hub.revision.replace(revision.clone()).is_some_and(|before| before != *revision) {
            return Err(UsageError(format!("--revision {revision}: the model's name says another one")));
        }
        // Once more, as if it had been typed there.
        ModelRef::parse(&ModelRef::Hub(hub).to_string()).map_err(|error| UsageError(error.to_string()))
    }

    /// The options, with weights stored as `--dtype` says.
    pub fn stored(&self, options: RunOptions) -> Result<RunOptions, UsageError> {
        let (name, quant) = match self.dtype {
            None | Some(DType::Auto) => return Ok(options),
            Some(DType::Bfloat16) => ("bfloat16", QuantArg::Bf16),
            Some(DType::Float32) => ("float32", QuantArg::None),
            Some(DType::Float16) => {
                let why = "--dtype float16: weights are stored as bfloat16 (--dtype bfloat16), in 8 or 4 bits (--quant int8, \
                     int4), or as in the file (--quant none)";
                return Err(UsageError(why.to_owned()));
            }
        };
        match options.quant_arg() {
            QuantArg::Auto => Ok(options.stored_as(quant)),
            given if given == quant => Ok(options),
            given => Err(UsageError(format!("--dtype {name} and --quant {} contradict each other", given.name()))),
        }
    }

    /// Refuses blocks of another size than `block_len`, if the cache has blocks at all.
    pub fn check_blocks(&self, block_len: usize, paged: bool) -> Result<(), UsageError> {
        match self.block_size {
            Some(asked) if !paged => {
                Err(UsageError(format!("--block-size {asked}: this cache is made of rows, not of blocks")))
            }
            Some(asked) if asked.get() != block_len => Err(UsageError(format!(
                "--block-size {asked}: blocks have {block_len} tokens here; leave the flag out"
            ))),
            _ => Ok(()),
        }
    }

    /// Seed of requests that give none.
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// What is wrong with the files, before a model is loaded.
    pub fn check_files(&self) -> anyhow::Result<()> {
        if let Some(path) = &self.chat_template {
            let source = read(path)?;
            ChatTemplate::new(&source, None, None).with_context(|| format!("--chat-template {}", path.display()))?;
        }
        match self.tokenizer() {
            Some(dir) if !dir.join("tokenizer.json").is_file() => {
                let why = format!(
                    "--tokenizer {}: there is no tokenizer.json; a directory that has one is needed",
                    dir.display()
                );
                Err(UsageError(why).into())
            }
            _ => Ok(()),
        }
    }

    /// Where the tokenizer is, if not with the model.
    pub fn tokenizer(&self) -> Option<&Path> {
        let given = self.tokenizer.as_deref()?;
        let is_file = given.file_name().is_some_and(|name| name == "tokenizer.json") && given.is_file();
        if is_file { given.parent() } else { Some(given) }
    }

    /// The text of a model of `vocab` tokens with the chat template that was named.
    pub fn dressed(&self, text: Text, vocab: usize) -> anyhow::Result<Text> {
        let tokens = text.tokenizer.vocab_size();
        if let Some(dir) = self.tokenizer().filter(|_| tokens > vocab) {
            let why = format!("--tokenizer {}: it has {tokens} tokens, the model {vocab}", dir.display());
            return Err(UsageError(why).into());
        }
        let Some(path) = &self.chat_template else { return Ok(text) };
        let template = ChatTemplate::new(&read(path)?, text.tokenizer.bos_token(), text.tokenizer.eos_token());
        let template = template.with_context(|| format!("--chat-template {}", path.display()))?;
        Ok(Text { template: Some(template), ..text })
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("--chat-template: cannot read {}", path.display()))
}
