//! The flags of every verb that runs a model.

use std::num::NonZero;

use clap::{Args, ValueEnum};
use njoule_energy::Wanted;
use njoule_runtime::backend::{KvType, Quant};

use super::backend::BackendArg;
use super::operating::OperatingPoint;
use super::{Schedule, threads};
use crate::args::UsageError;

/// How to run a model, as typed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// How weights are stored: `none` keeps the file's values, `auto` a GGUF's own type, quantised codes as
    /// they are, and int8 for bf16 and f16 files
    #[arg(long, value_enum, default_value_t = QuantArg::Auto, value_name = "TYPE")]
    quant: QuantArg,
    /// Type of the key/value cache [default: f32 with --quant none, else bf16 or f16, whichever the CPU multiplies]
    #[arg(long, value_enum, value_name = "TYPE")]
    kv_type: Option<KvArg>,
    /// What computes
    #[arg(long, value_enum, default_value_t = BackendArg::Auto, value_name = "BACKEND")]
    backend: BackendArg,
    /// What computes where --backend neuron cannot be had: `cpu`; an error without
    #[arg(long, value_enum, value_name = "BACKEND")]
    fallback: Option<FallbackArg>,
    /// Neuron instance type that modules are built for where there is no artifact [default: this machine]
    #[arg(long, env = "NJOULE_INSTANCE", value_name = "TYPE")]
    instance: Option<String>,
    /// Threads that compute [default: the cores of this machine]
    #[arg(long, short = 't', value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Longest sequence in tokens, prompt and answer [default: what the model was made for, at most 8192]
    #[arg(long, short = 'c', visible_alias = "max-len", alias = "max-model-len", value_name = "N")]
    context: Option<NonZero<usize>>,
    /// Sequences that run together at most [default: as many as there are, at most 64]
    #[arg(long, visible_alias = "max-num-seqs", value_name = "N")]
    batch_size: Option<NonZero<usize>>,
}

/// `--fallback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FallbackArg {
    /// This project's own kernels
    Cpu,
}

/// `--quant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QuantArg {
    /// The file's values unchanged, computed in f32
    None,
    /// bfloat16
    Bf16,
    /// 8 bits
    Int8,
    /// 4 bits in groups of 32
    Int4,
    /// What suits the file
    Auto,
}

impl QuantArg {
    /// All of them, in the order of the help text.
    pub const ALL: [QuantArg; 5] = [QuantArg::None, QuantArg::Bf16, QuantArg::Int8, QuantArg::Int4, QuantArg::Auto];

    /// The backend's name for it.
    pub fn quant(self) -> Quant {
        match self {
            QuantArg::None => Quant::None,
            QuantArg::Bf16 => Quant::Bf16,
            QuantArg::Int8 => Quant::Int8,
            QuantArg::Int4 => Quant::Int4,
            QuantArg::Auto => Quant::Auto,
        }
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            QuantArg::None => "none",
            QuantArg::Bf16 => "bf16",
            QuantArg::Int8 => "int8",
            QuantArg::Int4 => "int4",
            QuantArg::Auto => "auto",
        }
    }
}

/// `--kv-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvArg {
    /// 32 bits
    F32,
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
    /// 8 bits, one scale per token and head
    Int8,
}

impl KvArg {
    /// All of them, largest first.
    pub const ALL: [KvArg; 4] = [KvArg::F32, KvArg::Bf16, KvArg::F16, KvArg::Int8];

    /// The backend's name for it.
    pub fn kv(self) -> KvType {
        match self {
            KvArg::F32 => KvType::F32,
            KvArg::Bf16 => KvType::Bf16,
            KvArg::F16 => KvType::F16,
            KvArg::Int8 => KvType::Int8,
        }
    }
}

/// A cache type as it is typed.
pub fn kv_name(kv: KvType) -> &'static str {
    match kv {
        KvType::F32 => "f32",
        KvType::Bf16 => "bf16",
        KvType::F16 => "f16",
        KvType::Int8 => "int8",
    }
}

/// How to run a model.
#[derive(Clone, Debug)]
pub struct RunOptions {
    quant: QuantArg,
    pub(super) backend: BackendArg,
    pub(super) fallback: Option<FallbackArg>,
    pub(super) kv: Option<KvType>,
    /// Neuron instance type.
    pub(super) instance: Option<String>,
    /// Threads that compute.
    pub threads: NonZero<usize>,
    /// Longest sequence, if given.
    pub context: Option<usize>,
    /// Most sequences, if given.
    pub batch_size: Option<usize>,
    /// What the engine does beyond running requests.
    pub schedule: Schedule,
    /// Processes that do the same on this machine.
    pub replicas: usize,
    /// Meters that tell the energy; none is read without.
    pub meters: Option<Wanted>,
    /// Where packed weights lie that they all read.
    #[cfg(target_os = "linux")]
    pub shared: Option<std::sync::Arc<njoule_runtime::backend::cpu::Shared>>,
}

impl RunArgs {
    /// Whether threads were named.
    pub fn names_threads(&self) -> bool {
        self.threads.is_some()
    }

    /// What was tuned, in the place of what was not named. Threads are those that steps keep to while promises allow, where
    /// that was found in joules; CPU time the policy measures itself.
    pub fn tuned(&self, options: RunOptions, point: &OperatingPoint) -> RunOptions {
        let schedule = match point.currency.as_str() {
            "joules" => options.schedule.with_thrifty_workers(point.threads),
            _ => options.schedule,
        };
        RunOptions { schedule, batch_size: options.batch_size.or(Some(point.batch.get())), ..options }
    }

    /// The options; packing uses as many threads as computing.
    pub fn options(&self) -> Result<RunOptions, UsageError> {
        let threads = self.threads.unwrap_or_else(threads::cores);
        // Fails only where a pool exists already, which then serves.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global();
        let options = RunOptions {
            quant: self.quant,
            backend: self.backend,
            fallback: self.fallback,
            kv: self.kv_type.map(KvArg::kv),
            instance: self.instance.clone(),
            threads,
            context: self.context.map(NonZero::get),
            batch_size: self.batch_size.map(NonZero::get),
            schedule: Schedule::default(),
            replicas: 1,
            meters: None,
            #[cfg(target_os = "linux")]
            shared: None,
        };
        options.check_backend()?;
        Ok(options)
    }
}

impl RunOptions {
    /// The stored type as it was typed.
    pub fn quant_name(&self) -> &'static str {
        self.quant.name()
    }

    /// The stored type.
    pub fn quant(&self) -> Quant {
        self.quant.quant()
    }

    /// The same with other threads, and another stored type if one is given.
    pub fn with(self, quant: Option<QuantArg>, threads: NonZero<usize>) -> RunOptions {
        RunOptions { quant: quant.unwrap_or(self.quant), threads, ..self }
    }

    /// The same, scheduled so.
    pub fn scheduled(self, schedule: Schedule) -> RunOptions {
        RunOptions { schedule, ..self }
    }

    /// The same, its energy read from these meters.
    pub fn metered(self, meters: Wanted) -> RunOptions {
        RunOptions { meters: Some(meters), ..self }
    }

    /// How many of `wanted` sequences run together.
    pub fn sequences(&self, wanted: usize) -> usize {
        self.batch_size.unwrap_or(MAX_SEQS).min(wanted).max(1)
    }
}

/// Sequences that run together unless more is asked for: beyond, a step's gain is small and everybody waits longer.
const MAX_SEQS: usize = 64;
