//! Running totals of a set of meters at one moment: what an agent serves, and two of which make a window.

use serde::{Deserialize, Serialize};

use crate::clock::Now;
use crate::conditions::Conditions;
use crate::host::Host;
use crate::joules::Joules;
use crate::load::MachineTime;
use crate::meter::MeterInfo;
use crate::meter::neuron::NeuronState;

/// All totals of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: String,
    /// Of one opening of the meters: only snapshots of one session can be subtracted.
    pub session: String,
    /// Monotonic moment.
    pub mono_ns: u64,
    /// The same on the wall clock.
    pub unix_s: f64,
    /// The machine.
    pub host: Host,
    /// Every meter that was opened.
    pub meters: Vec<MeterState>,
    /// Every Neuron device.
    pub neuron: Vec<NeuronState>,
    /// Kinds of meters that are not there, each with the reason.
    pub absent: Vec<Absent>,
    /// CPU time of the machine.
    pub machine: Option<MachineTime>,
    /// CPU-seconds of the part whose energy is asked for, if not the whole machine.
    pub part_cpu_s: Option<f64>,
    /// Why that is not known.
    pub part_trouble: Option<String>,
    /// What reading the meters has cost so far.
    pub overhead: Overhead,
    /// Clocks and temperatures, if they were asked for.
    #[serde(default)]
    pub conditions: Option<Conditions>,
}

/// One meter's total.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeterState {
    /// Its constants.
    #[serde(flatten)]
    pub info: MeterInfo,
    /// Moment of the total.
    pub at_ns: u64,
    /// Joules since it was opened; `None` if it has given none yet.
    pub total: Option<Joules>,
    /// Why the last reading failed, if it did.
    pub trouble: Option<String>,
    /// Readings.
    pub samples: u64,
    /// Readings that failed.
    pub errors: u64,
    /// Wraps.
    pub wraps: u32,
    /// Spans with an unknown amount.
    pub holes: u32,
    /// Spans in which a wrap may be missing.
    pub ambiguous: u32,
    /// Times that it answered later than it is read.
    #[serde(default)]
    pub late: u32,
    /// Highest mean power between two readings so far.
    pub peak_w: f64,
}

/// A kind of meter that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// `rapl`, `nvml`, ...
    pub meter: String,
    /// Why.
    pub reason: String,
}

/// What metering costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Rounds of readings.
    pub polls: u64,
    /// CPU-seconds in them.
    pub cpu_s: f64,
}

impl Snapshot {
    /// Its moment.
    pub fn now(&self) -> Now {
        Now { mono_ns: self.mono_ns, unix_s: self.unix_s }
    }

    /// Without the history of minutes, which only the later of two needs: what is handed out.
    pub fn brief(mut self) -> Snapshot {
        for device in &mut self.neuron {
            let surplus = device.minutes.len().saturating_sub(1);
            device.minutes.drain(..surplus);
        }
        self
    }
}

/// The form's name.
pub const SCHEMA: &str = "njoule.energy.snapshot/1";
