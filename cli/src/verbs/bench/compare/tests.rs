//! Verdicts on made-up reports.

use super::*;

/// A repeat of a decode case: 100 tokens.
fn report(seconds: f64, cpu: f64, joules: Option<f64>) -> Value {
    json!({
        "schema": "njoule.energy/1",
        "host": {"cpu": "c", "vcpus": 2, "instance_type": null, "accelerators": []},
        "model": {"stored_bytes": {"int8": 5}, "kv_type": "bf16"},
        "workload": {"name": "decode", "concurrency": 4, "prompt": 8, "generated": 25, "output_tokens": 100},
        "window": {"duration_s": seconds},
        "neuron_power": [],
        "cpu_s": cpu,
        "energy": {"total_j": joules, "boundary": "cpu", "method": joules.map(|_| "measured")},
        "quality": {"output_sha256": "x", "perplexity": null},
        "validity": {"ok": true, "flags": []},
    })
}

/// Repeats about a mean.
fn repeats(seconds: f64, cpu: f64, joules: Option<f64>) -> Vec<Value> {
    [0.99, 1.0, 1.01].map(|by| report(seconds * by, cpu * by, joules.map(|j| j * by))).into()
}

fn verdict(a: &[Value], b: &[Value]) -> Verdict {
    let cases = cases(a, b, Given::default());
    Verdict::overall(&cases.iter().map(|case| case.verdict).collect::<Vec<_>>())
}

#[test]
fn joules_decide_where_both_have_them() {
    let a = repeats(10.0, 20.0, Some(50.0));
    // Slower, and yet less energy.
    assert_eq!(verdict(&a, &repeats(12.0, 24.0, Some(40.0))), Verdict::Better);
    assert_eq!(verdict(&a, &repeats(8.0, 16.0, Some(60.0))), Verdict::Worse);
    assert_eq!(verdict(&a, &a), Verdict::Same);
    let line = &cases(&a, &repeats(12.0, 24.0, Some(40.0)), Given::default())[0].lines[0];
    assert!(line.contains("1.250") && line.contains("measured"), "{line}");
}

#[test]
fn noise_is_no_difference() {
    let a: Vec<Value> = [40.0, 50.0, 60.0].map(|j| report(10.0, 20.0, Some(j))).into();
    let b: Vec<Value> = [60.0, 45.0, 44.0].map(|j| report(10.0, 20.0, Some(j))).into();
    assert_eq!(verdict(&a, &b), Verdict::Same);
}

#[test]
fn without_joules_both_ends_of_the_bracket_must_agree() {
    let a = repeats(10.0, 20.0, None);
    assert_eq!(verdict(&a, &repeats(9.0, 15.0, None)), Verdict::Better);
    assert_eq!(verdict(&a, &repeats(11.0, 25.0, None)), Verdict::Worse);
    assert_eq!(verdict(&a, &repeats(9.0, 25.0, None)), Verdict::NotComparable);
    assert_eq!(verdict(&a, &repeats(9.0, 15.0, Some(3.0))), Verdict::Better, "one side alone is no energy");
    assert_eq!(verdict(&a, &a), Verdict::Same);
}

#[test]
fn utilisation_seconds_count_where_there_are_devices() {
    let on_devices = |seconds: f64, util: f64| -> Vec<Value> {
        let mut reports = repeats(seconds, 1.0, None);
        for report in &mut reports {
            report["neuron_power"] = json!([{"util_seconds": util}]);
        }
        reports
    };
    assert_eq!(verdict(&on_devices(10.0, 5.0), &on_devices(9.0, 4.0)), Verdict::Better);
    assert_eq!(verdict(&on_devices(10.0, 5.0), &on_devices(9.0, 6.0)), Verdict::NotComparable);
}

#[test]
fn stored_types_need_a_figure_of_quality() {
    let a = repeats(10.0, 20.0, Some(50.0));
    let mut b = repeats(9.0, 15.0, Some(30.0));
    b.iter_mut().for_each(|r| r["model"]["stored_bytes"] = json!({"int4": 3}));
    assert_eq!(verdict(&a, &b), Verdict::NotComparable);
    let (mut a, mut b) = (a, b);
    a.iter_mut().for_each(|r| r["quality"]["perplexity"] = json!(10.0));
    b.iter_mut().for_each(|r| r["quality"]["perplexity"] = json!(10.5));
    assert_eq!(verdict(&a, &b), Verdict::Better);
    let lines = cases(&a, &b, Given::default())[0].lines.join("\n");
    assert!(lines.contains("+5.00 %"), "{lines}");
}

#[test]
fn other_machines_get_break_even_watts_and_prices() {
    let a = repeats(10.0, 20.0, Some(50.0));
    let mut b = repeats(5.0, 20.0, None);
    b.iter_mut().for_each(|r| r["host"]["cpu"] = json!("another"));
    let case = &cases(&a, &b, Given { prices: [Some(0.36), Some(3.6)], same_types: false })[0];
    let lines = case.lines.join("\n");
    assert_eq!(case.verdict, Verdict::NotComparable);
    // 0.5 J per token at 20 tokens/s.
    assert!(lines.contains("B spends less below 10.00 W"), "{lines}");
    // 0.1 s per token at 0.0001 USD/s; 0.05 s at 0.001.
    assert!(lines.contains("A 10.000 USD, B 50.000 USD"), "{lines}");
    // The same for scripts, and from the other side.
    let json = case.json();
    let near = |value: &Value, expected: f64| (value.as_f64().unwrap() / expected - 1.0).abs() < 1e-9;
    assert_eq!(json["break_even"]["side"], "b");
    assert!(near(&json["break_even"]["spends_less_below_w"], 10.0), "{json}");
    assert!(near(&json["usd_per_million_tokens"]["b"], 50.0), "{json}");
    let turned = cases(&b, &a, Given::default())[0].json();
    assert_eq!((&turned["break_even"]["side"], &turned["usd_per_million_tokens"]), (&json!("a"), &Value::Null));
}

#[test]
fn boundaries_methods_single_runs_and_foreign_cases_are_not_compared() {
    let a = repeats(10.0, 20.0, Some(50.0));
    let mut wall = repeats(10.0, 20.0, Some(40.0));
    wall.iter_mut().for_each(|r| r["energy"]["boundary"] = json!("wall"));
    assert_eq!(verdict(&a, &wall), Verdict::NotComparable);
    assert_eq!(verdict(&a[..1], &repeats(10.0, 20.0, Some(40.0))[..1]), Verdict::NotComparable);
    let mut other = a.clone();
    other.iter_mut().for_each(|r| r["workload"]["concurrency"] = json!(8));
    assert_eq!(verdict(&a, &other), Verdict::NotComparable);
    let contradiction = [&repeats(10.0, 20.0, Some(40.0))[..], &other].concat();
    let more = [&a[..], &other].concat();
    assert_eq!(verdict(&more, &contradiction), Verdict::Better, "one case better, the other the same");
}

#[test]
fn servers_that_do_not_say_their_types_are_called_better_only_with_a_reason() {
    let server = |seconds: f64, cpu: f64, hash: &str| -> Vec<Value> {
        let mut reports = repeats(seconds, cpu, None);
        for report in &mut reports {
            report["model"] = json!({"id": "m", "endpoint": "http://h"});
            report["quality"]["output_sha256"] = json!(hash);
        }
        reports
    };
    let (a, b) = (server(10.0, 20.0, "x"), server(9.0, 15.0, "y"));
    assert_eq!(verdict(&a, &b), Verdict::NotComparable);
    assert_eq!(verdict(&a, &server(9.0, 15.0, "x")), Verdict::Better, "they said the same");
    let given = Given { same_types: true, ..Given::default() };
    assert_eq!(cases(&a, &b, given)[0].verdict, Verdict::Better);
    // Of a script that names no model.
    let script = |seconds: f64| -> Vec<Value> {
        let mut reports = repeats(seconds, seconds, None);
        reports.iter_mut().for_each(|r| (r["model"], r["quality"]) = (Value::Null, Value::Null));
        reports
    };
    assert_eq!(verdict(&script(10.0), &script(8.0)), Verdict::Better);
}

#[test]
fn one_repeat_of_another_kind_and_unknown_machines_are_not_compared() {
    let a = repeats(10.0, 20.0, Some(50.0));
    let mut b = repeats(9.0, 15.0, Some(30.0));
    b[2]["energy"]["method"] = json!("estimated");
    assert_eq!(verdict(&a, &b), Verdict::NotComparable);
    let (mut a, mut b) = (repeats(10.0, 20.0, None), repeats(9.0, 15.0, None));
    a.iter_mut().chain(&mut b).for_each(|r| r["host"] = Value::Null);
    assert_eq!(verdict(&a, &b), Verdict::NotComparable);
}
