//! Virtual environments under `target/`, each with pinned packages: Python is for checks alone, never for what is shipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The Python of `target/NAME`, which is made with these packages (`NAME==VERSION`) unless it is there with the same.
pub fn environment(target: &Path, name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let venv = target.join(name);
    let (python, done, wanted) = (venv.join("bin/python"), venv.join("complete"), packages.join("\n"));
    if std::fs::read_to_string(&done).is_ok_and(|had| had == wanted) {
        return Ok(python);
    }
    eprintln!("making {} with {}", venv.display(), packages.join(", "));
    expect(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    expect(Command::new(&python).args(pip).args(packages))?;
    std::fs::write(&done, wanted)?;
    Ok(python)
}

/// Runs a command that must succeed.
pub fn expect(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
