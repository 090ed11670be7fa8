//! Writing an artifact: into a directory beside its place, which is renamed when all is there.
//!
//! Weights come a parameter at a time and go straight to their place: memory stays at one parameter of one rank,
//! whatever the model's size.

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
    /// What was to be written makes no artifact: a bug of njoule.
    #[error("the artifact would be unusable: {0}")]
    Inconsistent(ArtifactError),
}

impl Writer {
    /// Starts an artifact that will be at `place`; one that is there is replaced at the end.
    pub fn start(place: &Path, source: Source) -> Result<Writer, WriteError> {
        if place.exists() && !super::Artifact::is_in(place) {
            return Err(WriteError::Occupied { path: place.to_owned() });
        }
        let scratch = beside(place, "tmp");
        let _ = fs::remove_dir_all(&scratch); // of a process of the same number that died
        for dir in ["modules", "weights"] {
            let dir = scratch.join(dir);
            fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
        }
        let Source { njoule, compiler, model, layout, plan, parameters } = source;
        let manifest = Manifest {
            format: FORMAT,
            id: String::new(),
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
        Ok(Writer { place: place.to_owned(), scratch: Some(scratch), manifest })
    }

    /// Adds a module; in the order of the layout's.
    pub fn module(&mut self, module: &Module) -> Result<(), WriteError> {
        let Module { name, spec, inputs, outputs, hlo, neff, flags, peak_bytes, seconds } = module;
        let hlo = self.put(&format!("modules/{name}.hlo.pb"), hlo)?;
        let neff = self.copy(&format!("modules/{name}.neff"), neff)?;
        self.manifest.modules.push(ModuleRecord {
            name: name.clone(),
            spec: *spec,
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

    /// Adds the weights of the next rank. `bytes_of` hands each parameter over in pieces, in order; what it does not hand
    /// over is zero.
    pub fn weights<E: From<WriteError>>(
        &mut self,
        mut bytes_of: impl FnMut(&Parameter, &mut dyn FnMut(&[u8]) -> Result<(), WriteError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let rank = self.manifest.weights.len();
        let name = format!("weights/rank{rank}.bin");
        let path = self.path(&name);
        let file = File::create(&path).map_err(failed("write", &path))?;
        let mut out = Hashed { out: io::BufWriter::with_capacity(1 << 20, file), hasher: Sha256::new(), at: 0 };
        let io = failed("write", &path);
        for parameter in &self.manifest.parameters {
            out.zeros_to(parameter.offset).map_err(&io)?;
            let end = parameter.offset + parameter.bytes;
            bytes_of(parameter, &mut |piece| {
                if out.at + piece.len() as u64 > end {
                    return Err(io(io::Error::other(format!("`{}` has more than its bytes", parameter.name))));
                }
                out.write_all(piece).map_err(&io)
            })?;
            out.zeros_to(end).map_err(&io)?;
        }
        let bytes = file_bytes(&self.manifest.parameters);
        out.zeros_to(bytes).map_err(&io)?;
        out.out.flush().map_err(&io)?;
        let sha256 = digest::hex(&out.hasher.finalize());
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
        let file = File::create(&path).map_err(failed("write", &path))?;
        let mut out = Hashed { out: io::BufWriter::with_capacity(1 << 20, file), hasher: Sha256::new(), at: 0 };
        io::copy(&mut source, &mut out).and_then(|_| out.out.flush()).map_err(failed("write", &path))?;
        Ok(FileRecord { path: name.to_owned(), bytes: out.at, sha256: digest::hex(&out.hasher.finalize()) })
    }
}

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

/// A name beside `place` that no other process uses.
fn beside(place: &Path, what: &str) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}-{}", std::process::id()));
    place.with_file_name(name)
}
