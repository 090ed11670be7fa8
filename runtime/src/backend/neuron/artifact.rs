//! What `njoule build` makes: everything that serves a model on Neuron devices, in one directory.
//!
//! ```text
//! manifest.json          all that is known, hashes included
//! modules/NAME.hlo.pb    a module as it was given to the compiler
//! modules/NAME.neff      as it came back
//! weights/rank0.bin ...  one file per core: every parameter as the device has it, at a multiple of 4096
//! config.json tokenizer.json ...   what the model's directory had beside its weights
//! ```
//!
//! Input `i` of a module is called `input{i}` in its NEFF, output `j` `output{j}`; a cache's output is the tensor of its
//! input. An artifact without weights holds the modules alone: they serve every checkpoint of the same shapes.
//!
//! Invariant: an [`Artifact`] that was opened is consistent in itself: every port has a parameter, a cache or a place in a
//! step, every offset lies in its file, every name stays in the directory. Parsing is total; contents of large files are
//! compared with their hashes by [`Artifact::verify`] alone.

mod check;
mod identity;
mod parameters;
mod roles;
mod verify;
mod write;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use njoule_hlo::{DType, Target};
use serde::{Deserialize, Serialize};

use super::digest;
use super::interface::{CacheShape, Input, ModelSpec, ModuleSpec, Output, Port};
use super::neff::{self, NeffError};
use super::profile::Profile;
use crate::backend::{KvType, Quant};

pub use parameters::{Parameter, lay_out};
pub use write::{Module, Put, Source, WriteError, Writer};

/// An artifact that was opened.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Where it is.
    pub dir: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// SHA-256 of what it holds, without what was measured while it was made: the artifact's name.
    pub id: String,
    /// SHA-256 of everything beside it, what was measured included.
    pub checksum: String,
    /// Version of njoule that made it.
    pub njoule: String,
    /// Version of neuronx-cc.
    pub compiler: String,
    /// Which model.
    pub model: ModelRecord,
    /// How it is laid out.
    pub layout: Layout,
    /// The plan it was made from, as the planner gave it; for people.
    pub plan: serde_json::Value,
    /// What all modules take as weights.
    pub parameters: Vec<Parameter>,
    /// The modules, in the order of [`Layout::modules`].
    pub modules: Vec<ModuleRecord>,
    /// Weights of each rank; none where the artifact has modules alone.
    pub weights: Vec<FileRecord>,
    /// Other files.
    pub files: Vec<FileRecord>,
}

/// Which model an artifact is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// As it was named.
    pub name: String,
    /// The program's.
    pub architecture: String,
    /// [`Program::fingerprint`](njoule_models::program::Program::fingerprint), in hexadecimal digits.
    pub fingerprint: String,
    /// Tokens that it knows.
    pub vocab: usize,
    /// Where config and tokenizer are: in the artifact's files, or nowhere but in a preset's name.
    pub origin: Origin,
}

/// Where an artifact's config and tokenizer are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Files of a Hugging Face directory, beside the manifest.
    Directory,
    /// The head of a GGUF file, beside the manifest: its metadata without its tensors.
    GgufHead {
        /// Its name.
        file: String,
        /// Bytes of the whole file that it is the head of.
        whole: u64,
    },
    /// A preset of made-up weights.
    Preset(String),
    /// Whatever the modules are loaded for.
    None,
}

/// What all modules have in common, and what they are for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Instance type that it was planned for.
    pub instance: String,
    /// Compiler target.
    #[serde(with = "super::plan::target_name")]
    pub target: Target,
    /// Physical cores of a logical core, where somebody chose.
    pub lnc: Option<u8>,
    /// Cores of a replica.
    pub tp: usize,
    /// Replicas on the instance.
    pub replicas: usize,
    /// Stored type of weights.
    pub weights: Quant,
    /// Stored type of caches.
    pub kv: KvType,
    /// Candidates per output.
    pub candidates: usize,
    /// Longest sequence that it was planned for.
    pub context: usize,
    /// Forms of idioms.
    pub profile: Profile,
    /// Classes of rows, shortest first.
    pub classes: Vec<CacheShape>,
    /// Modules, class by class.
    pub modules: Vec<ModuleSpec>,
}

impl Layout {
    /// What lowering is told.
    pub fn model_spec(&self) -> ModelSpec {
        let Layout { target, tp, weights, kv, candidates, profile, .. } = *self;
        ModelSpec { target, tp, weights, kv, candidates, profile, shares: false, streams: false }
    }

    /// Physical cores of a logical core.
    pub fn lnc(&self) -> u8 {
        self.lnc.unwrap_or(usual_lnc(self.target))
    }
}

/// Physical cores of a logical one where nobody chose, for neuronx-cc as for libnrt: two on trn2, one elsewhere.
pub fn usual_lnc(target: Target) -> u8 {
    if target == Target::Trn2 { 2 } else { 1 }
}

/// A compiled module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleRecord {
    /// Its name in file names and messages.
    pub name: String,
    /// What it is for.
    pub spec: ModuleSpec,
    /// Parameters in order.
    pub inputs: Vec<Port<Input>>,
    /// Results in order.
    pub outputs: Vec<Port<Output>>,
    /// The module.
    pub hlo: FileRecord,
    /// The NEFF.
    pub neff: FileRecord,
    /// The compiler's flags.
    pub flags: Vec<String>,
    /// Most memory that the compile was seen to take; 0 where none could be read.
    pub peak_bytes: u64,
    /// How long the compile took, in seconds.
    pub seconds: f64,
}

/// A file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Below the artifact's directory, with `/`.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
}

impl Artifact {
    /// Whether a directory is to be taken for one, whatever its manifest is worth: opening it says what is wrong with it.
    pub fn is_in(dir: &Path) -> bool {
        let manifest = dir.join(MANIFEST);
        if manifest.symlink_metadata().is_err() {
            return false;
        }
        let modules = fs::read_dir(dir.join("modules")).into_iter().flatten().flatten();
        let is_module = |name: std::ffi::OsString| {
            [".neff", ".hlo.pb"].iter().any(|end| name.as_encoded_bytes().ends_with(end.as_bytes()))
        };
        modules.map(|entry| entry.file_name()).any(is_module) || Artifact::is_written_in(dir)
    }

    /// Whether a directory has a manifest that a writer has written, of this format or another.
    pub(super) fn is_written_in(dir: &Path) -> bool {
        read_manifest(&dir.join(MANIFEST)).is_ok_and(|text| format_of(&text).is_ok())
    }

    /// Reads the manifest and looks at every file's size: takes no longer for a large model than for a small one.
    pub fn open(dir: &Path) -> Result<Artifact, ArtifactError> {
        let path = dir.join(MANIFEST);
        let text = read_manifest(&path).map_err(|source| ArtifactError::Io { path: path.clone(), source })?;
        let manifest = Manifest::parse(&text).map_err(|what| ArtifactError::Manifest { path: path.clone(), what })?;
        let artifact = Artifact { dir: dir.to_owned(), manifest };
        for file in artifact.files() {
            let path = dir.join(&file.path);
            let found = fs::metadata(&path).map_err(|source| ArtifactError::Io { path: path.clone(), source })?.len();
            if found != file.bytes {
                return Err(ArtifactError::Size { path, found, expected: file.bytes });
            }
        }
        for module in &artifact.manifest.modules {
            let header = neff::read_header(&dir.join(&module.neff.path))?;
            let lnc = u32::from(artifact.manifest.layout.lnc());
            // 0: a compiler from before the field was there.
            if !matches!(header.lnc, 0) && header.lnc != lnc {
                let what = format!("lnc_size is {}, the manifest says {lnc}", header.lnc);
                return Err(NeffError::Format { path: dir.join(&module.neff.path), what }.into());
            }
        }
        Ok(artifact)
    }

    /// Every file but the manifest.
    pub fn files(&self) -> impl Iterator<Item = &FileRecord> {
        let m = &self.manifest;
        let modules = m.modules.iter().flat_map(|module| [&module.hlo, &module.neff]);
        modules.chain(&m.weights).chain(&m.files)
    }

    /// Whether it has weights of its own.
    pub fn has_weights(&self) -> bool {
        !self.manifest.weights.is_empty()
    }
}

impl Manifest {
    /// Reads and checks a manifest; the error names the field.
    pub fn parse(text: &[u8]) -> Result<Manifest, String> {
        if text.len() as u64 > MOST_MANIFEST {
            return Err(format!("has more than {MOST_MANIFEST} bytes"));
        }
        let format = format_of(text)?;
        if format != FORMAT {
            return Err(format!(
                "field `format` is {format}, this njoule reads {FORMAT}: build the artifact anew with `njoule build`"
            ));
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        for (field, found, content) in [
            ("id", &manifest.id, identity::of_content(&value)),
            ("checksum", &manifest.checksum, identity::of_everything(&value)),
        ] {
            if *found != content {
                return Err(format!(
                    "field `{field}` is {found}, its content gives {content}: it was changed or damaged"
                ));
            }
        }
        check::check(&manifest)?;
        Ok(manifest)
    }

    /// Its text, and its id in it and in `self`.
    fn named_text(&mut self) -> serde_json::Result<Vec<u8>> {
        // As it will be read: a number need not read back bit for bit.
        let mut value = serde_json::from_slice(&serde_json::to_vec(self)?)?;
        self.id = identity::of_content(&value);
        value["id"] = self.id.clone().into();
        self.checksum = identity::of_everything(&value);
        serde_json::to_vec_pretty(self)
    }
}

/// The one field that every format has.
fn format_of(text: &[u8]) -> Result<u32, String> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err("is no manifest: it does not begin as one".to_owned());
    }
    let versioned: Versioned = serde_json::from_slice(text).map_err(|e| format!("is no manifest: {e}"))?;
    Ok(versioned.format)
}

/// A manifest's text, of a plain file alone: anything else may have no end, or nobody who writes it.
fn read_manifest(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    fs::File::open(path)?.take(MOST_MANIFEST + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// Why an artifact is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The manifest makes no sense.
    #[error("{path}: {what}")]
    Manifest {
        /// File.
        path: PathBuf,
        /// What is wrong, with the field.
        what: String,
    },
    /// A file has another size than it should.
    #[error("{path} has {found} bytes, the manifest says {expected}: the artifact is damaged or was not copied whole")]
    Size {
        /// File.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// By the manifest.
        expected: u64,
    },
    /// A file has another content.
    #[error("{path} has sha256 {found}, the manifest says {expected}: the artifact is damaged")]
    Hash {
        /// File.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// By the manifest.
        expected: String,
    },
    /// There are files that the manifest does not name.
    #[error("{path} holds what its manifest does not name: {}", list(.files))]
    Extra {
        /// The artifact's directory.
        path: PathBuf,
        /// Their names, below it.
        files: Vec<String>,
    },
    /// A NEFF is broken.
    #[error(transparent)]
    Neff(#[from] NeffError),
    /// A module or its NEFF is not what the manifest says.
    #[error("{path} is not as the manifest has it: {what}")]
    Differs {
        /// File.
        path: PathBuf,
        /// In what.
        what: String,
    },
}

/// Some of the names, and how many more there are.
fn list(names: &[String]) -> String {
    let (first, rest) = names.split_at(names.len().min(10));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    format!("{}{more}", first.join(", "))
}

/// Bytes of a port's type and dimensions, if they are a number.
fn port_bytes(dtype: DType, dims: &[usize]) -> Option<u64> {
    let bytes = dims.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d))?;
    u64::try_from(bytes).ok()
}

/// Of the manifest. Another number is refused: what a field means never changes silently.
pub const FORMAT: u32 = 2;
/// The manifest's name.
pub const MANIFEST: &str = "manifest.json";
/// Far above any: a port takes some 70 bytes.
const MOST_MANIFEST: u64 = 256 << 20;

#[cfg(test)]
pub(crate) mod tests;
