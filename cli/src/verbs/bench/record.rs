//! A report of one run: the meters' part, and what the benchmark knows.
//!
//! Everything beyond `njoule.energy/1`'s own fields is added (`repeat`, `repeats`, `cpu_s`, `quality`, `warmup`, `steady`,
//! `steady_reason`), as its rules allow.

use std::collections::BTreeMap;

use njoule_energy::bound::{DecodeStep, LimitConstants, Speeds};
use njoule_energy::report::{Client, Work};
use serde_json::{Map, Value, json};

use super::blocks;
use super::interval::Interval;
use super::measure::Metered;
use crate::verbs::energy::polled::Block;
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
    /// Requests under way on average, where that is not `concurrency`.
    pub mean_running: Option<f64>,
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
    /// Of a run without repeats: its blocks, or why there are none.
    pub blocks: Option<Result<Vec<Block>, String>>,
    /// What their counter came to in all of the run.
    pub counted: Option<u64>,
}

/// The report of `run`, which began at `mark` and ends now.
pub fn of(metered: &Metered, mark: &Mark, run: &Run, model: &Value) -> Value {
    let name = format!("{}-b{}-p{}-g{}-r{}", run.workload, run.concurrency, run.prompt, run.generated, run.repeat);
    let limit = run.mean_step().map(|step| step.least_joules_per_token(&LimitConstants::default(), None));
    let mut report = metered.source.since(mark, &name, &metered.subject, |report| {
        let (name, seed) = (Some(run.workload.to_owned()), Some(run.seed));
        report.work = Work { name, seed, ..run.work.clone() };
        report.model = Some(model.clone());
        report.client = Client { own_cpu_s: run.client_cpu_s, ..Client::default() };
        report.limit_joules_per_token = limit;
        report.idle_baseline_w = metered.idle_w;
        // All of its sequences run from its first step to its last, and none is followed by another.
        report.kind = if run.workload.starts_with("decode") { "steady" } else { "full" };
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
        ("/window/mean_running_seqs", json!(run.mean_running.or(run.steps.map(|_| run.concurrency as f64)))),
        ("/metrics/pj_per_weight_bit", json!(pj_per_weight_bit(&report, run))),
        ("/metrics/ttft_s", quantiles(&run.ttft)),
        ("/metrics/itl_s", quantiles(&run.itl)),
        ("/cpu_s", json!(cpu_s)),
        ("/quality", json!({"output_sha256": run.output_sha256, "perplexity": null})),
        ("/warmup", warmup),
    ] {
        put(&mut report, path, value);
    }
    if let Some(blocks) = &run.blocks {
        let statistics = alone(&report, run, blocks);
        put(&mut report, "/stats/output_tokens_per_joule", statistics);
    }
    check_length(&mut report);
    // Of a server whose CPU time nobody knows it cannot be told from others'.
    if let Some(cpu_s) = cpu_s {
        other_load(&mut report, cpu_s + run.client_cpu_s.unwrap_or(0.0));
    }
    report
}

impl Run {
    /// All bytes and operations of a decode over its tokens: a step of one sequence that has them.
    fn mean_step(&self) -> Option<DecodeStep> {
        let tokens = self.work.output_tokens.filter(|n| *n > 0)? + self.work.input_tokens.unwrap_or(0);
        let cost = self.cost?;
        let per_token = |amount: f64| amount / tokens as f64;
        Some(DecodeStep {
            weight_bytes: per_token(cost.weight_bytes),
            active_params: per_token(cost.flops) / 2.0,
            kv_bytes_per_token: per_token(cost.kv_bytes),
            batch: 1.0,
            context: 1.0,
        })
    }

    /// Puts the bound with the watts that always flow, which need the machine's speeds, in the place of that without them.
    pub fn bound_with(&self, report: &mut Value, idle_w: f64, speeds: Speeds) {
        let Some(step) = self.mean_step() else { return };
        let constants = LimitConstants { p_static_w: Some(idle_w), ..LimitConstants::default() };
        let least = step.least_joules_per_token(&constants, Some(speeds));
        let ratio = report["metrics"]["joules_per_output_token"].as_f64().map(|joules| joules / least);
        for (path, value) in [
            ("/metrics/limit_tokens_per_joule", json!(1.0 / least)),
            ("/metrics/limit_ratio", json!(ratio)),
            ("/metrics/limit_constants", json!(constants)),
        ] {
            put(report, path, value);
        }
    }
}

/// Joules of a decode step over the bits of weights that it reads.
fn pj_per_weight_bit(report: &Value, run: &Run) -> Option<f64> {
    let bytes = run.cost.filter(|_| run.work.output_tokens.is_some())?.weight_bytes;
    let joules = report["energy"]["total_j"].as_f64().filter(|_| bytes > 0.0)?;
    Some(1e12 * joules / (8.0 * bytes))
}

/// The statistics of a run without repeats.
fn alone(report: &Value, run: &Run, blocks: &Result<Vec<Block>, String>) -> Value {
    let mean = &report["metrics"]["output_tokens_per_joule"];
    // Blocks count pieces or sequences: what each is in tokens, on average.
    let each = run.work.output_tokens.zip(run.counted.filter(|n| *n > 0)).map(|(tokens, n)| tokens as f64 / n as f64);
    let found = match (each, blocks) {
        _ if mean.is_null() => Err("the energy is unknown".to_owned()),
        (_, Err(reason)) => Err(reason.clone()),
        (None, _) => Err("nothing was counted while it ran".to_owned()),
        (Some(each), Ok(blocks)) => blocks::interval(blocks).map(|ends| ends.map(|end| end * each)),
    };
    let blocks = blocks.as_ref().map_or(0, Vec::len);
    json!({
        "mean": mean,
        "ci95": found.as_ref().ok(),
        "cv": null,
        "interval": found.as_ref().ok().map(|_| BY_BLOCKS),
        "blocks": blocks,
        "reason": found.err(),
    })
}

/// Flags joules of too short a time.
pub fn check_length(report: &mut Value) {
    if too_short(report) {
        flag(report, "short_window");
    }
}

/// Whether joules are of a shorter time than an honest comparison has: half a minute, or 200 renewals of a meter that counts.
fn too_short(report: &Value) -> bool {
    let meters = report["meters"].as_array().into_iter().flatten();
    let periods = meters.filter(|m| m["counts_in_total"] == true).filter_map(|m| m["update_period_s"].as_f64());
    let least = periods.map(|period| PERIODS * period).fold(LEAST_S, f64::max);
    report["energy"]["total_j"].is_number() && report["window"]["duration_s"].as_f64().is_some_and(|s| s < least)
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
        let known = members.iter().all(|at| reports[*at]["energy"]["total_j"].is_number());
        let hashes: Vec<Value> = members.iter().map(|at| reports[*at]["quality"]["output_sha256"].clone()).collect();
        // A server's repeats have prompts of their own.
        let alike = matches!(reports[members[0]]["workload"]["name"].as_str(), Some("prefill" | "decode"));
        let differ = alike && hashes.windows(2).any(|pair| pair[0] != pair[1]);
        for at in members {
            let report = &mut reports[*at];
            put(report, "/stats/repeats", json!(members.len()));
            // A run without repeats has an interval of its own.
            if members.len() > 1 || report["stats"]["output_tokens_per_joule"]["mean"].is_null() {
                let ends = interval.and_then(|i| i.ends());
                let reason = match interval {
                    None if known => Some("nothing was generated"),
                    None => Some("the energy is unknown"),
                    Some(_) if ends.is_none() => Some("one repeat"),
                    Some(_) => None,
                };
                let statistics = json!({
                    "mean": interval.map(|i| i.mean),
                    "ci95": ends.map(|(low, high)| [low, high]),
                    "cv": interval.and_then(|i| i.cv),
                    "interval": ends.map(|_| BY_REPEATS),
                    "blocks": null,
                    "reason": reason,
                });
                put(report, "/stats/output_tokens_per_joule", statistics);
            }
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

/// The `model` object of a report. What the published form has and `fields` have not is null.
pub fn model(fields: &[(&str, Value)]) -> Value {
    let mut model: Map<String, Value> = fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    for key in ["sha256", "params", "active_params", "weight_bytes", "kv_bytes_per_token", "weight_dtype", "tp"] {
        model.entry(key).or_insert(Value::Null);
    }
    model.into()
}

/// How an interval was made: from the repeats of a case.
const BY_REPEATS: &str = "student_t";

/// From the blocks of a single run.
pub const BY_BLOCKS: &str = "block_bootstrap";

/// Seconds that joules need at least, and renewals of a meter's value.
const LEAST_S: f64 = 30.0;
const PERIODS: f64 = 200.0;

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
        assert_eq!(reports[0]["stats"]["output_tokens_per_joule"]["interval"], "student_t");
        assert_eq!(reports[0]["validity"]["flags"], json!([]));
        assert_eq!(reports[1]["validity"], json!({"ok": false, "flags": ["output_mismatch"]}));
        assert_eq!(reports[2]["quality"]["perplexity"], 7.5);
    }

    /// Ten pieces a block of two tokens each: what a block has for a joule is twice its pieces.
    #[test]
    fn a_run_without_repeats_has_the_interval_of_its_blocks_and_others_say_why_they_have_none() {
        let alone = |blocks: Option<Result<Vec<Block>, String>>, rate: Value| {
            let work = Work { output_tokens: Some(120), ..Work::default() };
            let run = Run { workload: "decode", work, counted: Some(60), ..Run::default() };
            let mut report = json!({
                "workload": {"name": "decode"}, "metrics": {"output_tokens_per_joule": rate}, "stats": {},
                "energy": {"total_j": rate.as_f64().map(|rate| 120.0 / rate)}, "quality": {},
            });
            if let Some(blocks) = &blocks {
                report["stats"]["output_tokens_per_joule"] = super::alone(&report, &run, blocks);
            }
            let mut reports = [report];
            finish(&mut reports, None);
            reports[0]["stats"]["output_tokens_per_joule"].clone()
        };
        let block = Block { done: 10, joules: Some(4.0) };
        let told = alone(Some(Ok(vec![block; 6])), json!(5.0));
        let by_blocks =
            json!({"mean": 5.0, "ci95": [5.0, 5.0], "cv": null, "interval": BY_BLOCKS, "blocks": 6, "reason": null});
        assert_eq!(told, by_blocks);
        let without = |reason: &str, told: Value| {
            assert!(told["ci95"].is_null() && told["interval"].is_null() && told["reason"] == reason, "{told}");
        };
        without("3 whole blocks of 10 s, and 5 are needed", alone(Some(Ok(vec![block; 3])), json!(5.0)));
        without("an agent", alone(Some(Err("an agent".to_owned())), json!(5.0)));
        without("the energy is unknown", alone(Some(Ok(vec![block; 6])), Value::Null));
        without("one repeat", alone(None, json!(5.0)));
    }

    #[test]
    fn joules_of_a_short_time_are_flagged_and_unknown_ones_are_not() {
        let report = |seconds: f64, joules: Value, period: f64| {
            json!({
                "energy": {"total_j": joules}, "window": {"duration_s": seconds},
                "meters": [{"counts_in_total": true, "update_period_s": period}],
            })
        };
        assert!(too_short(&report(29.0, json!(5.0), 1e-3)) && !too_short(&report(30.0, json!(5.0), 1e-3)));
        assert!(too_short(&report(39.0, json!(5.0), 0.2)) && !too_short(&report(0.1, Value::Null, 1e-3)));
    }

    /// A step that reads 1e9 bytes and takes 1.6 J: 200 pJ a bit. With idle watts the bound has them for the time it takes.
    #[test]
    fn bounds_and_bits_follow_from_the_steps() {
        let cost = njoule_runtime::backend::Cost { flops: 4e9, weight_bytes: 2e9, kv_bytes: 0.0 };
        let work = Work { output_tokens: Some(4), ..Work::default() };
        let run = Run { workload: "decode", cost: Some(cost), work, ..Run::default() };
        let mut report = json!({"energy": {"total_j": 3.2}, "metrics": {"joules_per_output_token": 0.8}});
        assert!((pj_per_weight_bit(&report, &run).unwrap() - 200.0).abs() < 1e-9);
        run.bound_with(&mut report, 10.0, Speeds { bytes_per_s: 1e9, flops_per_s: 1e12 });
        // 0.5 s of reading at 10 W, and what moves and computes 0.5e9 bytes and 1e9 operations.
        let least = 5.0 + 8.0 * 3.9e-12 * 0.5e9 + 0.71e-12 * 1e9;
        assert!((report["metrics"]["limit_ratio"].as_f64().unwrap() - 0.8 / least).abs() < 1e-9, "{report}");
        assert_eq!(report["metrics"]["limit_constants"]["p_static_w"], 10.0);
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
