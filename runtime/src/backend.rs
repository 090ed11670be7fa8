//! What the engine and a backend say to each other.
//!
//! A [`Backend`] compiles a [`Program`] into an [`Executor`], which is owned by one thread and runs [`Batch`]es. The
//! engine fills one reused `Batch` per step and reads one reused [`StepOutput`]; it never sees a backend's memory.

#[cfg(feature = "candle")]
pub mod candle;
mod check;
pub mod cpu;
pub mod neuron;
mod step;

use std::num::NonZero;

use njoule_models::cost::{Rates, Span};
use njoule_models::program::Program;
use njoule_models::weights::{WeightError, WeightSource};
use serde::{Deserialize, Serialize};

pub use step::{Batch, Bias, CandidateRow, Candidates, Masks, Returned, SeqSpan, StepError, StepOutput, Wants};

/// Index of a cache block; the same in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Tokens of a cache block wherever caches are paged, and so the length by which prefixes are found again.
pub const PREFIX_LEN: usize = 32;

/// The experts that routers chose, by a sequence's first block and position, router by router (of the last one where it is
/// known): for tests that compare backends, since a near-tie may be decided either way.
pub type Routes = std::collections::BTreeMap<(BlockId, u32), Vec<usize>>;

/// What passes from layer to layer, by a sequence's first block and position: a row of each of [`Program::streams`], for
/// tests that compare backends layer by layer.
pub type Streams = std::collections::BTreeMap<(BlockId, u32), Vec<Vec<f32>>>;

/// How a backend stores weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quant {
    /// The file's values unchanged, computed and cached in f32.
    None,
    /// bfloat16.
    Bf16,
    /// 8 bits: the file's codes kept where they fit, else quantised in groups of 32.
    Int8,
    /// 4 bits in groups of 32 with scale and minimum; embedding and head in 8 bits.
    Int4,
    /// A GGUF's own types; codes of quantised safetensors as they are, or dequantised to twice their bits; int8 for f16
    /// and bf16 files, f32 for f32 files.
    Auto,
}

/// Element type of the key/value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// f32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// 8 bits with one scale per token and head.
    Int8,
}

impl KvType {
    /// Bytes of `n` cached values of one token and head.
    pub fn bytes(self, n: usize) -> usize {
        match self {
            KvType::F32 => 4 * n,
            KvType::Bf16 | KvType::F16 => 2 * n,
            KvType::Int8 => n + 4,
        }
    }
}

/// How much an executor must be able to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Cache blocks.
    pub blocks: usize,
    /// Tokens per block.
    pub block_len: usize,
    /// Rows of a step at most.
    pub max_rows: usize,
    /// Sequences of a step at most.
    pub max_seqs: usize,
    /// Rows of a step whose logits are wanted, at most.
    pub max_outputs: usize,
    /// Longest sequence.
    pub max_len: usize,
}

/// What a backend can do with a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens per cache block that it wants; without [paging](Self::paged) the longest class's `max_len`.
    pub block_len: usize,
    /// Whether a batch may hold prefill chunks beside decodes. Where it may not, a chunk of one row counts as either.
    pub mixed_batches: bool,
    /// Whether a step for [`Wants::Logits`] works: without it prompts cannot be scored.
    pub logits: bool,
    /// Candidates per output that a step for [`Wants::Tokens`] returns; logits if `None`.
    pub candidates: Option<usize>,
    /// Biases that an output may have; only asked of a backend that returns candidates.
    pub biases: usize,
    /// Whether outputs may have masks; only asked of a backend that returns candidates.
    pub masks: bool,
    /// Whether any block may hold any part of a sequence (else one contiguous row per sequence, see [`RowClass`]).
    pub paged: bool,
    /// Without paging: the rows, in order of their length; [`BlockId`] numbers them through all classes.
    pub classes: Vec<RowClass>,
    /// Rows of one sequence in a step at most, beside what the configuration says.
    pub chunk: Option<usize>,
    /// Sequences of at most this many tokens ([`SeqSpan::rope_len`]) have other keys than longer ones, so that cached
    /// prefixes are shared on one side of it only.
    pub rope_border: Option<usize>,
    /// Whether a sequence may have several outputs in a step for [`Wants::Tokens`], its last rows, so that tokens that were
    /// guessed can be checked at once. Their logits must be those of one row at a time, bit for bit, else a guess could
    /// change an answer. See [`Limits::can_draft`].
    pub drafts: bool,
    /// Whether [`Executor::submit`] returns before the step is done, so that the engine should work meanwhile.
    pub overlaps: bool,
}

impl Limits {
    /// A backend that pages its cache in blocks of `block_len` tokens, mixes what it is given, returns logits and computes
    /// in [`Executor::submit`].
    pub fn paged(block_len: usize) -> Limits {
        Limits {
            block_len,
            mixed_batches: true,
            logits: true,
            candidates: None,
            biases: 0,
            masks: false,
            paged: true,
            classes: Vec::new(),
            chunk: None,
            rope_border: None,
            drafts: true,
            overlaps: false,
        }
    }

    /// Whether guessed tokens can be run: besides [`Limits::drafts`], decodes may have several rows, a step returns logits,
    /// and it has returned them before the next is planned.
    pub fn can_draft(&self) -> bool {
        self.drafts && self.mixed_batches && self.candidates.is_none() && !self.overlaps
    }
}

/// [`Limits::rope_border`] of a program.
pub(crate) fn rope_border(program: &Program) -> Option<usize> {
    program.ropes.iter().filter_map(|table| table.long.as_ref().map(|long| long.beyond)).min()
}

/// Cache rows of one length, each of which holds one sequence at a time.
///
/// A sequence gets a row of the shortest class that is free and holds its prompt and most new tokens, the lowest number
/// first, and keeps it to its end: its block table is that row alone, and its slots are `row * block_len + position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowClass {
    /// Rows.
    pub rows: usize,
    /// Tokens of a sequence at most.
    pub max_len: usize,
}

/// Work of a step, for rooflines and the energy split.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating point operations (a multiply-add is two).
    pub flops: f64,
    /// Weight bytes read, each once.
    pub weight_bytes: f64,
    /// Cache bytes read and written.
    pub kv_bytes: f64,
}

impl Cost {
    /// Work of a step that reads `streamed` bytes of weights and caches as `kv`.
    pub(crate) fn of_step(program: &Program, batch: &Batch, streamed: f64, kv: KvType) -> Cost {
        let mut cost = njoule_models::cost::Cost::default();
        for s in &batch.seqs {
            let outputs = batch.outputs.iter().filter(|o| s.rows.contains(&(**o as usize))).count();
            let rows = s.rows.len();
            cost += Span { rows, context: s.context - rows, outputs }.cost(program);
        }
        Cost {
            flops: cost.flops() as f64,
            weight_bytes: streamed,
            kv_bytes: bytes_per_value(program, kv) * (cost.kv_values_read + cost.kv_values_written) as f64,
        }
    }
}

/// What a device computes in a step beside the batch, because its buckets have fixed sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Padding {
    /// Rows that belong to no sequence.
    pub rows: usize,
    /// Their work, and that of positions which sequences do not have; weights apart.
    pub cost: Cost,
}

/// The work of one sequence from a few numbers: what the engine splits energy by at every step.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    rates: Rates,
    weight_bytes: f64,
    bytes_per_value: f64,
}

impl Default for CostModel {
    /// Of an executor that says nothing: every row costs the same, and weights nothing.
    fn default() -> CostModel {
        CostModel { rates: Rates::rows_alone(), weight_bytes: 0.0, bytes_per_value: 0.0 }
    }
}

impl CostModel {
    /// Of a program whose steps read `weight_bytes` of weights and cache as `kv`.
    pub(crate) fn new(program: &Program, weight_bytes: f64, kv: KvType) -> CostModel {
        CostModel { rates: Rates::of(program), weight_bytes, bytes_per_value: bytes_per_value(program, kv) }
    }

    /// Bytes of weights that a step reads, whatever its rows: of experts, all.
    pub fn weight_bytes(&self) -> f64 {
        self.weight_bytes
    }

    /// Work of `rows` rows behind `context` cached tokens of their sequence, `outputs` of which have logits; weights apart.
    pub fn cost(&self, context: usize, rows: usize, outputs: usize) -> Cost {
        let cost = self.rates.cost(Span { rows, context, outputs });
        let values = cost.kv_values_read.saturating_add(cost.kv_values_written);
        Cost { flops: cost.flops() as f64, weight_bytes: 0.0, kv_bytes: self.bytes_per_value * values as f64 }
    }
}

/// Bytes of a cached value, scales included.
fn bytes_per_value(program: &Program, kv: KvType) -> f64 {
    let bytes: usize = program.caches.iter().map(|c| c.kv_heads * (kv.bytes(c.k_dim) + kv.bytes(c.v_dim))).sum();
    bytes as f64 / program.kv_values_per_token() as f64
}

/// A way to run programs.
pub trait Backend: Send + Sync {
    /// What it can do with `program`.
    fn limits(&self, program: &Program) -> Limits;

    /// Reads the weights and gets ready to run.
    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Executor>, LoadError>;
}

/// One loaded model; owned by the engine thread.
///
/// Every `submit` that succeeds is followed by one `collect`. A step may be submitted again after [`StepError::Busy`] or
/// [`StepError::OutOfBounds`], as a whole or without some sequences: what it has written by then is written again.
pub trait Executor: Send {
    /// Starts a step (a CPU computes it here).
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError>;

    /// Waits for the step and fetches its result. An error ends the step: nothing is left to collect.
    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError>;

    /// Work of `batch`.
    fn cost(&self, batch: &Batch) -> Cost;

    /// Work of a sequence's rows, for those who ask at every step.
    fn cost_model(&self) -> CostModel {
        CostModel::default()
    }

    /// What the last step that was collected has computed for nobody.
    fn padding(&self) -> Padding {
        Padding::default()
    }

    /// The runtime's own code for why the last step failed, where a device has told one.
    fn error_code(&self) -> Option<u32> {
        None
    }

    /// Accelerator cores that a step occupies; `None` where it has none, or they cannot be counted.
    fn cores(&self) -> Option<usize> {
        None
    }

    /// Threads that can share a step; 1 where there is nothing to choose.
    fn workers(&self) -> NonZero<usize> {
        NonZero::<usize>::MIN
    }

    /// Lets later steps be shared by so many of its [threads](Executor::workers). No result depends on it.
    fn set_workers(&mut self, _workers: NonZero<usize>) {}

    /// What it holds.
    fn memory(&self) -> MemoryUse;
}

/// Bytes an executor holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Packed weights.
    pub weights: usize,
    /// Cache capacity.
    pub kv: usize,
    /// Activations and other scratch.
    pub scratch: usize,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A weight is missing or broken.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The backend lacks something that the program needs.
    #[error("the {backend} backend cannot run this model: {what}")]
    Unsupported {
        /// Backend.
        backend: &'static str,
        /// What it lacks.
        what: String,
    },
    /// A tensor holds values that the stored type cannot hold.
    #[error("tensor `{name}` cannot be stored as {stored}: {what}")]
    Values {
        /// Tensor.
        name: String,
        /// Stored type.
        stored: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The threads could not be started.
    #[error("cannot start {count} threads")]
    Threads {
        /// Threads wanted.
        count: usize,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Memory for the weights or the cache could not be had.
    #[error("cannot allocate {bytes} bytes for {what}")]
    Memory {
        /// Bytes wanted.
        bytes: usize,
        /// For what.
        what: &'static str,
    },
    /// Weights could not be shared with other processes.
    #[error("the weights cannot be shared with the other replicas: {0}; --private-weights packs them for each")]
    Shared(String),
    /// The device failed.
    #[error("device failure: {0}")]
    Device(String),
}
