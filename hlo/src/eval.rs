//! Runs a module on the CPU.
//!
//! Plain loops over dense arrays, fast enough for whole decode steps of small models in tests. Semantics are XLA's, with
//! one difference that the device makes: an index out of range is an error, unless [`EvalOptions::clamp_indices`] says
//! otherwise. `dot` and sums accumulate in f32 and round once, to the instruction's own type. Replicas run in lockstep,
//! instruction by instruction, which is all that collectives need.
//!
//! Total: memory and work are bounded by [`EvalOptions`], whatever the module asks for.

mod collective;
mod convert;
mod dot;
mod elementwise;
mod error;
mod index;
mod movement;
mod plan;
mod reduce;
mod sort;

pub use error::EvalError;

use std::collections::HashMap;

use crate::op::{CustomCall, Op};
use crate::{ArrayShape, Module, Shape, Target, Tensor, verify};
use plan::Plan;

/// Bounds and rules of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalOptions {
    /// Bytes of all values alive at once, inputs left out.
    pub max_bytes: usize,
    /// Elements written or multiplied, over all replicas.
    pub max_work: u64,
    /// Whether gather and scatter indices out of range are clamped, as XLA's gather does, or refused, as the device does.
    /// (A scatter out of range writes nothing in XLA, and so it does here.)
    pub clamp_indices: bool,
}

impl Default for EvalOptions {
    fn default() -> Self {
        EvalOptions { max_bytes: 8 << 30, max_work: 1 << 42, clamp_indices: false }
    }
}

/// A verified module, ready to run any number of times.
#[derive(Debug)]
pub struct Executable {
    module: Module,
    /// One per computation.
    plans: Vec<Plan>,
    entry: usize,
    /// What stands for custom calls, one for all that are alike.
    lowered: Vec<Executable>,
    /// Which of them, by computation and instruction.
    custom_calls: HashMap<(usize, usize), usize>,
    options: EvalOptions,
}

/// What one replica has of an instruction.
#[derive(Clone, Debug)]
enum Value {
    Array(Tensor),
    Tuple(Vec<Tensor>),
}

impl Value {
    fn array(&self) -> Option<&Tensor> {
        match self {
            Value::Array(tensor) => Some(tensor),
            Value::Tuple(_) => None,
        }
    }
}

/// A run that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Why.
    pub error: EvalError,
    /// By replica and parameter: the input, or what it was updated to in place; None where the run had consumed it.
    pub left: Vec<Vec<Option<Tensor>>>,
}

/// What is left of the bounds.
#[derive(Debug)]
struct Budget {
    bytes: usize,
    work: u64,
}

impl Executable {
    /// Verifies the module for the target and prepares it.
    pub fn new(module: Module, target: Target) -> Result<Executable, EvalError> {
        Executable::with_options(module, target, EvalOptions::default())
    }

    /// [`Executable::new`] with bounds and rules of its own.
    pub fn with_options(module: Module, target: Target, options: EvalOptions) -> Result<Executable, EvalError> {
        verify(&module, target).map_err(|e| EvalError::Verify(Box::new(e)))?;
        let (mut lowered, mut alike, mut custom_calls) = (vec![], HashMap::new(), HashMap::new());
        let mut size = 0;
        for (c, computation) in module.computations.iter().enumerate() {
            let shapes: HashMap<_, _> = computation.instructions.iter().map(|i| (i.id, &i.shape)).collect();
            for (n, i) in computation.instructions.iter().enumerate() {
                let Op::CustomCall(call) = &i.op else { continue };
                let operands: Option<Vec<ArrayShape>> =
                    i.operands.iter().map(|id| shapes.get(id).and_then(|s| s.array())).collect();
                let operands = operands.unwrap_or_default(); // verified: arrays
                let key = (call.clone(), operands.clone());
                let place = match alike.get(&key) {
                    Some(&place) => place,
                    None => {
                        let plain = crate::idioms::lower(call, &operands, &i.shape);
                        let plain = plain.ok_or_else(|| unknown(&i.name, call))?;
                        size += plain.instructions();
                        if size > MAX_LOWERED {
                            return Err(EvalError::Lowered { limit: MAX_LOWERED });
                        }
                        lowered.push(Executable::with_options(plain, Target::Xla, options)?);
                        alike.insert(key, lowered.len() - 1);
                        lowered.len() - 1
                    }
                };
                custom_calls.insert((c, n), place);
            }
        }
        let plans = module.computations.iter().map(|c| Plan::new(c, &module)).collect();
        // The verifier has found it.
        let entry = module.computations.iter().position(|c| c.id == module.entry).unwrap_or_default();
        Ok(Executable { module, plans, entry, lowered, custom_calls, options })
    }

    /// The module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Runs on one replica: inputs by parameter number to results in tuple order.
    ///
    /// Inputs that nobody else holds are written to in place where the module updates them.
    pub fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, EvalError> {
        let results = self.run_replicas(vec![inputs])?;
        Ok(results.into_iter().next().unwrap_or_default())
    }

    /// Runs on as many replicas as there are lists of inputs.
    pub fn run_replicas(&self, inputs: Vec<Vec<Tensor>>) -> Result<Vec<Vec<Tensor>>, EvalError> {
        self.try_replicas(inputs).map_err(|failed| failed.error)
    }

    /// [`Executable::run_replicas`] that gives back, where it fails, what it has of the inputs: memory that is updated in
    /// place is still somebody's.
    pub fn try_replicas(&self, inputs: Vec<Vec<Tensor>>) -> Result<Vec<Vec<Tensor>>, Failed> {
        let mut budget = Budget { bytes: self.options.max_bytes, work: self.options.max_work };
        if let Err(error) = self.check_inputs(&inputs) {
            return Err(Failed {
                error,
                left: inputs.into_iter().map(|i| i.into_iter().map(Some).collect()).collect(),
            });
        }
        let mut left = inputs.iter().map(|i| vec![None; i.len()]).collect();
        let results = self.computation(self.entry, inputs, &mut budget, Some(&mut left));
        results.map(|values| values.into_iter().map(parts).collect()).map_err(|error| Failed { error, left })
    }

    fn run_within(&self, inputs: Vec<Vec<Tensor>>, budget: &mut Budget) -> Result<Vec<Vec<Tensor>>, EvalError> {
        self.check_inputs(&inputs)?;
        let results = self.computation(self.entry, inputs, budget, None)?;
        Ok(results.into_iter().map(parts).collect())
    }

    fn check_inputs(&self, inputs: &[Vec<Tensor>]) -> Result<(), EvalError> {
        for (replica, inputs) in inputs.iter().enumerate() {
            let want = &self.module.signature.parameters;
            if inputs.len() != want.len() {
                return Err(EvalError::Inputs { replica, want: want.len(), got: inputs.len() });
            }
            for (parameter, (want, got)) in want.iter().zip(inputs).enumerate() {
                if want.array() != Some(got.shape()) {
                    return Err(EvalError::Input { replica, parameter, want: want.clone(), got: got.shape() });
                }
            }
        }
        Ok(())
    }

    /// Runs one computation; arguments and result by replica. What it allocates is given back to the budget at the end.
    /// Where it fails, `left` gets what there is of each argument: itself, or the result that is updated in its place.
    fn computation(
        &self,
        number: usize,
        arguments: Vec<Vec<Tensor>>,
        budget: &mut Budget,
        left: Option<&mut Vec<Vec<Option<Tensor>>>>,
    ) -> Result<Vec<Value>, EvalError> {
        let (computation, plan) = (&self.module.computations[number], &self.plans[number]);
        let (before, replicas) = (budget.bytes, arguments.len());
        let mut values: Vec<Vec<Option<Value>>> = vec![vec![]; computation.instructions.len()];
        // All at once, so that a failure finds each.
        let places: HashMap<u32, usize> = (0..)
            .zip(&computation.instructions)
            .filter_map(|(n, i)| if let Op::Parameter(parameter) = i.op { Some((parameter, n)) } else { None })
            .collect();
        for arguments in arguments {
            for (parameter, argument) in (0..).zip(arguments) {
                // Verified: dense and given once each.
                values[places[&parameter]].push(Some(Value::Array(argument)));
            }
        }
        if let Err(error) = self.instructions(number, &mut values, replicas, budget) {
            if let Some(left) = left {
                self.save(&places, &mut values, left);
            }
            return Err(error);
        }
        budget.bytes = before;
        Ok(values.swap_remove(plan.root).into_iter().flatten().collect())
    }

    /// What there is of the entry's arguments after a failure.
    fn save(&self, places: &HashMap<u32, usize>, values: &mut [Vec<Option<Value>>], left: &mut [Vec<Option<Tensor>>]) {
        let plan = &self.plans[self.entry];
        let is_tuple = matches!(self.module.computations[self.entry].instructions[plan.root].op, Op::Tuple);
        let results = if is_tuple { &plan.operands[plan.root][..] } else { &[plan.root] };
        let updated = self.module.aliases.iter().map(|a| (a.parameter as u32, results.get(a.output.unwrap_or(0))));
        let updated = updated.filter_map(|(parameter, place)| Some((parameter, *place?)));
        for (parameter, place) in places.iter().map(|(&p, &n)| (p, n)).chain(updated) {
            for (left, value) in left.iter_mut().zip(&mut values[place]) {
                if let Some(Value::Array(tensor)) = value.take() {
                    left[parameter as usize] = Some(tensor);
                }
            }
        }
    }

    /// Runs all instructions but the parameters, whose values are there.
    fn instructions(
        &self,
        number: usize,
        values: &mut [Vec<Option<Value>>],
        replicas: usize,
        budget: &mut Budget,
    ) -> Result<(), EvalError> {
        let (computation, plan) = (&self.module.computations[number], &self.plans[number]);
        for (n, i) in computation.instructions.iter().enumerate() {
            let bytes = i.shape.bytes().saturating_mul(replicas);
            if let Op::Parameter(_) = i.op {
                continue;
            }
            let work = plan.work[n].saturating_mul(replicas as u64);
            budget.work = budget.work.checked_sub(work).ok_or(EvalError::Work { limit: self.options.max_work })?;
            budget.bytes = budget.bytes.checked_sub(bytes).ok_or_else(|| EvalError::Memory {
                instruction: i.name.clone(),
                shape: i.shape.clone(),
                limit: self.options.max_bytes,
            })?;
            self.check_indices(i, &plan.operands[n], values)?;
            let mut operands: Vec<Vec<Value>> = (0..replicas).map(|_| vec![]).collect();
            for (k, &operand) in plan.operands[n].iter().enumerate() {
                let last = plan.last_use[operand] == (n, k);
                for (replica, operands) in operands.iter_mut().enumerate() {
                    let slot = &mut values[operand][replica];
                    operands.extend(if last { slot.take() } else { slot.clone() });
                }
                if last && !matches!(computation.instructions[operand].op, Op::Parameter(_)) {
                    let shape = &computation.instructions[operand].shape;
                    budget.bytes = budget.bytes.saturating_add(shape.bytes().saturating_mul(replicas));
                }
            }
            let results = self.instruction((number, n), operands, budget)?;
            values[n] = results.into_iter().map(Some).collect();
        }
        Ok(())
    }

    /// Refuses a scatter out of range before it has its buffer: what fails has written nothing.
    fn check_indices(
        &self,
        i: &crate::Instruction,
        operands: &[usize],
        values: &[Vec<Option<Value>>],
    ) -> Result<(), EvalError> {
        let (Op::Scatter(dims), &[buffer, indices, updates]) = (&i.op, operands) else { return Ok(()) };
        let arrays = |place: usize| values[place].iter().flatten().filter_map(Value::array);
        for ((buffer, indices), updates) in arrays(buffer).zip(arrays(indices)).zip(arrays(updates)) {
            let range = index::out_of_range(buffer.shape(), indices, updates.shape(), dims);
            if let Some((index, most)) = range.filter(|_| !self.options.clamp_indices) {
                return Err(EvalError::Index { instruction: i.name.clone(), index, most });
            }
        }
        Ok(())
    }

    /// Runs one instruction on all replicas.
    fn instruction(
        &self,
        at: (usize, usize),
        operands: Vec<Vec<Value>>,
        budget: &mut Budget,
    ) -> Result<Vec<Value>, EvalError> {
        let i = &self.module.computations[at.0].instructions[at.1];
        let plan = &self.plans[at.0];
        if let Op::GetTupleElement(index) = i.op {
            let part = |value: Vec<Value>| match value.into_iter().next() {
                Some(Value::Tuple(mut parts)) => Value::Array(parts.swap_remove(index)),
                other => unreachable!("part of {other:?}"), // verified
            };
            return Ok(operands.into_iter().map(part).collect());
        }
        let array = |value| match value {
            Value::Array(tensor) => tensor,
            Value::Tuple(_) => unreachable!("a tuple as an operand of {}", i.name), // verified
        };
        let operands: Vec<Vec<Tensor>> =
            operands.into_iter().map(|values| values.into_iter().map(array).collect()).collect();
        match &i.op {
            Op::Call(_) => return self.computation(plan.called[at.1], operands, budget, None),
            Op::CustomCall(call) => {
                let lowered = self.custom_calls.get(&at).ok_or_else(|| unknown(&i.name, call))?;
                let results = self.lowered[*lowered].run_within(operands, budget)?;
                let value = |mut tensors: Vec<Tensor>| match i.shape {
                    Shape::Array(_) => Value::Array(tensors.swap_remove(0)),
                    Shape::Tuple(_) => Value::Tuple(tensors),
                };
                return Ok(results.into_iter().map(value).collect());
            }
            Op::Tuple => return Ok(operands.into_iter().map(Value::Tuple).collect()),
            _ => {}
        }
        let combiner = plan.combiner[at.1];
        if i.op.collective().is_some() {
            let inputs: Vec<Tensor> = operands.into_iter().flatten().collect();
            let results = collective::run(i, &inputs, combiner)?;
            return Ok(results.into_iter().map(Value::Array).collect());
        }
        if let Op::Sort { dim, .. } = i.op {
            let sorted = operands.into_iter().map(|o| sort::run(dim, plan.order[at.1], o));
            let value = |mut tensors: Vec<Tensor>| match i.shape {
                Shape::Array(_) => Value::Array(tensors.swap_remove(0)),
                Shape::Tuple(_) => Value::Tuple(tensors),
            };
            return Ok(sorted.map(value).collect());
        }
        let Shape::Array(shape) = i.shape else { unreachable!("{} gives a tuple", i.name) }; // verified
        let one = |operands| self.array(i, shape, combiner, operands).map(Value::Array);
        operands.into_iter().map(one).collect()
    }

    /// Runs one instruction that makes an array of arrays, on one replica.
    fn array(
        &self,
        i: &crate::Instruction,
        shape: ArrayShape,
        combiner: Option<crate::op::Combiner>,
        operands: Vec<Tensor>,
    ) -> Result<Tensor, EvalError> {
        let clamp = self.options.clamp_indices;
        let index_error = |index, most| EvalError::Index { instruction: i.name.clone(), index, most };
        let mut operands = operands.into_iter();
        // The verifier has counted them.
        let mut next = || operands.next().unwrap_or_else(|| unreachable!("an operand of {} is missing", i.name));
        Ok(match &i.op {
            Op::Constant(literal) => literal.clone(),
            Op::Iota(dim) => movement::iota(shape, *dim),
            Op::Unary(op) => elementwise::unary(*op, next()),
            Op::Binary(op) => elementwise::binary(*op, next(), &next()),
            Op::Clamp => {
                let (lo, x, hi) = (next(), next(), next());
                elementwise::clamp(&lo, x, &hi)
            }
            Op::Compare(direction) => elementwise::compare(*direction, &next(), &next()),
            Op::Select => elementwise::select(&next(), next(), &next()),
            Op::Convert => convert::convert(next(), shape),
            Op::Copy => next(),
            Op::Reshape => next().reshaped(shape),
            Op::Broadcast(dims) => movement::broadcast(&next(), dims, shape),
            Op::Transpose(permutation) => movement::transpose(&next(), permutation, shape),
            Op::Slice(dims) => movement::slice(&next(), dims, shape),
            Op::DynamicSlice(_) => {
                let x = next();
                movement::dynamic_slice(&x, operands.as_slice(), shape)
            }
            Op::DynamicUpdateSlice => {
                let (x, update) = (next(), next());
                movement::dynamic_update_slice(x, &update, operands.as_slice())
            }
            Op::Concatenate(dim) => movement::concatenate(operands.as_slice(), *dim, shape),
            Op::Pad(dims) => movement::pad(&next(), &next(), dims, shape),
            Op::Reduce { dims, .. } => reduce::reduce(&next(), &next(), dims, combiner, shape),
            Op::Dot(dims) => dot::dot(&next(), &next(), dims, shape),
            Op::Gather(dims) => {
                index::gather(&next(), &next(), dims, shape, clamp).map_err(|(i, m)| index_error(i, m))?
            }
            Op::Scatter(dims) => {
                let buffer = next();
                index::scatter(buffer, &next(), &next(), dims, combiner, clamp).map_err(|(i, m)| index_error(i, m))?
            }
            other => unreachable!("{} is handled above", other.name()),
        })
    }
}

fn parts(value: Value) -> Vec<Tensor> {
    match value {
        Value::Array(tensor) => vec![tensor],
        Value::Tuple(tensors) => tensors,
    }
}

fn unknown(instruction: &str, call: &CustomCall) -> EvalError {
    EvalError::CustomCall { instruction: instruction.to_owned(), target: call.target.clone() }
}

/// Instructions that stand for custom calls, all together; a thousand rounds of top-k take ten thousand.
const MAX_LOWERED: usize = 1 << 18;

#[cfg(test)]
mod tests;
