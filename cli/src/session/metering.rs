//! The machine's meters as the engine's source of energy, and the flags that say which.
//!
//! The engine's own thread for it is their only reader. Invariant: what the meters have not told yet is left for a later
//! reading, and what they cannot tell is unknown; a figure is never made up to have one.

use std::time::Instant;

use njoule_energy::load::{Part, own_cpu_s};
use njoule_energy::meter::Scope;
use njoule_energy::meter::feed::FeedSource;
use njoule_energy::meter::neuron::{NeuronState, Verdict};
use njoule_energy::profile::NeuronWatts;
use njoule_energy::window::{Flag, NeuronWindow};
use njoule_energy::{Meters, Snapshot, Wanted, Window};
use njoule_runtime::engine::{Character, EnergySource, Metered, Reading, Utilised};
use serde_json::{Value, json};

pub use self::opening::Opening;
use self::utilisation::Utilisation;
pub use self::wait::{EnergyWaitArgs, wait};

mod opening;
mod utilisation;
mod wait;

/// Which meters, as typed.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Energy")]
pub struct MeteringArgs {
    /// A meter outside: cmd:COMMAND, csv:FILE or unix:SOCKET that gives lines t_unix_s,joules
    #[arg(long, value_name = "FEED")]
    pub feed: Option<FeedSource>,
    /// What that meter covers
    #[arg(long, value_enum, default_value_t, requires = "feed")]
    pub feed_scope: FeedScope,
    /// Its relative uncertainty, such as 0.02; unknown without
    #[arg(long, value_name = "SHARE", requires = "feed", value_parser = uncertainty)]
    pub feed_uncertainty: Option<f64>,
    /// Watts of a Neuron device: base=20..60,span=40..150 (at 0 %, and added at 100 %)
    #[arg(long, value_name = "PROFILE", env = "NJOULE_NEURON_WATTS")]
    pub neuron_watts: Option<NeuronWatts>,
}

/// What an outside meter covers.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum FeedScope {
    /// The machine at the plug.
    #[default]
    Wall,
    /// The machine behind its power supplies.
    Node,
    /// The accelerators.
    Accelerator,
}

fn uncertainty(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|u: &f64| (0.0..=1.0).contains(u));
    share.ok_or_else(|| format!("{text:?} is no share from 0 to 1"))
}

impl MeteringArgs {
    /// The meters of this machine.
    pub fn wanted(&self) -> Wanted {
        let scope = match self.feed_scope {
            FeedScope::Wall => Scope::Wall,
            FeedScope::Node => Scope::Node,
            FeedScope::Accelerator => Scope::Accelerator,
        };
        Wanted {
            feed: self.feed.clone().map(|feed| (feed, scope, self.feed_uncertainty)),
            neuron_watts: self.neuron_watts.clone(),
            ..Wanted::from_environment()
        }
    }

    /// The share of this process alone, where others of its kind read the same meters.
    pub fn wanted_of_replica(&self) -> Wanted {
        Wanted { part: Some(Part::Process(std::process::id())), ..self.wanted() }
    }
}

/// The meters of a machine, between two of their readings.
pub struct MachineMeters {
    meters: Meters,
    /// Where what is not told yet begins.
    mark: Snapshot,
    utilisation: Utilisation,
    cpu_s: f64,
    description: Value,
    /// Whether it has been read.
    begun: bool,
    /// Whether a counter of the total has stood still, and none has moved since.
    still: bool,
    /// Where joules come by the minute: the idle power that was declared, if nothing beside devices counts.
    minutes: Option<Option<f64>>,
    opened: Instant,
}

impl MachineMeters {
    /// Opens them; what they count from here on is the engine's.
    pub fn open(wanted: &Wanted) -> MachineMeters {
        let opened = Instant::now();
        MachineMeters::of(Meters::open(wanted), opened)
    }

    fn of(mut meters: Meters, opened: Instant) -> MachineMeters {
        let mark = meters.snapshot();
        let (utilisation, minutes) = (Utilisation::begin(&mark), minutes(&mark));
        let (cpu_s, description) = (own_cpu_s(), Value::Null);
        MachineMeters { meters, mark, utilisation, cpu_s, description, begun: false, still: false, minutes, opened }
    }

    /// Looks at what forgets that nobody has looked at it: once a second, while nobody reads.
    pub fn watch(&mut self) {
        self.meters.poll_devices();
    }
}

/// The declared idle power where the total has Neuron devices in it that tell whole minutes, unless other meters count too.
fn minutes(mark: &Snapshot) -> Option<Option<f64>> {
    let counted = || mark.meters.iter().map(|meter| &meter.info).filter(|info| info.counts_in_total);
    let over = counted().any(|info| matches!(info.scope, Scope::Wall | Scope::Node) || info.covers_accelerators());
    let part = mark.part_cpu_s.is_some() || mark.part_trouble.is_some();
    if mark.neuron.is_empty() || over || part {
        return None;
    }
    let idle_w: Option<f64> =
        mark.neuron.iter().map(|device| device.profile.as_ref().map(|watts| watts.base.middle())).sum();
    idle_w.map(|idle_w| Some(idle_w).filter(|_| counted().next().is_none()))
}

impl EnergySource for MachineMeters {
    fn read(&mut self) -> Reading {
        let now = self.meters.snapshot();
        let cpu_s = own_cpu_s();
        let since = (cpu_s - std::mem::replace(&mut self.cpu_s, cpu_s)).max(0.0);
        // Two looks within the clock's step say nothing.
        let Ok(window) = Window::between(&self.mark, &now) else {
            return Reading { cpu_s: since, util: Utilised::NotYet, ..Reading::default() };
        };
        let told = self.utilisation.since(&now);
        let energy = match self.minutes {
            Some(_) => beside(&window, told.energy),
            None => judge(&window, self.still && anew(&self.mark, &now)),
        };
        let stalled = window.flags.contains(&Flag::MeterStalled) && window.neuron.iter().all(|d| d.status != "stalled");
        self.still = match energy {
            Metered::Known(..) => false,
            _ => self.still || (energy == Metered::Unknown && stalled),
        };
        if energy != Metered::NotYet {
            self.description = describe(&window, &now, energy, self.minutes.is_some());
        }
        // What loading used, if that is not known by now, is not to be charged to the first requests, unless it is told apart.
        let first = !std::mem::replace(&mut self.begun, true);
        if energy != Metered::NotYet || (first && self.minutes.is_none()) {
            self.mark = now;
        }
        Reading { cpu_s: since, core_s: None, util: told.util, energy, lag_s: told.lag_s }
    }

    fn character(&self) -> Character {
        let since = (!self.mark.neuron.is_empty()).then_some(self.opened);
        Character { since, late: self.minutes.is_some(), idle_w: self.minutes.flatten() }
    }

    fn describe(&self) -> Value {
        self.description.clone()
    }
}

/// What devices have told, with what the meters that count beside them have: of the same time, but for the second in which the
/// devices' minute is seen.
fn beside(window: &Window, devices: Metered) -> Metered {
    let counted = window.meters.iter().filter(|meter| meter.info.counts_in_total);
    counted.fold(devices, |sum, meter| match (sum, meter.joules) {
        (Metered::Known(joules, method), Some(more)) => {
            Metered::Known(joules.plus(more), method.weakest(meter.info.method))
        }
        (Metered::NotYet, _) => Metered::NotYet,
        _ => Metered::Unknown,
    })
}

/// Whether every meter of the total says more of its time than before: an outside one may be silent for longer than a request lasts.
fn anew(mark: &Snapshot, now: &Snapshot) -> bool {
    let before = |id: &str| mark.meters.iter().find(|meter| meter.info.id == id).map_or(0, |meter| meter.at_ns);
    now.meters.iter().filter(|meter| meter.info.counts_in_total).all(|meter| meter.at_ns > before(&meter.info.id))
}

/// What a window says, and whether a longer one may say more: not where counters were read anew and stand `still` as before. Else every answer on a virtual machine whose counters are for show would wait for them.
fn judge(window: &Window, still: bool) -> Metered {
    if let Some((joules, method)) = window.total.joules.zip(window.total.method) {
        return Metered::Known(joules, method);
    }
    let whole =
        window.meters.iter().any(|m| m.info.counts_in_total && matches!(m.info.scope, Scope::Wall | Scope::Node));
    // Devices that tell whole minutes and are in this total cannot be told here: watts or their part are unknown.
    let covered = window.meters.iter().any(|m| m.info.counts_in_total && m.info.covers_accelerators());
    let devices = !whole && !covered && !window.neuron.is_empty();
    let hopeless = still || devices || !window.meters.iter().any(|m| m.info.counts_in_total);
    match window.flags.contains(&Flag::ShortWindow) && !hopeless && window.duration_s < LONGEST_S {
        true => Metered::NotYet,
        false => Metered::Unknown,
    }
}

/// For people, and for metrics.
fn describe(window: &Window, now: &Snapshot, energy: Metered, minutes: bool) -> Value {
    let meters: Vec<Value> = window
        .meters
        .iter()
        .map(|m| {
            json!({"id": m.info.id, "scope": m.info.scope, "method": m.info.method, "source": m.info.source,
                "counts_in_total": m.info.counts_in_total, "parent": m.info.parent,
                "joules": counted(now, &m.info.id), "watts": m.joules.map(|joules| joules.best() / window.duration_s),
                "reason": m.reason.as_ref().or(m.info.excluded.as_ref())})
        })
        .collect();
    let boundary = Some(window.total.boundary.as_str()).filter(|boundary| !boundary.is_empty());
    let reasons = match energy {
        Metered::Known(..) => vec![],
        _ => window.total.reasons.iter().map(|reason| said_of_devices(reason, window, minutes)).collect(),
    };
    let devices: Vec<Value> = now.neuron.iter().map(device).collect();
    let errors: u64 = now.meters.iter().map(|meter| meter.errors).sum();
    json!({"boundary": boundary, "meters": meters, "devices": devices, "errors": errors, "reasons": reasons})
}

/// Joules that a meter has told since it was opened. One that has not moved is not known to count.
fn counted(now: &Snapshot, id: &str) -> Option<f64> {
    let meter = now.meters.iter().find(|meter| meter.info.id == id && meter.trouble.is_none())?;
    meter.total.map(|total| total.best()).filter(|joules| *joules > 0.0)
}

/// What a device's driver has told by now: of the last minute, if that counts, and of all.
fn device(state: &NeuronState) -> Value {
    let newest = state.minutes.back().filter(|minute| minute.verdict == Verdict::Valid && !state.stalled);
    let newest = newest.filter(|_| state.trouble.is_none());
    let known = state.minutes.iter().any(|minute| minute.verdict == Verdict::Valid);
    json!({"device": state.device, "utilization": newest.map(|minute| minute.mean),
        "utilization_s": known.then_some(state.util_seconds)})
}

/// A reason, unless it is that a window lacks whole minutes: that is not what is missing here.
fn said_of_devices(reason: &str, window: &Window, minutes: bool) -> String {
    let of = |device: &&NeuronWindow| reason.starts_with(&format!("neuron{}: ", device.device));
    match window.neuron.iter().find(of) {
        Some(device) if matches!(device.status, "valid" | "no_whole_minute" | "no_data" | "invalid") => {
            let what = if minutes { "the driver told nothing of a minute" } else { NO_WATTS };
            format!("neuron{}: {what}", device.device)
        }
        _ => reason.to_owned(),
    }
}

const NO_WATTS: &str = "no watts are published for the chip: declare some with --neuron-watts";

/// A meter that says nothing new for so long will say nothing of that time.
const LONGEST_S: f64 = 10.0;

#[cfg(test)]
mod tests;
