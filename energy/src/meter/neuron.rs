//! Neuron devices: `stats/power/utilization`, one line per calendar minute, in percent of a maximum that nobody publishes.
//!
//! What is measured is the utilisation-second; joules follow from a declared profile alone. A line describes the span from
//! the line before to its own stamp, and counts if it is VALID, the span is 60 ± 2 s and the wall clock was not set
//! meanwhile. The first line is never counted: its beginning is unknown. (Format and meaning: the driver's
//! `neuron_power.c`; see docs/energy.md.)

use std::collections::VecDeque;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::clock::{Now, seconds};
use crate::joules::Joules;
use crate::profile::NeuronWatts;
use crate::root::{Root, text};
use crate::window::MOST_DIES;

/// Lines of a device, followed since the meter was opened.
#[derive(Debug)]
pub struct NeuronPower {
    state: NeuronState,
    file: PathBuf,
    last: Option<(u64, f64)>,
    /// When the stamp was new, monotonic.
    renewed_ns: u64,
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeuronState {
    /// Its number.
    pub device: u32,
    /// Its name, such as `Inferentia2`.
    pub name: Option<String>,
    /// Dies, of which the largest value is shown; `None` is unknown.
    pub dies: Option<u32>,
    /// Version of the driver.
    #[serde(default)]
    pub driver: Option<String>,
    /// Declared watts.
    pub profile: Option<NeuronWatts>,
    /// Why there is no figure now, if there is none.
    pub trouble: Option<String>,
    /// Whether the file says the same line for ever.
    #[serde(default)]
    pub stalled: bool,
    /// The last line as it stands in the file.
    pub raw: Option<String>,
    /// Utilisation-seconds of all minutes that counted.
    pub util_seconds: f64,
    /// The last minutes, oldest first.
    pub minutes: VecDeque<Minute>,
}

/// What one line said.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Minute {
    /// Beginning, monotonic.
    pub from_ns: u64,
    /// End, monotonic.
    pub to_ns: u64,
    /// Its length by the stamps.
    pub seconds: f64,
    /// Mean, 0 to 1.
    pub mean: f64,
    /// Least.
    pub min: f64,
    /// Most.
    pub max: f64,
    /// Whether it counts, or why not.
    pub verdict: Verdict,
}

/// Whether a line counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It counts.
    Valid,
    /// Its beginning is unknown.
    First,
    /// The firmware gave too few samples.
    NoData,
    /// The driver says that its figures are none.
    Invalid,
    /// Lines between this and the last were missed.
    Gap,
    /// The wall clock was set.
    ClockStep,
}

/// A line of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// `Ok` if valid.
    pub status: Result<(), Verdict>,
    /// Seconds since 1970 of its end.
    pub stamp: u64,
    /// Least, most and mean, 0 to 1.
    pub figures: (f64, f64, f64),
}

impl Line {
    /// `POWER_STATUS_X,stamp,min,max,mean` with percentages; anything else is `None`.
    pub fn parse(text: &str) -> Option<Line> {
        let fields: Vec<&str> = text.split(',').map(str::trim).take(6).collect();
        let [status, stamp, min, max, mean] = fields[..] else { return None };
        let status = match status.strip_prefix("POWER_STATUS_")? {
            "VALID" => Ok(()),
            "NO_DATA" => Err(Verdict::NoData),
            _ => Err(Verdict::Invalid),
        };
        let share = |text: &str| {
            let percent: f64 = text.parse().ok()?;
            (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
        };
        Some(Line { status, stamp: stamp.parse().ok()?, figures: (share(min)?, share(max)?, share(mean)?) })
    }
}

/// All devices that the driver shows.
pub fn open(root: &Root, profile: Option<&NeuronWatts>) -> Vec<NeuronPower> {
    let driver = text(&root.join(DRIVER)).ok().filter(|version| !version.is_empty());
    let mut devices: Vec<NeuronPower> = vec![];
    for entry in root.names(CLASS) {
        let Some(device) = entry.strip_prefix("neuron").and_then(|n| n.parse().ok()) else { continue };
        let dir = root.join(CLASS).join(&entry);
        let name = text(&dir.join("info/architecture/device_name")).ok().filter(|name| !name.is_empty());
        let dies = name.as_deref().and_then(dies);
        let power = dir.join("stats/power");
        let file = power.join("utilization");
        let trouble = (!power.is_dir()).then(|| "no stats/power: a driver older than 2.21.37".to_owned());
        let state = NeuronState {
            device,
            name,
            dies,
            driver: driver.clone(),
            profile: profile.cloned(),
            trouble,
            stalled: false,
            raw: None,
            util_seconds: 0.0,
            minutes: VecDeque::new(),
        };
        devices.push(NeuronPower { state, file, last: None, renewed_ns: 0 });
    }
    devices.sort_by_key(|d| d.state.device);
    devices
}

/// Dies behind the driver's one figure: its address maps have one on Inferentia2 and Trainium1, two on Trainium2.
fn dies(name: &str) -> Option<u32> {
    match name.to_ascii_lowercase().as_str() {
        "inferentia2" | "trainium1" | "trainium" => Some(1),
        "trainium2" => Some(2),
        _ => None,
    }
}

impl NeuronState {
    /// By the declared watts, joules of `seconds` with utilisation-seconds of which the least, the likeliest and the most are
    /// given; `None` where none are declared.
    pub fn joules(&self, seconds: f64, util_seconds: [f64; 3]) -> Option<Joules> {
        self.profile.as_ref()?.joules_between(seconds, util_seconds, self.dies.unwrap_or(MOST_DIES))
    }
}

impl NeuronPower {
    /// Looks for a new line: once a second is enough.
    pub fn poll(&mut self, now: Now) {
        let line = match text(&self.file) {
            Ok(line) => line,
            Err(error) => {
                self.state.trouble.get_or_insert_with(|| error.to_string());
                return;
            }
        };
        let parsed = Line::parse(&line);
        self.state.raw = Some(line.chars().take(120).collect());
        let Some(line) = parsed else {
            let raw = self.state.raw.as_deref().unwrap_or_default();
            self.state.trouble = Some(format!("{}: not understood: {raw:?}", self.file.display()));
            return;
        };
        self.take(line, now);
    }

    fn take(&mut self, line: Line, now: Now) {
        let before = self.last;
        if before.is_some_and(|(stamp, _)| stamp == line.stamp) {
            let still_s = seconds(self.renewed_ns, now.mono_ns);
            if still_s >= STALLED_S {
                self.state.stalled = true;
                self.state.trouble = Some(format!(
                    "{}: the stamp {} has not changed for {still_s:.0} s, and a line is due each minute: a dead sampler",
                    self.file.display(),
                    line.stamp
                ));
            }
            return;
        }
        (self.renewed_ns, self.state.stalled) = (now.mono_ns, false);
        self.last = Some((line.stamp, now.offset_s()));
        let (seconds, verdict) = match before {
            None => (0.0, Verdict::First),
            Some((stamp, offset)) => {
                let seconds = line.stamp as f64 - stamp as f64;
                let verdict = match line.status {
                    _ if (now.offset_s() - offset).abs() >= CLOCK_STEP_S => Verdict::ClockStep,
                    Err(verdict) => verdict,
                    Ok(()) if stamp == 0 => Verdict::First,
                    Ok(()) if (seconds - 60.0).abs() > TOLERANCE_S => Verdict::Gap,
                    Ok(()) => Verdict::Valid,
                };
                (seconds.max(0.0), verdict)
            }
        };
        let (min, max, mean) = line.figures;
        let stamp = line.stamp as f64;
        let minute = Minute {
            from_ns: now.mono_of_unix(stamp - seconds),
            to_ns: now.mono_of_unix(stamp),
            seconds,
            mean,
            min,
            max,
            verdict,
        };
        if verdict == Verdict::Valid {
            self.state.util_seconds += mean * seconds;
        }
        if self.state.minutes.len() == KEPT {
            self.state.minutes.pop_front();
        }
        self.state.minutes.push_back(minute);
        self.state.trouble = self.judge(line.status);
    }

    /// Three minutes without data in a row mean that there will be none.
    fn judge(&self, status: Result<(), Verdict>) -> Option<String> {
        let last_three = self.state.minutes.iter().rev().take(3);
        let dark = last_three.filter(|m| m.verdict == Verdict::NoData).count();
        match status {
            Err(Verdict::NoData) if dark == 3 => {
                Some("no data in three minutes: firmware older than API 3, an emulation, or a dead sampler".to_owned())
            }
            Err(Verdict::Invalid) => Some("the driver says that its figures are invalid".to_owned()),
            _ => None,
        }
    }

    /// What is known.
    pub fn state(&self) -> &NeuronState {
        &self.state
    }
}

const CLASS: &str = "/sys/devices/virtual/neuron_device";

const DRIVER: &str = "/sys/module/neuron/version";

/// Three minutes without a new line: there will be none.
const STALLED_S: f64 = 180.0;

/// A line's span may be off by this much from a minute.
const TOLERANCE_S: f64 = 2.0;

/// A wall clock that moved by this much was set.
const CLOCK_STEP_S: f64 = 0.5;

/// Minutes kept: two days.
const KEPT: usize = 2880;
