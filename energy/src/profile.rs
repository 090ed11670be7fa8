//! Watts of a Neuron device, declared by somebody: nobody publishes them.
//!
//! `base=20..60,span=40..150`: watts at 0 % utilisation and what 100 % adds, each a number or an interval. AWS's text does
//! not say whether 100 % means the maximum or the maximum less the baseline, so the profile names the span itself. There is
//! no default.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::joules::Joules;

/// Watts, as an interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watts {
    /// At least.
    pub low: f64,
    /// At most.
    pub high: f64,
}

impl Watts {
    /// The geometric mean: of an interval of which nothing singles out a value.
    pub fn middle(self) -> f64 {
        (self.low * self.high).sqrt()
    }
}

/// Watts of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeuronWatts {
    /// At 0 %.
    pub base: Watts,
    /// Added at 100 %.
    pub span: Watts,
    /// Where they come from, in the declarer's words.
    pub source: Option<String>,
}

impl NeuronWatts {
    /// Joules of `seconds`, of which `covered_s` had `util_seconds` of utilisation and the rest an unknown one: between 0 and
    /// 100 %, by best guess that of the covered part. Where a figure is the maximum over `dies`, the others may have idled.
    pub fn joules(&self, seconds: f64, covered_s: f64, util_seconds: f64, dies: u32) -> Option<Joules> {
        if !(covered_s > 0.0) {
            return None;
        }
        let dark = (seconds - covered_s).max(0.0);
        let extended = util_seconds * (covered_s + dark) / covered_s;
        self.joules_between(seconds, [util_seconds, extended, util_seconds + dark], dies)
    }

    /// Joules of `seconds` with utilisation-seconds of which the least, the likeliest and the most are given. Where a figure is
    /// the maximum over `dies`, the others may have idled.
    pub fn joules_between(&self, seconds: f64, util_seconds: [f64; 3], dies: u32) -> Option<Joules> {
        let [least, likeliest, most] = util_seconds;
        let low = self.base.low * seconds + self.span.low * least / f64::from(dies.max(1));
        let high = self.base.high * seconds + self.span.high * most;
        let best = self.base.middle() * seconds + self.span.middle() * likeliest;
        Joules::within(low, best.clamp(low, high.max(low)), high)
    }
}

impl FromStr for NeuronWatts {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<NeuronWatts, ProfileError> {
        let (mut base, mut span, mut source) = (None, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| ProfileError::Part(part.to_owned()))?;
            match key.trim() {
                "base" => base = Some(watts(value)?),
                "span" => span = Some(watts(value)?),
                "source" => source = Some(value.trim().to_owned()),
                other => return Err(ProfileError::Key(other.to_owned())),
            }
        }
        let base = base.ok_or(ProfileError::Lacks("base"))?;
        let span = span.ok_or(ProfileError::Lacks("span"))?;
        Ok(NeuronWatts { base, span, source })
    }
}

fn watts(text: &str) -> Result<Watts, ProfileError> {
    let refused = || ProfileError::Watts(text.to_owned());
    let (low, high) = text.split_once("..").unwrap_or((text, text));
    let number = |t: &str| t.trim().parse().ok().filter(|w: &f64| w.is_finite() && *w >= 0.0 && *w <= MOST_WATTS);
    let (low, high) = (number(low).ok_or_else(refused)?, number(high).ok_or_else(refused)?);
    if low > high { Err(refused()) } else { Ok(Watts { low, high }) }
}

impl fmt::Display for Watts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low == self.high {
            true => write!(f, "{}", self.low),
            false => write!(f, "{}..{}", self.low, self.high),
        }
    }
}

impl fmt::Display for NeuronWatts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "base={},span={}", self.base, self.span)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, ",source={source}"))
    }
}

/// What is wrong with a profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// No `key=value`.
    #[error("{0:?} is no key=value: a profile is base=WATTS,span=WATTS, each W or LOW..HIGH")]
    Part(String),
    /// A key that is none.
    #[error("{0:?} is none of base, span, source")]
    Key(String),
    /// A key that is missing.
    #[error("{0}=WATTS is missing: a profile is base=WATTS,span=WATTS, each W or LOW..HIGH")]
    Lacks(&'static str),
    /// No watts.
    #[error("{0:?} is no power: watts are W or LOW..HIGH, 0 to 100000")]
    Watts(String),
}

const MOST_WATTS: f64 = 1e5;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_profile_is_read_and_written() {
        let profile: NeuronWatts = "base=20..60, span=40..150,source=wall meter".parse().unwrap();
        assert_eq!((profile.base, profile.span), (Watts { low: 20.0, high: 60.0 }, Watts { low: 40.0, high: 150.0 }));
        assert_eq!(profile.to_string().parse(), Ok(profile));
        for (bad, words) in [
            ("base=20", "span=WATTS is missing"),
            ("base=20,span", "no key=value"),
            ("base=60..20,span=1", "no power"),
            ("base=-1,span=1", "no power"),
            ("base=1,span=inf", "no power"),
            ("base=1,span=1,tdp=9", "none of base"),
        ] {
            let error = bad.parse::<NeuronWatts>().unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn joules_are_base_times_time_and_span_times_utilisation() {
        let exact: NeuronWatts = "base=30,span=100".parse().unwrap();
        let joules = exact.joules(180.0, 180.0, 90.0, 1).unwrap();
        assert_eq!((joules.best(), joules.bounds()), (14_400.0, Some((14_400.0, 14_400.0))));
        // A minute that nobody reported may have had any utilisation.
        let dark = exact.joules(240.0, 180.0, 90.0, 1).unwrap();
        assert_eq!((dark.best(), dark.bounds()), (19_200.0, Some((16_200.0, 22_200.0))));
        // The larger of two dies: the other may have idled.
        assert_eq!(exact.joules(180.0, 180.0, 90.0, 2).unwrap().low(), Some(9_900.0));
        assert_eq!(exact.joules(60.0, 0.0, 0.0, 1), None);
    }

    proptest! {
        #[test]
        fn any_text_gives_a_profile_or_an_error(text in ".{0,60}") {
            let _ = text.parse::<NeuronWatts>();
        }

        /// Whatever the watts are, two runs' energies compare between their times and their utilisation-seconds.
        #[test]
        fn the_ratio_of_two_runs_lies_between_time_and_utilisation(
            base in 0.0..500.0, span in 0.001..500.0, t in (1.0..1e4, 1.0..1e4), u in (0.01..1.0, 0.01..1.0),
        ) {
            let profile = NeuronWatts { base: Watts { low: base, high: base }, span: Watts { low: span, high: span }, source: None };
            let (ua, ub) = (u.0 * t.0, u.1 * t.1);
            let a = profile.joules(t.0, t.0, ua, 1).unwrap().best();
            let b = profile.joules(t.1, t.1, ub, 1).unwrap().best();
            let (by_time, by_util, ratio) = (t.0 / t.1, ua / ub, a / b);
            prop_assert!(ratio >= by_time.min(by_util) * (1.0 - 1e-12) && ratio <= by_time.max(by_util) * (1.0 + 1e-12));
        }
    }
}
