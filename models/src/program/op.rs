//! The vocabulary: about twenty coarse operations that transformers are made of.
//!
//! Fusion is decided here: an op is what every backend wants to do at once. A family that needs more gets one clean member,
//! on every backend, with its conformance cases.

use super::{CacheId, RopeId, Val, WeightId};

/// What an embedding is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EmbedIndex {
    /// The row's token.
    Tokens,
    /// The row's position plus `offset` (learned positions).
    Positions {
        /// Added to the position.
        offset: usize,
    },
}

/// The mean of what a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019, arXiv:1910.07467).
    Rms,
    /// `(x - mean) / sqrt(mean((x - mean)^2) + eps)` (Ba et al. 2016, arXiv:1607.06450).
    Layer,
}

/// A norm: `norm(x) * weight + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What is divided by what.
    pub kind: NormKind,
    /// Scale: of the group's length, or of the row's where each group has its own. Ones where absent.
    pub weight: Option<WeightId>,
    /// Added last; as long as `weight`.
    pub bias: Option<WeightId>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Norm {
    /// An RMS norm.
    pub fn rms(weight: WeightId, eps: f32) -> Norm {
        Norm { kind: NormKind::Rms, weight: Some(weight), bias: None, eps }
    }

    /// Its weights.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        self.weight.into_iter().chain(self.bias)
    }
}

/// Which values a norm runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormGroup {
    /// The whole row.
    Row,
    /// Each run of this many columns on its own (query/key norms).
    Head(usize),
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)` with the normal distribution's own function (Hendrycks and Gimpel 2016, arXiv:1606.08415).
    Gelu,
    /// The same by `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    Relu2,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

/// How the two halves of a gated layer meet (Shazeer 2020, arXiv:2002.05202).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Glu {
    /// `act(gate) * up`.
    Act(Act),
    /// `g * sigmoid(alpha * g) * (u + 1)` with `g = min(gate, limit)` and `u = clamp(up, -limit, limit)`
    /// (`GptOssExperts` of transformers).
    ClampedSwish {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Bound of both halves.
        limit: f32,
    },
}

/// How rotary dimensions pair up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `x[i]` with `x[i + width/2]` (Hugging Face, NeoX).
    Half,
    /// `x[2i]` with `x[2i + 1]` (GPT-J).
    Neighbours,
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

/// How a router's logits become the experts' shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Logits to scores.
    pub score: RouteScore,
    /// Added to the scores where experts are chosen, not where they are weighed (DeepSeek-V3, arXiv:2412.19437).
    pub bias: Option<WeightId>,
    /// Groups of neighbours that experts are chosen from; one of all where absent.
    pub groups: Option<RouteGroups>,
    /// Experts with the largest scores that are kept; of equal scores, the lower number wins.
    pub top_k: usize,
    /// Whether the kept scores are divided by their sum.
    pub normalise: bool,
    /// Factor of the shares.
    pub factor: f32,
}

/// Experts come from the best groups alone (DeepSeek-V2, arXiv:2405.04434); of equal groups, the lower number wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteGroups {
    /// Groups, at most [`RouteGroups::MOST`]; divides the number of experts.
    pub count: usize,
    /// Groups that experts are chosen from; they have `top_k` experts at least.
    pub kept: usize,
    /// A group ranks by the sum of this many of its largest scores.
    pub best: usize,
}

impl RouteGroups {
    /// Groups at most.
    pub const MOST: usize = 64;
}

/// Scores of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteScore {
    /// Over all experts. With `normalise` it equals the softmax of the kept logits alone.
    Softmax,
    /// Each on its own.
    Sigmoid,
}

/// Matrices of a [`Op::MoeMlp`], stacks of one per expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpertWeights {
    /// `[ffn, in]` each.
    pub weight: WeightId,
    /// One row each.
    pub bias: Option<WeightId>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out[r] = table[index[r]]`.
    Embed {
        /// `[entries, cols]`.
        table: WeightId,
        /// Which entry a row gets.
        index: EmbedIndex,
        /// Result.
        out: Val,
    },
    /// A norm of every row or of its groups.
    Norm {
        /// Input.
        x: Val,
        /// Which norm.
        norm: Norm,
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
        /// Which norm, of whole rows.
        norm: Norm,
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
    /// `glu(x * gate^T + gate_bias, x * up^T + up_bias)`.
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
        /// How they meet.
        glu: Glu,
        /// Result.
        out: Val,
    },
    /// `act(x)`.
    Act {
        /// Input.
        x: Val,
        /// Function.
        act: Act,
        /// Result.
        out: Val,
    },
    /// Rotates the first `table.width()` values of every head by the row's position (Su et al. 2021,
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
        /// Scores become `cap * tanh(score / cap)`, after `scale`.
        softcap: Option<f32>,
        /// A score per query head that takes part in the softmax and has no value.
        sinks: Option<WeightId>,
        /// A slope per query head: scores gain it times the key's position less the query's, last of all (Press et al. 2022,
        /// arXiv:2108.12409).
        alibi: Option<Vec<f32>>,
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
    /// `x * y`; a `y` of one column is the factor of the whole row.
    Mul {
        /// First factor.
        x: Val,
        /// Second factor: as wide as `x`, or one column.
        y: Val,
        /// Result.
        out: Val,
    },
    /// `x * factor`.
    Scale {
        /// Input.
        x: Val,
        /// Factor.
        factor: f32,
        /// Result.
        out: Val,
    },
    /// `cap * tanh(x / cap)`.
    Softcap {
        /// Input.
        x: Val,
        /// Bound.
        cap: f32,
        /// Result.
        out: Val,
    },
    /// `min(max(x, -bound), bound)`; a NaN stays one (`clip_qkv` of `OlmoAttention` of transformers).
    Clamp {
        /// Input.
        x: Val,
        /// Bound of the size; not negative.
        bound: f32,
        /// Result.
        out: Val,
    },
    /// Each head of `x` followed by that of `y`; a `y` of one head is every head's (`torch.cat` of `DeepseekV2Attention` of
    /// transformers).
    JoinHeads {
        /// First parts, `heads * lengths[0]` columns.
        x: Val,
        /// Second parts, `heads * lengths[1]` columns or `lengths[1]`.
        y: Val,
        /// Lengths of both parts of a head.
        lengths: [usize; 2],
        /// Result, `heads * (lengths[0] + lengths[1])` columns.
        out: Val,
    },
    /// A router's logits as the experts' shares, `[rows, experts]`: zero where an expert takes no part.
    Route {
        /// Logits.
        x: Val,
        /// How.
        routing: Routing,
        /// Result.
        out: Val,
    },
    /// `sum over experts e of shares[e] * (glu(x * gate_e^T, x * up_e^T) * down_e^T)`, biases included, over those whose
    /// share is not zero, in the order of their numbers.
    MoeMlp {
        /// Input.
        x: Val,
        /// The experts' shares, from [`Op::Route`].
        shares: Val,
        /// `[ffn, in]` each.
        gate: ExpertWeights,
        /// `[ffn, in]` each.
        up: ExpertWeights,
        /// `[out, ffn]` each.
        down: ExpertWeights,
        /// How gate and up meet.
        glu: Glu,
        /// Result.
        out: Val,
    },
    /// Keeps the rows whose logits are wanted.
    TakeOutputs {
        /// Input, [`RowSet::Tokens`](super::RowSet::Tokens).
        x: Val,
        /// Result, [`RowSet::Outputs`](super::RowSet::Outputs).
        out: Val,
    },
}

impl Op {
    /// Its name in the canonical text.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::Norm { .. } => "norm",
            Op::AddNorm { .. } => "add_norm",
            Op::LinearN { .. } => "linear",
            Op::GatedMlpIn { .. } => "gated_mlp_in",
            Op::Act { .. } => "act",
            Op::Rope { .. } => "rope",
            Op::Attend { .. } => "attend",
            Op::Add { .. } => "add",
            Op::Mul { .. } => "mul",
            Op::Scale { .. } => "scale",
            Op::Softcap { .. } => "softcap",
            Op::Clamp { .. } => "clamp",
            Op::JoinHeads { .. } => "join_heads",
            Op::Route { .. } => "route",
            Op::MoeMlp { .. } => "moe_mlp",
            Op::TakeOutputs { .. } => "take_outputs",
        }
    }

    /// Activations the op reads.
    pub fn inputs(&self) -> Vec<Val> {
        match self {
            Op::Embed { .. } => vec![],
            Op::Norm { x, .. }
            | Op::LinearN { x, .. }
            | Op::GatedMlpIn { x, .. }
            | Op::Act { x, .. }
            | Op::Rope { x, .. }
            | Op::Scale { x, .. }
            | Op::Softcap { x, .. }
            | Op::Clamp { x, .. }
            | Op::Route { x, .. }
            | Op::TakeOutputs { x, .. } => vec![*x],
            Op::AddNorm { x, delta, .. } => vec![*x, *delta],
            Op::Add { x, y, .. } | Op::Mul { x, y, .. } | Op::JoinHeads { x, y, .. } => vec![*x, *y],
            Op::MoeMlp { x, shares, .. } => vec![*x, *shares],
            Op::Attend { q, k, v, .. } => vec![*q, *k, *v],
        }
    }

    /// Activations the op writes.
    pub fn outputs(&self) -> Vec<Val> {
        match self {
            Op::Embed { out, .. }
            | Op::Norm { out, .. }
            | Op::GatedMlpIn { out, .. }
            | Op::Act { out, .. }
            | Op::Rope { out, .. }
            | Op::Attend { out, .. }
            | Op::Add { out, .. }
            | Op::Mul { out, .. }
            | Op::Scale { out, .. }
            | Op::Softcap { out, .. }
            | Op::Clamp { out, .. }
            | Op::JoinHeads { out, .. }
            | Op::Route { out, .. }
            | Op::MoeMlp { out, .. }
            | Op::TakeOutputs { out, .. } => vec![*out],
            Op::AddNorm { sum, out, .. } => vec![*sum, *out],
            Op::LinearN { parts, .. } => parts.iter().map(|p| p.out).collect(),
        }
    }

    /// Weights the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Op::Embed { table, .. } => vec![*table],
            Op::Norm { norm, .. } | Op::AddNorm { norm, .. } => norm.weights().collect(),
            Op::LinearN { parts, .. } => parts.iter().flat_map(|p| std::iter::once(p.weight).chain(p.bias)).collect(),
            Op::GatedMlpIn { gate, up, gate_bias, up_bias, .. } => {
                [Some(*gate), Some(*up), *gate_bias, *up_bias].into_iter().flatten().collect()
            }
            Op::Attend { sinks, .. } => sinks.iter().copied().collect(),
            Op::Route { routing, .. } => routing.bias.iter().copied().collect(),
            Op::MoeMlp { gate, up, down, .. } => {
                [gate, up, down].into_iter().flat_map(|w| std::iter::once(w.weight).chain(w.bias)).collect()
            }
            Op::Act { .. }
            | Op::Rope { .. }
            | Op::Add { .. }
            | Op::Mul { .. }
            | Op::Scale { .. }
            | Op::Softcap { .. }
            | Op::Clamp { .. }
            | Op::JoinHeads { .. }
            | Op::TakeOutputs { .. } => vec![],
        }
    }
}
