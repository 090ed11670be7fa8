//! Parses one GGUF file, versions 2 and 3, little-endian (format: ggml-org/ggml `docs/gguf.md`).
//!
//! ```text
//! "GGUF" | u32 version | u64 tensors | u64 entries | entries: key, u32 type, value | tensors: name, u32 n, u64 dims[n],
//! u32 type, u64 offset | padding to the alignment | data
//! ```
//! Strings are a u64 length and bytes. Counts are only ever walked, never trusted for an allocation; every error names the
//! offset it was found at.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::metadata::{Array, Kind, Metadata, Value};
use super::types::TensorType;
use crate::weights::WeightError;
use crate::weights::mapped::MappedFile;

/// One file of a model.
#[derive(Debug)]
pub struct Part {
    /// Its bytes.
    pub file: MappedFile,
    /// Metadata.
    pub entries: HashMap<String, Value>,
    /// Their bytes.
    pub entries_span: Range<usize>,
    /// Tensors, by name.
    pub tensors: HashMap<String, Tensor>,
}

/// A tensor; its data lies within the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, columns first as the format has them.
    pub dims: Vec<usize>,
    /// Type of its elements.
    pub kind: TensorType,
    /// Where its data starts in the file.
    pub offset: usize,
    /// Bytes of its data; 0 where the type's size is not known.
    pub bytes: usize,
}

impl Tensor {
    /// `(rows, cols)` of a vector or a matrix.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match self.dims[..] {
            [cols] => Some((1, cols)),
            [cols, rows] => Some((rows, cols)),
            _ => None,
        }
    }
}

impl Part {
    /// Opens and checks a file.
    pub fn open(path: &Path) -> Result<Part, WeightError> {
        Part::read(path, None)
    }

    /// Opens what stands before the data of a file that has `whole` bytes.
    pub fn head(path: &Path, whole: u64) -> Result<Part, WeightError> {
        Part::read(path, Some(usize::try_from(whole).unwrap_or(usize::MAX)))
    }

    fn read(path: &Path, whole: Option<usize>) -> Result<Part, WeightError> {
        let file = MappedFile::open(path)?;
        let (entries, entries_span, tensors) = match parse(file.bytes(), whole.unwrap_or(file.bytes().len())) {
            Ok(parsed) => parsed,
            Err(Fault::Format(what)) => return Err(WeightError::Format { path: path.to_owned(), what }),
            Err(Fault::Truncated { name, offset, end }) => {
                let actual = file.bytes().len() as u64;
                return Err(WeightError::Truncated { path: path.to_owned(), name, offset, end, actual });
            }
        };
        Ok(Part { file, entries, entries_span, tensors })
    }
}

/// What is wrong with a file.
#[derive(Debug)]
enum Fault {
    Format(String),
    Truncated { name: String, offset: u64, end: u64 },
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Fault::Format(what)
    }
}

type Parsed = (HashMap<String, Value>, Range<usize>, HashMap<String, Tensor>);

/// Of a file of `len` bytes, of which `bytes` are here: all that stands before the data at least.
fn parse(bytes: &[u8], len: usize) -> Result<Parsed, Fault> {
    let mut c = Cursor { bytes, at: 0 };
    if c.take(4, "magic")? != b"GGUF" {
        return Err(Fault::Format("is no GGUF file: magic at offset 0 is missing".to_owned()));
    }
    let version = c.u32("version")?;
    match version {
        2 | 3 => {}
        v if matches!(v.swap_bytes(), 1..=0xffff) => {
            return Err(Fault::Format("big-endian GGUF is not supported".to_owned()));
        }
        v => return Err(Fault::Format(format!("GGUF version {v} is not supported, supported are 2 and 3"))),
    }
    let tensor_count = c.u64("tensor count")?;
    let entry_count = c.u64("metadata count")?;
    let first = c.at;
    let entries = parse_entries(&mut c, entry_count)?;
    let span = first..c.at;
    let alignment = match entries.get(ALIGNMENT) {
        None => USUAL_ALIGNMENT,
        Some(value) => match value.as_unsigned().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n.is_power_of_two() && n <= MOST_ALIGNMENT => n,
            _ => return Err(Fault::Format(format!("general.alignment is no power of two up to {MOST_ALIGNMENT}"))),
        },
    };
    let tensors = parse_tensors(&mut c, tensor_count, alignment, len)?;
    Ok((entries, span, tensors))
}

/// A tensor of a head.
pub struct Described<'a> {
    /// Its name.
    pub name: &'a str,
    /// Type and dimensions.
    pub tensor: &'a Tensor,
    /// Its data, where they are part of the head; only of the first tensors.
    pub data: Option<&'a [u8]>,
}

/// A file with the metadata of `m`, whose entries are `entries` of its bytes, and these tensors, up to the last data that
/// are given; and the bytes that it would have with all data.
pub fn write_head(m: &Metadata<'_>, entries: Range<usize>, tensors: &[Described<'_>]) -> (Vec<u8>, u64) {
    // Parsed once: a power of two, or not there.
    let alignment = m.unsigned(ALIGNMENT).ok().flatten().unwrap_or(USUAL_ALIGNMENT as u64).max(1);
    let aligned = |n: u64| n.next_multiple_of(alignment);
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    for count in [tensors.len(), m.keys().count()] {
        bytes.extend((count as u64).to_le_bytes());
    }
    bytes.extend(&m.bytes[entries]);
    let mut end = 0u64;
    for Described { name, tensor, .. } in tensors {
        bytes.extend((name.len() as u64).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend((tensor.dims.len() as u32).to_le_bytes()); // at most 4
        tensor.dims.iter().for_each(|dim| bytes.extend((*dim as u64).to_le_bytes()));
        bytes.extend(tensor.kind.0.to_le_bytes());
        bytes.extend(end.to_le_bytes());
        end = aligned(end + tensor.bytes as u64);
    }
    let pad = |bytes: &mut Vec<u8>| bytes.resize(aligned(bytes.len() as u64) as usize, 0); // less than an alignment more
    pad(&mut bytes);
    let start = bytes.len() as u64;
    for data in tensors.iter().map_while(|described| described.data) {
        bytes.extend(data);
        pad(&mut bytes);
    }
    (bytes, start + end)
}

fn parse_entries(c: &mut Cursor<'_>, count: u64) -> Result<HashMap<String, Value>, Fault> {
    let mut entries = HashMap::new();
    for _ in 0..count {
        let at = c.at;
        let key = c.name("metadata key")?;
        let value = c.value(&key)?;
        if entries.insert(key.clone(), value).is_some() {
            return Err(Fault::Format(format!("metadata key `{key}` at offset {at} is there twice")));
        }
    }
    Ok(entries)
}

fn parse_tensors(
    c: &mut Cursor<'_>,
    count: u64,
    alignment: usize,
    len: usize,
) -> Result<HashMap<String, Tensor>, Fault> {
    let mut infos = vec![];
    for _ in 0..count {
        let at = c.at;
        let name = c.name("tensor name")?;
        let n_dims = c.u32("number of dimensions")?;
        if n_dims > 4 {
            return Err(Fault::Format(format!(
                "tensor `{name}` at offset {at} has {n_dims} dimensions, at most 4 exist"
            )));
        }
        let dims = (0..n_dims).map(|_| c.size("dimension")).collect::<Result<Vec<_>, _>>()?;
        let kind = TensorType(c.u32("tensor type")?);
        let offset = c.size("tensor offset")?;
        infos.push((at, name, dims, kind, offset));
    }
    let data_start =
        c.at.checked_next_multiple_of(alignment).ok_or_else(|| "data starts beyond any file".to_owned())?;
    let mut tensors = HashMap::new();
    for (at, name, dims, kind, offset) in infos {
        let wrong = |what: String| Fault::Format(format!("tensor `{name}` described at offset {at} {what}"));
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!("has data at {offset}, not a multiple of the alignment {alignment}")));
        }
        let bytes = match kind.encoding() {
            None => 0,
            Some(encoding) => {
                let cols = dims.first().copied().unwrap_or(1);
                let rows = dims.iter().skip(1).try_fold(1usize, |n, &d| n.checked_mul(d));
                let row = encoding
                    .row_bytes(cols)
                    .ok_or_else(|| wrong(format!("has rows of {cols} values, no whole blocks of {encoding}")))?;
                rows.and_then(|rows| rows.checked_mul(row))
                    .ok_or_else(|| wrong(format!("has impossible sizes {dims:?}")))?
            }
        };
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(wrong(format!("has data at {offset}, beyond any file")));
        };
        if end > len {
            return Err(Fault::Truncated { name, offset: start as u64, end: end as u64 });
        }
        if tensors.insert(name.clone(), Tensor { dims, kind, offset: start, bytes }).is_some() {
            return Err(Fault::Format(format!("tensor `{name}` described at offset {at} is there twice")));
        }
    }
    Ok(tensors)
}

const ALIGNMENT: &str = "general.alignment";
const USUAL_ALIGNMENT: usize = 32;
/// Far above any: what a head is padded to stays small.
const MOST_ALIGNMENT: usize = 1 << 20;

/// Reads forward; every read says what it wanted where.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        match self.bytes[self.at..].get(..n) {
            Some(bytes) => {
                self.at += n;
                Ok(bytes)
            }
            None => Err(format!(
                "{what} at offset {} needs {n} bytes, the file ends after {}",
                self.at,
                self.bytes.len() - self.at
            )),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        let low = u64::from(self.u32(what)?);
        Ok(u64::from(self.u32(what)?) << 32 | low)
    }

    fn size(&mut self, what: &str) -> Result<usize, String> {
        let at = self.at;
        let n = self.u64(what)?;
        usize::try_from(n).map_err(|_| format!("{what} at offset {at} is {n}, too large for this machine"))
    }

    fn string(&mut self, what: &str) -> Result<Range<usize>, String> {
        let n = self.size(what)?;
        self.take(n, what)?;
        Ok(self.at - n..self.at)
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        const LONGEST: usize = 65_535; // of a metadata key; ggml allows tensor names of 63
        let at = self.at;
        let span = self.string(what)?;
        match std::str::from_utf8(&self.bytes[span.clone()]) {
            Ok(name) if span.len() <= LONGEST => Ok(name.to_owned()),
            _ => Err(format!("{what} at offset {at} is no text of at most {LONGEST} bytes")),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, String> {
        const ARRAY: u32 = 9;
        let at = self.at;
        let id = self.u32(key)?;
        if id == ARRAY {
            return self.array(key);
        }
        let kind = Kind::from_id(id).ok_or_else(|| format!("type of `{key}` at offset {at} is {id}, which is none"))?;
        match kind.size() {
            None => Ok(Value::String(self.string(key)?)),
            Some(n) => {
                let bytes = self.take(n, key)?;
                kind.decode(bytes).ok_or_else(|| format!("`{key}` at offset {at} is no {kind:?}"))
            }
        }
    }

    fn array(&mut self, key: &str) -> Result<Value, String> {
        let at = self.at;
        let id = self.u32(key)?;
        let element = Kind::from_id(id)
            .ok_or_else(|| format!("element type of `{key}` at offset {at} is {id}, which is none"))?;
        let count = self.size(key)?;
        let start = self.at;
        match element.size() {
            Some(n) => {
                let bytes =
                    count.checked_mul(n).ok_or_else(|| format!("`{key}` at offset {at} has {count} elements"))?;
                self.take(bytes, key)?;
            }
            None => {
                for _ in 0..count {
                    self.string(key)?;
                }
            }
        }
        Ok(Value::Array(Array { element, count, span: start..self.at }))
    }
}
