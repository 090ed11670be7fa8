//! The running runtime: started once per process, closed when the last handle is gone.
//!
//! What happens on a second `nrt_init`, or on one after `nrt_close`, is not documented; so neither is ever done. A start
//! that failed may be tried again: nothing runs then.
//!
//! # Threads
//!
//! A `Runtime` is `Send` and `Sync`. AWS writes of no call here that it is bound to a thread, and its own stacks load and
//! allocate from one thread per rank at the same time.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::instance::Instance;
use crate::library::Library;
use crate::version::Version;

/// A handle to the running runtime; clones are the same. The last of them, those inside models, tensors and sets
/// included, closes it and gives the cores back.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    library: Library,
    cores: u32,
    /// The first failure that a destructor could not return.
    drop_failure: Mutex<Option<Error>>,
}

/// A logical NeuronCore of this process. The first that it owns is 0, whichever of the instance that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Core(u32);

/// Device memory of a core, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use, the runtime's own part included.
    pub used: usize,
    /// What there is.
    pub limit: usize,
}

/// Before the start.
impl Library {
    /// Logical cores of the instance.
    pub fn total_cores(self) -> Result<u32, Error> {
        self.total_count().map_err(|status| failed("nrt_get_total_vnc_count", "the instance", status))
    }

    /// Logical cores that this process may use.
    pub fn visible_cores(self) -> Result<u32, Error> {
        self.visible_count().map_err(|status| failed("nrt_get_visible_vnc_count", "this process", status))
    }

    /// The instance. Whether the library knows it before the start is not documented.
    pub fn instance(self) -> Result<Instance, Error> {
        let info = self.instance_info().map_err(|status| failed("nrt_get_instance_info", "the instance", status))?;
        Ok(Instance::from(&info))
    }
}

impl Runtime {
    /// Takes the cores that the environment names (default: all of the instance) for this process alone.
    ///
    /// The environment is read here (cores, logs, logical-core size) and at each load (timeout): set it before this, and
    /// before the process has threads. After it, never fork.
    pub fn start(library: Library) -> Result<Runtime, Error> {
        let mut states = states();
        let at = match states.iter().position(|(of, _)| *of == identity(library)) {
            Some(at) => match states[at].1 {
                State::Running => return Err(Error::AlreadyRunning),
                State::Closed => return Err(Error::Closed),
                State::Idle => at,
            },
            None => {
                states.push((identity(library), State::Idle));
                states.len() - 1
            }
        };
        // SAFETY: it is neither running nor closed, and the lock is held until that is written down.
        unsafe { library.init() }.map_err(|status| failed("nrt_init", "this process's cores", status))?;
        states[at].1 = State::Running;
        drop(states); // closing, below, takes it
        // From here on dropping it closes the library again, whatever fails.
        let mut inner = Inner { library, cores: 0, drop_failure: Mutex::new(None) };
        inner.cores = library.visible_cores()?;
        if i32::try_from(inner.cores).is_err() {
            return Err(nonsense("nrt_get_visible_vnc_count", "this process", format!("gave {} cores", inner.cores)));
        }
        Ok(Runtime(Arc::new(inner)))
    }

    /// How many handles there are, this one and those inside models, tensors and sets included.
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The library.
    pub fn library(&self) -> Library {
        self.0.library
    }

    /// The cores of this process.
    pub fn cores(&self) -> impl ExactSizeIterator<Item = Core> + use<> {
        (0..self.0.cores).map(Core)
    }

    /// The core of this number.
    pub fn core(&self, index: u32) -> Result<Core, Error> {
        let visible = self.0.cores;
        if index < visible { Ok(Core(index)) } else { Err(Error::NoSuchCore { core: index, visible }) }
    }

    /// How much of the core's device memory is in use.
    pub fn memory(&self, core: Core) -> Result<MemoryStats, Error> {
        const CALL: &str = "nrt_get_vnc_memory_stats";
        // SAFETY: the runtime runs while this handle lives.
        let answer = unsafe { self.0.library.memory_stats(core.0) };
        let (stats, written) = answer
            .ok_or_else(|| self.unsupported("memory statistics", "libnrt 2.27.23"))?
            .map_err(|status| failed(CALL, core, status))?;
        if written < size_of_val(&stats) {
            return Err(nonsense(CALL, core, format!("wrote {written} bytes of {}", size_of_val(&stats))));
        }
        Ok(MemoryStats { used: stats.bytes_used, limit: stats.bytes_limit })
    }

    /// Makes the communicator of all ranks up front, with the largest number of ranks that any model will have. Without
    /// it, the first collective model that is loaded makes one. Blocks until every rank is there, without limit.
    pub fn join_world(&self, core: Core, rank: u32, world: u32) -> Result<(), Error> {
        // SAFETY: the runtime runs while this handle lives.
        let answer = unsafe { self.0.library.build_global_comm(core.vnc(), rank, world) };
        answer
            .ok_or_else(|| self.unsupported("a communicator made up front", "the symbol nrt_build_global_comm"))?
            .map_err(|status| failed("nrt_build_global_comm", format_args!("rank {rank} of {world} on {core}"), status))
    }

    /// The first failure that a destructor saw and could not return (an unload that failed), once.
    pub fn take_drop_failure(&self) -> Option<Error> {
        self.0.drop_failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn note_drop_failure(&self, error: Error) {
        self.0.drop_failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    pub(crate) fn is_same(&self, other: &Runtime) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn unsupported(&self, what: &'static str, needed: &'static str) -> Error {
        Error::Unsupported { what, needed, found: Version::clone(self.0.library.version()) }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("library", &self.0.library).field("cores", &self.0.cores).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut states = states();
        // SAFETY: it was started by who made this, and every handle of it holds an Arc of this: none is left.
        unsafe { self.library.close() }
        if let Some(entry) = states.iter_mut().find(|(of, _)| *of == identity(self.library)) {
            entry.1 = State::Closed;
        }
    }
}

impl Core {
    /// Its number within this process.
    pub fn index(self) -> u32 {
        self.0
    }

    /// The same as the library takes it; it fits, [`Runtime::start`] saw to that.
    pub(crate) fn vnc(self) -> i32 {
        self.0.cast_signed()
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "core {}", self.0)
    }
}

pub(crate) fn failed(call: &'static str, subject: impl fmt::Display, status: crate::Status) -> Error {
    Error::Call { call, subject: subject.to_string(), status }
}

pub(crate) fn nonsense(call: &'static str, subject: impl fmt::Display, problem: impl fmt::Display) -> Error {
    Error::Nonsense { call, subject: subject.to_string(), problem: problem.to_string() }
}

/// How far a loaded library is. A process has one libnrt; tests have several stand-ins, each with a state of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Running,
    Closed,
}

/// By the address of its `nrt_init`: the loader maps a file once however often it is opened, and libraries are never
/// unmapped, so an address stays one library's.
fn identity(library: Library) -> usize {
    library.0.raw.nrt_init.as_ref().map_or(0, |init| *init as usize)
}

fn states() -> MutexGuard<'static, Vec<(usize, State)>> {
    static STATES: Mutex<Vec<(usize, State)>> = Mutex::new(Vec::new());
    STATES.lock().unwrap_or_else(PoisonError::into_inner)
}
