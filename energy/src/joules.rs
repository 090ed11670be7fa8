//! An amount of energy, how it was obtained, and how sure it is.
//!
//! Invariant: every number of a [`Joules`] is finite and not negative, and low ≤ best ≤ high. What is not known is `None`
//! somewhere else, never a zero here.

use serde::{Deserialize, Serialize};

/// How a figure was obtained, from the best to the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A sensor integrates the quantity.
    Measured,
    /// The hardware (or a hypervisor) computes it from activity.
    HardwareModel,
    /// A measured quantity times declared constants.
    Derived,
    /// Load times a published table, or a split that no sensor made.
    Estimated,
}

impl Method {
    /// As it stands in reports.
    pub fn name(self) -> &'static str {
        match self {
            Method::Measured => "measured",
            Method::HardwareModel => "hardware_model",
            Method::Derived => "derived",
            Method::Estimated => "estimated",
        }
    }

    /// What a sum of two parts may be called.
    pub fn weakest(self, other: Method) -> Method {
        self.max(other)
    }
}

/// Energy in joules: the best value, and an interval if the uncertainty is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Joules {
    best: f64,
    bounds: Option<(f64, f64)>,
}

impl Joules {
    /// None used.
    pub const ZERO: Joules = Joules { best: 0.0, bounds: None };

    /// A value of unknown uncertainty; `None` if it is negative or no number.
    pub fn new(best: f64) -> Option<Joules> {
        (best.is_finite() && best >= 0.0).then_some(Joules { best, bounds: None })
    }

    /// A value within an interval; `None` unless 0 ≤ low ≤ best ≤ high.
    pub fn within(low: f64, best: f64, high: f64) -> Option<Joules> {
        let ordered = 0.0 <= low && low <= best && best <= high && high.is_finite();
        ordered.then_some(Joules { best, bounds: Some((low, high)) })
    }

    /// An interval of which nothing singles out a value: the best is by convention its geometric mean.
    pub fn between(low: f64, high: f64) -> Option<Joules> {
        let middle = (low.max(0.0) * high.max(0.0)).sqrt();
        Joules::within(low, middle.clamp(low.min(high), high.max(low)), high)
    }

    /// The best value.
    pub fn best(self) -> f64 {
        self.best
    }

    /// The interval, if the uncertainty is known.
    pub fn bounds(self) -> Option<(f64, f64)> {
        self.bounds
    }

    /// Lowest value, if the uncertainty is known.
    pub fn low(self) -> Option<f64> {
        self.bounds.map(|b| b.0)
    }

    /// Highest value, if the uncertainty is known.
    pub fn high(self) -> Option<f64> {
        self.bounds.map(|b| b.1)
    }

    /// Both together; the uncertainty is known if both are. Errors of one kind of meter go one way, so they add up.
    pub fn plus(self, other: Joules) -> Joules {
        let bounds = self.bounds.zip(other.bounds).map(|(a, b)| (a.0 + b.0, a.1 + b.1));
        Joules { best: self.best + other.best, bounds }
    }

    /// What was added since `earlier`, of the same running total.
    pub fn since(self, earlier: Joules) -> Option<Joules> {
        let best = self.best - earlier.best;
        // A total without bounds is the start of one with bounds at zero.
        let start = earlier.bounds.or((earlier.best == 0.0).then_some((0.0, 0.0)));
        match self.bounds.zip(start) {
            Some((now, then)) => {
                let (low, high) = (now.0 - then.0, now.1 - then.1);
                // Rounding of large totals may put an end on the wrong side of the middle.
                Joules::within(low.min(best).max(0.0), best, high.max(best))
            }
            None => Joules::new(best),
        }
    }

    /// A known part of it.
    pub fn times(self, part: f64) -> Joules {
        let part = part.clamp(0.0, 1.0);
        Joules { best: self.best * part, bounds: self.bounds.map(|(low, high)| (low * part, high * part)) }
    }

    /// With `relative` of it and `absolute` joules on both sides as its uncertainty.
    pub fn give_or_take(self, relative: f64, absolute: f64) -> Joules {
        let slack = self.best * relative + absolute;
        let bounds = Some(((self.best - slack).max(0.0), self.best + slack));
        Joules { bounds, ..self }
    }

    /// The part of it that lies between two shares, of which nothing singles out one.
    pub fn share(self, low: f64, high: f64) -> Option<Joules> {
        let (below, above) = self.bounds.unwrap_or((self.best, self.best));
        let best = self.best * (low.max(0.0) * high.max(0.0)).sqrt();
        Joules::within((below * low).min(best), best, (above * high).max(best))
    }
}

/// The form in a snapshot.
#[derive(Serialize, Deserialize)]
struct Wire {
    best_j: f64,
    low_j: Option<f64>,
    high_j: Option<f64>,
}

impl From<Joules> for Wire {
    fn from(joules: Joules) -> Wire {
        Wire { best_j: joules.best, low_j: joules.low(), high_j: joules.high() }
    }
}

impl TryFrom<Wire> for Joules {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Joules, Self::Error> {
        let joules = match (wire.low_j, wire.high_j) {
            (Some(low), Some(high)) => Joules::within(low, wire.best_j, high),
            (None, None) => Joules::new(wire.best_j),
            _ => None,
        };
        joules.ok_or("joules are not 0 <= low_j <= best_j <= high_j")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_energy_is_refused() {
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Joules::new(bad), None);
            assert_eq!(Joules::within(0.0, bad, 1.0), None);
        }
        assert_eq!(Joules::within(2.0, 1.0, 3.0), None);
        assert_eq!(Joules::between(4.0, 9.0), Joules::within(4.0, 6.0, 9.0));
        assert_eq!(Joules::between(9.0, 4.0), None);
    }

    #[test]
    fn a_sum_has_the_weakest_method_and_is_as_sure_as_its_parts() {
        assert_eq!(Method::Measured.weakest(Method::Derived), Method::Derived);
        let sure = Joules::within(1.0, 2.0, 3.0).unwrap();
        assert_eq!(sure.plus(sure).bounds(), Some((2.0, 6.0)));
        assert_eq!(sure.plus(Joules::new(1.0).unwrap()).bounds(), None);
    }

    proptest! {
        #[test]
        fn intervals_stay_in_order(a in 0.0..1e9, b in 0.0..1e9, c in 0.0..1e9, s in 0.0..1.0, t in 0.0..1.0) {
            let mut ends = [a, b, c];
            ends.sort_by(f64::total_cmp);
            let j = Joules::within(ends[0], ends[1], ends[2]).unwrap();
            for made in [j.plus(j), j.plus(j).since(j).unwrap(), j.give_or_take(s, b), j.share(f64::min(s, t), f64::max(s, t)).unwrap()] {
                let (low, high) = made.bounds().unwrap();
                prop_assert!(0.0 <= low && low <= made.best() && made.best() <= high);
            }
        }
    }
}
