//! What the engine asks of those who know energy, and what it tells.
//!
//! The engine knows no meter: an [`EnergySource`] is given to it and is read on a thread of its own, about once a second and
//! when a request that wants its energy has ended. What is unknown is `None`, never 0.

use std::time::Instant;

use njoule_energy::attribution::{Coefficients, Split};
use njoule_energy::load::own_cpu_s;
use njoule_energy::{Joules, Method};
use serde_json::Value;

mod answer;
mod later;

pub use answer::Energy;
pub use later::Later;

/// Meters and clocks, read by nobody else.
pub trait EnergySource: Send {
    /// What was used since the last call; it may take its time. What it tells before the first step is booked as loading.
    fn read(&mut self) -> Reading;

    /// The meters behind it and why there are no joules, for people.
    fn describe(&self) -> Value;

    /// What is known of it before it is read.
    fn character(&self) -> Character {
        Character::default()
    }
}

/// What a source is like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Character {
    /// Since when utilisation counts: what is told of it first may be of loading and of steps at once.
    pub since: Option<Instant>,
    /// Whether the same holds for joules, which come so late that no answer waits for them; else the first reading is of loading
    /// alone.
    pub late: bool,
    /// Watts of what it covers with nothing to do, where they were declared.
    pub idle_w: Option<f64>,
}

/// What was used in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Seconds of CPUs, since the last reading.
    pub cpu_s: f64,
    /// Seconds of accelerator cores, since the last reading; `None` is unknown.
    pub core_s: Option<f64>,
    /// Utilisation-seconds of accelerators.
    pub util: Utilised,
    /// Energy.
    pub energy: Metered,
    /// How many seconds before it was made the time ends that it tells the utilisation and energy of.
    pub lag_s: f64,
}

/// Utilisation-seconds since the last reading that was not [`Utilised::NotYet`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Utilised {
    /// Devices tell whole minutes: it will be in a later reading.
    NotYet,
    /// It will never be known.
    #[default]
    Unknown,
    /// So many.
    Known(f64),
}

/// Energy since the last reading that was not [`Metered::NotYet`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Metered {
    /// The meters have nothing new: it will be in a later reading.
    #[default]
    NotYet,
    /// It will never be known.
    Unknown,
    /// This much, and how it was obtained.
    Known(Joules, Method),
}

impl Reading {
    /// Both, `later` being the later one.
    pub(super) fn and(self, later: Reading) -> Reading {
        let sum = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a + b);
        Reading {
            cpu_s: self.cpu_s + later.cpu_s,
            core_s: sum(self.core_s, later.core_s),
            util: match (self.util, later.util) {
                (Utilised::NotYet, util) | (util, Utilised::NotYet) => util,
                (Utilised::Known(a), Utilised::Known(b)) => Utilised::Known(a + b),
                _ => Utilised::Unknown,
            },
            energy: match (self.energy, later.energy) {
                (Metered::NotYet, energy) | (energy, Metered::NotYet) => energy,
                (Metered::Known(a, by), Metered::Known(b, other)) => Metered::Known(a.plus(b), by.weakest(other)),
                _ => Metered::Unknown,
            },
            lag_s: match (later.util, later.energy) {
                (Utilised::NotYet, Metered::NotYet) => self.lag_s,
                _ => later.lag_s,
            },
        }
    }
}

/// The process's CPU time alone, which every machine tells.
#[derive(Debug)]
pub(super) struct CpuTime(f64);

impl CpuTime {
    /// From now on.
    pub fn begin() -> CpuTime {
        CpuTime(own_cpu_s())
    }
}

impl EnergySource for CpuTime {
    fn read(&mut self) -> Reading {
        let now = own_cpu_s();
        let before = std::mem::replace(&mut self.0, now);
        Reading { cpu_s: (now - before).max(0.0), energy: Metered::Unknown, ..Reading::default() }
    }

    fn describe(&self) -> Value {
        serde_json::json!({"meters": [], "reasons": ["no meter is read"]})
    }
}

/// What a request has used. Its share of the weights' reading, of idle power and of the process's CPU time is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestEnergy {
    /// Energy; `None` unless every step it ran in was metered.
    pub joules: Option<Joules>,
    /// How the energy was obtained.
    pub method: Option<Method>,
    /// Of the energy, what went for the prompt, for the answer, and in vain (computed again, refused guesses).
    pub parts: Option<[f64; 3]>,
    /// Of the energy, the share of idle power; `None` until the machine was seen idle.
    pub static_j: Option<f64>,
    /// Whether a reading covered more than one step, so that shares are by their work.
    pub interpolated: bool,
    /// Seconds of CPUs.
    pub cpu_s: f64,
    /// Seconds of accelerator cores.
    pub core_s: Option<f64>,
    /// Utilisation-seconds of accelerators; `None` unless every step it ran in was covered, or the rest could be extrapolated.
    pub util_s: Option<f64>,
    /// Whether they are those of the minutes that were told, and as many for each core-second of the rest as requests had by
    /// then: no meter has told all of them yet.
    pub extrapolated: bool,
    /// Whether nothing of it is still to be told: what is unknown now stays so.
    pub settled: bool,
}

/// What an engine has used so far, as of the last reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EnergyStats {
    /// Joules by what they went for; `None` until some are known.
    pub split: Option<Split>,
    /// Their sum with its interval.
    pub joules: Option<Joules>,
    /// What they are split by: declared, or fitted to the meter; `None` until something was read.
    pub costs: Option<Coefficients>,
    /// Whether those of loading are among them.
    pub load_known: bool,
    /// Of them, those of idling since the last step.
    pub tail: Option<Joules>,
    /// Whether a meter has still to tell of a time in which something was loaded or run.
    pub owed: bool,
    /// The weakest method of those joules.
    pub method: Option<Method>,
    /// Mean power between the last two readings with joules.
    pub watts: Option<f64>,
    /// Seconds whose joules were not to be had.
    pub unknown_s: f64,
    /// Tokens that were generated in the time whose joules are known.
    pub tokens: u64,
    /// Seconds of CPUs.
    pub cpu_s: f64,
    /// Seconds of accelerator cores.
    pub core_s: Option<f64>,
    /// Utilisation-seconds of accelerators by what they went for, in the place of joules; `None` until some are known.
    pub util: Option<Split>,
    /// Seconds of which these say nothing, yet or for ever; `None` without accelerators.
    pub util_unknown_s: Option<f64>,
}

impl EnergyStats {
    /// Utilisation-seconds of accelerators, as far as they are known.
    pub fn util_s(&self) -> Option<f64> {
        self.util.map(|split| split.total())
    }
}
