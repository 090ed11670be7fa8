//! `njoule energy watch`: the energy of every interval, until Ctrl-C.

use std::num::NonZero;
use std::time::{Duration, Instant};

use njoule_energy::report;
use serde_json::Value;

use super::subject::MeterArgs;
use crate::session::Interrupt;
use crate::verbs::Context;

/// Arguments of `energy watch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    meters: MeterArgs,
    /// Seconds of an interval
    #[arg(long, short, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
    interval: f64,
    /// Intervals; without it until Ctrl-C
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<NonZero<u64>>,
    /// One report a line
    #[arg(long)]
    json: bool,
}

/// A length of time in seconds.
pub fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| (0.01..=1e7).contains(s));
    seconds.ok_or_else(|| format!("{text:?} is no number of seconds from 0.01 to 10000000"))
}

impl Args {
    /// Prints.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let source = self.meters.open()?;
        let interrupt = Interrupt::install()?;
        let first = source.mark();
        let mut mark = source.mark();
        for n in 1.. {
            wait(Duration::from_secs_f64(self.interval), &interrupt);
            let run = format!("watch-{n}");
            let report = source.lap(&mut mark, &run, &self.meters.meter);
            match self.json {
                true => writeln!(context.out, "{report}")?,
                false => writeln!(context.out, "{}{}", report::text(&report), utilisation(&report))?,
            }
            context.out.flush()?;
            if interrupt.pressed() || self.count.is_some_and(|count| n >= count.get()) {
                break;
            }
        }
        if !self.json && !context.quiet {
            let whole = source.since(&first, "watch", &self.meters.meter, |_| {});
            eprintln!("in all: {}{}", report::text(&whole), utilisation(&whole));
        }
        Ok(())
    }
}

/// What is measured on Neuron devices, whether there are joules or not.
pub fn utilisation(report: &Value) -> String {
    let devices = report["neuron_power"].as_array();
    let text = |d: &Value| {
        let figures = (d["device"].as_u64(), d["util_seconds"].as_f64(), d["covered_s"].as_f64());
        let (Some(device), Some(util), Some(covered)) = figures else { return String::new() };
        format!(" | neuron{device}: {util:.2} util-s in {covered:.0} s covered")
    };
    devices.into_iter().flatten().map(text).collect()
}

/// Sleeps until the time is over or Ctrl-C is pressed.
pub fn wait(time: Duration, interrupt: &Interrupt) {
    let end = Instant::now() + time;
    while !interrupt.pressed() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
