//! A model as `njoule probe` loads it: few modules of known sizes, in the forms that were chosen, beside a reference.
//!
//! The modules go the way of any other model's: planned for the instance, compiled into the cache, loaded by the backend.

use std::num::NonZero;

use anyhow::{Context as _, anyhow, bail};
use njoule_models::checkpoint::Origin as CheckpointOrigin;
use njoule_runtime::backend::cpu::{CpuBackend, StoredWeights};
use njoule_runtime::backend::neuron::artifact::{Layout, Origin};
use njoule_runtime::backend::neuron::plan::{Instances, Lengths, Wish, plan};
use njoule_runtime::backend::neuron::probe::{DecodeBucket, Fault, Golden, LoadedModel, ProbeModel, Stage, tolerance};
use njoule_runtime::backend::neuron::{CacheShape, ModuleKind, ModuleSpec, NeuronBackend, Profile};
use njoule_runtime::backend::{Backend, Capacity, Quant};

use super::{BuildOptions, Limits, cached, laid_out};
use crate::fetch::{DEFAULT_MODEL, DEFAULT_ON_HUB};
use crate::session::planning::no_instance;
use crate::session::{Model, available_memory};
use crate::verbs::Context;
use crate::verbs::plan::in_words;

/// A model that is open, and how it is to be built.
pub struct Probed<'a> {
    /// It.
    pub model: Model,
    /// Instance type that it is planned for.
    pub instance: String,
    /// Its types.
    pub wish: Wish,
    /// A reference's results, where somebody gave them.
    pub golden: Option<Golden>,
    /// Whether no device is behind the library.
    pub stand_in: bool,
    /// Where notes go.
    pub context: Context<'a>,
}

impl ProbeModel for Probed<'_> {
    fn load(&mut self, profile: &Profile) -> Result<LoadedModel, Fault> {
        let at = |stage| move |error: anyhow::Error| Fault { stage, words: format!("{error:#}") };
        let backend = self.backend(profile).map_err(at(Stage::Compile))?;
        let layout = backend.layout();
        let short = self.too_large_for_cpu().map_err(at(Stage::Evaluate))?;
        let golden = self.golden(layout.context, short.is_some()).map_err(at(Stage::Evaluate))?;
        let (program, weights) = (&self.model.program, self.model.checkpoint.weights.as_ref());
        let capacity = backend.capacity();
        let executor = backend.load(program, weights, capacity).map_err(|e| at(Stage::Load)(e.into()))?;
        let limits = backend.limits(program);
        let longest = limits.classes.iter().map(|class| class.max_len).max();
        let before = limits.classes.iter().take_while(|class| Some(class.max_len) != longest);
        let row = before.map(|class| class.rows).sum::<usize>();
        let bandwidth = Instances::built_in().find(&layout.instance).map(|i| i.core_bandwidth() * layout.tp as f64);
        let forms = if layout.profile == *profile { "" } else { ", built in other forms than those chosen here" };
        let mut words = format!(
            "{} in {:?}, caches in {:?}, on {} cores{forms}",
            self.model.program.name, layout.weights, layout.kv, layout.tp
        );
        if let (None, Some(short)) = (&golden, short) {
            words += &format!("; {short}");
        }
        Ok(LoadedModel {
            executor,
            capacity,
            chunk: limits.chunk.unwrap_or(1),
            row: u32::try_from(row).unwrap_or(0),
            decodes: DecodeBucket::of_layout(layout),
            golden,
            tolerance: tolerance(layout.weights, layout.kv),
            bandwidth,
            stand_in: self.stand_in,
            words,
        })
    }
}

impl Probed<'_> {
    /// Its own artifact as it is, or modules in the cache.
    fn backend(&self, profile: &Profile) -> anyhow::Result<NeuronBackend> {
        let (model, context) = (&self.model, &self.context);
        if let Some(artifact) = &model.artifact {
            return Ok(Limits::of(&context.fetch.env)?.on(artifact.clone()));
        }
        let (table, options) = (Instances::built_in(), BuildOptions::default());
        let instance = table.find(&self.instance).ok_or_else(|| no_instance(&self.instance, &table))?;
        let wish = Wish { context: CONTEXT.min(model.checkpoint.config.max_len), ..self.wish.clone() };
        let plan = plan(&model.program, instance, &Lengths::built_in(wish.context), &wish)
            .map_err(|e| in_words(e, || None))?;
        let mut planned = laid_out(model, plan, *profile, &options)?;
        planned.record.origin = Origin::None;
        few_modules(&mut planned.layout);
        Ok(Limits::of(&context.fetch.env)?.on(cached(model, &planned, &options, context)?))
    }

    /// What a reference gives: of the default model it is known, of another the cpu backend computes it in f32, unless the
    /// model is `too_large`.
    fn golden(&self, context: usize, too_large: bool) -> anyhow::Result<Option<Golden>> {
        let golden = match &self.golden {
            Some(golden) => Some(golden.clone()),
            None => match self.known() {
                Some(known) => Some(known),
                None if too_large => None,
                None => self.by_cpu(context)?,
            },
        };
        let Some(golden) = golden else { return Ok(None) };
        let vocab = self.model.program.vocab();
        for (number, prompt) in golden.prompts.iter().enumerate() {
            let ids = || prompt.ids.iter().chain(prompt.top.iter().map(|(id, _)| id));
            if let Some(id) = ids().find(|id| **id as usize >= vocab) {
                bail!("the reference's prompt {number} has token {id}, the model has {vocab}: it is of another model");
            }
            if prompt.ids.len() >= context {
                bail!("the reference's prompt {number} has {} tokens, the model's rows {context}", prompt.ids.len());
            }
        }
        Ok(Some(golden))
    }

    /// What transformers gives for the default model.
    fn known(&self) -> Option<Golden> {
        let made_of = self.model.artifact.as_ref().map(|artifact| &artifact.manifest.model);
        let name = made_of.map_or(self.model.name.as_str(), |record| record.name.as_str());
        let of_gguf = match (made_of, &self.model.checkpoint.origin) {
            (Some(record), _) => matches!(record.origin, Origin::GgufHead { .. }),
            (None, origin) => matches!(origin, CheckpointOrigin::Gguf(_)),
        };
        let text = match (name, of_gguf) {
            (DEFAULT_MODEL, true) => GOLDEN_GGUF,
            (DEFAULT_MODEL | DEFAULT_ON_HUB, false) => GOLDEN_HUB,
            _ => return None,
        };
        Golden::parse(text).ok() // a test reads both
    }

    /// Why the cpu backend cannot be the reference here: a process that takes more memory than there is would be killed, with
    /// all that the probe has found.
    fn too_large_for_cpu(&self) -> anyhow::Result<Option<String>> {
        if self.model.artifact.is_some() {
            return Ok(None); // its weights are not read
        }
        let (program, weights) = (&self.model.program, self.model.checkpoint.weights.as_ref());
        let bytes =
            StoredWeights::preview(program, weights, Quant::None)?.values().fold(0, |a: usize, b| a.saturating_add(*b));
        Ok(short_of(bytes, available_memory()))
    }

    /// Some prompts of made-up tokens; nothing of an artifact, whose weights only a device reads.
    fn by_cpu(&self, context: usize) -> anyhow::Result<Option<Golden>> {
        if self.model.artifact.is_some() {
            return Ok(None);
        }
        let (program, vocab) = (&self.model.program, self.model.program.vocab());
        let length = |n: usize| n.min(context / 2).max(1);
        let id = |i: usize, n: usize| u32::try_from((i * 37 + n * 11) % vocab).unwrap_or(0);
        let prompts: Vec<Vec<u32>> =
            [5, 17, 40].map(length).iter().map(|&n| (0..n).map(|i| id(i, n)).collect()).collect();
        let threads = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        let cpu = CpuBackend::new(threads, Quant::None)?;
        let (block_len, max_len) = (cpu.limits(program).block_len, 64);
        let blocks = max_len / block_len;
        let capacity = Capacity { blocks, block_len, max_rows: 40, max_seqs: 1, max_outputs: 1, max_len };
        let mut executor = cpu.load(program, self.model.checkpoint.weights.as_ref(), capacity)?;
        let golden = Golden::by("njoule's cpu backend in f32", &mut *executor, capacity, &prompts)
            .map_err(|error| anyhow!("{error}"))
            .context("the cpu backend, which is the reference where there is no other")?;
        Ok(Some(golden))
    }
}

/// What lacks where `bytes` of weights are to be packed and so much memory is available.
fn short_of(bytes: usize, available: Option<usize>) -> Option<String> {
    // Rows are read beside what is packed.
    let needed = bytes.saturating_add(bytes / 8);
    let available = available.filter(|available| needed > *available)?;
    let gb = |bytes: usize| bytes as f64 / 1e9;
    Some(format!(
        "the cpu backend, the reference where there is no other, needs {:.1} GB in f32 and {:.1} GB are available",
        gb(needed),
        gb(available)
    ))
}

/// One class of rows: decode steps of one sequence and of several over a short and over the whole length, a chunk, a score.
fn few_modules(layout: &mut Layout) {
    let rows = layout.classes.iter().map(|class| class.rows).sum::<usize>().clamp(1, ROWS);
    let context = layout.context;
    let chunk = CHUNK.min(context.div_ceil(2));
    let class = CacheShape { rows, positions: context + chunk };
    let module = |kind, len| ModuleSpec::of(class, kind, len);
    let mut modules = vec![];
    for len in [SHORT.min(context), context] {
        modules.extend([1, rows].map(|batch| module(ModuleKind::Decode { batch }, len)));
    }
    modules.push(module(ModuleKind::Prefill { tokens: chunk }, context));
    modules.push(module(ModuleKind::Score { tokens: chunk }, context));
    modules.sort_unstable();
    modules.dedup();
    (layout.classes, layout.modules) = (vec![class], modules);
}

/// Longest sequence that the probe's modules hold.
const CONTEXT: usize = 512;
const ROWS: usize = 8;
const SHORT: usize = 128;
const CHUNK: usize = 64;
const GOLDEN_GGUF: &str = include_str!("../../../../testdata/smollm2/golden_gguf_f32.json");
const GOLDEN_HUB: &str = include_str!("../../../../testdata/smollm2/golden_hf_bf16.json");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_that_would_take_more_memory_than_there_is_is_not_computed() {
        assert_eq!(short_of(8_000_000_000, Some(10_000_000_000)), None);
        assert_eq!(short_of(8_000_000_000, None), None);
        let why = short_of(32_000_000_000, Some(16_000_000_000)).unwrap();
        assert!(why.contains("needs 36.0 GB in f32 and 16.0 GB are available"), "{why}");
    }

    #[test]
    fn what_transformers_gives_for_the_default_model_is_read() {
        for text in [GOLDEN_GGUF, GOLDEN_HUB] {
            let golden = Golden::parse(text).unwrap();
            assert!(golden.reference.starts_with("transformers 4."), "{}", golden.reference);
            assert!(
                golden.prompts.len() == 8 && golden.prompts.iter().all(|p| p.top.len() == 50 && p.greedy.len() == 48)
            );
        }
    }

    #[test]
    fn what_is_included_is_in_the_context_that_an_image_is_built_of() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/docker/Dockerfile.dockerignore");
        let ignored = std::fs::read_to_string(path).unwrap();
        let included = include_str!("probe.rs").split("include_str!(\"../../../../").skip(1);
        for file in included.filter_map(|rest| rest.split('"').next()).filter(|file| !file.is_empty()) {
            // The last line that a path falls under decides.
            let rule = ignored.lines().rfind(|line| {
                let rule = line.trim_start_matches('!');
                !rule.starts_with('#') && (file.starts_with(&format!("{rule}/")) || rule == "testdata/*")
            });
            assert!(rule.is_none_or(|rule| rule.starts_with('!')), "{file}: {rule:?}");
        }
    }
}
