//! How to serve a model on an instance: cores per replica, rows, buckets, memory, and the speed that bounds it all.
//!
//! * [`instances`]: machines; * [`lengths`]: what requests look like; * [`shard`]: one core's part of a program;
//! * [`memory`]: what a core holds; * [`roofline`]: the least time of a step; * [`buckets`]: few buckets for many lengths;
//! * `choose` and `classes`: the search; `levels`: decode modules over all classes; `choices`: which of them steps run;
//! * [`mod@replay`]: a trace of requests through rows, with `uses` and `steps`: what each class did, and all of them at once;
//! * [`mod@simulate`]: a trace through a plan's buckets.
//!
//! Pure arithmetic over a [`Program`]: nothing is read, run or measured. A plan fits in memory by its own table, and every
//! admissible sequence has a class and a bucket for each of its steps. Speeds are bounds from above, never forecasts;
//! watts are unknown and stay so.

pub mod buckets;
mod choices;
mod choose;
mod classes;
pub mod instances;
pub mod lengths;
mod levels;
pub mod memory;
mod reasons;
pub mod replay;
pub mod roofline;
pub mod shard;
pub mod simulate;
mod steps;
mod uses;

use njoule_hlo::Target;
use njoule_models::program::Program;
use serde::{Deserialize, Serialize};

pub use self::choose::{plan, smallest_instance};
pub use self::instances::{Instance, Instances, InstancesError};
pub use self::lengths::{Lengths, LengthsError, Request};
pub use self::memory::{Assumptions, Hbm, Stored};
pub use self::replay::Lane;
pub use self::roofline::Roofline;
pub use self::shard::Shard;
pub use self::simulate::{Simulation, Useful, simulate};
use super::{CacheShape, ModelSpec, ModuleKind, ModuleSpec, Part, Profile};
use crate::backend::{KvType, Quant};

/// What a plan is to be best at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Tokens per second of each chip in use; of equals, fewer chips.
    #[default]
    TokensPerJoule,
    /// Tokens per second of the instance.
    Throughput,
    /// Time per output token.
    Latency,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What to be best at.
    pub objective: Objective,
    /// Seconds per output token at most, prefill of others included.
    pub tpot: Option<f64>,
    /// Longest sequence.
    pub context: usize,
    /// Stored type of weights; bf16 if that fits, else int8.
    pub weights: Option<Quant>,
    /// Type of caches; bf16 (f32 beside f32 weights) if that fits, else int8.
    pub kv: Option<KvType>,
    /// Cores of a replica.
    pub tp: Option<usize>,
    /// Rows of a replica.
    pub batch: Option<usize>,
    /// Modules at most.
    pub max_neffs: usize,
    /// Least share of useful decode positions and of useful prompt tokens.
    pub min_useful: f64,
    /// Candidates that a step returns per row.
    pub candidates: usize,
    /// Sparse biases that a step takes per row.
    pub biases: usize,
    /// Whether a step takes a mask of tokens.
    pub mask: bool,
    /// Estimates.
    pub assumptions: Assumptions,
}

impl Default for Wish {
    fn default() -> Self {
        Wish {
            objective: Objective::default(),
            tpot: None,
            context: 4096,
            weights: None,
            kv: None,
            tp: None,
            batch: None,
            max_neffs: 32,
            min_useful: 0.0,
            candidates: 64,
            // As many as forbid the ends of an answer, or nudge a few words.
            biases: 8,
            mask: true,
            assumptions: Assumptions::default(),
        }
    }
}

/// How to serve a model on an instance: what `njoule build` takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the program.
    pub model: String,
    /// Its fingerprint.
    pub fingerprint: u64,
    /// Instance type.
    pub instance: String,
    /// Compiler target.
    #[serde(with = "target_name")]
    pub target: Target,
    /// Physical cores of a logical one, where somebody chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lnc: Option<u8>,
    /// What it is best at.
    pub objective: Objective,
    /// Cores of a replica.
    pub tp: usize,
    /// Replicas.
    pub replicas: usize,
    /// Chips that work.
    pub active_chips: usize,
    /// Stored type of weights.
    pub weights: Quant,
    /// Type of caches.
    pub kv: KvType,
    /// Candidates that a step returns per row.
    pub candidates: usize,
    /// Longest sequence.
    pub context: usize,
    /// Classes of rows, shortest first.
    pub classes: Vec<CacheShape>,
    /// Modules, class by class, then those that decode several.
    pub modules: Vec<ModuleSpec>,
    /// Seconds of a step of each, at least.
    pub module_seconds: Vec<f64>,
    /// One core's memory.
    pub hbm: Hbm,
    /// Estimates that went into it.
    pub assumptions: Assumptions,
    /// What to expect.
    pub figures: Figures,
    /// Other degrees of tensor parallelism, and why not.
    pub tried: Vec<Tried>,
    /// The same with other stored types.
    pub alternatives: Vec<Alternative>,
    /// Why it is so.
    pub reasons: Vec<String>,
}

/// Bounds and shares, for the lengths that the plan was made for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Where the lengths are from.
    pub lengths: String,
    /// Share of those requests that are longer than the context, and refused.
    pub refused: f64,
    /// Answer tokens per second of the instance, at most.
    pub tokens_per_s: f64,
    /// Prompt tokens per second beside them.
    pub prompt_tokens_per_s: f64,
    /// Seconds per output token under full load, at least.
    pub tpot_s: f64,
    /// The same without prefill in between.
    pub decode_tpot_s: f64,
    /// Seconds to the first token of the median prompt on an idle replica, at least.
    pub ttft_s: f64,
    /// Tokens of that prompt.
    pub ttft_prompt: usize,
    /// All-reduces of a step.
    pub all_reduces: usize,
    /// Their seconds in each step, at least.
    pub all_reduce_s: f64,
    /// Tokens from which on a chunk takes longer to compute than the weights to read.
    pub ridge: usize,
    /// Useful over padded positions.
    pub useful: Useful,
    /// Share of rows taken.
    pub occupancy: f64,
    /// USD per million answer tokens, at least; absent where there is no price.
    pub usd_per_million: Option<f64>,
    /// Unknown: nobody publishes watts of these chips. Answer tokens per joule are at most `tokens_per_s` over the
    /// instance's watts.
    pub tokens_per_joule: Option<f64>,
    /// Watts below which the instance must stay for 1 token per joule at that speed; for x tokens per joule, that over x.
    pub watts_at_one_token_per_joule: f64,
}

/// A degree of tensor parallelism.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Cores of a replica.
    pub tp: usize,
    /// Replicas.
    pub replicas: usize,
    /// Rows of a replica.
    pub rows: Option<usize>,
    /// Answer tokens per second of the instance, at most.
    pub tokens_per_s: Option<f64>,
    /// Seconds per output token, at least.
    pub tpot_s: Option<f64>,
    /// Why there is no plan.
    pub problem: Option<String>,
}

/// Other stored types, at the same degree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// Stored type of weights.
    pub weights: Quant,
    /// Type of caches.
    pub kv: KvType,
    /// Rows of a replica.
    pub rows: usize,
    /// Answer tokens per second of the instance, at most.
    pub tokens_per_s: f64,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Not enough memory, whatever is chosen.
    #[error(
        "{model} does not fit on {instance}: with {what} on {tp} cores, a core lacks {missing} bytes of its {limit}"
    )]
    Memory {
        /// Model.
        model: String,
        /// Instance.
        instance: String,
        /// Stored types.
        what: String,
        /// Degree that came nearest.
        tp: usize,
        /// Bytes.
        missing: u64,
        /// Bytes.
        limit: u64,
    },
    /// Fits, but too slow.
    #[error("no plan for {model} on {instance} has a time per output token of {wanted} s: {best} s is the least")]
    Tpot {
        /// Model.
        model: String,
        /// Instance.
        instance: String,
        /// Seconds.
        wanted: f64,
        /// Seconds.
        best: f64,
    },
    /// Fits, but pads too much.
    #[error("no plan with {max_neffs} modules at most has {wanted} of its positions useful: {best} is the most")]
    Useful {
        /// Share.
        wanted: f64,
        /// Share.
        best: f64,
        /// Modules.
        max_neffs: usize,
    },
    /// No degree can be built.
    #[error("{model} cannot be built: {what}")]
    Divide {
        /// Model.
        model: String,
        /// The smallest degree that was tried.
        tp: usize,
        /// What a build would say of it.
        what: String,
    },
    /// More cores than there are.
    #[error("--tp {tp}: {instance} has {cores} cores")]
    Tp {
        /// Degree.
        tp: usize,
        /// Instance.
        instance: String,
        /// Its cores.
        cores: usize,
    },
    /// A wish that cannot be.
    #[error("{field} is {value}: {reason}")]
    Wish {
        /// Which.
        field: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// No request is short enough.
    #[error("none of the {requests} requests is within a context of {context} tokens")]
    Lengths {
        /// How many there are.
        requests: usize,
        /// Longest sequence.
        context: usize,
    },
}

impl Plan {
    /// What the modules of this plan have in common.
    pub fn model_spec(&self, profile: Profile) -> ModelSpec {
        let Plan { target, tp, weights, kv, candidates, .. } = *self;
        ModelSpec { target, tp, weights, kv, candidates, profile, shares: false, streams: false }
    }

    /// Whether a plan that was read from a file is one for `program` that modules can be made of; the error names the field.
    pub fn check(&self, program: &Program) -> Result<(), String> {
        let Plan { fingerprint, tp, replicas, weights, kv, candidates, context, .. } = *self;
        if fingerprint != program.fingerprint() {
            let (of, is) = (&self.model, &program.name);
            return Err(format!("it is a plan for another model: {of} ({fingerprint:016x}), not this {is}"));
        }
        let field = |name: &str, value: String| Err(format!("field `{name}` is {value}"));
        for (name, number) in [("tp", tp), ("replicas", replicas)] {
            if !(1..=MAX_CORES).contains(&number) {
                return field(name, format!("{number}: there are 1 to {MAX_CORES}"));
            }
        }
        if matches!(weights, Quant::Int4 | Quant::Auto) {
            return field(
                "weights",
                format!("{}: Neuron modules take none (f32), bf16 and int8", self::name(&weights)),
            );
        }
        if kv == KvType::F16 {
            return field("kv", "f16: Neuron modules take f32, bf16 and int8".to_owned());
        }
        if let Some(lnc) = self.lnc.filter(|lnc| !instances::has_lnc(self.target, *lnc)) {
            return field("lnc", format!("{lnc}: {} has no such logical cores", self.target.name()));
        }
        if !(1..=program.vocab()).contains(&candidates) {
            return field("candidates", format!("{candidates}: the model has {} tokens", program.vocab()));
        }
        if !(2..=MAX_CONTEXT).contains(&context) {
            return field("context", format!("{context}: a sequence has 2 to {MAX_CONTEXT} tokens"));
        }
        let whole = |c: &CacheShape| {
            c.rows >= 1 && c.positions >= 2 && c.rows.checked_mul(c.positions).is_some_and(|n| n <= MAX_PLACES)
        };
        if !(1..=MAX_NEFFS).contains(&self.classes.len()) {
            return field("classes", format!("a list of {}: there are 1 to {MAX_NEFFS}", self.classes.len()));
        }
        if let Some(i) = self.classes.iter().position(|class| !whole(class)) {
            return field(
                &format!("classes[{i}]"),
                format!("{:?}: too small, or more than {MAX_PLACES} positions", self.classes[i]),
            );
        }
        if let Some(i) = self.classes.windows(2).position(|pair| pair[0].positions >= pair[1].positions) {
            return field(
                &format!("classes[{}]", i + 1),
                format!("{:?}: no longer than the one before it", self.classes[i + 1]),
            );
        }
        if self.modules.len() > MAX_NEFFS {
            return field("modules", format!("a list of {}: there are {MAX_NEFFS} at most", self.modules.len()));
        }
        for (i, m) in self.modules.iter().enumerate() {
            let strange = m.parts.iter().position(|part| !self.classes.contains(&part.class));
            let strange = strange.map(|part| format!("field `parts[{part}]`: its class is not among `classes`"));
            if let Some(what) = m.check_parts().err().or(strange) {
                return Err(format!("field `modules[{i}]`: {what}"));
            }
            if m.biases > program.vocab() {
                return field(&format!("modules[{i}]"), format!("{m:?}"));
            }
        }
        let decodes = |class: &CacheShape| {
            let all = |part: &Part| part.class == *class && part.rows == class.rows;
            self.modules.iter().any(|m| matches!(m.kind, ModuleKind::Decode { .. }) && m.parts.iter().any(all))
        };
        match self.classes.iter().find(|class| !decodes(class)) {
            Some(class) => Err(format!("field `modules`: no decode module takes all rows of {class:?}")),
            None => Ok(()),
        }
    }

    /// Rows, longest sequence and chunks of a class.
    pub fn lane(&self, class: CacheShape) -> Lane {
        let chunk = |m: &ModuleSpec| match m.kind {
            ModuleKind::Prefill { tokens } if m.part(class).is_some() => Some(tokens),
            _ => None,
        };
        let mut chunks: Vec<usize> = self.modules.iter().filter_map(chunk).collect();
        chunks.sort_unstable();
        chunks.dedup();
        let spare = chunks.last().copied().unwrap_or(0);
        Lane { rows: class.rows, longest: class.positions.saturating_sub(spare), chunks }
    }

    /// Sequences of a replica at once.
    pub fn rows(&self) -> usize {
        self.classes.iter().map(|c| c.rows).sum()
    }
}

impl Wish {
    /// Refuses what cannot be.
    fn check(&self, instance: &Instance) -> Result<(), PlanError> {
        let wish = |field, value: String, reason| Err(PlanError::Wish { field, value, reason });
        if let Some(tp) = self.tp
            && !(1..=instance.cores()).contains(&tp)
        {
            return Err(PlanError::Tp { tp, instance: instance.name.clone(), cores: instance.cores() });
        }
        if !(2..=MAX_CONTEXT).contains(&self.context) {
            return wish("--context", self.context.to_string(), "a sequence has 2 to 16777216 tokens");
        }
        if self.batch.is_some_and(|b| !(1..=classes::MAX_ROWS).contains(&b)) {
            return wish("--batch", self.batch.unwrap_or(0).to_string(), "a replica has 1 to 512 rows");
        }
        if !(2..=MAX_NEFFS).contains(&self.max_neffs) {
            return wish("--max-neffs", self.max_neffs.to_string(), "there are 2 (prefill and decode) to 1024");
        }
        if !(0.0..1.0).contains(&self.min_useful) {
            return wish("--min-useful", self.min_useful.to_string(), "a share is from 0 to below 1");
        }
        if self.tpot.is_some_and(|t| !(t > 0.0 && t.is_finite())) {
            return wish("--tpot", format!("{:?} s", self.tpot.unwrap_or(0.0)), "a time is positive");
        }
        if matches!(self.weights, Some(Quant::Int4)) {
            return wish("--weights", "int4".into(), "Neuron modules take none (f32), bf16 and int8");
        }
        if matches!(self.kv, Some(KvType::F16)) {
            return wish("--kv-type", "f16".into(), "Neuron modules take f32, bf16 and int8");
        }
        let Assumptions { ring_share, hop_us, .. } = self.assumptions;
        if !(0.0..=10.0).contains(&ring_share) {
            return wish("--ring-share", ring_share.to_string(), "a share of bytes is from 0 to 10");
        }
        if !(0.0..=1e6).contains(&hop_us) {
            return wish("--hop-us", hop_us.to_string(), "a hop takes 0 to 1e6 microseconds");
        }
        Ok(())
    }

    /// Stored types in the order in which they are tried.
    fn types(&self) -> Vec<(Quant, KvType)> {
        let weights = match self.weights {
            None | Some(Quant::Auto) => vec![Quant::Bf16, Quant::Int8],
            Some(weights) => vec![weights],
        };
        let full = |weights| if weights == Quant::None { KvType::F32 } else { KvType::Bf16 };
        let mut types: Vec<_> = weights.iter().map(|w| (*w, self.kv.unwrap_or(full(*w)))).collect();
        if let (None, Some(last)) = (self.kv, weights.last().filter(|w| **w != Quant::None)) {
            types.push((*last, KvType::Int8));
        }
        types
    }
}

/// As it is typed.
fn name(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A target by its name, in plans and manifests.
pub(super) mod target_name {
    use njoule_hlo::Target;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(target: &Target, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(target.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Target::ALL.into_iter().find(|t| t.name() == name);
        found.ok_or_else(|| D::Error::custom(format!("no target {name:?}")))
    }
}

const MAX_CORES: usize = 256;
const MAX_CONTEXT: usize = 1 << 24;
/// Of a class: s32 holds them, and f32 exactly.
const MAX_PLACES: usize = 1 << 24;
const MAX_NEFFS: usize = 1024;

#[cfg(test)]
mod tests;
