//! What computes a program: the evaluator of `njoule-hlo`, or XLA behind a PJRT plugin (`NJOULE_PJRT`, feature `pjrt`).
//!
//! Both verify the module for its target before anything else. The plugin clamps where the device, and the evaluator, find
//! an index out of bounds: with it no run ends with 1006 by itself. It copies every tensor in each run, weights included.
//! Whoever computes, what a failed run has of its inputs is given back.

use std::panic::{AssertUnwindSafe, catch_unwind};

use njoule_hlo::{EvalError, Executable, Module, Target, Tensor};

use crate::collective::{Lost, Outcome};
use crate::misuse;
use crate::status::{self, Answer, Refusal, refuse};

/// A program, verified and prepared.
#[derive(Debug)]
pub(crate) enum Engine {
    Evaluator(Box<Executable>),
    #[cfg(feature = "pjrt")]
    Plugin(njoule_hlo::pjrt::PjrtExecutable),
}

impl Engine {
    /// For as many ranks as meet in its collectives.
    pub(crate) fn new(module: Module, target: Target, world: u32) -> Answer<Engine> {
        #[cfg(feature = "pjrt")]
        if let Some(plugin) = plugin::get()? {
            return plugin::compile(plugin, &module, target, world);
        }
        let _ = world; // the evaluator sees it by the inputs
        match Executable::new(module, target) {
            Ok(executable) => Ok(Engine::Evaluator(Box::new(executable))),
            Err(error) => refuse(status::INVALID, error),
        }
    }

    /// Runs on the inputs of all ranks.
    pub(crate) fn run(&self, all: Vec<Vec<Tensor>>) -> Vec<Outcome> {
        let ranks = all.len();
        catch_unwind(AssertUnwindSafe(|| self.compute(all))).unwrap_or_else(|_| {
            misuse::record("the evaluator panicked: a bug of the stand-in");
            let refusal = Refusal { status: status::FAILURE, text: "the evaluator panicked".to_owned() };
            (0..ranks).map(|_| Err(Lost { refusal: refusal.clone(), left: vec![] })).collect()
        })
    }

    fn compute(&self, all: Vec<Vec<Tensor>>) -> Vec<Outcome> {
        let (refusal, left) = match self {
            Engine::Evaluator(executable) => match executable.try_replicas(all) {
                Ok(results) => return results.into_iter().map(Ok).collect(),
                Err(failed) => (Refusal { status: code(&failed.error), text: failed.error.to_string() }, failed.left),
            },
            #[cfg(feature = "pjrt")]
            Engine::Plugin(executable) => match executable.run_replicas(all.clone()) {
                Ok(results) => return results.into_iter().map(Ok).collect(),
                Err(error) => {
                    let left = all.into_iter().map(|inputs| inputs.into_iter().map(Some).collect()).collect();
                    (Refusal { status: status::EXEC_COMPLETED_WITH_ERR, text: error.to_string() }, left)
                }
            },
        };
        left.into_iter().map(|left| Err(Lost { refusal: refusal.clone(), left })).collect()
    }
}

fn code(error: &EvalError) -> u32 {
    match error {
        EvalError::Index { .. } => status::EXEC_OOB,
        EvalError::Memory { .. } | EvalError::Work { .. } => status::RESOURCE,
        _ => status::EXEC_COMPLETED_WITH_ERR,
    }
}

/// Says at the start that `NJOULE_PJRT` is set and cannot be had: otherwise the evaluator would pass for XLA.
pub(crate) fn check() -> Answer {
    #[cfg(feature = "pjrt")]
    plugin::get()?;
    #[cfg(not(feature = "pjrt"))]
    if std::env::var_os("NJOULE_PJRT").is_some_and(|v| !v.is_empty()) {
        let text = "NJOULE_PJRT is set, and this library was built without the feature `pjrt` of neuron-fake";
        return refuse(status::INVALID, text);
    }
    Ok(())
}

#[cfg(feature = "pjrt")]
mod plugin {
    use std::path::Path;
    use std::sync::OnceLock;

    use njoule_hlo::pjrt::{PjrtError, Plugin};
    use njoule_hlo::verify;

    use super::*;

    /// The plugin that `NJOULE_PJRT` names, opened once per process; None if it names none.
    pub(super) fn get() -> Answer<Option<&'static Plugin>> {
        static PLUGIN: OnceLock<Option<Result<Plugin, PjrtError>>> = OnceLock::new();
        let open = || {
            let path = std::env::var_os("NJOULE_PJRT").filter(|v| !v.is_empty())?;
            Some(Plugin::open(Path::new(&path)))
        };
        match PLUGIN.get_or_init(open) {
            None => Ok(None),
            Some(Ok(plugin)) => Ok(Some(plugin)),
            Some(Err(error)) => refuse(status::INVALID, format!("NJOULE_PJRT: {error}")),
        }
    }

    pub(super) fn compile(plugin: &Plugin, module: &Module, target: Target, world: u32) -> Answer<Engine> {
        if let Err(error) = verify(module, target) {
            return refuse(status::INVALID, error);
        }
        let compiled = plugin.compile(module, world as usize);
        compiled.map(Engine::Plugin).or_else(|error| refuse(status::INVALID, format!("NJOULE_PJRT: {error}")))
    }
}
