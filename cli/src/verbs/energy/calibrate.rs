//! `njoule energy calibrate`: watts of Neuron devices from a meter outside.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use njoule_energy::calibrate::{UtilMinute, calibrate};
use njoule_energy::meter::feed::{self, FeedSource, Sample};
use njoule_energy::meter::neuron::{Line, Verdict};
use njoule_energy::profile::{NeuronWatts, Watts};
use njoule_energy::{Snapshot, Wanted};
use serde_json::json;

use super::polled::Polled;
use super::watch::wait;
use crate::args::UsageError;
use crate::session::Interrupt;
use crate::verbs::Context;

/// Arguments of `energy calibrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The meter outside: cmd:COMMAND, csv:FILE or unix:SOCKET that gives lines t_unix_s,joules
    #[arg(long, value_name = "FEED")]
    feed: FeedSource,
    /// Minutes to watch; run idle and busy minutes meanwhile
    #[arg(long, value_name = "N", default_value = "30", conflicts_with = "lines")]
    minutes: u32,
    /// Instead of watching: lines of one device's stats/power/utilization, recorded before, beside a csv: feed
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was seen.
struct Seen {
    devices: usize,
    minutes: Vec<UtilMinute>,
    feed: Vec<Sample>,
}

impl Args {
    /// Watches and fits.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let seen = match &self.lines {
            Some(lines) => self.recorded(lines)?,
            None => self.watched(context)?,
        };
        let fit = calibrate(&seen.minutes, &seen.feed)?;
        // The devices' shares of what does not follow the utilisation: alike, so that they add up to it.
        let devices = seen.devices.max(1) as f64;
        let share = |w: Watts| Watts { low: w.low / devices, high: w.high / devices };
        let rounded = |w: Watts| Watts { low: (w.low * 100.0).floor() / 100.0, high: (w.high * 100.0).ceil() / 100.0 };
        let profile = NeuronWatts { base: rounded(share(fit.watts.base)), span: rounded(fit.watts.span), source: None };
        if self.json {
            let fields = json!({
                "schema": "njoule.energy.calibration/1",
                "neuron_watts": profile.to_string(),
                "base_w": {"best": fit.best.0 / devices, "low": profile.base.low, "high": profile.base.high},
                "span_w": {"best": fit.best.1, "low": profile.span.low, "high": profile.span.high},
                "confidence": 0.95,
                "devices": seen.devices,
                "minutes": fit.minutes,
                "unmatched_minutes": fit.unmatched,
                "residual_w": fit.residual_w,
            });
            writeln!(context.out, "{fields}")?;
        } else {
            writeln!(context.out, "--neuron-watts {profile}")?;
            context.note(&format!(
                "95 % intervals from {} minutes of {} devices ({} unmatched), {:.2} W left over; base holds everything under \
                 that meter that does not follow the utilisation",
                fit.minutes, seen.devices, fit.unmatched, fit.residual_w
            ));
        }
        Ok(())
    }

    /// From files.
    fn recorded(&self, lines: &PathBuf) -> anyhow::Result<Seen> {
        let FeedSource::Csv(path) = &self.feed else {
            return Err(UsageError("--lines needs a feed of the same time: --feed csv:FILE".into()).into());
        };
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        let samples = feed::samples(&read(path)?);
        let feed = samples.map_err(|line| anyhow::anyhow!("{}: line {line} is no t_unix_s,joules", path.display()))?;
        let mut minutes = vec![];
        let mut last: Option<u64> = None;
        for (number, text) in (1..).zip(read(lines)?.lines()) {
            if text.trim().is_empty() {
                continue;
            }
            let Some(line) = Line::parse(text) else {
                bail!("{}: line {number} is no line of the driver: {text:?}", lines.display());
            };
            let before = last.replace(line.stamp).filter(|before| *before < line.stamp);
            let Some(span) = before.map(|before| line.stamp - before) else { continue };
            if line.status.is_ok() && span.abs_diff(60) <= 2 {
                let to_s = line.stamp as f64;
                minutes.push(UtilMinute {
                    from_s: to_s - span as f64,
                    to_s,
                    util_seconds: line.figures.2 * span as f64,
                });
            }
        }
        Ok(Seen { devices: 1, minutes, feed })
    }

    /// Live.
    fn watched(&self, context: &Context<'_>) -> anyhow::Result<Seen> {
        let mut wanted = Wanted::from_environment();
        wanted.feed = Some((self.feed.clone(), njoule_energy::meter::Scope::Wall, None));
        let meters = Polled::open(&wanted)?;
        let interrupt = Interrupt::install()?;
        if meters.snapshot().neuron.is_empty() {
            bail!(
                "no Neuron device here: `njoule doctor` says what is missing; --lines takes what was recorded elsewhere"
            );
        }
        context.note(&format!("watching for {} minutes; Ctrl-C ends it earlier and fits what there is", self.minutes));
        let mut feed: Vec<Sample> = vec![];
        let mut last = meters.snapshot();
        for _ in 0..self.minutes.saturating_mul(60).saturating_add(EXTRA_S) {
            wait(Duration::from_secs(1), &interrupt);
            last = meters.snapshot();
            if let Some(sample) = sample(&last).filter(|s| feed.last().is_none_or(|l| l.unix_s < s.unix_s)) {
                feed.push(sample);
            }
            if interrupt.pressed() {
                break;
            }
        }
        Ok(Seen { devices: last.neuron.len(), minutes: minutes(&last), feed })
    }
}

/// The feed's newest sample, by the monotonic clock.
fn sample(snapshot: &Snapshot) -> Option<Sample> {
    let feed = snapshot.meters.iter().find(|m| m.info.id == "feed")?;
    Some(Sample { unix_s: feed.at_ns as f64 * 1e-9, joules: feed.total?.best() })
}

/// Minutes in which every device counts, their utilisation added.
fn minutes(snapshot: &Snapshot) -> Vec<UtilMinute> {
    let mut all: BTreeMap<u64, (usize, UtilMinute)> = BTreeMap::new();
    for minute in snapshot.neuron.iter().flat_map(|d| &d.minutes).filter(|m| m.verdict == Verdict::Valid) {
        let (from_s, to_s) = (minute.from_ns as f64 * 1e-9, minute.to_ns as f64 * 1e-9);
        // Devices close their minutes within the same seconds.
        let key = ((to_s + 30.0) / 60.0) as u64;
        let entry = all.entry(key).or_insert((0, UtilMinute { from_s, to_s, util_seconds: 0.0 }));
        entry.0 += 1;
        entry.1.util_seconds += minute.mean * minute.seconds;
    }
    all.into_values().filter(|(devices, _)| *devices == snapshot.neuron.len()).map(|(_, minute)| minute).collect()
}

/// A line comes up to a minute after its beginning, and the first is not counted.
const EXTRA_S: u32 = 70;

const EXAMPLES: &str = "\
The profile is for --neuron-watts (or NJOULE_NEURON_WATTS) of energy, serve and generate.

Examples:
  njoule energy calibrate --feed csv:pdu.csv --minutes 60
  while sleep 5; do cat /sys/devices/virtual/neuron_device/neuron0/stats/power/utilization; done > lines.txt
  njoule energy calibrate --feed csv:pdu.csv --lines lines.txt
";
