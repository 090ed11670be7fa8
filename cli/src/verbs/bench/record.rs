//! A report of one run: the meters' part, and what the benchmark knows.
//!
//! Everything beyond `njoule.energy/1`'s own fields is added (`repeat`, `repeats`, `cpu_s`, `quality`, `warmup`), as its
//! rules allow.

use std::collections::BTreeMap;

use njoule_energy::bound::{DecodeStep, LimitConstants};
use njoule_energy::report::{Client, Work};
use serde_json::{Map, Value, json};

use super::interval::Interval;
use super::measure::Metered;
use crate::verbs::energy::subject::Mark;

/// What was run, once.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// `prefill`, `decode`, `closed`, `shared-prefix`, `chat`, `prompts`.
    pub workload: &'static str,
    /// What inputs are made from.
    pub seed: u64,
    /// Sequences or clients at once.
    pub concurrency: usize,
    /// Prompt tokens (or words, of a server) of each; 0 if they differ.
    pub prompt: usize,
    /// Tokens generated for each; 0 if they differ.
    pub generated: usize,
    /// Which repeat, from 0.
    pub repeat: usize,
    /// What was done in it.
    pub work: Work,
    /// Executor steps, where they are known.
    pub steps: Option<u64>,
    /// CPU-seconds of what ran the model, where they are known.
    pub cpu_s: Option<f64>,
    /// CPU-seconds of the clients, where they are another process.
    pub client_cpu_s: Option<f64>,
    /// Seconds to the first token, one a request, sorted.
    pub ttft: Vec<f64>,
    /// Seconds between tokens, one a request, sorted.
    pub itl: Vec<f64>,
    /// SHA-256 of the outputs.
    pub output_sha256: Option<String>,
    /// Bytes and operations of all steps, where they are known.
    pub cost: Option<njoule_runtime::backend::Cost>,
    /// Runs until the speed was steady, and how far the last two were apart.
    pub warmup: Option<(usize, f64)>,
}

/// The report of `run`, which began at `mark` and ends now.
pub fn of(metered: &Metered, mark: &Mark, run: &Run, model: &Value) -> Value {
    let name = format!("{}-b{}-p{}-g{}-r{}", run.workload, run.concurrency, run.prompt, run.generated, run.repeat);
    let tokens = run.work.output_tokens.unwrap_or(0) + run.work.input_tokens.unwrap_or(0);
    let limit = run.cost.filter(|_| tokens > 0).map(|cost| {
        // All bytes and operations of the run over its tokens: a step of one sequence that has them.
        let per_token = |amount: f64| amount / tokens as f64;
        let step = DecodeStep {
            weight_bytes: per_token(cost.weight_bytes),
            active_params: per_token(cost.flops) / 2.0,
            kv_bytes_per_token: per_token(cost.kv_bytes),
            batch: 1.0,
            context: 1.0,
        };
        step.least_joules_per_token(&LimitConstants::default(), None)
    });
    let mut report = metered.source.since(mark, &name, &metered.subject, |report| {
        let (name, seed) = (Some(run.workload.to_owned()), Some(run.seed));
        report.work = Work { name, seed, ..run.work.clone() };
        report.model = Some(model.clone());
        report.client = Client { own_cpu_s: run.client_cpu_s, ..Client::default() };
        report.limit_joules_per_token = limit.filter(|_| run.work.output_tokens.is_some());
        match run.workload {
            "prefill" => report.buckets.prefill_j = report.joules().map(|j| j.best()),
            "decode" => report.buckets.decode_j = report.joules().map(|j| j.best()),
            _ => {}
        }
    });
    let cpu_s = run.cpu_s.or_else(|| report["cpu"]["part_s"].as_f64());
    let warmup = run.warmup.map_or(Value::Null, |(runs, drift)| json!({"runs": runs, "drift": drift}));
    for (path, value) in [
        // An agent's report has its own model.
        ("/model", model.clone()),
        ("/workload/prompt", json!(run.prompt)),
        ("/workload/generated", json!(run.generated)),
        ("/repeat", json!(run.repeat)),
        ("/window/steps", json!(run.steps)),
        ("/window/mean_running_seqs", json!(run.steps.map(|_| run.concurrency))),
        ("/metrics/ttft_s", quantiles(&run.ttft)),
        ("/metrics/itl_s", quantiles(&run.itl)),
        ("/cpu_s", json!(cpu_s)),
        ("/quality", json!({"output_sha256": run.output_sha256, "perplexity": null})),
        ("/warmup", warmup),
    ] {
        put(&mut report, path, value);
    }
    // Of a server whose CPU time nobody knows it cannot be told from others'.
    if let Some(cpu_s) = cpu_s {
        other_load(&mut report, cpu_s + run.client_cpu_s.unwrap_or(0.0));
    }
    report
}

/// Puts `value` where `path` says; what an agent sent in the place of an object gives way to one.
fn put(report: &mut Value, path: &str, value: Value) {
    let mut at = report;
    for key in path.split('/').skip(1) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[key];
    }
    *at = value;
}

/// Flags a machine that did other work as well.
fn other_load(report: &mut Value, known_s: f64) {
    let cpu = &report["cpu"];
    let all = cpu["vcpus"].as_f64().zip(report["window"]["duration_s"].as_f64()).map(|(n, s)| n * s);
    // The kernel counts whole ticks on every CPU.
    let Some((busy, all)) = cpu["busy_s"].as_f64().zip(all.filter(|all| *all > 1.0)) else { return };
    if busy - known_s > OTHER_LOAD * all {
        flag(report, "other_load");
    }
}

fn flag(report: &mut Value, name: &str) {
    if let Some(flags) = report["validity"]["flags"].as_array_mut()
        && !flags.iter().any(|f| f == name)
    {
        flags.push(name.into());
        put(report, "/validity/ok", false.into());
    }
}

/// Completes the reports of all repeats: statistics over those of a case, and whether their outputs agree.
pub fn finish(reports: &mut [Value], perplexity: Option<f64>) {
    let mut cases: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, report) in reports.iter().enumerate() {
        cases.entry(super::reports::key(report)).or_default().push(at);
    }
    for members in cases.values() {
        let rates: Option<Vec<f64>> =
            members.iter().map(|at| reports[*at]["metrics"]["output_tokens_per_joule"].as_f64()).collect();
        let interval = rates.and_then(|rates| Interval::of(&rates));
        let hashes: Vec<Value> = members.iter().map(|at| reports[*at]["quality"]["output_sha256"].clone()).collect();
        // A server's repeats have prompts of their own.
        let alike = matches!(reports[members[0]]["workload"]["name"].as_str(), Some("prefill" | "decode"));
        let differ = alike && hashes.windows(2).any(|pair| pair[0] != pair[1]);
        for at in members {
            let report = &mut reports[*at];
            let statistics = json!({
                "mean": interval.map(|i| i.mean),
                "ci95": interval.and_then(|i| i.ends()).map(|(low, high)| [low, high]),
                "cv": interval.and_then(|i| i.cv),
            });
            put(report, "/stats/repeats", json!(members.len()));
            put(report, "/stats/output_tokens_per_joule", statistics);
            put(report, "/quality/perplexity", json!(perplexity));
            if differ {
                flag(report, "output_mismatch");
            }
        }
    }
}

fn quantiles(sorted: &[f64]) -> Value {
    let at = |share: f64| percentile(sorted, share);
    json!({"p50": at(0.5), "p95": at(0.95), "p99": at(0.99)})
}

/// The value below or at which `share` of the sorted values are; `None` of none.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.max(1) - 1).copied()
}

/// The `model` object of a report.
pub fn model(fields: &[(&str, Value)]) -> Value {
    fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Map<_, _>>().into()
}

/// Share of the machine's CPU time that others may have before a run says so.
const OTHER_LOAD: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99)), (Some(50.0), Some(99.0)));
        assert_eq!(percentile(&values[..1], 0.99), Some(1.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn repeats_that_answer_differently_are_flagged_and_statistics_are_over_a_case() {
        let report = |concurrency: usize, rate: f64, hash: &str| {
            json!({
                "workload": {"name": "decode", "concurrency": concurrency, "prompt": 4, "generated": 8},
                "metrics": {"output_tokens_per_joule": rate},
                "stats": {}, "quality": {"output_sha256": hash}, "validity": {"ok": true, "flags": []},
            })
        };
        let mut reports = vec![report(1, 2.0, "a"), report(4, 5.0, "b"), report(1, 4.0, "a"), report(4, 6.0, "c")];
        finish(&mut reports, Some(7.5));
        assert_eq!(reports[0]["stats"]["output_tokens_per_joule"]["mean"], 3.0);
        assert_eq!(reports[3]["stats"]["repeats"], 2);
        assert_eq!(reports[0]["validity"]["flags"], json!([]));
        assert_eq!(reports[1]["validity"], json!({"ok": false, "flags": ["output_mismatch"]}));
        assert_eq!(reports[2]["quality"]["perplexity"], 7.5);
    }

    #[test]
    fn what_is_no_object_gives_way() {
        let mut report = json!({"window": 7, "stats": null});
        put(&mut report, "/window/steps", json!(3));
        put(&mut report, "/stats/a/b", json!(4));
        assert_eq!(report, json!({"window": {"steps": 3}, "stats": {"a": {"b": 4}}}));
    }

    #[test]
    fn other_programs_are_noticed() {
        let report = |busy: f64| {
            json!({
                "cpu": {"busy_s": busy, "vcpus": 2}, "window": {"duration_s": 10.0},
                "validity": {"ok": true, "flags": []},
            })
        };
        let (mut quiet, mut loaded) = (report(9.5), report(11.0));
        other_load(&mut quiet, 9.0);
        other_load(&mut loaded, 9.0);
        assert_eq!((&quiet["validity"]["ok"], &loaded["validity"]["ok"]), (&json!(true), &json!(false)));
    }
}
