//! The first hour on a chip: what works there, step by step, and which form of each idiom in doubt to emit.
//!
//! Steps are data ([`STEPS`]): a name, what it proves, what to do if it fails, and modules whose results are compared with
//! the evaluator's. Where an idiom has several forms all are tried, and the first in the order of the profile's defaults
//! that compiles, runs and computes what it should is chosen; a step that everything needs and of which no form works is
//! the last one. Then a layer, then a model ([`ProbeModel`]) in the forms chosen, then its speed.
//!
//! The runner knows a device only as [`ProbeDevice`]. Invariant: a profile to build with comes out only of a run in which
//! no step failed that everything needs.

mod batch;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod device;
mod golden;
mod model;
mod outcome;
mod power;
mod redaction;
mod speed;
mod steps;
#[cfg(test)]
mod tests;
mod trial;

use std::ops::ControlFlow;
use std::path::Path;

use njoule_hlo::{EvalError, EvalOptions, Executable, Module, Target, Tensor, encode};

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use self::device::{Neffs, NeuronDevice};
pub use self::golden::{Golden, GoldenPrompt};
pub use self::model::{DecodeBucket, DecodeRows, LoadedModel, LogitsFound, ProbeModel, PromptFound, tolerance};
pub use self::outcome::{FormOutcome, Outcome, State, StepOutcome};
pub use self::power::{DevicePower, PowerFile, PowerFound};
pub use self::redaction::Redaction;
pub use self::speed::{SpeedFound, StepTime};
pub use self::steps::{Form, STEPS, Step, Work};
pub use self::trial::Trial;
use super::Profile;
use super::profile::Lookup;

/// What the probe needs of a device.
pub trait ProbeDevice {
    /// Opens the library, and says which it is.
    fn library(&mut self) -> Result<String, Fault>;

    /// Takes a core, and says what it is.
    fn core(&mut self) -> Result<String, Fault>;

    /// Compiles `module`, loads it, and runs it `runs` times on one set of tensors: an aliased result is the same tensor as
    /// its parameter. The results of the last run, in tuple order.
    fn run(&mut self, module: &Module, inputs: &[Tensor], runs: usize) -> Result<Vec<Tensor>, Fault>;

    /// What the driver tells of power.
    fn power(&mut self) -> PowerFound;
}

/// Why a device did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {words}", .stage.name())]
pub struct Fault {
    /// Where it failed.
    pub stage: Stage,
    /// In its own words.
    pub words: String,
}

/// How far a module came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The library or the core could not be had.
    Open,
    /// The compiler refused it.
    Compile,
    /// The runtime refused it.
    Load,
    /// It did not run to its end.
    Execute,
    /// Its results are not what they should be.
    Compare,
    /// njoule's own evaluator refused it: a bug.
    Evaluate,
}

impl Stage {
    /// As in a report.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Open => "open",
            Stage::Compile => "compile",
            Stage::Load => "load",
            Stage::Execute => "execute",
            Stage::Compare => "compare",
            Stage::Evaluate => "evaluate",
        }
    }
}

/// What a probe tells of its progress, with all that it has found by then.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    /// A step begins.
    Begins(&'a Step, &'a Outcome),
    /// It is done.
    Done(&'a StepOutcome, &'a Outcome),
}

/// Takes the steps in order, and calls `heard` before and after each, which may break off. Where there is no model, the
/// reason stands in its place.
pub fn run(
    device: &mut dyn ProbeDevice,
    mut model: Result<&mut dyn ProbeModel, String>,
    target: Target,
    steps: &[Step],
    mut heard: impl FnMut(Heard<'_>) -> ControlFlow<()>,
) -> Outcome {
    let mut outcome = Outcome::new(target);
    let mut loaded = None;
    for step in steps {
        outcome.running = Some(step.name.to_owned());
        let mut go_on = heard(Heard::Begins(step, &outcome));
        if go_on.is_break() {
            outcome.stopped_at = outcome.running.take();
            return outcome;
        }
        let mut done = StepOutcome::of(step);
        match step.work {
            Work::Library => done.says(device.library()),
            Work::Core => done.says(device.core()),
            Work::Forms(forms) => try_forms(device, target, forms, &mut outcome.chosen, &mut done),
            Work::Whole(trials) => {
                let tried = try_form(device, target, "whole", trials(&outcome.chosen));
                done.state = if tried.works { State::Passed } else { State::Failed };
                done.words = if tried.works { format!("error {:.1e}", tried.error) } else { String::new() };
                done.forms.push(tried);
            }
            Work::Logits => match &mut model {
                Ok(model) => loaded = model::check(&mut **model, &outcome.chosen, &mut done),
                Err(why) => done.left_out(why),
            },
            Work::Speed => match (&mut loaded, &model) {
                (Some(loaded), _) => speed::measure(loaded, &mut done),
                (None, Err(why)) => done.left_out(why),
                (None, Ok(_)) => done.left_out("no model is loaded"),
            },
            Work::Power => {
                let power = device.power();
                done.state = if power.tells() { State::Passed } else { State::Unknown };
                done.words = power.words();
                done.power = Some(power);
            }
        }
        let stop = done.state == State::Failed && step.only_for.is_none();
        outcome.steps.push(done);
        (outcome.stopped_at, outcome.running) = (stop.then(|| step.name.to_owned()), None);
        if let Some(done) = outcome.steps.last() {
            go_on = heard(Heard::Done(done, &outcome));
        }
        if stop || go_on.is_break() {
            outcome.stopped_at = Some(step.name.to_owned());
            return outcome;
        }
    }
    outcome.profile = Some(outcome.chosen);
    outcome
}

/// The chip that neuronx-cc calls so.
pub fn target(name: &str) -> Option<Target> {
    Target::ALL.into_iter().find(|target| *target != Target::Xla && target.name() == name)
}

/// Writes every module as `DIR/NAME.pb`, to be compiled elsewhere to `DIR/NAME.neff`; their names.
pub fn emit(steps: &[Step], profile: &Profile, dir: &Path) -> std::io::Result<Vec<String>> {
    std::fs::create_dir_all(dir)?;
    let write = |(name, module): (String, Module)| {
        std::fs::write(dir.join(format!("{name}.pb")), encode(&module))?;
        Ok(name)
    };
    modules(steps, profile).into_iter().map(write).collect()
}

/// Every module of every form, with a name of its own, whatever is chosen on the way; of what follows, those of `profile`.
pub fn modules(steps: &[Step], profile: &Profile) -> Vec<(String, Module)> {
    let ways = [Lookup::Gather, Lookup::OneHot].map(|lookup| Profile { lookup, ..Profile::default() });
    let mut all: Vec<(String, Module)> = vec![];
    for step in steps {
        let trials: Vec<Trial> = match step.work {
            Work::Forms(forms) => {
                forms.iter().flat_map(|form| ways.iter().flat_map(|way| (form.trials)(way))).collect()
            }
            Work::Whole(trials) => trials(profile),
            _ => continue,
        };
        for trial in trials {
            if all.iter().all(|(name, _)| *name != trial.module.name) {
                all.push((trial.module.name.clone(), trial.module));
            }
        }
    }
    all
}

fn try_forms(
    device: &mut dyn ProbeDevice,
    target: Target,
    forms: &[Form],
    profile: &mut Profile,
    done: &mut StepOutcome,
) {
    for form in forms {
        let tried = try_form(device, target, form.name, (form.trials)(profile));
        if tried.works && done.chosen.is_none() {
            done.chosen = Some(form.name.to_owned());
            done.state = State::Passed;
            (form.choose)(profile);
        }
        done.forms.push(tried);
    }
}

fn try_form(device: &mut dyn ProbeDevice, target: Target, name: &str, trials: Vec<Trial>) -> FormOutcome {
    let mut tried = FormOutcome { form: name.to_owned(), works: true, failed: None, words: String::new(), error: 0.0 };
    for trial in trials {
        match attempt(device, target, &trial) {
            Ok(error) => tried.error = tried.error.max(error),
            Err(fault) => {
                tried.works = false;
                tried.failed = Some(fault.stage);
                tried.words = format!("{}: {}", trial.module.name, fault.words);
                break;
            }
        }
    }
    tried
}

/// Runs a trial on the device and by the evaluator; the largest error, relative to the tolerance's scale.
fn attempt(device: &mut dyn ProbeDevice, target: Target, trial: &Trial) -> Result<f64, Fault> {
    let wanted = evaluate(target, trial).map_err(|e| Fault { stage: Stage::Evaluate, words: e.to_string() })?;
    let got = device.run(&trial.module, &trial.inputs, trial.runs)?;
    trial::compare(&wanted, &got, trial).map_err(|words| Fault { stage: Stage::Compare, words })
}

/// What the trial should give: an aliased result is the next run's input.
fn evaluate(target: Target, trial: &Trial) -> Result<Vec<Tensor>, EvalError> {
    // A clamp within the module is part of what is tried: an index out of range is an error here as on the device.
    let executable = Executable::with_options(trial.module.clone(), target, EvalOptions::default())?;
    let mut inputs = trial.inputs.clone();
    let mut results = vec![];
    for _ in 0..trial.runs {
        results = executable.run(inputs.clone())?;
        for alias in &trial.module.aliases {
            if let (Some(output), Some(input)) =
                (alias.output.and_then(|o| results.get(o)), inputs.get_mut(alias.parameter))
            {
                *input = output.clone();
            }
        }
    }
    Ok(results)
}
