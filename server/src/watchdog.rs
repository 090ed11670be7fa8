//! Whether the engine still moves.
//!
//! Invariant: a step that takes longer than three times the slowest so far, and longer than the configured least, is a hang:
//! nobody waits for it any more, and the process is to be replaced.

use std::sync::Arc;
use std::time::Duration;

use njoule_runtime::EngineStats;
use tokio::time::sleep;

use crate::app::{App, Phase, lost};

/// Watches until the server ends or the engine is lost.
pub async fn watch(app: Arc<App>) {
    let mut pace = Pace { least: app.config.step_timeout, slowest: Duration::ZERO, last: None };
    let mut period = PERIOD;
    while app.phase() < Phase::Dead {
        sleep(period).await;
        let Some(model) = app.model() else { continue };
        if let Some(failure) = model.engine().failure() {
            tracing::error!(error = %failure, "the engine has stopped");
            return give_up(&app);
        }
        let stats = model.engine().stats();
        if let Some(running) = stats.step_running().filter(|running| *running > pace.limit()) {
            tracing::error!(seconds = running.as_secs_f64(), "a step hangs");
            return give_up(&app);
        }
        // An idle server costs next to nothing; a step that begins meanwhile is seen soon enough.
        period = if stats.running == 0 { pace.least.clamp(PERIOD, IDLE_PERIOD) } else { PERIOD };
        pace.see(stats);
    }
}

fn give_up(app: &App) {
    app.advance(Phase::Dead);
    app.fail_all(&lost());
}

/// How long steps take.
struct Pace {
    least: Duration,
    slowest: Duration,
    last: Option<EngineStats>,
}

impl Pace {
    fn limit(&self) -> Duration {
        self.least.max(3 * self.slowest)
    }

    /// Takes in the mean of the steps since the last look.
    fn see(&mut self, stats: EngineStats) {
        let seconds = |stats: &EngineStats| stats.prefill_seconds + stats.decode_seconds;
        if let Some(last) = self.last.replace(stats)
            && stats.steps > last.steps
        {
            let mean = (seconds(&stats) - seconds(&last)).max(0.0) / (stats.steps - last.steps) as f64;
            self.slowest = self.slowest.max(Duration::try_from_secs_f64(mean).unwrap_or_default());
        }
    }
}

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(100);

/// The same while no request runs, at most.
const IDLE_PERIOD: Duration = Duration::from_secs(1);
