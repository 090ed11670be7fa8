//! One commit of one repository as the shared cache holds it; nothing here touches the network.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::fetch::hub_files::{self, INDEX, SINGLE};
use crate::fetch::reference::HubRef;
use crate::fetch::{FetchError, ModelPath};

/// A directory `models--ORG--NAME/snapshots/COMMIT`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The directory.
    pub dir: PathBuf,
}

impl Snapshot {
    /// The snapshot that a revision means, if the cache knows it.
    pub fn cached(cache: &Path, repo: &str, revision: &str) -> Option<Snapshot> {
        let folder = cache.join(folder(repo));
        let commit = fs::read_to_string(folder.join("refs").join(revision)).unwrap_or_else(|_| revision.to_owned());
        let commit = commit.trim();
        if !is_commit(commit) {
            return None;
        }
        let dir = folder.join("snapshots").join(commit);
        dir.is_dir().then_some(Snapshot { dir })
    }

    /// The model in it, or what is missing.
    pub fn find(&self, wanted: &HubRef) -> Result<ModelPath, String> {
        if wanted.file.is_none() && self.has("config.json") {
            return match self.missing_weights() {
                None => Ok(ModelPath::Dir(self.dir.clone())),
                Some(missing) => Err(missing),
            };
        }
        let files = self.files();
        let ggufs = hub_files::gguf_models(files.iter().map(String::as_str));
        let chosen = hub_files::choose(&wanted.repo, "", &ggufs, wanted.file.as_deref());
        let name =
            chosen.map_err(|_| wanted.file.clone().unwrap_or_else(|| "config.json or a .gguf file".to_owned()))?;
        Ok(ModelPath::Gguf(self.dir.join(name)))
    }

    /// Whether a model that was found is all that its repository is likely to have.
    pub fn is_complete(&self, found: &ModelPath) -> bool {
        let has_tokenizer = || self.files().iter().any(|file| file.starts_with("tokenizer"));
        !matches!(found, ModelPath::Dir(_)) || has_tokenizer()
    }

    /// What a directory of safetensors lacks; a link whose blob is gone counts as missing.
    fn missing_weights(&self) -> Option<String> {
        if self.has(SINGLE) {
            return None;
        }
        if let Ok(index) = fs::read_to_string(self.dir.join(INDEX)) {
            return match hub_files::shards(&index) {
                Ok(shards) => shards.into_iter().find(|shard| !self.has(shard)),
                Err(why) => Some(format!("a usable {INDEX} ({why})")),
            };
        }
        let any = self.files().iter().any(|file| file.ends_with(".safetensors") && !file.contains('/'));
        if any { None } else { Some(SINGLE.to_owned()) }
    }

    fn has(&self, name: &str) -> bool {
        self.dir.join(name).is_file()
    }

    /// Names of the files, those one directory down with their directory.
    pub fn files(&self) -> Vec<String> {
        let mut names = vec![];
        for (name, path) in entries(&self.dir) {
            if path.is_dir() {
                let below = entries(&path).into_iter().filter(|(_, path)| path.is_file());
                names.extend(below.map(|(file, _)| format!("{name}/{file}")));
            } else if path.is_file() {
                names.push(name);
            }
        }
        names.sort();
        names
    }
}

/// The folder of a repository.
pub fn folder(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// The repository of a folder.
pub fn repo_of_folder(name: &str) -> Option<String> {
    let (org, name) = name.strip_prefix("models--")?.split_once("--")?;
    Some(format!("{org}/{name}"))
}

/// The commits that a repository's folder has snapshots of, each with the branch or tag that means it, if any; `main`
/// before others.
pub fn revisions(folder: &Path) -> Vec<(String, Option<String>)> {
    let mut named = BTreeMap::new();
    for (name, path) in entries(&folder.join("refs")) {
        if let Ok(commit) = fs::read_to_string(path) {
            let slot = named.entry(commit.trim().to_owned()).or_insert_with(|| name.clone());
            if name == "main" {
                *slot = name;
            }
        }
    }
    let commits = entries(&folder.join("snapshots")).into_iter().map(|(commit, _)| commit);
    commits.map(|commit| (commit.clone(), named.get(&commit).cloned())).collect()
}

/// A commit's name, safe in a path.
pub fn is_commit(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Writes what a branch or tag means.
pub fn write_ref(folder: &Path, revision: &str, commit: &str) -> Result<(), FetchError> {
    if revision == commit {
        return Ok(());
    }
    let path = folder.join("refs").join(revision);
    if fs::read_to_string(&path).is_ok_and(|old| old == commit) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(FetchError::io("create", parent))?;
    }
    fs::write(&path, commit).map_err(FetchError::io("write", &path))
}

fn entries(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    let named = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
    let mut all: Vec<_> = entries.filter_map(|entry| named(entry.ok()?)).collect();
    all.sort();
    all
}
