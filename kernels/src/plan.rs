//! A whole step as a list of parallel phases over one arena, built once and replayed.
//!
//! [`PlanBuilder`] takes the ops of a model over [`Val`]s; [`Plan::run`] checks a step's indices, then every worker
//! walks the same phases, claims its share of each and meets the others at a barrier. Within a phase no worker reads
//! what another writes:
//!
//! * `Rows`: a run of row-local ops on the same rows; a worker does all of them for the rows it claims.
//! * `Linear`, `Gated`: a worker writes the columns of the panels it claims, for all rows.
//! * `Attend`: a worker writes the rows and heads of the tasks it claims.
//! * `Dispatch`: one worker lists the rows of each expert (see `run/experts.rs`); then `Gather` and `Repack` write the
//!   entries that a worker claims, `ExpertsIn` and `ExpertsOut` the panels of the experts.
//!
//! Nothing here allocates, locks or calls the system (the team's futex aside) during [`Plan::run`].

mod build;
mod layout;
mod lower;
mod op;
mod run;

pub use build::{AttendHow, PlanBuilder, RopeTable};
pub use op::{Embedding, Norm, NormGroup, Pairing, Product, Val, Vector};
pub use run::{Span, StepError, StepInput};

use std::sync::Arc;

use crate::acts::{Act, Glu};
use crate::buffer::Buffer;
use crate::gemm::ActKind;
use crate::isa::Kernels;
use crate::kv::KvCache;
use crate::packed::Packed;
use crate::route::Routing;
use crate::rows::{NormArgs, NormKind};
use crate::team::Counter;

/// The dynamic number of rows of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowSet {
    /// One per token of the step.
    Tokens,
    /// One per token whose logits are wanted.
    Outputs,
}

/// Most that a plan must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLimits {
    /// Rows of a step.
    pub max_rows: usize,
    /// Sequences of a step.
    pub max_seqs: usize,
    /// Output rows of a step.
    pub max_outputs: usize,
    /// Threads of the team.
    pub threads: usize,
}

/// A compiled step.
#[derive(Debug)]
pub struct Plan {
    kernels: &'static Kernels,
    limits: PlanLimits,
    phases: Vec<Phase>,
    counters: Vec<Counter>,
    ropes: Vec<Rope>,
    caches: Vec<KvCache>,
    arena: Buffer,
    scratch_at: usize,
    scratch_len: usize,
    tasks: Vec<run::Task>,
    vocab: usize,
}

/// Where an activation lies: in the arena, or in the step's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// First value, in f32s from the start.
    at: usize,
    /// Distance of rows; a multiple of [`GROUP`](crate::packed::GROUP).
    stride: usize,
    /// Columns without padding.
    cols: usize,
    /// Whether it is the logits.
    logits: bool,
}

/// Where a packed activation lies in the arena, in bytes.
#[derive(Clone, Copy, Debug)]
struct ActRegion {
    kind: ActKind,
    codes: usize,
    meta: usize,
    cols: usize,
}

/// A rotary table for one pairing, and where the step's angles lie: cosines, then sines, `width` per row each.
#[derive(Debug)]
struct Rope {
    table: RopeTable,
    pairing: Pairing,
    width: usize,
    cos: usize,
    sin: usize,
}

#[derive(Debug)]
enum Phase {
    Rows { set: RowSet, ops: Vec<RowOp> },
    Linear { rows: RowSet, parts: Vec<Part> },
    Gated { rows: RowSet, gate: Matrix, up: Matrix, glu: Glu, out: Region },
    Attend { q: Region, out: Region, cache: usize, heads: usize, how: Attention },
    Dispatch { rows: RowSet, shares: Region, table: Table },
    Gather { x: Region, acts: Vec<ActRegion>, fine: bool, table: Table },
    ExpertsIn { gate: Matrix, up: Matrix, glu: Glu, out: Region, table: Table },
    Repack { x: Region, act: ActRegion, table: Table },
    ExpertsOut { down: Matrix, out: Region, table: Table },
}

/// How scores become weights.
#[derive(Debug)]
struct Attention {
    scale: f32,
    window: usize,
    softcap: Option<f32>,
    sinks: Option<Vec<f32>>,
    alibi: Option<Vec<f32>>,
}

/// A matrix, or a stack of them, and the packed form of what it is multiplied with.
#[derive(Debug)]
struct Matrix {
    weight: Arc<Packed>,
    /// Padded to whole panels.
    bias: Option<Vec<f32>>,
    act: ActRegion,
}

#[derive(Debug)]
struct Part {
    matrix: Matrix,
    out: Region,
}

/// Which rows each expert works on in this step: where the lists lie in the arena and how much they can hold.
///
/// An *entry* is one row of one expert; entries of an expert are consecutive and in the order of their rows.
#[derive(Clone, Copy, Debug)]
struct Table {
    /// First word.
    at: usize,
    /// Experts.
    experts: usize,
    /// Experts that a row may have.
    kept: usize,
    /// Rows at most.
    max_rows: usize,
}

/// A norm's weights, one per column and padded.
#[derive(Debug)]
struct NormWeights {
    kind: NormKind,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl NormWeights {
    fn args(&self) -> NormArgs {
        let bias = self.bias.as_ref().map_or(std::ptr::null(), |b| b.as_ptr());
        NormArgs { kind: self.kind, weight: self.weight.as_ptr(), bias, eps: self.eps }
    }
}

#[derive(Debug)]
enum RowOp {
    Angles {
        rope: usize,
    },
    Embed {
        table: Arc<Packed>,
        index: Embedding,
        out: Region,
    },
    Norm {
        x: Region,
        norm: NormWeights,
        out: Region,
    },
    AddNorm {
        x: Region,
        delta: Region,
        norm: NormWeights,
        sum: Region,
        out: Region,
    },
    HeadNorm {
        x: Region,
        norm: NormWeights,
        head: usize,
        out: Region,
    },
    Act {
        x: Region,
        act: Act,
        out: Region,
    },
    Rope {
        x: Region,
        rope: usize,
        head: usize,
        out: Region,
    },
    CacheWrite {
        k: Region,
        v: Region,
        cache: usize,
    },
    Add {
        x: Region,
        y: Region,
        out: Region,
    },
    Mul {
        x: Region,
        y: Region,
        out: Region,
    },
    Scale {
        x: Region,
        factor: f32,
        out: Region,
    },
    Softcap {
        x: Region,
        cap: f32,
        out: Region,
    },
    Clamp {
        x: Region,
        bound: f32,
        out: Region,
    },
    Join {
        x: Region,
        y: Region,
        lengths: [usize; 2],
        out: Region,
    },
    Route {
        x: Region,
        routing: Routing,
        out: Region,
    },
    Take {
        x: Region,
        out: Region,
    },
    /// Zeros the padding.
    Clear {
        x: Region,
    },
    /// `fine`: groups may have fine codes.
    Pack {
        x: Region,
        act: ActRegion,
        fine: bool,
    },
    /// Sums a row's experts.
    Combine {
        entries: Region,
        shares: Region,
        table: Table,
        out: Region,
    },
}

impl Plan {
    /// Bytes of activations and scratch.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len()
    }

    /// Bytes of all caches, if every block were in use.
    pub fn cache_bytes(&self) -> usize {
        self.caches.iter().map(|c| c.shape.bytes()).sum()
    }

    /// Columns of the logits, padding included.
    pub fn logits_stride(&self) -> usize {
        self.vocab.next_multiple_of(crate::packed::GROUP)
    }

    /// Barriers of a step.
    pub fn phases(&self) -> usize {
        self.phases.len()
    }
}

#[cfg(test)]
mod tests;
