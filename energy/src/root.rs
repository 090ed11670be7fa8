//! Where `/sys` and `/proc` are: `/`, or another directory in its place, so that a made-up tree reads like a machine.
//!
//! Reading is total: no file costs more than [`MAX_BYTES`], and every failure says which file and what to do.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::meter::MeterError;

/// What stands for `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// `NJOULE_SYSFS_ROOT`, or `/`.
    pub fn from_environment() -> Root {
        let named = std::env::var_os("NJOULE_SYSFS_ROOT").filter(|root| !root.is_empty());
        Root(named.map_or_else(|| PathBuf::from("/"), PathBuf::from))
    }

    /// This directory.
    pub fn at(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// Whether it is the machine itself: only then may system calls stand beside files.
    pub fn is_machine(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// A path below it; `path` may begin with a slash.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Names in a directory, sorted by text; none if it cannot be read.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.join(dir)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.take(MAX_NAMES).filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// A file's text without surrounding white space.
pub fn text(path: &Path) -> Result<String, MeterError> {
    let failed = |error: std::io::Error| MeterError::from_io(path, &error);
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A file that holds one number.
pub fn number(path: &Path) -> Result<u64, MeterError> {
    let text = text(path)?;
    text.parse().map_err(|_| MeterError::unreadable(path, &text))
}

/// Bytes that are read of a file at most.
pub const MAX_BYTES: u64 = 256 << 10;

/// Names that are looked at in a directory at most.
const MAX_NAMES: usize = 4096;
