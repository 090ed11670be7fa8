//! The program of a model: all that a backend knows about it.
//!
//! Every activation is a matrix `[rows, cols]` of which `rows` is the only dynamic axis: the tokens of a step
//! ([`RowSet::Tokens`]) or those of its rows that need logits ([`RowSet::Outputs`]). Ops are in execution order and in
//! single-assignment form: each [`Val`] is written by exactly one op. Quantisation is not an op: it is how a backend
//! stores a weight. [`std::fmt::Display`] is canonical, and [`Program::fingerprint`] is a hash of it.

mod op;
mod text;
mod weight;

use std::ops::Range;

pub use op::*;
pub use weight::*;

use crate::rope::RopeTable;

/// An activation: index into [`Program::vals`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Val(pub u32);

/// A weight: index into [`Program::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// A table of rotary frequencies: index into [`Program::ropes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RopeId(pub u32);

/// One layer's key/value cache: index into [`Program::caches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId(pub u32);

/// The dynamic number of rows of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowSet {
    /// One row per token of the step.
    Tokens,
    /// One row per token of the step whose logits are wanted.
    Outputs,
}

/// Shape of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValInfo {
    /// Number of columns.
    pub cols: usize,
    /// Which dynamic number of rows.
    pub rows: RowSet,
}

/// Shape of one layer's cache: per token, `kv_heads * k_dim` key values and `kv_heads * v_dim` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Length of a key.
    pub k_dim: usize,
    /// Length of a value.
    pub v_dim: usize,
}

/// A model as data.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name of the architecture it was traced from.
    pub name: String,
    /// In execution order.
    pub ops: Vec<Op>,
    /// Shapes of the activations.
    pub vals: Vec<ValInfo>,
    /// Weights, each named once.
    pub weights: Vec<WeightDecl>,
    /// Rotary tables.
    pub ropes: Vec<RopeTable>,
    /// Caches, one for each [`Op::Attend`].
    pub caches: Vec<CacheInfo>,
    /// Op ranges of the layers.
    pub layers: Vec<Range<usize>>,
    /// Logits, `[outputs, vocab]`.
    pub logits: Val,
}

impl Program {
    /// Shape of `val`.
    pub fn info(&self, val: Val) -> ValInfo {
        self.vals[val.0 as usize]
    }

    /// Declaration of `weight`.
    pub fn weight(&self, weight: WeightId) -> &WeightDecl {
        &self.weights[weight.0 as usize]
    }

    /// Number of token ids.
    pub fn vocab(&self) -> usize {
        self.info(self.logits).cols
    }

    /// What passes from layer to layer: activations of all tokens that are written before a layer begins and read in it or
    /// after it. In order, without those of the first layer.
    pub fn streams(&self) -> Vec<Val> {
        let crosses = |(at, val): (usize, Val)| {
            let last = self.ops.iter().rposition(|op| op.inputs().contains(&val));
            let starts = self.layers.iter().skip(1).map(|layer| layer.start);
            last.is_some_and(|last| starts.into_iter().any(|start| (at + 1..=last).contains(&start)))
        };
        let written =
            self.ops.iter().enumerate().flat_map(|(at, op)| op.outputs().into_iter().map(move |val| (at, val)));
        let of_tokens = written.filter(|(_, val)| self.info(*val).rows == RowSet::Tokens);
        of_tokens.filter(|written| crosses(*written)).map(|(_, val)| val).collect()
    }

    /// FNV-1a hash of the canonical text: equal programs have equal fingerprints on every machine.
    pub fn fingerprint(&self) -> u64 {
        self.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }
}

#[cfg(test)]
mod tests;
