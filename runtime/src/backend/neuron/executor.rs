//! Models on Neuron cores: an artifact is loaded, a batch becomes runs of its modules, candidates come back.
//!
//! Each core has a thread of its own, which makes all calls for it; this side cuts batches, hands work over and waits, with a
//! deadline. Whatever libnrt answers has an outcome: a full queue is waited for, an index out of bounds fails the
//! sequences of its run, and anything else, a hang above all, ends the device's life in this process: the process should
//! be replaced. No request is lost: every step that was submitted ends in a result or an error.
//!
//! Nothing here has run on Neuron hardware.

mod cut;
mod device;
mod rank;
mod step;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use njoule_models::program::{Program, WeightId};
use njoule_models::weights::{MappedFile, WeightSource};
use njoule_neuron_sys::{Runtime, Status};

use self::cut::{Buckets, Cut};
pub use self::device::prepare_process;
pub(super) use self::device::runtime;
use self::rank::{Failure, Memory, Piece, Report, Seed, Weights};
use self::step::{Io, Work};
use super::artifact::{Artifact, Layout};
use super::interface::Input;
use super::{shard, weights};
use crate::backend::{
    Backend, Batch, Capacity, Cost, Executor, Limits, LoadError, MemoryUse, Returned, RowClass, StepError, StepOutput,
    Wants, rope_border,
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
        let works = (0..manifest.layout.tp).map(|_| Some(Box::default())).collect();
        Ok(NeuronExecutor {
            program: program.clone(),
            capacity,
            buckets: Arc::clone(&self.buckets),
            ios,
            candidates: manifest.layout.candidates,
            kv: manifest.layout.kv,
            streamed: streamed as f64 * manifest.layout.tp as f64,
            memory: MemoryUse { weights: memory.weights, kv: memory.caches, scratch: memory.steps },
            group,
            cut: Cut::default(),
            works,
            step: Step::default(),
            limit: self.step_limit,
            dead: None,
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
    memory: MemoryUse,
    group: Group,
    cut: Cut,
    /// Where no step is in flight, what each rank is given.
    works: Vec<Option<Box<Work>>>,
    step: Step,
    limit: Duration,
    /// Why nothing more is done here.
    dead: Option<String>,
}

/// The step in flight.
#[derive(Debug, Default)]
struct Step {
    started: Option<Instant>,
    outputs: Vec<u32>,
    logits: bool,
}

impl Executor for NeuronExecutor {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        if let Some(why) = &self.dead {
            return Err(StepError::Device(why.clone()));
        }
        batch.check(&self.program, &self.capacity)?;
        self.cut.cut(batch, &self.buckets)?;
        for (rank, work) in self.works.iter_mut().enumerate() {
            work.get_or_insert_default().fill(rank, batch, &self.cut, &self.ios)?;
        }
        self.step.outputs.clear();
        self.step.outputs.extend_from_slice(&batch.outputs);
        self.step.logits = batch.wants == Wants::Logits;
        self.step.started = Some(Instant::now());
        for (rank, inbox) in self.group.inboxes.iter().enumerate() {
            let work = self.works[rank].take().unwrap_or_default();
            if inbox.send(work).is_err() {
                return Err(self.die(format!("the thread of rank {rank} is gone")));
            }
        }
        Ok(())
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        if let Some(why) = &self.dead {
            return Err(StepError::Device(why.clone()));
        }
        let Some(started) = self.step.started.take() else {
            return Err(StepError::Batch("collect without submit".to_owned()));
        };
        let runs = u32::try_from(self.cut.calls.len()).unwrap_or(u32::MAX).max(1);
        let deadline = started + self.limit.saturating_mul(runs);
        let mut worst: Option<(usize, usize, Failure)> = None;
        let mut left = self.works.len();
        while left > 0 {
            match self.group.reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((_, Report::Progress(_) | Report::Loaded(_))) => {}
                Ok((rank, Report::Done(work, result))) => {
                    left -= 1;
                    self.works[rank] = Some(work);
                    if let Err((run, failure)) = result {
                        if !is_mild(&failure) {
                            return Err(self.die(format!("rank {rank}: {failure}")));
                        }
                        worst.get_or_insert((rank, run, failure));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let (ranks, limit) = (self.missing(), self.limit);
                    let also = worst.map(|(rank, _, failure)| format!("; rank {rank}: {failure}")).unwrap_or_default();
                    return Err(self.die(format!(
                        "rank {ranks} did not finish its {runs} runs within {limit:?} each and cannot be stopped{also}; end \
                         this process and start a new one"
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.die("all ranks are gone".to_owned())),
            }
        }
        if let Some((_, run, failure)) = worst {
            let what = failure.to_string();
            return Err(match &failure {
                Failure::Library(error) if error.status() == Some(Status::QUEUE_FULL) => StepError::Busy(what),
                _ => {
                    let seqs = self.cut.calls.get(run).map_or(0..0, |call| self.cut.seqs(call));
                    StepError::OutOfBounds { seqs, what }
                }
            });
        }
        self.take(out);
        Ok(())
    }

    fn cost(&self, batch: &Batch) -> Cost {
        Cost::of_step(&self.program, batch, self.streamed, self.kv)
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }
}

impl NeuronExecutor {
    /// Nothing more is done on this device.
    fn die(&mut self, why: String) -> StepError {
        self.group.lost = true;
        self.dead = Some(why.clone());
        StepError::Device(why)
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
    match failure {
        Failure::Library(error) => matches!(error.status(), Some(Status::QUEUE_FULL | Status::OUT_OF_BOUNDS)),
        Failure::Artifact(_) => false,
    }
}

/// The threads of all ranks.
#[derive(Debug)]
struct Group {
    inboxes: Vec<SyncSender<Box<Work>>>,
    reports: Receiver<(usize, Report)>,
    /// Of ranks that are given their weights in pieces.
    pieces: Vec<SyncSender<Piece>>,
    /// A thread hangs or is in an unknown state: nobody waits for it.
    lost: bool,
}

impl Group {
    fn start(backend: &NeuronBackend, runtime: &Runtime, ios: &Arc<Vec<Io>>) -> Result<Group, LoadError> {
        let manifest = &backend.artifact.manifest;
        let world = manifest.layout.tp;
        let (report, reports) = sync_channel(8 * world + 8);
        let mut group = Group { inboxes: vec![], reports, pieces: vec![], lost: false };
        for rank in 0..world {
            let weights = match manifest.weights.get(rank) {
                Some(file) => Weights::File(Arc::new(MappedFile::open(&backend.artifact.dir.join(&file.path))?)),
                None => {
                    let (sender, receiver) = sync_channel(PIECES_AHEAD);
                    group.pieces.push(sender);
                    Weights::Pieces(receiver)
                }
            };
            let index = u32::try_from(rank).unwrap_or(u32::MAX);
            let core = runtime.core(index).map_err(|error| LoadError::Device(error.to_string()))?;
            let seed = Seed {
                runtime: runtime.clone(),
                core,
                rank,
                artifact: Arc::clone(&backend.artifact),
                ios: Arc::clone(ios),
                weights,
                limit: backend.step_limit,
            };
            let (inbox, receiver) = sync_channel(1);
            group.inboxes.push(inbox);
            let report = report.clone();
            thread::Builder::new()
                .name(format!("neuron rank {rank}"))
                .spawn(move || rank::run(seed, &receiver, &report))
                .map_err(|source| LoadError::Threads { count: world, source })?;
        }
        Ok(group)
    }

    /// Packs the weights of `source` for every rank, a weight at a time.
    fn pack(&mut self, program: &Program, source: &dyn WeightSource, backend: &NeuronBackend) -> Result<(), LoadError> {
        let layout = backend.layout();
        let unsupported = |what: String| LoadError::Unsupported { backend: "neuron", what };
        let sharded = shard::shard(program, layout.tp).map_err(|error| unsupported(error.to_string()))?;
        let types = weights::stored(program, layout.weights);
        let parameters = &backend.artifact.manifest.parameters;
        for (id, dtype) in (0..).map(WeightId).zip(types) {
            for rank in 0..layout.tp {
                let (mut current, mut offset) = (None, 0);
                let mut sink = |part, bytes: &[u8]| {
                    let role = Input::Weight(id, part);
                    let Some(parameter) = parameters.iter().position(|p| p.port.role == role) else { return Ok(()) };
                    if current != Some(parameter) {
                        (current, offset) = (Some(parameter), 0);
                    }
                    let piece = Piece::Bytes { parameter, offset, bytes: bytes.to_vec() };
                    offset += bytes.len();
                    self.send(rank, piece, backend.load_limit)
                };
                weights::write_part(source, &sharded, id, dtype, rank, &mut sink)?;
            }
        }
        (0..layout.tp).try_for_each(|rank| self.send(rank, Piece::End, backend.load_limit))
    }

    /// A rank that takes no piece within the limit hangs; one that is gone has said why.
    fn send(&self, rank: usize, piece: Piece, limit: Duration) -> Result<(), LoadError> {
        let (mut piece, started) = (piece, Instant::now());
        loop {
            match self.pieces[rank].try_send(piece) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(self.why_gone(rank)),
                Err(TrySendError::Full(back)) if started.elapsed() < limit => piece = back,
                Err(TrySendError::Full(_)) => return Err(stalled(&rank.to_string(), limit)),
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn why_gone(&self, rank: usize) -> LoadError {
        let said = self.reports.try_iter().find_map(|(rank, report)| match report {
            Report::Loaded(Err(failure)) => Some(LoadError::Device(format!("rank {rank}: {failure}"))),
            _ => None,
        });
        said.unwrap_or_else(|| LoadError::Device(format!("the thread of rank {rank} is gone")))
    }

    /// Waits until every rank is ready; each sign of life of any starts the time anew.
    fn wait_loaded(&mut self, backend: &NeuronBackend) -> Result<Memory, LoadError> {
        self.pieces.clear();
        let world = self.inboxes.len();
        let mut ready = vec![false; world];
        let mut sum = Memory::default();
        while ready.contains(&false) {
            match self.reports.recv_timeout(backend.load_limit) {
                Ok((_, Report::Progress(bytes))) => backend.on_load.iter().for_each(|hear| hear(bytes)),
                Ok((rank, Report::Loaded(Ok(memory)))) => {
                    ready[rank] = true;
                    sum.weights += memory.weights;
                    sum.caches += memory.caches;
                    sum.steps += memory.steps;
                }
                Ok((rank, Report::Loaded(Err(failure)))) => {
                    // The others may wait for this one for ever.
                    self.lost = world > 1;
                    return Err(LoadError::Device(format!("rank {rank}: {failure}")));
                }
                Ok((_, Report::Done(..))) => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.lost = true;
                    let missing = (0..world).filter(|rank| !ready[*rank]).map(|rank| rank.to_string());
                    return Err(stalled(&missing.collect::<Vec<_>>().join(", "), backend.load_limit));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(LoadError::Device("a rank's thread panicked while it loaded".to_owned()));
                }
            }
        }
        Ok(sum)
    }
}

impl Drop for Group {
    /// Lets the ranks give their memory back.
    fn drop(&mut self) {
        self.inboxes.clear();
        self.pieces.clear();
        let until = Instant::now() + CLOSE_LIMIT;
        if self.lost {
            return;
        }
        // Until all are gone, or one hangs.
        while self.reports.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

fn stalled(ranks: &str, limit: Duration) -> LoadError {
    LoadError::Device(format!(
        "loading made no progress for {limit:?} (rank {ranks}) and cannot be stopped; end this process and start a new one"
    ))
}

/// A decode step takes 5 to 50 ms, a prefill below 10 s; NEURON_RT_EXEC_TIMEOUT is 30 s.
const STEP_LIMIT: Duration = Duration::from_secs(40);
/// One NEFF, one large tensor or one warm-up at a time; a NEFF may take a minute.
const LOAD_LIMIT: Duration = Duration::from_secs(300);
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// Pieces of weights that are packed before a rank has taken them: two of a few megabytes each.
const PIECES_AHEAD: usize = 2;
