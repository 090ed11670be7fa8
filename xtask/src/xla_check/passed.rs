//! Which checks a program has passed, so that a long run goes on where it was stopped.
//!
//! Invariant: what another build of this program has passed counts for nothing.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;

use super::taken;

/// Names of checks, kept in a file whose first line says whose they are.
pub struct Passed {
    before: HashSet<String>,
    resume: bool,
    file: Mutex<File>,
}

impl Passed {
    /// Of `directory`; what was passed before counts if `resume`.
    pub fn open(directory: &Path, resume: bool) -> anyhow::Result<Passed> {
        std::fs::create_dir_all(directory)?;
        let (path, whose) = (directory.join("passed"), whose()?);
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let before: HashSet<String> = match kept.split_once('\n') {
            // A line that was being written has no end.
            Some((first, names)) if first == whose => {
                names.split_inclusive('\n').filter_map(|name| name.strip_suffix('\n')).map(str::to_owned).collect()
            }
            _ => HashSet::new(),
        };
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(file, "{whose}")?;
        before.iter().try_for_each(|name| writeln!(file, "{name}"))?;
        Ok(Passed { before, resume, file: Mutex::new(file) })
    }

    /// Whether it need not be run again.
    pub fn has(&self, name: &str) -> bool {
        self.resume && self.before.contains(name)
    }

    /// It is passed.
    pub fn note(&self, name: &str) -> anyhow::Result<()> {
        writeln!(taken(&self.file), "{name}").context("cannot note what has passed")
    }
}

/// This program, by its bytes.
fn whose() -> anyhow::Result<String> {
    let mut hasher = DefaultHasher::new();
    hasher.write(&std::fs::read(std::env::current_exe()?)?);
    Ok(format!("{:016x}", hasher.finish()))
}
