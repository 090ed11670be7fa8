//! Energy in answers and figures: told to who asks, with its method, and null where nobody knows.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use njoule_runtime::engine::{Character, EnergySource, Metered, Reading};
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
        json!({"boundary": "cpu", "meters": [three()], "reasons": [], "errors": 0,
            "devices": [{"device": 0, "utilization": 0.5, "utilization_s": 30.0}, {"device": 1, "utilization": null}]})
    }
}

fn three() -> Value {
    json!({"id": "three", "scope": "cpu", "method": "measured", "source": "a \"test\"", "counts_in_total": true,
        "joules": 12.5, "watts": 3.0})
}

/// Tells so many joules once, when the test says so.
struct Late(Arc<Mutex<Option<f64>>>);

impl EnergySource for Late {
    fn read(&mut self) -> Reading {
        let energy = self.0.lock().unwrap().take().map_or(Metered::NotYet, |joules| {
            let joules = serde_json::from_value(json!({"best_j": joules, "low_j": joules, "high_j": joules})).unwrap();
            Metered::Known(joules, serde_json::from_value(json!("derived")).unwrap())
        });
        Reading { cpu_s: 0.5, energy, ..Reading::default() }
    }

    fn describe(&self) -> Value {
        json!({"boundary": "accelerator", "meters": [], "reasons": []})
    }

    fn character(&self) -> Character {
        Character { since: Some(Instant::now()), late: true, idle_w: Some(0.0) }
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
    assert_eq!(totals["meters"], json!([three()]));
    // It leaves the books with the next reading.
    let counted = "njoule_request_energy_joules_count{model=\"m\",method=\"measured\"} 1\n";
    live.wait_for("the request's energy", |live| live.get("/metrics").text().contains(counted));
    let figures = live.get("/metrics").text();
    for line in [
        "njoule_energy_meter_info{meter=\"three\",scope=\"cpu\",method=\"measured\",source=\"a \\\"test\\\"\",counts_in_total=\"true\"} 1",
        "njoule_energy_joules_total{meter=\"three\",scope=\"cpu\",method=\"measured\"} 12.5",
        "njoule_power_watts{meter=\"three\"} 3",
        "njoule_energy_meter_errors_total{} 0",
        "njoule_neuron_power_utilization_ratio{device=\"0\"} 0.5",
        "njoule_neuron_power_utilization_seconds_total{device=\"0\"} 30",
    ] {
        assert!(figures.lines().any(|known| known == line), "{line} in {figures}");
    }
    assert!(!figures.contains("device=\"1\""), "nothing is known of it");
    assert!(figures.contains("njoule_joules_per_output_token{model=\"m\",method=\"measured\"} "));
    for phase in ["prefill", "decode", "wasted", "idle", "load", "unattributed"] {
        let figures = live.get("/metrics").text();
        let line = figures.lines().find(|line| {
            line.starts_with("njoule_energy_attributed_joules_total{model=\"m\",")
                && line.contains(&format!("phase=\"{phase}\""))
        });
        assert!(line.is_some_and(|line| line.contains("method=\"measured\"")), "{phase}: {figures}");
    }
}

/// An answer does not wait for a minute: its id gives what was told since, to whom it was given and to nobody else.
#[test]
fn what_is_told_after_an_answer_is_found_by_its_id() {
    let driver = Arc::<Mutex<Option<f64>>>::default();
    let config = ServerConfig { api_keys: vec!["one".into(), "two".into()], ..ServerConfig::default() };
    // Who waited for joules would fail by it.
    let wait = |engine: &mut njoule_runtime::EngineConfig| engine.energy_wait = Duration::from_secs(100);
    let live = start_metered("qwen3", 8, config, wait, Some(Box::new(Late(driver.clone()))));
    let get = |id: &str, key: &str| {
        call(live.address, "GET", &format!("/v1/energy/requests/{id}"), &[("x-api-key", key)], b"")
    };
    let mut given = Vec::new();
    for (path, body) in bodies() {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = json!(stream);
            if stream && path != "/v1/messages" {
                body["stream_options"] = json!({"include_usage": true});
            }
            let headers = [("content-type", "application/json"), ("x-njoule-energy", "1"), ("x-api-key", "one")];
            let answer = call(live.address, "POST", path, &headers, body.to_string().as_bytes());
            let text = answer.text();
            let events = text.lines().filter_map(|line| line.strip_prefix("data: ").or(Some(line).filter(|_| !stream)));
            let events: Vec<Value> = events.filter_map(|event| serde_json::from_str(event).ok()).collect();
            let id = events.iter().find_map(|e| e["id"].as_str().or(e["message"]["id"].as_str())).unwrap().to_owned();
            let energy = events.iter().find_map(|e| e["usage"].get("energy")).unwrap().clone();
            assert_eq!((&energy["settled"], &energy["joules"]), (&json!(false), &Value::Null), "{path} {energy}");
            assert_eq!(get(&id, "one").json(), energy, "{path}");
            given.push((id, energy));
        }
    }
    // One that nobody asked about has no figures of its own, whatever it has used.
    let headers = [("content-type", "application/json"), ("x-api-key", "one")];
    let silent = call(live.address, "POST", "/v1/completions", &headers, br#"{"prompt": "a", "max_tokens": 3}"#).json();
    get(silent["id"].as_str().unwrap(), "one").is_error(404, "unknown_answer");
    *driver.lock().unwrap() = Some(80.0);
    live.wait_for("a settled answer", |_| get(&given[0].0, "one").json()["settled"] == true);
    let mut theirs = 0.0;
    for (id, before) in &given {
        let energy = get(id, "one").json();
        let number = |key: &str| energy[key].as_f64().unwrap_or_else(|| panic!("{key}: {energy}"));
        assert_eq!((&energy["settled"], &energy["method"]), (&json!(true), &json!("derived")), "{energy}");
        assert_eq!(energy["cpu_s"], before["cpu_s"], "that was told by then");
        let parts = number("prefill_j") + number("decode_j") + number("wasted_j");
        assert!((parts - number("joules")).abs() < 1e-9 && parts > 0.0);
        theirs += parts;
        for key in ["two", "three"] {
            let refused = get(id, key);
            let code = if key == "two" { (404, "unknown_answer") } else { (401, "invalid_api_key") };
            refused.is_error(code.0, code.1);
        }
    }
    get("chatcmpl-0", "one").is_error(404, "unknown_answer");
    let path = format!("/v1/energy/requests/{}", given[0].0);
    let post = call(live.address, "POST", &path, &headers, b"{}");
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));
    // All were told at once: the silent one has the rest of what was prefilled and decoded.
    let totals = call(live.address, "GET", "/v1/energy", &[("x-api-key", "one")], b"").json();
    let bucket = |name: &str| totals["by_bucket"][name].as_f64().unwrap();
    let all: f64 = ["prefill_j", "decode_j", "wasted_j", "idle_j", "load_j", "unattributed_j"].map(bucket).iter().sum();
    assert!((all - 80.0).abs() < 1e-9, "{totals}");
    assert!(theirs < bucket("prefill_j") + bucket("decode_j") && theirs > 0.8 * 80.0, "{theirs} of {totals}");
}
