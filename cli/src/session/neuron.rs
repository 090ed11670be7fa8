//! Artifacts for Neuron devices: opened, or planned and built from a model.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, anyhow};
use njoule_models::checkpoint::{Checkpoint, Origin as CheckpointOrigin};
use njoule_runtime::backend::neuron::artifact::{Artifact, Layout, ModelRecord, Origin, Writer};
use njoule_runtime::backend::neuron::build::{BuildError, Job, Lowering, Progress};
use njoule_runtime::backend::neuron::compiler::{Compiled, Compiler, Event, Limits, NeffCache};
use njoule_runtime::backend::neuron::plan::{Instances, Lengths, Plan, Wish, plan};
use njoule_runtime::backend::neuron::{NeuronBackend, Profile};
use sha2::{Digest, Sha256};

use super::Model;
use crate::args::UsageError;
use crate::verbs::Context;

/// How a model is built.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Instance type; the present one if unset.
    pub instance: Option<String>,
    /// What the planner is asked for.
    pub wish: Wish,
    /// Physical cores of a logical one.
    pub lnc: Option<u8>,
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
}

/// A model with its plan, ready to be compiled.
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    layout: Layout,
    record: ModelRecord,
    plan_json: serde_json::Value,
}

/// A built artifact and what became of its modules.
pub struct Built {
    /// The artifact.
    pub artifact: Artifact,
    /// Its modules' compiles.
    pub compiled: Vec<Compiled>,
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

/// Plans a model for an instance.
pub fn plan_model(model: &Model, options: &BuildOptions, context: &Context<'_>) -> anyhow::Result<Planned> {
    let instances = Instances::built_in();
    let name = options.instance.clone().or_else(present_instance).ok_or_else(|| {
        UsageError(format!(
            "this machine is no Neuron instance that is known: name one with --instance ({})",
            instances.names()
        ))
    })?;
    let instance = instances
        .find(&name)
        .ok_or_else(|| UsageError(format!("no instance type is called {name:?}; known are {}", instances.names())))?;
    let made_for = model.checkpoint.config.max_len;
    let wish = Wish { context: options.wish.context.min(made_for), ..options.wish.clone() };
    let plan = plan(&model.program, instance, &Lengths::default(), &wish)?;
    let profile = device_profile(options.profile.as_deref(), plan.target.name(), context)?;
    let layout = Layout::of_plan(&plan, profile, options.lnc, !options.no_score);
    let origin = match &model.checkpoint.origin {
        CheckpointOrigin::Directory(_) => Origin::Directory,
        CheckpointOrigin::Preset(preset) => Origin::Preset(preset.clone()),
        CheckpointOrigin::Gguf(_) => match model.checkpoint.gguf.as_deref().filter(|gguf| gguf.head().is_some()) {
            Some(gguf) => Origin::GgufHead { file: GGUF_HEAD.to_owned(), whole: gguf.file_bytes() },
            None => Origin::None,
        },
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

/// Builds a whole artifact at `place`.
pub fn build(
    model: &Model,
    planned: &Planned,
    options: &BuildOptions,
    place: &Path,
    context: &Context<'_>,
) -> anyhow::Result<Built> {
    let dir = match &model.checkpoint.origin {
        CheckpointOrigin::Directory(dir) => Some(dir.clone()),
        CheckpointOrigin::Gguf(_) | CheckpointOrigin::Preset(_) => None,
    };
    let head = model.checkpoint.gguf.as_deref().map(|gguf| {
        gguf.head().ok_or_else(|| {
            anyhow!(
                "{}: no artifact can be made of a split GGUF file or of one with rotary divisors (rope_freqs); \
                 `--backend neuron` runs it, its weights then come from the file",
                gguf.path().display()
            )
        })
    });
    let head = head.transpose()?;
    let files = |writer: &mut Writer| {
        if let Some(head) = head {
            writer.file(GGUF_HEAD, head)?;
        }
        for name in FILES {
            if let Some(path) = dir.as_ref().map(|dir| dir.join(name)).filter(|path| path.is_file()) {
                writer.file_from(name, &path)?;
            }
        }
        Ok(())
    };
    make(model, planned, options, place, true, files, context)
}

/// The backend for a model: its own artifact, or modules built into the cache.
pub fn backend(model: &Model, options: &BuildOptions, context: &Context<'_>) -> anyhow::Result<NeuronBackend> {
    let artifact = match &model.artifact {
        Some(artifact) => artifact.clone(),
        None => {
            let mut planned = plan_model(model, options, context)?;
            // Modules alone: they are for whatever model has this shape.
            planned.record.origin = Origin::None;
            let compiler = Compiler::find()?;
            let place = cache(context)?.join("modules").join(request_key(&planned, options, &compiler)?);
            match Artifact::open(&place) {
                Ok(artifact) => artifact,
                Err(_) => {
                    context.note(&format!(
                        "building {} modules of {} for {}",
                        planned.layout.modules.len(),
                        model.name,
                        planned.plan.instance
                    ));
                    std::fs::create_dir_all(place.parent().unwrap_or(&place))
                        .with_context(|| format!("cannot make {}", place.display()))?;
                    make(model, &planned, options, &place, false, |_| Ok(()), context)?.artifact
                }
            }
        }
    };
    let mut backend = NeuronBackend::new(artifact);
    let seconds =
        |name: &str| context.fetch.env.var(name).and_then(|v| v.parse().ok()).map(std::time::Duration::from_secs);
    if let Some(limit) = seconds("NJOULE_NEURON_STEP_TIMEOUT") {
        backend.step_limit = limit;
    }
    if let Some(limit) = seconds("NJOULE_NEURON_LOAD_TIMEOUT") {
        backend.load_limit = limit;
    }
    Ok(backend)
}

/// Lowers, compiles and writes.
fn make(
    model: &Model,
    planned: &Planned,
    options: &BuildOptions,
    place: &Path,
    weights: bool,
    files: impl FnOnce(&mut Writer) -> Result<(), BuildError>,
    context: &Context<'_>,
) -> anyhow::Result<Built> {
    let job = Job {
        program: &model.program,
        model: &planned.record,
        layout: &planned.layout,
        plan: &planned.plan_json,
        flags: &options.flags,
        opt_level: options.opt_level,
    };
    let compiler = Compiler::find()?;
    let reporter = &context.fetch.reporter;
    let done = Mutex::new(0);
    let count = planned.layout.modules.len();
    let on_progress = |progress: Progress<'_>| match progress {
        Progress::Lowered(..) => {}
        Progress::Packed(bytes) => reporter.advance(bytes),
        Progress::Compile(Event::Done(unit, compiled)) => {
            // A poisoned lock means that a compile panicked: the count is still a count.
            let mut done = done.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *done += 1;
            let how = if compiled.cached { "from the cache".to_owned() } else { took(compiled) };
            reporter.note(&format!("[{done}/{count}] {} {how}", unit.name));
        }
        Progress::Compile(Event::Started(unit)) => reporter.note(&format!("compiling {}", unit.name)),
        Progress::Compile(Event::Waiting(unit)) => reporter.note(&format!("another process compiles {}", unit.name)),
        Progress::Compile(Event::Again(unit)) => {
            reporter.note(&format!("{} was killed, most likely for memory: it is compiled again, alone", unit.name));
        }
    };
    let lowering: Lowering = job.lower(&on_progress)?;
    let never = AtomicBool::new(false);
    let limits = Limits { jobs: options.jobs, memory: None, deadline: None, cancelled: &never };
    let compiled = job.compile(&lowering, &compiler, &NeffCache::new(&cache(context)?), limits, &on_progress)?;
    let source = weights.then_some(model.checkpoint.weights.as_ref());
    let artifact = job.write(place, &lowering, &compiler, &compiled, source, files, &on_progress)?;
    Ok(Built { artifact, compiled })
}

fn took(compiled: &Compiled) -> String {
    format!("in {:.1} s, {:.2} GB of memory", compiled.record.seconds, compiled.record.peak_bytes as f64 / 1e9)
}

/// What a build for the cache depends on, beside the modules' own content.
fn request_key(planned: &Planned, options: &BuildOptions, compiler: &Compiler) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let parts = [
        env!("CARGO_PKG_VERSION").as_bytes().to_vec(),
        planned.record.fingerprint.clone().into_bytes(),
        serde_json::to_vec(&planned.layout)?,
        serde_json::to_vec(&(options.opt_level, &options.flags))?,
        compiler.version().as_bytes().to_vec(),
    ];
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Ok(hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
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
fn present_instance() -> Option<String> {
    let root = std::env::var_os("NJOULE_SYSFS_ROOT").unwrap_or_else(|| "/".into());
    let name = std::fs::read_to_string(Path::new(&root).join("sys/devices/virtual/dmi/id/product_name")).ok()?;
    let name = name.trim();
    name.contains('.').then(|| name.to_owned())
}

/// The head of a GGUF file in an artifact; not called .gguf, so that nothing takes it for a model.
const GGUF_HEAD: &str = "model.gguf-head";

/// What of a model's directory serves it, beside its weights.
const FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
