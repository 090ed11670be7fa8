//! `njoule plan`: how to serve a model on a Neuron instance, by arithmetic alone: no weight is loaded, no device is asked.

use njoule_runtime::backend::neuron::plan::{Instance, Instances, Lengths, Plan, PlanError, plan, smallest_instance};
use njoule_runtime::backend::neuron::{CacheShape, ModuleKind, ModuleSpec};
use serde::Serialize;

use super::Context;
use crate::args::{ModelArgs, UsageError};
use crate::session::Model;
use crate::session::planning::PlanArgs;

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Instance type, such as inf2.xlarge
    #[arg(long, env = "NJOULE_INSTANCE", value_name = "TYPE", required_unless_present = "list")]
    instance: Option<String>,
    /// List the instances that are known
    #[arg(long)]
    list: bool,
    /// Print one JSON object: all that the table says, and what `njoule build --plan` takes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    planning: PlanArgs,
}

impl Args {
    /// Prints a plan.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let table = self.planning.table()?;
        if self.list {
            return Ok(list(&table, self.json, context.out)?);
        }
        let instance = self.planning.instance(&table, self.instance.as_deref().unwrap_or_default())?;
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, context)?;
        let wish = self.planning.wish(&model)?;
        let lengths = self.planning.lengths(wish.context)?;
        match plan(&model.program, &instance, &lengths, &wish) {
            Ok(plan) if self.json => writeln!(context.out, "{}", serde_json::to_string(&plan)?)?,
            Ok(plan) => print(&plan, &model.name, &instance, &lengths, context.out)?,
            Err(error) => return Err(in_words(error, || smallest_instance(&model.program, &table, &lengths, &wish))),
        }
        Ok(())
    }
}

/// A planner's error as a verb reports it: what was asked for wrongly, or what would do where memory is short.
pub fn in_words<'a>(error: PlanError, fits: impl FnOnce() -> Option<&'a Instance>) -> anyhow::Error {
    match error {
        PlanError::Wish { .. } | PlanError::Tp { .. } => UsageError(error.to_string()).into(),
        PlanError::Memory { .. } => {
            let hint =
                fits().map_or("no instance of the table would do".to_owned(), |i| format!("{} would do", i.name));
            anyhow::anyhow!("{error}; {hint}")
        }
        error => error.into(),
    }
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
        let (mut chunks, mut decodes) = (vec![], vec![]);
        for m in plan.modules.iter().filter(|m| m.parts.len() == 1) {
            let Some(part) = m.part(*class) else { continue };
            match m.kind {
                ModuleKind::Prefill { tokens } => chunks.push(format!("{tokens}@{}", part.len)),
                ModuleKind::Decode { batch } => decodes.push(format!("{batch}x{}", part.len)),
                ModuleKind::Score { .. } => {}
            }
        }
        let decodes = if decodes.is_empty() { String::new() } else { format!("; decode {}", decodes.join(" ")) };
        line("class", format!("{} rows to {} tokens ({} positions)", lane.rows, lane.longest, class.positions))?;
        line("", format!("prefill {}{decodes}", chunks.join(" ")))?;
    }
    for m in plan.modules.iter().filter(|m| m.parts.len() > 1) {
        line("decode", together(m, &plan.classes))?;
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

/// What a decode module of several classes reads of each, in the order of the classes.
pub fn together(module: &ModuleSpec, classes: &[CacheShape]) -> String {
    let of = |class: &CacheShape| module.part(*class).map_or("-".to_owned(), |p| format!("{}x{}", p.rows, p.len));
    classes.iter().map(of).collect::<Vec<_>>().join(" + ")
}

/// A stored type as it is typed.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

const EXAMPLES: &str = "\
Examples:
  njoule plan random:llama-3.1-8b --instance inf2.xlarge
  njoule plan -m MODEL --instance trn1.32xlarge --objective throughput --tpot 50ms
  njoule plan --instance inf2.xlarge --lengths trace.csv --min-useful 0.8 --json
  njoule plan --list
";
