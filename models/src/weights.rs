//! Weights as views: where a weight's bytes come from, whatever file holds them.
//!
//! A [`WeightSource`] resolves a [`WeightDecl`] to a [`WeightView`]: rows of a tensor in the encoding the file has, read
//! in chunks so that no tensor is ever held whole in memory beside the file's own pages. Dialects (GGUF names, permuted
//! rows) are tables inside the sources; a view already speaks the reference implementation's order.

pub mod dequant;
pub mod gguf;
mod mapped;
pub mod parts;
pub mod random;
mod rows;
pub mod safetensors;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

pub use self::mapped::MappedFile;
use self::parts::Parts;
use crate::config::Quantization;
use crate::program::WeightDecl;

/// Element types of safetensors files that can be read, beside those of quantised matrices.
pub const SAFETENSORS_TYPES: &str = "F32, F16, BF16";

/// A plain element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
}

/// A GGUF block type (`ggml_type` in ggml.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // the format's own names
#[allow(missing_docs)]
pub enum GgmlType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// How a view's bytes encode its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// One element after the other.
    Dense(DType),
    /// Blocks of 32 or 256 values along a row.
    GgufBlock(GgmlType),
    /// Codes and scales in tensors of their own.
    Parts(Parts),
}

/// How well blocks of 32 values hold a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Bit for bit.
    Exactly,
    /// Codes as they are; scales, or the minima made from zero points, rounded to f16.
    Rounded,
    /// Not, for this reason.
    Not(&'static str),
}

/// A matrix of a checkpoint, seen in the reference implementation's row order.
pub trait WeightRows: Send + Sync {
    /// How the file encodes it.
    fn encoding(&self) -> Encoding;

    /// `(rows, cols)`.
    fn shape(&self) -> (usize, usize);

    /// Decodes `rows` into `out`, row-major, `rows.len() * cols` values.
    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]);

    /// The bytes of one row as the file has them; `None` where the values are generated or reordered within a row.
    fn raw_row(&self, row: usize) -> Option<&[u8]>;

    /// How blocks of `kind` (`Q8_0`, `Q4_0` or `Q4_1`) hold it.
    fn holds(&self, _kind: GgmlType) -> Holds {
        Holds::Not("its values are no codes")
    }

    /// Appends `rows` as blocks of `kind`, where they hold it.
    fn read_blocks(&self, _rows: Range<usize>, _kind: GgmlType, _out: &mut Vec<u8>) {}

    /// Says that the file's pages under `rows` are not needed again soon, so that they do not count as resident.
    fn release(&self, rows: Range<usize>);
}

/// The kind of file that weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// Hugging Face safetensors.
    Safetensors,
    /// GGUF.
    Gguf,
    /// None: values are generated.
    Generated,
}

/// Where weights come from.
pub trait WeightSource: Send + Sync {
    /// The kind of file.
    fn container(&self) -> Container;

    /// How its matrices are quantised, where the config says so.
    fn quantization(&self) -> Option<&Quantization> {
        None
    }

    /// A number that is another one where the weights come of other files, or of files that were written to since
    /// ([`MappedFile::version`]).
    fn version(&self) -> u64 {
        0
    }

    /// The view that `decl` asks for.
    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError>;
}

/// Why a weight cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The file could not be opened or mapped.
    #[error("cannot read {path}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The file's header or index breaks the format.
    #[error("{path}: {what}")]
    Format {
        /// File.
        path: PathBuf,
        /// What is wrong, with the offset where there is one.
        what: String,
    },
    /// A tensor the model needs is absent.
    #[error("tensor `{name}` is missing from {path}")]
    Missing {
        /// Tensor, as the file's dialect calls it.
        name: String,
        /// File or directory searched.
        path: PathBuf,
    },
    /// A tensor has another shape than the config implies.
    #[error("tensor `{name}` in {path} has shape {found:?}, the config implies {expected:?}")]
    Shape {
        /// Tensor.
        name: String,
        /// File.
        path: PathBuf,
        /// In the file.
        found: Vec<usize>,
        /// By the config.
        expected: Vec<usize>,
    },
    /// A tensor lies beyond the end of its file.
    #[error("{path} is truncated: tensor `{name}` at offset {offset} ends at {end}, the file has {actual} bytes")]
    Truncated {
        /// File.
        path: PathBuf,
        /// First tensor that is not whole.
        name: String,
        /// Where its data starts.
        offset: u64,
        /// Where its data ends.
        end: u64,
        /// Size of the file.
        actual: u64,
    },
    /// A tensor's element type is not supported.
    #[error("tensor `{name}` in {path} has type {dtype}, supported are {supported}")]
    DType {
        /// Tensor.
        name: String,
        /// File.
        path: PathBuf,
        /// In the file.
        dtype: String,
        /// What can be read.
        supported: &'static str,
    },
    /// A part of a quantised matrix makes no sense.
    #[error("tensor `{name}` in {path} {what}")]
    Part {
        /// Tensor.
        name: String,
        /// File.
        path: PathBuf,
        /// What is wrong with it, and what is expected.
        what: String,
    },
}

impl GgmlType {
    /// Values of a block.
    pub fn block_len(self) -> usize {
        use GgmlType::*;
        match self {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL | MXFP4 => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        use GgmlType::*;
        match self {
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
            IQ4_NL => 18,
            IQ4_XS => 136,
            MXFP4 => 17,
        }
    }
}

impl Encoding {
    /// Whether neighbouring values of a row share bytes.
    pub fn is_blocks(self) -> bool {
        matches!(self, Encoding::GgufBlock(_) | Encoding::Parts(_))
    }

    /// Bytes of a row of `cols` values; `None` where a row is no whole number of blocks or in no one place, or on overflow.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Encoding::Dense(DType::F32) => cols.checked_mul(4),
            Encoding::Dense(DType::F16 | DType::BF16) => cols.checked_mul(2),
            Encoding::GgufBlock(t) if cols.is_multiple_of(t.block_len()) => {
                (cols / t.block_len()).checked_mul(t.block_bytes())
            }
            Encoding::GgufBlock(_) | Encoding::Parts(_) => None,
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::Dense(d) => write!(f, "{d:?}"),
            Encoding::GgufBlock(t) => write!(f, "{t:?}"),
            Encoding::Parts(p) => p.fmt(f),
        }
    }
}

/// What a checkpoint's tensors are stored as: bytes per encoding, largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredTypes(Vec<(Encoding, u64)>);

impl StoredTypes {
    /// Counts `bytes` of `encoding`.
    pub fn add(&mut self, encoding: Encoding, bytes: u64) {
        match self.0.iter_mut().find(|(e, _)| *e == encoding) {
            Some((_, n)) => *n = n.saturating_add(bytes),
            None => self.0.push((encoding, bytes)),
        }
        self.0.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    }

    /// The encodings and their bytes, largest first.
    pub fn iter(&self) -> impl Iterator<Item = (Encoding, u64)> + '_ {
        self.0.iter().copied()
    }

    /// The encoding of most bytes.
    pub fn main(&self) -> Option<Encoding> {
        self.0.first().map(|(e, _)| *e)
    }
}

impl fmt::Display for StoredTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.iter().map(|(_, n)| *n as f64).sum::<f64>().max(1.0);
        for (i, (encoding, bytes)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            match self.0.len() {
                1 => write!(f, "{encoding}")?,
                _ => write!(f, "{separator}{encoding} {:.1} %", 100.0 * *bytes as f64 / total)?,
            }
        }
        Ok(())
    }
}
