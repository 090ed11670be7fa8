//! A model that is ready to answer: what `generate`, `chat` and `score` start from.
//!
//! [`Model::open`] looks at the files, [`Model::start`] packs the weights and starts an engine. The tokenizer is built on
//! a thread of its own meanwhile: both are on the path to the first token.

pub mod backend;
mod interrupt;
pub mod metering;
#[cfg(target_os = "linux")]
pub mod neuron;
pub mod objective;
pub mod operating;
pub mod options;
pub mod planning;
pub mod sampling;
pub mod schedule;
pub mod shares;
#[cfg(target_os = "linux")]
mod standby;
mod text;
pub mod threads;
pub mod timing;
pub mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use njoule_models::checkpoint::{Checkpoint, Origin};
use njoule_models::program::Program;
#[cfg(target_os = "linux")]
use njoule_runtime::backend::neuron::artifact::Artifact;
use njoule_runtime::backend::{Capacity, KvType, MemoryUse};
use njoule_runtime::engine::EngineConfig;
use njoule_runtime::{Engine, EngineStats};
use serde_json::{Value, json};

use self::backend::{AnyBackend, Loaded};
#[cfg(target_os = "linux")]
pub use self::interrupt::Stop;
pub use self::interrupt::{Interrupt, Interrupted};
use self::metering::Opening;
pub use self::objective::ObjectiveArgs;
pub use self::options::{RunArgs, RunOptions};
pub use self::schedule::{Schedule, ScheduleArgs};
pub use self::text::{Text, TextLoader};
use crate::args::UsageError;
use crate::fetch::{self, ModelPath, ModelRef};
use crate::verbs::Context;

/// A model whose files are open and whose weights are not loaded.
pub struct Model {
    /// As a person would name it.
    pub name: String,
    /// Config, weights, defaults.
    pub checkpoint: Checkpoint,
    /// What is run.
    pub program: Program,
    /// Where it is an artifact for Neuron devices.
    #[cfg(target_os = "linux")]
    pub artifact: Option<njoule_runtime::backend::neuron::artifact::Artifact>,
}

impl Model {
    /// Gets the model if need be, and opens it.
    pub fn open(model: &ModelRef, context: &Context<'_>) -> anyhow::Result<Model> {
        let found = fetch::resolve(model, &context.fetch)?;
        timing::mark("model found");
        #[cfg(target_os = "linux")]
        let artifact = match &found {
            ModelPath::Dir(path) if Artifact::is_in(path) => Some(Artifact::open(path)?),
            _ => None,
        };
        let checkpoint = match &found {
            #[cfg(target_os = "linux")]
            ModelPath::Dir(_) if artifact.is_some() => {
                artifact.as_ref().map(neuron::described).transpose()?.context("no artifact")?
            }
            ModelPath::Dir(path) | ModelPath::Gguf(path) => Checkpoint::open(path)?,
            ModelPath::Random(preset) => Checkpoint::random(preset)?,
        };
        let program = checkpoint.config.program();
        timing::mark("checkpoint open, program traced");
        Ok(Model {
            name: model.to_string(),
            checkpoint,
            program,
            #[cfg(target_os = "linux")]
            artifact,
        })
    }

    /// Where its files are.
    pub fn path(&self) -> Option<&Path> {
        match &self.checkpoint.origin {
            Origin::Directory(path) | Origin::Gguf(path) => Some(path),
            Origin::Preset(_) => None,
        }
    }

    /// Starts to build the tokenizer.
    pub fn load_text(&self) -> TextLoader {
        self.load_text_from(None)
    }

    /// The same of the one in `directory`, where there is one.
    pub fn load_text_from(&self, directory: Option<&Path>) -> TextLoader {
        if let Some(directory) = directory {
            return TextLoader::start(text::Source::Directory(directory.to_owned()));
        }
        TextLoader::start(match &self.checkpoint.origin {
            Origin::Gguf(_) => text::Source::Gguf(self.checkpoint.gguf.clone()),
            Origin::Directory(path) => text::Source::Directory(path.clone()),
            Origin::Preset(_) => text::Source::None,
        })
    }

    /// The longest sequence: what was asked for, else what the model was made for, at most [`MAX_LEN`] unless `needed` is
    /// more. More than that is asked for wrongly where the model ends there.
    pub fn max_len(&self, asked: Option<usize>, needed: usize, context: &Context<'_>) -> Result<usize, UsageError> {
        let made_for = self.checkpoint.config.max_len;
        #[cfg(target_os = "linux")]
        if let (Some(asked), Some(artifact)) = (asked, &self.artifact) {
            neuron::flags::check_context(artifact, asked)?;
        }
        if let Some(asked) = asked.filter(|asked| *asked > made_for) {
            if self.checkpoint.config.is_bounded() {
                return Err(UsageError(format!(
                    "--context {asked}: the model was made for {made_for} tokens, and has no positions beyond"
                )));
            }
            context.note(&format!("--context {asked} is more than the {made_for} tokens that the model was made for"));
        }
        Ok(asked.unwrap_or_else(|| MAX_LEN.max(needed).min(made_for)))
    }

    /// Packs the weights and starts an engine that takes all it is given.
    pub fn start(self, options: &RunOptions, size: Size, context: &Context<'_>) -> anyhow::Result<Session> {
        // Everything that is queued was read from a file or typed: it is in memory anyway.
        let unbounded = |config: &mut EngineConfig| {
            (config.max_queue, config.max_queued_tokens) = (usize::MAX >> 1, usize::MAX >> 1);
        };
        self.start_with(options, size, unbounded, context)
    }

    /// Packs the weights and starts an engine whose configuration `adjust` has the last word on.
    pub fn start_with(
        self,
        options: &RunOptions,
        size: Size,
        adjust: impl Fn(&mut EngineConfig),
        context: &Context<'_>,
    ) -> anyhow::Result<Session> {
        let started = Instant::now();
        // While the weights are read, so that loading is in it and no first token waits for it.
        let source = options.meters.clone().map(Opening::begin);
        let loading = Loading::begin(&self.name, context);
        let Loaded { capacity, executor, backend, reason } =
            options.load(&self, |backend| self.capacity(backend, size, options), context)?;
        timing::mark("weights packed, plan made");
        let limits = backend.limits(&self);
        let facts = Facts {
            model: self.name.clone(),
            path: self.path().map(Path::to_owned),
            backend: backend.name(),
            reason,
            device: backend.device(),
            isa: backend.isa(),
            quant: backend.weights().unwrap_or(options.quant_name()),
            kv: backend.kv_type(),
            threads: options.threads.get(),
            memory: executor.memory(),
            load: started.elapsed(),
            compile: backend.compile(),
        };
        let configured = |capacity, limits| {
            let mut config = EngineConfig { limits, ..EngineConfig::new(capacity) };
            options.schedule.apply(&mut config);
            adjust(&mut config);
            config
        };
        #[cfg(target_os = "linux")]
        let (standby, stands_by) =
            standby::prepare(&self, &backend, size, options, &facts, &configured, context)?.unzip();
        #[cfg(not(target_os = "linux"))]
        let standby = None;
        let source = source.map(Opening::end).transpose()?.map(|meters| Box::new(meters) as _);
        let config = configured(capacity, limits);
        let engine = Engine::start_with_standby(executor, self.program.vocab(), config, source, standby)?;
        drop(loading);
        let built_for = self.built_for();
        Ok(Session {
            checkpoint: self.checkpoint,
            engine,
            facts,
            #[cfg(target_os = "linux")]
            stands_by,
            built_for,
        })
    }

    /// Tokens of the longest sequence that its artifact holds.
    #[cfg(target_os = "linux")]
    pub fn built_for(&self) -> Option<usize> {
        self.artifact.as_ref().map(|artifact| artifact.manifest.layout.context)
    }

    /// Nothing settles it here.
    #[cfg(not(target_os = "linux"))]
    pub fn built_for(&self) -> Option<usize> {
        None
    }

    /// What the executor is loaded for. The cache takes memory as it is written, so its size is bounded by what the
    /// machine could give, not by what is free for good; replicas divide it.
    fn capacity(&self, backend: &AnyBackend, size: Size, options: &RunOptions) -> Capacity {
        let limits = backend.limits(self);
        let block_len = limits.block_len;
        if !limits.paged {
            let rows = limits.classes.iter().map(|class| class.rows).sum();
            let max_seqs = size.max_seqs.min(rows);
            return Capacity {
                blocks: rows,
                block_len,
                max_rows: STEP_ROWS.max(max_seqs),
                max_seqs,
                max_outputs: size.max_outputs.max(max_seqs),
                max_len: size.max_len.min(block_len),
            };
        }
        let per_seq = size.max_len.div_ceil(block_len).max(1);
        let block_bytes = (block_len * kv_bytes_per_token(&self.program, backend.kv_type())).max(1);
        let affordable =
            available_memory().map_or(usize::MAX, |bytes| bytes / 2 / options.replicas.max(1) / block_bytes);
        let blocks = per_seq.saturating_mul(size.max_seqs).min(affordable.max(per_seq));
        Capacity {
            blocks,
            block_len,
            max_rows: STEP_ROWS.max(size.max_seqs),
            max_seqs: size.max_seqs,
            max_outputs: size.max_outputs.max(size.max_seqs).max(1 + options.schedule.outputs()),
            max_len: size.max_len,
        }
    }
}

/// What a session must be able to hold.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Tokens of a sequence.
    pub max_len: usize,
    /// Sequences that run together.
    pub max_seqs: usize,
    /// Rows of a step that have logits.
    pub max_outputs: usize,
}

/// An engine with a model.
pub struct Session {
    /// What it was loaded from.
    pub checkpoint: Checkpoint,
    /// The engine.
    pub engine: Engine,
    /// For reports.
    pub facts: Facts,
    /// What stands by in its place.
    #[cfg(target_os = "linux")]
    stands_by: Option<standby::StandsBy>,
    /// Tokens of the longest sequence, where an artifact has settled that.
    pub built_for: Option<usize>,
}

impl Session {
    /// The facts as they are now: those of what stood by, where that has taken over.
    pub fn facts_now(&self) -> Facts {
        #[cfg(target_os = "linux")]
        if let (Some(why), Some(stands_by)) = (self.engine.moved(), &self.stands_by) {
            return stands_by.facts(why);
        }
        self.facts.clone()
    }

    /// Tokens that end an answer: those of config and generation config, and of the tokenizer.
    pub fn eos(&self, text: Option<&Text>) -> Vec<u32> {
        let mut eos = self.checkpoint.generation.eos.clone();
        let more = text.map_or(&[][..], |text| &text.tokenizer.specials().eos);
        more.iter().for_each(|id| {
            if !eos.contains(id) {
                eos.push(*id)
            }
        });
        eos
    }

    /// Ends the engine and returns its figures.
    pub fn finish(self) -> anyhow::Result<Finished> {
        self.engine.shutdown(Duration::from_secs(5))?;
        let (mut stats, meters) = (self.engine.stats(), self.engine.meters());
        stats.energy = stats.energy.whole();
        Ok(Finished { stats, meters, facts: self.facts_now() })
    }
}

/// What an engine has done from loading to its last step.
pub struct Finished {
    /// Its figures; energy that is not known of all of the time up to its last step is unknown.
    pub stats: EngineStats,
    /// How it was loaded.
    pub facts: Facts,
    meters: Option<Arc<Value>>,
}

impl Finished {
    /// Energy of all of it, by what it went for.
    pub fn energy(&self) -> Value {
        self.stats.energy.json(self.meters.as_deref())
    }
}

/// How a model was loaded.
#[derive(Clone, Debug)]
pub struct Facts {
    model: String,
    path: Option<PathBuf>,
    backend: &'static str,
    reason: String,
    device: &'static str,
    isa: Option<&'static str>,
    quant: &'static str,
    kv: KvType,
    threads: usize,
    memory: MemoryUse,
    /// From open files to a ready engine.
    pub load: Duration,
    /// Of the compiler, for the modules that run, whenever that was.
    pub compile: Option<Duration>,
}

impl Facts {
    /// As the `model` object of a report.
    pub fn json(&self) -> Value {
        json!({
            "name": self.model,
            "path": self.path,
            "backend": self.backend,
            "backend_reason": self.reason,
            "device": self.device,
            "isa": self.isa,
            "quant": self.quant,
            "kv_type": options::kv_name(self.kv),
            "threads": self.threads,
            "weight_bytes": self.memory.weights,
            "kv_capacity_bytes": self.memory.kv,
            "load_s": self.load.as_secs_f64(),
        })
    }
}

/// Cache bytes of one token, all layers.
pub fn kv_bytes_per_token(program: &Program, kv: KvType) -> usize {
    program.caches.iter().map(|c| c.kv_heads * (kv.bytes(c.k_dim) + kv.bytes(c.v_dim))).sum()
}

/// A JSON file as a list of token ids per sequence.
pub fn read_token_ids(path: &Path) -> anyhow::Result<Vec<Vec<u32>>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lists: Vec<Vec<u32>> = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not an array of arrays of token ids", path.display()))?;
    if lists.is_empty() {
        return Err(anyhow!("{} holds no sequence", path.display()));
    }
    match lists.iter().position(Vec::is_empty) {
        Some(i) => Err(anyhow!("sequence {i} of {} is empty", path.display())),
        None => Ok(lists),
    }
}

/// The line that says a model is being loaded; on a terminal only, and gone afterwards.
struct Loading(bool);

impl Loading {
    fn begin(name: &str, context: &Context<'_>) -> Loading {
        let show = context.progress_line();
        if show {
            eprint!("loading {name} ...");
        }
        Loading(show)
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if self.0 {
            eprint!("\r\x1b[K");
        }
    }
}

/// `MemAvailable` of /proc/meminfo.
pub(crate) fn available_memory() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Longest sequence unless more is asked for: a cache beyond it is rarely wanted and its tables cost time.
const MAX_LEN: usize = 8192;

/// Rows of a step: where prompts reach the machine's peak.
const STEP_ROWS: usize = 512;
