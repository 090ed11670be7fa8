//! Operations that neuronx-cc knows by name.
//!
//! Operand order and argument are those of transformers-neuronx (`hlo.py`, `activations.py`). Each has a lowering to
//! plain operations in [`crate::idioms`]; which of the two an idiom emits is an option, because whether the named one is
//! better is known on the device only.

use super::{Builder, Val};
use crate::op::{CustomCall, Op};
use crate::{ArrayShape, DType};

/// A custom call that has a plain lowering beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Custom {
    /// `AwsNeuronTopK`.
    TopK,
    /// `AwsNeuronArgMax`.
    ArgMax,
    /// `AwsNeuronRmsNorm`.
    RmsNorm,
    /// `AwsNeuronSoftmax`.
    Softmax,
    /// `AwsNeuronSilu`.
    Silu,
    /// `AwsNeuronGeluApprxTanh`.
    GeluTanh,
}

impl Custom {
    /// Every one.
    pub const ALL: [Custom; 6] =
        [Custom::TopK, Custom::ArgMax, Custom::RmsNorm, Custom::Softmax, Custom::Silu, Custom::GeluTanh];

    /// Its name for the compiler.
    pub fn target(self) -> &'static str {
        match self {
            Custom::TopK => "AwsNeuronTopK",
            Custom::ArgMax => "AwsNeuronArgMax",
            Custom::RmsNorm => "AwsNeuronRmsNorm",
            Custom::Softmax => "AwsNeuronSoftmax",
            Custom::Silu => "AwsNeuronSilu",
            Custom::GeluTanh => "AwsNeuronGeluApprxTanh",
        }
    }

    /// The one of this name.
    pub fn from_target(target: &str) -> Option<Custom> {
        Custom::ALL.into_iter().find(|c| c.target() == target)
    }
}

impl Builder {
    /// Whether an idiom should emit this custom call.
    pub fn uses(&self, custom: Custom) -> bool {
        self.options.custom_calls.contains(&custom)
    }

    /// A custom call with one result. The shape is checked for the targets of [`Custom`].
    #[track_caller]
    pub fn custom_call(&mut self, target: &str, operands: &[Val], config: &str, result: ArrayShape) -> Val {
        self.array(custom(target, config), operands, result)
    }

    /// `AwsNeuronTopK` of the last dimension, which must be a multiple of 8: the k largest and their places as u32.
    #[track_caller]
    pub(crate) fn custom_top_k(&mut self, x: Val, k: usize) -> [Val; 2] {
        let parts = self.tuple_parts(custom(Custom::TopK.target(), &k.to_string()), &[x], vec![]);
        let parts: Result<[Val; 2], _> = parts.try_into();
        parts.expect("inferred as a pair")
    }

    /// `AwsNeuronArgMax`: the place of the largest along `dim`, as u32.
    #[track_caller]
    pub(crate) fn custom_arg_max(&mut self, x: Val, dim: usize) -> Val {
        let scalar = ArrayShape::scalar(DType::U32);
        self.custom_call(Custom::ArgMax.target(), &[x], &dim.to_string(), scalar)
    }
}

fn custom(target: &str, config: &str) -> Op {
    Op::CustomCall(CustomCall { target: target.to_owned(), config: config.as_bytes().to_vec(), api_version: 0 })
}
