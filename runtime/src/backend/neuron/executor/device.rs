//! The runtime of this process, and what must hold before a model is loaded on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use njoule_hlo::Target;
use njoule_neuron_sys::{Library, Runtime};

use crate::backend::LoadError;
use crate::backend::neuron::artifact::{Layout, usual_lnc};

/// The runtime, started by whoever asks first; it stays until [`close`], since libnrt starts once.
pub fn runtime() -> Result<Runtime, LoadError> {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*started {
        return Ok(runtime.clone());
    }
    let library = Library::open().map_err(|error| {
        LoadError::Device(format!(
            "{error}; `njoule doctor` looks at the whole installation, and --backend cpu needs none"
        ))
    })?;
    let runtime = Runtime::start(library)
        .map_err(|error| LoadError::Device(format!("{error}; `njoule doctor` looks at devices, driver and library")))?;
    *started = Some(runtime.clone());
    Ok(runtime)
}

/// The device is in an unknown state: nobody calls it any more, to close it neither.
pub fn abandon() {
    ABANDONED.store(true, Ordering::Relaxed);
}

/// Gives the cores back, at the end of a process: to be called when its work is done. Where somebody still has a part of the
/// runtime, or a core is in an unknown state, the end of the process does it.
pub fn close() {
    let Some(runtime) = STARTED.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // Threads that have told their end may have a moment to go.
    let until = Instant::now() + LAST_THREADS;
    while runtime.handles() > 1 && Instant::now() < until && !ABANDONED.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    if ABANDONED.load(Ordering::Relaxed) {
        std::mem::forget(runtime);
    }
}

/// Sets what libnrt reads at its start and this backend relies on, unless the user has: to be called before there is a
/// second thread, by a process that may open a device. Where it is too late nothing is set, and libnrt's own defaults hold.
pub fn prepare_process() {
    // One address per process: a fixed port would let two processes on one instance meet.
    let port = FIRST_PORT + std::process::id() % PORTS;
    let meeting = format!("127.0.0.1:{port}");
    let variables = [
        // Documented defaults contradict each other: 2, 30 and 600 s. A run takes less than 10 s.
        ("NEURON_RT_EXEC_TIMEOUT", "30"),
        // A module is bound to one pair of sets.
        ("NEURON_RT_IO_RING_CACHE_SIZE", "1"),
        ("NEURON_RT_ROOT_COMM_ID", meeting.as_str()),
    ];
    let _ = njoule_neuron_sys::environment::set_unless_set(&variables);
}

/// Refuses a layout that this machine cannot run, in words, before anything is loaded.
pub fn check(runtime: &Runtime, layout: &Layout) -> Result<(), LoadError> {
    let refuse = |what: String| Err(LoadError::Unsupported { backend: "neuron", what });
    let cores = runtime.cores().len();
    if cores < layout.tp {
        return refuse(format!(
            "it needs {} cores, this process has {cores}: see NEURON_RT_VISIBLE_CORES, NEURON_RT_NUM_CORES and neuron-ls, or \
             build for fewer with --tp",
            layout.tp
        ));
    }
    // A library that cannot tell lets the load decide.
    if let Ok(instance) = runtime.library().instance()
        && let Some(family) = instance.family.name()
        && !fits(layout.target, family)
    {
        return refuse(format!(
            "it was built for {} ({}), this machine is {family}: build it anew with --instance of this family",
            layout.target, layout.instance
        ));
    }
    let set = std::env::var("NEURON_LOGICAL_NC_CONFIG").or_else(|_| std::env::var("NEURON_RT_VIRTUAL_CORE_SIZE")).ok();
    let runs = match set.as_deref().map(str::trim) {
        None | Some("") => usual_lnc(layout.target).to_string(),
        Some(set) => set.to_owned(),
    };
    let built = layout.lnc().to_string();
    if runs != built {
        return refuse(format!(
            "it was built for logical cores of {built} physical ones, this process runs with {runs}: set \
             NEURON_LOGICAL_NC_CONFIG={built}"
        ));
    }
    Ok(())
}

/// Whether chips of a family run code of a target: `inf2` and its variants take inf2, and so on.
fn fits(target: Target, family: &str) -> bool {
    family.starts_with(target.name())
}

static STARTED: Mutex<Option<Runtime>> = Mutex::new(None);
static ABANDONED: AtomicBool = AtomicBool::new(false);
const LAST_THREADS: Duration = Duration::from_millis(300);
/// Outside of the range that Linux hands out by itself.
const FIRST_PORT: u32 = 20_000;
const PORTS: u32 = 10_000;
