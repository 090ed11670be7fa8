//! Which form of an idiom a device is known to take.
//!
//! Where it is not known whether neuronx-cc or the device takes a form, there are two, and the profile chooses. The first of
//! each is the default: the one that AWS's own stacks have been seen to use, or plain HLO. `njoule probe` tries them on a
//! real chip and records what it found.

use serde::{Deserialize, Serialize};

/// One choice for each idiom in doubt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// How a chunk's keys and values get into the cache, and a decode step's.
    pub cache_write: CacheWrite,
    /// How a prefill step reads the row it works on.
    pub row_read: RowRead,
    /// How rows of a table are looked up.
    pub lookup: Lookup,
    /// How the candidates are found.
    pub top_k: TopK,
    /// Where cosines and sines come from.
    pub rope: RopeAngles,
    /// Result type of a product of bf16 matrices.
    pub dot_result: DotResult,
}

/// Form of a cache write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheWrite {
    /// One scatter of whole rows.
    #[default]
    Scatter,
    /// A dynamic-update-slice per row (decode) or per chunk (prefill).
    UpdateSlice,
    /// A select over the whole cache by comparisons.
    Select,
}

/// Form of a row read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowRead {
    /// dynamic-slice by a run-time index.
    #[default]
    DynamicSlice,
    /// A gather of the row.
    Gather,
}

/// Form of a lookup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lookup {
    /// gather.
    #[default]
    Gather,
    /// A product with one-hot rows.
    OneHot,
}

/// Form of the choice of candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopK {
    /// Rounds of maximum and masking out over blocks.
    #[default]
    Rounds,
    /// The compiler's own `AwsNeuronTopK`.
    Custom,
}

/// Form of rotary angles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeAngles {
    /// cosine and sine of position times frequency, in f32.
    #[default]
    Computed,
    /// Rows of a table over all positions, a literal made on the host.
    Table,
}

/// Form of a product's result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DotResult {
    /// f32: the accumulator as it is.
    #[default]
    F32,
    /// The operands' type.
    Operand,
}
