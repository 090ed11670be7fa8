//! The machine's meters as the engine's source of energy, and the flags that say which.
//!
//! The engine's own thread for it is their only reader. Invariant: what the meters have not told yet is left for a later
//! reading, and what they cannot tell is unknown; a figure is never made up to have one.

use njoule_energy::load::{Part, own_cpu_s};
use njoule_energy::meter::Scope;
use njoule_energy::meter::feed::FeedSource;
use njoule_energy::profile::NeuronWatts;
use njoule_energy::window::Flag;
use njoule_energy::{Meters, Snapshot, Wanted, Window};
use njoule_runtime::engine::{EnergySource, Metered, Reading};
use serde_json::{Value, json};

use self::utilisation::Utilisation;

mod utilisation;

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
}

impl MachineMeters {
    /// Opens them; what they count from here on is the engine's.
    pub fn open(wanted: &Wanted) -> MachineMeters {
        let mut meters = Meters::open(wanted);
        let mark = meters.snapshot();
        let utilisation = Utilisation::begin(&mark);
        MachineMeters { meters, mark, utilisation, cpu_s: own_cpu_s(), description: Value::Null, begun: false }
    }
}

impl EnergySource for MachineMeters {
    fn read(&mut self) -> Reading {
        let now = self.meters.snapshot();
        let cpu_s = own_cpu_s();
        let since = (cpu_s - std::mem::replace(&mut self.cpu_s, cpu_s)).max(0.0);
        let window = Window::between(&self.mark, &now);
        let energy = match &window {
            Ok(window) => judge(window),
            // Two looks within the clock's step.
            Err(_) => Metered::NotYet,
        };
        if let Ok(window) = &window
            && energy != Metered::NotYet
        {
            self.description = describe(window);
        }
        let util = self.utilisation.since(&now);
        // What loading used, if that is not known by now, is not to be charged to the first requests.
        if energy != Metered::NotYet || !std::mem::replace(&mut self.begun, true) {
            self.mark = now;
        }
        Reading { cpu_s: since, core_s: None, util, energy }
    }

    fn describe(&self) -> Value {
        self.description.clone()
    }
}

/// What a window says, and whether a longer one may say more.
fn judge(window: &Window) -> Metered {
    if let Some((joules, method)) = window.total.joules.zip(window.total.method) {
        return Metered::Known(joules, method);
    }
    let whole =
        window.meters.iter().any(|m| m.info.counts_in_total && matches!(m.info.scope, Scope::Wall | Scope::Node));
    let minutes = !whole && !window.neuron.is_empty();
    let hopeless = match minutes {
        true => window.neuron.iter().any(|device| device.profile.is_none()),
        false => !window.meters.iter().any(|m| m.info.counts_in_total),
    };
    let patience_s = if minutes { LONGEST_OF_MINUTES_S } else { LONGEST_S };
    match window.flags.contains(&Flag::ShortWindow) && !hopeless && window.duration_s < patience_s {
        true => Metered::NotYet,
        false => Metered::Unknown,
    }
}

/// For people.
fn describe(window: &Window) -> Value {
    let meters: Vec<Value> = window
        .meters
        .iter()
        .map(|m| {
            json!({"id": m.info.id, "scope": m.info.scope, "method": m.info.method, "source": m.info.source,
                "counts_in_total": m.info.counts_in_total, "parent": m.info.parent,
                "reason": m.reason.as_ref().or(m.info.excluded.as_ref())})
        })
        .collect();
    let boundary = Some(window.total.boundary.as_str()).filter(|boundary| !boundary.is_empty());
    json!({"boundary": boundary, "meters": meters, "reasons": window.total.reasons})
}

/// A meter that says nothing new for so long will say nothing of that time.
const LONGEST_S: f64 = 10.0;

/// The same where devices tell whole minutes alone, of which three are needed.
const LONGEST_OF_MINUTES_S: f64 = 330.0;
