//! The README's tables, from the code: what each backend can do ([`Limits`], and stored types by loading a model in each), and
//! which families there are ([`supported`]), each of which is loaded in each backend.
//!
//! Invariant: nothing in the tables is written by hand.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use njoule_conformance::steps::CAPACITY;
use njoule_models::checkpoint::Checkpoint;
use njoule_models::config::Family;
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::neuron::artifact::Layout;
use njoule_runtime::backend::neuron::plan::{Instances, Lengths, Wish, plan};
use njoule_runtime::backend::neuron::{Profile, lower, shard};
use njoule_runtime::backend::{Backend, KvType, Limits, Quant};
use njoule_runtime::supported::{self, BACKENDS, Supported};

/// Writes the tables into the README.
pub fn write() -> anyhow::Result<()> {
    let (path, text) = readme()?;
    let new = replaced(&text)?;
    std::fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()))
}

/// Says whether the README has them.
pub fn check() -> anyhow::Result<()> {
    let (path, text) = readme()?;
    if replaced(&text)? != text {
        bail!("the tables in {} are not the code's: run `cargo xtask features`", path.display());
    }
    Ok(())
}

fn readme() -> anyhow::Result<(PathBuf, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("README.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((path, text))
}

fn replaced(text: &str) -> anyhow::Result<String> {
    let mut text = text.to_owned();
    for (begin, table) in [(BEGIN, table()?), (FAMILIES, families()?)] {
        let parts = text.split_once(begin).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
        let (before, after) = parts.with_context(|| format!("the README lacks {begin} and {END}"))?;
        text = format!("{before}{begin}\n{table}{END}{after}");
    }
    Ok(text)
}

/// The families; an error where a backend does not do with a fixture's model what it says of the family.
fn families() -> anyhow::Result<String> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("testdata");
    let mut text = format!("| family | in GGUF | {} |\n|---|---|---|---|---|\n", BACKENDS.join(" | "));
    for Supported { family, gguf, refusals, one_core } in supported::families() {
        let fixture = match family {
            Family::Llama => "llama_plain",
            Family::Gemma3 => "variants/gemma3_images",
            other => other.name(),
        };
        let checkpoint = Checkpoint::open(&testdata.join(fixture))?;
        let (program, source) = (checkpoint.config.program(), checkpoint.weights.as_ref());
        let cpu = CpuBackend::new(NonZero::<usize>::MIN, Quant::None)?.load(&program, source, CAPACITY);
        let candle = CandleBackend::on_cpu(Quant::None).load(&program, source, CAPACITY);
        let does = [cpu.is_ok(), candle.is_ok(), shard(&program, 1).is_ok()];
        for ((backend, does), refusal) in BACKENDS.iter().zip(does).zip(&refusals) {
            if does != refusal.is_none() {
                bail!("{backend} says {refusal:?} of {}, and of {fixture} loads: {does}", family.name());
            }
        }
        let cell = |(backend, refusal): (&&str, &Option<String>)| match (refusal, &one_core) {
            (Some(why), _) => format!("no: {why}"),
            (None, Some(why)) if *backend == "neuron" => format!("on one core: {why}"),
            (None, _) => "yes".to_owned(),
        };
        let cells: Vec<_> = BACKENDS.iter().zip(&refusals).map(cell).collect();
        let gguf = if gguf.is_empty() { "none".to_owned() } else { gguf.join(", ") };
        text += &format!("| {} | {gguf} | {} |\n", family.name(), cells.join(" | "));
    }
    for (file, types) in supported::stored_types() {
        text += &format!("\nTypes of {file}: {types}.\n");
    }
    Ok(text)
}

fn table() -> anyhow::Result<String> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("testdata").join("llama_tied");
    let checkpoint = Checkpoint::open(&fixture)?;
    let (program, source) = (checkpoint.config.program(), checkpoint.weights.as_ref());
    let cpu = |quant, kv| -> anyhow::Result<CpuBackend> {
        let mut backend = CpuBackend::new(NonZero::<usize>::MIN, quant)?;
        backend.kv = kv;
        Ok(backend)
    };
    let candle = |quant, kv| {
        let mut backend = CandleBackend::on_cpu(quant);
        backend.kv = kv;
        backend
    };
    let mut stored = [(vec![], vec![]), (vec![], vec![]), (vec![], vec![])];
    let instance = Instances::built_in().find("inf2.xlarge").context("inf2.xlarge is built in")?.clone();
    let wish =
        Wish { context: checkpoint.config.max_len.min(256), candidates: 8, biases: 8, mask: true, ..Wish::default() };
    let layout = Layout::of_plan(&plan(&program, &instance, &Lengths::default(), &wish)?, Profile::default(), true);
    let sharded = shard(&program, layout.tp)?;
    let lowers = |quant, kv| {
        let spec = njoule_runtime::backend::neuron::ModelSpec { weights: quant, kv, ..layout.model_spec() };
        layout.modules.first().is_some_and(|module| lower(&sharded, &spec, module).is_ok())
    };
    for (quant, name) in QUANTS {
        let works = [
            cpu(quant, None)?.load(&program, source, CAPACITY).is_ok(),
            candle(quant, None).load(&program, source, CAPACITY).is_ok(),
            lowers(quant, layout.kv),
        ];
        works.iter().zip(&mut stored).filter(|(works, _)| **works).for_each(|(_, (quants, _))| quants.push(name));
    }
    for (kv, name) in KVS {
        let works = [
            cpu(Quant::Int8, Some(kv))?.load(&program, source, CAPACITY).is_ok(),
            candle(Quant::Bf16, Some(kv)).load(&program, source, CAPACITY).is_ok(),
            lowers(layout.weights, kv),
        ];
        works.iter().zip(&mut stored).filter(|(works, _)| **works).for_each(|(_, (_, kvs))| kvs.push(name));
    }
    let limits =
        [cpu(Quant::Auto, None)?.limits(&program), candle(Quant::Auto, None).limits(&program), layout.limits(&program)];
    let mut text = "| | cpu | candle | neuron |\n|---|---|---|---|\n".to_owned();
    let mut row = |name: &str, cells: [String; 3]| text += &format!("| {name} | {} |\n", cells.join(" | "));
    row("weights stored as", stored.each_ref().map(|(quants, _)| quants.join(", ")));
    row("cache stored as", stored.each_ref().map(|(_, kvs)| kvs.join(", ")));
    row("cache", limits.each_ref().map(cache));
    row("prompts beside decodes in a step", limits.each_ref().map(|l| yes(l.mixed_batches)));
    row("a step returns", limits.each_ref().map(returns));
    row("prompts can be scored", limits.each_ref().map(|l| yes(l.logits)));
    row(
        "logit biases",
        limits.each_ref().map(|l| if l.candidates.is_none() { "any" } else { built(l.biases > 0) }.to_owned()),
    );
    row(
        "masks of allowed tokens",
        limits.each_ref().map(|l| if l.candidates.is_none() { "yes" } else { built(l.masks) }.to_owned()),
    );
    row("guessed tokens (`--speculate`)", limits.each_ref().map(|l| yes(l.can_draft())));
    row("host works while a step runs", limits.each_ref().map(|l| yes(l.overlaps)));
    Ok(text)
}

fn cache(limits: &Limits) -> String {
    if limits.paged {
        format!("blocks of {} tokens", limits.block_len)
    } else {
        "one row per sequence, in classes of lengths".to_owned()
    }
}

fn returns(limits: &Limits) -> String {
    if limits.candidates.is_some() { "the best candidates and log-sum-exp" } else { "logits" }.to_owned()
}

/// Of what modules are built with, if asked.
fn built(can: bool) -> &'static str {
    if can { "if built for" } else { "no" }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

const QUANTS: [(Quant, &str); 4] =
    [(Quant::None, "f32"), (Quant::Bf16, "bf16"), (Quant::Int8, "int8"), (Quant::Int4, "int4")];
const KVS: [(KvType, &str); 4] =
    [(KvType::F32, "f32"), (KvType::Bf16, "bf16"), (KvType::F16, "f16"), (KvType::Int8, "int8")];
const BEGIN: &str = "<!-- made by `cargo xtask features` -->";
const FAMILIES: &str = "<!-- families, made by `cargo xtask features` -->";
const END: &str = "<!-- until here -->";
