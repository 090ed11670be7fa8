//! What a build tells while it runs: on a terminal a bar with what is being compiled, elsewhere a line per event.
//!
//! The time left is guessed from what has been compiled so far, module sizes taken for work; nothing is said before the
//! first module is done.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use njoule_runtime::backend::neuron::build;
use njoule_runtime::backend::neuron::compiler::{Compiled, Compiler, Event, NeffCache, Unit};

use crate::fetch::Reporter;
use crate::verbs::Context;

/// The progress of one build; it hears from several threads.
pub struct Progress {
    reporter: Arc<dyn Reporter>,
    /// Whether bars may be drawn.
    bars: bool,
    /// Modules of the build.
    modules: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    /// Names of modules that are being compiled.
    running: Vec<String>,
    /// Modules that are there.
    done: usize,
    pace: Arc<Mutex<Pace>>,
}

/// How fast it goes.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    started: Option<Instant>,
    /// When a module was last done.
    last: Option<Instant>,
    /// Bytes of modules that were compiled, and of those that are to be.
    done: u64,
    left: u64,
}

impl Pace {
    /// Time left at `now`, where something tells.
    fn left(&self, now: Instant) -> Option<Duration> {
        let (started, last) = (self.started?, self.last?);
        if self.done == 0 {
            return None;
        }
        let per_byte = (last - started).as_secs_f64() / self.done as f64;
        let since = now.saturating_duration_since(last).as_secs_f64();
        Some(Duration::from_secs_f64((per_byte * self.left as f64 - since).max(0.0)))
    }
}

impl Progress {
    /// Of a build of so many modules.
    pub fn new(context: &Context<'_>, modules: usize) -> Progress {
        let (reporter, bars) = (Arc::clone(&context.fetch.reporter), context.progress_line());
        Progress { reporter, bars, modules, state: Mutex::default() }
    }

    /// Compiles begin.
    pub fn compiling(&self, units: &[Unit], compiler: &Compiler, cache: &NeffCache) {
        let missing: Vec<&Unit> = units.iter().filter(|unit| !cache.has(unit, compiler)).collect();
        let mut state = self.state();
        let left = missing.iter().map(|unit| unit.hlo.len() as u64).sum();
        *lock(&state.pace) = Pace { started: Some(Instant::now()), left, ..Pace::default() };
        let (version, have) = (compiler.version(), units.len() - missing.len());
        self.say(
            &state,
            &format!(
                "compiling {} of {} modules, the cache has {have}; neuronx-cc {version}",
                missing.len(),
                units.len()
            ),
        );
        if self.bars {
            let pace = Arc::clone(&state.pace);
            let eta = move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
                let text =
                    lock(&pace).left(Instant::now()).map_or(String::new(), |left| format!("{} left", words(left)));
                // Writing to a line of the terminal: lost at worst.
                let _ = out.write_str(&text);
            };
            let bar = ProgressBar::with_draw_target(Some(units.len() as u64), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(COMPILING) {
                bar.set_style(style.with_key("left", eta));
            }
            bar.enable_steady_tick(TICK);
            state.bar = Some(bar);
        }
    }

    /// All modules are there.
    pub fn compiled(&self) {
        self.end();
    }

    /// A phase of bytes begins.
    pub fn bytes(&self, what: &'static str, total: u64) {
        let mut state = self.state();
        if self.bars {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_message(what);
            if let Ok(style) = ProgressStyle::with_template(BYTES) {
                bar.set_style(style);
            }
            state.bar = Some(bar);
        } else {
            self.say(&state, &format!("{what} {:.3} GB", total as f64 / 1e9));
        }
    }

    /// Bytes of it are done.
    pub fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.state().bar {
            bar.inc(bytes);
        }
    }

    /// The present phase is over, one way or the other.
    pub fn end(&self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Hears of a build's progress.
    pub fn hear(&self, progress: build::Progress<'_>) {
        match progress {
            build::Progress::Lowered(..) => {}
            build::Progress::Packing(total) => self.bytes("packing", total),
            build::Progress::Packed(bytes) => self.advance(bytes),
            build::Progress::Compile(event) => self.event(event),
        }
    }

    fn event(&self, event: Event<'_>) {
        let mut state = self.state();
        match event {
            Event::Started(unit) => {
                state.running.push(unit.name.clone());
                if !self.bars {
                    self.say(&state, &format!("compiling {}", unit.name));
                }
            }
            Event::Waiting(unit) => self.say(&state, &format!("another process compiles {}", unit.name)),
            Event::Again(unit) => {
                state.running.retain(|name| *name != unit.name);
                let again = "was killed, most likely for memory: it is compiled again, alone";
                self.say(&state, &format!("{} {again}", unit.name));
            }
            Event::Done(unit, compiled) => {
                state.running.retain(|name| *name != unit.name);
                state.done += 1;
                if !compiled.cached {
                    let mut pace = lock(&state.pace);
                    let bytes = unit.hlo.len() as u64;
                    pace.done += bytes;
                    pace.left = pace.left.saturating_sub(bytes);
                    pace.last = Some(Instant::now());
                }
                self.say(&state, &self.line(&state, unit, compiled));
            }
        }
        if let Some(bar) = &state.bar {
            bar.set_position(state.done as u64);
            bar.set_message(state.running.join(", "));
        }
    }

    /// What is said of a module that is there.
    fn line(&self, state: &State, unit: &Unit, compiled: &Compiled) -> String {
        let (done, count, name) = (state.done, self.modules, &unit.name);
        if compiled.cached {
            return format!("[{done}/{count}] {name} from the cache");
        }
        let (seconds, memory) = (compiled.record.seconds, compiled.record.peak_bytes as f64 / 1e9);
        let left = match lock(&state.pace).left(Instant::now()) {
            Some(left) if !self.bars && done < count => format!("; about {} left", words(left)),
            _ => String::new(),
        };
        format!("[{done}/{count}] {name} in {seconds:.1} s, {memory:.2} GB of memory{left}")
    }

    /// Says a line, above the bar where there is one.
    fn say(&self, state: &State, text: &str) {
        match &state.bar {
            Some(bar) => bar.suspend(|| self.reporter.note(text)),
            None => self.reporter.note(text),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// A poisoned lock means that a compile panicked: what it held is still what it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A duration as a person says it.
fn words(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..=89 => format!("{s} s"),
        s @ 90..=5399 => format!("{} min", s.div_ceil(60)),
        s => format!("{:.1} h", s as f64 / 3600.0),
    }
}

const COMPILING: &str = "modules {pos}/{len} {wide_bar} {elapsed} {left}\n  {wide_msg}";
const BYTES: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const TICK: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_the_bytes_and_shrinks_between_two_modules() {
        let started = Instant::now();
        let mut pace = Pace { started: Some(started), left: 300, ..Pace::default() };
        assert_eq!(pace.left(started), None, "nothing is known");
        let at = |s: u64| started + Duration::from_secs(s);
        (pace.done, pace.left, pace.last) = (100, 200, Some(at(10)));
        assert_eq!(pace.left(at(10)), Some(Duration::from_secs(20)));
        assert_eq!(pace.left(at(15)), Some(Duration::from_secs(15)));
        assert_eq!(pace.left(at(99)), Some(Duration::ZERO));
        let said = [20, 100, 9000].map(|s| words(Duration::from_secs(s)));
        assert_eq!(said, ["20 s", "2 min", "2.5 h"]);
    }
}
