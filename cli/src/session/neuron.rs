//! Artifacts for Neuron devices: opened, planned, built into the cache where a verb runs a model that has none.

mod build;
mod cached;
pub mod flags;
mod limits;
pub mod probe;
mod progress;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use njoule_models::checkpoint::{Checkpoint, Origin as CheckpointOrigin};
use njoule_runtime::backend::neuron::artifact::{Artifact, Layout, ModelRecord, Origin};
use njoule_runtime::backend::neuron::plan::{Instance, Instances, Lengths, Plan, Wish, plan, smallest_instance};
use njoule_runtime::backend::neuron::{NeuronBackend, Profile};

pub use self::build::{Built, build, verify};
use self::cached::cached;
pub use self::limits::Limits;
use super::Model;
use super::planning::no_instance;
use crate::args::UsageError;
use crate::verbs::Context;
use crate::verbs::plan::in_words;

/// How a planned model is built.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Whether prompts cannot be scored.
    pub no_score: bool,
    /// Compiles at once.
    pub jobs: Option<usize>,
    /// The compiler's `-O`.
    pub opt_level: Option<u8>,
    /// Further flags of the compiler.
    pub flags: Vec<String>,
    /// A device profile; what `njoule probe` recorded of the target if unset.
    pub profile: Option<PathBuf>,
    /// Where copies of the compiler's logs go.
    pub logs: Option<PathBuf>,
}

/// A model with its plan, ready to be compiled.
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    layout: Layout,
    record: ModelRecord,
    plan_json: serde_json::Value,
}

/// Opens an artifact's model without its weights.
pub fn described(artifact: &Artifact) -> anyhow::Result<Checkpoint> {
    match &artifact.manifest.model.origin {
        Origin::Directory => Ok(Checkpoint::described(&artifact.dir)?),
        Origin::Preset(preset) => Ok(Checkpoint::random(preset)?),
        Origin::GgufHead { file, whole } => Ok(Checkpoint::described_by_head(&artifact.dir.join(file), *whole)?),
        Origin::None => Err(anyhow!("{} holds modules alone: name the model that it serves", artifact.dir.display())),
    }
}

/// The instance type that was named, or this machine's.
pub fn instance_name(named: Option<&str>, table: &Instances) -> Result<String, UsageError> {
    named.map(str::to_owned).or_else(present_instance).ok_or_else(|| {
        UsageError(format!(
            "this machine is no Neuron instance that is known: name one with --instance ({})",
            table.names()
        ))
    })
}

/// A model laid out by `plan`.
pub fn lay_out(model: &Model, plan: Plan, options: &BuildOptions, context: &Context<'_>) -> anyhow::Result<Planned> {
    let profile = device_profile(options.profile.as_deref(), plan.target.name(), context)?;
    laid_out(model, plan, profile, options)
}

/// The same in the forms of `profile`.
fn laid_out(model: &Model, plan: Plan, profile: Profile, options: &BuildOptions) -> anyhow::Result<Planned> {
    let layout = Layout::of_plan(&plan, profile, !options.no_score);
    let origin = match (&model.checkpoint.origin, &model.checkpoint.gguf) {
        (CheckpointOrigin::Directory(_), _) => Origin::Directory,
        (CheckpointOrigin::Preset(preset), _) => Origin::Preset(preset.clone()),
        (CheckpointOrigin::Gguf(_), Some(gguf)) => {
            Origin::GgufHead { file: GGUF_HEAD.to_owned(), whole: gguf.head().whole }
        }
        (CheckpointOrigin::Gguf(_), None) => Origin::None,
    };
    let record = ModelRecord {
        name: model.name.clone(),
        architecture: model.program.name.clone(),
        fingerprint: format!("{:016x}", model.program.fingerprint()),
        vocab: model.program.vocab(),
        origin,
    };
    let plan_json = serde_json::to_value(&plan)?;
    Ok(Planned { plan, layout, record, plan_json })
}

/// Plans a model for an instance and lays it out.
pub fn plan_model(
    model: &Model,
    instance: &Instance,
    lengths: &Lengths,
    wish: &Wish,
    options: &BuildOptions,
    context: &Context<'_>,
) -> anyhow::Result<Planned> {
    match plan(&model.program, instance, lengths, wish) {
        Ok(plan) => lay_out(model, plan, options, context),
        Err(error) => {
            let table = Instances::built_in();
            Err(in_words(error, || smallest_instance(&model.program, &table, lengths, wish)))
        }
    }
}

/// The backend for a model: its own artifact, or modules built into the cache.
pub fn backend(
    model: &Model,
    instance: Option<&str>,
    wish: &Wish,
    context: &Context<'_>,
) -> anyhow::Result<NeuronBackend> {
    let artifact = match &model.artifact {
        Some(artifact) => artifact.clone(),
        None => {
            let (table, options) = (Instances::built_in(), BuildOptions::default());
            let name = instance_name(instance, &table)?;
            let instance = table.find(&name).ok_or_else(|| no_instance(&name, &table))?;
            let mut planned = plan_model(model, instance, &Lengths::built_in(wish.context), wish, &options, context)?;
            // Modules alone: they are for whatever model has this shape.
            planned.record.origin = Origin::None;
            cached(model, &planned, &options, context)?
        }
    };
    Ok(Limits::of(&context.fetch.env)?.on(artifact))
}

/// The profile in `file`, else what a chip of the target was found to take, else the defaults.
fn device_profile(file: Option<&Path>, target: &str, context: &Context<'_>) -> anyhow::Result<Profile> {
    let recorded = cache(context)?.join("profiles").join(format!("{target}.json"));
    let path = file.unwrap_or(&recorded);
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Ok(Profile::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read the device profile {}", path.display())),
    };
    let profile = serde_json::from_str(&text).with_context(|| format!("{} is no device profile", path.display()))?;
    context.note(&format!("device profile: {}", path.display()));
    Ok(profile)
}

fn cache(context: &Context<'_>) -> anyhow::Result<PathBuf> {
    Ok(context.fetch.env.njoule_cache()?.join("neuron"))
}

/// Logical cores of the instance that `NJOULE_INSTANCE` or the machine names.
pub fn machine_cores(context: &Context<'_>) -> Option<usize> {
    let name = context.fetch.env.var("NJOULE_INSTANCE").map(str::to_owned).or_else(present_instance)?;
    Some(Instances::built_in().find(&name)?.cores())
}

/// What the machine's firmware calls it.
pub fn present_instance() -> Option<String> {
    let root = std::env::var_os("NJOULE_SYSFS_ROOT").unwrap_or_else(|| "/".into());
    let name = std::fs::read_to_string(Path::new(&root).join("sys/devices/virtual/dmi/id/product_name")).ok()?;
    let name = name.trim();
    name.contains('.').then(|| name.to_owned())
}

/// The head of a GGUF file in an artifact; not called .gguf, so that nothing takes it for a model.
const GGUF_HEAD: &str = "model.gguf-head";
