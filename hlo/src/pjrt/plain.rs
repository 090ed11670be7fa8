//! A module that XLA on a CPU takes: the same values, without what it cannot do.
//!
//! * XLA knows none of Neuron's custom calls: each becomes a call of a computation that does the same in plain operations.
//!   Calls that are alike share it.
//! * `clamp` with scalar bounds of an array is right HLO, and the plugin that was tried (C API 0.115) fails to compile it, or
//!   aborts ("xtile.extract", "Check failed: StaticExtentProduct"): the bounds are broadcast.
//!
//! A module with neither is returned as it is, so that the plugin sees exactly what was lowered.
#![deny(unsafe_code)]

use std::borrow::Cow;
use std::collections::HashMap;

use super::PjrtError;
use crate::op::{CustomCall, Op};
use crate::{ArrayShape, Computation, Id, Instruction, Module, Shape};

/// The same module in plain operations. Operands must be of the shapes that the verifier asks for; what has others is left.
pub(super) fn plain(module: &Module) -> Result<Cow<'_, Module>, PjrtError> {
    let all = || module.computations.iter().flat_map(|c| &c.instructions);
    let shapes: HashMap<Id, &Shape> = all().map(|i| (i.id, &i.shape)).collect();
    let custom = all().any(|i| matches!(i.op, Op::CustomCall(_)));
    if !custom && !all().any(|i| is_narrow(i, |id| shapes.get(&id).and_then(|s| s.array()))) {
        return Ok(Cow::Borrowed(module));
    }
    let mut next = Next {
        instruction: all().map(|i| i.id.0).max().unwrap_or(0) + 1,
        computation: module.computations.iter().map(|c| c.id.0).max().unwrap_or(0) + 1,
    };
    let mut module = module.clone();
    let (mut added, mut size): (Vec<Computation>, usize) = (vec![], 0);
    let mut alike: HashMap<(CustomCall, Vec<ArrayShape>, Vec<ArrayShape>), Id> = HashMap::new();
    for i in module.computations.iter_mut().flat_map(|c| &mut c.instructions) {
        let Op::CustomCall(call) = &i.op else { continue };
        let operands: Vec<ArrayShape> =
            i.operands.iter().filter_map(|id| shapes.get(id).and_then(|s| s.array())).collect();
        let key = (call.clone(), operands, i.shape.parts().to_vec());
        let callee = match alike.get(&key) {
            Some(&callee) => callee,
            None => {
                let lowered = crate::idioms::lower(call, &key.1, &i.shape).ok_or_else(|| PjrtError::CustomCall {
                    instruction: i.name.clone(),
                    target: call.target.clone(),
                })?;
                size += lowered.instructions();
                if size > MAX_LOWERED {
                    return Err(PjrtError::Lowered { limit: MAX_LOWERED });
                }
                let callee = next.take_in(lowered, &i.shape, &mut added);
                alike.insert(key, callee);
                callee
            }
        };
        i.op = Op::Call(callee);
    }
    // Callees first.
    added.append(&mut module.computations);
    module.computations = added;
    module.computations.iter_mut().for_each(|computation| next.widen(computation));
    Ok(Cow::Owned(module))
}

/// Whether it is a clamp of an array with a scalar bound.
fn is_narrow(i: &Instruction, shape: impl Fn(Id) -> Option<ArrayShape>) -> bool {
    let is_array = i.shape.array().is_some_and(|s| s.rank() > 0);
    i.op == Op::Clamp && is_array && i.operands.iter().any(|&id| shape(id).is_some_and(|s| s.rank() == 0))
}

/// Numbers that are free.
struct Next {
    instruction: i64,
    computation: i64,
}

impl Next {
    /// Appends a module's computations under new numbers and names; gives the one to call for a result of this shape.
    fn take_in(&mut self, module: Module, result: &Shape, to: &mut Vec<Computation>) -> Id {
        let instructions = module.computations.iter().flat_map(|c| &c.instructions);
        let instructions: HashMap<Id, Id> = instructions.map(|i| i.id).zip((self.instruction..).map(Id)).collect();
        let computations: HashMap<Id, Id> =
            module.computations.iter().map(|c| c.id).zip((self.computation..).map(Id)).collect();
        self.instruction += instructions.len() as i64;
        self.computation += computations.len() as i64;
        // The builder has numbered each once, and refers to what is there.
        let moved = |map: &HashMap<Id, Id>, id: Id| map.get(&id).copied().unwrap_or(id);
        let entry = module.entry;
        for mut computation in module.computations {
            if computation.id == entry && result.array().is_some() {
                untuple(&mut computation);
            }
            computation.id = moved(&computations, computation.id);
            computation.name = format!("plain.{}.{}", computation.id, computation.name);
            computation.root = moved(&instructions, computation.root);
            for i in &mut computation.instructions {
                i.id = moved(&instructions, i.id);
                i.name = format!("plain.{}.{}", i.id, i.op.name());
                i.operands.iter_mut().for_each(|id| *id = moved(&instructions, *id));
                renumber(i, |id| moved(&computations, id));
            }
            to.push(computation);
        }
        moved(&computations, entry)
    }

    /// Broadcasts the scalar bounds of clamps.
    fn widen(&mut self, computation: &mut Computation) {
        let arrays = computation.instructions.iter().filter_map(|i| Some((i.id, i.shape.array()?)));
        let shapes: HashMap<Id, ArrayShape> = arrays.collect();
        let shape = |id: Id| shapes.get(&id).copied();
        let mut instructions = Vec::with_capacity(computation.instructions.len());
        for mut i in std::mem::take(&mut computation.instructions) {
            if is_narrow(&i, shape) {
                for operand in i.operands.iter_mut().filter(|id| shape(**id).is_some_and(|s| s.rank() == 0)) {
                    let id = Id(self.instruction);
                    self.instruction += 1;
                    instructions.push(Instruction {
                        name: format!("bound.{id}"),
                        id,
                        shape: i.shape.clone(),
                        operands: vec![*operand],
                        op: Op::Broadcast(vec![]),
                        scope: i.scope.clone(),
                        attributes: Default::default(),
                    });
                    *operand = id;
                }
            }
            instructions.push(i);
        }
        computation.instructions = instructions;
    }
}

/// Makes the only part of the root's tuple the root.
fn untuple(computation: &mut Computation) {
    let root = computation.root;
    let Some(place) = computation.instructions.iter().position(|i| i.id == root) else { return };
    if let (Op::Tuple, &[only]) = (&computation.instructions[place].op, &computation.instructions[place].operands[..]) {
        computation.instructions.remove(place);
        computation.root = only;
    }
}

fn renumber(i: &mut Instruction, moved: impl Fn(Id) -> Id) {
    match &mut i.op {
        Op::Reduce { to_apply: id, .. }
        | Op::Sort { comparator: id, .. }
        | Op::AllReduce { to_apply: id, .. }
        | Op::ReduceScatter { to_apply: id, .. }
        | Op::Call(id) => *id = moved(*id),
        Op::Scatter(dims) => dims.to_apply = moved(dims.to_apply),
        _ => {}
    }
}

/// As many as the evaluator takes.
const MAX_LOWERED: usize = 1 << 18;
