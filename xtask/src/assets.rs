//! Files that tests need and the repository does not hold: fetched once, each by a sha256 that stands here.
//!
//! Downloads go through njoule's own code and its cache, so what `njoule pull` has is not downloaded twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use njoule_cli::fetch::{self, DEFAULT_GGUF_SHA256, DEFAULT_MODEL, Env, FetchOptions, ModelPath, ModelRef, Terminal};

/// Something to fetch.
struct Asset {
    /// Its name in the assets' directory.
    file: &'static str,
    /// The model that it is.
    model: &'static str,
    sha256: &'static str,
}

const ASSETS: [Asset; 1] =
    [Asset { file: "smollm2-135m-instruct.Q4_1.gguf", model: DEFAULT_MODEL, sha256: DEFAULT_GGUF_SHA256 }];

/// Brings every asset that is not there yet.
pub fn fetch() -> anyhow::Result<()> {
    let dir = directory();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let options = FetchOptions::new(Env::from_process(), Arc::new(Terminal::new()));
    for asset in &ASSETS {
        let target = dir.join(asset.file);
        if is_whole(&target, asset)? {
            continue;
        }
        let ModelPath::Gguf(source) = fetch::resolve(&ModelRef::parse(asset.model)?, &options)? else {
            bail!("{} is not a .gguf file", asset.model);
        };
        place(&source, &target)?;
        if !is_whole(&target, asset)? {
            bail!("{} is damaged: remove it and try again", source.display());
        }
    }
    eprintln!("assets are in {}", dir.display());
    Ok(())
}

/// Says what is missing or damaged.
pub fn check() -> anyhow::Result<()> {
    let dir = directory();
    for asset in &ASSETS {
        if !is_whole(&dir.join(asset.file), asset)? {
            bail!("{} is missing or damaged; `cargo xtask assets` brings it", dir.join(asset.file).display());
        }
    }
    Ok(())
}

/// `NJOULE_ASSETS`, or `target/assets` in this workspace.
fn directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    std::env::var_os("NJOULE_ASSETS").map_or_else(|| workspace.join("target/assets"), PathBuf::from)
}

fn is_whole(path: &Path, asset: &Asset) -> anyhow::Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let found = fetch::sha256_of(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(found == asset.sha256)
}

/// The same file under another name if the disk allows it, else a copy; complete at once either way.
fn place(source: &Path, target: &Path) -> anyhow::Result<()> {
    let temporary = target.with_extension("partial");
    let _ = fs::remove_file(&temporary); // left by a run that was stopped
    fs::hard_link(source, &temporary)
        .or_else(|_| fs::copy(source, &temporary).map(drop))
        .and_then(|()| fs::rename(&temporary, target))
        .with_context(|| format!("cannot put {} at {}", source.display(), target.display()))
}
