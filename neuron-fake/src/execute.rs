//! One run: sets are bound and checked, tensors handed to the engine, results put in their places.
//!
//! Inputs are shared with the engine, in-place tensors move into it and back: nothing the size of a weight or a cache is
//! copied here. Whatever happens, each tensor that was taken is put back, or replaced by poison.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use njoule_hlo::{ArrayShape, DType, Data, Tensor as Array};

use crate::collective::Lost;
use crate::inject::{self, Action};
use crate::model::{Model, Program};
use crate::runtime::{Runtime, Set};
use crate::status::{self, Answer, refuse};
use crate::tensor::{InFlight, Tensor, Use};

/// A run that was accepted.
#[derive(Debug)]
pub(crate) struct Job {
    model: Arc<Model>,
    inputs: Vec<Arc<Tensor>>,
    outputs: Vec<Arc<Tensor>>,
    accepted: Instant,
    _flight: Vec<InFlight>,
    _busy: [Busy; 3],
}

/// Nanoseconds of all runs so far.
static RUN_TIME: AtomicU64 = AtomicU64::new(0);

pub(crate) fn run_time() -> u64 {
    RUN_TIME.load(Ordering::Relaxed)
}

/// Keeps a model or set marked as in use.
#[derive(Debug)]
struct Busy(Arc<AtomicU32>);

impl Job {
    /// Checks the sets against the model.
    pub(crate) fn bind(runtime: &Runtime, model: &Arc<Model>, inputs: &Set, outputs: &Set) -> Answer<Job> {
        let accepted = Instant::now();
        if model.core.is_dead() {
            return dead(model);
        }
        let busy = [&model.busy, &inputs.busy, &outputs.busy].map(|counter| {
            counter.fetch_add(1, Ordering::AcqRel);
            Busy(counter.clone())
        });
        let program = &model.program;
        let sides = [("input", &program.inputs, inputs), ("output", &program.outputs, outputs)];
        let [inputs, outputs] = sides.map(|(side, shapes, set)| bound(runtime, model, side, shapes, set));
        let (inputs, outputs) = (inputs?, outputs?);
        check_aliases(program, &inputs, &outputs)?;
        let reads = inputs.iter().map(|t| InFlight::new(t, Use::Read));
        let flight = reads.chain(outputs.iter().map(|t| InFlight::new(t, Use::Write))).collect();
        Ok(Job { model: model.clone(), inputs, outputs, accepted, _flight: flight, _busy: busy })
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, runtime: &Runtime) -> Answer {
        let answer = self.compute(runtime);
        // A run takes no centuries.
        RUN_TIME.fetch_add(self.accepted.elapsed().as_nanos() as u64, Ordering::Relaxed);
        answer
    }

    fn compute(&self, runtime: &Runtime) -> Answer {
        let model = &*self.model;
        let _turn = model.core.turn();
        if model.core.is_dead() {
            return dead(model);
        }
        let start = Instant::now();
        let mut nan = false;
        match inject::plan()?.next(inject::EVALUATE, || Some(model.core.index)) {
            None => {}
            Some(Action::Status(code)) => {
                if code == status::EXEC_UNIT_UNRECOVERABLE {
                    model.core.die();
                }
                return if code == status::SUCCESS { Ok(()) } else { refuse(code, "as NJOULE_FAKE_FAULTS says") };
            }
            Some(Action::Delay(time)) => std::thread::sleep(time),
            Some(Action::Hang) => return crate::runtime::hang(),
            Some(Action::Timeout) => {
                std::thread::sleep(model.timeout);
                return refuse(status::TIMEOUT, format!("not finished within {:?}", model.timeout));
            }
            Some(Action::Nan) => nan = true,
            Some(Action::Index(value)) if self.has(value) => {
                return refuse(status::EXEC_OOB, format!("an index is {value}, as NJOULE_FAKE_FAULTS says"));
            }
            Some(Action::Index(_)) => {}
        }
        if runtime.config.evaluate { self.evaluate() } else { self.pretend() }?;
        if nan {
            let Program { outputs: shapes, alias, .. } = &*model.program;
            for ((t, shape), alias) in self.outputs.iter().zip(shapes).zip(alias) {
                if alias.is_none() && shape.dtype().is_float() {
                    t.lose();
                }
            }
        }
        wait_until(start + runtime.config.latency);
        if runtime.config.fail_on_nan
            && let Some(j) = self.outputs.iter().zip(&model.program.outputs).position(|(t, &s)| has_nan(&t.share(s)))
        {
            return refuse(status::EXEC_COMPLETED_WITH_NUM_ERR, format!("output{j} has a NaN"));
        }
        Ok(())
    }

    /// Whether an input of s32 has this value.
    fn has(&self, value: i32) -> bool {
        let integers = self.inputs.iter().zip(&self.model.program.inputs).filter(|(_, s)| s.dtype() == DType::S32);
        integers.into_iter().any(|(t, &s)| t.share(s).as_slice::<i32>().is_some_and(|v| v.contains(&value)))
    }

    fn evaluate(&self) -> Answer {
        let Program { engine, inputs: shapes, alias, .. } = &*self.model.program;
        // Which output's memory an input is.
        let mut in_place = vec![None; shapes.len()];
        for (j, alias) in alias.iter().enumerate() {
            match alias {
                Some((i, _)) if Arc::ptr_eq(&self.inputs[*i], &self.outputs[j]) => in_place[*i] = Some(j),
                _ => {}
            }
        }
        let takes = self.inputs.iter().zip(shapes).zip(&in_place);
        let inputs = takes.map(|((t, &s), place)| if place.is_some() { t.take(s) } else { t.share(s) }).collect();
        let compute = |all| engine.run(all);
        let outcome = match &self.model.seat {
            Some(seat) => seat.meet(inputs, self.model.timeout, compute),
            None => compute(vec![inputs]).swap_remove(0),
        };
        match outcome {
            Ok(results) => {
                self.outputs.iter().zip(results).for_each(|(t, array)| t.put(array));
                Ok(())
            }
            Err(Lost { refusal, mut left }) => {
                left.resize(self.inputs.len(), None);
                for ((t, place), left) in self.inputs.iter().zip(&in_place).zip(left) {
                    match (place, left) {
                        (Some(_), Some(array)) => t.put(array),
                        (Some(_), None) => t.lose(),
                        (None, _) => {}
                    }
                }
                Err(refusal)
            }
        }
    }

    /// Meets the other ranks and computes nothing: outputs are zero, which is a valid id.
    fn pretend(&self) -> Answer {
        if let Some(seat) = &self.model.seat {
            let nothing = |all: Vec<_>| all.iter().map(|_| Ok(vec![])).collect();
            seat.meet(vec![], self.model.timeout, nothing).map_err(|lost| lost.refusal)?;
        }
        for (t, alias) in self.outputs.iter().zip(&self.model.program.alias) {
            if alias.is_none() {
                t.put_zeros();
            }
        }
        Ok(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn dead<T>(model: &Model) -> Answer<T> {
    refuse(status::EXEC_UNIT_UNRECOVERABLE, format!("core {} is dead for this process", model.core.index))
}

/// The set's tensors in the program's order: each is there, of its size, within reach of the core, and none is more.
fn bound(runtime: &Runtime, model: &Model, side: &str, shapes: &[ArrayShape], set: &Set) -> Answer<Vec<Arc<Tensor>>> {
    let names = set.names();
    let mut tensors = Vec::with_capacity(shapes.len());
    let specs = if side == "input" { &model.program.sidecar.inputs } else { &model.program.sidecar.outputs };
    for (spec, shape) in specs.iter().zip(shapes) {
        let Some(&handle) = names.get(&spec.name) else {
            return refuse(status::INVALID, format!("{side} `{}` is not in the set", spec.name));
        };
        let tensor = runtime.tensor(handle)?;
        if tensor.size != shape.bytes() {
            let text = format!("{side} `{}` has {} bytes, {tensor} is bound", spec.name, shape.bytes());
            return refuse(status::INVALID, text);
        }
        if tensor.storage.core.as_ref().is_some_and(|core| core.index != model.core.index) {
            let text = format!("{side} `{}`: {tensor} is not in the memory of core {}", spec.name, model.core.index);
            return refuse(status::INVALID, text);
        }
        tensors.push(tensor);
    }
    if names.len() > specs.len() {
        let more = names.keys().find(|name| specs.iter().all(|s| s.name != **name));
        return refuse(status::INVALID, format!("{side} set has {more:?}, the model has not"));
    }
    Ok(tensors)
}

/// An aliased output is its input's tensor; every other output has memory of its own.
fn check_aliases(program: &Program, inputs: &[Arc<Tensor>], outputs: &[Arc<Tensor>]) -> Answer {
    for (j, alias) in program.alias.iter().enumerate() {
        if let Some((i, true)) = *alias
            && !Arc::ptr_eq(&inputs[i], &outputs[j])
        {
            return refuse(status::INVALID, format!("output{j} is input{i} updated in place: bind one tensor to both"));
        }
    }
    // Of each allocation that is written, the ranges bound: place in memory, output or input, number.
    let key = |t: &Arc<Tensor>| Arc::as_ptr(&t.storage) as usize;
    let mut ranges: HashMap<usize, Vec<(usize, usize, bool, usize)>> = HashMap::new();
    for (j, t) in outputs.iter().enumerate() {
        ranges.entry(key(t)).or_default().push((t.offset, t.offset + t.size, true, j));
    }
    for (i, t) in inputs.iter().enumerate() {
        let in_place = |o: &&(usize, usize, bool, usize)| {
            o.2 && program.alias[o.3].is_some_and(|(of, _)| of == i) && Arc::ptr_eq(t, &outputs[o.3])
        };
        if let Some(written) = ranges.get_mut(&key(t))
            && written.iter().find(in_place).is_none()
        {
            written.push((t.offset, t.offset + t.size, false, i));
        }
    }
    for range in ranges.values_mut() {
        range.sort_unstable();
        // Where only inputs overlap there is nothing wrong; so the furthest end of outputs and of all is kept.
        let (mut end_of_outputs, mut end) = (0, 0);
        for &(from, until, output, number) in range.iter() {
            if from < if output { end } else { end_of_outputs } {
                let name = if output { "output" } else { "input" };
                let text = format!("{name}{number} overlaps another tensor of this run that is not its alias");
                return refuse(status::INVALID, text);
            }
            end = end.max(until);
            if output {
                end_of_outputs = end_of_outputs.max(until);
            }
        }
    }
    Ok(())
}

/// Not by sleeping alone: a sleep ends late by as much as a step costs the host.
fn wait_until(end: Instant) {
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        match left.checked_sub(LATE) {
            Some(most) => std::thread::sleep(most),
            None => std::hint::spin_loop(),
        }
    }
}

/// What a sleep may be late by.
const LATE: std::time::Duration = std::time::Duration::from_micros(300);

fn has_nan(array: &Array) -> bool {
    match array.data() {
        Data::F32(v) => v.iter().any(|x| x.is_nan()),
        Data::BF16(v) => v.iter().any(|x| x.is_nan()),
        Data::F16(v) => v.iter().any(|x| x.is_nan()),
        _ => false,
    }
}
