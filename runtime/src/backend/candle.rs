//! The candle backend: interprets a program op by op with candle-core's tensors.
//!
//! It is the oracle that other backends are compared with, so each op is written as its definition reads, and the
//! fallback for a program that the cpu backend refuses and for a machine with a GPU (features `cuda` and `metal`).
//!
//! **Rounding points.** All arithmetic is f32 on every device. Where a matrix or the cache is stored as bf16, what
//! multiplies it is rounded to bf16 first (nearest, ties to even), the products are accumulated in f32, and the result
//! is not rounded. The modules for Neuron follow this table:
//!
//! | value | in bf16 mode |
//! |---|---|
//! | matrices: linear, experts, embeddings, output head | stored bf16 |
//! | norm weights, biases, sinks, rotary frequencies | stored f32 |
//! | keys (after rope) and values | stored bf16: rounded as they enter the cache, before any query sees them |
//! | the input of every matrix product; queries (after rope) | rounded to bf16 |
//! | accumulation, bias, result of every product | f32 |
//! | residual stream, norms, activations, gates, soft caps, experts' shares and their sum | f32 |
//! | rope: angle = position * frequency, cosine, sine, rotation | f32 |
//! | scores, scale, soft cap, maximum, exponentials | f32 |
//! | exponentials as they multiply the values | rounded to bf16, not yet normalised |
//! | softmax's denominator | f32 sum of the exponentials before that rounding; it divides the product |
//! | logits | f32 |
//!
//! With weights and cache in f32 nothing is rounded.

mod attention;
mod interpret;
mod noise;
mod ops;
mod weights;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use njoule_models::program::{CacheId, Program, Val, WeightUse};
use njoule_models::weights::{WeightError, WeightSource};

use self::attention::Cache;
pub use self::noise::Noise;
use self::weights::Weights;
use super::{
    Backend, Batch, Capacity, Cost, CostModel, Executor, KvType, Limits, LoadError, MemoryUse, PREFIX_LEN, Quant,
    Routes, StepError, StepOutput, Streams, rope_border,
};

/// How to run with candle.
#[derive(Clone, Debug)]
pub struct CandleBackend {
    /// How weights are stored: f32, bf16, or by the file's own type ([`Quant::Auto`]: f32 where that is f32, else bf16).
    pub quant: Quant,
    /// Type of the cache, f32 or bf16; f32 with [`Quant::None`], else bf16, if unset.
    pub kv: Option<KvType>,
    device: Device,
}

impl CandleBackend {
    /// On the first GPU that this build can use and the machine has, else on the CPU.
    pub fn new(quant: Quant) -> Self {
        // Without its feature each is an error at once.
        let device = Device::new_cuda(0).or_else(|_| Device::new_metal(0)).unwrap_or(Device::Cpu);
        CandleBackend { quant, kv: None, device }
    }

    /// On the CPU.
    pub fn on_cpu(quant: Quant) -> Self {
        CandleBackend { quant, kv: None, device: Device::Cpu }
    }

    /// `cpu`, `cuda` or `metal`.
    pub fn device(&self) -> &'static str {
        match self.device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        }
    }

    /// The cache type it will use.
    pub fn kv_type(&self) -> KvType {
        self.kv.unwrap_or(if self.quant == Quant::None { KvType::F32 } else { KvType::Bf16 })
    }

    /// Refuses stored types that it lacks; the element type of the cache.
    pub fn check_types(&self) -> Result<(), LoadError> {
        let refuse = |what| Err(LoadError::Unsupported { backend: "candle", what });
        match self.quant {
            Quant::None | Quant::Bf16 | Quant::Auto => {}
            Quant::Int8 => return refuse("it stores weights in f32 or bf16, not in int8".to_owned()),
            Quant::Int4 => return refuse("it stores weights in f32 or bf16, not in int4".to_owned()),
        }
        match self.kv_type() {
            KvType::F32 | KvType::Bf16 => Ok(()),
            KvType::F16 => refuse("its cache is in f32 or bf16, not in f16".to_owned()),
            KvType::Int8 => refuse("its cache is in f32 or bf16, not in int8".to_owned()),
        }
    }

    /// Bytes that the matrices will take per stored type, without reading them.
    pub fn stored_types(
        &self,
        program: &Program,
        source: &dyn WeightSource,
    ) -> Result<BTreeMap<&'static str, usize>, WeightError> {
        let mut types = BTreeMap::new();
        for decl in program.weights.iter().filter(|d| d.usage != WeightUse::Vector) {
            let dtype = weights::stored(decl, source.get(decl)?.encoding(), self.quant);
            *types.entry(dtype.as_str()).or_default() += decl.all_rows() * decl.cols * dtype.size_in_bytes();
        }
        Ok(types)
    }

    /// [`Backend::load`] with the type it returns.
    pub fn load_candle(
        &self,
        program: &Program,
        source: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<CandleExecutor, LoadError> {
        self.check_types()?;
        let weights = Weights::load(program, source, self.quant, &self.device)?;
        let kv = if self.kv_type() == KvType::F32 { DType::F32 } else { DType::BF16 };
        let cache = |info| Cache::new(info, &capacity, kv, &self.device);
        let caches: Vec<Cache> = program.caches.iter().copied().map(cache).collect::<Result<_, _>>()?;
        Ok(CandleExecutor {
            memory: MemoryUse {
                weights: weights.bytes(),
                kv: caches.iter().map(Cache::bytes).sum(),
                scratch: capacity.max_outputs * program.vocab() * 4,
            },
            streamed: program.streamed_weights().into_iter().map(|id| weights.bytes_of(id)).sum(),
            last_uses: last_uses(program),
            kv: self.kv_type(),
            program: program.clone(),
            device: self.device.clone(),
            weights,
            caches,
            capacity,
            logits: None,
            routes: None,
            streams: None,
            noise: None,
        })
    }
}

impl Backend for CandleBackend {
    fn limits(&self, program: &Program) -> Limits {
        // Its products choose their order of sums by the number of rows, so that guesses could change an answer.
        Limits { rope_border: rope_border(program), drafts: false, ..Limits::paged(PREFIX_LEN) }
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Executor>, LoadError> {
        Ok(Box::new(self.load_candle(program, weights, capacity)?))
    }
}

/// A model loaded with candle. Activations are allocated as a step needs them: [`MemoryUse::scratch`] counts the logits
/// alone.
#[derive(Debug)]
pub struct CandleExecutor {
    program: Program,
    device: Device,
    weights: Weights,
    caches: Vec<Cache>,
    capacity: Capacity,
    /// Per op, the activations that no later op reads.
    last_uses: Vec<Vec<Val>>,
    /// The last step's logits, on the device.
    logits: Option<Tensor>,
    /// What routers chose, where somebody asked for it.
    routes: Option<Routes>,
    /// What layers read in place of what those below have computed.
    streams: Option<(Vec<Val>, Streams)>,
    /// What sums are off by.
    noise: Option<Noise>,
    memory: MemoryUse,
    streamed: usize,
    kv: KvType,
}

impl CandleExecutor {
    /// From here on notes what routers choose.
    pub fn note_routes(&mut self) {
        self.routes = Some(Routes::new());
    }

    /// What they chose since, if it was to be noted.
    pub fn routes(&self) -> Option<&Routes> {
        self.routes.as_ref()
    }

    /// From here on what an op has summed up is off by this, or by nothing: what changes then depends on the order of sums.
    pub fn disturb(&mut self, noise: Option<Noise>) {
        self.noise = noise;
    }

    /// Keys and values of a cache, `[slots, columns]` each.
    pub fn cached(&self, cache: CacheId) -> Result<[Vec<Vec<f32>>; 2], StepError> {
        self.caches[cache.0 as usize].rows().map_err(device_failure)
    }

    /// From here on attention reads these keys and values of a cache, `[slots, columns]` each, in place of those that this
    /// executor computes; [`CandleExecutor::cached`] still gives the latter. With [`CandleExecutor::follow_streams`] two executors
    /// are compared so layer by layer: one sum in bf16 that lies between two numbers and is rounded either way is then not
    /// carried into the layers above.
    pub fn follow(&mut self, cache: CacheId, rows: [Vec<Vec<f32>>; 2]) -> Result<(), StepError> {
        self.caches[cache.0 as usize].follow(rows).map_err(device_failure)
    }

    /// From here on every layer but the first reads these [`Program::streams`] in place of what the layers below compute. A
    /// token that is not among them is an error of the step.
    pub fn follow_streams(&mut self, streams: Streams) {
        self.streams = Some((self.program.streams(), streams));
    }
}

impl Executor for CandleExecutor {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        self.logits = None;
        batch.check(&self.program, &self.capacity)?;
        if batch.rows() > 0 {
            self.logits = self.run(batch).map_err(device_failure)?;
        }
        Ok(())
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        out.vocab = self.program.vocab();
        out.stride = out.vocab;
        out.rows = 0;
        if let Some(logits) = self.logits.take() {
            out.rows = logits.dim(0).map_err(device_failure)?;
            out.logits = logits.flatten_all().and_then(|l| l.to_vec1()).map_err(device_failure)?;
        }
        Ok(())
    }

    fn cost(&self, batch: &Batch) -> Cost {
        Cost::of_step(&self.program, batch, self.streamed as f64, self.kv)
    }

    fn cost_model(&self) -> CostModel {
        CostModel::new(&self.program, self.streamed as f64, self.kv)
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }
}

fn device_failure(error: candle_core::Error) -> StepError {
    StepError::Device(error.to_string())
}

/// What each op is the last to read; what nobody reads goes where it is written.
fn last_uses(program: &Program) -> Vec<Vec<Val>> {
    let mut seen = vec![false; program.vals.len()];
    seen[program.logits.0 as usize] = true;
    let mut uses: Vec<Vec<Val>> = Vec::with_capacity(program.ops.len());
    for op in program.ops.iter().rev() {
        let mut last = op.inputs();
        last.extend(op.outputs());
        last.retain(|v| !std::mem::replace(&mut seen[v.0 as usize], true));
        uses.push(last);
    }
    uses.reverse();
    uses
}
