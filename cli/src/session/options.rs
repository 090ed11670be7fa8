//! The flags of every verb that runs a model.

use std::num::NonZero;

use clap::{Args, ValueEnum};
use njoule_energy::Wanted;
use njoule_runtime::backend::cpu::Waiting;
use njoule_runtime::backend::{KvType, Quant};
use njoule_runtime::policy::Objective;
use serde::{Deserialize, Serialize};

use super::backend::BackendArg;
use super::operating::Setting;
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
    /// What computes where --backend neuron cannot be had or its device fails, requests going on from where they are: `cpu`;
    /// an error without
    #[arg(long, value_enum, value_name = "BACKEND")]
    fallback: Option<FallbackArg>,
    /// Neuron instance type that modules are built for where there is no artifact [default: this machine]
    #[arg(long, env = "NJOULE_INSTANCE", value_name = "TYPE")]
    instance: Option<String>,
    /// Threads that compute [default: the cores of this machine]
    #[arg(long, short = 't', value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// How threads of the cpu backend wait for each other within a step; between steps they sleep [default: brief]
    #[arg(long, value_enum, value_name = "HOW")]
    wait: Option<WaitArg>,
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

/// `--wait`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitArg {
    /// Poll for as long as going to sleep takes, then sleep
    #[default]
    Brief,
    /// Sleep at once: fewer CPU-seconds where cores are shared or steps long
    Park,
    /// Poll for longer: a little faster where nobody else wants the cores
    Spin,
}

impl WaitArg {
    /// All of them.
    pub const ALL: [WaitArg; 3] = [WaitArg::Brief, WaitArg::Park, WaitArg::Spin];

    /// The backend's name for it.
    pub fn waiting(self) -> Waiting {
        match self {
            WaitArg::Brief => Waiting::Brief,
            WaitArg::Park => Waiting::Park,
            WaitArg::Spin => Waiting::Spin,
        }
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            WaitArg::Brief => "brief",
            WaitArg::Park => "park",
            WaitArg::Spin => "spin",
        }
    }
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
    /// How they wait for each other.
    pub wait: WaitArg,
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

    /// Whether a way of waiting was named.
    pub fn names_wait(&self) -> bool {
        self.wait.is_some()
    }

    /// What was tuned, in the place of what was not named. A part of a machine uses no more threads than it has. With
    /// [`Objective::TokensPerJoule`] steps keep to the threads that were found while promises allow, and use all otherwise.
    pub fn tuned(&self, options: RunOptions, setting: &Setting, whole_machine: bool) -> RunOptions {
        let most = |threads: NonZero<usize>| if whole_machine { threads } else { threads.min(options.threads) };
        let found = setting.threads.map(most);
        let (threads, schedule) = match (options.schedule.objective(), found) {
            (Objective::TokensPerJoule(_), Some(found)) => (None, options.schedule.with_thrifty_workers(found)),
            (Objective::TokensPerJoule(_), None) => (None, options.schedule),
            (Objective::Latency | Objective::Throughput, found) => (found, options.schedule),
        };
        RunOptions {
            threads: self.threads.or(threads).unwrap_or(options.threads),
            batch_size: options.batch_size.or(setting.batch.map(NonZero::get)),
            wait: self.wait.or(setting.wait).unwrap_or_default(),
            schedule,
            ..options
        }
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
            wait: self.wait.unwrap_or_default(),
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

    /// The stored type as it was typed.
    pub fn quant_arg(&self) -> QuantArg {
        self.quant
    }

    /// The same with another stored type.
    pub fn stored_as(self, quant: QuantArg) -> RunOptions {
        RunOptions { quant, ..self }
    }

    /// The same with another type of the cache.
    pub fn caching_as(self, kv: KvType) -> RunOptions {
        RunOptions { kv: Some(kv), ..self }
    }

    /// The type of the cache, if one was named.
    pub fn kv(&self) -> Option<KvType> {
        self.kv
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
