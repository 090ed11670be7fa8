//! How a program is divided over cores that run one module in step (tensor parallel).
//!
//! Heads, feed-forward widths and the vocabulary are split; what lies between is whole on every core. A matrix whose output
//! is split is split by rows (column-parallel), one whose input is split by columns (row-parallel): its product is a partial
//! sum, which is all-reduced where it is made. All cores have the same shapes: what does not divide is padded with zeros,
//! which add nothing, since they meet zeros in the next matrix.
//!
//! Invariant: [`Sharded::program`] is a core's program, op for op and weight for weight that of [`Sharded::whole`].

mod flow;
mod split;

use std::collections::BTreeSet;
use std::sync::Arc;

use njoule_models::program::{Program, RowSet, Val, WeightId};

pub use self::split::{Run, Split};

/// A program on each of several cores.
#[derive(Clone, Debug)]
pub struct Sharded {
    /// The program with one core's shapes.
    pub program: Program,
    /// As it was traced.
    pub whole: Program,
    /// Cores.
    pub tp: usize,
    /// How the columns of each activation are divided; by [`Val`].
    pub layouts: Vec<Layout>,
    /// What a core has of each weight; by [`WeightId`].
    pub parts: Vec<Part>,
    /// Partial sums, to be all-reduced where they are made; empty on one core.
    pub reduced: BTreeSet<Val>,
}

/// The columns of an activation on a core: all of them, or its part.
pub type Layout = Option<Arc<Split>>;

/// What a core has of a weight, and how it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Members of a stack (a norm's vectors, one per head); all where absent. Of experts: always absent.
    pub members: Option<Arc<Split>>,
    /// Output rows; all where absent. Of a vector: always absent.
    pub rows: Option<Arc<Split>>,
    /// Input columns, or a vector's elements; all where absent.
    pub cols: Option<Arc<Split>>,
    /// Order of the dimensions.
    pub order: Order,
}

/// Order of a weight's dimensions in memory; of a stack, of each expert's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// `[out, in]`, as declared: row-parallel matrices, and vocabularies, whose rows are looked up.
    OutIn,
    /// `[in, out]`: the others; the product's inner dimension is the outermost of both operands.
    InOut,
    /// One dimension.
    Vector,
}

/// Why a program cannot be divided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// No cores, or more than a module's groups can name.
    #[error("tensor parallel degree {0} is not in 1..=64")]
    Degree(usize),
    /// Two uses of a weight want different parts of it.
    #[error("`{name}` is used in two ways that divide it differently over {tp} cores")]
    Weight {
        /// Its name.
        name: String,
        /// Cores.
        tp: usize,
    },
    /// An op cannot work on the part of its input that a core has.
    #[error("op {index} ({op}) cannot be divided over {tp} cores: {what}")]
    Op {
        /// Place in the program.
        index: usize,
        /// Its name.
        op: &'static str,
        /// Cores.
        tp: usize,
        /// Why.
        what: String,
    },
}

/// Divides `program` over `tp` cores.
pub fn shard(program: &Program, tp: usize) -> Result<Sharded, ShardError> {
    if !(1..=MAX_DEGREE).contains(&tp) {
        return Err(ShardError::Degree(tp));
    }
    flow::divide(program, tp)
}

impl Sharded {
    /// What a core has of `weight`.
    pub fn part(&self, weight: WeightId) -> &Part {
        &self.parts[weight.0 as usize]
    }

    /// How `val` is divided.
    pub fn layout(&self, val: Val) -> Option<&Split> {
        self.layouts[val.0 as usize].as_deref()
    }

    /// Logits that a core computes, padding included: a multiple of 32.
    pub fn local_vocab(&self) -> usize {
        self.program.vocab()
    }

    /// All-reduces of a step, by the kind of rows they are over: of tokens, of outputs.
    pub fn all_reduces(&self) -> [usize; 2] {
        let count = |rows| self.reduced.iter().filter(|v| self.program.info(**v).rows == rows).count();
        [count(RowSet::Tokens), count(RowSet::Outputs)]
    }

    /// Shape of a weight's values on a core, experts first.
    pub fn dims(&self, weight: WeightId) -> Vec<usize> {
        let decl = self.program.weight(weight);
        let of_one = match self.part(weight).order {
            Order::OutIn => vec![decl.rows, decl.cols],
            Order::InOut => vec![decl.cols, decl.rows],
            Order::Vector => vec![decl.cols],
        };
        decl.experts.into_iter().chain(of_one).collect()
    }

    /// Shape of the scales of an int8 weight: one per output row, experts first.
    pub fn scale_dims(&self, weight: WeightId) -> Vec<usize> {
        let decl = self.program.weight(weight);
        decl.experts.into_iter().chain([decl.rows]).collect()
    }
}

/// Cores of the largest instances share a model by 64 at most (trn2.48xlarge).
const MAX_DEGREE: usize = 64;

#[cfg(test)]
pub(in crate::backend::neuron) mod tests;
