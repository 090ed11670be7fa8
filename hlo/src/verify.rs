//! What a module must be: for XLA, and for neuronx-cc on a chip.
//!
//! neuronx-cc runs XLA's verifier on its input, so [`Target::Xla`]'s rules hold for every target; they were found by
//! clearing one field at a time and asking XLA. The rest are neuronx-cc's documented limits (aws-neuron-sdk,
//! `compiler/error-codes/`); each variant of [`VerifyError`] names its page. A pass is no promise that the compiler takes
//! the module: its list of operators is not public.

mod error;
mod neuron;

pub use error::VerifyError;

use std::collections::{HashMap, HashSet};

use crate::infer::infer;
use crate::op::{Combiner, Direction, Op, comparator};
use crate::{ArrayShape, Computation, Id, Instruction, Module, Shape};

/// Who is to take the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// XLA itself: no custom calls.
    Xla,
    /// neuronx-cc for Inferentia2.
    Inf2,
    /// neuronx-cc for Trainium1.
    Trn1,
    /// neuronx-cc for Trainium2.
    Trn2,
}

impl Target {
    /// Every one.
    pub const ALL: [Target; 4] = [Target::Xla, Target::Inf2, Target::Trn1, Target::Trn2];

    /// Its name for `neuronx-cc --target`.
    pub fn name(self) -> &'static str {
        match self {
            Target::Xla => "xla",
            Target::Inf2 => "inf2",
            Target::Trn1 => "trn1",
            Target::Trn2 => "trn2",
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Checks every rule of the target; the error is the first one broken.
pub fn verify(module: &Module, target: Target) -> Result<(), VerifyError> {
    if module.name.is_empty() {
        return Err(VerifyError::ModuleName);
    }
    let mut names = Names::default();
    let mut earlier: HashMap<Id, Callee<'_>> = HashMap::new();
    for computation in &module.computations {
        let depth = check_computation(computation, &earlier, &mut names)?;
        if depth > MAX_CALL_DEPTH {
            return Err(VerifyError::CallDepth { computation: computation.name.clone() });
        }
        if earlier.insert(computation.id, Callee::new(computation, depth)).is_some() {
            return Err(VerifyError::ComputationId { computation: computation.name.clone(), id: computation.id });
        }
    }
    let entry = earlier.get(&module.entry).ok_or(VerifyError::Entry { id: module.entry })?.computation;
    check_signature(module, entry)?;
    check_aliases(module)?;
    match target {
        Target::Xla => neuron::check_plain(module),
        _ => neuron::check(module, entry, target),
    }
}

#[derive(Default)]
struct Names<'a> {
    computations: HashSet<&'a str>,
    instructions: HashSet<&'a str>,
    ids: HashSet<Id>,
}

/// What a caller must know of a computation, found once: there may be many callers.
struct Callee<'a> {
    computation: &'a Computation,
    /// Calls below it, itself included.
    depth: usize,
    /// In order of their numbers, which are dense.
    parameters: Vec<&'a Shape>,
    result: Option<&'a Shape>,
    combiner: Option<Combiner>,
    order: Option<Direction>,
}

impl<'a> Callee<'a> {
    fn new(computation: &'a Computation, depth: usize) -> Self {
        let mut parameters: Vec<(u32, &Shape)> = vec![];
        for i in &computation.instructions {
            if let Op::Parameter(number) = i.op {
                parameters.push((number, &i.shape));
            }
        }
        parameters.sort_by_key(|&(number, _)| number);
        Callee {
            computation,
            depth,
            parameters: parameters.into_iter().map(|(_, shape)| shape).collect(),
            result: computation.root().map(|r| &r.shape),
            combiner: Combiner::of(computation),
            order: comparator(computation),
        }
    }
}

/// Returns the depth of calls.
fn check_computation<'a>(
    computation: &'a Computation,
    earlier: &HashMap<Id, Callee<'_>>,
    names: &mut Names<'a>,
) -> Result<usize, VerifyError> {
    if computation.name.is_empty() || !names.computations.insert(&computation.name) {
        return Err(VerifyError::ComputationName { name: computation.name.clone() });
    }
    let mut shapes: HashMap<Id, &Shape> = HashMap::new();
    let mut parameters = vec![];
    let mut depth = 1;
    for i in &computation.instructions {
        let instruction = || i.name.clone();
        if i.name.is_empty() || !names.instructions.insert(&i.name) {
            return Err(VerifyError::InstructionName { name: i.name.clone(), id: i.id });
        }
        if !(0..MAX_ID).contains(&i.id.0) {
            return Err(VerifyError::IdRange { instruction: instruction(), id: i.id });
        }
        if !names.ids.insert(i.id) {
            return Err(VerifyError::InstructionId { instruction: instruction(), id: i.id });
        }
        if let Op::Parameter(number) = i.op {
            parameters.push(number);
        }
        let mut operands = vec![];
        for id in &i.operands {
            let shape = shapes.get(id).copied();
            operands.push(shape.ok_or(VerifyError::OperandOrder { instruction: instruction(), operand: *id })?);
        }
        if let Some(id) = i.op.called() {
            let callee = earlier.get(&id).ok_or(VerifyError::CalleeOrder { instruction: instruction(), callee: id })?;
            depth = depth.max(callee.depth + 1);
            check_callee(i, &operands, callee)?;
        }
        check_groups(i)?;
        let inferred = infer(&i.op, &operands, &i.shape);
        let inferred =
            inferred.map_err(|source| VerifyError::Shape { instruction: instruction(), source: Box::new(source) })?;
        if inferred != i.shape {
            return Err(VerifyError::Result { instruction: instruction(), declared: i.shape.clone(), inferred });
        }
        shapes.insert(i.id, &i.shape);
    }
    if !shapes.contains_key(&computation.root) {
        return Err(VerifyError::Root { computation: computation.name.clone(), id: computation.root });
    }
    parameters.sort_unstable();
    if !parameters.iter().copied().eq(0..parameters.len() as u32) {
        return Err(VerifyError::ParameterNumbers { computation: computation.name.clone() });
    }
    Ok(depth)
}

fn check_callee(i: &Instruction, operands: &[&Shape], callee: &Callee<'_>) -> Result<(), VerifyError> {
    let bad = |what| VerifyError::Callee { instruction: i.name.clone(), callee: callee.computation.name.clone(), what };
    let scalar = |shape: &Shape| shape.array().map(|a| Shape::from(ArrayShape::scalar(a.dtype())));
    match &i.op {
        Op::Call(_) => {
            if callee.parameters != operands || callee.result != Some(&i.shape) {
                return Err(bad("other parameters or another result"));
            }
        }
        Op::Sort { .. } => {
            if !matches!(callee.order, Some(Direction::Lt | Direction::Le | Direction::Gt | Direction::Ge)) {
                return Err(bad("a comparison of two keys by LT, LE, GT or GE"));
            }
            let want: Option<Vec<Shape>> = operands.iter().flat_map(|s| [scalar(s), scalar(s)]).collect();
            if want.is_none_or(|want| !callee.parameters.iter().copied().eq(want.iter())) {
                return Err(bad("two scalars per operand"));
            }
        }
        op => {
            let assigns = callee.combiner == Some(Combiner::Assign);
            if callee.combiner.is_none() || (assigns && !matches!(op, Op::Scatter(_))) {
                return Err(bad("two values combined by one operation"));
            }
            let want = operands.first().and_then(|s| scalar(s));
            if want.is_none()
                || callee.parameters.len() != 2
                || callee.parameters.iter().any(|p| Some(*p) != want.as_ref())
            {
                return Err(bad("two scalars of the operand's type"));
            }
        }
    }
    Ok(())
}

fn check_groups(i: &Instruction) -> Result<(), VerifyError> {
    let Some(group) = i.op.collective() else { return Ok(()) };
    if group.channel_id != 0 {
        return Err(VerifyError::Channel { instruction: i.name.clone() });
    }
    let mut seen = HashSet::new();
    let size = group.groups.first().map_or(0, Vec::len);
    for replicas in &group.groups {
        if replicas.is_empty() || replicas.len() != size || !replicas.iter().all(|r| seen.insert(r)) {
            return Err(VerifyError::Groups { instruction: i.name.clone() });
        }
    }
    Ok(())
}

fn check_signature(module: &Module, entry: &Computation) -> Result<(), VerifyError> {
    let signature = &module.signature;
    let mut shapes = vec![None; signature.parameters.len()];
    let mut count = 0;
    for i in &entry.instructions {
        if let Op::Parameter(number) = i.op {
            count += 1;
            if let Some(slot) = shapes.get_mut(number as usize) {
                *slot = Some(&i.shape);
            }
        }
    }
    if count != shapes.len() || !signature.parameters.iter().map(Some).eq(shapes) {
        return Err(VerifyError::SignatureParameters);
    }
    if signature.parameter_names.len() != count {
        return Err(VerifyError::ParameterNames { names: signature.parameter_names.len(), parameters: count });
    }
    if signature.result.as_ref() != entry.root().map(|r| &r.shape) {
        return Err(VerifyError::SignatureResult);
    }
    Ok(())
}

fn check_aliases(module: &Module) -> Result<(), VerifyError> {
    let (mut outputs, mut parameters) = (HashSet::new(), HashSet::new());
    for alias in &module.aliases {
        let (output, parameter) = (alias.output, alias.parameter);
        let result = match (output, &module.signature.result) {
            (None, Some(shape @ Shape::Array(_))) => shape.array(),
            (Some(o), Some(Shape::Tuple(parts))) => parts.get(o).copied(),
            _ => None,
        };
        let from = module.signature.parameters.get(parameter).and_then(Shape::array);
        match (result, from) {
            (None, _) => return Err(VerifyError::AliasOutput { output }),
            (_, None) => return Err(VerifyError::AliasParameter { parameter }),
            (Some(result), Some(from)) if result != from => {
                return Err(VerifyError::AliasShape { output, parameter, result, from });
            }
            _ => {}
        }
        if !outputs.insert(output) || !parameters.insert(parameter) {
            return Err(VerifyError::AliasTwice { output, parameter });
        }
    }
    Ok(())
}

/// XLA's C++ throws on a plain id above it, neuronx-cc died on them (pytorch/xla issue 9685).
const MAX_ID: i64 = 1 << 31;

/// A bound on what evaluates a module by recursion; ours are two deep.
const MAX_CALL_DEPTH: usize = 32;

#[cfg(test)]
mod tests;
