//! Power readings as energy.

use crate::clock::{Now, seconds};
use crate::joules::Joules;
use crate::meter::Reading;

/// Watts over time, by trapezoids. A gap longer than allowed is a hole, and nothing is made up for it.
#[derive(Clone, Debug)]
pub struct PowerIntegral {
    longest_s: f64,
    last: Option<(f64, u64)>,
    total: f64,
    holes: u32,
}

impl PowerIntegral {
    /// With this longest gap between two readings.
    pub fn new(longest_s: f64) -> PowerIntegral {
        PowerIntegral { longest_s, last: None, total: 0.0, holes: 0 }
    }

    /// Takes a reading in.
    pub fn add(&mut self, watts: f64, now: Now) -> Reading {
        let watts = if watts.is_finite() { watts.max(0.0) } else { 0.0 };
        if let Some((before, then)) = self.last.replace((watts, now.mono_ns)) {
            let span = seconds(then, now.mono_ns);
            match span <= self.longest_s {
                true => self.total += span * (before + watts) / 2.0,
                false => self.holes += 1,
            }
        }
        self.reading(now)
    }

    /// What it came to by the last reading: where a source shows the same sample again.
    pub fn held(&self, now: Now) -> Reading {
        self.reading(now)
    }

    fn reading(&self, now: Now) -> Reading {
        let total = Joules::new(self.total).unwrap_or(Joules::ZERO);
        let at_ns = self.last.map_or(now.mono_ns, |(_, at)| at);
        Reading { at_ns, total, wraps: 0, holes: self.holes, ambiguous: 0 }
    }
}
