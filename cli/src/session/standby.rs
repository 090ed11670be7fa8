//! `--fallback cpu` while a model runs: the cpu backend stands by and takes over what a Neuron device leaves.
//!
//! Nothing of it is loaded before it is needed; what would be refused is refused at the start.

use std::sync::{Arc, OnceLock};

use njoule_models::checkpoint::{Checkpoint, Origin};
use njoule_runtime::EngineConfig;
use njoule_runtime::backend::{Capacity, Limits, MemoryUse};
use njoule_runtime::engine::Standby;

use super::backend::AnyBackend;
use super::{Facts, Model, RunOptions, Size};
use crate::args::UsageError;
use crate::verbs::Context;

/// What is known of it.
#[derive(Clone, Debug)]
pub(super) struct StandsBy {
    facts: Facts,
    /// Once it is loaded.
    memory: Arc<OnceLock<MemoryUse>>,
}

impl StandsBy {
    /// The facts of what has taken over, for this reason.
    pub(super) fn facts(&self, why: &str) -> Facts {
        let reason = format!("--fallback cpu: {why}");
        Facts { reason, memory: self.memory.get().copied().unwrap_or_default(), ..self.facts.clone() }
    }
}

/// What takes over from `backend`, and its facts; none where nothing was asked for.
pub(super) fn prepare(
    model: &Model,
    backend: &AnyBackend,
    size: Size,
    options: &RunOptions,
    facts: &Facts,
    configured: &impl Fn(Capacity, Limits) -> EngineConfig,
    context: &Context<'_>,
) -> Result<Option<(Standby, StandsBy)>, UsageError> {
    if !options.falls_back() || backend.name() != "neuron" {
        return Ok(None);
    }
    let cpu = options.cpu()?;
    let capacity = model.capacity(&cpu, size, options);
    let config = configured(capacity, cpu.limits(model));
    let facts = Facts {
        backend: cpu.name(),
        device: cpu.device(),
        isa: cpu.isa(),
        quant: options.quant_name(),
        kv: cpu.kv_type(),
        ..facts.clone()
    };
    let memory = Arc::new(OnceLock::new());
    let stands_by = StandsBy { facts, memory: memory.clone() };
    let (origin, program, reporter) =
        (model.checkpoint.origin.clone(), model.program.clone(), context.fetch.reporter.clone());
    let standby: Standby = Box::new(move |error| {
        reporter.note(&format!("warning: the device failed, going on on cpu (--fallback cpu): {error}"));
        let opened = match &origin {
            Origin::Directory(path) | Origin::Gguf(path) => Checkpoint::open(path),
            Origin::Preset(name) => Checkpoint::random(name),
        };
        let checkpoint = opened.map_err(|error| error.to_string())?;
        let loaded = cpu.load_program(&program, checkpoint.weights.as_ref(), capacity);
        let executor = loaded.map_err(|error| error.to_string())?;
        memory.get_or_init(|| executor.memory());
        Ok((executor, config))
    });
    Ok(Some((standby, stands_by)))
}
