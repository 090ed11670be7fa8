//! Operations over replicas: each takes all replicas' arrays and gives all replicas' results.

use super::elementwise::binary;
use super::movement::{concatenate, slice};
use super::{EvalError, convert::convert};
use crate::op::{Collective, Combiner, Op, SliceDim};
use crate::{DType, Instruction, Tensor};

pub(super) fn run(i: &Instruction, inputs: &[Tensor], combiner: Option<Combiner>) -> Result<Vec<Tensor>, EvalError> {
    let bad = || EvalError::Replicas { instruction: i.name.clone(), replicas: inputs.len() };
    let (Some(group), Some(shape)) = (i.op.collective(), i.shape.array()) else {
        unreachable!("{} is no collective of arrays", i.name) // verified
    };
    if inputs.is_empty() {
        return Ok(vec![]);
    }
    let mut results: Vec<Option<Tensor>> = vec![None; inputs.len()];
    for replicas in groups(group, inputs.len()) {
        let parts: Option<Vec<Tensor>> = replicas.iter().map(|&r| inputs.get(r).cloned()).collect();
        let parts = parts.ok_or_else(bad)?;
        let whole = match &i.op {
            Op::AllGather { dim, .. } => {
                if shape.dim(*dim) != parts.iter().map(|p| p.shape().dim(*dim)).sum::<usize>() {
                    return Err(bad());
                }
                concatenate(&parts, *dim, shape)
            }
            _ => combine(parts, combiner),
        };
        for (place, &replica) in replicas.iter().enumerate() {
            results[replica] = Some(match &i.op {
                Op::ReduceScatter { dim, .. } => {
                    let size = shape.dim(*dim);
                    if size * replicas.len() != whole.shape().dim(*dim) {
                        return Err(bad());
                    }
                    let range = |d| {
                        let start = if d == *dim { place * size } else { 0 };
                        SliceDim { start, limit: start + shape.dim(d), stride: 1 }
                    };
                    slice(&whole, &(0..shape.rank()).map(range).collect::<Vec<_>>(), shape)
                }
                _ => whole.clone(),
            });
        }
    }
    results.into_iter().map(|r| r.ok_or_else(bad)).collect()
}

/// Narrow floats in f32, in the order of the group.
fn combine(parts: Vec<Tensor>, combiner: Option<Combiner>) -> Tensor {
    let Some(Combiner::Binary(op)) = combiner else { unreachable!("verified: a collective combines") };
    let shape = parts[0].shape();
    let wide = |x: Tensor| if shape.dtype().is_float() { convert(x, shape.with_dtype(DType::F32)) } else { x };
    let mut parts = parts.into_iter().map(wide);
    let first = parts.next().unwrap_or_else(|| unreachable!("verified: a group is not empty"));
    convert(parts.fold(first, |sum, part| binary(op, sum, &part)), shape)
}

fn groups(group: &Collective, replicas: usize) -> Vec<Vec<usize>> {
    if group.groups.is_empty() {
        return vec![(0..replicas).collect()];
    }
    group.groups.iter().map(|g| g.iter().map(|&r| r as usize).collect()).collect()
}
