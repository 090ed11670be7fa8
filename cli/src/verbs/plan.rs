//! `njoule plan`: how to serve a model on a Neuron instance, by arithmetic alone: no weight is loaded, no device is asked.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use njoule_runtime::backend::Quant;
use njoule_runtime::backend::neuron::ModuleKind;
use njoule_runtime::backend::neuron::plan::{
    Assumptions, Instance, Instances, Lengths, Objective, Plan, PlanError, Wish, plan, smallest_instance,
};
use serde::Serialize;

use super::Context;
use crate::args::{ModelArgs, UsageError};
use crate::session::Model;
use crate::session::options::KvArg;

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Instance type, such as inf2.xlarge
    #[arg(long, value_name = "TYPE", required_unless_present = "list")]
    instance: Option<String>,
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
    #[arg(long, value_enum, value_name = "TYPE")]
    weights: Option<WeightsArg>,
    /// Type of the key/value cache [default: bf16 if that fits, else int8; f32 beside f32 weights]
    #[arg(long, value_enum, value_name = "TYPE")]
    kv_type: Option<KvArg>,
    /// Cores of a replica
    #[arg(long, value_name = "N")]
    tp: Option<usize>,
    /// Sequences of a replica at once
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Compiled modules at most
    #[arg(long, default_value_t = 32, value_name = "N")]
    max_neffs: usize,
    /// Least share of useful positions, in decode and in prefill, such as 0.8
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    min_useful: f64,
    /// Candidates that a step returns per row
    #[arg(long, default_value_t = 64, value_name = "N")]
    candidates: usize,
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
    /// List the instances that are known
    #[arg(long)]
    list: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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

impl Args {
    /// Prints a plan.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let table = self.table()?;
        if self.list {
            return Ok(list(&table, self.json, context.out)?);
        }
        let named = self.instance.as_deref().unwrap_or_default();
        let Some(instance) = table.find(named) else {
            return Err(UsageError(format!("no instance {named:?}: there are {}", table.names())).into());
        };
        let mut instance = instance.clone();
        if let Some(price) = self.price {
            if !(price > 0.0 && price.is_finite()) {
                return Err(UsageError(format!("--price {price}: a price is positive")).into());
            }
            instance.price_per_hour = Some(price);
        }
        let lengths = self.lengths()?;
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, context)?;
        let made_for = model.checkpoint.config.max_len;
        if let Some(asked) = self.context.filter(|asked| *asked > made_for) {
            context.note(&format!("--context {asked} is more than the {made_for} tokens that the model was made for"));
        }
        let wish = self.wish(self.context.unwrap_or(DEFAULT_CONTEXT.min(made_for)));
        match plan(&model.program, &instance, &lengths, &wish) {
            Ok(plan) if self.json => writeln!(context.out, "{}", serde_json::to_string(&plan)?)?,
            Ok(plan) => print(&plan, &model.name, &instance, &lengths, context.out)?,
            Err(error @ (PlanError::Wish { .. } | PlanError::Tp { .. })) => {
                return Err(UsageError(error.to_string()).into());
            }
            Err(error @ PlanError::Memory { .. }) => {
                let other = smallest_instance(&model.program, &table, &lengths, &wish);
                let hint =
                    other.map_or("no instance of the table would do".to_owned(), |i| format!("{} would do", i.name));
                return Err(anyhow::anyhow!("{error}; {hint}"));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn table(&self) -> anyhow::Result<Instances> {
        let Some(path) = &self.instances else { return Ok(Instances::built_in()) };
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Instances::with(&text).with_context(|| path.display().to_string())
    }

    fn lengths(&self) -> anyhow::Result<Lengths> {
        let Some(path) = &self.lengths else { return Ok(Lengths::default()) };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
        Lengths::parse(&text, &name).with_context(|| name)
    }

    fn wish(&self, context: usize) -> Wish {
        let assumed = Assumptions::default();
        Wish {
            objective: match self.objective {
                ObjectiveArg::TokensPerJoule => Objective::TokensPerJoule,
                ObjectiveArg::Throughput => Objective::Throughput,
                ObjectiveArg::Latency => Objective::Latency,
            },
            tpot: self.tpot,
            context,
            weights: self.weights.map(|weights| match weights {
                WeightsArg::None => Quant::None,
                WeightsArg::Bf16 => Quant::Bf16,
                WeightsArg::Int8 => Quant::Int8,
            }),
            kv: self.kv_type.map(KvArg::kv),
            tp: self.tp,
            batch: self.batch,
            max_neffs: self.max_neffs,
            min_useful: self.min_useful,
            candidates: self.candidates,
            assumptions: Assumptions {
                ring_share: self.ring_share.unwrap_or(assumed.ring_share),
                hop_us: self.hop_us.unwrap_or(assumed.hop_us),
                ..assumed
            },
            ..Wish::default()
        }
    }
}

/// `50ms`, `0.05s` or `50` (milliseconds), as seconds.
fn seconds(text: &str) -> Result<f64, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e-3),
        (None, Some(number)) => (number, 1.0),
        (None, None) => (text, 1e-3),
    };
    let value: f64 = number.trim().parse().map_err(|_| "not a time such as 50ms or 0.05s".to_owned())?;
    if value > 0.0 && value.is_finite() { Ok(value * unit) } else { Err("a time is positive".into()) }
}

fn list(table: &Instances, json: bool, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    if json {
        return writeln!(out, "{}", serde_json::to_string(table.all())?);
    }
    writeln!(
        out,
        "{:<16}{:>6}{:>7}{:>9}{:>7}{:>9}{:>10}",
        "instance", "chips", "cores", "HBM GiB", "vCPU", "RAM GiB", "$/h"
    )?;
    for i in table.all() {
        let price = i.price_per_hour.map_or("unknown".to_owned(), |p| format!("{p:.4}"));
        let hbm = (i.core_bytes() * i.cores() as u64) >> 30;
        writeln!(out, "{:<16}{:>6}{:>7}{hbm:>9}{:>7}{:>9}{price:>10}", i.name, i.chips, i.cores(), i.vcpus, i.ram_gib)?;
    }
    Ok(())
}

fn print(
    plan: &Plan,
    model: &str,
    instance: &Instance,
    lengths: &Lengths,
    out: &mut dyn std::io::Write,
) -> std::io::Result<()> {
    let figures = &plan.figures;
    let mut line = |key: &str, value: String| writeln!(out, "{key:<14}{value}");
    line("model", model.to_owned())?;
    line("instance", format!("{}: {} chip(s), {} cores", plan.instance, instance.chips, instance.cores()))?;
    line("replicas", format!("{} of {} core(s), {} rows each", plan.replicas, plan.tp, plan.rows()))?;
    line("stored", format!("weights {}, caches {}", word(&plan.weights), word(&plan.kv)))?;
    let refused = match figures.refused {
        0.0 => String::new(),
        share => format!("; {:.1} % longer than {} tokens, refused", share * 100.0, plan.context),
    };
    line("lengths", format!("{} ({} requests){refused}", figures.lengths, lengths.requests.len()))?;
    for class in &plan.classes {
        let lane = plan.lane(*class);
        let of = |m: &&njoule_runtime::backend::neuron::ModuleSpec| m.class == *class;
        let (mut chunks, mut decodes) = (vec![], vec![]);
        for m in plan.modules.iter().filter(of) {
            match m.kind {
                ModuleKind::Prefill { tokens } => chunks.push(format!("{tokens}@{}", m.len)),
                ModuleKind::Decode { batch } => decodes.push(format!("{batch}x{}", m.len)),
                ModuleKind::Score { .. } => {}
            }
        }
        line("class", format!("{} rows to {} tokens ({} positions)", lane.rows, lane.longest, class.positions))?;
        line("", format!("prefill {}; decode {}", chunks.join(" "), decodes.join(" ")))?;
    }
    line("modules", plan.modules.len().to_string())?;
    let hbm = &plan.hbm;
    let gb = |bytes: u64| format!("{:.2}", bytes as f64 / 1e9);
    line(
        "core memory",
        format!(
            "weights {}, caches {}, microcode {}; estimates: rings {}, scratch {}, collectives {}, code {}",
            gb(hbm.weights),
            gb(hbm.caches),
            gb(hbm.microcode),
            gb(hbm.rings),
            gb(hbm.scratch),
            gb(hbm.collectives),
            gb(hbm.code)
        ),
    )?;
    line("", format!("{} of {} GB", gb(hbm.total()), gb(hbm.limit)))?;
    line(
        "speed",
        format!(
            "at most {:.0} tokens/s, beside {:.0} prompt tokens/s",
            figures.tokens_per_s, figures.prompt_tokens_per_s
        ),
    )?;
    line(
        "latency",
        format!(
            "at least {:.1} ms per output token ({:.1} without prefill), {:.0} ms to the first of a {}-token prompt",
            figures.tpot_s * 1e3,
            figures.decode_tpot_s * 1e3,
            figures.ttft_s * 1e3,
            figures.ttft_prompt
        ),
    )?;
    let useful = figures.useful;
    line(
        "useful",
        format!(
            "{:.2} of positions: decode {:.2}, prefill {:.2} (reads before a chunk {:.2}); rows {:.2} taken",
            useful.all, useful.decode, useful.prefill, useful.prefix, figures.occupancy
        ),
    )?;
    line(
        "energy",
        format!(
            "unknown: no watts are published; at most {:.0} / W tokens per joule: 1 needs an instance below {:.0} W",
            figures.tokens_per_s, figures.watts_at_one_token_per_joule
        ),
    )?;
    line(
        "price",
        match figures.usd_per_million {
            Some(usd) => format!("at least {usd:.3} USD per million answer tokens"),
            None => "unknown: no list price (--price USD)".into(),
        },
    )?;
    for tried in &plan.tried {
        let replicas = tried.replicas;
        let what = match (&tried.problem, tried.rows, tried.tokens_per_s, tried.tpot_s) {
            (None, Some(rows), Some(tokens), Some(tpot)) => {
                format!("{rows} rows, {tokens:.0} tokens/s, {:.1} ms", tpot * 1e3)
            }
            (problem, ..) => problem.clone().unwrap_or_default(),
        };
        line("tried", format!("tp {:>2} x {replicas:>2}: {what}", tried.tp))?;
    }
    for other in &plan.alternatives {
        let (weights, kv) = (word(&other.weights), word(&other.kv));
        line(
            "instead",
            format!("weights {weights}, caches {kv}: {} rows, {:.0} tokens/s", other.rows, other.tokens_per_s),
        )?;
    }
    for reason in &plan.reasons {
        line("because", reason.clone())?;
    }
    Ok(())
}

/// A stored type as it is typed.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

const DEFAULT_CONTEXT: usize = 4096;

const EXAMPLES: &str = "\
Examples:
  njoule plan random:llama-3.1-8b --instance inf2.xlarge
  njoule plan -m MODEL --instance trn1.32xlarge --objective throughput --tpot 50ms
  njoule plan --instance inf2.xlarge --lengths trace.csv --min-useful 0.8 --json
  njoule plan --list
";
