//! From a model and a layout to an artifact: lower every module, compile what the cache lacks, pack the weights.
//!
//! No Neuron device is needed. What is done stays in the caches: a build that was stopped goes on from there.
//!
//! Invariant: an artifact holds exactly the modules of its layout, lowered from the program whose fingerprint it bears.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use njoule_hlo::encode;
use njoule_models::program::{Program, WeightId};
use njoule_models::weights::WeightSource;

use super::artifact::{Artifact, ArtifactError, Layout, ModelRecord, Module, Put, Source, WriteError, Writer, lay_out};
use super::compiler::{CompileError, Compiled, Compiler, Event, Limits, NeffCache, Settings, Unit};
use super::interface::{CacheShape, Input, ModuleKind, ModuleSpec, Part};
use super::lower::{LowerError, Lowered, lower};
use super::plan::Plan;
use super::profile::Profile;
use super::shard::{ShardError, Sharded, shard};
use super::weights;
use crate::backend::LoadError;

/// What is built.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// What to run.
    pub program: &'a Program,
    /// Whose it is.
    pub model: &'a ModelRecord,
    /// How it is laid out.
    pub layout: &'a Layout,
    /// The planner's own words, kept for people.
    pub plan: &'a serde_json::Value,
    /// Further flags of the compiler.
    pub flags: &'a [String],
    /// Its `-O`; by default 2 for decode and 1 for the large modules of prefill, as AWS's own stack has it.
    pub opt_level: Option<u8>,
    /// Set by somebody who wants to stop: compilers are killed, no artifact appears, what is compiled stays in the cache.
    pub cancelled: &'a AtomicBool,
}

/// Modules that were lowered.
#[derive(Debug)]
pub struct Lowering {
    sharded: Sharded,
    modules: Vec<Lowered>,
    /// For the compiler, in the order of the layout's modules.
    pub units: Vec<Unit>,
}

/// What a build tells of its progress.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Modules are lowered: this many of those there are.
    Lowered(usize, usize),
    /// Of a compile.
    Compile(Event<'a>),
    /// Weights are going to be packed: bytes of all ranks.
    Packing(u64),
    /// Bytes of this piece.
    Packed(u64),
}

/// Who hears of it, from several threads.
pub type Observer<'a> = dyn Fn(Progress<'_>) + Sync + 'a;

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The model cannot be divided so.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A module cannot be lowered.
    #[error("module {module}: {source}")]
    Lower {
        /// Module.
        module: String,
        /// Cause.
        source: Box<LowerError>,
    },
    /// Two modules want a weight in two forms: a bug of njoule.
    #[error("{0}")]
    Parameters(String),
    /// The compiler.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A weight cannot be read or stored.
    #[error(transparent)]
    Weights(#[from] LoadError),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// What was written cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Somebody asked to stop.
    #[error("the build was stopped; modules that are done stay in the cache, and the next build goes on from there")]
    Stopped,
}

impl BuildError {
    /// Whether somebody asked for it.
    pub fn is_stop(&self) -> bool {
        matches!(self, BuildError::Stopped | BuildError::Compile(CompileError::Cancelled))
    }
}

impl Job<'_> {
    /// Lowers every module.
    pub fn lower(&self, on_progress: &Observer<'_>) -> Result<Lowering, BuildError> {
        let (layout, spec) = (self.layout, self.layout.model_spec());
        let sharded = shard(self.program, layout.tp)?;
        let (mut modules, mut units) = (vec![], vec![]);
        for (i, module) in layout.modules.iter().enumerate() {
            self.go_on()?;
            let name = module_name(i, module);
            let lowered = lower(&sharded, &spec, module)
                .map_err(|source| BuildError::Lower { module: name.clone(), source: Box::new(source) })?;
            units.push(Unit { name, hlo: encode(&lowered.module), settings: self.settings(module) });
            modules.push(lowered);
            on_progress(Progress::Lowered(i + 1, layout.modules.len()));
        }
        Ok(Lowering { sharded, modules, units })
    }

    /// Compiles what `cache` lacks, `jobs` at once at most.
    pub fn compile(
        &self,
        lowering: &Lowering,
        compiler: &Compiler,
        cache: &NeffCache,
        jobs: Option<usize>,
        on_progress: &Observer<'_>,
    ) -> Result<Vec<Compiled>, BuildError> {
        let limits = Limits { jobs, memory: None, deadline: None, cancelled: self.cancelled };
        Ok(compiler.compile(&lowering.units, cache, limits, &|event| on_progress(Progress::Compile(event)))?)
    }

    /// Writes the artifact; with `source`, its weights too. `files` adds what else belongs into it.
    pub fn write(
        &self,
        place: &Path,
        lowering: &Lowering,
        compiler: &Compiler,
        compiled: &[Compiled],
        source: Option<&dyn WeightSource>,
        files: impl FnOnce(&mut Writer) -> Result<(), BuildError>,
        on_progress: &Observer<'_>,
    ) -> Result<Artifact, BuildError> {
        let ports = lowering.modules.iter().flat_map(|module| &module.inputs);
        let name = |role: &Input| match role {
            Input::Weight(id, _) => self.program.weight(*id).name.clone(),
            _ => String::new(),
        };
        let parameters = lay_out(ports, name).map_err(BuildError::Parameters)?;
        let used: BTreeSet<WeightId> = parameters
            .iter()
            .filter_map(|p| if let Input::Weight(id, _) = p.port.role { Some(id) } else { None })
            .collect();
        let mut writer = Writer::start(
            place,
            Source {
                njoule: env!("CARGO_PKG_VERSION").to_owned(),
                compiler: compiler.version().to_owned(),
                model: self.model.clone(),
                layout: self.layout.clone(),
                plan: self.plan.clone(),
                parameters,
            },
        )?;
        for ((unit, lowered), compiled) in lowering.units.iter().zip(&lowering.modules).zip(compiled) {
            let spec = self.layout.modules[writer.modules()].clone();
            writer.module(&Module {
                name: unit.name.clone(),
                spec,
                inputs: lowered.inputs.clone(),
                outputs: lowered.outputs.clone(),
                hlo: unit.hlo.clone(),
                neff: compiled.neff.clone(),
                neff_sha256: compiled.record.neff_sha256.clone(),
                flags: compiled.record.flags.clone(),
                peak_bytes: compiled.record.peak_bytes,
                seconds: compiled.record.seconds,
            })?;
        }
        if let Some(source) = source {
            let bytes: u64 = writer.parameters().iter().map(|p| p.bytes).sum();
            on_progress(Progress::Packing(bytes * self.layout.tp as u64));
            for rank in 0..self.layout.tp {
                writer.weights(|put| self.pack(&lowering.sharded, source, rank, &used, put, on_progress))?;
            }
        }
        files(&mut writer)?;
        self.go_on()?;
        writer.finish()?;
        Ok(Artifact::open(place)?)
    }

    /// Packs what a rank has of every weight, one after the other.
    fn pack(
        &self,
        sharded: &Sharded,
        source: &dyn WeightSource,
        rank: usize,
        used: &BTreeSet<WeightId>,
        put: &mut Put<'_>,
        on_progress: &Observer<'_>,
    ) -> Result<(), BuildError> {
        let types = weights::stored(self.program, self.layout.weights);
        for (id, dtype) in (0..).map(WeightId).zip(types).filter(|(id, _)| used.contains(id)) {
            // The sink speaks of loading; what a write said is kept beside it.
            let mut failed = None;
            let mut sink = |part, bytes: &[u8]| {
                // The cause is said below.
                self.go_on().map_err(|stop| LoadError::Device(stop.to_string()))?;
                on_progress(Progress::Packed(bytes.len() as u64));
                put(Input::Weight(id, part), bytes).map_err(|error| {
                    let what = error.to_string();
                    failed = Some(error);
                    LoadError::Device(what)
                })
            };
            let result = weights::write_part(source, sharded, id, dtype, rank, &mut sink);
            if let Some(error) = failed {
                return Err(error.into());
            }
            self.go_on()?;
            result?;
        }
        Ok(())
    }

    /// An error where somebody asked to stop.
    fn go_on(&self) -> Result<(), BuildError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(BuildError::Stopped) } else { Ok(()) }
    }

    fn settings(&self, module: &ModuleSpec) -> Settings {
        let usual = if matches!(module.kind, ModuleKind::Decode { .. }) { 2 } else { 1 };
        Settings {
            target: self.layout.target,
            opt_level: self.opt_level.unwrap_or(usual),
            lnc: self.layout.lnc,
            extra: self.flags.to_vec(),
        }
    }
}

impl Layout {
    /// Of a plan. With `score`, each class gets a module that returns logits of chunks, which scoring needs.
    pub fn of_plan(plan: &Plan, profile: Profile, score: bool) -> Layout {
        let mut modules = plan.modules.clone();
        for class in plan.classes.iter().filter(|_| score) {
            let chunks = plan.lane(*class).chunks;
            let Some(&tokens) = chunks.first() else { continue };
            let kind = ModuleKind::Score { tokens };
            modules.push(ModuleSpec::of(*class, kind, class.positions));
        }
        Layout {
            instance: plan.instance.clone(),
            target: plan.target,
            lnc: plan.lnc,
            tp: plan.tp,
            replicas: plan.replicas,
            weights: plan.weights,
            kv: plan.kv,
            candidates: plan.candidates,
            context: plan.context,
            profile,
            classes: plan.classes.clone(),
            modules,
        }
    }
}

/// Unique among the modules of a layout; one of several classes by its number there.
fn module_name(number: usize, module: &ModuleSpec) -> String {
    let len = module.longest();
    let kind = match module.kind {
        ModuleKind::Decode { batch } => format!("decode{batch}"),
        ModuleKind::Prefill { tokens } => format!("prefill{tokens}"),
        ModuleKind::Score { tokens } => format!("score{tokens}"),
    };
    match module.parts[..] {
        [Part { class: CacheShape { rows, positions }, .. }] => format!("{kind}-len{len}-class{rows}x{positions}"),
        ref parts => format!("{kind}-len{len}-classes{}-no{number}", parts.len()),
    }
}
