//! Energy in answers: `usage.energy`, the header `x-njoule-energy`, and `GET /v1/energy`.
//!
//! Invariant: joules never stand without their method; what is unknown is null, and so is a sum of which a part is unknown.

use njoule_runtime::EngineStats;
use njoule_runtime::engine::RequestEnergy;
use serde::Serialize;
use serde_json::{Value, json};

/// What the sequences of an answer have used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Energy {
    /// Best value, shares of idle power included.
    pub joules: Option<f64>,
    /// Its interval.
    pub low_j: Option<f64>,
    pub high_j: Option<f64>,
    /// How it was obtained.
    pub method: Option<&'static str>,
    /// Of it, what went for prompts, answers, and in vain.
    pub prefill_j: Option<f64>,
    pub decode_j: Option<f64>,
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
}

impl From<RequestEnergy> for Energy {
    fn from(used: RequestEnergy) -> Energy {
        let part = |i: usize| used.parts.map(|parts| parts[i]);
        Energy {
            joules: used.joules.map(|j| j.best()),
            low_j: used.joules.and_then(|j| j.low()),
            high_j: used.joules.and_then(|j| j.high()),
            method: used.method.filter(|_| used.joules.is_some()).map(|method| method.name()),
            prefill_j: part(0),
            decode_j: part(1),
            wasted_j: part(2),
            static_j: used.static_j,
            interpolated: used.interpolated,
            cpu_s: used.cpu_s,
            core_s: used.core_s,
            util_s: used.util_s,
        }
    }
}

impl Energy {
    /// Both; of one engine, whose method is one.
    pub fn plus(self, other: Energy) -> Energy {
        let sum = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a + b);
        Energy {
            joules: sum(self.joules, other.joules),
            low_j: sum(self.low_j, other.low_j),
            high_j: sum(self.high_j, other.high_j),
            method: self.method.and(other.method),
            prefill_j: sum(self.prefill_j, other.prefill_j),
            decode_j: sum(self.decode_j, other.decode_j),
            wasted_j: sum(self.wasted_j, other.wasted_j),
            static_j: sum(self.static_j, other.static_j),
            interpolated: self.interpolated || other.interpolated,
            cpu_s: self.cpu_s + other.cpu_s,
            core_s: sum(self.core_s, other.core_s),
            util_s: sum(self.util_s, other.util_s),
        }
    }

    /// As the response header has it.
    pub fn header(&self) -> String {
        let joules = self.joules.map_or("null".to_owned(), |joules| format!("{joules:.6}"));
        format!("joules={joules};method={};cpu_s={:.6}", self.method.unwrap_or("null"), self.cpu_s)
    }
}

/// Adds what a sequence has used.
pub fn add(sum: &mut Option<Energy>, used: Option<RequestEnergy>) {
    if let Some(used) = used.map(Energy::from) {
        *sum = Some(sum.map_or(used, |sum| sum.plus(used)));
    }
}

/// The answer to `GET /v1/energy`: what the engine has used since it was started, and by which meters.
pub fn totals(stats: &EngineStats, meters: Option<&Value>) -> Value {
    let energy = &stats.energy;
    let joules = energy.split.map(|split| split.total());
    let per_joule = joules.filter(|joules| *joules > 0.0).map(|joules| energy.tokens as f64 / joules);
    let described = |key: &str| meters.and_then(|meters| meters.get(key)).cloned();
    json!({
        "joules": joules,
        "method": energy.method.map(|method| method.name()),
        "by_bucket": energy.split,
        "watts": energy.watts,
        "unknown_s": energy.unknown_s,
        "output_tokens": energy.tokens,
        "output_tokens_per_joule": per_joule,
        "cpu_s": energy.cpu_s,
        "core_s": energy.core_s,
        "util_s": energy.util_s,
        "boundary": described("boundary"),
        "meters": described("meters").unwrap_or_else(|| json!([])),
        "reasons": described("reasons").unwrap_or_else(|| json!(["no reading yet"])),
    })
}

/// The header that asks for energy, and that brings it.
pub const HEADER: &str = "x-njoule-energy";
