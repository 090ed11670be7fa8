//! From a divided program to a module: one per kind of step and bucket, the same for every core.
//!
//! What is rounded where is the table of the candle backend (`backend/candle.rs`). Its interface is
//! [`interface`](super::interface)'s; idioms whose form is in doubt follow the [`Profile`](super::Profile).
//!
//! Activations are `f32[tokens, columns]`, of a split one the core's columns.

mod attention;
pub(super) mod cache;
mod choice;
mod experts;
mod ops;
pub(super) mod rope;

use std::collections::HashMap;

use njoule_hlo::builder::Custom;
use njoule_hlo::idioms::Angles;
use njoule_hlo::op::Binary;
use njoule_hlo::{Builder, DType, Module, Options, Val as Array, VerifyError, verify};
use njoule_models::program::{CacheId, RopeId, Val, WeightId};

use super::interface::{
    CachePart, CacheShape, Input, ModelSpec, ModuleKind, ModuleSpec, Output, Part, Port, WeightPart,
};
use super::profile::{DotResult, Lookup, Profile, TopK};
use super::shard::Sharded;
use super::weights;
use crate::backend::{KvType, Quant};

/// A module and what its parameters and results are, in order.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// Verified for the target.
    pub module: Module,
    /// Parameters.
    pub inputs: Vec<Port<Input>>,
    /// Results.
    pub outputs: Vec<Port<Output>>,
}

/// Why there is no such module.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// Weights of that type are not stored on the device.
    #[error("weights are stored as f32, bf16 or int8 on Neuron, not as {0:?}")]
    Weights(Quant),
    /// Nor such caches.
    #[error("caches are stored as f32, bf16 or int8 on Neuron, not as {0:?}")]
    Kv(KvType),
    /// The program was divided for another number of cores.
    #[error("a program divided over {sharded} cores for a model on {spec}")]
    Degree {
        /// Of the program.
        sharded: usize,
        /// Of the model.
        spec: usize,
    },
    /// More candidates than tokens, or none.
    #[error("{candidates} candidates of {vocab} tokens")]
    Candidates {
        /// Wanted.
        candidates: usize,
        /// There are.
        vocab: usize,
    },
    /// A step that its caches do not hold, or a list that is none of classes.
    #[error("no module has these classes: {0}")]
    Parts(String),
    /// Places in the caches must be integers that f32 holds.
    #[error("caches of {rows} rows of {positions} positions have more than 2^24 places")]
    Places {
        /// Rows.
        rows: usize,
        /// Positions of each.
        positions: usize,
    },
    /// The compiler would not take it.
    #[error("the module breaks a rule of its target: {0}")]
    Verify(Box<VerifyError>),
}

/// Lowers one module.
pub fn lower(sharded: &Sharded, spec: &ModelSpec, module: &ModuleSpec) -> Result<Lowered, LowerError> {
    check(sharded, spec, module)?;
    let mut lowering = Lowering::new(sharded, spec, module);
    lowering.parameters();
    lowering.program();
    let lowered = lowering.finish();
    verify(&lowered.module, spec.target).map_err(|e| LowerError::Verify(Box::new(e)))?;
    Ok(lowered)
}

fn check(sharded: &Sharded, spec: &ModelSpec, module: &ModuleSpec) -> Result<(), LowerError> {
    let vocab = sharded.whole.vocab();
    if matches!(spec.weights, Quant::Int4 | Quant::Auto) {
        return Err(LowerError::Weights(spec.weights));
    }
    if spec.kv == KvType::F16 {
        return Err(LowerError::Kv(spec.kv));
    }
    if sharded.tp != spec.tp {
        return Err(LowerError::Degree { sharded: sharded.tp, spec: spec.tp });
    }
    if !(1..=vocab).contains(&spec.candidates) {
        return Err(LowerError::Candidates { candidates: spec.candidates, vocab });
    }
    module.check_parts().map_err(LowerError::Parts)?;
    for CacheShape { rows, positions } in module.parts.iter().map(|part| part.class) {
        if rows.checked_mul(positions).is_none_or(|places| places > 1 << 24) {
            return Err(LowerError::Places { rows, positions });
        }
    }
    Ok(())
}

/// A module in the making.
struct Lowering<'a> {
    b: Builder,
    sharded: &'a Sharded,
    spec: &'a ModelSpec,
    module: &'a ModuleSpec,
    /// Element type of each weight's values.
    stored: Vec<DType>,
    inputs: Vec<Port<Input>>,
    parameters: HashMap<Input, Array>,
    /// Position of each token, `s32[tokens]`.
    positions: Option<Array>,
    vals: HashMap<Val, Array>,
    /// Split activations that some op wanted whole.
    gathered: HashMap<Val, Array>,
    angles: HashMap<RopeId, Angles>,
    caches: HashMap<(CacheShape, CacheId, CachePart), Array>,
    /// All cores, as a collective names them.
    groups: Vec<Vec<u32>>,
    /// What each router chose.
    shares: Vec<Array>,
}

impl<'a> Lowering<'a> {
    fn new(sharded: &'a Sharded, spec: &'a ModelSpec, module: &'a ModuleSpec) -> Self {
        Lowering {
            b: Builder::with_options(&name(module), options(&spec.profile)),
            sharded,
            spec,
            module,
            stored: weights::stored(&sharded.whole, spec.weights),
            inputs: vec![],
            parameters: HashMap::new(),
            positions: None,
            vals: HashMap::new(),
            gathered: HashMap::new(),
            angles: HashMap::new(),
            caches: HashMap::new(),
            groups: vec![(0..sharded.tp as u32).collect()],
            shares: vec![],
        }
    }

    /// Declares all parameters in the order of the contract: the step's, the caches', the weights'.
    fn parameters(&mut self) {
        let (tokens, outputs) = (self.module.kind.tokens(), self.module.kind.outputs());
        let program = &self.sharded.program;
        self.parameter(Input::Tokens, "tokens".into(), DType::S32, vec![tokens]);
        let decode = matches!(self.module.kind, ModuleKind::Decode { .. });
        if decode {
            self.parameter(Input::Positions, "positions".into(), DType::S32, vec![tokens]);
            self.parameter(Input::Slots, "slots".into(), DType::S32, vec![tokens]);
        } else {
            self.parameter(Input::Start, "start".into(), DType::S32, vec![]);
            self.parameter(Input::Row, "row".into(), DType::S32, vec![]);
        }
        if let ModuleKind::Prefill { .. } = self.module.kind {
            self.parameter(Input::Last, "last".into(), DType::S32, vec![]);
        }
        if program.ropes.iter().any(|table| table.long.is_some()) {
            self.parameter(Input::RopeLen, "rope_len".into(), DType::S32, if decode { vec![tokens] } else { vec![] });
        }
        if self.sharded.tp > 1 {
            self.parameter(Input::Rank, "rank".into(), DType::S32, vec![]);
        }
        if self.chooses() {
            if self.module.biases > 0 {
                let dims = vec![outputs, self.module.biases];
                self.parameter(Input::BiasIds, "bias_ids".into(), DType::S32, dims.clone());
                self.parameter(Input::BiasValues, "bias_values".into(), DType::F32, dims);
            }
            if self.module.mask {
                let dims = vec![outputs, self.sharded.local_vocab() / 32];
                self.parameter(Input::Mask, "mask".into(), DType::U32, dims);
            }
        }
        for (class, cache) in self.classes_and_caches() {
            for (part, dtype, dims) in self.cache_parts(class, cache) {
                let of = if self.module.parts.len() > 1 { format!(".class{}", class.positions) } else { String::new() };
                let name = format!("cache{}{of}.{}", cache.0, part_name(part));
                self.parameter(Input::Cache(class, cache, part), name, dtype, dims);
            }
        }
        for weight in (0..program.weights.len() as u32).map(WeightId) {
            let (dtype, dims) = (self.stored[weight.0 as usize], self.sharded.dims(weight));
            self.parameter(Input::Weight(weight, WeightPart::Values), format!("weight{}", weight.0), dtype, dims);
            if dtype == DType::S8 {
                let (name, dims) = (format!("weight{}.scales", weight.0), self.sharded.scale_dims(weight));
                self.parameter(Input::Weight(weight, WeightPart::Scales), name, DType::F32, dims);
            }
        }
        self.positions = Some(match self.parameters.get(&Input::Positions) {
            Some(&positions) => positions,
            None => {
                let start = self.input(Input::Start);
                let start = self.b.broadcast(start, &[], &[tokens]);
                let tokens = self.b.iota(DType::S32, &[tokens], 0);
                self.b.add(start, tokens)
            }
        });
    }

    fn parameter(&mut self, role: Input, name: String, dtype: DType, dims: Vec<usize>) {
        let val = self.b.parameter(&name, dtype, &dims);
        self.parameters.insert(role, val);
        self.inputs.push(Port { role, dtype, dims });
    }

    /// A parameter of this module.
    fn input(&self, role: Input) -> Array {
        self.parameters[&role]
    }

    fn values(&self, weight: WeightId) -> Array {
        self.input(Input::Weight(weight, WeightPart::Values))
    }

    /// Scales of an int8 weight.
    fn scales(&self, weight: WeightId) -> Option<Array> {
        self.parameters.get(&Input::Weight(weight, WeightPart::Scales)).copied()
    }

    /// Whether it returns candidates, not logits.
    fn chooses(&self) -> bool {
        !matches!(self.module.kind, ModuleKind::Score { .. })
    }

    /// Tokens of each row of a step.
    fn tokens_of_row(&self) -> usize {
        match self.module.kind {
            ModuleKind::Decode { .. } => 1,
            ModuleKind::Prefill { tokens } | ModuleKind::Score { tokens } => tokens,
        }
    }

    /// All caches, class by class.
    fn classes_and_caches(&self) -> Vec<(CacheShape, CacheId)> {
        let caches = || (0..self.sharded.program.caches.len() as u32).map(CacheId);
        self.module.parts.iter().flat_map(|part| caches().map(|cache| (part.class, cache))).collect()
    }

    /// Sum of what all cores have.
    fn all_reduce(&mut self, x: Array) -> Array {
        if self.sharded.tp == 1 { x } else { self.b.all_reduce(x, Binary::Add, &self.groups) }
    }

    /// All cores' columns, one after the other.
    fn all_gather(&mut self, x: Array) -> Array {
        if self.sharded.tp == 1 { x } else { self.b.all_gather(x, 1, &self.groups) }
    }

    /// An activation: of a split one, this core's columns.
    fn val(&self, val: Val) -> Array {
        self.vals[&val]
    }

    /// All columns of an activation.
    fn whole(&mut self, val: Val) -> Array {
        let Some(split) = self.sharded.layouts[val.0 as usize].clone() else { return self.val(val) };
        if let Some(&whole) = self.gathered.get(&val) {
            return whole;
        }
        let all = self.all_gather(self.val(val));
        let parts: Vec<Array> = split.places().into_iter().map(|place| self.b.slice_dim(all, 1, place)).collect();
        let whole = if parts.len() == 1 { parts[0] } else { self.b.concatenate(&parts, 1) };
        self.gathered.insert(val, whole);
        whole
    }

    /// `vector` along the last dimension of `dims`.
    fn along_last(&mut self, vector: Array, dims: &[usize]) -> Array {
        self.b.broadcast(vector, &[dims.len() - 1], dims)
    }

    fn program(&mut self) {
        let program = &self.sharded.program;
        for (index, op) in program.ops.iter().enumerate() {
            let layer = program.layers.iter().position(|range| range.contains(&index));
            self.b.enter(&layer.map_or_else(|| op.name().to_owned(), |l| format!("layers.{l}/{}", op.name())));
            self.op(op);
            self.b.leave();
        }
    }

    fn finish(mut self) -> Lowered {
        let mut results = self.results();
        if self.spec.shares {
            results.extend(self.shares.iter().enumerate().map(|(i, shares)| (Output::Shares(i), *shares)));
        }
        if self.spec.streams {
            for (i, val) in self.sharded.whole.streams().into_iter().enumerate() {
                results.push((Output::Stream(i), self.whole(val)));
            }
        }
        for (class, cache) in self.classes_and_caches() {
            for (part, ..) in self.cache_parts(class, cache) {
                let parameter = self.input(Input::Cache(class, cache, part));
                self.b.alias(results.len(), parameter);
                // A cache that no op writes comes back as it is.
                let written = self.caches.get(&(class, cache, part)).copied().unwrap_or(parameter);
                results.push((Output::Cache(class, cache, part), written));
            }
        }
        let port = |(role, val): &(Output, Array)| Port { role: *role, dtype: val.dtype(), dims: val.dims() };
        let outputs = results.iter().map(port).collect();
        let vals: Vec<Array> = results.into_iter().map(|(_, val)| val).collect();
        Lowered { module: self.b.finish(&vals), inputs: self.inputs, outputs }
    }
}

/// What of a profile the builder and its idioms follow.
pub(super) fn options(profile: &Profile) -> Options {
    Options {
        custom_calls: if profile.top_k == TopK::Custom { [Custom::TopK].into() } else { [].into() },
        one_hot_lookups: profile.lookup == Lookup::OneHot,
        narrow_products: profile.dot_result == DotResult::Operand,
    }
}

/// What the compiler's messages call a module.
fn name(module: &ModuleSpec) -> String {
    let (len, classes) = (module.longest(), module.parts.len());
    match module.kind {
        ModuleKind::Decode { batch } if classes > 1 => format!("decode_{batch}_of_{len}_in_{classes}"),
        ModuleKind::Decode { batch } => format!("decode_{batch}_of_{len}"),
        ModuleKind::Prefill { tokens } => format!("prefill_{tokens}_after_{len}"),
        ModuleKind::Score { tokens } => format!("score_{tokens}_after_{len}"),
    }
}

fn part_name(part: CachePart) -> &'static str {
    match part {
        CachePart::Keys => "keys",
        CachePart::Values => "values",
        CachePart::KeyScales => "key_scales",
        CachePart::ValueScales => "value_scales",
    }
}

#[cfg(test)]
pub(in crate::backend::neuron) mod tests;
