//! `njoule build`: plans, compiles and packs a model for a Neuron instance. Needs neuronx-cc and no device.

use std::num::NonZero;
use std::path::PathBuf;

use njoule_runtime::backend::neuron::plan::Wish;
use serde_json::json;

use super::Context;
use crate::args::ModelArgs;
use crate::session::Model;
use crate::session::neuron::{self, BuildOptions};
use crate::session::options::{KvArg, QuantArg};

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
    /// Cores that share the model [default: the planner's choice]
    #[arg(long, value_name = "N")]
    tp: Option<usize>,
    /// Longest sequence in tokens [default: 4096]
    #[arg(long, short = 'c', value_name = "N")]
    context: Option<usize>,
    /// Sequences of a replica [default: the planner's choice]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Stored type of weights: none (f32), bf16 or int8 [default: bf16 if that fits, else int8]
    #[arg(long, value_enum, value_name = "TYPE")]
    quant: Option<QuantArg>,
    /// Type of the key/value cache: f32, bf16 or int8
    #[arg(long, value_enum, value_name = "TYPE")]
    kv_type: Option<KvArg>,
    /// Modules at most
    #[arg(long, value_name = "N")]
    max_neffs: Option<usize>,
    /// Candidates that a step returns per sequence
    #[arg(long, value_name = "N")]
    candidates: Option<usize>,
    /// Sparse logit biases that a step takes per sequence
    #[arg(long, value_name = "N", default_value_t = 0)]
    biases: usize,
    /// Take masks of allowed tokens
    #[arg(long)]
    masks: bool,
    /// Leave out the modules that score prompts
    #[arg(long)]
    no_score: bool,
    /// Physical cores of a logical one, on trn2: 1 or 2
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    lnc: Option<u8>,
    /// Compiles at once [default: as many as cores and memory bear]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZero<usize>>,
    /// The compiler's -O for all modules [default: 2 for decode, 1 for prefill]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=3))]
    optlevel: Option<u8>,
    /// A further flag of neuronx-cc, as it is; may be repeated
    #[arg(long = "cc-flag", value_name = "FLAG", allow_hyphen_values = true)]
    cc_flags: Vec<String>,
    /// A device profile, as `njoule probe` writes it [default: the one that it recorded for this target, if any]
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Builds the artifact and prints what it holds.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, context)?;
        let usual = Wish::default();
        let options = BuildOptions {
            instance: self.instance,
            wish: Wish {
                context: self.context.unwrap_or(usual.context),
                weights: self.quant.map(QuantArg::quant),
                kv: self.kv_type.map(KvArg::kv),
                tp: self.tp,
                batch: self.batch,
                max_neffs: self.max_neffs.unwrap_or(usual.max_neffs),
                candidates: self.candidates.unwrap_or(usual.candidates).min(model.program.vocab()),
                biases: self.biases,
                mask: self.masks,
                ..usual
            },
            lnc: self.lnc,
            no_score: self.no_score,
            jobs: self.jobs.map(NonZero::get),
            opt_level: self.optlevel,
            flags: self.cc_flags,
            profile: self.profile,
        };
        let planned = neuron::plan_model(&model, &options, context)?;
        let built = neuron::build(&model, &planned, &options, &self.output, context)?;
        let m = &built.artifact.manifest;
        let weights: u64 = m.weights.iter().map(|file| file.bytes).sum();
        if self.json {
            let modules = m.modules.iter().zip(&built.compiled).map(|(module, compiled)| {
                json!({"name": module.name, "neff_bytes": module.neff.bytes, "seconds": module.seconds,
                    "peak_bytes": module.peak_bytes, "cached": compiled.cached})
            });
            let modules: Vec<_> = modules.collect();
            writeln!(
                context.out,
                "{}",
                json!({
                    "artifact": self.output, "id": m.id, "instance": m.layout.instance, "target": m.layout.target.name(),
                    "tp": m.layout.tp, "replicas": m.layout.replicas, "compiler": m.compiler, "weight_bytes": weights,
                    "modules": modules, "hbm": planned.plan.hbm,
                })
            )?;
            return Ok(());
        }
        let out = &mut context.out;
        writeln!(out, "{:<44} {:>12} {:>9} {:>10}", "module", "NEFF bytes", "seconds", "memory GB")?;
        for (module, compiled) in m.modules.iter().zip(&built.compiled) {
            let seconds = if compiled.cached { "cached".to_owned() } else { format!("{:.1}", module.seconds) };
            let memory = module.peak_bytes as f64 / 1e9;
            writeln!(out, "{:<44} {:>12} {seconds:>9} {memory:>10.2}", module.name, module.neff.bytes)?;
        }
        writeln!(out, "weights: {} ranks, {:.3} GB in all", m.weights.len(), weights as f64 / 1e9)?;
        writeln!(
            out,
            "artifact {} ({}), compiler {}: {}",
            &m.id[..12],
            m.layout.instance,
            m.compiler,
            self.output.display()
        )?;
        Ok(())
    }
}

const EXAMPLES: &str = "\
Examples:
  njoule build Qwen/Qwen3-0.6B --instance inf2.xlarge -o qwen3   then, on that instance: njoule chat --backend neuron ./qwen3
  njoule build ./model --instance trn2.48xlarge --tp 4 --quant int8 -o model-trn2
";
