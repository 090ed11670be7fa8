//! The cpu backend: packs weights for the instruction set at hand, compiles a program into one plan, and replays it.
//!
//! Results are bit-identical for any batch, chunking and number of threads (`njoule_kernels` says why). All memory is
//! taken at load: a step does not allocate.

mod compile;
pub(in crate::backend) mod store;

use std::num::NonZero;
#[cfg(target_os = "linux")]
use std::sync::Arc;

use njoule_kernels::isa::{Isa, IsaError, Kernels};
use njoule_kernels::kv::KvStored;
use njoule_kernels::plan::{Plan, Span, StepInput};
#[cfg(target_os = "linux")]
pub use njoule_kernels::shared::Shared;
use njoule_kernels::team::Team;
pub use njoule_kernels::team::Waiting;
use njoule_models::program::{Op, Program, RowSet, WeightId};
use njoule_models::weights::WeightSource;

use super::{
    Backend, Batch, Capacity, Cost, CostModel, Executor, KvType, Limits, LoadError, MemoryUse, PREFIX_LEN, Quant,
    StepError, StepOutput, rope_border,
};
pub use store::StoredWeights;

/// How to run on this machine's CPU.
#[derive(Clone, Debug)]
pub struct CpuBackend {
    /// Threads of the team.
    pub threads: NonZero<usize>,
    /// How weights are stored.
    pub quant: Quant,
    /// Type of the cache; f32 with [`Quant::None`], else bf16 where the CPU multiplies it and f16 otherwise, if unset.
    pub kv: Option<KvType>,
    /// How threads wait for each other within a step.
    pub waiting: Waiting,
    /// Where packed weights lie that other processes read as well.
    #[cfg(target_os = "linux")]
    pub shared: Option<Arc<Shared>>,
    kernels: &'static Kernels,
}

impl CpuBackend {
    /// The best instruction set of this CPU, or the one that `NJOULE_ISA` names.
    pub fn new(threads: NonZero<usize>, quant: Quant) -> Result<Self, IsaError> {
        Ok(CpuBackend {
            threads,
            quant,
            kv: None,
            waiting: Waiting::default(),
            #[cfg(target_os = "linux")]
            shared: None,
            kernels: Kernels::detect()?,
        })
    }

    /// The same on another instruction set; `None` where the CPU lacks it.
    pub fn with_isa(self, isa: Isa) -> Option<Self> {
        Some(CpuBackend { kernels: Kernels::of(isa)?, ..self })
    }

    /// Its instruction set.
    pub fn isa(&self) -> Isa {
        self.kernels.isa
    }

    /// The cache type it will use.
    pub fn kv_type(&self) -> KvType {
        self.kv.unwrap_or(match self.quant {
            Quant::None => KvType::F32,
            _ if self.kernels.bf16 => KvType::Bf16,
            _ => KvType::F16,
        })
    }

    fn stored(&self, program: &Program, weights: &dyn WeightSource) -> Result<StoredWeights, LoadError> {
        #[cfg(target_os = "linux")]
        if let Some(shared) = &self.shared {
            return StoredWeights::load_shared(program, weights, self.quant, shared);
        }
        StoredWeights::load(program, weights, self.quant)
    }

    /// [`Backend::load`] with the type it returns.
    pub fn load_cpu(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<CpuExecutor, LoadError> {
        let stored = self.stored(program, weights)?;
        let weight_bytes = stored.bytes();
        let plan = compile::plan(program, &stored, self.kernels, kv_stored(self.kv_type()), capacity, self.threads)?;
        let team = Team::waiting(self.threads, self.waiting)
            .map_err(|source| LoadError::Threads { count: self.threads.get(), source })?;
        let logits = vec![0.0; capacity.max_outputs * plan.logits_stride()];
        Ok(CpuExecutor {
            memory: MemoryUse {
                weights: weight_bytes,
                kv: plan.cache_bytes(),
                scratch: plan.arena_bytes() + logits.len() * 4,
            },
            plan,
            team,
            spans: Vec::with_capacity(capacity.max_seqs),
            tables: Vec::with_capacity(capacity.max_seqs * capacity.max_len.div_ceil(capacity.block_len.max(1))),
            logits,
            outputs: 0,
            program: program.clone(),
            streamed: Streamed::new(program, &stored),
            kv: self.kv_type(),
        })
    }
}

impl Backend for CpuBackend {
    fn limits(&self, program: &Program) -> Limits {
        Limits { rope_border: rope_border(program), ..Limits::paged(PREFIX_LEN) }
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Executor>, LoadError> {
        Ok(Box::new(self.load_cpu(program, weights, capacity)?))
    }
}

fn kv_stored(kv: KvType) -> KvStored {
    match kv {
        KvType::F32 => KvStored::F32,
        KvType::Bf16 => KvStored::Bf16,
        KvType::F16 => KvStored::F16,
        KvType::Int8 => KvStored::Int8,
    }
}

/// A model loaded on the CPU.
#[derive(Debug)]
pub struct CpuExecutor {
    plan: Plan,
    team: Team,
    spans: Vec<Span>,
    tables: Vec<u32>,
    logits: Vec<f32>,
    outputs: usize,
    memory: MemoryUse,
    program: Program,
    streamed: Streamed,
    kv: KvType,
}

/// Weight bytes that a step reads.
#[derive(Debug)]
struct Streamed {
    /// Whatever its rows.
    always: usize,
    experts: Vec<ExpertBytes>,
}

/// The stacks of a mixture of experts.
#[derive(Debug)]
struct ExpertBytes {
    bytes: usize,
    rows: RowSet,
    /// Of the experts, how many a row has.
    kept: f64,
}

impl Streamed {
    fn new(program: &Program, stored: &StoredWeights) -> Streamed {
        let is_stack = |id: &WeightId| program.weight(*id).experts.is_some();
        let always = program.streamed_weights().into_iter().filter(|id| !is_stack(id));
        let experts = program.ops.iter().filter_map(|op| {
            let Op::MoeMlp { shares, .. } = op else { return None };
            let info = program.info(*shares);
            let bytes = op.weights().into_iter().map(|id| stored.bytes_of(id)).sum();
            let kept = program.kept_experts(*shares) as f64 / info.cols as f64;
            Some(ExpertBytes { bytes, rows: info.rows, kept })
        });
        Streamed { always: always.map(|id| stored.bytes_of(id)).sum(), experts: experts.collect() }
    }

    /// Of a step that needs every expert.
    fn all(&self) -> f64 {
        self.always as f64 + self.experts.iter().map(|e| e.bytes as f64).sum::<f64>()
    }

    /// Of a step. Which experts its rows have is known only as they are computed: the figure is what is to be expected
    /// where every expert is as likely as any other.
    fn bytes(&self, batch: &Batch) -> f64 {
        let experts = self.experts.iter().map(|e| {
            let rows = match e.rows {
                RowSet::Tokens => batch.rows(),
                RowSet::Outputs => batch.outputs.len(),
            };
            e.bytes as f64 * (1.0 - (1.0 - e.kept).powf(rows as f64))
        });
        self.always as f64 + experts.sum::<f64>()
    }
}

impl Executor for CpuExecutor {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        self.spans.clear();
        for s in &batch.seqs {
            let position = batch.positions.get(s.rows.start).map_or(0, |p| *p as usize);
            self.spans.push(Span {
                row: s.rows.start,
                rows: s.rows.len(),
                position,
                table: s.table.start,
                blocks: s.table.len(),
                rope_len: s.rope_len,
            });
        }
        self.tables.clear();
        self.tables.extend(batch.tables.iter().map(|b| b.0));
        let input = StepInput {
            tokens: &batch.tokens,
            positions: &batch.positions,
            slots: &batch.slots,
            spans: &self.spans,
            tables: &self.tables,
            outputs: &batch.outputs,
        };
        // A collected buffer belongs to the caller: the one swapped in may still be empty.
        let want = batch.outputs.len() * self.plan.logits_stride();
        if self.logits.len() < want {
            self.logits.resize(want, 0.0);
        }
        self.plan.run(&mut self.team, &input, &mut self.logits).map_err(|e| StepError::Batch(e.0))?;
        self.outputs = batch.outputs.len();
        Ok(())
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        std::mem::swap(&mut out.logits, &mut self.logits);
        out.vocab = self.program.vocab();
        out.stride = self.plan.logits_stride();
        out.rows = self.outputs;
        self.outputs = 0;
        Ok(())
    }

    fn cost(&self, batch: &Batch) -> Cost {
        Cost::of_step(&self.program, batch, self.streamed.bytes(batch), self.kv)
    }

    fn cost_model(&self) -> CostModel {
        CostModel::new(&self.program, self.streamed.all(), self.kv)
    }

    fn workers(&self) -> NonZero<usize> {
        NonZero::new(self.team.len()).unwrap_or(NonZero::<usize>::MIN)
    }

    fn set_workers(&mut self, workers: NonZero<usize>) {
        self.team.set_active(workers);
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }
}
