//! What a NEFF file says of itself, read without the runtime: to refuse a broken one before a device is touched.
//!
//! A 1024-byte header, little endian, then a tar, gzipped or plain. There is no magic number. Layout and what is in it:
//! AWS's [Work with NEFF files](https://awsdocs-neuron.readthedocs-hosted.com/en/latest/neuron-runtime/explore/work-with-neff-files.html).
//!
//! Invariant: any bytes give a description or an error; memory is bounded by [`MOST_DEF`], time by the file's length.

mod tar;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the packaging.
    pub package: u64,
    /// Bytes after the header.
    pub data_size: u64,
    /// Version of the format, checked by the runtime at load.
    pub version: (u64, u64),
    /// The compiler's build.
    pub build: String,
    /// Cores it was made for.
    pub cores: u32,
    /// What the compiler called it.
    pub name: String,
    /// Features that the runtime must have.
    pub features: u64,
    /// Physical cores of a logical one.
    pub lnc: u32,
    /// Whether the tar is gzipped.
    pub gzipped: bool,
}

/// Header and what the tar says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neff {
    /// The header.
    pub header: Header,
    /// Names and bytes of inputs, as far as a `def.json` tells them.
    pub inputs: BTreeMap<String, u64>,
    /// Likewise of outputs.
    pub outputs: BTreeMap<String, u64>,
    /// Bytes of all files in it, unpacked.
    pub unpacked: u64,
}

impl Header {
    /// Size of the file that has this header.
    pub fn file_bytes(&self) -> u64 {
        self.data_size.saturating_add(HEADER as u64)
    }

    fn parse(bytes: &[u8; HEADER], after: &[u8], file_bytes: u64) -> Result<Header, String> {
        let header_size = u64_at(bytes, 8);
        if header_size != HEADER as u64 {
            return Err(format!("header_size is {header_size}, not {HEADER}: this is no NEFF"));
        }
        let data_size = u64_at(bytes, 16);
        if data_size != file_bytes.saturating_sub(HEADER as u64) {
            return Err(format!(
                "data_size is {data_size}, but the file has {file_bytes} bytes with its header: it was cut"
            ));
        }
        let gzipped = after.starts_with(&[0x1f, 0x8b]);
        if !gzipped && after.get(257..262) != Some(b"ustar") {
            return Err("what follows the header is neither gzip nor tar".to_owned());
        }
        Ok(Header {
            package: u64_at(bytes, 0),
            data_size,
            version: (u64_at(bytes, 24), u64_at(bytes, 32)),
            build: text(&bytes[40..168]),
            cores: u32_at(bytes, 168),
            name: text(&bytes[220..476]),
            features: u64_at(bytes, 544),
            lnc: u32_at(bytes, 552),
            gzipped,
        })
    }
}

/// Reads the header alone.
pub fn read_header(path: &Path) -> Result<Header, NeffError> {
    let mut file = open(path)?;
    header_of(&mut file).map_err(|what| what.at(path))
}

/// Reads header and tar.
pub fn read(path: &Path) -> Result<Neff, NeffError> {
    read_from(open(path)?).map_err(|what| what.at(path))
}

fn open(path: &Path) -> Result<File, NeffError> {
    File::open(path).map_err(|source| NeffError::Io { path: path.to_owned(), source })
}

fn header_of(file: &mut (impl Read + Seek)) -> Result<Header, Problem> {
    let file_bytes = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut start = Vec::with_capacity(HEADER + 512);
    file.take((HEADER + 512) as u64).read_to_end(&mut start)?;
    let short = || Problem::Format(format!("has {file_bytes} bytes: no room for a header of {HEADER}"));
    let (bytes, after) = start.split_first_chunk::<HEADER>().ok_or_else(short)?;
    Header::parse(bytes, after, file_bytes).map_err(Problem::Format)
}

fn read_from(mut file: impl Read + Seek) -> Result<Neff, Problem> {
    let header = header_of(&mut file)?;
    file.seek(SeekFrom::Start(HEADER as u64))?;
    let data = BufReader::new(file.take(header.data_size));
    let mut neff = Neff { header, inputs: BTreeMap::new(), outputs: BTreeMap::new(), unpacked: 0 };
    // A gzip stream unpacks to at most about a thousand times its size: linear in the file.
    let files = if neff.header.gzipped {
        tar::walk(MultiGzDecoder::new(data), &mut neff)?
    } else {
        tar::walk(data, &mut neff)?
    };
    if files == 0 {
        return Err(Problem::Format("its tar holds no file".to_owned()));
    }
    Ok(neff)
}

impl Neff {
    /// Takes note of a file of the tar.
    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), Problem> {
        self.unpacked = self.unpacked.saturating_add(size);
        if name.rsplit('/').next() != Some("def.json") {
            return Ok(());
        }
        if size > MOST_DEF {
            return Err(Problem::Format(format!("`{name}` has {size} bytes, more than the {MOST_DEF} that are read")));
        }
        let def: Definition = serde_json::from_reader(BufReader::new(content))
            .map_err(|error| Problem::Format(format!("`{name}` is not understood: {error}")))?;
        for (name, variable) in def.var {
            let table = match variable.kind.as_str() {
                "input" => &mut self.inputs,
                "output" => &mut self.outputs,
                _ => continue,
            };
            table.insert(name, variable.size);
        }
        Ok(())
    }
}

/// The part of a `def.json` that is looked at.
#[derive(Deserialize)]
struct Definition {
    #[serde(default)]
    var: BTreeMap<String, Variable>,
}

#[derive(Deserialize)]
struct Variable {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    size: u64,
}

/// Why a file is no NEFF, or cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NeffError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It breaks the format.
    #[error("{path} is no usable NEFF: {what}")]
    Format {
        /// File.
        path: PathBuf,
        /// What is wrong, with the field.
        what: String,
    },
}

impl NeffError {
    /// What is wrong with a file that will not be there any more.
    pub(super) fn without_path(self) -> String {
        match self {
            NeffError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "there is none".to_owned(),
            NeffError::Io { source, .. } => source.to_string(),
            NeffError::Format { what, .. } => what,
        }
    }
}

/// The same before the path is known.
#[derive(Debug)]
enum Problem {
    Io(io::Error),
    Format(String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Problem {
        Problem::Io(error)
    }
}

impl Problem {
    fn at(self, path: &Path) -> NeffError {
        let path = path.to_owned();
        match self {
            Problem::Format(what) => NeffError::Format { path, what },
            // What gzip says of broken data is about the format.
            Problem::Io(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                NeffError::Format { path, what: format!("its data does not unpack: {e}") }
            }
            Problem::Io(source) => NeffError::Io { path, source },
        }
    }
}

fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    (0..8).fold(0, |n, i| n | u64::from(bytes[at + i]) << (8 * i))
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    (0..4).fold(0, |n, i| n | u32::from(bytes[at + i]) << (8 * i))
}

/// Up to the first zero, printable.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

const HEADER: usize = 1024;
/// Largest `def.json` that is read: bounds the memory of a look at a NEFF.
pub const MOST_DEF: u64 = 64 << 20;

/// A NEFF of these files, for tests.
#[cfg(test)]
pub(crate) use tests::fixture;
#[cfg(test)]
mod tests;
