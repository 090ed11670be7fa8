//! Writing an artifact: into a directory beside its place, which is renamed when all is there.
//!
//! Weights come a parameter at a time and go straight to their place: memory stays at one parameter of one rank,
//! whatever the model's size.
//!
//! Invariant: nothing is removed but what a writer made: an artifact that is replaced, and directories that hold [`MARKER`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::parameters::file_bytes;
use super::{ArtifactError, FORMAT, FileRecord, Layout, MANIFEST, Manifest, ModelRecord, ModuleRecord, Parameter};
use crate::backend::neuron::digest;
use crate::backend::neuron::interface::{Input, ModuleSpec, Output, Port};

/// A module that was compiled.
#[derive(Clone, Debug)]
pub struct Module {
    /// Name, without a slash.
    pub name: String,
    /// What it is for.
    pub spec: ModuleSpec,
    /// Parameters.
    pub inputs: Vec<Port<Input>>,
    /// Results.
    pub outputs: Vec<Port<Output>>,
    /// As it was given to the compiler.
    pub hlo: Vec<u8>,
    /// The NEFF's place.
    pub neff: PathBuf,
    /// Its hash when it was compiled.
    pub neff_sha256: String,
    /// The compiler's flags.
    pub flags: Vec<String>,
    /// Most memory that the compile was seen to take.
    pub peak_bytes: u64,
    /// How long the compile took.
    pub seconds: f64,
}

/// What a manifest says beside files.
#[derive(Clone, Debug)]
pub struct Source {
    /// Version of njoule.
    pub njoule: String,
    /// Version of the compiler.
    pub compiler: String,
    /// The model.
    pub model: ModelRecord,
    /// How it is laid out.
    pub layout: Layout,
    /// For people.
    pub plan: serde_json::Value,
    /// The weights' places.
    pub parameters: Vec<Parameter>,
}

/// An artifact in the making. Dropped unfinished, nothing of it stays.
#[derive(Debug)]
pub struct Writer {
    place: PathBuf,
    /// Where it is written; gone once it was renamed.
    scratch: Option<PathBuf>,
    _lock: Option<File>,
    manifest: Manifest,
}

/// Why an artifact cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A file cannot be written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// There is something else in its place.
    #[error("{path} is there and is no artifact of njoule: name another directory, or remove it")]
    Occupied {
        /// The place.
        path: PathBuf,
    },
    /// A NEFF is not what the compiler wrote.
    #[error(
        "{path} has sha256 {found}, it was compiled as {expected}: the disk or somebody changed it; remove its directory and \
         build again"
    )]
    Changed {
        /// The NEFF.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// As it was compiled.
        expected: String,
    },
    /// What was to be written makes no artifact: a bug of njoule.
    #[error("the artifact would be unusable: {0}")]
    Inconsistent(ArtifactError),
}

impl Writer {
    /// Whether an artifact may be put there: to be asked before hours of compiling.
    pub fn may_take(place: &Path) -> Result<(), WriteError> {
        match place.exists() && !super::Artifact::is_written_in(place) {
            true => Err(WriteError::Occupied { path: place.to_owned() }),
            false => Ok(()),
        }
    }

    /// Starts an artifact that will be at `place`; one that is there is replaced at the end.
    pub fn start(place: &Path, source: Source) -> Result<Writer, WriteError> {
        Writer::may_take(place)?;
        let scratch = beside(place, "tmp");
        sweep(place);
        if let Some(dir) = scratch.parent() {
            fs::create_dir_all(dir).map_err(failed("make", dir))?;
        }
        // One that is there is somebody else's.
        fs::create_dir(&scratch).map_err(failed("make", &scratch))?;
        // Says that somebody writes here; where there are no locks, nothing is swept either.
        let lock = File::open(&scratch).and_then(|dir| dir.try_lock().map(|()| dir).map_err(io::Error::other)).ok();
        fs::write(scratch.join(MARKER), UNFINISHED).map_err(failed("write", &scratch.join(MARKER)))?;
        for dir in ["modules", "weights"] {
            let dir = scratch.join(dir);
            fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
        }
        let Source { njoule, compiler, model, layout, plan, parameters } = source;
        let manifest = Manifest {
            format: FORMAT,
            id: String::new(),
            checksum: String::new(),
            njoule,
            compiler,
            model,
            layout,
            plan,
            parameters,
            modules: vec![],
            weights: vec![],
            files: vec![],
        };
        Ok(Writer { place: place.to_owned(), scratch: Some(scratch), _lock: lock, manifest })
    }

    /// Adds a module; in the order of the layout's.
    pub fn module(&mut self, module: &Module) -> Result<(), WriteError> {
        let Module { name, spec, inputs, outputs, hlo, neff: from, neff_sha256, flags, peak_bytes, seconds } = module;
        let hlo = self.put(&format!("modules/{name}.hlo.pb"), hlo)?;
        let neff = self.copy(&format!("modules/{name}.neff"), from)?;
        if neff.sha256 != *neff_sha256 {
            return Err(WriteError::Changed { path: from.clone(), found: neff.sha256, expected: neff_sha256.clone() });
        }
        self.manifest.modules.push(ModuleRecord {
            name: name.clone(),
            spec: spec.clone(),
            inputs: inputs.clone(),
            outputs: outputs.clone(),
            hlo,
            neff,
            flags: flags.clone(),
            peak_bytes: *peak_bytes,
            seconds: *seconds,
        });
        Ok(())
    }

    /// The weights' places.
    pub fn parameters(&self) -> &[Parameter] {
        &self.manifest.parameters
    }

    /// How many modules it has.
    pub fn modules(&self) -> usize {
        self.manifest.modules.len()
    }

    /// Adds a small file.
    pub fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let record = self.put(name, bytes)?;
        self.manifest.files.push(record);
        Ok(())
    }

    /// Adds a copy of a file.
    pub fn file_from(&mut self, name: &str, path: &Path) -> Result<(), WriteError> {
        let record = self.copy(name, path)?;
        self.manifest.files.push(record);
        Ok(())
    }

    /// Adds the weights of the next rank: `fill` hands each parameter over in pieces, in the order of the parameters. What
    /// it does not hand over is zero.
    pub fn weights<E: From<WriteError>>(&mut self, fill: impl FnOnce(&mut Put<'_>) -> Result<(), E>) -> Result<(), E> {
        let name = format!("weights/rank{}.bin", self.manifest.weights.len());
        let path = self.path(&name);
        let io = failed("write", &path);
        let mut out = Hashed::create(&path).map_err(&io)?;
        let (mut left, mut end) = (self.manifest.parameters.iter(), 0);
        let mut current = None;
        fill(&mut |role, piece| {
            let wrong = |what: &str| io(io::Error::other(format!("{role:?} {what}")));
            if current != Some(role) {
                let parameter = left.find(|p| p.port.role == role).ok_or_else(|| wrong("comes out of order"))?;
                (current, end) = (Some(role), parameter.offset + parameter.bytes);
                out.zeros_to(parameter.offset).map_err(&io)?;
            }
            if out.at + piece.len() as u64 > end {
                return Err(wrong("has more than its bytes"));
            }
            out.write_all(piece).map_err(&io)
        })?;
        let bytes = file_bytes(&self.manifest.parameters);
        out.zeros_to(bytes).map_err(&io)?;
        let sha256 = out.finish().map_err(&io)?;
        self.manifest.weights.push(FileRecord { path: name, bytes, sha256 });
        Ok(())
    }

    /// Writes the manifest, looks at the whole as a reader would, and puts it in its place; returns its id.
    pub fn finish(mut self) -> Result<String, WriteError> {
        let Some(scratch) = self.scratch.clone() else { return Ok(self.manifest.id.clone()) };
        let path = scratch.join(MANIFEST);
        let text = self.manifest.named_text().map_err(|e| failed("write", &path)(e.into()))?;
        fs::write(&path, text).map_err(failed("write", &path))?;
        super::Artifact::open(&scratch).map_err(WriteError::Inconsistent)?;
        fs::remove_file(scratch.join(MARKER)).map_err(failed("remove", &scratch.join(MARKER)))?;
        let old = beside(&self.place, "old");
        let moved = self.place.exists();
        if moved {
            fs::rename(&self.place, &old).map_err(failed("replace", &self.place))?;
        }
        fs::rename(&scratch, &self.place).map_err(failed("rename", &scratch))?;
        self.scratch = None;
        if moved {
            let _ = fs::remove_dir_all(&old); // left over: it is in nobody's way
        }
        Ok(self.manifest.id.clone())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.as_deref().unwrap_or(&self.place).join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<FileRecord, WriteError> {
        let path = self.path(name);
        fs::write(&path, bytes).map_err(failed("write", &path))?;
        Ok(FileRecord { path: name.to_owned(), bytes: bytes.len() as u64, sha256: digest::of_bytes(bytes) })
    }

    fn copy(&self, name: &str, from: &Path) -> Result<FileRecord, WriteError> {
        let path = self.path(name);
        let mut source = File::open(from).map_err(failed("read", from))?;
        let mut out = Hashed::create(&path).map_err(failed("write", &path))?;
        io::copy(&mut source, &mut out).map_err(failed("write", &path))?;
        let bytes = out.at;
        let sha256 = out.finish().map_err(failed("write", &path))?;
        Ok(FileRecord { path: name.to_owned(), bytes, sha256 })
    }
}

/// Takes a piece of a parameter.
pub type Put<'a> = dyn FnMut(Input, &[u8]) -> Result<(), WriteError> + 'a;

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(scratch) = &self.scratch {
            let _ = fs::remove_dir_all(scratch); // left over: the next of this name removes it
        }
    }
}

/// A file that is hashed as it is written.
struct Hashed {
    out: io::BufWriter<File>,
    hasher: Sha256,
    at: u64,
}

impl Hashed {
    fn create(path: &Path) -> io::Result<Hashed> {
        let out = io::BufWriter::with_capacity(1 << 20, File::create(path)?);
        Ok(Hashed { out, hasher: Sha256::new(), at: 0 })
    }

    fn finish(mut self) -> io::Result<String> {
        self.out.flush()?;
        Ok(digest::hex(&self.hasher.finalize()))
    }

    fn zeros_to(&mut self, end: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        while self.at < end {
            let n = (end - self.at).min(ZEROS.len() as u64) as usize;
            self.write_all(&ZEROS[..n])?;
        }
        Ok(())
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> WriteError + use<'a> {
    move |source| WriteError::Io { action, path: path.to_owned(), source }
}

/// Removes what processes that were killed have left beside `place`: directories that a writer has marked and whose lock
/// nobody has.
fn sweep(place: &Path) {
    let mut prefix = place.file_name().unwrap_or_default().to_owned();
    prefix.push(".tmp-");
    let dir = place.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        if number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
            && entry.path().join(MARKER).is_file()
            && File::open(entry.path()).is_ok_and(|dir| dir.try_lock().is_ok())
        {
            let _ = fs::remove_dir_all(entry.path()); // left over: it is in nobody's way
        }
    }
}

/// In every directory that a writer has begun and not finished.
pub(super) const MARKER: &str = ".njoule-unfinished";
const UNFINISHED: &str =
    "njoule build writes here, or was killed while it did: the next build removes this directory\n";

/// A name beside `place` that no other process uses.
fn beside(place: &Path, what: &str) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}-{}", std::process::id()));
    place.with_file_name(name)
}
