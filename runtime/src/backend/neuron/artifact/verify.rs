//! A look at every byte of an artifact: hashes, files that should not be there, and whether modules and NEFFs take and return what the manifest says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use njoule_hlo::{ArrayShape, Dims, Shape};
use sha2::{Digest, Sha256};

use super::{Artifact, ArtifactError, FileRecord, MANIFEST, ModuleRecord};
use crate::backend::neuron::digest;
use crate::backend::neuron::interface::Port;
use crate::backend::neuron::neff;

impl Artifact {
    /// Compares every file with its hash, then modules and NEFFs with their ports; `on_bytes` hears of the progress. Reads
    /// all of the artifact, a piece at a time. What the manifest does not name is an error too.
    pub fn verify(&self, mut on_bytes: impl FnMut(u64)) -> Result<(), ArtifactError> {
        let extra = self.extra()?;
        if !extra.is_empty() {
            return Err(ArtifactError::Extra { path: self.dir.clone(), files: extra });
        }
        let mut buffer = vec![0; 1 << 20];
        for record in self.files() {
            self.hash(record, &mut buffer, &mut on_bytes)?;
        }
        self.manifest.modules.iter().try_for_each(|module| {
            self.module(module)?;
            self.neff(module)
        })
    }

    /// Files that the manifest does not name, below the artifact's directory, in order.
    fn extra(&self) -> Result<Vec<String>, ArtifactError> {
        let named: BTreeSet<&str> = self.files().map(|file| file.path.as_str()).chain([MANIFEST]).collect();
        let (mut extra, mut left) = (vec![], vec![PathBuf::new()]);
        while let Some(dir) = left.pop() {
            let path = self.dir.join(&dir);
            let io = |source| ArtifactError::Io { path: path.clone(), source };
            for entry in fs::read_dir(&path).map_err(io)? {
                let entry = entry.map_err(io)?;
                let below = dir.join(entry.file_name());
                let name = below.components().map(|part| part.as_os_str().to_string_lossy());
                let name = name.collect::<Vec<_>>().join("/");
                // A link to a directory is a file here: nothing is followed.
                match entry.file_type().map_err(io)?.is_dir() {
                    true => left.push(below),
                    false if !named.contains(name.as_str()) => extra.push(name),
                    false => {}
                }
            }
        }
        extra.sort_unstable();
        Ok(extra)
    }

    fn hash(
        &self,
        record: &FileRecord,
        buffer: &mut [u8],
        on_bytes: &mut impl FnMut(u64),
    ) -> Result<(), ArtifactError> {
        let path = self.dir.join(&record.path);
        let io = |source| ArtifactError::Io { path: path.clone(), source };
        let mut file = fs::File::open(&path).map_err(io)?;
        let mut hasher = Sha256::new();
        loop {
            match file.read(buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    on_bytes(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io(e)),
            }
        }
        let found = digest::hex(&hasher.finalize());
        if found != record.sha256 {
            return Err(ArtifactError::Hash { path, found, expected: record.sha256.clone() });
        }
        Ok(())
    }

    /// The module decodes, keeps its target's rules and has the manifest's ports.
    fn module(&self, record: &ModuleRecord) -> Result<(), ArtifactError> {
        let path = self.dir.join(&record.hlo.path);
        let bytes = fs::read(&path).map_err(|source| ArtifactError::Io { path: path.clone(), source })?;
        let differs = |what: String| ArtifactError::Differs { path: path.clone(), what };
        let module = njoule_hlo::decode(&bytes).map_err(|e| differs(e.to_string()))?;
        njoule_hlo::verify(&module, self.manifest.layout.target).map_err(|e| differs(e.to_string()))?;
        let parameters = module.signature.parameters.iter().map(|shape| match shape {
            Shape::Array(array) => Some(array),
            Shape::Tuple(_) => None,
        });
        let parameters: Vec<_> = parameters.collect();
        let results: Vec<_> = module.results().iter().map(Some).collect();
        compare("parameter", &parameters, &record.inputs).map_err(differs)?;
        compare("result", &results, &record.outputs).map_err(differs)
    }

    /// The NEFF unpacks, and where it tells names and sizes they are the manifest's.
    fn neff(&self, record: &ModuleRecord) -> Result<(), ArtifactError> {
        let path = self.dir.join(&record.neff.path);
        let neff = neff::read(&path)?;
        let told = !(neff.inputs.is_empty() && neff.outputs.is_empty());
        let compared = match told {
            true => sizes("input", &neff.inputs, record.inputs.iter().map(Port::bytes))
                .and_then(|()| sizes("output", &neff.outputs, record.outputs.iter().map(Port::bytes))),
            false => Ok(()),
        };
        compared.map_err(|what| ArtifactError::Differs { path, what })
    }
}

fn compare<T>(what: &str, shapes: &[Option<&ArrayShape>], ports: &[Port<T>]) -> Result<(), String> {
    if shapes.len() != ports.len() {
        return Err(format!("it has {} {what}s, the manifest {}", shapes.len(), ports.len()));
    }
    let same = |(shape, port): (&Option<&ArrayShape>, &Port<T>)| {
        shape.is_some_and(|shape| shape.dtype() == port.dtype && Dims::new(&port.dims).as_ref() == Some(shape.dims()))
    };
    match shapes.iter().zip(ports).position(|pair| !same(pair)) {
        Some(i) => {
            Err(format!("{what} {i} is {:?}, the manifest says {:?} {:?}", shapes[i], ports[i].dtype, ports[i].dims))
        }
        None => Ok(()),
    }
}

fn sizes(what: &str, told: &BTreeMap<String, u64>, ports: impl Iterator<Item = usize>) -> Result<(), String> {
    for (i, bytes) in ports.enumerate() {
        let name = format!("{what}{i}");
        match told.get(&name) {
            Some(found) if *found == bytes as u64 => {}
            Some(found) => return Err(format!("`{name}` has {found} bytes, the manifest says {bytes}")),
            None => return Err(format!("it has no `{name}`")),
        }
    }
    Ok(())
}
