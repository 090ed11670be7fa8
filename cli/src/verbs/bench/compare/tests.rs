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
            let covered = report["window"]["duration_s"].clone();
            report["neuron_power"] = json!([{"util_seconds": util, "covered_s": covered, "minutes": 3}]);
        }
        reports
    };
    assert_eq!(verdict(&on_devices(200.0, 5.0), &on_devices(190.0, 4.0)), Verdict::Better);
    assert_eq!(verdict(&on_devices(200.0, 5.0), &on_devices(190.0, 6.0)), Verdict::NotComparable);
}

/// Tokens come from the whole run, so the utilisation must as well: what no minute covers is taken to be as the rest.
#[test]
fn utilisation_is_of_the_time_that_the_tokens_took() {
    let on_devices = |seconds: f64, tokens: u64, util: f64, minutes: u64| -> Vec<Value> {
        let mut reports: Vec<Value> = [0.0, 0.01, 0.02].map(|more| report(seconds + more, 1.0, None)).into();
        for report in &mut reports {
            report["workload"]["output_tokens"] = json!(tokens);
            let device = json!({"util_seconds": util, "covered_s": 60.0 * minutes as f64, "minutes": minutes});
            report["neuron_power"] = json!([device]);
        }
        reports
    };
    // Per token 1 s and 0.5 util-seconds against 1.011 s and 0.455: no watts decide it.
    let (a, b) = (on_devices(239.0, 239, 90.0, 3), on_devices(183.0, 181, 81.0, 3));
    let case = &cases(&a, &b, Given::default())[0];
    assert_eq!(case.verdict, Verdict::NotComparable);
    let used = case.ratios[2].1.unwrap().mean.exp();
    assert!((used - (81.0 * 183.0 / 180.0 / 181.0) / (90.0 * 239.0 / 180.0 / 239.0)).abs() < 1e-3, "{used}");
    // Below three whole minutes nothing is compared, whatever it would say.
    let (a, b) = (on_devices(100.0, 100, 30.0, 1), on_devices(90.0, 100, 20.0, 1));
    let case = &cases(&a, &b, Given::default())[0];
    assert_eq!(case.verdict, Verdict::NotComparable);
    assert!(case.lines.iter().any(|line| line.contains("1 whole minutes, and three are needed")), "{:?}", case.lines);
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

/// Reports with another value at a path.
fn with(mut reports: Vec<Value>, edits: &[(&str, Value)]) -> Vec<Value> {
    for report in &mut reports {
        for (path, value) in edits {
            *path.split('/').skip(1).fold(&mut *report, |at, key| &mut at[key]) = value.clone();
        }
    }
    reports
}

fn lines(a: &[Value], b: &[Value]) -> String {
    cases(a, b, Given::default())[0].lines.join("\n")
}

#[test]
fn between_two_machines_only_intervals_that_lie_apart_decide() {
    let sensor = |joules: f64, ends: (f64, f64)| {
        let meters = json!([{"id": "m", "counts_in_total": true, "rel_uncertainty": 0.05}]);
        let ends = [("/energy/low_j", json!(ends.0)), ("/energy/high_j", json!(ends.1)), ("/meters", meters)];
        with(repeats(10.0, 20.0, Some(joules)), &ends)
    };
    let elsewhere = |reports: Vec<Value>| with(reports, &[("/host/cpu", json!("another"))]);
    let a = sensor(50.0, (47.0, 53.0));
    assert_eq!(verdict(&a, &elsewhere(sensor(40.0, (38.0, 42.0)))), Verdict::Better);
    let near = elsewhere(sensor(46.0, (43.0, 49.0)));
    assert_eq!(verdict(&a, &near), Verdict::NotComparable);
    assert!(lines(&a, &near).contains("overlap") && lines(&a, &near).contains("B spends less below 5.00 W"));
    // On one machine what the sensor is off by cancels.
    assert_eq!(verdict(&a, &sensor(46.0, (43.0, 49.0))), Verdict::Better);
    // What no sensor says, or one that nobody vouches for, decides nothing there.
    for edits in [&[("/energy/method", json!("estimated"))][..], &[("/meters/0", json!({"counts_in_total": true}))]] {
        let edits: Vec<(&str, Value)> = edits.to_vec();
        let of = |reports| {
            let mut reports: Vec<Value> = reports;
            for report in &mut reports {
                for (path, value) in &edits {
                    *report.pointer_mut(path).unwrap() = value.clone();
                }
            }
            reports
        };
        assert_eq!(verdict(&of(a.clone()), &of(elsewhere(sensor(40.0, (38.0, 42.0))))), Verdict::NotComparable);
    }
}

#[test]
fn declared_watts_must_be_the_same_and_decide_only_for_all_that_they_may_be() {
    let derived = |seconds: f64, util: f64, profile: &str| -> Vec<Value> {
        let watts: njoule_energy::profile::NeuronWatts = profile.parse().unwrap();
        let joules = watts.joules(seconds, seconds, util, 1).unwrap().best();
        let device =
            json!({"util_seconds": util, "covered_s": seconds, "minutes": 3, "profile": profile, "energy_j": joules});
        let edits = [("/neuron_power", json!([device])), ("/energy/method", json!("derived"))];
        let exact: Vec<Value> = [joules; 3].map(|joules| report(seconds, 1.0, Some(joules))).into();
        with(exact, &edits)
    };
    let (a, wide) = ("base=20,span=40", "base=1..60,span=1..150");
    assert_eq!(verdict(&derived(180.0, 90.0, a), &derived(180.0, 80.0, a)), Verdict::Better);
    let other = derived(180.0, 80.0, "base=2,span=4");
    assert_eq!(verdict(&derived(180.0, 90.0, a), &other), Verdict::NotComparable);
    assert!(lines(&derived(180.0, 90.0, a), &other).contains("other constants"));
    // Slower and less busy: less by some of the watts declared, and more by others.
    assert_eq!(verdict(&derived(180.0, 90.0, wide), &derived(190.0, 80.0, wide)), Verdict::NotComparable);
    assert_eq!(verdict(&derived(180.0, 90.0, wide), &derived(170.0, 80.0, wide)), Verdict::Better);
}

#[test]
fn invalid_reports_and_other_workloads_are_not_compared_and_say_why() {
    let (a, b) = (repeats(10.0, 20.0, Some(50.0)), repeats(10.0, 20.0, Some(40.0)));
    let invalid = with(b.clone(), &[("/validity", json!({"ok": false, "flags": ["wrap_ambiguous", "throttled"]}))]);
    assert_eq!(verdict(&a, &invalid), Verdict::NotComparable);
    assert!(lines(&a, &invalid).contains("B is not valid: throttled, wrap_ambiguous"));
    let flagged = with(b.clone(), &[("/validity/flags", json!(["extrapolated"]))]);
    assert_eq!(verdict(&a, &flagged), Verdict::Better);
    let work = |reports: &[Value], seed: u64, requests: u64, input: u64| {
        let edits = [
            ("/workload/seed", json!(seed)),
            ("/workload/requests", json!(requests)),
            ("/workload/input_tokens", json!(input)),
        ];
        with(reports.to_vec(), &edits)
    };
    let one = work(&a, 1, 4, 400);
    assert_eq!(verdict(&one, &work(&b, 2, 4, 400)), Verdict::NotComparable);
    assert!(lines(&one, &work(&b, 2, 4, 400)).contains("seed 1 and 2"));
    assert_eq!(verdict(&one, &work(&b, 1, 4, 4000)), Verdict::NotComparable);
    assert_eq!(verdict(&one, &work(&b, 1, 5, 400)), Verdict::NotComparable, "other tokens of each request");
    // A server's own beginning of each prompt is no other workload.
    assert_eq!(verdict(&one, &work(&b, 1, 4, 404)), Verdict::Better);
}

#[test]
fn without_repeats_the_ratio_is_told_and_no_difference_claimed() {
    let (a, b) = (&repeats(10.0, 20.0, Some(50.0))[..1], &repeats(10.0, 20.0, Some(40.0))[..1]);
    assert_eq!(verdict(a, a), Verdict::Same);
    assert_eq!(verdict(a, b), Verdict::NotComparable);
    assert!(lines(a, b).contains("B over A: 1.250") && lines(a, b).contains("no interval is known"), "{}", lines(a, b));
}

/// One run of each, 2 and 2.5 tokens per joule: what their blocks say decides, and nothing else in its place.
#[test]
fn single_runs_are_compared_by_their_blocks_alone() {
    let run = |joules: f64, width: f64| {
        let rate = 100.0 / joules;
        let ends = json!([rate * (1.0 - width), rate * (1.0 + width)]);
        let stats = json!({"mean": rate, "ci95": ends, "cv": null, "interval": "block_bootstrap", "blocks": 30});
        with(repeats(10.0, 20.0, Some(joules))[1..2].to_vec(), &[("/stats/output_tokens_per_joule", stats)])
    };
    let (a, b) = (run(50.0, 0.05), run(40.0, 0.05));
    assert_eq!((verdict(&a, &b), verdict(&b, &a)), (Verdict::Better, Verdict::Worse));
    assert!(lines(&a, &b).contains("by blocks of 10 s") && lines(&a, &b).contains("1.250 (1.1"), "{}", lines(&a, &b));
    assert_eq!(verdict(&run(50.0, 0.2), &run(40.0, 0.2)), Verdict::Same);
    assert_eq!(verdict(&a, &a), Verdict::Same);
    // One side without, more than one repeat on a side, no sensor: as before.
    let without = with(b.clone(), &[("/stats", Value::Null)]);
    assert_eq!(verdict(&a, &without), Verdict::NotComparable);
    assert_eq!(verdict(&a, &repeats(10.0, 20.0, Some(40.0))), Verdict::NotComparable);
    let modelled = |reports: &[Value]| with(reports.to_vec(), &[("/energy/method", json!("estimated"))]);
    assert_eq!(verdict(&modelled(&a), &modelled(&b)), Verdict::NotComparable);
    let invalid = with(b.clone(), &[("/validity/ok", json!(false))]);
    assert_eq!(verdict(&a, &invalid), Verdict::NotComparable);
    let wall = with(b, &[("/energy/boundary", json!("wall"))]);
    assert_eq!(verdict(&a, &wall), Verdict::NotComparable);
}

/// Two ends of a bracket of which one moved by chance, in one case of several: no contradiction, and no difference.
#[test]
fn chance_in_one_of_many_cases_is_no_difference() {
    let cases_of = |noise: [f64; 5]| -> Vec<Value> {
        let of = |(case, sign): (u64, f64)| {
            let repeat = move |by: &f64| {
                let mut report = report(10.0 * (1.0 + sign * by), 20.0, None);
                report["workload"]["concurrency"] = json!(case);
                report
            };
            noise.iter().map(repeat).collect::<Vec<_>>()
        };
        [(1, 1.0), (2, 0.3), (3, 0.0), (4, 0.1)].into_iter().flat_map(of).collect()
    };
    let (quiet, noisy) = (cases_of([0.0; 5]), cases_of([0.011, 0.012, 0.009, 0.010, 0.008]));
    // Time is a per cent up, CPU-seconds are where they were: not what both ends say.
    assert_eq!(verdict(&quiet, &noisy), Verdict::Same);
    // Where both say it, many cases ask for more than one.
    let joules = |noise: [f64; 3], cases: std::ops::Range<u64>| -> Vec<Value> {
        let of = |case: u64| {
            let repeat = move |by: &f64| {
                let mut report = report(10.0, 20.0, Some(50.0 * (1.0 - if case == 0 { *by } else { 0.0 })));
                report["workload"]["concurrency"] = json!(case);
                report
            };
            noise.iter().map(repeat).collect::<Vec<_>>()
        };
        cases.flat_map(of).collect()
    };
    let barely = [0.010, 0.020, 0.017];
    assert_eq!(verdict(&joules([0.0; 3], 0..1), &joules(barely, 0..1)), Verdict::Better);
    assert_eq!(verdict(&joules([0.0; 3], 0..6), &joules(barely, 0..6)), Verdict::Same);
}

#[test]
fn what_only_one_side_has_is_named() {
    let a = repeats(10.0, 20.0, Some(50.0));
    let more = with(a.clone(), &[("/workload/concurrency", json!(8))]);
    let both = [&a[..], &more].concat();
    assert_eq!(alone(&both, &a), ["decode, 8 at once, prompt 8, gen 25"]);
    assert_eq!(alone(&a, &both), [] as [String; 0]);
}
