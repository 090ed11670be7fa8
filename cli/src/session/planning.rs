//! The flags that say what is planned for a Neuron instance, shared by `plan` and `build`: the same words mean the same.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use njoule_runtime::backend::Quant;
use njoule_runtime::backend::neuron::plan::{Assumptions, Instance, Instances, Lengths, Objective, Wish};

use super::Model;
use super::options::KvArg;
use crate::args::UsageError;

/// What is planned, as typed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Planning")]
pub struct PlanArgs {
    /// What to be best at
    #[arg(long, value_enum, default_value_t = ObjectiveArg::TokensPerJoule, value_name = "GOAL")]
    objective: ObjectiveArg,
    /// Time per output token at most, such as 50ms
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    tpot: Option<f64>,
    /// Longest sequence in tokens, prompt and answer [default: what the model was made for, at most 4096]
    #[arg(long, short = 'c', value_name = "N")]
    context: Option<usize>,
    /// Lengths of requests: CSV, JSON or JSON lines with prompt and output tokens [default: a sample of the Azure
    /// conversation trace 2023]
    #[arg(long, value_name = "FILE")]
    lengths: Option<PathBuf>,
    /// Stored type of weights [default: bf16 if that fits, else int8]
    #[arg(long, visible_alias = "weights", value_enum, value_name = "TYPE")]
    quant: Option<WeightsArg>,
    /// Type of the key/value cache [default: bf16 if that fits, else int8; f32 beside f32 weights]
    #[arg(long, value_enum, value_name = "TYPE")]
    kv_type: Option<KvArg>,
    /// Physical cores of a logical one, on trn2: 1 or 2
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2), value_name = "N")]
    lnc: Option<u8>,
    /// Cores of a replica [default: the smallest number that fits]
    #[arg(long, value_name = "N")]
    tp: Option<usize>,
    /// Sequences of a replica at once [default: as many as fit]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Compiled modules at most
    #[arg(long, default_value_t = 32, value_name = "N")]
    max_neffs: usize,
    /// Least share of useful positions, in decode and in prefill, such as 0.8
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    min_useful: f64,
    /// Candidates that a step returns per sequence
    #[arg(long, default_value = "64", value_name = "N")]
    candidates: NonZero<usize>,
    /// Sparse logit biases that a step takes per sequence
    #[arg(long, default_value_t = Wish::default().biases, value_name = "N")]
    biases: usize,
    /// Steps take no masks of allowed tokens, which structured output and demanded tool calls need
    #[arg(long)]
    no_masks: bool,
    #[arg(long, hide = true, overrides_with = "no_masks")]
    masks: bool,
    /// DMA rings of a module, as a share of the bytes it works on (estimate) [default: 0.11]
    #[arg(long, value_name = "SHARE")]
    ring_share: Option<f64>,
    /// Time of a hop between cores in microseconds [default: 1, the least that is published]
    #[arg(long, value_name = "US")]
    hop_us: Option<f64>,
    /// USD per hour of the instance
    #[arg(long, value_name = "USD")]
    price: Option<f64>,
    /// More instances, or other prices: JSON of the built-in table's form
    #[arg(long, value_name = "FILE")]
    instances: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ObjectiveArg {
    /// Tokens per second of each chip in use
    TokensPerJoule,
    /// Tokens per second of the instance
    Throughput,
    /// Time per output token
    Latency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WeightsArg {
    /// f32
    None,
    /// bfloat16
    Bf16,
    /// 8 bits with one scale per output row
    Int8,
}

impl PlanArgs {
    /// The instances that are known.
    pub fn table(&self) -> anyhow::Result<Instances> {
        let Some(path) = &self.instances else { return Ok(Instances::built_in()) };
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Instances::with(&text).with_context(|| path.display().to_string())
    }

    /// The instance of that name in `table`, with the price and the logical cores that were given.
    pub fn instance(&self, table: &Instances, name: &str) -> Result<Instance, UsageError> {
        let found = table.find(name);
        let mut instance = found.ok_or_else(|| no_instance(name, table))?.clone();
        if let Some(lnc) = self.lnc {
            let none = || UsageError(format!("--lnc {lnc}: a logical core of {name} is one physical one"));
            instance = instance.with_lnc(lnc).ok_or_else(none)?;
        }
        if let Some(price) = self.price {
            if !(price > 0.0 && price.is_finite()) {
                return Err(UsageError(format!("--price {price}: a price is positive")));
            }
            instance.price_per_hour = Some(price);
        }
        Ok(instance)
    }

    /// The requests that are planned for, of sequences of at most `context` tokens.
    pub fn lengths(&self, context: usize) -> anyhow::Result<Lengths> {
        self.lengths.as_deref().map_or_else(|| Ok(Lengths::built_in(context)), lengths_of)
    }

    /// What the planner is asked for.
    pub fn wish(&self, model: &Model) -> Result<Wish, UsageError> {
        let assumed = Assumptions::default();
        Ok(Wish {
            objective: match self.objective {
                ObjectiveArg::TokensPerJoule => Objective::TokensPerJoule,
                ObjectiveArg::Throughput => Objective::Throughput,
                ObjectiveArg::Latency => Objective::Latency,
            },
            tpot: self.tpot,
            context: longest(self.context, model)?,
            weights: self.quant.map(|weights| match weights {
                WeightsArg::None => Quant::None,
                WeightsArg::Bf16 => Quant::Bf16,
                WeightsArg::Int8 => Quant::Int8,
            }),
            kv: self.kv_type.map(KvArg::kv),
            tp: self.tp,
            batch: self.batch,
            max_neffs: self.max_neffs,
            min_useful: self.min_useful,
            candidates: self.candidates.get().min(model.program.vocab()),
            biases: self.biases,
            mask: self.masks || !self.no_masks,
            assumptions: Assumptions {
                ring_share: self.ring_share.unwrap_or(assumed.ring_share),
                hop_us: self.hop_us.unwrap_or(assumed.hop_us),
                ..assumed
            },
        })
    }
}

/// The longest sequence to plan for: what was asked, else the usual, as far as the model was made for it.
pub fn longest(asked: Option<usize>, model: &Model) -> Result<usize, UsageError> {
    let made_for = model.checkpoint.config.max_len;
    match asked {
        Some(asked) if asked > made_for => Err(UsageError(format!(
            "--context {asked}: the model was made for {made_for} tokens, and modules for Neuron devices hold no more"
        ))),
        Some(asked) => Ok(asked),
        None => Ok(Wish::default().context.min(made_for)),
    }
}

/// What to say of an instance type that is not in the table.
pub fn no_instance(name: &str, table: &Instances) -> UsageError {
    UsageError(format!("no instance type is called {name:?}; known are {}", table.names()))
}

/// Requests of a file.
fn lengths_of(path: &Path) -> anyhow::Result<Lengths> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
    Lengths::parse(&text, &name).with_context(|| name)
}

/// `50ms`, `0.05s` or `50` (milliseconds), as seconds.
pub fn seconds(text: &str) -> Result<f64, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e-3),
        (None, Some(number)) => (number, 1.0),
        (None, None) => (text, 1e-3),
    };
    let value: f64 = number.trim().parse().map_err(|_| "not a time such as 50ms or 0.05s".to_owned())?;
    if value > 0.0 && value.is_finite() { Ok(value * unit) } else { Err("a time is positive".into()) }
}
