//! neuronx-cc as a child process: modules in, NEFFs out, each compiled once.
//!
//! njoule calls the executable and nothing else of the compiler. What it made is kept by the content of everything that
//! went in ([`NeffCache`]); a compile that failed leaves nothing behind but its log. Command and flags: AWS's
//! [compiler CLI reference](https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/neuronx-cc/api-reference-guide/neuron-compiler-cli-reference-guide.html).
//!
//! Invariant: a NEFF that is handed out belongs to exactly the bytes, flags, target, core size and compiler asked for.

mod advice;
mod cache;
mod child;
mod error;
pub mod keeper;
mod memory;
mod pool;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use njoule_hlo::Target;

pub use cache::{Key, NeffCache, Record};
pub use child::{end_all, said};
pub use error::CompileError;
pub use pool::{Compiled, Event};

/// A compiler that answered when it was asked for its version.
#[derive(Clone, Debug)]
pub struct Compiler {
    path: PathBuf,
    /// All that `--version` printed.
    banner: String,
}

/// How a module is compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Chip.
    pub target: Target,
    /// `-O`: 1, 2 or 3.
    pub opt_level: u8,
    /// Physical cores of a logical core; only trn2 has a choice.
    pub lnc: Option<u8>,
    /// Appended as they are.
    pub extra: Vec<String>,
}

/// One module to compile.
#[derive(Clone, Debug)]
pub struct Unit {
    /// For logs and progress; unique among the units of a build.
    pub name: String,
    /// An encoded `HloModuleProto`.
    pub hlo: Vec<u8>,
    /// How.
    pub settings: Settings,
}

/// How a build goes about its units.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Compiles at once, at most; `None` for one per core, fewer where memory is short.
    pub jobs: Option<usize>,
    /// Memory that all of them together should stay below; `None` for what the host has free.
    pub memory: Option<u64>,
    /// Time that one compile may take.
    pub deadline: Option<Duration>,
    /// Set by somebody who wants to stop: children are killed, what is done stays in the cache.
    pub cancelled: &'a AtomicBool,
}

impl Compiler {
    /// The one that `NJOULE_NEURONX_CC` names, else the first on `PATH`.
    pub fn find() -> Result<Compiler, CompileError> {
        Compiler::find_by(std::env::var_os("NJOULE_NEURONX_CC"), std::env::var_os("PATH"))
    }

    /// The same, where the two variables have these values.
    pub fn find_by(named: Option<OsString>, path: Option<OsString>) -> Result<Compiler, CompileError> {
        match find(named, path) {
            Ok(path) => Compiler::at(&path),
            Err(tried) => Err(CompileError::NotFound { tried }),
        }
    }

    /// Where the one that `find` would ask is; none where no file is in that place.
    pub fn locate() -> Option<PathBuf> {
        let found = find(std::env::var_os("NJOULE_NEURONX_CC"), std::env::var_os("PATH"));
        found.ok().filter(|path| path.is_file())
    }

    /// This one, if it tells its version within a minute.
    pub fn at(path: &Path) -> Result<Compiler, CompileError> {
        // It is started in other directories than this.
        let whole = std::path::absolute(path);
        let path = whole.as_deref().unwrap_or(path);
        let unusable = |what: String| CompileError::Unusable { path: path.to_owned(), what };
        let (status, [out, err]) = child::said(path, &["--version"], PATIENCE).map_err(unusable)?;
        let banner = out.trim().to_owned();
        if !status.success() || banner.is_empty() {
            let said = err.trim().lines().last().unwrap_or("nothing");
            return Err(unusable(format!("--version gave {status} and said: {said}")));
        }
        Ok(Compiler { path: path.to_owned(), banner })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first line that it says of itself.
    pub fn banner(&self) -> &str {
        self.banner.lines().next().unwrap_or_default().trim()
    }

    /// Its version: what follows that word in the first line that it says, or that line.
    pub fn version(&self) -> &str {
        let line = self.banner();
        let after = line.split_once("version ").map_or(line, |(_, after)| after);
        after.split(' ').next().unwrap_or(after)
    }

    /// Compiles every unit that `cache` does not hold; the results are in the order of `units`. `on_event` hears of each
    /// from the threads that watch the children. The first error ends the build: compiles that run are let end, and what
    /// is done is in the cache.
    pub fn compile(
        &self,
        units: &[Unit],
        cache: &NeffCache,
        limits: Limits<'_>,
        on_event: &(dyn Fn(Event<'_>) + Sync),
    ) -> Result<Vec<Compiled>, CompileError> {
        pool::compile(self, units, cache, limits, on_event)
    }
}

impl Settings {
    /// Everything after the module's path but the paths of output and log: what the result depends on.
    pub fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> =
            ["--framework", "XLA", "--target", self.target.name(), "--model-type", "transformer"]
                .map(str::to_owned)
                .to_vec();
        flags.push("--auto-cast=none".to_owned());
        flags.push(format!("-O{}", self.opt_level));
        if let Some(lnc) = self.lnc {
            flags.extend(["--lnc".to_owned(), lnc.to_string()]);
        }
        flags.extend(["--verbose".to_owned(), "warning".to_owned()]);
        flags.extend(self.extra.iter().cloned());
        flags
    }
}

/// The compiler's path, or where it was looked for.
fn find(variable: Option<OsString>, path: Option<OsString>) -> Result<PathBuf, String> {
    if let Some(named) = variable.filter(|v| !v.is_empty()) {
        return Ok(named.into());
    }
    let dirs = path.unwrap_or_default();
    let found = std::env::split_paths(&dirs).map(|dir| dir.join(NAME)).find(|candidate| candidate.is_file());
    found.ok_or_else(|| format!("NJOULE_NEURONX_CC is not set and no directory of PATH has {NAME}"))
}

const NAME: &str = "neuronx-cc";
/// Of `--version`: a Python program's start on a cold disk.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
