//! The state of the library in this process: before `nrt_init`, running, closed. What is running owns everything.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use crate::collective::{Communicator, Group, Seat};
use crate::config::{self, Config};
use crate::core::Core;
use crate::handles::{Stale, Table};
use crate::inject::{self, Action};
use crate::misuse;
use crate::model::{self, Model, Program};
use crate::queue::Queue;
use crate::status::{self, Answer, refuse};
use crate::tensor::{Tensor, Use};

/// Between `nrt_init` and `nrt_close`.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub config: Config,
    pub cores: Vec<Arc<Core>>,
    pub queues: Vec<Arc<Queue>>,
    pub communicator: Communicator,
    models: Mutex<Table<Model>>,
    tensors: Mutex<Table<Tensor>>,
    sets: Mutex<Table<Set>>,
    /// Programs that are loaded, by the NEFF's hash.
    programs: Mutex<HashMap<[u8; 32], Weak<Program>>>,
    groups: Mutex<Vec<Weak<Group>>>,
    /// For `nrt_barrier`, by size of the world.
    barriers: Mutex<BTreeMap<u32, Arc<Group>>>,
    /// Tensor infos that were given out.
    pub infos: Mutex<HashMap<usize, crate::abi::Info>>,
}

/// A tensor set: handles by name.
#[derive(Debug, Default)]
pub(crate) struct Set {
    bound: Mutex<HashMap<String, usize>>,
    /// Runs in flight.
    pub busy: Arc<AtomicU32>,
}

enum State {
    Before,
    Running(Arc<Runtime>),
    Closed,
}

static STATE: RwLock<State> = RwLock::new(State::Before);

/// The running library, or the status of a call too early or too late.
pub(crate) fn running() -> Answer<Arc<Runtime>> {
    match &*STATE.read().unwrap_or_else(PoisonError::into_inner) {
        State::Running(runtime) => Ok(runtime.clone()),
        State::Before => refuse(status::UNINITIALIZED, "before nrt_init"),
        State::Closed => {
            misuse::record("a call after nrt_close");
            refuse(status::CLOSED, "after nrt_close")
        }
    }
}

/// `nrt_init`.
pub(crate) fn start() -> Answer {
    let mut state = STATE.write().unwrap_or_else(PoisonError::into_inner);
    match &*state {
        State::Before => {}
        State::Running(_) => return refuse(status::FAILURE, "a second nrt_init"),
        State::Closed => return refuse(status::FAILURE, "nrt_init after nrt_close"),
    }
    eprintln!("neuron-fake: a stand-in for libnrt.so.1, not a device");
    misuse::report_at_exit();
    inject::plan()?;
    config::hang_limit()?;
    crate::engine::check()?;
    *state = State::Running(Arc::new(Runtime::new(Config::from_env()?)));
    Ok(())
}

/// `nrt_close`.
pub(crate) fn close() {
    let mut state = STATE.write().unwrap_or_else(PoisonError::into_inner);
    let State::Running(runtime) = &*state else {
        return misuse::record("nrt_close of a library that does not run");
    };
    let runtime = runtime.clone();
    *state = State::Closed;
    drop(state);
    let live = runtime.live();
    if live.iter().any(|&n| n > 0) {
        let [models, tensors, sets, infos] = live;
        let text = format!("{models} models, {tensors} tensors, {sets} sets, {infos} tensor infos");
        misuse::record(format!("nrt_close with handles left: {text}"));
    }
    for queue in &runtime.queues {
        if queue.in_flight() > 0 {
            misuse::record("nrt_close with runs in flight");
        }
        queue.close();
    }
}

/// Handles in use, for tests.
pub(crate) fn live() -> u64 {
    match &*STATE.read().unwrap_or_else(PoisonError::into_inner) {
        State::Running(runtime) => runtime.live().iter().map(|&n| n as u64).sum(),
        _ => 0,
    }
}

/// Does not come back, or with status 5 after `NJOULE_FAKE_HANG_LIMIT`.
pub(crate) fn hang<T>() -> Answer<T> {
    match config::hang_limit()? {
        Some(limit) => {
            std::thread::sleep(limit);
            refuse(status::TIMEOUT, format!("a hang of {limit:?} is over"))
        }
        None => loop {
            std::thread::park();
        },
    }
}

/// What was ordered for this call of a function: carried out, or returned as a refusal.
pub(crate) fn ordered(function: &str, core: impl FnOnce() -> Option<u32>) -> Answer<Option<u32>> {
    match inject::plan()?.next(function, core) {
        None | Some(Action::Nan | Action::Index(_)) => Ok(None),
        Some(Action::Status(code)) => Ok(Some(code)),
        Some(Action::Delay(time)) => {
            std::thread::sleep(time);
            Ok(None)
        }
        Some(Action::Hang) => hang(),
        Some(Action::Timeout) => {
            let limit = config::exec_timeout()?;
            std::thread::sleep(limit);
            refuse(status::TIMEOUT, format!("not finished within {limit:?}"))
        }
    }
}

/// Writes a refusal to the log, as the library does, and gives its status.
pub(crate) fn told<T>(function: &str, answer: Answer<T>) -> u32 {
    match answer {
        Ok(_) => status::SUCCESS,
        Err(refusal) => {
            let quiet = std::env::var_os("NEURON_RT_LOG_LEVEL").is_some_and(|v| v.eq_ignore_ascii_case("quiet"));
            if !quiet {
                let name = status::name(refusal.status).to_string_lossy();
                eprintln!("neuron-fake: ERROR {function}: {} ({name}, {})", refusal.text, refusal.status);
            }
            refusal.status
        }
    }
}

impl Runtime {
    fn new(config: Config) -> Runtime {
        let count = config.cores.len() as u32;
        let core = |index| Arc::new(Core::new(index, config.hbm, config.microcode));
        let queue = |index| Arc::new(Queue::new(index, config.queue_depth));
        Runtime {
            cores: (0..count).map(core).collect(),
            queues: (0..count).map(queue).collect(),
            communicator: Communicator::default(),
            models: Mutex::new(Table::new(1)),
            tensors: Mutex::new(Table::new(2)),
            sets: Mutex::new(Table::new(3)),
            programs: Mutex::default(),
            groups: Mutex::default(),
            barriers: Mutex::default(),
            infos: Mutex::default(),
            config,
        }
    }

    /// The core of this number.
    pub(crate) fn core(&self, vnc: i64) -> Answer<&Arc<Core>> {
        let core = usize::try_from(vnc).ok().and_then(|i| self.cores.get(i));
        match core {
            Some(core) => Ok(core),
            None => refuse(status::INVALID, format!("core {vnc}: this process owns {}", self.cores.len())),
        }
    }

    /// Loads a NEFF; with ranks as one of them.
    pub(crate) fn load(&self, neff: &[u8], vnc: i32, ranks: Option<(u32, u32)>) -> Answer<usize> {
        let program = self.program(neff)?;
        let world = program.sidecar.world;
        let seat = match ranks {
            None if world > 1 => {
                let text = format!("the NEFF has collectives of {world} ranks: nrt_load_collectives loads it");
                return refuse(status::INVALID, text);
            }
            None => None,
            Some((rank, given)) => self.seat(&program, rank, given)?,
        };
        let core = match vnc {
            -1 => self.free_core(seat.as_ref())?,
            vnc => self.core(vnc.into())?.clone(),
        };
        let model = Model::new(program, core, seat)?;
        if let (Some((rank, world)), true) = (ranks, self.config.join) {
            self.communicator.join(rank, world, config::hang_limit()?)?;
        }
        Ok(lock(&self.models).insert(model))
    }

    /// Verified and planned once, however often it is loaded.
    fn program(&self, neff: &[u8]) -> Answer<Arc<Program>> {
        let hash = model::hash(neff);
        // Held meanwhile, so that ranks that load at once do it once.
        let mut programs = lock(&self.programs);
        if let Some(program) = programs.get(&hash).and_then(Weak::upgrade) {
            return Ok(program);
        }
        let program = Arc::new(Program::new(neff, self)?);
        programs.insert(hash, Arc::downgrade(&program));
        Ok(program)
    }

    /// A place among the ranks: in the first group of this program where it is free. None without collectives.
    fn seat(&self, program: &Arc<Program>, rank: u32, world: u32) -> Answer<Option<Seat>> {
        if rank >= world {
            return refuse(status::INVALID, format!("rank {rank} of {world}"));
        }
        if program.sidecar.world == 1 {
            return Ok(None);
        }
        if program.sidecar.world != world {
            let text = format!("the NEFF has collectives of {} ranks, not {world}", program.sidecar.world);
            return refuse(status::INVALID, text);
        }
        if !self.config.root_comm {
            return refuse(status::INVALID, "NEURON_RT_ROOT_COMM_ID is not set: collectives need it");
        }
        let mut groups = lock(&self.groups);
        groups.retain(|group| group.strong_count() > 0);
        let alike = groups.iter().filter_map(Weak::upgrade).filter(|g| g.hash == program.hash && g.world == world);
        if let Some(seat) = alike.into_iter().find_map(|group| group.sit(rank)) {
            return Ok(Some(seat));
        }
        let group = Arc::new(Group::new(program.hash, world));
        groups.push(Arc::downgrade(&group));
        Ok(group.sit(rank))
    }

    /// The core with the fewest models, not one where another rank of the same group is.
    fn free_core(&self, seat: Option<&Seat>) -> Answer<Arc<Core>> {
        let models = lock(&self.models);
        let same = |m: &Model| m.seat.as_ref().zip(seat).is_some_and(|(a, b)| Arc::ptr_eq(&a.group, &b.group));
        let taken = |core: &&Arc<Core>| models.iter().any(|m| m.core.index == core.index && same(m));
        let load = |core: &&Arc<Core>| models.iter().filter(|m| m.core.index == core.index).count();
        match self.cores.iter().filter(|c| !taken(c)).min_by_key(load) {
            Some(core) => Ok(core.clone()),
            None => refuse(status::LOAD_NOT_ENOUGH_NC, format!("all {} cores have ranks of it", self.cores.len())),
        }
    }

    /// Waits for all ranks.
    pub(crate) fn barrier(&self, rank: u32, world: u32) -> Answer {
        if rank >= world {
            return refuse(status::INVALID, format!("rank {rank} of {world}"));
        }
        let new = || Arc::new(Group::new([0; 32], world));
        let group = lock(&self.barriers).entry(world).or_insert_with(new).clone();
        let Some(seat) = group.sit(rank) else {
            return refuse(status::INVALID, format!("rank {rank} waits at this barrier already"));
        };
        let nothing = |all: Vec<_>| all.iter().map(|_| Ok(vec![])).collect();
        seat.meet(vec![], config::exec_timeout()?, nothing).map(drop).map_err(|lost| lost.refusal)
    }

    pub(crate) fn model(&self, handle: usize) -> Answer<Arc<Model>> {
        known("model", lock(&self.models).get(handle).cloned())
    }

    pub(crate) fn unload(&self, handle: usize) -> Answer {
        let model = known("model", lock(&self.models).remove(handle))?;
        if model.is_busy() {
            misuse::record(format!("model `{}` is unloaded while it runs", model.program.sidecar.module));
        }
        Ok(())
    }

    pub(crate) fn add_tensor(&self, tensor: Tensor) -> usize {
        lock(&self.tensors).insert(tensor)
    }

    pub(crate) fn tensor(&self, handle: usize) -> Answer<Arc<Tensor>> {
        known("tensor", lock(&self.tensors).get(handle).cloned())
    }

    pub(crate) fn free_tensor(&self, handle: usize) -> Answer {
        let tensor = known("tensor", lock(&self.tensors).remove(handle))?;
        if tensor.is_used(Use::Read) || tensor.is_used(Use::Write) {
            misuse::record(format!("{tensor} is freed while a run that uses it is in flight"));
        }
        Ok(())
    }

    pub(crate) fn add_set(&self) -> usize {
        lock(&self.sets).insert(Set::default())
    }

    pub(crate) fn set(&self, handle: usize) -> Answer<Arc<Set>> {
        known("tensor set", lock(&self.sets).get(handle).cloned())
    }

    pub(crate) fn destroy_set(&self, handle: usize) -> Answer {
        let set = known("tensor set", lock(&self.sets).remove(handle))?;
        if set.busy.load(Ordering::Acquire) > 0 {
            misuse::record("a tensor set is destroyed while a run that uses it is in flight");
        }
        Ok(())
    }

    /// Models, tensors, sets, tensor infos.
    fn live(&self) -> [usize; 4] {
        [lock(&self.models).len(), lock(&self.tensors).len(), lock(&self.sets).len(), lock(&self.infos).len()]
    }

    /// Kills every core: after status 101.
    pub(crate) fn die(&self) {
        self.cores.iter().for_each(|core| core.die());
    }
}

impl Set {
    /// Handles by name, held while they are looked at.
    pub(crate) fn names(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        lock(&self.bound)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stale handle is status 3, and misuse.
pub(crate) fn known<T>(kind: &str, found: Result<T, Stale>) -> Answer<T> {
    found.or_else(|stale| {
        let what = match stale {
            Stale::Null => "null",
            Stale::Freed => "one that was freed",
            Stale::Foreign => "none that was ever given out",
        };
        misuse::record(format!("a {kind} handle is {what}"));
        refuse(status::INVALID_HANDLE, format!("the {kind} handle is {what}"))
    })
}
