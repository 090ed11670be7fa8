//! What a module is for, what it takes and what it returns: the contract of lowering, build and executor.
//!
//! A module serves one kind of step and one bucket, a chunk of one class of cache rows or decodes of several classes.
//! Weights and caches are parameters, so one NEFF serves every checkpoint of the same shapes. Every rank runs the same
//! module; what differs is bound to it.
//!
//! Invariant: parameters and results are numbered in the order of [`Port`]s, the NEFF calls them `input{i}` and
//! `output{j}`; a cache's result is aliased to its parameter. A decode step's rows are numbered through its classes.

use njoule_hlo::{DType, Target};
use njoule_models::program::{CacheId, WeightId};
use serde::{Deserialize, Serialize};

use super::Profile;
use crate::backend::{KvType, Quant};

/// What all modules of a model have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Compiler target, whose rules the modules keep.
    pub target: Target,
    /// Cores that share the model (tensor parallel degree).
    pub tp: usize,
    /// Stored type of matrices: [`Quant::None`] (f32), [`Quant::Bf16`] or [`Quant::Int8`] (a scale per output row).
    pub weights: Quant,
    /// Stored type of the caches: f32, bf16, or int8 with a scale per token and head.
    pub kv: KvType,
    /// Candidates a step returns per row.
    pub candidates: usize,
    /// Which forms of idioms are emitted.
    pub profile: Profile,
    /// Whether steps return what their routers chose too: for tests.
    pub shares: bool,
    /// Whether steps return what passes from layer to layer too: for tests.
    pub streams: bool,
}

/// The caches of one class of rows: `[rows, positions, kv_heads, dim]` each, of a layer's keys and values.
///
/// `positions` is the longest sequence plus room for a chunk's padding: a prefill chunk writes all of its rows, and an idle
/// decode row writes its last position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CacheShape {
    /// Sequences.
    pub rows: usize,
    /// Positions of each.
    pub positions: usize,
}

/// Kind and size of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleKind {
    /// One token of each of its classes' first rows.
    Decode {
        /// Rows of all classes.
        batch: usize,
    },
    /// `tokens` consecutive tokens of one row; candidates of one of them.
    Prefill {
        /// Tokens.
        tokens: usize,
    },
    /// The same, with the logits of all of them.
    Score {
        /// Tokens.
        tokens: usize,
    },
}

impl ModuleKind {
    /// Tokens that a step computes.
    pub fn tokens(self) -> usize {
        match self {
            ModuleKind::Decode { batch } => batch,
            ModuleKind::Prefill { tokens } | ModuleKind::Score { tokens } => tokens,
        }
    }

    /// Rows whose logits it computes.
    pub fn outputs(self) -> usize {
        match self {
            ModuleKind::Decode { batch } => batch,
            ModuleKind::Prefill { .. } => 1,
            ModuleKind::Score { tokens } => tokens,
        }
    }
}

/// What a module works on of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// Whose caches.
    pub class: CacheShape,
    /// Rows of a step: the class's first of a decode, any one of a chunk.
    pub rows: usize,
    /// Cache positions that it reads of each: sequences of up to that many tokens before this step.
    pub len: usize,
}

/// One module.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModuleSpec {
    /// The classes that it works on, shortest first: a chunk's one, or those that it decodes together.
    pub parts: Vec<Part>,
    /// What it computes.
    pub kind: ModuleKind,
    /// Sparse biases it takes per output row; none if 0.
    pub biases: usize,
    /// Whether it takes a mask of allowed tokens per output row.
    pub mask: bool,
}

impl ModuleSpec {
    /// Of one class, without biases and mask.
    pub fn of(class: CacheShape, kind: ModuleKind, len: usize) -> ModuleSpec {
        let rows = if let ModuleKind::Decode { batch } = kind { batch } else { 1 };
        ModuleSpec { parts: vec![Part { class, rows, len }], kind, biases: 0, mask: false }
    }

    /// A decode step over several classes, without biases and mask.
    pub fn decode(parts: Vec<Part>) -> ModuleSpec {
        let batch = parts.iter().map(|part| part.rows).sum();
        ModuleSpec { parts, kind: ModuleKind::Decode { batch }, biases: 0, mask: false }
    }

    /// What it does of a class, if anything.
    pub fn part(&self, class: CacheShape) -> Option<&Part> {
        self.parts.iter().find(|part| part.class == class)
    }

    /// The longest read of a row.
    pub fn longest(&self) -> usize {
        self.parts.iter().map(|part| part.len).max().unwrap_or(0)
    }

    /// Cache positions that it reads.
    pub fn positions(&self) -> usize {
        self.parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.rows.saturating_mul(part.len)))
    }

    /// What is wrong with the list of its parts, with the field.
    pub fn check_parts(&self) -> Result<(), String> {
        let field = |i: usize, what: String| Err(format!("field `parts[{i}]`: {what}"));
        let tokens = self.kind.tokens();
        let decode = matches!(self.kind, ModuleKind::Decode { .. });
        for (i, Part { class: CacheShape { rows: all, positions }, rows, len }) in self.parts.iter().enumerate() {
            if !(1..=*all).contains(rows) || len > positions {
                let what = format!("{rows} rows of {len} positions are no part of {all} rows of {positions}");
                return field(i, what);
            }
            if !decode && !(1..=*positions).contains(&tokens) {
                return field(i, format!("a step of {tokens} tokens does not fit rows of {positions} positions"));
            }
            if i > 0 && self.parts[i - 1].class.positions >= *positions {
                return field(i, "its class is no longer than that of the part before it".to_owned());
            }
        }
        let rows = self.parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.rows));
        match (decode, self.parts.len()) {
            (_, 0) => Err("field `parts` is an empty list".to_owned()),
            (true, _) if rows != tokens => Err(format!("field `kind` has {tokens} rows, the `parts` have {rows}")),
            (false, n) if n > 1 || rows > 1 => Err(format!("field `parts`: a chunk is of one row, not of {rows}")),
            _ => Ok(()),
        }
    }
}

/// Which part of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CachePart {
    /// Keys, `[rows, positions, kv_heads, k_dim]`.
    Keys,
    /// Values, `[rows, positions, kv_heads, v_dim]`.
    Values,
    /// Of int8 keys: f32 `[rows, positions, kv_heads]`.
    KeyScales,
    /// Of int8 values.
    ValueScales,
}

/// Which part of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightPart {
    /// Its values, in the layout that lowering chose.
    Values,
    /// Of int8: f32, one per output row.
    Scales,
}

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// s32 `[tokens]`: token ids, always in range.
    Tokens,
    /// Decode: s32 `[batch]`, the position of each row's token, always in range.
    Positions,
    /// Decode: s32 `[batch]`, where in its row a token's key goes: its position, or the last one in an idle row.
    Slots,
    /// Prefill and score: s32 scalar, the position of the first token.
    Start,
    /// Prefill and score: s32 scalar, the row.
    Row,
    /// Prefill: s32 scalar, which token's candidates are wanted.
    Last,
    /// s32 `[batch]` (decode) or scalar: [`SeqSpan::rope_len`](crate::backend::SeqSpan::rope_len); only where a rotary table
    /// asks for it.
    RopeLen,
    /// s32 scalar: which of the `tp` cores this is; only if there are several.
    Rank,
    /// s32 `[outputs, biases]`: tokens with a bias; those of unused entries are -1.
    BiasIds,
    /// f32 `[outputs, biases]`: what is added to their logits.
    BiasValues,
    /// u32 `[outputs, words]`: bit `i % 32` of word `i / 32` says whether this core's token `i` is allowed.
    Mask,
    /// A cache of a class.
    Cache(CacheShape, CacheId, CachePart),
    /// A weight.
    Weight(WeightId, WeightPart),
}

/// What a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// f32 `[outputs, candidates]`: the largest logits, descending.
    CandidateValues,
    /// s32 `[outputs, candidates]`: whose they are.
    CandidateIds,
    /// f32 `[outputs]`: over all logits, before biases and masks.
    LogSumExp,
    /// s32 `[outputs]`: the likeliest token, biases and masks included; the lowest of equals.
    Greedy,
    /// Score: f32 `[tokens, vocab]`.
    Logits,
    /// f32 `[tokens, experts]`: the shares that the program's router of this number gave; of [`ModelSpec::shares`] alone.
    Shares(usize),
    /// f32 `[tokens, columns]`: the stream of this number among the program's; of [`ModelSpec::streams`] alone.
    Stream(usize),
    /// A cache of a class, aliased to its parameter.
    Cache(CacheShape, CacheId, CachePart),
}

/// One parameter or result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port<T> {
    /// What it is.
    pub role: T,
    /// Element type.
    pub dtype: DType,
    /// Dimensions on one core.
    pub dims: Vec<usize>,
}

impl<T> Port<T> {
    /// Its size on one core.
    pub fn bytes(&self) -> usize {
        self.dims.iter().product::<usize>() * self.dtype.size()
    }
}
