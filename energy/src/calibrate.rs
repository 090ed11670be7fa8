//! Watts of a Neuron device from a meter outside: E of a minute = base · seconds + span · utilisation-seconds.
//!
//! What is fitted is what the outside meter covers: of a meter at the plug, base holds the host and everything else that does
//! not follow the utilisation. Both are given as 95 % intervals of ordinary least squares.

use crate::meter::feed::Sample;
use crate::profile::{NeuronWatts, Watts};

/// A minute of a device (or of several, their utilisation-seconds added).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UtilMinute {
    /// Beginning, seconds since 1970.
    pub from_s: f64,
    /// End.
    pub to_s: f64,
    /// Utilisation integrated over it.
    pub util_seconds: f64,
}

/// A fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// The watts, as intervals.
    pub watts: NeuronWatts,
    /// Best base and span.
    pub best: (f64, f64),
    /// Minutes used.
    pub minutes: usize,
    /// Minutes for which the feed has no samples on both sides.
    pub unmatched: usize,
    /// Standard deviation of what the fit leaves, in watts.
    pub residual_w: f64,
}

/// Why there is no fit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// Too little.
    #[error("{found} minutes have both a utilisation and a feed, {ENOUGH} are needed: record longer")]
    Few {
        /// Minutes that match.
        found: usize,
    },
    /// All alike.
    #[error("the utilisation moved by {0:.3} only, 0.1 is needed: run idle minutes and busy minutes")]
    Flat(f64),
    /// The device seems to save energy by working.
    #[error(
        "the fit gives {what} = {watts:.2} W: the feed does not follow this device, or covers something that changes more"
    )]
    Negative {
        /// base or span.
        what: &'static str,
        /// The value.
        watts: f64,
    },
}

/// Fits base and span.
pub fn calibrate(minutes: &[UtilMinute], feed: &[Sample]) -> Result<Calibration, CalibrateError> {
    // Mean utilisation and mean watts of each minute.
    let points: Vec<(f64, f64)> = minutes
        .iter()
        .filter_map(|m| {
            let span = m.to_s - m.from_s;
            let joules = at(feed, m.to_s)? - at(feed, m.from_s)?;
            (span > 0.0 && joules >= 0.0).then(|| (m.util_seconds / span, joules / span))
        })
        .collect();
    let n = points.len();
    if n < ENOUGH {
        return Err(CalibrateError::Few { found: n });
    }
    let ends = points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), (u, _)| (l.min(*u), h.max(*u)));
    if !(ends.1 - ends.0 >= 0.1) {
        return Err(CalibrateError::Flat(ends.1 - ends.0));
    }
    let count = n as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / count;
    let (u, w) = (mean(|p| p.0), mean(|p| p.1));
    let uu: f64 = points.iter().map(|p| (p.0 - u).powi(2)).sum();
    let uw: f64 = points.iter().map(|p| (p.0 - u) * (p.1 - w)).sum();
    let span = uw / uu;
    let base = w - span * u;
    for (what, watts) in [("base", base), ("span", span)] {
        if watts < 0.0 {
            return Err(CalibrateError::Negative { what, watts });
        }
    }
    let squares: f64 = points.iter().map(|(u, w)| (w - base - span * u).powi(2)).sum();
    let residual = (squares / (count - 2.0)).sqrt();
    let t = student(n - 2);
    let (of_span, of_base) = (t * residual / uu.sqrt(), t * residual * (1.0 / count + u * u / uu).sqrt());
    let around = |watts: f64, slack: f64| Watts { low: (watts - slack).max(0.0), high: watts + slack };
    Ok(Calibration {
        watts: NeuronWatts { base: around(base, of_base), span: around(span, of_span), source: None },
        best: (base, span),
        minutes: n,
        unmatched: minutes.len() - n,
        residual_w: residual,
    })
}

/// The feed's total at a moment, between two samples no further apart than two minutes.
fn at(feed: &[Sample], unix_s: f64) -> Option<f64> {
    let after = feed.partition_point(|s| s.unix_s < unix_s);
    let next = feed.get(after)?;
    if next.unix_s == unix_s {
        return Some(next.joules);
    }
    let before = feed.get(after.checked_sub(1)?)?;
    let span = next.unix_s - before.unix_s;
    let usable = span > 0.0 && span <= 120.0 && next.joules >= before.joules;
    usable.then(|| before.joules + (next.joules - before.joules) * (unix_s - before.unix_s) / span)
}

/// Student's t, two-sided 95 %; from a table, the next lower number of degrees where there is none.
fn student(degrees: usize) -> f64 {
    const TABLE: [(usize, f64); 14] = [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (6, 2.447),
        (7, 2.365),
        (8, 2.306),
        (9, 2.262),
        (10, 2.228),
        (15, 2.131),
        (20, 2.086),
        (30, 2.042),
        (60, 2.000),
    ];
    TABLE.iter().rev().find(|(d, _)| *d <= degrees).map_or(TABLE[0].1, |(_, t)| *t)
}

/// Minutes that a fit needs.
const ENOUGH: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(utils: &[f64]) -> Vec<UtilMinute> {
        let minute = |(i, u): (usize, &f64)| {
            let from_s = 1000.0 + 60.0 * i as f64;
            UtilMinute { from_s, to_s: from_s + 60.0, util_seconds: 60.0 * u }
        };
        utils.iter().enumerate().map(minute).collect()
    }

    fn feed(minutes: &[UtilMinute], watts: impl Fn(usize, f64) -> f64) -> Vec<Sample> {
        let mut joules = 500.0;
        let mut samples = vec![Sample { unix_s: minutes[0].from_s - 10.0, joules }];
        samples.push(Sample { unix_s: minutes[0].from_s, joules });
        for (i, m) in minutes.iter().enumerate() {
            joules += 60.0 * watts(i, m.util_seconds / 60.0);
            samples.push(Sample { unix_s: m.to_s, joules });
        }
        samples
    }

    #[test]
    fn watts_are_found_again() {
        let minutes = minutes(&[0.0, 0.1, 0.5, 0.9, 0.3, 0.7, 0.0, 0.6]);
        let exact = calibrate(&minutes, &feed(&minutes, |_, u| 35.0 + 120.0 * u)).unwrap();
        assert!((exact.best.0 - 35.0).abs() < 1e-6 && (exact.best.1 - 120.0).abs() < 1e-6, "{exact:?}");
        // A wobble of half a watt: the interval holds the truth and is not silly.
        let wobble = |i: usize, u: f64| 35.0 + 120.0 * u + if i.is_multiple_of(2) { 0.5 } else { -0.5 };
        let rough = calibrate(&minutes, &feed(&minutes, wobble)).unwrap();
        let (base, span) = (rough.watts.base, rough.watts.span);
        assert!(base.low < 35.0 && 35.0 < base.high && base.high - base.low < 3.0, "{rough:?}");
        assert!(span.low < 120.0 && 120.0 < span.high && span.high - span.low < 6.0, "{rough:?}");
    }

    #[test]
    fn what_makes_no_fit_says_what_to_do() {
        let few = minutes(&[0.0, 0.5, 0.9, 0.1]);
        assert_eq!(calibrate(&few, &feed(&few, |_, u| u)), Err(CalibrateError::Few { found: 4 }));
        let flat = minutes(&[0.5, 0.51, 0.5, 0.52, 0.5]);
        let error = calibrate(&flat, &feed(&flat, |_, _| 30.0)).unwrap_err().to_string();
        assert!(error.contains("run idle minutes and busy minutes"), "{error}");
        let falling = minutes(&[0.0, 0.2, 0.4, 0.6, 0.8]);
        assert!(matches!(
            calibrate(&falling, &feed(&falling, |_, u| 90.0 - 30.0 * u)),
            Err(CalibrateError::Negative { what: "span", .. })
        ));
        // A feed that ends early covers less.
        let long = minutes(&[0.0, 0.2, 0.4, 0.6, 0.8, 0.1, 0.3]);
        let part = calibrate(&long, &feed(&long[..5], |_, u| 30.0 + u)).unwrap();
        assert_eq!((part.minutes, part.unmatched), (5, 2));
    }
}
