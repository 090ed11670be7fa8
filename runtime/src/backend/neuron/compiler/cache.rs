//! NEFFs by the content of what they were made from.
//!
//! An entry is a directory that appears by one rename, complete; a failure leaves none. Who compiles holds the key's
//! lock, so that two processes that want one module compile it once.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{CompileError, Compiler, Settings, Unit};
use crate::backend::neuron::neff::{self, NeffError};

/// What a NEFF is known by: SHA-256 of module, flags, target, core size and compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// A directory of NEFFs.
#[derive(Clone, Debug)]
pub struct NeffCache {
    root: PathBuf,
    /// What is older is not looked at.
    since: Option<SystemTime>,
}

/// What is known of a NEFF of the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it was called when it was compiled.
    pub name: String,
    /// As they were given.
    pub flags: Vec<String>,
    /// The compiler's version.
    pub compiler: String,
    /// SHA-256 of the NEFF.
    pub neff_sha256: String,
    /// Its size.
    pub neff_bytes: u64,
    /// SHA-256 of the module.
    pub hlo_sha256: String,
    /// Its size.
    pub hlo_bytes: u64,
    /// Most memory that the compile was seen to take; 0 where none could be read.
    pub peak_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Key {
    /// Of a module compiled with `settings` by `compiler`.
    pub fn new(hlo: &[u8], settings: &Settings, compiler: &Compiler) -> Key {
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(hlo);
        for flag in settings.flags() {
            part(flag.as_bytes());
        }
        part(settings.target.name().as_bytes());
        part(&[settings.lnc.unwrap_or(0)]);
        part(compiler.banner.as_bytes());
        Key(hasher.finalize().into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl NeffCache {
    /// The cache in `root`, which is made when it is first written to.
    pub fn new(root: &Path) -> NeffCache {
        NeffCache { root: root.to_owned(), since: None }
    }

    /// The same, but what it has now counts as absent: everything is compiled anew, once, and replaces what was there.
    pub fn anew(root: &Path) -> NeffCache {
        NeffCache { since: Some(SystemTime::now()), ..NeffCache::new(root) }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The NEFF of `key` and what is known of it. An entry that is not whole (a disk that was full, a file that was cut)
    /// counts as absent.
    pub fn find(&self, key: Key) -> Option<(PathBuf, Record)> {
        let dir = self.entry(key);
        if let Some(since) = self.since
            && fs::metadata(dir.join(RECORD)).and_then(|found| found.modified()).ok()? < since
        {
            return None;
        }
        let record: Record = serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()?;
        let path = dir.join(NEFF);
        let whole = neff::read_header(&path).is_ok_and(|h| h.file_bytes() == record.neff_bytes);
        whole.then_some((path, record))
    }

    /// Whether it has the NEFF of a unit.
    pub fn has(&self, unit: &Unit, compiler: &Compiler) -> bool {
        self.find(Key::new(&unit.hlo, &unit.settings, compiler)).is_some()
    }

    /// The key's lock, waited for; `waiting` is called once if somebody else has it, `cancelled` ends the wait.
    pub(super) fn lock(&self, key: Key, waiting: impl FnOnce(), cancelled: &AtomicBool) -> Result<Held, CompileError> {
        let path = self.root.join("locks").join(key.to_string());
        let io = |action, path| move |source| CompileError::Io { action, path, source };
        let dir = self.root.join("locks");
        fs::create_dir_all(&dir).map_err(io("make", dir.clone()))?;
        let file = File::create(&path).map_err(io("write", path.clone()))?;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Held { key, alone: true, _file: file }),
                Err(fs::TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    if cancelled.load(Ordering::Relaxed) {
                        return Err(CompileError::Cancelled);
                    }
                    // Not by the kernel's own wait: nothing could end that.
                    thread::sleep(POLL);
                }
                // A file system without locks: as if nobody else were there. Entries still appear whole.
                Err(fs::TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                    return Ok(Held { key, alone: false, _file: file });
                }
                Err(fs::TryLockError::Error(e)) => return Err(io("lock", path.clone())(e)),
            }
        }
    }

    /// A directory to compile in, whose name no other process uses; it stands beside where the entry will.
    pub(super) fn scratch(&self, held: &Held) -> Result<Scratch, CompileError> {
        let entry = self.entry(held.key);
        let of_process = |id: &str| entry.with_extension(format!("tmp-{id}"));
        let dir = of_process(&std::process::id().to_string());
        let _ = fs::remove_dir_all(&dir); // of a process of the same number that died
        if held.alone {
            // Of others that were killed: while they lived they had the lock.
            let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let prefix = name(&of_process(""));
            let beside = entry.parent().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
            for left in beside.map(|entry| entry.path()).filter(|path| name(path).starts_with(&prefix)) {
                let _ = fs::remove_dir_all(left); // stays if it must
            }
        }
        fs::create_dir_all(&dir).map_err(CompileError::io("make", &dir))?;
        Ok(Scratch(Some(dir)))
    }

    /// Where the log of a failed compile of `name` is put.
    pub(super) fn log(&self, name: &str, key: Key) -> Result<PathBuf, CompileError> {
        let dir = self.root.join("logs");
        fs::create_dir_all(&dir).map_err(CompileError::io("make", &dir))?;
        let key = key.to_string();
        Ok(dir.join(format!("{name}-{}.log", &key[..12])))
    }

    /// Makes what `scratch` holds the entry of `key`.
    pub(super) fn publish(&self, key: Key, mut scratch: Scratch, record: &Record) -> Result<PathBuf, CompileError> {
        let Some(dir) = scratch.0.clone() else { return Ok(self.entry(key).join(NEFF)) };
        scratch.keep_only(&[NEFF, HLO, LOGFILE, OUTPUT]);
        let text = serde_json::to_vec_pretty(record).map_err(|e| CompileError::io("write", &dir)(e.into()))?;
        fs::write(dir.join(RECORD), text).map_err(CompileError::io("write", &dir))?;
        let entry = self.entry(key);
        let _ = fs::remove_dir_all(&entry); // one that was not whole
        fs::rename(&dir, &entry).map_err(CompileError::io("rename", &dir))?;
        scratch.0 = None;
        Ok(entry.join(NEFF))
    }

    fn entry(&self, key: Key) -> PathBuf {
        let key = key.to_string();
        self.root.join(&key[..2]).join(key)
    }
}

/// A key's lock, for as long as it lives.
#[derive(Debug)]
pub(super) struct Held {
    key: Key,
    /// Whether the file system has locks, so that nobody else has it.
    alone: bool,
    _file: File,
}

/// Removed when dropped, unless it was published.
#[derive(Debug)]
pub(super) struct Scratch(Option<PathBuf>);

impl Scratch {
    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// The NEFF that should be in it, looked at.
    pub fn neff(&self) -> Result<PathBuf, NeffError> {
        let path = self.path().join(NEFF);
        neff::read_header(&path).map(|_| path)
    }

    /// Removes what the compiler left lying about: its own intermediates may take gigabytes.
    fn keep_only(&self, names: &[&str]) {
        let entries = self.0.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        for entry in entries.filter(|entry| !names.iter().any(|name| entry.file_name() == **name)) {
            let (path, is_dir) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
            // What cannot be removed is in nobody's way.
            let _ = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            let _ = fs::remove_dir_all(dir); // left over: the next of this name removes it
        }
    }
}

pub(super) const NEFF: &str = "module.neff";
pub(super) const HLO: &str = "module.hlo.pb";
/// What the compiler printed.
pub(super) const OUTPUT: &str = "output.txt";
/// What it wrote to its own log.
pub(super) const LOGFILE: &str = "log-neuron-cc.txt";
const RECORD: &str = "record.json";
const POLL: Duration = Duration::from_millis(100);
