//! `njoule build`: plans, compiles and packs a model for a Neuron instance. Needs neuronx-cc and no device.

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::Context as _;
use njoule_runtime::backend::neuron::plan::Plan;
use serde_json::json;

use super::{Context, proc_status_bytes};
use crate::args::{ModelArgs, UsageError};
use crate::session::Model;
use crate::session::neuron::{self, BuildOptions, Built, Planned};
use crate::session::planning::PlanArgs;

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Where the artifact goes: a directory, replaced if it is an artifact
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Instance type to build for [default: this machine]
    #[arg(long, env = "NJOULE_INSTANCE", value_name = "TYPE")]
    instance: Option<String>,
    /// Build this plan, as `njoule plan --json` printed it, instead of making one
    #[arg(long, value_name = "FILE", conflicts_with_all = PLANNED)]
    plan: Option<PathBuf>,
    /// Read the artifact again when it is there, every byte of it, and compare it with its manifest
    #[arg(long)]
    verify: bool,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compiling: CompileArgs,
    #[command(flatten)]
    planning: PlanArgs,
}

/// How modules are compiled.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Compiling")]
struct CompileArgs {
    /// Leave out the modules that score prompts
    #[arg(long)]
    no_score: bool,
    /// Compiles at once [default: as many as cores and memory bear]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZero<usize>>,
    /// The compiler's -O for all modules, 1 to 3 [default: 2 for decode, 1 for prefill]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=3), value_name = "N")]
    optlevel: Option<u8>,
    /// A further flag of neuronx-cc, as it is; may be repeated
    #[arg(long = "cc-flag", value_name = "FLAG", allow_hyphen_values = true)]
    cc_flags: Vec<String>,
    /// A device profile, as `njoule probe` writes it [default: the one that it recorded for this target, if any]
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Keep what the compiler said of each module, in DIR.logs beside the artifact
    #[arg(long)]
    keep_logs: bool,
}

impl Args {
    /// Builds the artifact and prints what it holds.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, context)?;
        if model.artifact.is_some() {
            let what = "is an artifact already: njoule inspect --verify looks at it, the run verbs take it as a model";
            return Err(UsageError(format!("{} {what}", model.name)).into());
        }
        let options = self.options();
        let planned = self.planned(&model, &options, context)?;
        let built = neuron::build(&model, &planned, &options, &self.output, context)?;
        if self.verify {
            neuron::verify(&built.artifact, context)?;
        }
        match self.json {
            true => writeln!(context.out, "{}", self.object(&planned, &built))?,
            false => self.print(&built, context.out)?,
        }
        Ok(())
    }

    fn options(&self) -> BuildOptions {
        let c = &self.compiling;
        BuildOptions {
            no_score: c.no_score,
            jobs: c.jobs.map(NonZero::get),
            opt_level: c.optlevel,
            flags: c.cc_flags.clone(),
            profile: c.profile.clone(),
            logs: c.keep_logs.then(|| self.logs()),
        }
    }

    fn logs(&self) -> PathBuf {
        let mut name = self.output.file_name().unwrap_or_default().to_owned();
        name.push(".logs");
        self.output.with_file_name(name)
    }

    fn planned(&self, model: &Model, options: &BuildOptions, context: &Context<'_>) -> anyhow::Result<Planned> {
        if let Some(path) = &self.plan {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
            let plan: Plan = serde_json::from_str(&text).with_context(|| format!("{name} is no plan"))?;
            plan.check(&model.program).map_err(anyhow::Error::msg).with_context(|| name.clone())?;
            if let Some(instance) = self.instance.as_ref().filter(|instance| **instance != plan.instance) {
                return Err(UsageError(format!("{name} is a plan for {}, not for {instance}", plan.instance)).into());
            }
            return neuron::lay_out(model, plan, options, context);
        }
        let table = self.planning.table()?;
        let instance = self.planning.instance(&table, &neuron::instance_name(self.instance.as_deref(), &table)?)?;
        let wish = self.planning.wish(model)?;
        let lengths = self.planning.lengths(wish.context)?;
        neuron::plan_model(model, &instance, &lengths, &wish, options, context)
    }

    /// All that is known of the result.
    fn object(&self, planned: &Planned, built: &Built) -> serde_json::Value {
        let m = &built.artifact.manifest;
        let modules = m.modules.iter().zip(&built.compiled).map(|(module, compiled)| {
            json!({
                "name": module.name, "spec": module.spec, "hlo_bytes": module.hlo.bytes, "hlo_sha256": module.hlo.sha256,
                "neff_bytes": module.neff.bytes, "neff_sha256": module.neff.sha256, "flags": module.flags,
                "seconds": module.seconds, "peak_bytes": module.peak_bytes, "cached": compiled.cached,
            })
        });
        let modules: Vec<_> = modules.collect();
        json!({
            "artifact": self.output, "id": m.id, "model": m.model, "instance": m.layout.instance,
            "target": m.layout.target.name(), "lnc": m.layout.lnc, "tp": m.layout.tp, "replicas": m.layout.replicas,
            "context": m.layout.context, "weights": m.weights, "weight_bytes": weight_bytes(built), "kv": m.layout.kv,
            "quant": m.layout.weights, "classes": m.layout.classes, "compiler": m.compiler, "njoule": m.njoule,
            "modules": modules, "files": m.files, "hbm": planned.plan.hbm, "figures": planned.plan.figures,
            "logs": self.compiling.keep_logs.then(|| self.logs()), "verified": self.verify,
            "own_peak_bytes": proc_status_bytes("VmHWM:"),
        })
    }

    fn print(&self, built: &Built, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let m = &built.artifact.manifest;
        writeln!(out, "{:<44} {:>12} {:>9} {:>10}", "module", "NEFF bytes", "seconds", "memory GB")?;
        for (module, compiled) in m.modules.iter().zip(&built.compiled) {
            let seconds = if compiled.cached { "cached".to_owned() } else { format!("{:.1}", module.seconds) };
            let memory = module.peak_bytes as f64 / 1e9;
            writeln!(out, "{:<44} {:>12} {seconds:>9} {memory:>10.2}", module.name, module.neff.bytes)?;
        }
        writeln!(out, "weights: {} ranks, {:.3} GB in all", m.weights.len(), weight_bytes(built) as f64 / 1e9)?;
        let verified = if self.verify { ", verified" } else { "" };
        let (id, place) = (&m.id[..12], self.output.display());
        writeln!(out, "artifact {id} ({}), compiler {}{verified}: {place}", m.layout.instance, m.compiler)
    }
}

fn weight_bytes(built: &Built) -> u64 {
    built.artifact.manifest.weights.iter().map(|file| file.bytes).sum()
}

/// What a plan has settled already.
const PLANNED: [&str; 19] = [
    "lnc",
    "objective",
    "tpot",
    "context",
    "lengths",
    "quant",
    "kv_type",
    "tp",
    "batch",
    "max_neffs",
    "min_useful",
    "candidates",
    "biases",
    "no_masks",
    "masks",
    "ring_share",
    "hop_us",
    "price",
    "instances",
];

const EXAMPLES: &str = "\
Examples:
  njoule build Qwen/Qwen3-0.6B --instance inf2.xlarge -o qwen3   then, on that instance: njoule chat ./qwen3
  njoule build ./model --instance trn2.48xlarge --tp 4 --quant int8 -o model-trn2
  njoule build model.gguf --instance inf2.xlarge --lengths trace.csv --verify -o model-inf2
  njoule plan ./model --instance inf2.xlarge --json > plan.json; njoule build ./model --plan plan.json -o model-inf2

It needs neuronx-cc and no Neuron device. Stopped by Ctrl-C (exit code 130) or otherwise, it leaves no half artifact; the
same command goes on with the modules that are missing.
";
