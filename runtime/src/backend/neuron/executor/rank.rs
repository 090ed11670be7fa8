//! One core of a model, on a thread of its own: all calls for it are made there, so that whoever waits can stop waiting.
//!
//! It loads its part, then does what [`Work`] says until it is told to end. Every core must enter a module with
//! collectives, in one order: all get the same runs. A call that hangs keeps its thread for ever; the executor that waits
//! for it has a deadline and declares the device dead.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use njoule_models::weights::MappedFile;
use njoule_neuron_sys::{Core, Error, Model, Run, Runtime, Status, Tensor, TensorSet};

use super::step::{Io, Work};
use crate::backend::neuron::artifact::{Artifact, ModuleRecord};
use crate::backend::neuron::interface::{Input, Output};

/// What a rank is made of.
pub struct Seed {
    pub runtime: Runtime,
    pub core: Core,
    pub rank: usize,
    pub artifact: Arc<Artifact>,
    pub ios: Arc<Vec<Io>>,
    pub weights: Weights,
    /// For how long a run may be tried again while the queue is full, and what a run may take.
    pub limit: Duration,
}

/// Where a rank's weights come from.
pub enum Weights {
    /// The artifact's file of this rank.
    File(Arc<MappedFile>),
    /// Pieces, as somebody packs them.
    Pieces(Receiver<Piece>),
}

/// A piece of a rank's weights.
pub enum Piece {
    /// Bytes at an offset of a parameter, by its index.
    Bytes { parameter: usize, offset: usize, bytes: Vec<u8> },
    /// That was all.
    End,
}

/// What a rank says.
pub enum Report {
    /// It has come further with loading.
    Progress(u64),
    /// It is ready, with this much device memory taken, or it is not.
    Loaded(Result<Memory, Failure>),
    /// It has done its work; of a failure, at which run.
    Done(Box<Work>, Result<(), (usize, Failure)>),
}

/// Bytes that a rank has allocated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub weights: usize,
    pub caches: usize,
    pub steps: usize,
}

/// Why a rank could not.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The library said so.
    Library(Error),
    /// What is loaded is not what the manifest says, or a file cannot be read.
    Artifact(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Library(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Library(error) => error.fmt(f),
            Failure::Artifact(what) => f.write_str(what),
        }
    }
}

/// Body of the thread.
pub fn run(seed: Seed, inbox: &Receiver<Box<Work>>, reports: &SyncSender<(usize, Report)>) {
    let at = seed.rank;
    // Nobody listens any more: the executor is gone, and so is the reason to go on.
    let say = |report| reports.send((at, report)).is_ok();
    // A sign of life that finds no room is one too many.
    let progress = |bytes| drop(reports.try_send((at, Report::Progress(bytes))));
    let mut rank = match Rank::load(seed, &progress) {
        Ok(rank) => rank,
        Err(failure) => {
            say(Report::Loaded(Err(failure)));
            return;
        }
    };
    // Nobody can have sent anything yet.
    drop(inbox.recv_timeout(FIRST_WAIT));
    if !say(Report::Loaded(Ok(rank.memory))) {
        return;
    }
    while let Ok(mut work) = inbox.recv() {
        let result = rank.work(&mut work);
        if !say(Report::Done(work, result)) {
            return;
        }
    }
}

struct Rank {
    rank: usize,
    modules: Vec<Bound>,
    limit: Duration,
    memory: Memory,
}

/// A module with its tensors.
struct Bound {
    run: Run,
    inputs: Tensor,
    outputs: Tensor,
    /// Where the masks stand and all ones for them.
    mask: Option<(usize, Vec<u8>)>,
    /// The part of the device's masks that may forbid something.
    masked: Range<usize>,
    schedules: bool,
}

impl Rank {
    fn load(seed: Seed, progress: &dyn Fn(u64)) -> Result<Rank, Failure> {
        let Seed { runtime, core, rank, artifact, ios, weights, limit } = seed;
        let manifest = &artifact.manifest;
        let world = manifest.layout.tp;
        let mut models = vec![];
        for module in &manifest.modules {
            let path = artifact.dir.join(&module.neff.path);
            let neff = MappedFile::open(&path).map_err(|error| Failure::Artifact(error.to_string()))?;
            let model = if world == 1 {
                Model::load(&runtime, core, neff.bytes(), &module.name)?
            } else {
                // Below MOST_RANKS: they fit.
                Model::load_collective(&runtime, core, neff.bytes(), (rank as u32, world as u32), &module.name)?
            };
            neff.release(0..neff.bytes().len());
            check_ports(&model, module).map_err(|what| {
                Failure::Artifact(format!("{} is not what the manifest says: {what}", path.display()))
            })?;
            models.push(Arc::new(model));
            progress(0);
        }
        let weight_sizes: Vec<usize> = manifest.parameters.iter().map(|p| p.bytes as usize).collect();
        let parameters = Pool::new(&runtime, core, "weights", &weight_sizes)?;
        match weights {
            Weights::File(file) => {
                for (parameter, tensor) in manifest.parameters.iter().zip(&parameters.tensors) {
                    let (start, len) = (parameter.offset as usize, parameter.bytes as usize);
                    for at in (0..len).step_by(PIECE) {
                        let range = start + at..start + (at + PIECE).min(len);
                        let bytes = file.bytes().get(range.clone()).unwrap_or_default();
                        tensor.write(at, bytes)?;
                        file.release(range);
                        progress(bytes.len() as u64);
                    }
                }
            }
            Weights::Pieces(pieces) => loop {
                match pieces.recv() {
                    Ok(Piece::Bytes { parameter, offset, bytes }) => {
                        parameters.tensors[parameter].write(offset, &bytes)?;
                        progress(bytes.len() as u64);
                    }
                    Ok(Piece::End) => break,
                    Err(_) => return Err(Failure::Artifact("packing the weights ended early".to_owned())),
                }
            },
        }
        let caches = Caches::new(&runtime, core, &manifest.modules, progress)?;
        let index: HashMap<Input, usize> =
            manifest.parameters.iter().enumerate().map(|(i, p)| (p.port.role, i)).collect();
        let mut memory = Memory { weights: parameters.bytes, caches: caches.pool.bytes, steps: 0 };
        let mut modules = vec![];
        for ((module, io), model) in manifest.modules.iter().zip(ios.iter()).zip(models) {
            let (mut bound, bytes) = bind(&runtime, core, module, io, model, |role| match role {
                Input::Cache(..) => caches.get(role),
                role => index.get(&role).map(|i| &parameters.tensors[*i]),
            })?;
            memory.steps += bytes;
            let mut idle = vec![];
            io.idle(rank, &mut idle);
            bound.inputs.write(0, &idle)?;
            bound.open_mask()?;
            bound.execute(limit)?;
            progress(0);
            modules.push(bound);
        }
        Ok(Rank { rank, modules, limit, memory })
    }

    fn work(&mut self, work: &mut Work) -> Result<(), (usize, Failure)> {
        let Work { runs, bytes, results } = work;
        for (i, run) in runs.iter().enumerate() {
            let module = &mut self.modules[run.module];
            let mut once = || -> Result<(), Error> {
                module.inputs.write(0, &bytes[run.inputs.clone()])?;
                match &run.mask {
                    Some(mask) => module.write_mask(&bytes[mask.all.clone()], mask.masked.clone())?,
                    None => module.open_mask()?,
                }
                module.execute(self.limit)?;
                match run.read {
                    Some(place) if self.rank == 0 => {
                        module.outputs.read(place.offset, &mut results[run.result.clone()])
                    }
                    _ => Ok(()),
                }
            };
            once().map_err(|error| (i, error.into()))?;
        }
        Ok(())
    }
}

impl Bound {
    /// Runs it; a full queue is waited for.
    fn execute(&mut self, limit: Duration) -> Result<(), Error> {
        let until = Instant::now() + limit;
        loop {
            let started = if self.schedules { self.run.start() } else { self.run.execute() };
            match started {
                Ok(()) => break,
                Err(error) if error.status() == Some(Status::QUEUE_FULL) && Instant::now() < until => {
                    thread::sleep(QUEUE_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        if self.schedules { self.run.wait(limit) } else { Ok(()) }
    }

    fn open_mask(&mut self) -> Result<(), Error> {
        if let Some((offset, ones)) = &self.mask
            && !self.masked.is_empty()
        {
            self.inputs.write(offset + self.masked.start, &ones[self.masked.clone()])?;
            self.masked = 0..0;
        }
        Ok(())
    }

    /// Writes what is `masked` in these masks of all rows, and what was before.
    fn write_mask(&mut self, bytes: &[u8], masked: Range<usize>) -> Result<(), Error> {
        let Some((offset, _)) = &self.mask else { return Ok(()) };
        let written = match self.masked.is_empty() {
            true => masked.clone(),
            false => self.masked.start.min(masked.start)..self.masked.end.max(masked.end),
        };
        // Until it is there anything may be.
        self.masked = written.clone();
        self.inputs.write(offset + written.start, &bytes[written])?;
        self.masked = masked;
        Ok(())
    }
}

/// Tensors as slices of few large ones.
struct Pool {
    tensors: Vec<Tensor>,
    bytes: usize,
}

impl Pool {
    fn new(runtime: &Runtime, core: Core, name: &str, sizes: &[usize]) -> Result<Pool, Error> {
        let mut tensors = Vec::with_capacity(sizes.len());
        let (mut bytes, mut first) = (0, 0);
        while first < sizes.len() {
            let (mut end, mut group) = (first, 0usize);
            while end < sizes.len() && (end == first || group + sizes[end] <= GROUP) {
                group = (group + sizes[end]).next_multiple_of(SLICE_ALIGN);
                end += 1;
            }
            let whole = Tensor::on_core(runtime, core, group, &format!("{name}.{first}"))?;
            let mut offset = 0;
            for (i, size) in (first..end).zip(&sizes[first..end]) {
                tensors.push(whole.slice(offset, *size, &format!("{name}.{i}"))?);
                offset = (offset + size).next_multiple_of(SLICE_ALIGN);
            }
            bytes += group;
            first = end;
        }
        Ok(Pool { tensors, bytes })
    }
}

/// The caches of all classes, zeroed: what is masked is multiplied by zero, and must be a number.
struct Caches {
    index: HashMap<Input, usize>,
    pool: Pool,
}

impl Caches {
    fn new(runtime: &Runtime, core: Core, modules: &[ModuleRecord], progress: &dyn Fn(u64)) -> Result<Caches, Error> {
        let (mut index, mut sizes) = (HashMap::new(), vec![]);
        for module in modules {
            for port in &module.inputs {
                if let Input::Cache(..) = port.role {
                    index.entry(port.role).or_insert_with(|| {
                        sizes.push(port.bytes());
                        sizes.len() - 1
                    });
                }
            }
        }
        let pool = Pool::new(runtime, core, "caches", &sizes)?;
        for tensor in &pool.tensors {
            tensor.fill(0, tensor.size(), 0)?;
            progress(0);
        }
        Ok(Caches { index, pool })
    }

    fn get(&self, cache: Input) -> Option<&Tensor> {
        self.index.get(&cache).map(|i| &self.pool.tensors[*i])
    }
}

/// Binds a module's tensors; `large` gives weights and caches.
fn bind<'a>(
    runtime: &Runtime,
    core: Core,
    module: &ModuleRecord,
    io: &Io,
    model: Arc<Model>,
    large: impl Fn(Input) -> Option<&'a Tensor>,
) -> Result<(Bound, usize), Failure> {
    let missing =
        |role: &dyn std::fmt::Debug| Failure::Artifact(format!("module {} has no tensor for {role:?}", module.name));
    let name = |what: &str| format!("{}.{what}", module.name);
    let inputs = Tensor::on_core(runtime, core, io.input_tensor_bytes().max(1), &name("inputs"))?;
    let outputs = Tensor::on_core(runtime, core, io.output_bytes.max(1), &name("outputs"))?;
    let (mut takes, mut gives) = (TensorSet::new(runtime)?, TensorSet::new(runtime)?);
    for (i, port) in module.inputs.iter().enumerate() {
        let input = format!("input{i}");
        match io.input(port.role) {
            Some(place) => takes.bind(&input, &inputs.slice(place.offset, place.bytes, &name(&input))?)?,
            None => takes.bind(&input, large(port.role).ok_or_else(|| missing(&port.role))?)?,
        }
    }
    for (j, port) in module.outputs.iter().enumerate() {
        let output = format!("output{j}");
        match (port.role, io.output(port.role)) {
            (_, Some(place)) => gives.bind(&output, &outputs.slice(place.offset, place.bytes, &name(&output))?)?,
            // The same tensor on both sides: updated in place.
            (Output::Cache(class, id, part), _) => {
                gives.bind(&output, large(Input::Cache(class, id, part)).ok_or_else(|| missing(&port.role))?)?;
            }
            (role, None) => return Err(missing(&role)),
        }
    }
    let bytes = inputs.size() + outputs.size();
    let mask = io.mask.map(|place| (place.offset, vec![0xff; place.bytes]));
    let schedules = runtime.library().can_schedule();
    let run = Run::new(model, takes, gives)?;
    let masked = 0..io.mask.map_or(0, |place| place.bytes);
    Ok((Bound { run, inputs, outputs, mask, masked, schedules }, bytes))
}

/// Whether a NEFF takes and gives what the manifest says: names and sizes, the two that the library tells reliably.
fn check_ports(model: &Model, module: &ModuleRecord) -> Result<(), String> {
    let inputs = module.inputs.iter().map(|port| (format!("{:?}", port.role), port.bytes()));
    let outputs = module.outputs.iter().map(|port| (format!("{:?}", port.role), port.bytes()));
    let sides: [(&str, _, Vec<(String, usize)>); 2] =
        [("input", model.inputs(), inputs.collect()), ("output", model.outputs(), outputs.collect())];
    for (side, found, expected) in sides {
        if found.len() != expected.len() {
            return Err(format!("it has {} {side}s, not {}", found.len(), expected.len()));
        }
        for (i, (role, bytes)) in expected.into_iter().enumerate() {
            let name = format!("{side}{i}");
            match found.iter().find(|spec| spec.name == name) {
                None => return Err(format!("it has no `{name}` ({role})")),
                Some(spec) if spec.size != bytes => {
                    return Err(format!("`{name}` ({role}) has {} bytes, not {bytes}", spec.size));
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}

/// Of the tensors that others are slices of. Well below the 4 GiB that older libraries overflow at.
const GROUP: usize = 1 << 30;
/// A page, as in the artifact's files.
const SLICE_ALIGN: usize = 4096;
/// Bytes that are written at once: what of a file is resident at a time.
const PIECE: usize = 32 << 20;
/// A channel allocates where it is waited for the first time: so that this is no step, which may find its answer there
/// already for as long as the machine is busy.
pub const FIRST_WAIT: Duration = Duration::from_millis(20);
const QUEUE_PAUSE: Duration = Duration::from_micros(100);
