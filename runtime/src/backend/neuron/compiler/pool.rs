//! Several compiles at once, as many as the host's memory and cores bear.
//!
//! A unit starts when what it is likely to take fits beside what runs; one alone always starts. A unit that was killed
//! while others ran is tried once more, alone.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::cache::{HLO, Key, LOGFILE, NEFF, NeffCache, OUTPUT, Record};
use super::child::{self, End};
use super::memory::{self, Peaks};
use super::{CompileError, Compiler, Limits, Unit, advice};
use crate::backend::neuron::digest;

/// A unit that has its NEFF.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The NEFF, in the cache.
    pub neff: PathBuf,
    /// What is known of it.
    pub record: Record,
    /// Whether the cache had it.
    pub cached: bool,
}

/// What happens to a unit.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Another process compiles it: waited for.
    Waiting(&'a Unit),
    /// Its compile starts.
    Started(&'a Unit),
    /// It was killed while others ran, and is tried again alone.
    Again(&'a Unit),
    /// It is there.
    Done(&'a Unit, &'a Compiled),
}

pub(super) fn compile(
    compiler: &Compiler,
    units: &[Unit],
    cache: &NeffCache,
    limits: Limits<'_>,
    on_event: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Vec<Compiled>, CompileError> {
    fs::create_dir_all(cache.root()).map_err(CompileError::io("make", cache.root()))?;
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let jobs = limits.jobs.unwrap_or(cores).clamp(1, units.len().max(1));
    let shared = Shared {
        memory: limits.memory.or_else(memory::available).unwrap_or(u64::MAX),
        state: Mutex::new(State {
            waiting: (0..units.len()).collect(),
            running: 0,
            reserved: 0,
            alone: false,
            failed: None,
            done: units.iter().map(|_| None).collect(),
            peaks: Peaks::open(cache.root()),
        }),
        changed: Condvar::new(),
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| work(compiler, units, cache, limits, on_event, &shared));
        }
    });
    let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = state.failed {
        return Err(error);
    }
    state.done.into_iter().collect::<Option<_>>().ok_or(CompileError::Cancelled)
}

struct Shared {
    /// Bytes that all together should stay below.
    memory: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: VecDeque<usize>,
    running: usize,
    /// Bytes that what runs is likely to take.
    reserved: u64,
    /// A unit is to run without others beside it.
    alone: bool,
    failed: Option<CompileError>,
    done: Vec<Option<Compiled>>,
    peaks: Peaks,
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A worker: takes units until there is none, or one has failed.
fn work(
    compiler: &Compiler,
    units: &[Unit],
    cache: &NeffCache,
    limits: Limits<'_>,
    on_event: &(dyn Fn(Event<'_>) + Sync),
    shared: &Shared,
) {
    while let Some((at, reserved)) = next(units, cache, compiler, limits, shared) {
        let unit = &units[at];
        let mut result = one(compiler, unit, cache, limits, on_event);
        if matches!(result, Err(CompileError::Killed { signal: 9, .. })) && wait_alone(limits, shared) {
            on_event(Event::Again(unit));
            result = one(compiler, unit, cache, limits, on_event);
            lock(shared).alone = false;
        }
        let mut state = lock(shared);
        state.running -= 1;
        state.reserved -= reserved;
        match result {
            Ok(compiled) => {
                if !compiled.cached {
                    state.peaks.add(unit.hlo.len() as u64, compiled.record.peak_bytes);
                }
                on_event(Event::Done(unit, &compiled));
                state.done[at] = Some(compiled);
            }
            Err(error) => drop(state.failed.get_or_insert(error)),
        }
        drop(state);
        shared.changed.notify_all();
    }
}

/// The next unit and what is set aside for it: what the cache has costs nothing and goes first.
fn next(
    units: &[Unit],
    cache: &NeffCache,
    compiler: &Compiler,
    limits: Limits<'_>,
    shared: &Shared,
) -> Option<(usize, u64)> {
    let mut state = lock(shared);
    loop {
        if state.failed.is_some() || limits.cancelled.load(Ordering::Relaxed) {
            return None;
        }
        let at = *state.waiting.front()?;
        let unit = &units[at];
        let has = cache.find(Key::new(&unit.hlo, &unit.settings, compiler)).is_some();
        let need = if has { 0 } else { state.peaks.estimate(unit.hlo.len() as u64) };
        let fits = state.running == 0 || state.reserved.saturating_add(need) <= shared.memory;
        if fits && !state.alone {
            state.waiting.pop_front();
            state.running += 1;
            state.reserved += need;
            return Some((at, need));
        }
        // A timeout, so that a stop is noticed also where nothing changes.
        state = shared.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Waits until the caller's unit is the only one that runs, and keeps others from starting till `alone` is taken back;
/// false where it was alone already, where another waits for the same, and where all is to stop.
fn wait_alone(limits: Limits<'_>, shared: &Shared) -> bool {
    let mut state = lock(shared);
    if state.running == 1 || state.alone {
        return false;
    }
    state.alone = true;
    while state.running > 1 && state.failed.is_none() && !limits.cancelled.load(Ordering::Relaxed) {
        state = shared.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
    }
    state.alone = state.running == 1;
    state.alone
}

/// Compiles a unit, or finds it.
fn one(
    compiler: &Compiler,
    unit: &Unit,
    cache: &NeffCache,
    limits: Limits<'_>,
    on_event: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Compiled, CompileError> {
    let key = Key::new(&unit.hlo, &unit.settings, compiler);
    let found = || cache.find(key).map(|(neff, record)| Compiled { neff, record, cached: true });
    if let Some(found) = found() {
        return Ok(found);
    }
    let held = cache.lock(key, || on_event(Event::Waiting(unit)), limits.cancelled)?;
    if let Some(found) = found() {
        return Ok(found);
    }
    on_event(Event::Started(unit));
    let scratch = cache.scratch(&held)?;
    let dir = scratch.path();
    fs::write(dir.join(HLO), &unit.hlo).map_err(CompileError::io("write", &dir.join(HLO)))?;
    let flags = unit.settings.flags();
    let log = dir.join(OUTPUT);
    let mut args: Vec<&std::ffi::OsStr> = vec!["compile".as_ref(), HLO.as_ref()];
    args.extend(flags.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    args.extend(["--logfile", LOGFILE, "--output", NEFF].map(AsRef::<std::ffi::OsStr>::as_ref));
    let (end, taken) = child::run(compiler.path(), &args, dir, &log, limits.deadline, limits.cancelled)?;
    let module = unit.name.clone();
    let kept = || keep_log(cache, unit, key, dir);
    match end {
        End::Done => {}
        End::Cancelled => return Err(CompileError::Cancelled),
        End::Deadline(limit) => return Err(CompileError::Deadline { module, limit, log: kept()?.0 }),
        End::Signal(signal) => return Err(CompileError::Killed { module, signal, peak: taken.peak, log: kept()?.0 }),
        End::Exit(exit) => {
            let (log, text) = kept()?;
            let code = advice::code_in(&text).map(str::to_owned);
            if code.is_none() && advice::says_killed(&text) {
                return Err(CompileError::Killed { module, signal: 9, peak: taken.peak, log });
            }
            let advice = code.as_deref().map_or("see the log", advice::of);
            let message = last_words(&text, code.as_deref());
            return Err(CompileError::Refused { module, exit, code, message, advice, log });
        }
    }
    let neff = match scratch.neff() {
        Ok(path) => path,
        Err(error) => return Err(CompileError::Output { module, what: error.without_path(), log: kept()?.0 }),
    };
    let (neff_sha256, neff_bytes) = digest::of_file(&neff).map_err(CompileError::io("read", &neff))?;
    let record = Record {
        name: module,
        flags,
        compiler: compiler.version().to_owned(),
        neff_sha256,
        neff_bytes,
        hlo_sha256: digest::of_bytes(&unit.hlo),
        hlo_bytes: unit.hlo.len() as u64,
        peak_bytes: taken.peak,
        seconds: taken.seconds,
    };
    let neff = cache.publish(key, scratch, &record)?;
    Ok(Compiled { neff, record, cached: false })
}

impl Compiled {
    /// Writes what the compiler said of it to `path`.
    pub fn copy_log(&self, path: &Path) -> Result<(), CompileError> {
        let place = path.parent().unwrap_or(path);
        fs::create_dir_all(place).map_err(CompileError::io("make", place))?;
        let text = log_text(self.neff.parent().unwrap_or(Path::new("")));
        fs::write(path, text).map_err(CompileError::io("write", path))
    }
}

/// Puts the log of a failed compile where it stays, and returns it with its text, of which the end if it is long.
fn keep_log(cache: &NeffCache, unit: &Unit, key: Key, dir: &Path) -> Result<(PathBuf, String), CompileError> {
    let path = cache.log(&unit.name, key)?;
    let text = log_text(dir);
    fs::write(&path, &text).map_err(CompileError::io("write", &path))?;
    Ok((path, text))
}

/// What the compiler wrote in `dir`, of which the end if it is long.
fn log_text(dir: &Path) -> String {
    let mut text = String::new();
    for part in [LOGFILE, OUTPUT] {
        let bytes = fs::read(dir.join(part)).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(MOST_LOG)..];
        text.push_str(&String::from_utf8_lossy(tail));
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

/// The line that says why: the one with the code, else the last.
fn last_words(text: &str, code: Option<&str>) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let with_code = code.and_then(|code| lines().find(|line| line.contains(code)));
    let line = with_code.or_else(|| lines().next_back()).unwrap_or("it said nothing");
    line.chars().take(300).collect()
}

const MOST_LOG: usize = 8 << 20;
const POLL: Duration = Duration::from_millis(100);
