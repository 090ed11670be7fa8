//! Reports have the published form ([`crate::form`]). Python's jsonschema 4.26 finds nothing in the same reports either:
//! NJOULE_WRITE_REPORTS=DIR writes them.

use njoule_energy::report::{Client, Report, Work};
use serde_json::{Value, json};

use crate::form::check;
use crate::machine::{Machine, near, window};

/// A machine with everything, and one with nothing.
fn reports() -> Vec<Value> {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, 262_143_328_850);
    m.stat(2, 10);
    m.power_line(0, "POWER_STATUS_VALID,1726000000,1.00,3.00,2.00");
    m.put("/sys/devices/virtual/neuron_device/neuron0/info/architecture/device_name", "Inferentia2\n");
    m.put("/sys/module/neuron/version", "2.29\n");
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(30.0);
    m.zone("0", "package-0", 90_000_000, 262_143_328_850);
    m.stat(2, 3000);
    let end = meters.snapshot();
    let neuron = Report::of("neuron", "local", window(&start, &end));
    // The same without the device: a total.
    let mut alone = (start, end);
    (alone.0.neuron, alone.1.neuron) = (vec![], vec![]);
    let mut metered = Report::of("cpu", "local", window(&alone.0, &alone.1));
    metered.work = Work { requests: Some(2), input_tokens: Some(100), output_tokens: Some(180), ..Work::default() };
    metered.client = Client { command_cpu_s: Some(1.0), own_cpu_s: Some(0.1), exit_code: Some(0) };
    metered.idle_baseline_w = Some(1.0);
    metered.limit_joules_per_token = Some(0.1);
    let unknown = Report::unknown("none", "http://far:1", Some("no meter there".into()), 1.0, 2.0);
    vec![neuron.json(), metered.json(), unknown.json()]
}

#[test]
fn reports_have_the_published_form() {
    for report in reports() {
        assert_eq!(check(&report), Vec::<String>::new(), "{report:#}");
        if let Ok(dir) = std::env::var("NJOULE_WRITE_REPORTS") {
            std::fs::write(format!("{dir}/{}.json", report["run_id"].as_str().unwrap()), report.to_string()).unwrap();
        }
    }
}

/// A report of an agent, completed by the side that did the work, has it too; what is no report is refused.
#[test]
fn completed_reports_have_the_published_form() {
    let mut ours = Report::unknown("run", "http://there:1", None, 0.0, 0.0);
    ours.work = Work { name: Some("chat".into()), seed: Some(7), output_tokens: Some(90), ..Work::default() };
    (ours.kind, ours.idle_baseline_w) = ("steady", Some(1.0));
    for mut theirs in reports() {
        ours.complete(&mut theirs).unwrap();
        assert_eq!(check(&theirs), Vec::<String>::new(), "{theirs:#}");
        assert_eq!((theirs["workload"]["seed"].as_u64(), theirs["window"]["kind"].as_str()), (Some(7), Some("steady")));
    }
    assert!(ours.complete(&mut json!({})).unwrap_err().contains("schema is null"));
    let mut poor = reports().remove(1);
    poor["energy"].as_object_mut().unwrap().remove("low_j");
    let before = poor.clone();
    assert_eq!(ours.complete(&mut poor), Err("/energy/low_j is missing".into()));
    assert_eq!(poor, before);
}

#[test]
fn the_validator_sees_what_is_wrong() {
    let good = &reports()[1];
    let mut edits: Vec<(&str, Value)> = vec![
        ("/schema", json!("njoule.energy/2")),
        ("/energy/total_j", json!("90")),
        ("/energy/total_j", json!(-1.0)),
        ("/energy/method", json!("guessed")),
        ("/meters/0/samples", json!(1.5)),
        ("/validity/flags", json!(["odd"])),
        ("/metrics/ttft_s/p50", json!(true)),
    ];
    edits.push(("/metrics", json!({})));
    for (path, value) in edits {
        let mut bad = good.clone();
        *bad.pointer_mut(path).unwrap() = value;
        assert!(!check(&bad).is_empty(), "{path}");
    }
    let mut missing = good.clone();
    missing["energy"].as_object_mut().unwrap().remove("low_j");
    assert_eq!(check(&missing), ["$.energy: \"low_j\" is missing"]);
}

#[test]
fn figures_follow_from_the_energy() {
    let report = &reports()[1];
    near(report["energy"]["total_j"].as_f64().unwrap(), 90.0);
    near(report["energy"]["net_j"].as_f64().unwrap(), 60.0);
    let figures = [
        ("output_tokens_per_joule", 2.0),
        ("total_tokens_per_joule", 28.0 / 9.0),
        ("joules_per_request", 45.0),
        ("mean_power_w", 3.0),
        ("limit_tokens_per_joule", 10.0),
        ("limit_ratio", 5.0),
    ];
    figures.iter().for_each(|(key, value)| near(report["metrics"][key].as_f64().unwrap(), *value));
    let device = &reports()[0]["host"]["accelerators"][0];
    assert_eq!(*device, json!({"kind": "inferentia2", "index": 0, "dies": 1, "driver": "2.29"}));
    let unknown = &reports()[2];
    assert!(unknown["metrics"]["output_tokens_per_joule"].is_null() && unknown["energy"]["method"].is_null());
    assert_eq!(unknown["energy"]["reasons"], json!(["no meter there"]));
}

#[test]
fn a_person_never_reads_joules_without_a_method() {
    let m = Machine::new().intel();
    m.zone("0", "package-0", 0, 262_143_328_850);
    let mut meters = m.meters(&m.wanted());
    let start = meters.snapshot();
    m.hands.pass(30.0);
    m.zone("0", "package-0", 90_000_000, 262_143_328_850);
    let text = Report::of("", "local", window(&start, &meters.snapshot())).text();
    assert_eq!(text, "energy: 90.000 J (85.494 to 94.506) over 30.000 s, cpu, measured");
    let unknown = Report::unknown("", "local", Some("no meter".into()), 0.0, 1.0).text();
    assert_eq!(unknown, "energy: unknown over 1.000 s: no meter");
}
