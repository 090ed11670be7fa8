//! How many utilisation-seconds requests had for each of their core-seconds, in the last minutes that were told.
//!
//! A driver that tells minutes lets an answer end before its own. Invariant: nothing comes of this but what an answer says beside
//! the flag `extrapolated`; what was never told gives nothing.

/// Of the last minutes in which a step was run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Utilisation-seconds and core-seconds of each, the newest last.
    minutes: [Option<(f64, f64)>; 3],
    /// Core-seconds since the last that was told.
    core_s: f64,
}

impl Pace {
    /// So many core-seconds are for the next minute. All of them are requests'.
    pub fn work(&mut self, core_s: f64) {
        self.core_s += core_s;
    }

    /// A minute is told, of which requests had so much; `None` is one that never will be.
    pub fn told(&mut self, util_s: Option<f64>) {
        let core_s = std::mem::take(&mut self.core_s);
        if let Some(util_s) = util_s.filter(|_| core_s > 0.0) {
            self.minutes.rotate_left(1);
            self.minutes[2] = Some((util_s, core_s));
        }
    }

    /// What so many core-seconds would have of it; `None` before a minute with steps was told.
    pub fn util_s(&self, core_s: f64) -> Option<f64> {
        let sum = |of: fn(&(f64, f64)) -> f64| self.minutes.iter().flatten().map(of).sum::<f64>();
        let cores = sum(|minute| minute.1);
        (cores > 0.0).then(|| core_s * sum(|minute| minute.0) / cores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_of_the_last_three_minutes_with_steps() {
        let mut pace = Pace::default();
        // Loading has utilisation and no steps.
        pace.told(Some(5.0));
        assert_eq!(pace.util_s(1.0), None);
        pace.work(10.0);
        pace.work(10.0);
        assert_eq!(pace.util_s(1.0), None);
        pace.told(Some(5.0));
        assert_eq!(pace.util_s(2.0), Some(0.5));
        // What the driver did not know is no minute, and neither is what nothing was run in.
        pace.work(100.0);
        pace.told(None);
        pace.told(Some(0.0));
        assert_eq!(pace.util_s(2.0), Some(0.5));
        for (util_s, core_s) in [(1.0, 1.0), (2.0, 2.0), (0.0, 5.0)] {
            pace.work(core_s);
            pace.told(Some(util_s));
        }
        assert_eq!(pace.util_s(8.0), Some(3.0));
        assert_eq!(pace.util_s(0.0), Some(0.0));
    }
}
