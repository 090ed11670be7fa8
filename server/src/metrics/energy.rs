//! Energy in Prometheus' text: what the engine used by what it went for, and the meters behind it.
//!
//! Labels are those of the names' own table (`model`, `meter`, `device`), not those that routers read. Invariant: what nobody
//! measures is absent, never 0.

use njoule_runtime::EngineStats;
use njoule_runtime::engine::{EnergyStats, EngineFigures};
use serde_json::Value;

use super::text::{Scrape, Text, escaped};

/// CPU time always; joules, watts and utilisation once they are known.
pub(super) fn write(out: &mut Text, scrape: &Scrape<'_>, stats: &EngineStats, tokens: &[(&'static str, u64)]) {
    let energy = &stats.energy;
    out.counter("njoule_cpu_seconds_total", "CPU time of the process, as of the last reading", &[("", energy.cpu_s)]);
    let seconds = [
        ("njoule_accelerator_core_seconds_total", "Time of accelerator cores", energy.core_s),
        ("njoule_accelerator_utilization_seconds_total", "Utilisation of accelerators, integrated", energy.util_s()),
    ];
    for (name, help, value) in seconds {
        if let Some(value) = value {
            out.counter(name, help, &[("", value)]);
        }
    }
    out.labelled(&format!("model=\"{}\"", escaped(scrape.model)), |out| {
        let kinds: Vec<(String, f64)> =
            tokens.iter().map(|(kind, count)| (format!("kind=\"{kind}\""), *count as f64)).collect();
        out.counter(
            "njoule_tokens_total",
            "Tokens; cached_input is a part of input, padded is for nobody",
            &of(&kinds),
        );
        attributed(out, energy, scrape.figures);
    });
    if let Some(meters) = &scrape.meters {
        out.labelled("", |out| machine(out, meters));
    }
    if energy.split.is_some() {
        let unknown = [("", energy.unknown_s)];
        out.counter("njoule_energy_unknown_seconds_total", "Time whose energy was not to be had", &unknown);
    }
}

/// Joules by what they went for, and by request.
fn attributed(out: &mut Text, energy: &EnergyStats, figures: Option<&EngineFigures>) {
    let (Some(split), Some(method)) = (energy.split, energy.method) else { return };
    let phases = [
        ("prefill", Some(split.prefill_j)),
        ("decode", Some(split.decode_j)),
        ("wasted", Some(split.wasted_j)),
        ("idle", Some(split.idle_j)),
        ("load", Some(split.load_j).filter(|_| energy.load_known)),
        ("unattributed", Some(split.unattributed_j)),
    ];
    let method = format!("method=\"{}\"", method.name());
    let known = phases.iter().filter_map(|(phase, joules)| Some((format!("phase=\"{phase}\",{method}"), (*joules)?)));
    let known: Vec<(String, f64)> = known.collect();
    out.counter("njoule_energy_attributed_joules_total", "Energy by what it went for", &of(&known));
    if energy.tokens > 0 {
        let joules = split.total() / energy.tokens as f64;
        let help = "Energy of all so far by the tokens generated in that time";
        out.family("njoule_joules_per_output_token", help, "gauge", &[(&method, joules)]);
    }
    if let Some(requests) = figures.map(EngineFigures::request_joules).filter(|requests| requests.mean().is_some()) {
        let name = "njoule_request_energy_joules";
        out.head(
            name,
            "Energy of a sequence, of those that meters have told by the reading behind their end",
            "histogram",
        );
        out.buckets(name, &method, requests);
    }
}

/// What the meters of the machine tell, as their source describes them.
fn machine(out: &mut Text, described: &Value) {
    let list = |key: &str| described.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let label = |value: &Value, key: &str| {
        let text = value.get(key).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        escaped(&text.unwrap_or_default())
    };
    let (mut info, mut joules, mut watts) = (Vec::new(), Vec::new(), Vec::new());
    for meter in list("meters") {
        let id = label(meter, "id");
        let how = format!("meter=\"{id}\",scope=\"{}\",method=\"{}\"", label(meter, "scope"), label(meter, "method"));
        let counts = label(meter, "counts_in_total");
        info.push((format!("{how},source=\"{}\",counts_in_total=\"{counts}\"", label(meter, "source")), 1.0));
        joules.extend(meter.get("joules").and_then(Value::as_f64).map(|joules| (how, joules)));
        let known = meter.get("watts").and_then(Value::as_f64);
        watts.extend(known.map(|watts| (format!("meter=\"{id}\""), watts)));
    }
    if !info.is_empty() {
        out.family("njoule_energy_meter_info", "Meters that are read", "gauge", &of(&info));
    }
    if !joules.is_empty() {
        let help = "Joules that a meter has told since it was opened; some meters are parts of others";
        out.counter("njoule_energy_joules_total", help, &of(&joules));
    }
    if !watts.is_empty() {
        out.family("njoule_power_watts", "Mean power between the last two readings", "gauge", &of(&watts));
    }
    if let Some(errors) = described.get("errors").and_then(Value::as_f64) {
        out.counter("njoule_energy_meter_errors_total", "Readings of meters that failed", &[("", errors)]);
    }
    let (mut ratios, mut seconds) = (Vec::new(), Vec::new());
    for device in list("devices") {
        let of = format!("device=\"{}\"", label(device, "device"));
        let number = |key: &str| device.get(key).and_then(Value::as_f64);
        ratios.extend(number("utilization").map(|ratio| (of.clone(), ratio)));
        seconds.extend(number("utilization_s").map(|seconds| (of, seconds)));
    }
    if !ratios.is_empty() {
        let help = "Utilisation of a device in the last minute that its driver told, 0 to 1";
        out.family("njoule_neuron_power_utilization_ratio", help, "gauge", &of(&ratios));
    }
    if !seconds.is_empty() {
        let help = "Utilisation of the minutes that a device's driver told, integrated";
        out.counter("njoule_neuron_power_utilization_seconds_total", help, &of(&seconds));
    }
}

fn of(samples: &[(String, f64)]) -> Vec<(&str, f64)> {
    samples.iter().map(|(labels, value)| (labels.as_str(), *value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loading_used_is_absent_where_it_is_not_known_and_so_are_joules_of_no_tokens() {
        let method = serde_json::from_value(serde_json::json!("derived")).ok();
        let known = EnergyStats { split: Some(Default::default()), method, ..EnergyStats::default() };
        let written = |energy: &EnergyStats| {
            let mut out = Text::new("model=\"m\"".into());
            attributed(&mut out, energy, None);
            out.into_string()
        };
        let text = written(&known);
        assert!(text.contains("{model=\"m\",phase=\"idle\",method=\"derived\"} 0\n"), "{text}");
        assert!(!text.contains("load") && !text.contains("per_output_token"), "{text}");
        let text = written(&EnergyStats { load_known: true, tokens: 3, ..known });
        assert!(text.contains("phase=\"load\"") && text.contains("per_output_token{"), "{text}");
        assert_eq!(written(&EnergyStats { split: None, ..known }), "");
    }
}
