//! A build as a person sees it: progress, Ctrl-C, logs, and a look at the result.
//!
//! Invariant: stopped at any moment, it leaves no compiler behind and no half artifact; what was compiled stays in the cache.

use std::path::Path;

use anyhow::Context as _;
use njoule_models::checkpoint::Origin as CheckpointOrigin;
use njoule_runtime::backend::neuron::artifact::{Artifact, Writer};
use njoule_runtime::backend::neuron::build::{BuildError, Job};
use njoule_runtime::backend::neuron::compiler::{Compiled, Compiler, NeffCache};

use super::progress::Progress;
use super::{BuildOptions, GGUF_HEAD, Planned, cache};
use crate::session::{Interrupted, Model, Stop};
use crate::verbs::Context;

/// A built artifact and what became of its modules.
pub struct Built {
    /// The artifact.
    pub artifact: Artifact,
    /// Its modules' compiles.
    pub compiled: Vec<Compiled>,
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
    let head = model.checkpoint.gguf.as_deref().map(|gguf| gguf.head().bytes);
    let files = |writer: &mut Writer| {
        if let Some(head) = &head {
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

/// Lowers, compiles and writes.
pub(super) fn make(
    model: &Model,
    planned: &Planned,
    options: &BuildOptions,
    place: &Path,
    weights: bool,
    files: impl FnOnce(&mut Writer) -> Result<(), BuildError>,
    context: &Context<'_>,
) -> anyhow::Result<Built> {
    Writer::may_take(place)?;
    let (compiler, cache) = (Compiler::find()?, NeffCache::new(&cache(context)?));
    let stop = Stop::install().context("cannot take Ctrl-C over")?;
    let job = Job {
        program: &model.program,
        model: &planned.record,
        layout: &planned.layout,
        plan: &planned.plan_json,
        flags: &options.flags,
        opt_level: options.opt_level,
        cancelled: stop.flag(),
    };
    let progress = Progress::new(context, planned.layout.modules.len());
    let on_progress = |what: njoule_runtime::backend::neuron::build::Progress<'_>| progress.hear(what);
    let run = || -> Result<Built, BuildError> {
        let lowering = job.lower(&on_progress)?;
        progress.compiling(&lowering.units, &compiler, &cache);
        let compiled = job.compile(&lowering, &compiler, &cache, options.jobs, &on_progress)?;
        progress.compiled();
        if let Some(logs) = &options.logs {
            for (unit, compiled) in lowering.units.iter().zip(&compiled) {
                compiled.copy_log(&logs.join(format!("{}.log", unit.name)))?;
            }
        }
        let source = weights.then_some(model.checkpoint.weights.as_ref());
        let artifact = job.write(place, &lowering, &compiler, &compiled, source, files, &on_progress)?;
        Ok(Built { artifact, compiled })
    };
    let built = run();
    progress.end();
    match built {
        Err(error) if error.is_stop() => {
            context.note(&error.to_string());
            Err(Interrupted.into())
        }
        result => Ok(result?),
    }
}

/// Looks at every byte of an artifact.
pub fn verify(artifact: &Artifact, context: &Context<'_>) -> anyhow::Result<()> {
    let progress = Progress::new(context, 0);
    progress.bytes("verifying", artifact.files().map(|file| file.bytes).sum());
    let verified = artifact.verify(|bytes| progress.advance(bytes));
    progress.end();
    Ok(verified?)
}

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
