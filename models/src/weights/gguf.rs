//! GGUF checkpoints: one file, or the parts of a split one.
//!
//! A [`Gguf`] answers for Hugging Face names and row order: it maps names by table (`gguf/names.rs`) and undoes what
//! llama.cpp's converter does to the tensors. Its metadata becomes a [`crate::ModelConfig`] in `config/gguf.rs`, and a
//! [`GgufVocab`] for the tokenizer.

mod metadata;
mod names;
mod reader;
mod types;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::rows::{FileRows, Order, Stored, planes};
use super::{Container, StoredTypes, WeightError, WeightRows, WeightSource, dequant};
use crate::config::{self, ConfigError, ModelConfig};
use crate::program::WeightDecl;
use crate::tokenizer::GgufVocab;

pub use metadata::{Array, Kind, Metadata, Value};
use names::Place;
use reader::{Part, Tensor};
pub use types::TensorType;

/// An open GGUF model.
#[derive(Debug)]
pub struct Gguf {
    /// At least one.
    parts: Vec<Part>,
    /// Tensor name to part.
    tensors: HashMap<String, usize>,
    /// Whether the tensors' data are elsewhere.
    is_head: bool,
}

/// A model's description, see [`Gguf::head`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// A GGUF file up to its tensors' data.
    pub bytes: Vec<u8>,
    /// Bytes that it would have with all of them, as [`Gguf::open_head`] wants to know.
    pub whole: u64,
}

impl Gguf {
    /// Opens `path`; of a split model any part will do, the others lie beside it.
    pub fn open(path: &Path) -> Result<Gguf, WeightError> {
        let format = |what: String| WeightError::Format { path: path.to_owned(), what };
        let opened = Part::open(path)?;
        let count = split(&opened, "split.count").map_err(format)?.unwrap_or(1);
        let parts = if count <= 1 {
            vec![opened]
        } else {
            let paths = part_paths(path, count).ok_or_else(|| {
                format(format!("is one of {count} parts, but not called NAME-00001-of-{count:05}.gguf"))
            })?;
            paths.iter().map(|p| Part::open(p)).collect::<Result<_, _>>()?
        };
        let mut tensors = HashMap::new();
        for (i, part) in parts.iter().enumerate() {
            let here = split(part, "split.no").map_err(format)?;
            if count > 1 && here != Some(i) {
                let what = format!("should be part {i} of a split model (split.no), is {here:?}");
                return Err(WeightError::Format { path: part.file.path().to_owned(), what });
            }
            for name in part.tensors.keys() {
                if tensors.insert(name.clone(), i).is_some() {
                    return Err(format(format!("tensor `{name}` is in two parts")));
                }
            }
        }
        Ok(Gguf { parts, tensors, is_head: false })
    }

    /// Opens a [head](Gguf::head) of a model of `whole` bytes: it says what the model is and has no weight.
    pub fn open_head(path: &Path, whole: u64) -> Result<Gguf, WeightError> {
        let part = Part::head(path, whole)?;
        let tensors = part.tensors.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Gguf { parts: vec![part], tensors, is_head: true })
    }

    /// What says what the model is, without its weights: the metadata, a description of every tensor of every part, and
    /// the data of rotary divisors, which belong to the configuration.
    pub fn head(&self) -> Head {
        let m = self.metadata();
        let mut names: Vec<&str> = self.tensor_names().collect();
        // What has its data in the head comes first: then they lie within it.
        names.sort_unstable_by_key(|name| (!Self::is_config(name), *name));
        let tensors = names.iter().filter_map(|name| {
            let (part, tensor) = self.find(name)?;
            let data = Self::is_config(name).then(|| &part.file.bytes()[tensor.offset..tensor.offset + tensor.bytes]);
            Some(reader::Described { name, tensor, data })
        });
        let (bytes, whole) = reader::write_head(&m, self.parts[0].entries_span.clone(), &tensors.collect::<Vec<_>>());
        Head { bytes, whole }
    }

    /// Number of files.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Path of the first part.
    pub fn path(&self) -> &Path {
        self.parts[0].file.path()
    }

    /// Metadata, of the first part.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata { entries: &self.parts[0].entries, bytes: self.parts[0].file.bytes() }
    }

    /// The model that the metadata describe.
    pub fn config(&self) -> Result<ModelConfig, ConfigError> {
        crate::config::from_gguf(self)
    }

    /// The tokenizer part of the metadata; `None` where the file has no vocabulary.
    pub fn vocab(&self) -> Result<Option<GgufVocab<'_>>, ConfigError> {
        let m = self.metadata();
        let Some(model) = m.string("tokenizer.ggml.model")?.filter(|m| *m != "none" && *m != "no_vocab") else {
            return Ok(None);
        };
        const TEMPLATE: &str = "tokenizer.chat_template.";
        let mut named_templates = vec![];
        for key in m.keys() {
            // The list of the names is not itself a template.
            if let (Some(name), Some(Value::String(_))) = (key.strip_prefix(TEMPLATE), m.get(key)) {
                named_templates.push((name, m.string(key)?.unwrap_or_default()));
            }
        }
        named_templates.sort_unstable();
        let not =
            |key: &str, expected| ConfigError::Type { key: key.to_owned(), expected, value: "another".to_owned() };
        // Token types and scores are small numbers: f32 is what the format stores scores as.
        let scores =
            m.numbers(SCORES)?.iter().map(|v| if let Value::Float(x) = v { Some(*x as f32) } else { None }).collect();
        let kind = |v: &Value| match v {
            Value::Signed(n) => i32::try_from(*n).ok(),
            v => v.as_unsigned().and_then(|n| i32::try_from(n).ok()),
        };
        let types = m.numbers(TOKEN_TYPE)?.iter().map(kind).collect();
        Ok(Some(GgufVocab {
            model,
            pre: m.string("tokenizer.ggml.pre")?,
            tokens: m.strings(TOKENS)?,
            scores: Option::<Vec<f32>>::ok_or_else(scores, || not(SCORES, "an array of f32"))?,
            token_types: Option::<Vec<i32>>::ok_or_else(types, || not(TOKEN_TYPE, "an array of i32"))?,
            merges: m.strings("tokenizer.ggml.merges")?,
            bos: m.token("tokenizer.ggml.bos_token_id")?,
            eos: m.token("tokenizer.ggml.eos_token_id")?,
            unk: m.token("tokenizer.ggml.unknown_token_id")?,
            pad: m.token("tokenizer.ggml.padding_token_id")?,
            eot: m.token("tokenizer.ggml.eot_token_id")?,
            eom: m.token("tokenizer.ggml.eom_token_id")?,
            add_bos: m.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: m.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: m.bool("tokenizer.ggml.add_space_prefix")?,
            chat_template: m.string("tokenizer.chat_template")?,
            named_templates,
        }))
    }

    /// Bytes of all parts.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.file.bytes().len() as u64).sum()
    }

    /// What the tensors are stored as; types that cannot be read are left out.
    pub fn stored_types(&self) -> StoredTypes {
        let mut types = StoredTypes::default();
        for tensor in self.parts.iter().flat_map(|p| p.tensors.values()) {
            if let Some(encoding) = tensor.kind.encoding() {
                types.add(encoding, tensor.bytes as u64);
            }
        }
        types
    }

    /// Names of all tensors, in no order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// `(rows, cols)` of a vector or matrix, by its GGUF name.
    pub fn shape(&self, name: &str) -> Option<(usize, usize)> {
        self.find(name)?.1.matrix()
    }

    /// Whether the file has a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether a tensor belongs to the configuration.
    pub(crate) fn is_config(name: &str) -> bool {
        name == names::ROPE_FREQS || names::ROPE_FACTORS.contains(&name)
    }

    /// The file's name of the tensor that `decl` is a view of; `None` where it calls nothing so.
    pub(crate) fn tensor_of(&self, decl: &WeightDecl) -> Option<String> {
        Some(self.place(decl)?.name)
    }

    /// `rope_freqs.weight`: divisors of the rotary frequencies.
    pub(crate) fn rope_divisors(&self) -> Result<Option<Vec<f32>>, ConfigError> {
        self.vector(names::ROPE_FREQS)
    }

    /// `rope_factors_short.weight` and `rope_factors_long.weight`: the divisors of LongRoPE.
    pub(crate) fn rope_factors(&self) -> Result<Option<[Vec<f64>; 2]>, ConfigError> {
        let [short, long] = names::ROPE_FACTORS;
        let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect();
        match (self.vector(short)?, self.vector(long)?) {
            (None, None) => Ok(None),
            (Some(short), Some(long)) => Ok(Some([wide(short), wide(long)])),
            (None, Some(_)) => Err(ConfigError::Missing { key: short.to_owned() }),
            (Some(_), None) => Err(ConfigError::Missing { key: long.to_owned() }),
        }
    }

    /// The values of a vector that belongs to the configuration.
    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>, ConfigError> {
        let Some((part, tensor)) = self.find(name) else { return Ok(None) };
        // In a head that was cut its data may be missing.
        let data = part.file.bytes().get(tensor.offset..tensor.offset + tensor.bytes);
        let (Some((1, n)), Some(encoding), Some(data)) = (tensor.matrix(), tensor.kind.encoding(), data) else {
            let (key, expected) = (name.to_owned(), "a vector of F32");
            return Err(ConfigError::Type { key, expected, value: format!("{} {:?}", tensor.kind, tensor.dims) });
        };
        let mut values = vec![0.0; n];
        dequant::decode(encoding, data, &mut values);
        Ok(Some(values))
    }

    fn find(&self, name: &str) -> Option<(&Part, &Tensor)> {
        let part = &self.parts[*self.tensors.get(name)?];
        Some((part, part.tensors.get(name)?))
    }

    /// Where the file has what `decl` asks for.
    fn place(&self, decl: &WeightDecl) -> Option<Place> {
        let m = self.metadata();
        let arch = config::gguf_architecture(&m).ok()?;
        let family = (arch.family)(&config::GgufKeys { m, arch: arch.name }).ok()?;
        names::place(family, decl, |name| {
            let dims = &self.find(name)?.1.dims;
            dims.get(1).or(dims.first()).copied()
        })
    }

    /// How the file orders the `elements` rows of a tensor.
    fn order(&self, place: &Place, elements: usize) -> Option<Order> {
        if !place.is_interleaved {
            return Some(Order::Plain);
        }
        let m = self.metadata();
        let head_dim = config::gguf_head_dim(&m, m.string("general.architecture").ok()??).ok()?;
        (head_dim.is_multiple_of(2) && elements.is_multiple_of(head_dim)).then_some(Order::Interleaved { head_dim })
    }
}

impl WeightSource for Gguf {
    fn container(&self) -> Container {
        Container::Gguf
    }

    fn version(&self) -> u64 {
        super::mapped::fold(self.parts.iter().map(|part| part.file.version()))
    }

    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
        let missing = |name: &str| WeightError::Missing { name: name.to_owned(), path: self.path().to_owned() };
        let place = self.place(decl).ok_or_else(|| missing(&decl.name))?;
        let Place { name, decl, .. } = &place;
        let (part, tensor) = self.find(name).filter(|_| !self.is_head).ok_or_else(|| missing(name))?;
        let path = || part.file.path().to_owned();
        let encoding = tensor.kind.encoding().ok_or_else(|| WeightError::DType {
            name: name.clone(),
            path: path(),
            dtype: tensor.kind.to_string(),
            supported: TensorType::SUPPORTED,
        })?;
        let shape: Vec<usize> = tensor.dims.iter().rev().copied().collect();
        let (planes, rows, cols) = planes(&shape, decl);
        let order = self.order(&place, if rows == 1 { cols } else { rows }).ok_or_else(|| WeightError::Format {
            path: path(),
            what: format!("tensor `{name}` of shape {shape:?} is no whole number of heads"),
        })?;
        let row_bytes = encoding.row_bytes(cols).unwrap_or(0); // checked when the file was parsed
        let stored = Stored { file: &part.file, offset: tensor.offset, encoding, planes, rows, cols, row_bytes, order };
        Ok(Box::new(FileRows::new(stored, decl, name, &shape)?))
    }
}

impl WeightSource for std::sync::Arc<Gguf> {
    fn container(&self) -> Container {
        Container::Gguf
    }

    fn version(&self) -> u64 {
        self.as_ref().version()
    }

    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
        self.as_ref().get(decl)
    }
}

fn split(part: &Part, key: &str) -> Result<Option<usize>, String> {
    match part.entries.get(key) {
        None => Ok(None),
        Some(value) => match value.as_unsigned().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n <= MOST_PARTS => Ok(Some(n)),
            _ => Err(format!("{key} is no number up to {MOST_PARTS}")),
        },
    }
}

/// `NAME-00001-of-00003.gguf` and its siblings, in order.
fn part_paths(path: &Path, count: usize) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?;
    let (stem, number) = name.strip_suffix(&format!("-of-{count:05}.gguf"))?.rsplit_once('-')?;
    number.parse::<usize>().ok().filter(|n| number.len() == 5 && (1..=count).contains(n))?;
    Some((1..=count).map(|i| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf"))).collect())
}

const MOST_PARTS: usize = 99_999; // five digits
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

#[cfg(test)]
mod tests;
