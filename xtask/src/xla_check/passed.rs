//! Which checks a program has passed, so that a long run goes on where it was stopped.
//!
//! Invariant: what another build of this program has passed counts for nothing, and one check at a time works in a directory.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, bail};

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
        let cannot = || format!("cannot write {}", path.display());
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another check runs in {}", directory.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        let mut kept = vec![];
        file.read_to_end(&mut kept)?;
        let kept = String::from_utf8_lossy(&kept);
        let before: HashSet<String> = match kept.split_once('\n') {
            // A line that was being written has no end.
            Some((first, names)) if first == whose => {
                names.split_inclusive('\n').filter_map(|name| name.strip_suffix('\n')).map(str::to_owned).collect()
            }
            _ => HashSet::new(),
        };
        file.set_len(0)?;
        file.rewind()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_from_what_this_program_passed_and_two_do_not_work_in_one_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passed");
        std::fs::write(&path, "of another program\nold\n").unwrap();
        let first = Passed::open(directory.path(), true).unwrap();
        assert!(!first.has("old"));
        first.note("new").unwrap();
        let refused = Passed::open(directory.path(), true).err().map(|error| error.to_string()).unwrap();
        assert!(refused.starts_with("another check runs in "), "{refused}");
        drop(first);
        let again = Passed::open(directory.path(), true).unwrap();
        assert!(again.has("new") && !again.has("old"));
        drop(again);
        assert!(!Passed::open(directory.path(), false).unwrap().has("new"));
    }
}
