//! Weights as views: where a weight's bytes come from, whatever file holds them.
//!
//! A [`WeightSource`] resolves a [`WeightDecl`] to a [`WeightView`]: rows of a tensor in the encoding the file has, read
//! in chunks so that no tensor is ever held whole in memory beside the file's own pages. Dialects (GGUF names, permuted
//! rows) are tables inside the sources; a view already speaks the reference implementation's order.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::program::WeightDecl;

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
}

/// How a view's bytes encode its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// One element after the other.
    Dense(DType),
    /// Blocks of 32 or 256 values along a row.
    GgufBlock(GgmlType),
}

/// A matrix of a checkpoint, seen in the reference implementation's row order.
pub trait WeightRows: Send + Sync {
    /// How the file encodes it.
    fn encoding(&self) -> Encoding;

    /// `(rows, cols)`.
    fn shape(&self) -> (usize, usize);

    /// Decodes `rows` into `out`, row-major, `rows.len() * cols` values.
    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]);

    /// The bytes of one row as the file has them; `None` where the values are generated.
    fn raw_row(&self, row: usize) -> Option<&[u8]>;

    /// Says that the file's pages under `rows` are not needed again soon, so that they do not count as resident.
    fn release(&self, rows: Range<usize>);
}

/// Where weights come from.
pub trait WeightSource: Send + Sync {
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
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::Dense(d) => write!(f, "{d:?}"),
            Encoding::GgufBlock(t) => write!(f, "{t:?}"),
        }
    }
}
