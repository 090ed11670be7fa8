//! `njoule inspect`: what a model is and what it costs, read from headers alone: no weight is loaded.

#[cfg(target_os = "linux")]
mod artifact;

use std::collections::BTreeMap;

use njoule_models::ModelConfig;
use njoule_models::cost::Span;
use njoule_models::program::{Program, WeightUse};
use njoule_models::weights::WeightError;
use njoule_runtime::backend::cpu::StoredWeights;
use serde_json::{Map, Value, json};

use super::Context;
use crate::args::{ModelArgs, UsageError};
use crate::session::options::{KvArg, QuantArg, kv_name};
use crate::session::{Model, kv_bytes_per_token};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Print the whole program: weights, caches and every operation
    #[arg(long)]
    program: bool,
    /// Of an artifact for Neuron devices: read every byte and compare it with the manifest
    #[arg(long, conflicts_with = "program")]
    verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Prints what is known.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, context)?;
        #[cfg(target_os = "linux")]
        if let Some(found) = model.artifact.as_ref().filter(|_| !self.program) {
            if self.verify {
                crate::session::neuron::verify(found, context)?;
            }
            match self.json {
                true => writeln!(context.out, "{}", artifact::object(found, self.verify))?,
                false => artifact::print(found, self.verify, context.out)?,
            }
            return Ok(());
        }
        if self.verify {
            let what = "is no artifact of `njoule build`: nothing says what its bytes should be";
            return Err(UsageError(format!("--verify: {} {what}", model.name)).into());
        }
        let loader = model.load_text();
        let facts = Facts {
            packed: packed(&model)?,
            notes: StoredWeights::notes(&model.program, model.checkpoint.weights.as_ref(), QuantArg::Auto.quant())?,
            tokenizer: match loader.wait() {
                Ok(None) => "none".into(),
                Ok(Some(text)) => {
                    let template = if text.template.is_some() { "chat template" } else { "no chat template" };
                    format!("{} tokens, {template}", text.tokenizer.vocab_size())
                }
                Err(error) => format!("not usable: {error:#}"),
            },
            model,
        };
        match self.json {
            true => writeln!(context.out, "{}", facts.json(self.program))?,
            false => facts.print(self.program, context.out)?,
        }
        Ok(())
    }
}

/// Bytes per stored type for each `--quant`.
type PackedBytes = Vec<(&'static str, BTreeMap<&'static str, usize>)>;

fn packed(model: &Model) -> Result<PackedBytes, WeightError> {
    let vectors = usize::try_from(4 * model.program.parameters_of(WeightUse::Vector)).unwrap_or(usize::MAX);
    let of = |quant: QuantArg| {
        let mut types = StoredWeights::preview(&model.program, model.checkpoint.weights.as_ref(), quant.quant())?;
        *types.entry("f32").or_default() += vectors;
        Ok((quant.name(), types))
    };
    QuantArg::ALL.into_iter().map(of).collect()
}

struct Facts {
    model: Model,
    packed: PackedBytes,
    /// What becomes of a quantised checkpoint's matrices.
    notes: Vec<String>,
    tokenizer: String,
}

impl Facts {
    fn json(&self, with_program: bool) -> Value {
        let (checkpoint, program) = (&self.model.checkpoint, &self.model.program);
        let c = &checkpoint.config;
        let packed: Map<String, Value> = self
            .packed
            .iter()
            .map(|(quant, types)| ((*quant).into(), json!({"bytes": types.values().sum::<usize>(), "types": types})))
            .collect();
        let kv: Map<String, Value> = KvArg::ALL
            .into_iter()
            .map(|kv| (kv_name(kv.kv()).into(), json!(kv_bytes_per_token(program, kv.kv()))))
            .collect();
        let stored: Map<String, Value> =
            checkpoint.stored.iter().map(|(encoding, bytes)| (encoding.to_string(), json!(bytes))).collect();
        let mut json = json!({
            "model": self.model.name,
            "path": self.model.path(),
            "config": {
                "family": c.family.name(),
                "vocab": c.vocab,
                "hidden": c.hidden,
                "layers": c.layers,
                "heads": c.heads,
                "kv_heads": c.kv_heads,
                "head_dim": c.head_dim,
                "ffn": c.ffn,
                "max_len": c.max_len,
                "norm_eps": c.norm_eps,
                "tied": c.tied,
                "rope": format!("{:?}", c.rope),
                "windows": c.windows,
                "experts": c.moe.as_ref().map(|m| json!({"experts": m.experts, "top_k": m.top_k, "ffn": m.ffn,
                    "shared_ffn": m.shared_ffn, "layers": m.layers})),
                "head_norms": c.head_norms,
                "bos": c.bos,
                "eos": checkpoint.generation.eos,
            },
            "tokenizer": self.tokenizer,
            "parameters": program.parameters(),
            "file_bytes": checkpoint.file_bytes,
            "file_types": stored,
            "quantization": checkpoint.weights.quantization().map(|q| json!({"method": q.name(), "notes": self.notes})),
            "packed_bytes": packed,
            "flops_per_token": flops_per_token(program, 0),
            "flops_per_token_at_max_len": flops_per_token(program, c.max_len.saturating_sub(1)),
            "kv_bytes_per_token": kv,
            "ops": program.ops.len(),
            "fingerprint": format!("{:016x}", program.fingerprint()),
        });
        if with_program {
            json["program"] = program.to_string().into();
        }
        json
    }

    fn print(&self, with_program: bool, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let (checkpoint, program) = (&self.model.checkpoint, &self.model.program);
        let c = &checkpoint.config;
        let mut line = |key: &str, value: String| writeln!(out, "{key:<14}{value}");
        line("model", self.model.name.clone())?;
        if let Some(path) = self.model.path() {
            line("path", path.display().to_string())?;
        }
        line("family", c.family.name().into())?;
        line("layers", format!("{} of width {}, ffn {}", c.layers, c.hidden, c.ffn))?;
        let norms = if c.head_norms { ", normalised" } else { "" };
        line(
            "attention",
            format!(
                "{} heads of {}, {} key/value heads{norms}{}",
                c.heads,
                c.head_dim,
                c.kv_heads,
                windows(&c.windows)
            ),
        )?;
        if let Some(moe) = &c.moe {
            let layers = moe.layers.iter().filter(|has| **has).count();
            let shared =
                moe.shared_ffn.map_or(String::new(), |ffn| format!(", and one of width {ffn} for every token"));
            let (experts, top_k, ffn) = (moe.experts, moe.top_k, moe.ffn);
            line("experts", format!("{experts} of width {ffn} in {layers} layers, {top_k} per token{shared}"))?;
        }
        line("rope", rope(c))?;
        let tied = if c.tied { "tied to the embedding" } else { "own weights" };
        line(
            "vocabulary",
            format!("{} tokens, head {tied}; bos {:?}, eos {:?}", c.vocab, c.bos, checkpoint.generation.eos),
        )?;
        line("tokenizer", self.tokenizer.clone())?;
        line("context", format!("{} tokens", c.max_len))?;
        line("parameters", format!("{:.1} million", program.parameters() as f64 / 1e6))?;
        line("file", format!("{} ({})", megabytes(checkpoint.file_bytes as f64), checkpoint.stored))?;
        for note in &self.notes {
            line("quantised", note.clone())?;
        }
        for (quant, types) in &self.packed {
            let total: usize = types.values().sum();
            let mut parts: Vec<_> = types.iter().collect();
            parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
            let parts: Vec<_> =
                parts.iter().map(|(name, bytes)| format!("{name} {}", megabytes(**bytes as f64))).collect();
            line("packed", format!("{quant:<5} {:>10}  ({})", megabytes(total as f64), parts.join(", ")))?;
        }
        let (short, long) = (flops_per_token(program, 0), flops_per_token(program, c.max_len.saturating_sub(1)));
        line("work", format!("{:.3} GFLOP per token, {:.3} at full context", short as f64 / 1e9, long as f64 / 1e9))?;
        let kv: Vec<_> = KvArg::ALL
            .into_iter()
            .map(|kv| format!("{} {}", kv_name(kv.kv()), kv_bytes_per_token(program, kv.kv())))
            .collect();
        line("cache", format!("bytes per token: {}", kv.join(", ")))?;
        line("program", format!("{} operations, fingerprint {:016x}", program.ops.len(), program.fingerprint()))?;
        if with_program {
            writeln!(out, "\n{program}")?;
        }
        Ok(())
    }
}

/// Operations of a decode step of one sequence with `context` tokens before it.
fn flops_per_token(program: &Program, context: usize) -> u64 {
    Span { rows: 1, context, outputs: 1 }.cost(program).flops()
}

fn rope(c: &ModelConfig) -> String {
    let rotated = c.rope_layers.iter().filter(|rotates| **rotates).count();
    if rotated == 0 {
        return "none: positions are learned".to_owned();
    }
    let mut text = format!("theta {}, scaling {:?}", c.rope.theta, c.rope.scaling);
    if c.rope_width != c.head_dim {
        text += &format!(", {} of {} values of a head", c.rope_width, c.head_dim);
    }
    if rotated != c.layers {
        text += &format!(", in {rotated} layers");
    }
    if let Some(local) = &c.local_rope {
        text += &format!("; theta {}, scaling {:?} in layers with a window", local.theta, local.scaling);
    }
    text
}

fn windows(windows: &[Option<usize>]) -> String {
    let windowed = windows.iter().flatten().count();
    match windows.iter().flatten().next() {
        None => String::new(),
        Some(window) if windowed == windows.len() => format!(", window of {window}"),
        Some(window) => format!(", window of {window} in {windowed} layers"),
    }
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

const EXAMPLES: &str = "\
Examples:
  njoule inspect                        the default model
  njoule inspect model.gguf --program   every operation
  njoule inspect random:synth-1b --json
";
