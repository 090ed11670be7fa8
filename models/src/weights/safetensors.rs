//! Safetensors checkpoints: one file or shards with an index, memory-mapped.
//!
//! ```text
//! u64 header length | JSON: name -> {dtype, shape, data_offsets} | data
//! ```
//! The `safetensors` crate reads the header; what it refuses is looked at again here to say which tensor is at fault.
//! Invariant: every tensor listed here lies within its file.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::Value;

use super::mapped::{MappedFile, fold};
use super::parts::{self, Parts, Tensor};
use super::rows::{FileRows, Order, Stack, Stored, planes};
use super::{Container, DType, Encoding, StoredTypes, WeightError, WeightRows, WeightSource};
use crate::config::Quantization;
use crate::program::WeightDecl;

/// The safetensors files of a directory.
#[derive(Debug)]
pub struct SafetensorsSource {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to shard.
    tensors: HashMap<String, usize>,
    quantization: Option<Quantization>,
}

#[derive(Debug)]
struct Shard {
    file: MappedFile,
    metadata: Metadata,
    data_start: usize,
}

impl SafetensorsSource {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(dir: &Path) -> Result<Self, WeightError> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.is_file() || !index.is_file() {
            return Self::of_files(dir, &[single], None);
        }
        let weight_map = read_index(&index)?;
        // In name order, each once.
        let names: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        let files: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
        Self::of_files(dir, &files, Some((&index, &weight_map)))
    }

    /// The same, with the matrices that `quantization` says how to read.
    pub fn quantized(self, quantization: Option<Quantization>) -> Self {
        SafetensorsSource { quantization, ..self }
    }

    /// Whether `dir` has something to open.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(SINGLE).is_file() || dir.join(INDEX).is_file()
    }

    fn of_files(
        dir: &Path,
        files: &[PathBuf],
        index: Option<(&Path, &HashMap<String, String>)>,
    ) -> Result<Self, WeightError> {
        let shards: Vec<_> = files.iter().map(|path| Shard::open(path)).collect::<Result<_, _>>()?;
        let mut tensors = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.metadata.offset_keys() {
                tensors.insert(name, i);
            }
        }
        if let Some((path, weight_map)) = index {
            for (name, file) in weight_map {
                let shard = files.iter().position(|f| f == &dir.join(file));
                let found = shard.filter(|&i| shards[i].metadata.info(name).is_some());
                let Some(found) = found else {
                    let what = format!("tensor `{name}` is not in {file}, where the index says it is");
                    return Err(WeightError::Format { path: path.to_owned(), what });
                };
                tensors.insert(name.clone(), found);
            }
        }
        Ok(SafetensorsSource { dir: dir.to_owned(), shards, tensors, quantization: None })
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.file.bytes().len() as u64).sum()
    }

    /// What the tensors are stored as; types that cannot be read are left out (they may be strays).
    pub fn stored_types(&self) -> StoredTypes {
        let mut types = StoredTypes::default();
        for shard in &self.shards {
            for (name, info) in shard.metadata.tensors() {
                let method = self.quantization.as_ref().map(|q| q.method);
                let part = method.filter(|m| parts::is_part(*m, &name, info.dtype));
                if let Some(encoding) = part.map(|m| Encoding::Parts(Parts::of(m))).or_else(|| encoding(info.dtype)) {
                    types.add(encoding, (info.data_offsets.1 - info.data_offsets.0) as u64);
                }
            }
        }
        types
    }

    fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (shard, info) = self.find(name)?;
        Some(Tensor { file: &shard.file, info, start: shard.data_start + info.data_offsets.0 })
    }

    fn missing(&self, name: &str) -> WeightError {
        let path = self.dir.clone();
        let found = parts::unexplained(name, &|name| self.tensor(name));
        match found.filter(|_| self.quantization.is_none()) {
            Some(found) => {
                let what = format!("is `{name}` quantised, but config.json has no quantization_config to read it by");
                WeightError::Part { name: found, path, what }
            }
            None => WeightError::Missing { name: name.to_owned(), path },
        }
    }

    /// Files of a headless model are saved without the base's prefix; a language model that is part of a larger one has
    /// another.
    fn find(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let find = |name: &str| {
            let shard = &self.shards[*self.tensors.get(name)?];
            Some((shard, shard.metadata.info(name)?))
        };
        find(name)
            .or_else(|| BASES.iter().find_map(|base| find(name.strip_prefix(base)?)))
            .or_else(|| PARTS.iter().find_map(|(base, part)| find(&format!("{part}{}", name.strip_prefix(base)?))))
    }
}

impl WeightSource for SafetensorsSource {
    fn container(&self) -> Container {
        Container::Safetensors
    }

    fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    fn version(&self) -> u64 {
        fold(self.shards.iter().map(|shard| shard.file.version()))
    }

    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
        if decl.experts.is_some() && decl.name.contains("{}") {
            return Ok(Box::new(Stack::new(self, decl)?));
        }
        if let Some(q) = &self.quantization
            && let Some(rows) = parts::resolve(q.method, decl, &self.dir, &|name| self.tensor(name))?
        {
            return Ok(Box::new(rows));
        }
        let name = &decl.name;
        let (shard, info) = self.find(name).ok_or_else(|| self.missing(name))?;
        let path = || shard.file.path().to_owned();
        let encoding = encoding(info.dtype).ok_or_else(|| WeightError::DType {
            name: name.clone(),
            path: path(),
            dtype: info.dtype.to_string(),
            supported: super::SAFETENSORS_TYPES,
        })?;
        let (planes, rows, cols) = planes(&info.shape, decl);
        let tensor = Stored {
            file: &shard.file,
            offset: shard.data_start + info.data_offsets.0,
            encoding,
            planes,
            rows,
            cols,
            row_bytes: encoding.row_bytes(cols).unwrap_or(0), // cols of a tensor within the file cannot overflow
            order: Order::Plain,
        };
        Ok(Box::new(FileRows::new(tensor, decl, name, &info.shape)?))
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, WeightError> {
        let file = MappedFile::open(path)?;
        match SafeTensors::read_metadata(file.bytes()) {
            Ok((header, metadata)) => Ok(Shard { data_start: LENGTH_BYTES + header, file, metadata }),
            Err(e) => Err(diagnose(&file, &e.to_string())),
        }
    }
}

fn encoding(dtype: Dtype) -> Option<Encoding> {
    match dtype {
        Dtype::F32 => Some(Encoding::Dense(DType::F32)),
        Dtype::F16 => Some(Encoding::Dense(DType::F16)),
        Dtype::BF16 => Some(Encoding::Dense(DType::BF16)),
        _ => None,
    }
}

fn read_index(path: &Path) -> Result<HashMap<String, String>, WeightError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let format = |what: String| WeightError::Format { path: path.to_owned(), what };
    let bytes = std::fs::read(path).map_err(|source| WeightError::Io { path: path.to_owned(), source })?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| format(format!("not an index of shards: {e}")))?;
    // Shards lie beside the index: a name with a separator would leave the directory.
    match index.weight_map.values().find(|f| Path::new(f).file_name().is_none_or(|n| n != f.as_str())) {
        Some(file) => Err(format(format!("`{file}` is not a file name"))),
        None if index.weight_map.is_empty() => Err(format("weight_map is empty".to_owned())),
        None => Ok(index.weight_map),
    }
}

/// Says what is wrong with a file that the crate refuses as `reason`: the first tensor at fault, with its offset.
fn diagnose(file: &MappedFile, reason: &str) -> WeightError {
    let format = |what: String| WeightError::Format { path: file.path().to_owned(), what };
    let bytes = file.bytes();
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return format(format!("is no safetensors file: {} bytes, a header length at offset 0 needs 8", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let Some(header) = usize::try_from(length).ok().and_then(|n| rest.get(..n)) else {
        return format(format!("header at offset 8 should have {length} bytes, the file has {}", bytes.len()));
    };
    let header: serde_json::Map<String, Value> = match serde_json::from_slice(header) {
        Ok(map) => map,
        Err(e) => return format(format!("header at offset 8 is not a JSON object: {e}")),
    };
    let data_start = LENGTH_BYTES as u64 + length;
    let mut tensors = vec![];
    for (name, value) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        match serde_json::from_value::<TensorInfo>(value) {
            Ok(info) => tensors.push((name, info)),
            Err(e) => return format(format!("header entry of tensor `{name}`: {e}")),
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut previous_end = 0;
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        let at = data_start.saturating_add(start as u64);
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let size = elements.and_then(|n| n.checked_mul(info.dtype.bitsize())).map(|bits| bits / 8);
        if end < start || start != previous_end {
            let what = format!(
                "tensor `{name}` at offset {at} spans {start}..{end} of the data, {previous_end} ends the last one"
            );
            return format(what);
        }
        if size != Some(end - start) {
            let what = format!(
                "tensor `{name}` at offset {at} has {} bytes, {} {:?} do not fit",
                end - start,
                info.dtype,
                info.shape
            );
            return format(what);
        }
        let file_end = data_start.saturating_add(end as u64);
        if file_end > bytes.len() as u64 {
            let (path, offset, actual) = (file.path().to_owned(), at, bytes.len() as u64);
            return WeightError::Truncated { path, name, offset, end: file_end, actual };
        }
        previous_end = end;
    }
    format(format!(
        "{reason} (data ends at {}, the file at {})",
        data_start.saturating_add(previous_end as u64),
        bytes.len()
    ))
}

/// What the reference implementation calls the model below the head.
const BASES: [&str; 3] = ["model.", "transformer.", "gpt_neox."];
/// What it calls a language model within a larger one: what a name starts with on its own, and there. The first is in
/// files, the second in memory (`_checkpoint_conversion_mapping` of `modeling_gemma3.py`) and thence in some files.
/// The third is the larger one without its head.
const PARTS: [(&str, &str); 3] =
    [("", "language_model."), ("model.", "model.language_model."), ("model.", "language_model.")];
const LENGTH_BYTES: usize = 8;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[cfg(test)]
mod tests;
