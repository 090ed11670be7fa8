//! A whole step as a list of parallel phases over one arena, built once and replayed.
//!
//! [`PlanBuilder`] takes the ops of a model over [`Val`]s; [`Plan::run`] checks a step's indices, then every worker
//! walks the same phases, claims its share of each and meets the others at a barrier. Within a phase no worker reads
//! what another writes:
//!
//! * `Rows`: a run of row-local ops on the same rows; a worker does all of them for the rows it claims.
//! * `Linear`, `Gated`: a worker writes the columns of the panels it claims, for all rows.
//! * `Attend`: a worker writes the rows and heads of the tasks it claims.
//!
//! Nothing here allocates, locks or calls the system (the team's futex aside) during [`Plan::run`].

mod build;
mod layout;
mod run;

pub use build::{LinearPart, PlanBuilder, Val, Vector};
pub use run::{Span, StepError, StepInput};

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::gemm::ActKind;
use crate::isa::Kernels;
use crate::kv::KvCache;
use crate::packed::Packed;
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

/// Where an activation lies in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// First value, in f32s from the start of the arena.
    at: usize,
    /// Distance of rows; a multiple of [`GROUP`](crate::packed::GROUP).
    stride: usize,
    /// Columns without padding.
    cols: usize,
}

/// Where a packed activation lies in the arena, in bytes.
#[derive(Clone, Copy, Debug)]
struct ActRegion {
    kind: ActKind,
    codes: usize,
    meta: usize,
    cols: usize,
}

/// A rotary table and where the step's angles lie: cosines, then sines, `[row][pair]` each.
#[derive(Debug)]
struct Rope {
    inv_freq: Vec<f32>,
    amplitude: f32,
    cos: usize,
    sin: usize,
}

#[derive(Debug)]
enum Phase {
    Rows { set: RowSet, ops: Vec<RowOp> },
    Linear { rows: RowSet, parts: Vec<Part> },
    Gated { rows: RowSet, act: ActRegion, gate: Matrix, up: Matrix, out: Region },
    Attend { q: Region, out: Region, cache: usize, heads: usize, scale: f32, window: usize },
}

#[derive(Debug)]
struct Matrix {
    weight: Arc<Packed>,
    /// Padded to whole panels.
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
struct Part {
    act: ActRegion,
    matrix: Matrix,
    /// `None`: the step's logits.
    out: Option<Region>,
}

#[derive(Debug)]
enum RowOp {
    Angles {
        rope: usize,
    },
    Embed {
        table: Arc<Packed>,
        out: Region,
    },
    Norm {
        x: Region,
        weight: Vec<f32>,
        eps: f32,
        out: Region,
    },
    AddNorm {
        x: Region,
        delta: Region,
        weight: Vec<f32>,
        eps: f32,
        sum: Region,
        out: Region,
    },
    HeadNorm {
        x: Region,
        weight: Vec<f32>,
        eps: f32,
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
    Take {
        x: Region,
        out: Region,
    },
    /// `fine`: groups may have fine codes.
    Pack {
        x: Region,
        act: ActRegion,
        fine: bool,
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
