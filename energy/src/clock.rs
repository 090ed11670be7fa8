//! Two clocks read together: durations come from the monotonic one, stamps of drivers and feeds from the wall clock.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Now {
    /// Nanoseconds since a moment a week before the process looked first, so that stamps from before it have a place.
    pub mono_ns: u64,
    /// Seconds since 1970.
    pub unix_s: f64,
}

impl Now {
    /// What to add to a monotonic second to get a wall-clock second; it moves only when the wall clock is set.
    pub fn offset_s(self) -> f64 {
        self.unix_s - self.mono_ns as f64 * 1e-9
    }

    /// The monotonic nanosecond of a wall-clock second, 0 for what lies more than a week before the process.
    pub fn mono_of_unix(self, unix_s: f64) -> u64 {
        // Saturates: negative is 0.
        ((unix_s - self.offset_s()) * 1e9) as u64
    }
}

/// What tells the time.
pub trait Clock: Send {
    /// The present moment.
    fn now(&self) -> Now;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let elapsed = FIRST.get_or_init(Instant::now).elapsed();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A u64 of nanoseconds lasts 584 years.
        Now { mono_ns: BEFORE_NS + elapsed.as_nanos() as u64, unix_s: unix.as_secs_f64() }
    }
}

/// Seconds of a difference of monotonic nanoseconds, 0 if it is none.
pub fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 * 1e-9
}

/// Where the monotonic clock begins: a week. Below 2^53 ns (104 days) scripts that know only floats lose nothing.
const BEFORE_NS: u64 = 7 * 24 * 3600 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds and drivers give stamps from before the process: each needs its own place on the monotonic clock.
    #[test]
    fn stamps_from_before_the_process_stay_distinct() {
        let now = SystemClock.now();
        let at = [86_400.0, 60.0, 0.0].map(|ago| now.mono_of_unix(now.unix_s - ago));
        assert!(
            (seconds(at[0], at[1]) - 86_340.0).abs() < 1e-3 && (seconds(at[1], at[2]) - 60.0).abs() < 1e-3,
            "{at:?}"
        );
    }
}
