//! What the driver tells of the devices' power, as it stands: presence, status, figures and their age.
//!
//! The file describes the calendar minute before its stamp, in percent of a maximum that nobody publishes with the idle
//! power taken off. No watts follow from it, and none are given. Live figures have no published format: they are quoted.

use serde::Serialize;

use super::Redaction;

/// Of all devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PowerFound {
    /// By number; none where the driver shows none.
    pub devices: Vec<DevicePower>,
}

/// Of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DevicePower {
    /// Its number.
    pub device: u32,
    /// What `stats/power/utilization` is.
    pub file: PowerFile,
    /// What that means, in words.
    pub words: String,
    /// Least, most and mean of the minute, in percent; only where they mean something.
    pub min_max_mean: Option<[f64; 3]>,
    /// Seconds since the minute ended, by this machine's clock; negative where that is behind.
    pub age_seconds: Option<i64>,
    /// The beginning of `stats/power/utilization_raw`, or why there is none.
    pub live: String,
}

/// How the file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerFile {
    /// Figures of the last minute.
    Valid,
    /// Figures of a minute that is long over: the sampler stands still.
    Stale,
    /// No figures: fewer than 60 samples in the minute, or firmware that gives none.
    NoData,
    /// An error within the driver.
    Invalid,
    /// No such file: a driver older than 2.21.37.
    Absent,
    /// It cannot be read or is not understood.
    Unreadable,
}

impl PowerFound {
    /// Whether any device tells figures.
    pub fn tells(&self) -> bool {
        self.devices.iter().any(|device| device.file == PowerFile::Valid)
    }

    /// All of it in words.
    pub fn words(&self) -> String {
        if self.devices.is_empty() {
            return "the driver shows no device, so no power file".to_owned();
        }
        let told: Vec<String> = self.devices.iter().map(|d| format!("device {}: {}", d.device, d.words)).collect();
        told.join("; ")
    }
}

impl DevicePower {
    pub(super) fn redact(&mut self, redaction: &Redaction) {
        self.words = redaction.of(&self.words);
        self.live = redaction.of(&self.live);
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod read {
    use njoule_neuron_sys::sysfs::{DeviceDir, Field, Power, PowerStatus, Root};

    use super::*;

    impl PowerFound {
        /// Reads the files below `root`; `now` is the machine's clock, in seconds since 1970.
        pub fn read(root: &Root, now: u64) -> PowerFound {
            PowerFound { devices: root.devices().iter().map(|device| DevicePower::read(device, now)).collect() }
        }
    }

    impl DevicePower {
        fn read(device: &DeviceDir, now: u64) -> DevicePower {
            let field = device.power();
            let age = |power: &Power| i64::try_from(i128::from(now) - i128::from(power.epoch_seconds)).ok();
            let (file, words) = match &field {
                Field::Value(power) => told(power, age(power)),
                Field::Absent => (PowerFile::Absent, "absent: the driver is older than 2.21.37".to_owned()),
                other => (PowerFile::Unreadable, other.problem().unwrap_or_default()),
            };
            let power = field.value();
            let figures = power.filter(|_| matches!(file, PowerFile::Valid | PowerFile::Stale));
            let raw = device.power_raw();
            let first_line = |text: &String| text.lines().next().unwrap_or_default().chars().take(LIVE).collect();
            DevicePower {
                device: device.index(),
                file,
                words,
                min_max_mean: figures.map(|p| [p.min, p.max, p.mean]),
                age_seconds: power.and_then(age),
                live: raw.value().map_or_else(|| raw.problem().unwrap_or_default(), first_line),
            }
        }
    }

    fn told(power: &Power, age: Option<i64>) -> (PowerFile, String) {
        let Power { min, max, mean, .. } = power;
        match (power.status, age) {
            (PowerStatus::Valid, Some(age @ AHEAD..=FRESH)) => (
                PowerFile::Valid,
                format!("mean {mean:.2} %, {min:.2} to {max:.2} %, of the minute that ended {age} s ago"),
            ),
            (PowerStatus::Valid, _) => (
                PowerFile::Stale,
                "its last minute is not the one before this: the driver has stopped to sample, or the clocks differ"
                    .to_owned(),
            ),
            (PowerStatus::NoData, _) => (
                PowerFile::NoData,
                "NO_DATA: fewer than 60 samples in the minute; after three such minutes the firmware gives none"
                    .to_owned(),
            ),
            (PowerStatus::Invalid, _) => (PowerFile::Invalid, "the driver calls its figures invalid".to_owned()),
        }
    }

    /// A stamp is that of the last change of minute: two minutes allow for one that was skipped.
    const FRESH: i64 = 120;
    /// Clocks may differ by some seconds.
    const AHEAD: i64 = -5;
    /// Of a line whose format is not known.
    const LIVE: usize = 120;
}
