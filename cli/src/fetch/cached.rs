//! What both caches hold, for `njoule models`.

use std::fs;
use std::path::{Path, PathBuf};

use super::hub::{Snapshot, repo_of_folder, revisions};
use super::pypi::{Record, cached_versions};
use super::reference::HubRef;
use super::{DEFAULT_MODEL, Env, FetchError, ModelPath, hub, hub_files};

/// A model that needs no network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// What to type for it.
    pub reference: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its form.
    pub kind: Kind,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether it is what is used when no model is named.
    pub default: bool,
}

/// The form of a model on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory in Hugging Face's layout.
    Directory,
    /// A GGUF file.
    Gguf,
}

impl Kind {
    /// `directory` or `gguf`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Directory => "directory",
            Kind::Gguf => "gguf",
        }
    }
}

/// Every model in njoule's cache and in the hub's, sorted by reference.
pub fn cached_models(env: &Env) -> Result<Vec<CachedModel>, FetchError> {
    let mut models = from_wheels(&env.njoule_cache()?.join("pypi"));
    models.extend(from_hub(&hub::cache_dir(env)?));
    models.sort_by(|a, b| a.reference.cmp(&b.reference));
    Ok(models)
}

/// Bytes that a model takes on disk, links followed.
pub fn size_on_disk(model: &ModelPath) -> u64 {
    match model {
        ModelPath::Gguf(path) => fs::metadata(path).map_or(0, |m| m.len()),
        ModelPath::Dir(path) => names_in(path)
            .iter()
            .filter_map(|name| fs::metadata(path.join(name)).ok())
            .filter(|m| m.is_file())
            .map(|m| m.len())
            .sum(),
        ModelPath::Random(_) => 0,
    }
}

fn from_wheels(root: &Path) -> Vec<CachedModel> {
    let mut models = vec![];
    for package in names_in(root) {
        for (_, dir) in cached_versions(&root.join(&package)) {
            let (Some(record), Some(version)) = (Record::read(&dir), dir.file_name()) else { continue };
            for (name, taken) in &record.taken_out {
                let Some(path) = taken.path(&dir) else { continue };
                let reference = format!("pypi:{package}=={}", version.to_string_lossy());
                let named = if record.inside.len() > 1 { format!("{reference}:{name}") } else { reference };
                models.extend(cached(named, path));
            }
        }
    }
    models
}

fn from_hub(cache: &Path) -> Vec<CachedModel> {
    let mut models = vec![];
    for name in names_in(cache) {
        let Some(repo) = repo_of_folder(&name) else { continue };
        for (commit, revision) in revisions(&cache.join(&name)) {
            let Some(snapshot) = Snapshot::cached(cache, &repo, &commit) else { continue };
            let revision = revision.unwrap_or(commit);
            let named = |file: Option<&str>| HubRef {
                repo: repo.clone(),
                revision: Some(revision.clone()).filter(|revision| revision != "main"),
                file: file.map(str::to_owned),
            };
            let whole = named(None);
            if let Ok(path @ ModelPath::Dir(_)) = snapshot.find(&whole) {
                models.extend(cached(whole.to_string(), path));
            }
            for file in hub_files::gguf_models(snapshot.files().iter().map(String::as_str)) {
                models.extend(cached(named(Some(file)).to_string(), ModelPath::Gguf(snapshot.dir.join(file))));
            }
        }
    }
    models
}

fn cached(reference: String, model: ModelPath) -> Option<CachedModel> {
    let bytes = size_on_disk(&model);
    let (kind, path) = match model {
        ModelPath::Dir(path) => (Kind::Directory, path),
        ModelPath::Gguf(path) => (Kind::Gguf, path),
        ModelPath::Random(_) => return None,
    };
    let default = reference == DEFAULT_MODEL;
    Some(CachedModel { reference, path, kind, bytes, default })
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}
