//! Energy in answers and figures: told to who asks, with its method, and null where nobody knows.

use std::time::Duration;

use njoule_runtime::engine::{EnergySource, Metered, Reading};
use njoule_server::ServerConfig;
use serde_json::{Value, json};

use crate::support::{Answer, Live, call, plain, start_metered};

/// Tells three joules at every reading.
struct Three;

impl EnergySource for Three {
    fn read(&mut self) -> Reading {
        // The types of the crate of meters, by their wire form: a server needs no other of it.
        let joules = serde_json::from_value(json!({"best_j": 3.0, "low_j": 2.0, "high_j": 4.0})).unwrap();
        let method = serde_json::from_value(json!("measured")).unwrap();
        Reading { cpu_s: 0.5, energy: Metered::Known(joules, method), ..Reading::default() }
    }

    fn describe(&self) -> Value {
        json!({"boundary": "cpu", "meters": [{"id": "three"}], "reasons": []})
    }
}

fn metered(config: ServerConfig) -> Live {
    start_metered("qwen3", 8, config, |engine| engine.energy_wait = Duration::from_secs(100), Some(Box::new(Three)))
}

fn ask(live: &Live, path: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), ("x-njoule-energy", "true")];
    call(live.address, "POST", path, &headers, body.to_string().as_bytes())
}

/// The bodies of all endpoints, and where their usage is.
fn bodies() -> [(&'static str, Value); 3] {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    [
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 5, "n": 2, "temperature": 1.0})),
        ("/v1/completions", json!({"prompt": ["a", "b"], "max_tokens": 5})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 5})),
    ]
}

fn told(energy: &Value) {
    let number = |key: &str| energy[key].as_f64().unwrap_or_else(|| panic!("{key}: {energy}"));
    let joules = number("joules");
    assert!(joules > 0.0 && number("low_j") < joules && joules < number("high_j"), "{energy}");
    let parts = number("prefill_j") + number("decode_j") + number("wasted_j");
    assert!((parts - joules).abs() < 1e-9 * joules, "{energy}");
    assert_eq!(energy["method"], "measured");
    assert!(number("cpu_s") > 0.0);
}

#[test]
fn who_asks_is_told_what_the_answer_used_and_nobody_else() {
    let live = metered(ServerConfig::default());
    for (path, body) in bodies() {
        let answer = ask(&live, path, &body);
        told(&answer.json()["usage"]["energy"]);
        let header = answer.header("x-njoule-energy").unwrap().to_owned();
        assert!(header.starts_with("joules=") && header.contains(";method=measured;cpu_s="), "{header}");
        let silent = live.post(path, &body);
        assert!(silent.json()["usage"].get("energy").is_none() && silent.header("x-njoule-energy").is_none());

        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        if path != "/v1/messages" {
            streamed["stream_options"] = json!({"include_usage": true});
        }
        let text = ask(&live, path, &streamed).text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        let events: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
        let usage = events.iter().rev().find_map(|event| event.get("usage").filter(|usage| !usage.is_null())).unwrap();
        told(&usage["energy"]);
    }
    let always = metered(ServerConfig { usage_energy: true, ..ServerConfig::default() });
    told(&always.ok("/v1/completions", &json!({"prompt": "a", "max_tokens": 3}))["usage"]["energy"]);
}

#[test]
fn without_a_meter_joules_are_null_and_absent_from_the_metrics() {
    let live = plain();
    for (path, body) in bodies() {
        let answer = ask(&live, path, &body);
        let energy = answer.json()["usage"]["energy"].clone();
        for key in ["joules", "low_j", "high_j", "method", "prefill_j", "decode_j", "static_j", "core_s", "util_s"] {
            assert!(energy.as_object().unwrap().contains_key(key) && energy[key].is_null(), "{key}: {energy}");
        }
        assert!(energy["cpu_s"].as_f64().unwrap() > 0.0);
        assert!(answer.header("x-njoule-energy").unwrap().starts_with("joules=null;method=null;cpu_s="));
    }
    let figures = live.get("/metrics").text();
    assert!(!figures.contains("joules"), "{figures}");
    assert!(figures.contains("# TYPE njoule_cpu_seconds_total counter"));
    let totals = live.get("/v1/energy").json();
    for key in ["joules", "method", "by_bucket", "watts", "output_tokens_per_joule"] {
        assert!(totals.as_object().unwrap().contains_key(key) && totals[key].is_null(), "{key}: {totals}");
    }
    assert_eq!(totals["reasons"], json!(["no meter is read"]));
}

#[test]
fn figures_add_up_to_what_the_meter_told() {
    let live = metered(ServerConfig::default());
    told(&ask(&live, "/v1/completions", &json!({"prompt": "a", "max_tokens": 3})).json()["usage"]["energy"]);
    let totals = live.get("/v1/energy").json();
    let buckets: f64 = totals["by_bucket"].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum();
    let joules = totals["joules"].as_f64().unwrap();
    // Readings of three joules each.
    assert!(joules >= 3.0 && (joules / 3.0 - (joules / 3.0).round()).abs() < 1e-9, "{totals}");
    assert!((buckets - joules).abs() < 1e-9 * joules, "{totals}");
    assert_eq!((&totals["method"], &totals["boundary"]), (&json!("measured"), &json!("cpu")));
    assert_eq!(totals["meters"], json!([{"id": "three"}]));
    for phase in ["prefill", "decode", "wasted", "idle", "load", "unattributed"] {
        let figures = live.get("/metrics").text();
        let line = figures.lines().find(|line| {
            line.starts_with("njoule_energy_attributed_joules_total{") && line.contains(&format!("phase=\"{phase}\""))
        });
        assert!(line.is_some_and(|line| line.contains("method=\"measured\"")), "{phase}: {figures}");
    }
}
