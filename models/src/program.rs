//! The program of a model: all that a backend knows about it.
//!
//! Every activation is a matrix `[rows, cols]` of which `rows` is the only dynamic axis: the tokens of a step
//! ([`RowSet::Tokens`]) or those of its rows that need logits ([`RowSet::Outputs`]). Ops are in execution order and in
//! single-assignment form: each [`Val`] is written by exactly one op. Quantisation is not an op: it is how a backend
//! stores a weight. [`std::fmt::Display`] is canonical, and [`Program::fingerprint`] is a hash of it.

use std::fmt;
use std::ops::Range;

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

/// What a weight is used for; a backend chooses its stored type by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightUse {
    /// Matrix of a linear op, `[out, in]`.
    Linear,
    /// Token embedding or output head, `[vocab, hidden]`; may serve as both.
    Vocabulary,
    /// A norm weight or a bias, one row; always held in f32.
    Vector,
}

/// How a weight is split when a program runs on several cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parallel {
    /// Split by output rows.
    Column,
    /// Split by input columns; the outputs are summed.
    Row,
    /// Whole on every core.
    Replicated,
}

/// A weight a program needs, and where its bytes come from: a view of a checkpoint tensor under its Hugging Face name.
/// Other dialects (GGUF) are tables from these names, see [`crate::weights`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightDecl {
    /// Tensor name as the reference implementation's checkpoint has it.
    pub name: String,
    /// Rows of the view (1 for a vector).
    pub rows: usize,
    /// Columns of the view.
    pub cols: usize,
    /// First row of the view within the tensor (fused tensors are several views of one name).
    pub row_start: usize,
    /// Rows of the whole tensor; `rows` unless it is fused.
    pub of_rows: usize,
    /// What it is used for.
    pub usage: WeightUse,
    /// How it is split over cores.
    pub parallel: Parallel,
}

/// Which values a norm runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormGroup {
    /// The whole row.
    Row,
    /// Each run of this many columns on its own, all with the same weight (query/key norms).
    Head(usize),
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// `x * sigmoid(x)`.
    Silu,
}

/// How rotary dimensions pair up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `x[i]` with `x[i + width/2]` (Hugging Face, NeoX).
    Half,
}

/// One of the products of a [`Op::LinearN`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearPart {
    /// Matrix `[out cols, in cols]`.
    pub weight: WeightId,
    /// Added to every row.
    pub bias: Option<WeightId>,
    /// `x * weight^T + bias`.
    pub out: Val,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out[r] = table[token[r]]`.
    Embed {
        /// `[vocab, cols]`.
        table: WeightId,
        /// Result.
        out: Val,
    },
    /// RMS norm, `x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019, arXiv:1910.07467).
    Norm {
        /// Input.
        x: Val,
        /// Scale; of the group's length.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// What is normalised together.
        group: NormGroup,
        /// Result.
        out: Val,
    },
    /// `sum = x + delta; out = norm(sum)`: the residual stream's step.
    AddNorm {
        /// Residual stream.
        x: Val,
        /// What is added.
        delta: Val,
        /// Scale of the norm.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// New residual stream.
        sum: Val,
        /// Normalised sum.
        out: Val,
    },
    /// Matrix products of one input; siblings share its quantised form and one parallel region.
    LinearN {
        /// Input.
        x: Val,
        /// The products, at least one.
        parts: Vec<LinearPart>,
    },
    /// `act(x * gate^T + gate_bias) * (x * up^T + up_bias)`.
    GatedMlpIn {
        /// Input.
        x: Val,
        /// Matrix under the activation.
        gate: WeightId,
        /// The other matrix.
        up: WeightId,
        /// Bias of `gate`.
        gate_bias: Option<WeightId>,
        /// Bias of `up`.
        up_bias: Option<WeightId>,
        /// Activation.
        act: Act,
        /// Result.
        out: Val,
    },
    /// Rotates the first `2 * len(inv_freq)` values of every head by the row's position (Su et al. 2021,
    /// arXiv:2104.09864).
    Rope {
        /// Input.
        x: Val,
        /// Frequencies.
        table: RopeId,
        /// Length of a head.
        head_dim: usize,
        /// Which values pair up.
        pairing: Pairing,
        /// Result.
        out: Val,
    },
    /// Writes the rows' keys and values into the cache, then attends causally to the row's own sequence.
    Attend {
        /// Queries, `heads * k_dim` columns.
        q: Val,
        /// Keys of these rows, `kv_heads * k_dim` columns.
        k: Val,
        /// Values of these rows, `kv_heads * v_dim` columns.
        v: Val,
        /// The layer's cache.
        cache: CacheId,
        /// Query heads; a multiple of the cache's `kv_heads`.
        heads: usize,
        /// Factor of the scores.
        scale: f32,
        /// Keys a query sees, itself included; all where absent.
        window: Option<usize>,
        /// Result, `heads * v_dim` columns.
        out: Val,
    },
    /// `x + y`.
    Add {
        /// First term.
        x: Val,
        /// Second term.
        y: Val,
        /// Result.
        out: Val,
    },
    /// Keeps the rows whose logits are wanted.
    TakeOutputs {
        /// Input, [`RowSet::Tokens`].
        x: Val,
        /// Result, [`RowSet::Outputs`].
        out: Val,
    },
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

    /// FNV-1a hash of the canonical text: equal programs have equal fingerprints on every machine.
    pub fn fingerprint(&self) -> u64 {
        self.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }
}

impl Op {
    /// Activations the op reads.
    pub fn inputs(&self) -> Vec<Val> {
        match self {
            Op::Embed { .. } => vec![],
            Op::Norm { x, .. }
            | Op::LinearN { x, .. }
            | Op::GatedMlpIn { x, .. }
            | Op::Rope { x, .. }
            | Op::TakeOutputs { x, .. } => vec![*x],
            Op::AddNorm { x, delta, .. } => vec![*x, *delta],
            Op::Add { x, y, .. } => vec![*x, *y],
            Op::Attend { q, k, v, .. } => vec![*q, *k, *v],
        }
    }

    /// Activations the op writes.
    pub fn outputs(&self) -> Vec<Val> {
        match self {
            Op::Embed { out, .. }
            | Op::Norm { out, .. }
            | Op::GatedMlpIn { out, .. }
            | Op::Rope { out, .. }
            | Op::Attend { out, .. }
            | Op::Add { out, .. }
            | Op::TakeOutputs { out, .. } => vec![*out],
            Op::AddNorm { sum, out, .. } => vec![*sum, *out],
            Op::LinearN { parts, .. } => parts.iter().map(|p| p.out).collect(),
        }
    }

    /// Weights the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Op::Embed { table, .. } => vec![*table],
            Op::Norm { weight, .. } | Op::AddNorm { weight, .. } => vec![*weight],
            Op::LinearN { parts, .. } => parts.iter().flat_map(|p| std::iter::once(p.weight).chain(p.bias)).collect(),
            Op::GatedMlpIn { gate, up, gate_bias, up_bias, .. } => {
                [Some(*gate), Some(*up), *gate_bias, *up_bias].into_iter().flatten().collect()
            }
            Op::Rope { .. } | Op::Attend { .. } | Op::Add { .. } | Op::TakeOutputs { .. } => vec![],
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {}", self.name)?;
        for (i, w) in self.weights.iter().enumerate() {
            write!(f, "w{i} = {} [{}, {}]", w.name, w.rows, w.cols)?;
            if w.of_rows != w.rows {
                write!(f, " from row {} of {}", w.row_start, w.of_rows)?;
            }
            writeln!(f, " {:?} {:?}", w.usage, w.parallel)?;
        }
        for (i, r) in self.ropes.iter().enumerate() {
            writeln!(f, "rope{i} = {r}")?;
        }
        for (i, c) in self.caches.iter().enumerate() {
            writeln!(f, "cache{i} = {} heads, k {}, v {}", c.kv_heads, c.k_dim, c.v_dim)?;
        }
        for (i, op) in self.ops.iter().enumerate() {
            if let Some(layer) = self.layers.iter().position(|l| l.start == i) {
                writeln!(f, "layer {layer}:")?;
            }
            writeln!(f, "  {}", OpText { op, program: self })?;
        }
        write!(f, "logits = v{}", self.logits.0)
    }
}

/// One op in the canonical text.
struct OpText<'a> {
    op: &'a Op,
    program: &'a Program,
}

impl OpText<'_> {
    fn val(&self, v: Val) -> String {
        let info = self.program.info(v);
        let rows = match info.rows {
            RowSet::Tokens => "t",
            RowSet::Outputs => "o",
        };
        format!("v{}[{rows}, {}]", v.0, info.cols)
    }
}

impl fmt::Display for OpText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bias = |b: &Option<WeightId>| b.map_or(String::new(), |b| format!(" + w{}", b.0));
        match self.op {
            Op::Embed { table, out } => write!(f, "{} = embed w{}", self.val(*out), table.0),
            Op::Norm { x, weight, eps, group, out } => {
                write!(f, "{} = rms_norm v{} * w{} eps {eps:e}", self.val(*out), x.0, weight.0)?;
                match group {
                    NormGroup::Row => Ok(()),
                    NormGroup::Head(n) => write!(f, " per head of {n}"),
                }
            }
            Op::AddNorm { x, delta, weight, eps, sum, out } => write!(
                f,
                "{}, {} = add_rms_norm v{} + v{} * w{} eps {eps:e}",
                self.val(*sum),
                self.val(*out),
                x.0,
                delta.0,
                weight.0
            ),
            Op::LinearN { x, parts } => {
                let outs: Vec<_> = parts.iter().map(|p| self.val(p.out)).collect();
                let ws: Vec<_> = parts.iter().map(|p| format!("w{}{}", p.weight.0, bias(&p.bias))).collect();
                write!(f, "{} = linear v{} by {}", outs.join(", "), x.0, ws.join(", "))
            }
            Op::GatedMlpIn { x, gate, up, gate_bias, up_bias, act, out } => write!(
                f,
                "{} = gated_mlp_in v{} {act:?} w{}{} times w{}{}",
                self.val(*out),
                x.0,
                gate.0,
                bias(gate_bias),
                up.0,
                bias(up_bias)
            ),
            Op::Rope { x, table, head_dim, pairing, out } => {
                write!(f, "{} = rope{} v{} heads of {head_dim} {pairing:?}", self.val(*out), table.0, x.0)
            }
            Op::Attend { q, k, v, cache, heads, scale, window, out } => {
                write!(f, "{} = attend cache{} q v{} k v{} v v{}", self.val(*out), cache.0, q.0, k.0, v.0)?;
                write!(f, " {heads} heads scale {scale:e}")?;
                window.map_or(Ok(()), |w| write!(f, " window {w}"))
            }
            Op::Add { x, y, out } => write!(f, "{} = add v{} v{}", self.val(*out), x.0, y.0),
            Op::TakeOutputs { x, out } => write!(f, "{} = take_outputs v{}", self.val(*out), x.0),
        }
    }
}

#[cfg(test)]
mod tests;
