//! What the end of a run waits for: meters that have not told all of its time, as Neuron's driver, which tells a minute after its
//! end.
//!
//! Invariant: nobody waits who has not asked for it, by the flag or by declared watts where a report is made of them; Ctrl-C ends
//! the wait and nothing else.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use njoule_runtime::Engine;

use crate::session::Interrupt;
use crate::verbs::Context;

/// How long the end waits, as typed.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Energy")]
pub struct EnergyWaitArgs {
    /// Seconds that the end waits at most for meters that tell late: Neuron's driver tells a minute after its end. 0 does not
    /// wait, which is the default but for `batch` and `score --json` with --neuron-watts (90)
    #[arg(long, value_name = "SECONDS")]
    energy_wait: Option<u32>,
}

impl EnergyWaitArgs {
    /// As said, else [`LONGEST`] where somebody `expects` joules of late meters.
    pub fn patience(&self, expects: bool) -> Duration {
        let unsaid = if expects { LONGEST } else { Duration::ZERO };
        self.energy_wait.map_or(unsaid, |seconds| Duration::from_secs(seconds.into()))
    }
}

/// Waits until the meters have told all that the engine has done so far, for `patience` at most.
pub fn wait(engine: &Engine, patience: Duration, interrupt: &Interrupt, context: &Context<'_>) {
    let owed = || engine.stats().energy.owed && engine.failure().is_none();
    if patience.is_zero() || interrupt.pressed() || !owed() {
        return;
    }
    let begun = Instant::now();
    let what =
        format!("the meters have not told all yet: waiting up to {} s; Ctrl-C ends the wait", patience.as_secs());
    let bar = context.progress_line().then(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_message(what.clone());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar
    });
    if bar.is_none() {
        context.note(&what);
    }
    let said = loop {
        if !owed() {
            break None;
        }
        if interrupt.pressed() {
            interrupt.set(false);
            break Some("the wait was ended: what was not told is unknown");
        }
        if begun.elapsed() >= patience {
            break Some("the meters have told nothing in time: it is unknown");
        }
        std::thread::sleep(POLL);
        if let Some(bar) = &bar {
            bar.tick();
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if let Some(said) = said {
        context.note(said);
    }
}

/// A minute, and what the driver and two looks may be late by.
const LONGEST: Duration = Duration::from_secs(90);

const POLL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_who_has_not_asked_for_it() {
        let args = |energy_wait| EnergyWaitArgs { energy_wait };
        assert_eq!(args(None).patience(false), Duration::ZERO);
        assert_eq!(args(None).patience(true), LONGEST);
        assert_eq!(args(Some(0)).patience(true), Duration::ZERO);
        assert_eq!(args(Some(7)).patience(false), Duration::from_secs(7));
    }
}
