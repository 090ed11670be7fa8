//! Energy as answers and reports carry it: of a request, and of all that an engine has done.
//!
//! Invariant: joules never stand without their method; what is unknown is null, and so is a sum of which a part is unknown.

use njoule_energy::attribution::Split;
use serde::Serialize;
use serde_json::{Value, json};

use super::{EnergyStats, RequestEnergy};

/// What the sequences of an answer have used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Energy {
    /// Best value, shares of idle power included.
    pub total_j: Option<f64>,
    /// Its interval.
    pub low_j: Option<f64>,
    /// Its interval.
    pub high_j: Option<f64>,
    /// How it was obtained.
    pub method: Option<&'static str>,
    /// The further end of its interval from it, over it; null where there is no interval.
    pub rel_unc: Option<f64>,
    /// Of it, what went for prompts.
    pub prefill_j: Option<f64>,
    /// Of it, what went for answers.
    pub decode_j: Option<f64>,
    /// Of it, what went in vain.
    pub wasted_j: Option<f64>,
    /// Of it, the share of idle power.
    pub static_j: Option<f64>,
    /// Whether it is a share by work of a reading over more than one step.
    pub interpolated: bool,
    /// Of the process, shares of what it does beside steps included.
    pub cpu_s: f64,
    /// Of accelerator cores.
    pub core_s: Option<f64>,
    /// Utilisation of accelerators, integrated.
    pub util_s: Option<f64>,
    /// Whether a part of that is extrapolated from earlier minutes.
    pub extrapolated: bool,
    /// Whether nothing of it is still to be told by a meter.
    pub settled: bool,
}

impl From<RequestEnergy> for Energy {
    fn from(used: RequestEnergy) -> Energy {
        let part = |i: usize| used.parts.map(|parts| parts[i]);
        Energy {
            total_j: used.joules.map(|j| j.best()),
            low_j: used.joules.and_then(|j| j.low()),
            high_j: used.joules.and_then(|j| j.high()),
            method: used.method.filter(|_| used.joules.is_some()).map(|method| method.name()),
            rel_unc: used.joules.and_then(|j| uncertainty(j.best(), j.bounds()?)),
            prefill_j: part(0),
            decode_j: part(1),
            wasted_j: part(2),
            static_j: used.static_j,
            interpolated: used.interpolated,
            cpu_s: used.cpu_s,
            core_s: used.core_s,
            util_s: used.util_s,
            extrapolated: used.extrapolated,
            settled: used.settled,
        }
    }
}

impl Energy {
    /// Both; of one engine, whose method is one.
    pub fn plus(self, other: Energy) -> Energy {
        let sum = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a + b);
        let total_j = sum(self.total_j, other.total_j);
        let (low_j, high_j) = (sum(self.low_j, other.low_j), sum(self.high_j, other.high_j));
        let util_s = sum(self.util_s, other.util_s);
        Energy {
            total_j,
            low_j,
            high_j,
            rel_unc: total_j.zip(low_j.zip(high_j)).and_then(|(best, bounds)| uncertainty(best, bounds)),
            method: self.method.and(other.method),
            prefill_j: sum(self.prefill_j, other.prefill_j),
            decode_j: sum(self.decode_j, other.decode_j),
            wasted_j: sum(self.wasted_j, other.wasted_j),
            static_j: sum(self.static_j, other.static_j),
            interpolated: self.interpolated || other.interpolated,
            cpu_s: self.cpu_s + other.cpu_s,
            core_s: sum(self.core_s, other.core_s),
            util_s,
            extrapolated: util_s.is_some() && (self.extrapolated || other.extrapolated),
            settled: self.settled && other.settled,
        }
    }

    /// As the response header has it.
    pub fn header(&self) -> String {
        let joules = self.total_j.map_or("null".to_owned(), |joules| format!("{joules:.6}"));
        format!("total_j={joules};method={};cpu_s={:.6}", self.method.unwrap_or("null"), self.cpu_s)
    }

    /// For a person.
    pub fn text(&self) -> String {
        text(self.total_j.zip(self.method), self.low_j.zip(self.high_j), self.cpu_s)
    }
}

impl EnergyStats {
    /// The same of a whole run, from loading to its last step: unknown where a part of it is.
    pub fn whole(self) -> EnergyStats {
        let unknown = EnergyStats { split: None, joules: None, method: None, watts: None, tail: None, ..self };
        if self.unknown_s > 0.0 || !self.load_known || self.owed {
            return unknown;
        }
        let Some(tail) = self.tail else { return self };
        let split = self.split.map(|split| Split { idle_j: (split.idle_j - tail.best()).max(0.0), ..split });
        EnergyStats { split, joules: self.joules.and_then(|joules| joules.since(tail)), tail: None, ..self }
    }

    /// What the engine has used since it was started, and by which meters (as their source describes them).
    pub fn json(&self, meters: Option<&Value>) -> Value {
        let joules = self.split.map(|split| split.total());
        let per_joule = joules.filter(|joules| *joules > 0.0).map(|joules| self.tokens as f64 / joules);
        let mut buckets = json!(self.split);
        if self.split.is_some() && !self.load_known {
            buckets["load_j"] = Value::Null;
        }
        let described = |key: &str| meters.and_then(|meters| meters.get(key)).cloned();
        json!({
            "total_j": joules,
            "low_j": self.joules.and_then(|j| j.low()),
            "high_j": self.joules.and_then(|j| j.high()),
            "method": self.method.map(|method| method.name()),
            "by_bucket": buckets,
            "split_by": self.split.and(self.costs),
            "watts": self.watts,
            "unknown_s": self.unknown_s,
            "output_tokens": joules.map(|_| self.tokens),
            "output_tokens_per_joule": per_joule,
            "cpu_s": self.cpu_s,
            "core_s": self.core_s,
            "util_s": self.util_s(),
            "util_by_bucket": self.util.map(in_seconds),
            "util_unknown_s": self.util_unknown_s,
            "boundary": described("boundary"),
            "meters": described("meters").unwrap_or_else(|| json!([])),
            "reasons": self.reasons(meters),
        })
    }

    /// Why joules are unknown, if they are.
    pub fn reasons(&self, meters: Option<&Value>) -> Vec<String> {
        let said = |reasons: &Value| reasons.as_array()?.iter().map(|why| why.as_str().map(str::to_owned)).collect();
        let said: Option<Vec<String>> = meters.and_then(|meters| meters.get("reasons")).and_then(said);
        let why = match said {
            Some(said) if self.split.is_some() || !said.is_empty() => return said,
            _ if self.owed => "the meters have not told all of the time yet",
            // The last reading may have been a good one.
            Some(_) => "the meters did not tell a part of the time",
            None => "no reading yet",
        };
        vec![why.to_owned()]
    }

    /// For a person; of a time of which a part is unknown, the joules are.
    pub fn text(&self) -> String {
        let EnergyStats { joules, method, cpu_s, .. } = self.whole();
        let known = joules.map(|j| j.best()).zip(method.map(|method| method.name()));
        text(known, joules.and_then(|j| j.bounds()), cpu_s)
    }
}

/// How far the true value may be off, over the best one.
fn uncertainty(best: f64, (low, high): (f64, f64)) -> Option<f64> {
    (best > 0.0).then(|| (high - best).max(best - low) / best)
}

/// A split of utilisation-seconds.
fn in_seconds(split: Split) -> Value {
    let Split { prefill_j, decode_j, wasted_j, idle_j, load_j, unattributed_j } = split;
    json!({
        "prefill_s": prefill_j, "decode_s": decode_j, "wasted_s": wasted_j, "idle_s": idle_j, "load_s": load_j,
        "unattributed_s": unattributed_j,
    })
}

/// An estimate is an interval, never one number.
fn text(joules: Option<(f64, &str)>, bounds: Option<(f64, f64)>, cpu_s: f64) -> String {
    let cpu = format!("CPU {cpu_s:.3} s");
    match (joules, bounds) {
        (None, _) => format!("unknown, {cpu}"),
        (Some((_, method @ ("estimated" | "derived"))), Some((low, high))) => {
            format!("{low:.3} to {high:.3} J ({method}), {cpu}")
        }
        (Some((best, method)), Some((low, high))) => format!("{best:.3} J ({low:.3} to {high:.3}, {method}), {cpu}"),
        (Some((best, method)), None) => format!("{best:.3} J ({method}, uncertainty unknown), {cpu}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use njoule_energy::attribution::Split;
    use njoule_energy::{Joules, Method};

    #[test]
    fn a_person_never_reads_joules_without_a_method_nor_an_estimate_without_an_interval() {
        let of = |method, joules: Option<Joules>| {
            let used = RequestEnergy { joules, method, cpu_s: 0.25, ..RequestEnergy::default() };
            Energy::from(used).text()
        };
        let within = Joules::within(1.0, 2.0, 4.0);
        assert_eq!(of(Some(Method::Measured), within), "2.000 J (1.000 to 4.000, measured), CPU 0.250 s");
        assert_eq!(of(Some(Method::Estimated), within), "1.000 to 4.000 J (estimated), CPU 0.250 s");
        assert_eq!(
            of(Some(Method::Measured), Joules::new(2.0)),
            "2.000 J (measured, uncertainty unknown), CPU 0.250 s"
        );
        assert_eq!(of(Some(Method::Measured), None), "unknown, CPU 0.250 s");
        // The further end counts, also of a sum.
        let used = RequestEnergy { joules: within, method: Some(Method::Measured), ..RequestEnergy::default() };
        let (one, unsure) = (Energy::from(used), Energy::from(RequestEnergy { joules: Joules::new(2.0), ..used }));
        assert_eq!((one.rel_unc, one.plus(one).rel_unc), (Some(1.0), Some(1.0)));
        assert_eq!((unsure.rel_unc, one.plus(unsure).rel_unc), (None, None));
        // Joules of a part of the time are not those of the whole.
        let joules = within;
        let method = Some(Method::Derived);
        let whole = EnergyStats { joules, method, load_known: true, cpu_s: 0.25, ..EnergyStats::default() };
        assert_eq!(whole.text(), "1.000 to 4.000 J (derived), CPU 0.250 s");
        for part in [EnergyStats { unknown_s: 0.1, ..whole }, EnergyStats { load_known: false, ..whole }] {
            assert_eq!(part.text(), "unknown, CPU 0.250 s");
            let told = part.whole().json(Some(&json!({"reasons": [], "meters": []})));
            assert!(told["total_j"].is_null() && told["method"].is_null() && told["low_j"].is_null(), "{told}");
            assert_eq!(told["reasons"], json!(["the meters did not tell a part of the time"]));
        }
        // Of a server: what is known of it, and no 0 for what is not.
        let told = EnergyStats { split: Some(Split::default()), load_known: false, ..whole }.json(None);
        assert!(told["by_bucket"]["load_j"].is_null() && told["by_bucket"]["idle_j"] == 0.0, "{told}");
    }
}
