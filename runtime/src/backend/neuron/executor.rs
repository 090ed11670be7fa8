//! Models on Neuron cores: an artifact is loaded, a batch becomes runs of its modules, candidates come back.
//!
//! Each core has a thread of its own, which makes all calls for it; this side cuts batches, hands work over and waits, with a
//! deadline. Whatever libnrt answers has an outcome: a full queue is waited for, an index out of bounds fails the
//! sequences that have it (`narrow.rs`), and anything else, a hang above all, ends the device's life in this process: the
//! process should be replaced. No request is lost: every step that was submitted ends in a result or an error.
//!
//! Nothing here has run on Neuron hardware.

mod cut;
mod device;
mod group;
mod narrow;
mod padding;
mod rank;
mod step;

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use njoule_models::program::Program;
use njoule_models::weights::WeightSource;
use njoule_neuron_sys::Status;

use self::cut::{Buckets, Cut};
pub(super) use self::device::runtime;
pub use self::device::{close, prepare_process};
use self::group::Group;
use self::padding::Shape;
use self::rank::{Failure, Report};
use self::step::{Io, Work};
use super::artifact::{Artifact, Layout};
use super::interface::Input;
use crate::backend::{
    Backend, Batch, Capacity, Cost, CostModel, Executor, Limits, LoadError, MemoryUse, Padding, Returned, RowClass,
    StepError, StepOutput, Wants, rope_border,
};

/// How to run an artifact on this machine.
#[derive(Clone)]
pub struct NeuronBackend {
    artifact: Arc<Artifact>,
    buckets: Arc<Buckets>,
    /// Time that a run of a module may take, the runtime's own timeout included.
    pub step_limit: Duration,
    /// Time that loading may go without a sign of life.
    pub load_limit: Duration,
    /// Hears of bytes that arrived on the cores.
    pub on_load: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

impl NeuronBackend {
    /// Of an artifact that was opened.
    pub fn new(artifact: Artifact) -> NeuronBackend {
        let buckets = Arc::new(Buckets::new(&artifact.manifest.layout));
        let artifact = Arc::new(artifact);
        NeuronBackend { artifact, buckets, step_limit: STEP_LIMIT, load_limit: LOAD_LIMIT, on_load: None }
    }

    /// The artifact.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// What it was laid out for.
    pub fn layout(&self) -> &Layout {
        &self.artifact.manifest.layout
    }

    /// The largest capacity that it has: it is fixed by its modules.
    pub fn capacity(&self) -> Capacity {
        let classes = self.buckets.row_classes();
        let rows: usize = classes.iter().map(|c| c.rows).sum();
        let max_len = longest(&classes);
        let chunk = self.buckets.chunk();
        // Outputs of a step that scores: a chunk's.
        Capacity {
            blocks: rows,
            block_len: max_len,
            max_rows: rows + chunk,
            max_seqs: rows,
            max_outputs: rows + chunk,
            max_len,
        }
    }

    /// Bytes per stored type, on all cores.
    pub fn stored_types(&self) -> std::collections::BTreeMap<&'static str, usize> {
        let m = &self.artifact.manifest;
        let mut types = std::collections::BTreeMap::new();
        for p in &m.parameters {
            let name = match p.dtype() {
                njoule_hlo::DType::S8 => "int8",
                njoule_hlo::DType::BF16 => "bf16",
                _ => "f32",
            };
            *types.entry(name).or_default() += usize::try_from(p.bytes).unwrap_or(usize::MAX) * m.layout.tp;
        }
        types
    }

    /// Bytes that are written to all cores at load.
    pub fn weight_bytes(&self) -> u64 {
        let m = &self.artifact.manifest;
        m.parameters.iter().map(|p| p.bytes).sum::<u64>() * m.layout.tp as u64
    }

    /// Loads it, weights from the artifact where it has some.
    pub fn load_neuron(
        &self,
        program: &Program,
        source: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<NeuronExecutor, LoadError> {
        let manifest = &self.artifact.manifest;
        let unsupported = |what: String| LoadError::Unsupported { backend: "neuron", what };
        let fingerprint = format!("{:016x}", program.fingerprint());
        if fingerprint != manifest.model.fingerprint {
            let (of, path) = (&manifest.model, self.artifact.dir.display());
            return Err(unsupported(format!(
                "{path} was built for {} (fingerprint {}), not for a program of fingerprint {fingerprint}",
                of.name, of.fingerprint
            )));
        }
        let largest = self.capacity();
        if capacity.blocks > largest.blocks
            || capacity.max_len > largest.max_len
            || capacity.block_len != largest.block_len
        {
            return Err(unsupported(format!(
                "{} sequences of {} tokens were asked for, it was built for {} of at most {}",
                capacity.max_seqs, capacity.max_len, largest.max_seqs, largest.max_len
            )));
        }
        let runtime = device::runtime()?;
        device::check(&runtime, &manifest.layout)?;
        let ios: Arc<Vec<Io>> = Arc::new(manifest.modules.iter().map(Io::new).collect());
        let mut group = Group::start(self, &runtime, &ios)?;
        if !self.artifact.has_weights() {
            group.pack(program, source, self)?;
        }
        let memory = group.wait_loaded(self)?;
        let streamed = program.streamed_weights();
        let is_streamed = |role: &Input| matches!(role, Input::Weight(id, _) if streamed.contains(id));
        let streamed: u64 = manifest.parameters.iter().filter(|p| is_streamed(&p.port.role)).map(|p| p.bytes).sum();
        let streamed = streamed as f64 * manifest.layout.tp as f64;
        let works = (0..manifest.layout.tp).map(|_| Some(Box::default())).collect();
        Ok(NeuronExecutor {
            program: program.clone(),
            capacity,
            buckets: Arc::clone(&self.buckets),
            ios,
            candidates: manifest.layout.candidates,
            kv: manifest.layout.kv,
            costs: CostModel::new(program, streamed, manifest.layout.kv),
            shapes: manifest.layout.modules.iter().map(Shape::of).collect(),
            streamed,
            memory: MemoryUse { weights: memory.weights, kv: memory.caches, scratch: memory.steps },
            group,
            cut: Cut::default(),
            works,
            step: Step::default(),
            limit: self.step_limit,
            unexplained: false,
            dead: None,
            error_code: None,
        })
    }
}

fn longest(classes: &[RowClass]) -> usize {
    classes.iter().map(|c| c.max_len).max().unwrap_or(0)
}

impl std::fmt::Debug for NeuronBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NeuronBackend").field("artifact", &self.artifact.dir).finish_non_exhaustive()
    }
}

impl Backend for NeuronBackend {
    fn limits(&self, program: &Program) -> Limits {
        self.layout().limits(program)
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Executor>, LoadError> {
        Ok(Box::new(self.load_neuron(program, weights, capacity)?))
    }
}

impl Layout {
    /// What its modules can do with `program`.
    pub fn limits(&self, program: &Program) -> Limits {
        let buckets = Buckets::new(self);
        let classes = buckets.row_classes();
        let choosing = || self.modules.iter().filter(|m| !is_score(m));
        Limits {
            block_len: longest(&classes),
            // One run after the other either way.
            mixed_batches: true,
            logits: buckets.scores(),
            candidates: Some(self.candidates),
            biases: choosing().map(|m| m.biases).min().unwrap_or(0),
            masks: choosing().all(|m| m.mask),
            paged: false,
            classes,
            chunk: Some(buckets.chunk()),
            rope_border: rope_border(program),
            drafts: false,
            overlaps: true,
        }
    }
}

fn is_score(spec: &super::ModuleSpec) -> bool {
    matches!(spec.kind, super::ModuleKind::Score { .. })
}

/// A model loaded on cores.
#[derive(Debug)]
pub struct NeuronExecutor {
    program: Program,
    capacity: Capacity,
    buckets: Arc<Buckets>,
    ios: Arc<Vec<Io>>,
    candidates: usize,
    kv: crate::backend::KvType,
    /// Weight bytes that a step reads, on all cores.
    streamed: f64,
    costs: CostModel,
    /// What every module computes, filled or not.
    shapes: Vec<Vec<Shape>>,
    memory: MemoryUse,
    group: Group,
    cut: Cut,
    /// Where no step is in flight, what each rank is given.
    works: Vec<Option<Box<Work>>>,
    step: Step,
    limit: Duration,
    /// The last step failed by an index that no sequence has alone.
    unexplained: bool,
    /// Why nothing more is done here.
    dead: Option<Death>,
    /// What the library answered, if the last step failed by that; a deadline of ours counts as its own.
    error_code: Option<u32>,
}

/// The end of a device's life in this process.
#[derive(Clone, Debug)]
struct Death {
    why: String,
    /// What of it a client may be told.
    told: Option<String>,
}

impl From<&Death> for StepError {
    fn from(Death { why, told }: &Death) -> StepError {
        let what = why.clone();
        told.clone().map_or(StepError::Device(why.clone()), |told| StepError::Status { what, told })
    }
}

/// The step in flight.
#[derive(Debug, Default)]
struct Step {
    started: Option<Instant>,
    outputs: Vec<u32>,
    logits: bool,
    padding: Padding,
}

impl Executor for NeuronExecutor {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        if let Some(death) = &self.dead {
            return Err(death.into());
        }
        self.error_code = None;
        batch.check(&self.program, &self.capacity)?;
        self.cut.cut(batch, &self.buckets)?;
        for (rank, work) in self.works.iter_mut().enumerate() {
            work.get_or_insert_default().fill(rank, batch, &self.cut, &self.ios)?;
        }
        self.step.outputs.clear();
        self.step.outputs.extend_from_slice(&batch.outputs);
        self.step.logits = batch.wants == Wants::Logits;
        self.step.padding = padding::of(&self.cut, batch, &self.shapes, &self.costs);
        self.step.started = Some(Instant::now());
        self.send()
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        if let Some(death) = &self.dead {
            return Err(death.into());
        }
        let Some(started) = self.step.started.take() else {
            return Err(StepError::Batch("collect without submit".to_owned()));
        };
        let failed = self.wait(started, self.cut.calls.len())?;
        match failed {
            None => {
                self.unexplained = false;
                self.take(out);
                Ok(())
            }
            Some((run, failure)) if is_out_of_bounds(&failure) => Err(self.narrow(run, failure.to_string())),
            Some((_, failure)) => Err(StepError::Busy(failure.to_string())),
        }
    }

    fn cost(&self, batch: &Batch) -> Cost {
        Cost::of_step(&self.program, batch, self.streamed, self.kv)
    }

    fn cost_model(&self) -> CostModel {
        self.costs.clone()
    }

    fn padding(&self) -> Padding {
        self.step.padding
    }

    fn error_code(&self) -> Option<u32> {
        self.error_code
    }

    fn cores(&self) -> Option<usize> {
        // One piece of work for each.
        Some(self.works.len())
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }
}

impl NeuronExecutor {
    /// Nothing more is done on this device.
    fn die(&mut self, why: String, told: Option<String>) -> StepError {
        self.group.lost = true;
        device::abandon();
        StepError::from(&*self.dead.insert(Death { why, told }))
    }

    /// Hands every rank its work.
    fn send(&mut self) -> Result<(), StepError> {
        for (rank, inbox) in self.group.inboxes.iter().enumerate() {
            let work = self.works[rank].take().unwrap_or_default();
            if inbox.send(work).is_err() {
                return Err(self.die(format!("the thread of rank {rank} is gone"), None));
            }
        }
        Ok(())
    }

    /// Waits until every rank has done `runs` runs. Of a failure that the device survives, the first that was told and at
    /// which run; any other ends its life.
    fn wait(&mut self, started: Instant, runs: usize) -> Result<Option<(usize, Failure)>, StepError> {
        let deadline = started + self.limit.saturating_mul(u32::try_from(runs).unwrap_or(u32::MAX).max(1));
        let mut mild: Option<(usize, usize, Failure)> = None;
        let also = |mild: Option<(usize, usize, Failure)>| {
            mild.map(|(rank, _, failure)| format!("; before that, rank {rank}: {failure}")).unwrap_or_default()
        };
        let mut left = self.works.len();
        while left > 0 {
            match self.group.reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((_, Report::Progress(_) | Report::Loaded(_))) => {}
                Ok((rank, Report::Done(work, result))) => {
                    left -= 1;
                    self.works[rank] = Some(work);
                    if let Err((run, failure)) = result {
                        self.error_code = status(&failure).map(|status| status.0);
                        if !is_mild(&failure) {
                            let told = status(&failure).map(|status| status.to_string());
                            return Err(self.die(format!("rank {rank}: {failure}{}", also(mild)), told));
                        }
                        mild.get_or_insert((rank, run, failure));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.error_code = Some(Status::TIMEOUT.0);
                    let (ranks, limit) = (self.missing(), self.limit);
                    let why = format!(
                        "rank {ranks} did not finish its {runs} runs within {limit:?} each and cannot be stopped{}; end \
                         this process and start a new one",
                        also(mild)
                    );
                    return Err(self.die(why, Some(format!("it did not answer within {limit:?}"))));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.die("all ranks are gone".to_owned(), None));
                }
            }
        }
        Ok(mild.map(|(_, run, failure)| (run, failure)))
    }

    /// Ranks that have not answered.
    fn missing(&self) -> String {
        let missing = self.works.iter().enumerate().filter(|(_, work)| work.is_none());
        missing.map(|(rank, _)| rank.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// The results of rank 0.
    fn take(&self, out: &mut StepOutput) {
        let outputs = self.step.outputs.len();
        out.rows = outputs;
        out.vocab = self.program.vocab();
        out.stride = out.vocab;
        if self.step.logits {
            out.returned = Returned::Logits;
            if out.logits.len() < outputs * out.stride {
                out.logits.resize(outputs * out.stride, 0.0);
            }
        } else {
            out.returned = Returned::Candidates;
            out.candidates.clear(self.candidates);
            out.candidates.values.resize(outputs * self.candidates, 0.0);
            out.candidates.ids.resize(outputs * self.candidates, 0);
            out.candidates.log_sum_exp.resize(outputs, 0.0);
            out.candidates.greedy.resize(outputs, 0);
        }
        let Some(Some(work)) = self.works.first() else { return };
        for (call, run) in self.cut.calls.iter().zip(&work.runs) {
            let lines = &self.cut.lines[call.lines.clone()];
            let bytes = &work.results[run.result.clone()];
            if !bytes.is_empty() {
                self.ios[call.module].take(&self.step.outputs, lines, bytes, out);
            }
        }
    }
}

/// Whether the device lives on after it.
fn is_mild(failure: &Failure) -> bool {
    status(failure) == Some(Status::QUEUE_FULL) || is_out_of_bounds(failure)
}

fn is_out_of_bounds(failure: &Failure) -> bool {
    status(failure) == Some(Status::OUT_OF_BOUNDS)
}

fn status(failure: &Failure) -> Option<Status> {
    match failure {
        Failure::Library(error) => error.status(),
        Failure::Artifact(_) => None,
    }
}

/// A decode step takes 5 to 50 ms, a prefill below 10 s; NEURON_RT_EXEC_TIMEOUT is 30 s.
const STEP_LIMIT: Duration = Duration::from_secs(40);
/// One NEFF, one large tensor or one warm-up at a time; a NEFF may take a minute.
const LOAD_LIMIT: Duration = Duration::from_secs(300);
