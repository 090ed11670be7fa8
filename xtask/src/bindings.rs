//! `neuron-sys/src/bindings.rs`: made from the project's own header by bindgen, committed, and checked.
//!
//! The file opens with two hashes: of what it was made from (the header, bindgen's options, the locked versions) and of
//! the text below. Both can be checked without bindgen and libclang; with the feature `bindings`, `--check` also makes
//! the file anew and compares.

#[cfg(feature = "bindings")]
mod generate;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

/// Writes the bindings.
#[cfg(feature = "bindings")]
pub fn write() -> anyhow::Result<()> {
    let path = workspace().join(BINDINGS);
    fs::write(&path, stamped(&generate::generate(&workspace().join(HEADER))?)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the bindings: builds this program again with bindgen in it and lets that do it.
#[cfg(not(feature = "bindings"))]
pub fn write() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = std::process::Command::new(cargo)
        .args(["run", "--quiet", "--locked", "--package", "xtask", "--features", "bindings", "--", "bindings"])
        .current_dir(workspace())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the bindings were not written");
    Ok(())
}

/// Says whether the bindings are what the header gives, and unedited.
pub fn check() -> anyhow::Result<()> {
    let text = read(BINDINGS)?;
    let Some((stamp, body)) = text.split_once("\n\n") else {
        bail!("{BINDINGS} has no hashes at its head: {REMEDY}");
    };
    let inputs = format!("{INPUTS_MARK}{}", inputs_hash()?);
    ensure!(stamp.lines().any(|line| line == inputs), "{BINDINGS} is older than what it is made from: {REMEDY}");
    let content = format!("{CONTENT_MARK}{}", hex(body.as_bytes()));
    ensure!(stamp.lines().any(|line| line == content), "{BINDINGS} was edited by hand: {REMEDY}");
    #[cfg(feature = "bindings")]
    ensure!(
        text == stamped(&generate::generate(&workspace().join(HEADER))?)?,
        "{BINDINGS} is not what bindgen makes of {HEADER} here: {REMEDY}"
    );
    Ok(())
}

#[cfg(feature = "bindings")]
fn stamped(body: &str) -> anyhow::Result<String> {
    Ok(format!(
        "// Made by `cargo xtask bindings` from {HEADER}; not edited by hand.\n{INPUTS_MARK}{}\n{CONTENT_MARK}{}\n\n{body}",
        inputs_hash()?,
        hex(body.as_bytes())
    ))
}

/// Of the header, the options, and the versions of what writes and formats the code.
fn inputs_hash() -> anyhow::Result<String> {
    let lock = read("Cargo.lock")?;
    let mut inputs = read(HEADER)?;
    inputs.push_str(include_str!("bindings/generate.rs"));
    for name in ["bindgen", "prettyplease"] {
        let entry = format!("name = \"{name}\"\nversion = ");
        let (_, rest) = lock.split_once(&entry).with_context(|| format!("{name} is not in Cargo.lock"))?;
        let _ = writeln!(inputs, "{name} {}", rest.lines().next().unwrap_or("")); // a String takes all
    }
    Ok(hex(inputs.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes all
        text
    })
}

fn read(path: &str) -> anyhow::Result<String> {
    let path = workspace().join(path);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

const HEADER: &str = "neuron-sys/include/njoule_nrt.h";
const BINDINGS: &str = "neuron-sys/src/bindings.rs";
const INPUTS_MARK: &str = "// inputs sha256: ";
const CONTENT_MARK: &str = "// content sha256: ";
const REMEDY: &str = "`cargo xtask bindings` makes it anew (needs libclang)";
