//! One variant per rule.

use crate::infer::ShapeError;
use crate::{ArrayShape, DType, Id, Shape, Target};

/// Why a module is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // fields are what the message says they are
pub enum VerifyError {
    /// XLA: module.name must not be empty.
    #[error("the module has no name")]
    ModuleName,
    /// XLA: entry_computation_id names a computation.
    #[error("no computation has the entry's id {id}")]
    Entry { id: Id },
    /// XLA: names of computations are there and differ.
    #[error("computation name `{name}` is empty or repeated")]
    ComputationName { name: String },
    /// XLA: ids of computations differ.
    #[error("computation `{computation}` has an id that another has: {id}")]
    ComputationId { computation: String, id: Id },
    /// XLA: root_id names an instruction of the computation.
    #[error("computation `{computation}` has no instruction with its root's id {id}")]
    Root { computation: String, id: Id },
    /// Ours, so that nothing that walks calls can be made to recurse without end.
    #[error("computation `{computation}` calls too deep")]
    CallDepth { computation: String },
    /// XLA: parameter numbers are dense.
    #[error("parameter numbers of computation `{computation}` are not 0, 1, 2, …")]
    ParameterNumbers { computation: String },
    /// XLA: names of instructions are there and differ in the whole module.
    #[error("instruction name `{name}` (id {id}) is empty or repeated")]
    InstructionName { name: String, id: Id },
    /// Ids differ in the whole module.
    #[error("instruction `{instruction}` has an id that another has: {id}")]
    InstructionId { instruction: String, id: Id },
    /// XLA throws, and neuronx-cc died, on an id that is no 32-bit integer.
    #[error("instruction `{instruction}`: id {id} is not in 0..2^31")]
    IdRange { instruction: String, id: Id },
    /// Ours: ids come from one counter.
    #[error("{count} instructions have ids from {first} to {last}: not dense")]
    IdGap { first: Id, last: Id, count: usize },
    /// XLA: operands come before their users, in the same computation.
    #[error("instruction `{instruction}`: operand {operand} does not come before it in its computation")]
    OperandOrder { instruction: String, operand: Id },
    /// XLA: callees come first.
    #[error("instruction `{instruction}` calls computation {callee}, which does not come before its own")]
    CalleeOrder { instruction: String, callee: Id },
    /// XLA: what is called takes and gives what the caller does.
    #[error("instruction `{instruction}` cannot call `{callee}`: needs {what}")]
    Callee { instruction: String, callee: String, what: &'static str },
    /// XLA: operands fit the operation.
    #[error("instruction `{instruction}`: {source}")]
    Shape { instruction: String, source: Box<ShapeError> },
    /// XLA infers every shape again.
    #[error("instruction `{instruction}` says {declared}, but it is {inferred}")]
    Result { instruction: String, declared: Shape, inferred: Shape },
    /// XLA: host_program_shape is the entry's.
    #[error("the parameters of host_program_shape are not the entry's")]
    SignatureParameters,
    /// XLA: as many names as parameters.
    #[error("{names} parameter names for {parameters} parameters")]
    ParameterNames { names: usize, parameters: usize },
    /// XLA: host_program_shape is the entry's.
    #[error("the result of host_program_shape is not the entry's")]
    SignatureResult,
    /// XLA: an alias is of a result.
    #[error("an alias is of result {output:?}, which is none")]
    AliasOutput { output: Option<usize> },
    /// XLA: an alias is of a parameter.
    #[error("an alias is of parameter {parameter}, which is none or no array")]
    AliasParameter { parameter: usize },
    /// XLA: both ends have one shape.
    #[error("result {output:?} is {result}, its alias parameter {parameter} is {from}")]
    AliasShape { output: Option<usize>, parameter: usize, result: ArrayShape, from: ArrayShape },
    /// XLA: one tensor, one alias.
    #[error("result {output:?} or parameter {parameter} is aliased twice")]
    AliasTwice { output: Option<usize>, parameter: usize },
    /// Groups are disjoint and of one size.
    #[error("instruction `{instruction}`: replica groups are empty, overlap, or differ in size")]
    Groups { instruction: String },
    /// Ours: ranks are replicas, and a channel ties partitions.
    #[error("instruction `{instruction}`: a collective of replicas has no channel_id")]
    Channel { instruction: String },
    /// XLA knows no custom calls of Neuron; neuronx-cc only its own (EVRF015).
    #[error("instruction `{instruction}`: unknown custom call `{call}`")]
    CustomCall { instruction: String, call: String },
    /// AWS's modules leave it unset.
    #[error("instruction `{instruction}`: custom_call_api_version is {version}, not 0")]
    ApiVersion { instruction: String, version: i32 },
    /// EVRF013 and transformers-neuronx: the last dimension of TopK is padded to a multiple of 8.
    #[error("instruction `{instruction}`: top-k of {len} values, not a multiple of 8")]
    TopKLen { instruction: String, len: usize },
    /// 64-bit integers become 32-bit; F8E4M3FN is refused before trn3 (EVRF051).
    #[error("instruction `{instruction}`: {target} has no {dtype}")]
    Type { instruction: String, dtype: DType, target: Target },
    /// -inf can become NaN in a product on trn1 (`--enable-saturate-infinity`).
    #[error("instruction `{instruction}`: an infinite constant; use a finite one")]
    InfiniteConstant { instruction: String },
    /// EVRF061, EVRF063: sums of integers over replicas.
    #[error("instruction `{instruction}`: a collective that combines integers; send them as f32 or gather them")]
    IntegerCollective { instruction: String },
    /// EVRF060: a scatter that adds integers.
    #[error("instruction `{instruction}`: a scatter that combines integers")]
    IntegerScatter { instruction: String },
    /// EVRF031, EVRF056: an index that is known to be out of range.
    #[error("instruction `{instruction}`: index {index} is not in 0..={most}")]
    Index { instruction: String, index: i64, most: i64 },
    /// Inputs and outputs live in separate memory.
    #[error("result {output} is parameter {parameter} itself: copy it or alias it")]
    BareParameter { output: usize, parameter: usize },
    /// EBVF030, EVRF007, EXTP004.
    #[error("{count} instructions: the compiler takes about 5 million")]
    Instructions { count: usize },
    /// Protobuf: 2 GB (aws-neuron-sdk issue 987).
    #[error("{literals} bytes of literals: a module has at most 2 GB, weights are parameters")]
    Size { literals: usize },
}
