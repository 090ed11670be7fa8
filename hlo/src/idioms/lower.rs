//! Plain modules for custom calls, so that a module with them can be evaluated.

use super::{choose, norm};
use crate::builder::Custom;
use crate::op::CustomCall;
use crate::{ArrayShape, Builder, DType, Module, Shape, Val};

/// A module of plain operations that computes what a custom call does, its parameters the call's operands; None if the
/// target has no lowering here.
///
/// `operands` and `result` must be what the verifier has found right. Choices among more than 2^24 and of more than a
/// thousand have none either: the module would be as long.
pub fn lower(call: &CustomCall, operands: &[ArrayShape], result: &Shape) -> Option<Module> {
    let custom = Custom::from_target(&call.target)?;
    let config = std::str::from_utf8(&call.config).ok().and_then(|text| text.parse::<usize>().ok());
    let choice = matches!(custom, Custom::ArgMax | Custom::TopK);
    if choice && operands.iter().any(|x| !(1..super::MAX_INDEX).contains(&x.elements())) {
        return None;
    }
    let mut b = Builder::new(&call.target);
    let x: Vec<Val> = operands
        .iter()
        .enumerate()
        .map(|(i, shape)| b.parameter(&format!("operand{i}"), shape.dtype(), &shape.dims().to_vec()))
        .collect();
    let x0 = *x.first()?;
    let results = match custom {
        Custom::Silu => vec![super::silu(&mut b, x0)],
        Custom::GeluTanh => vec![super::gelu_tanh(&mut b, x0)],
        Custom::Softmax => vec![norm::softmax(&mut b, x0, config?)],
        Custom::RmsNorm => {
            let [x, gamma, eps] = x[..] else { return None };
            vec![norm::rms_norm_dim(&mut b, x, gamma, eps, config?, result.array()?.dtype())]
        }
        Custom::ArgMax => {
            let id = choose::arg_max(&mut b, x0, config?);
            vec![b.convert(id, DType::U32)]
        }
        Custom::TopK => {
            let (k, last) = (config?, x0.rank().checked_sub(1)?);
            if !(1..=1024).contains(&k) {
                return None;
            }
            let rows: usize = (0..last).map(|d| x0.dim(d)).product();
            let flat = b.reshape(x0, &[rows, x0.dim(last)]);
            let found = choose::top_k(&mut b, flat, k);
            let mut dims = x0.dims();
            dims[last] = k;
            let [values, ids] = found.map(|v| b.reshape(v, &dims));
            vec![values, b.convert(ids, DType::U32)]
        }
    };
    Some(b.finish(&results))
}
