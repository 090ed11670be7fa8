//! What a meter is: running totals of joules, each with what it covers and how sure it is.
//!
//! A meter counts from its opening. The time is handed to it, so that a test replays a day in a millisecond. Meters that
//! overlap say so by [`MeterInfo::parent`] and [`MeterInfo::counts_in_total`], and are never summed.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Now;
use crate::joules::{Joules, Method};

pub mod feed;
pub mod hwmon;
pub mod instance;
pub mod mock;
pub mod neuron;
pub mod nvml;
pub mod powercap;
pub mod rapl;

/// What kind of consumer a meter sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Processor packages, or a part of one.
    Cpu,
    /// Memory.
    Dram,
    /// Inferentia, Trainium, or a GPU's board.
    Accelerator,
    /// The host's share of an instance: processor, memory and platform, accelerators excluded.
    Host,
    /// The whole machine inside its power supplies.
    Node,
    /// The whole machine at the plug.
    Wall,
    /// A sensor that does not say.
    Unknown,
}

/// A meter's constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeterInfo {
    /// Unique in a set of meters.
    pub id: String,
    /// `package`, `ram`, `core`, `psys`, ... as the source calls it.
    pub domain: String,
    /// Who consumes.
    pub scope: Scope,
    /// How the joules come about.
    pub method: Method,
    /// Where they are read.
    pub source: String,
    /// Declared constants in them.
    pub profile: Option<String>,
    /// Joules of the counter's smallest step.
    pub unit_j: Option<f64>,
    /// How often the source renews its value.
    pub update_period_s: Option<f64>,
    /// Relative uncertainty; `None` is unknown.
    pub rel_uncertainty: Option<f64>,
    /// The meter that includes this one.
    pub parent: Option<String>,
    /// Whether it is part of the total: no other part includes it.
    pub counts_in_total: bool,
    /// Why it is not, where that is not for a parent's sake.
    pub excluded: Option<String>,
}

impl MeterInfo {
    /// Whether it is a meter outside that has every accelerator of the machine behind it.
    pub fn covers_accelerators(&self) -> bool {
        self.domain == feed::DOMAIN && self.scope == Scope::Accelerator
    }
}

/// A running total.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Monotonic moment that the total is of.
    pub at_ns: u64,
    /// Joules since the meter was opened.
    pub total: Joules,
    /// Wraps of the counter so far.
    pub wraps: u32,
    /// Spans so far in which an unknown amount went uncounted.
    pub holes: u32,
    /// Spans so far so long that a wrap may have been missed.
    pub ambiguous: u32,
}

/// Something that counts joules.
pub trait Meter: Send {
    /// Its constants.
    fn info(&self) -> &MeterInfo;

    /// Whether it counts, and under whom: written once, when the set is put together.
    fn info_mut(&mut self) -> &mut MeterInfo;

    /// The command that a reading of it runs, if there is one.
    fn command(&self) -> Option<Arc<feed::SharedCommand>> {
        None
    }

    /// How often so far it answered so late that its value is of another moment than the one it was asked at.
    fn late(&self) -> u32 {
        0
    }

    /// The total by now. After an error it may be asked again.
    fn read(&mut self, now: Now) -> Result<Reading, MeterError>;
}

/// Why a meter gives nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeterError {
    /// It is not there.
    #[error("{0}: not there")]
    Missing(String),
    /// It may not be read.
    #[error("{path}: no permission: {advice}")]
    Permission {
        /// File or event.
        path: String,
        /// What to do.
        advice: String,
    },
    /// It says something that is not understood.
    #[error("{path}: not understood: {text:?}")]
    Unreadable {
        /// File or event.
        path: String,
        /// The beginning of what it says.
        text: String,
    },
    /// It went backwards: the driver was loaded again.
    #[error("{0}: the counter was reset")]
    Reset(String),
    /// It has said nothing yet.
    #[error("{0}: no value yet")]
    Silent(String),
    /// It says that it cannot.
    #[error("{0}: not supported here")]
    Unsupported(String),
    /// Anything else.
    #[error("{path}: {what}")]
    Failed {
        /// File or event.
        path: String,
        /// The system's words.
        what: String,
    },
}

impl MeterError {
    /// Of a file that could not be read.
    pub fn from_io(path: &Path, error: &std::io::Error) -> MeterError {
        let path = path.display().to_string();
        match error.kind() {
            std::io::ErrorKind::NotFound => MeterError::Missing(path),
            std::io::ErrorKind::PermissionDenied => {
                let advice = if path.contains("powercap") {
                    "run as root, or give a group read access to energy_uj by a udev rule (docs/energy.md)"
                } else {
                    "run as root, or make it readable"
                };
                MeterError::Permission { path, advice: advice.into() }
            }
            _ => MeterError::Failed { path, what: error.to_string() },
        }
    }

    /// Of a file that says something else.
    pub fn unreadable(path: &Path, text: &str) -> MeterError {
        MeterError::Unreadable { path: path.display().to_string(), text: text.chars().take(80).collect() }
    }
}
