//! Which backend runs a model, and why that one.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use njoule_kernels::isa::Kernels;
use njoule_models::program::Program;
use njoule_models::weights::WeightSource;
#[cfg(feature = "candle")]
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::cpu::{CpuBackend, StoredWeights};
#[cfg(target_os = "linux")]
use njoule_runtime::backend::neuron::{NeuronBackend, artifact::Layout, plan::Wish};
use njoule_runtime::backend::{Backend, Capacity, Executor, KvType, Limits, LoadError, Quant};

#[cfg(target_os = "linux")]
use super::Interrupted;
use super::Model;
use super::options::{FallbackArg, RunOptions};
#[cfg(target_os = "linux")]
use super::{neuron, planning};
use crate::args::UsageError;
use crate::verbs::Context;

/// `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// A GPU where this build and the machine have one, else cpu, else what cpu lacks by candle
    Auto,
    /// This project's own kernels
    Cpu,
    /// candle-core's tensors: weights in f32 or bf16; slower than cpu, on a GPU with the features cuda or metal
    Candle,
    /// AWS Inferentia2 and Trainium, by the Neuron runtime; modules are built into the cache where there is no artifact
    Neuron,
}

/// A backend that can be loaded.
#[derive(Clone, Debug)]
pub enum AnyBackend {
    /// `--backend cpu`.
    Cpu(CpuBackend),
    /// `--backend candle`.
    #[cfg(feature = "candle")]
    Candle(CandleBackend),
    /// `--backend neuron`.
    #[cfg(target_os = "linux")]
    Neuron(NeuronBackend),
}

/// A loaded model and what runs it.
pub struct Loaded {
    /// What it was loaded for.
    pub capacity: Capacity,
    /// The model.
    pub executor: Box<dyn Executor>,
    /// What runs it.
    pub backend: AnyBackend,
    /// Why that one.
    pub reason: String,
}

impl AnyBackend {
    /// As it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            AnyBackend::Cpu(_) => "cpu",
            #[cfg(feature = "candle")]
            AnyBackend::Candle(_) => "candle",
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(_) => "neuron",
        }
    }

    /// What it computes on: `cpu`, `cuda` or `metal`.
    pub fn device(&self) -> &'static str {
        match self {
            AnyBackend::Cpu(_) => "cpu",
            #[cfg(feature = "candle")]
            AnyBackend::Candle(candle) => candle.device(),
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(_) => "neuron",
        }
    }

    /// Degree of tensor parallelism.
    pub fn tp(&self) -> usize {
        match self {
            AnyBackend::Cpu(_) => 1,
            #[cfg(feature = "candle")]
            AnyBackend::Candle(_) => 1,
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(neuron) => neuron.layout().tp,
        }
    }

    /// Instruction set of its kernels; of cpu alone.
    pub fn isa(&self) -> Option<&'static str> {
        match self {
            AnyBackend::Cpu(cpu) => Some(cpu.isa().name()),
            #[cfg(feature = "candle")]
            AnyBackend::Candle(_) => None,
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(_) => None,
        }
    }

    /// This machine's kernels where a roofline of its CPU says something.
    pub fn kernels(&self) -> Option<&'static Kernels> {
        match self {
            AnyBackend::Cpu(cpu) => Kernels::of(cpu.isa()),
            #[cfg(feature = "candle")]
            AnyBackend::Candle(candle) => (candle.device() == "cpu").then(|| Kernels::detect().ok()).flatten(),
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(_) => None,
        }
    }

    /// The cache type it will use.
    pub fn kv_type(&self) -> KvType {
        match self {
            AnyBackend::Cpu(cpu) => cpu.kv_type(),
            #[cfg(feature = "candle")]
            AnyBackend::Candle(candle) => candle.kv_type(),
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(neuron) => neuron.layout().kv,
        }
    }

    /// What compiling its modules took.
    pub fn compile(&self) -> Option<Duration> {
        match self {
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(neuron) => {
                let seconds = neuron.artifact().manifest.modules.iter().map(|module| module.seconds).sum();
                Duration::try_from_secs_f64(seconds).ok()
            }
            _ => None,
        }
    }

    /// What it can do with `model`.
    pub fn limits(&self, model: &Model) -> Limits {
        self.backend().limits(&model.program)
    }

    /// Bytes of `model`'s matrices per stored type.
    pub fn stored_types(&self, model: &Model) -> anyhow::Result<BTreeMap<&'static str, usize>> {
        let weights = model.checkpoint.weights.as_ref();
        Ok(match self {
            AnyBackend::Cpu(cpu) => StoredWeights::preview(&model.program, weights, cpu.quant)?,
            #[cfg(feature = "candle")]
            AnyBackend::Candle(candle) => candle.stored_types(&model.program, weights)?,
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(neuron) => neuron.stored_types(),
        })
    }

    /// What becomes of weights that the checkpoint has quantised, a line for each way.
    fn notes(&self, model: &Model) -> anyhow::Result<Vec<String>> {
        let weights = model.checkpoint.weights.as_ref();
        Ok(match self {
            AnyBackend::Cpu(cpu) => StoredWeights::notes(&model.program, weights, cpu.quant)?,
            #[cfg(feature = "candle")]
            AnyBackend::Candle(_) => {
                let dequantised = weights.quantization().map(|q| format!("{} weights are dequantised", q.name()));
                dequantised.into_iter().collect()
            }
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(_) => vec![],
        })
    }

    fn backend(&self) -> &dyn Backend {
        match self {
            AnyBackend::Cpu(cpu) => cpu,
            #[cfg(feature = "candle")]
            AnyBackend::Candle(candle) => candle,
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(neuron) => neuron,
        }
    }

    /// The stored type of weights, where the backend has decided on one.
    pub fn weights(&self) -> Option<&'static str> {
        match self {
            AnyBackend::Cpu(_) => None,
            #[cfg(feature = "candle")]
            AnyBackend::Candle(_) => None,
            #[cfg(target_os = "linux")]
            AnyBackend::Neuron(neuron) => Some(neuron::flags::weights_name(neuron.layout().weights)),
        }
    }

    fn load(&self, model: &Model, capacity: Capacity) -> Result<Box<dyn Executor>, LoadError> {
        self.load_program(&model.program, model.checkpoint.weights.as_ref(), capacity)
    }

    /// Loads a program with its weights.
    pub(super) fn load_program(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Executor>, LoadError> {
        self.backend().load(program, weights, capacity)
    }
}

impl RunOptions {
    /// Refuses what no backend of this build can do, before anything is opened.
    pub(super) fn check_backend(&self) -> Result<(), UsageError> {
        match self.backend {
            BackendArg::Auto | BackendArg::Cpu => Ok(()),
            BackendArg::Candle => self.candle().map(drop),
            BackendArg::Neuron => self.check_neuron(),
        }
    }

    /// Loads `model` with the backend that was asked for, or the best one.
    pub fn load(
        &self,
        model: &Model,
        capacity: impl Fn(&AnyBackend) -> Capacity,
        context: &Context<'_>,
    ) -> anyhow::Result<Loaded> {
        let failed = || format!("cannot load {}", model.name);
        #[cfg(target_os = "linux")]
        if self.backend == BackendArg::Neuron || model.artifact.is_some() {
            if let Some(artifact) = &model.artifact {
                self.check_artifact(artifact)?;
            }
            neuron::Limits::of(&context.fetch.env)?;
            match self.load_neuron(model, &capacity, context) {
                Err(error) if self.falls_back() && !error.is::<Interrupted>() => {
                    context.note(&format!("running on cpu (--fallback cpu): {error:#}"));
                    let (backend, reason) = (self.cpu()?, format!("{error:#}"));
                    let capacity = capacity(&backend);
                    let executor = backend.load(model, capacity).with_context(failed)?;
                    return Ok(Loaded { capacity, executor, backend, reason });
                }
                result => return result.with_context(failed),
            }
        }
        let (backend, reason) = self.first_choice()?;
        let asked = capacity(&backend);
        let error = match backend.load(model, asked) {
            Ok(executor) => {
                backend.notes(model)?.iter().for_each(|note| context.note(note));
                if self.backend == BackendArg::Auto && backend.name() != "cpu" {
                    context.note(&format!("running on {} ({}): {reason}", backend.name(), backend.device()));
                }
                return Ok(Loaded { capacity: asked, executor, backend, reason });
            }
            Err(error) => error,
        };
        let cpu_lacks = matches!(error, LoadError::Unsupported { backend: "cpu", .. });
        if !cpu_lacks || self.backend != BackendArg::Auto {
            return Err(error).with_context(failed);
        }
        let both = |other: &dyn std::fmt::Display| anyhow!("{error}; {other}").context(failed());
        let backend = self.candle().map_err(|other| both(&other))?;
        let capacity = capacity(&backend);
        let reason = error.to_string();
        context.note(&format!("running on candle ({}), slower than cpu: {reason}", backend.device()));
        match backend.load(model, capacity) {
            Ok(executor) => {
                backend.notes(model)?.iter().for_each(|note| context.note(note));
                Ok(Loaded { capacity, executor, backend, reason })
            }
            Err(other @ LoadError::Unsupported { .. }) => Err(both(&other)),
            Err(other) => Err(other).with_context(failed),
        }
    }

    /// The backend that would be tried first for `model`, if that is not Neuron's.
    pub fn without_device(&self, model: &Model) -> Result<Option<AnyBackend>, UsageError> {
        #[cfg(target_os = "linux")]
        if self.backend == BackendArg::Neuron || model.artifact.is_some() {
            return Ok(None);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = model;
        Ok(Some(self.first_choice()?.0))
    }

    fn first_choice(&self) -> Result<(AnyBackend, String), UsageError> {
        let asked = "--backend asks for it".to_owned();
        match self.backend {
            BackendArg::Cpu => Ok((self.cpu()?, asked)),
            BackendArg::Candle => Ok((self.candle()?, asked)),
            BackendArg::Neuron => Err(no_neuron()),
            BackendArg::Auto if !(cfg!(feature = "cuda") || cfg!(feature = "metal")) => {
                Ok((self.cpu()?, "this build has no GPU backend".to_owned()))
            }
            BackendArg::Auto => match self.candle() {
                Ok(gpu) if gpu.device() != "cpu" => {
                    let reason = format!("a {} device was found", gpu.device());
                    Ok((gpu, reason))
                }
                Ok(_) => Ok((self.cpu()?, "no GPU was found".to_owned())),
                Err(error) => Ok((self.cpu()?, error.to_string())),
            },
        }
    }

    #[cfg(target_os = "linux")]
    fn load_neuron(
        &self,
        model: &Model,
        capacity: impl Fn(&AnyBackend) -> Capacity,
        context: &Context<'_>,
    ) -> anyhow::Result<Loaded> {
        let backend = AnyBackend::Neuron(self.neuron(model, context)?);
        let capacity = capacity(&backend);
        let executor = backend.load(model, capacity)?;
        let reason = if model.artifact.is_some() { "the model is an artifact" } else { "--backend asks for it" };
        Ok(Loaded { capacity, executor, backend, reason: reason.to_owned() })
    }

    /// What a model for Neuron devices looks like, where it would be run on such; it is built if need be.
    #[cfg(target_os = "linux")]
    pub fn neuron_layout(&self, model: &Model, context: &Context<'_>) -> anyhow::Result<Option<Layout>> {
        match &model.artifact {
            Some(artifact) => self.check_artifact(artifact)?,
            None if self.backend != BackendArg::Neuron => return Ok(None),
            None => {}
        }
        Ok(Some(self.neuron(model, context)?.layout().clone()))
    }

    #[cfg(target_os = "linux")]
    fn neuron(&self, model: &Model, context: &Context<'_>) -> anyhow::Result<NeuronBackend> {
        let usual = Wish::default();
        let wish = Wish {
            context: match model.artifact {
                Some(_) => usual.context, // not planned any more
                None => planning::longest(self.context, model)?,
            },
            weights: Some(self.quant()).filter(|q| *q != Quant::Auto),
            kv: self.kv,
            batch: self.batch_size,
            candidates: usual.candidates.min(model.program.vocab()),
            ..usual
        };
        let instance = self.instance.as_deref().filter(|name| !name.is_empty());
        neuron::backend(model, instance, &wish, context)
    }

    /// What Neuron devices do not store is refused by name, before anything is opened.
    fn check_neuron(&self) -> Result<(), UsageError> {
        if !cfg!(target_os = "linux") {
            return Err(no_neuron());
        }
        if self.quant() == Quant::Int4 {
            return Err(UsageError("--quant int4: on Neuron weights are none (f32), bf16 or int8".into()));
        }
        match self.kv {
            Some(KvType::F16) => Err(UsageError("--kv-type f16: on Neuron caches are f32, bf16 or int8".into())),
            _ => Ok(()),
        }
    }

    /// Whether the cpu backend goes on where Neuron cannot be had, or fails later.
    pub(super) fn falls_back(&self) -> bool {
        self.fallback == Some(FallbackArg::Cpu)
    }

    pub(super) fn cpu(&self) -> Result<AnyBackend, UsageError> {
        let mut backend = CpuBackend::new(self.threads, self.quant()).map_err(|e| UsageError(e.to_string()))?;
        (backend.kv, backend.waiting) = (self.kv, self.wait.waiting());
        #[cfg(target_os = "linux")]
        backend.shared.clone_from(&self.shared);
        Ok(AnyBackend::Cpu(backend))
    }

    #[cfg(feature = "candle")]
    fn candle(&self) -> Result<AnyBackend, UsageError> {
        let mut backend = CandleBackend::new(self.quant());
        backend.kv = self.kv;
        backend.check_types().map_err(|e| UsageError(e.to_string()))?;
        Ok(AnyBackend::Candle(backend))
    }

    #[cfg(not(feature = "candle"))]
    fn candle(&self) -> Result<AnyBackend, UsageError> {
        Err(UsageError("this build has no candle backend: its feature `candle` is off".into()))
    }
}

/// Only where the Neuron runtime does not exist.
fn no_neuron() -> UsageError {
    UsageError("the Neuron runtime exists on Linux only: take --backend auto, cpu or candle".into())
}
