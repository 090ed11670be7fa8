//! The ops of a plan under construction, and which values each reads and writes.

use std::sync::Arc;

use crate::acts::{Act, Glu};
use crate::packed::Packed;
use crate::route::Routing;
use crate::rows::NormKind;

/// An activation of a plan under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Val(pub(super) usize);

/// A norm weight, a bias or the like.
pub type Vector = Arc<[f32]>;

/// One matrix of a product, or a stack of one per expert.
#[derive(Clone, Debug)]
pub struct Product {
    /// `[out, in]`.
    pub weight: Arc<Packed>,
    /// Added to every row; of a stack, one after the other.
    pub bias: Option<Vector>,
}

/// What an embedding is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Embedding {
    /// The row's token.
    Token,
    /// The row's position plus this.
    Position(usize),
}

/// A norm: `norm(x) * weight + bias`.
#[derive(Clone, Debug)]
pub struct Norm {
    /// What is divided by what.
    pub kind: NormKind,
    /// Of the group's length, or of the row's; ones where absent.
    pub weight: Option<Vector>,
    /// As long as `weight`.
    pub bias: Option<Vector>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Which values a norm runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormGroup {
    /// The whole row.
    Row,
    /// Each run of this many columns on its own.
    Head(usize),
}

/// How rotary dimensions pair up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `x[i]` with `x[i + width/2]`.
    Half,
    /// `x[2i]` with `x[2i + 1]`.
    Neighbours,
}

#[derive(Debug)]
pub(super) enum Op {
    Embed { table: Arc<Packed>, index: Embedding, out: Val },
    Norm { x: Val, norm: Norm, group: NormGroup, out: Val },
    AddNorm { x: Val, delta: Val, norm: Norm, sum: Val, out: Val },
    Act { x: Val, act: Act, out: Val },
    Rope { x: Val, rope: usize, head: usize, out: Val },
    CacheWrite { k: Val, v: Val, cache: usize },
    Attend { q: Val, cache: usize, heads: usize, how: usize, out: Val },
    Add { x: Val, y: Val, out: Val },
    Mul { x: Val, y: Val, out: Val },
    Scale { x: Val, factor: f32, out: Val },
    Softcap { x: Val, cap: f32, out: Val },
    Clamp { x: Val, bound: f32, out: Val },
    Join { x: Val, y: Val, lengths: [usize; 2], out: Val },
    Route { x: Val, routing: Routing, out: Val },
    Take { x: Val, out: Val },
    Linear { x: Val, parts: Vec<(Product, Val)> },
    Gated { x: Val, gate: Product, up: Product, glu: Glu, out: Val },
    // A mixture of experts is several ops, each a phase; `moe` is its number.
    Clear { x: Val },
    Dispatch { shares: Val, moe: usize },
    Gather { x: Val, moe: usize },
    ExpertsIn { moe: usize },
    Repack { moe: usize },
    ExpertsOut { moe: usize },
    Combine { shares: Val, moe: usize, out: Val },
    // Added when the plan is finished.
    Pack { x: Val, act: usize, fine: bool },
}

impl Op {
    pub fn reads(&self) -> Vec<Val> {
        match self {
            Op::Embed { .. } => vec![],
            Op::Norm { x, .. }
            | Op::Act { x, .. }
            | Op::Rope { x, .. }
            | Op::Scale { x, .. }
            | Op::Softcap { x, .. }
            | Op::Clamp { x, .. }
            | Op::Route { x, .. }
            | Op::Take { x, .. }
            | Op::Clear { x }
            | Op::Gather { x, .. }
            | Op::Pack { x, .. } => vec![*x],
            Op::Dispatch { shares, .. } | Op::Combine { shares, .. } => vec![*shares],
            // The products read the packed form of `x`, not `x`.
            Op::Linear { .. } | Op::Gated { .. } => vec![],
            Op::ExpertsIn { .. } | Op::Repack { .. } | Op::ExpertsOut { .. } => vec![],
            Op::AddNorm { x, delta, .. } => vec![*x, *delta],
            Op::CacheWrite { k, v, .. } => vec![*k, *v],
            Op::Attend { q, .. } => vec![*q],
            Op::Add { x, y, .. } | Op::Mul { x, y, .. } | Op::Join { x, y, .. } => vec![*x, *y],
        }
    }

    pub fn writes(&self) -> Vec<Val> {
        match self {
            Op::CacheWrite { .. } | Op::Pack { .. } | Op::Clear { .. } => vec![],
            Op::Dispatch { .. }
            | Op::Gather { .. }
            | Op::ExpertsIn { .. }
            | Op::Repack { .. }
            | Op::ExpertsOut { .. } => vec![],
            Op::Embed { out, .. }
            | Op::Norm { out, .. }
            | Op::Act { out, .. }
            | Op::Rope { out, .. }
            | Op::Attend { out, .. }
            | Op::Add { out, .. }
            | Op::Mul { out, .. }
            | Op::Scale { out, .. }
            | Op::Softcap { out, .. }
            | Op::Clamp { out, .. }
            | Op::Join { out, .. }
            | Op::Route { out, .. }
            | Op::Take { out, .. }
            | Op::Combine { out, .. }
            | Op::Gated { out, .. } => vec![*out],
            Op::AddNorm { sum, out, .. } => vec![*sum, *out],
            Op::Linear { parts, .. } => parts.iter().map(|(_, out)| *out).collect(),
        }
    }

    /// `(input, result)` that may share memory: the op reads each element before it writes it.
    pub fn in_place(&self) -> Option<(Val, Val)> {
        match self {
            Op::Norm { x, group: NormGroup::Head(_), out, .. }
            | Op::Act { x, out, .. }
            | Op::Rope { x, out, .. }
            | Op::Add { x, out, .. }
            | Op::Mul { x, out, .. }
            | Op::Scale { x, out, .. }
            | Op::Softcap { x, out, .. }
            | Op::Clamp { x, out, .. } => Some((*x, *out)),
            Op::AddNorm { x, sum, .. } => Some((*x, *sum)),
            _ => None,
        }
    }

    /// Whether its rows are computed one by one, each from the same row of its inputs.
    pub fn is_row_local(&self) -> bool {
        !matches!(
            self,
            Op::Linear { .. }
                | Op::Gated { .. }
                | Op::Attend { .. }
                | Op::Dispatch { .. }
                | Op::Gather { .. }
                | Op::ExpertsIn { .. }
                | Op::Repack { .. }
                | Op::ExpertsOut { .. }
        )
    }

    /// The mixture of experts that it is a part of.
    pub fn moe(&self) -> Option<usize> {
        match self {
            Op::Dispatch { moe, .. }
            | Op::Gather { moe, .. }
            | Op::ExpertsIn { moe }
            | Op::Repack { moe }
            | Op::ExpertsOut { moe }
            | Op::Combine { moe, .. } => Some(*moe),
            _ => None,
        }
    }

    /// Whether what it makes may have the residual stream's outlier channels: the stream itself, or a norm of it.
    ///
    /// A product of such values takes them with fine codes (see [`gemm`](crate::gemm)). Without, SmolLM2's perplexity
    /// rises by half a percent; anywhere else they change nothing.
    pub fn may_have_outliers(&self) -> bool {
        match self {
            Op::Norm { group, .. } => *group == NormGroup::Row,
            Op::AddNorm { .. } | Op::Embed { .. } | Op::Add { .. } | Op::Scale { .. } => true,
            _ => false,
        }
    }
}
