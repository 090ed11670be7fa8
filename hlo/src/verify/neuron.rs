//! neuronx-cc's documented rules.

use std::collections::{HashMap, HashSet};

use super::{Target, VerifyError};
use crate::builder::Custom;
use crate::op::{Combiner, Op};
use crate::{Computation, DType, Data, Id, Instruction, Module, Shape, Tensor};

/// XLA knows none of Neuron's custom calls.
pub(super) fn check_plain(module: &Module) -> Result<(), VerifyError> {
    for i in module.computations.iter().flat_map(|c| &c.instructions) {
        if let Op::CustomCall(call) = &i.op {
            return Err(VerifyError::CustomCall { instruction: i.name.clone(), call: call.target.clone() });
        }
    }
    Ok(())
}

pub(super) fn check(module: &Module, entry: &Computation, target: Target) -> Result<(), VerifyError> {
    let count = module.instructions();
    if count > MAX_INSTRUCTIONS {
        return Err(VerifyError::Instructions { count });
    }
    let combines: HashSet<Id> = module
        .computations
        .iter()
        .filter(|c| Combiner::of(c).is_some_and(|c| c != Combiner::Assign))
        .map(|c| c.id)
        .collect();
    let (mut first, mut last, mut literals) = (i64::MAX, i64::MIN, 0usize);
    for computation in &module.computations {
        let by_id: HashMap<Id, &Instruction> = computation.instructions.iter().map(|i| (i.id, i)).collect();
        for i in &computation.instructions {
            (first, last) = (first.min(i.id.0), last.max(i.id.0));
            if let Op::Constant(literal) = &i.op {
                literals = literals.saturating_add(literal.shape().bytes());
                check_constant(i, literal, target)?;
            }
            check_types(i, target)?;
            check_index(i, &by_id)?;
            check_called(i, &combines)?;
            if let Op::CustomCall(call) = &i.op {
                check_custom_call(i, call, &by_id)?;
            }
        }
    }
    // An instruction takes some hundred bytes; literals are what makes a module large.
    if literals.saturating_add(count.saturating_mul(128)) >= MAX_BYTES {
        return Err(VerifyError::Size { literals });
    }
    if last - first >= count as i64 {
        return Err(VerifyError::IdGap { first: Id(first), last: Id(last), count });
    }
    check_results(module, entry)
}

fn check_types(i: &Instruction, target: Target) -> Result<(), VerifyError> {
    for part in i.shape.parts() {
        // No target of ours is past trn2, where F8E4M3FN begins.
        if matches!(part.dtype(), DType::S64 | DType::F8E4M3FN) {
            return Err(VerifyError::Type { instruction: i.name.clone(), dtype: part.dtype(), target });
        }
    }
    Ok(())
}

fn check_constant(i: &Instruction, literal: &Tensor, target: Target) -> Result<(), VerifyError> {
    let infinite = match literal.data() {
        Data::F32(v) => v.iter().any(|x| x.is_infinite()),
        Data::BF16(v) => v.iter().any(|x| x.is_infinite()),
        Data::F16(v) => v.iter().any(|x| x.is_infinite()),
        _ => false,
    };
    if infinite && matches!(target, Target::Trn1 | Target::Inf2) {
        return Err(VerifyError::InfiniteConstant { instruction: i.name.clone() });
    }
    Ok(())
}

/// Integer sums that the compiler refuses or takes through f32; `combines` are the computations that are no assignment.
fn check_called(i: &Instruction, combines: &HashSet<Id>) -> Result<(), VerifyError> {
    let integer = i.shape.array().is_some_and(|s| s.dtype().is_integer());
    match &i.op {
        Op::AllReduce { .. } | Op::ReduceScatter { .. } if integer => {
            Err(VerifyError::IntegerCollective { instruction: i.name.clone() })
        }
        Op::Scatter(d) if integer && combines.contains(&d.to_apply) => {
            Err(VerifyError::IntegerScatter { instruction: i.name.clone() })
        }
        _ => Ok(()),
    }
}

/// An index that is known to be out of range is a compile error; one that turns out to be is a run-time error.
fn check_index(i: &Instruction, by_id: &HashMap<Id, &Instruction>) -> Result<(), VerifyError> {
    let operand = |n: usize| i.operands.get(n).and_then(|id| by_id.get(id)).copied();
    let (dim, window) = match &i.op {
        Op::Gather(d) if d.start_index_map.len() == 1 => (d.start_index_map[0], d.slice_sizes[d.start_index_map[0]]),
        Op::Scatter(d) if d.scatter_dims_to_operand_dims.len() == 1 => {
            let dim = d.scatter_dims_to_operand_dims[0];
            let inserted = d.inserted_window_dims.iter().filter(|&&w| w < dim).count();
            let window = if d.inserted_window_dims.contains(&dim) {
                Some(1)
            } else {
                let update = operand(2).and_then(|u| u.shape.array());
                update.and_then(|u| d.update_window_dims.get(dim - inserted).map(|&w| u.dim(w)))
            };
            (dim, window.unwrap_or(1))
        }
        _ => return Ok(()),
    };
    let (Some(table), Some(mut indices)) = (operand(0).and_then(|t| t.shape.array()), operand(1)) else {
        return Ok(());
    };
    while let Op::Reshape | Op::Broadcast(_) | Op::Copy | Op::Convert = indices.op {
        let Some(source) = indices.operands.first().and_then(|id| by_id.get(id)) else { break };
        indices = source;
    }
    let range = match (&indices.op, &indices.shape) {
        (Op::Iota(along), Shape::Array(shape)) if shape.elements() > 0 => Some((0, shape.dim(*along) as i64 - 1)),
        (Op::Constant(literal), _) => match literal.data() {
            Data::S32(v) => v.iter().min().zip(v.iter().max()).map(|(&a, &b)| (a.into(), b.into())),
            Data::U32(v) => v.iter().min().zip(v.iter().max()).map(|(&a, &b)| (a.into(), b.into())),
            _ => None,
        },
        _ => None,
    };
    let most = table.dim(dim) as i64 - window as i64;
    match range {
        Some((least, _)) if least < 0 => Err(VerifyError::Index { instruction: i.name.clone(), index: least, most }),
        Some((_, index)) if index > most => Err(VerifyError::Index { instruction: i.name.clone(), index, most }),
        _ => Ok(()),
    }
}

fn check_custom_call(
    i: &Instruction,
    call: &crate::op::CustomCall,
    by_id: &HashMap<Id, &Instruction>,
) -> Result<(), VerifyError> {
    if !TARGETS.contains(&call.target.as_str()) {
        return Err(VerifyError::CustomCall { instruction: i.name.clone(), call: call.target.clone() });
    }
    if call.api_version != 0 {
        return Err(VerifyError::ApiVersion { instruction: i.name.clone(), version: call.api_version });
    }
    let operand = i.operands.first().and_then(|id| by_id.get(id)).and_then(|o| o.shape.array());
    let last = operand.and_then(|x| x.rank().checked_sub(1).map(|d| x.dim(d)));
    match (Custom::from_target(&call.target), last) {
        (Some(Custom::TopK), Some(len)) if !len.is_multiple_of(8) => {
            Err(VerifyError::TopKLen { instruction: i.name.clone(), len })
        }
        _ => Ok(()),
    }
}

/// Inputs and outputs live in separate memory, unless they are aliased.
fn check_results(module: &Module, entry: &Computation) -> Result<(), VerifyError> {
    let Some(root) = entry.root() else { return Ok(()) };
    let numbers: HashMap<Id, u32> = entry
        .instructions
        .iter()
        .filter_map(|i| if let Op::Parameter(n) = i.op { Some((i.id, n)) } else { None })
        .collect();
    let results = match root.op {
        Op::Tuple => root.operands.iter().copied().enumerate().map(|(o, id)| (Some(o), id)).collect(),
        _ => vec![(None, root.id)],
    };
    let aliases: HashSet<(Option<usize>, usize)> = module.aliases.iter().map(|a| (a.output, a.parameter)).collect();
    for (output, id) in results {
        let Some(&number) = numbers.get(&id) else { continue };
        if !aliases.contains(&(output, number as usize)) {
            return Err(VerifyError::BareParameter { output: output.unwrap_or(0), parameter: number as usize });
        }
    }
    Ok(())
}

/// About the cap of EBVF030, EVRF007 and EXTP004 (aws-neuron-sdk issue 987).
const MAX_INSTRUCTIONS: usize = 5_000_000;

/// What one protobuf message may hold.
const MAX_BYTES: usize = (1 << 31) - 1;

/// What the compiler knows by name (EVRF015, EHCA005), without what begins with trn3.
const TARGETS: [&str; 29] = [
    "AwsNeuronErf",
    "AwsNeuronGelu",
    "AwsNeuronGeluApprxTanh",
    "AwsNeuronGeluBackward",
    "AwsNeuronSilu",
    "AwsNeuronSiluBackward",
    "AwsNeuronRmsNorm",
    "AwsNeuronSoftmax",
    "AwsNeuronSoftmaxBackward",
    "AwsNeuronCollectiveMatmul",
    "AwsNeuronIntMatmult",
    "AwsNeuronArgMax",
    "AwsNeuronArgMin",
    "AwsNeuronTopK",
    "AwsNeuronDropoutMaskV1",
    "AwsNeuronCustomNativeKernel",
    "AwsNeuronCustomOp",
    "AwsNeuronDevicePrint",
    "AwsNeuronLNCShardingConstraint",
    "AwsNeuronTransferWithStaticRing",
    "AwsNeuronModuleMarkerStart-Forward",
    "AwsNeuronModuleMarkerEnd-Forward",
    "AwsNeuronModuleMarkerStart-Backward",
    "AwsNeuronModuleMarkerEnd-Backward",
    "ResizeNearest",
    "ResizeBilinear",
    "ResizeNearestGrad",
    "NeuronBoundaryMarker-Start",
    "NeuronBoundaryMarker-End",
];
