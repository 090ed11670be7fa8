//! Modules of a plan in the cache: found by plan and compiler, or built.
//!
//! `modules/PLAN-COMPILER` is an artifact without weights. Serving needs the compiler's version at most, and that is asked of
//! each compiler once: a start with everything in the cache runs nothing of Python. Where there is no compiler, what one made
//! before serves.
//!
//! Invariant: with a compiler, only what that version has compiled is run. What cannot be opened here is made anew.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use njoule_runtime::backend::neuron::artifact::Artifact;
use njoule_runtime::backend::neuron::compiler::{CompileError, Compiler};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{BuildOptions, Planned, build, cache};
use crate::session::Model;
use crate::verbs::Context;

/// The modules of a plan: in the cache, or built into it.
pub(super) fn cached(
    model: &Model,
    planned: &Planned,
    options: &BuildOptions,
    context: &Context<'_>,
) -> anyhow::Result<Artifact> {
    let cache = cache(context)?;
    let (shelf, plan) = (cache.join("modules"), plan_key(planned, options)?);
    let version = match version(&cache) {
        Ok(version) => version,
        Err(error) => {
            let Some(artifact) = newest(&shelf, &plan) else { return Err(error.into()) };
            let by = &artifact.manifest.compiler;
            context.note(&format!("running the modules that neuronx-cc {by} compiled, from the cache, since {error}"));
            return Ok(artifact);
        }
    };
    let place = shelf.join(format!("{plan}-{}", key([version.as_bytes()])));
    match Artifact::open(&place) {
        Ok(artifact) => return Ok(artifact),
        Err(_) if place.symlink_metadata().is_err() => {}
        Err(error) => {
            context.note(&format!("what the cache has of {} is built anew: {error}", model.name));
            fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
        }
    }
    context.note(&format!(
        "building {} modules of {} for {}",
        planned.layout.modules.len(),
        model.name,
        planned.plan.instance
    ));
    fs::create_dir_all(&shelf).with_context(|| format!("cannot make {}", shelf.display()))?;
    Ok(build::make(model, planned, options, &place, false, |_| Ok(()), context)?.artifact)
}

/// The artifact of a plan that was made last, whichever compiler made it.
fn newest(shelf: &Path, plan: &str) -> Option<Artifact> {
    let of_plan = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        // One that is being written has a dot in its name.
        name.to_str().is_some_and(|name| name.starts_with(plan) && !name.contains('.'))
    };
    let entries = fs::read_dir(shelf).ok()?.flatten().filter(of_plan);
    let made = |path: &Path| path.join("manifest.json").metadata().and_then(|m| m.modified()).ok();
    let mut all: Vec<(Option<SystemTime>, PathBuf)> =
        entries.map(|entry| (made(&entry.path()), entry.path())).collect();
    all.sort_unstable();
    all.iter().rev().find_map(|(_, path)| Artifact::open(path).ok())
}

/// What a compiler said, and which.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    version: String,
    compiler: Identity,
}

/// A file that was not changed or replaced.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> Option<Identity> {
        let path = path.canonicalize().ok()?;
        let found = path.metadata().ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Identity { path, device: found.dev(), inode: found.ino(), bytes: found.len(), changed })
    }
}

/// The version of this machine's compiler: as it told it, if the file is the same since.
fn version(cache: &Path) -> Result<String, CompileError> {
    let memory = cache.join("compiler.json");
    let present = Compiler::locate().and_then(|path| Identity::of(&path));
    let known: Option<Asked> = fs::read(&memory).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let (Some(present), Some(known)) = (&present, known)
        && *present == known.compiler
    {
        return Ok(known.version);
    }
    let version = Compiler::find()?.version().to_owned();
    if let Some(asked) = present.map(|compiler| Asked { version: version.clone(), compiler })
        && let Ok(text) = serde_json::to_vec_pretty(&asked)
    {
        // Lost where it cannot be written: it is asked again. Whole or not at all, for others who read it.
        let part = memory.with_extension(format!("part-{}", std::process::id()));
        let written = fs::create_dir_all(cache).and_then(|()| fs::write(&part, text));
        let _ = written.and_then(|()| fs::rename(&part, &memory));
    }
    Ok(version)
}

/// What modules depend on beside their compiler.
fn plan_key(planned: &Planned, options: &BuildOptions) -> anyhow::Result<String> {
    Ok(key([
        env!("CARGO_PKG_VERSION").as_bytes(),
        planned.record.fingerprint.as_bytes(),
        &serde_json::to_vec(&planned.layout)?,
        &serde_json::to_vec(&(options.opt_level, &options.flags))?,
    ]))
}

fn key<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
