//! `njoule bench compare A B`: which of two runs spends less energy per token.
//!
//! Of every case that both have, repeats are paired and the logarithms of their ratios get Student's 95 % interval; a
//! difference is claimed only if that interval leaves out none. Where joules are unknown on either side, watts that are a
//! base and a part in proportion to utilisation give a bracket: the energy's ratio lies between the ratio of times and
//! the ratio of utilisation-seconds, whatever both watts are. Nothing is said to be better across stored types without
//! a figure of quality on both sides.

use std::collections::BTreeMap;
use std::path::PathBuf;

use njoule_runtime::backend::neuron::plan::Instances;
use serde_json::{Value, json};

use super::interval::{Interval, paired_ratio};
use super::reports::{key, read, tokens};
use crate::verbs::Context;

/// Arguments of `bench compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Reports of the first run: a file that `--report` wrote, or one of `njoule energy record -o`
    a: PathBuf,
    /// Reports of the second run
    b: PathBuf,
    /// USD per hour of the first machine [default: the list price of its instance type, if known]
    #[arg(long, value_name = "USD", value_parser = price)]
    price_a: Option<f64>,
    /// USD per hour of the second machine
    #[arg(long, value_name = "USD", value_parser = price)]
    price_b: Option<f64>,
    /// Both ran the same file: servers do not say which types they store
    #[arg(long)]
    same_types: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn price(text: &str) -> Result<f64, String> {
    let usd = text.parse().ok().filter(|usd: &f64| usd.is_finite() && *usd > 0.0);
    usd.ok_or_else(|| format!("{text:?} is no price per hour"))
}

/// The comparison found a difference, or none could be made; see [`Verdict::code`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{0:?}")]
pub struct Compared(pub Verdict);

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No significant difference.
    Same,
    /// The second spends less per token.
    Better,
    /// The second spends more per token.
    Worse,
    /// They cannot be compared, or cases contradict each other.
    NotComparable,
}

impl Verdict {
    /// Exit code.
    pub fn code(self) -> u8 {
        match self {
            Verdict::Same => 0,
            Verdict::Better => 10,
            Verdict::Worse => 11,
            Verdict::NotComparable => 12,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Verdict::Same => "no significant difference",
            Verdict::Better => "B spends less per token",
            Verdict::Worse => "B spends more per token",
            Verdict::NotComparable => "not comparable",
        }
    }

    /// Of B's amount per token over A's, as logarithms.
    fn of(ratio: Option<Interval>) -> Verdict {
        match ratio.and_then(|r| r.ends()) {
            None => Verdict::NotComparable,
            Some((_, high)) if high < 0.0 => Verdict::Better,
            Some((low, _)) if low > 0.0 => Verdict::Worse,
            Some(_) => Verdict::Same,
        }
    }

    /// Of both ends of a bracket: only what both say.
    fn both(a: Verdict, b: Verdict) -> Verdict {
        if a == b { a } else { Verdict::NotComparable }
    }

    fn overall(cases: &[Verdict]) -> Verdict {
        let has = |verdict| cases.contains(&verdict);
        match () {
            () if cases.is_empty() || has(Verdict::NotComparable) => Verdict::NotComparable,
            () if has(Verdict::Better) && has(Verdict::Worse) => Verdict::NotComparable,
            () if has(Verdict::Better) => Verdict::Better,
            () if has(Verdict::Worse) => Verdict::Worse,
            () => Verdict::Same,
        }
    }
}

impl Args {
    /// Compares.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let (a, b) = (read(&self.a)?, read(&self.b)?);
        let given = Given { prices: [self.price_a, self.price_b], same_types: self.same_types };
        let cases = cases(&a, &b, given);
        let verdict = Verdict::overall(&cases.iter().map(|case| case.verdict).collect::<Vec<_>>());
        if self.json {
            let cases: Vec<Value> = cases.iter().map(Case::json).collect();
            let verdict = json!({"verdict": verdict.name(), "exit_code": verdict.code(), "cases": cases});
            writeln!(context.out, "{verdict}")?;
        } else {
            for case in &cases {
                writeln!(context.out, "{}: {}", case.key, case.verdict.name())?;
                for line in &case.lines {
                    writeln!(context.out, "  {line}")?;
                }
            }
            if cases.is_empty() {
                writeln!(context.out, "no case is in both: {} and {}", keys(&a), keys(&b))?;
            }
            writeln!(context.out, "{}", verdict.name())?;
        }
        context.out.flush()?;
        match verdict {
            Verdict::Same => Ok(()),
            other => Err(Compared(other).into()),
        }
    }
}

fn keys(reports: &[Value]) -> String {
    let keys: std::collections::BTreeSet<String> = reports.iter().map(key).collect();
    keys.into_iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ")
}

/// What the command line says beside the reports.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    /// USD per hour.
    prices: [Option<f64>; 2],
    /// That stored types are the same where reports do not say.
    same_types: bool,
}

/// A case that both runs have.
struct Case {
    key: String,
    verdict: Verdict,
    /// For a person.
    lines: Vec<String>,
    /// Ratios of B to A: name, interval of the logarithm.
    ratios: Vec<(&'static str, Option<Interval>)>,
    /// Across machines: which side has no joules, and the watts below which it spends less.
    break_even: Option<(&'static str, f64)>,
    /// USD per million tokens of both, where prices are known.
    usd_per_million: Option<[f64; 2]>,
}

impl Case {
    fn json(&self) -> Value {
        let ratio = |interval: &Option<Interval>| {
            interval.map(|i| {
                let ends = i.ends().map(|(low, high)| [low.exp(), high.exp()]);
                json!({"ratio": i.mean.exp(), "ci95": ends})
            })
        };
        let ratios: serde_json::Map<String, Value> =
            self.ratios.iter().map(|(name, r)| ((*name).to_owned(), json!(ratio(r)))).collect();
        let break_even = self.break_even.map(|(side, watts)| json!({"side": side, "spends_less_below_w": watts}));
        let prices = self.usd_per_million.map(|[a, b]| json!({"a": a, "b": b}));
        json!({
            "case": self.key, "verdict": self.verdict.name(), "b_over_a": ratios, "break_even": break_even,
            "usd_per_million_tokens": prices, "notes": self.lines,
        })
    }
}

fn cases(a: &[Value], b: &[Value], given: Given) -> Vec<Case> {
    let group = |reports: &[Value]| {
        let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for report in reports {
            groups.entry(key(report)).or_default().push(report.clone());
        }
        groups
    };
    let (a, b) = (group(a), group(b));
    a.iter().filter_map(|(key, a)| b.get(key).map(|b| case(key, a, b, given))).collect()
}

/// An amount per token of every repeat; `None` if one is unknown.
fn per_token(reports: &[Value], amount: impl Fn(&Value) -> Option<f64>) -> Option<Vec<f64>> {
    reports.iter().map(|r| Some(amount(r).filter(|x| *x > 0.0 && x.is_finite())? / tokens(r)?)).collect()
}

fn joules(report: &Value) -> Option<f64> {
    report["energy"]["total_j"].as_f64()
}

fn seconds(report: &Value) -> Option<f64> {
    report["window"]["duration_s"].as_f64()
}

/// Utilisation-seconds of the accelerators; where there is none, CPU-seconds of what ran the model.
fn used(report: &Value) -> Option<f64> {
    match report["neuron_power"].as_array().filter(|devices| !devices.is_empty()) {
        Some(devices) => devices.iter().map(|device| device["util_seconds"].as_f64()).sum(),
        None => report["cpu_s"].as_f64().or_else(|| report["cpu"]["part_s"].as_f64()),
    }
}

fn case(key: &str, a: &[Value], b: &[Value], given: Given) -> Case {
    let ratio = |amount: &dyn Fn(&Value) -> Option<f64>| paired_ratio(&per_token(a, amount)?, &per_token(b, amount)?);
    let (time, used_ratio, energy) = (ratio(&seconds), ratio(&used), ratio(&joules));
    let what = if a[0]["neuron_power"].as_array().is_some_and(|d| !d.is_empty()) {
        "utilisation-seconds"
    } else {
        "CPU-seconds"
    };
    let mut case = Case {
        key: key.to_owned(),
        verdict: Verdict::NotComparable,
        lines: vec![],
        ratios: vec![("joules_per_token", energy), ("seconds_per_token", time), ("used_seconds_per_token", used_ratio)],
        break_even: None,
        usd_per_million: None,
    };
    let (first, second) = (&a[0], &b[0]);
    let same = |path: &str| first.pointer(path) == second.pointer(path);
    // A machine that could not be asked may be any.
    let one_machine = first["host"].is_object()
        && ["/host/cpu", "/host/vcpus", "/host/instance_type", "/host/accelerators"].iter().all(|path| same(path));
    let mut say = |line: String| case.lines.push(line);

    let known = a.iter().chain(b).all(|r| joules(r).is_some());
    let mut verdict = if known {
        let alike = |path: &str| a.iter().chain(b).all(|r| r.pointer(path) == first.pointer(path));
        match alike("/energy/boundary") && alike("/energy/method") {
            true => {
                say(format!(
                    "tokens per joule, B over A: {} ({}, {})",
                    shown(energy.map(|i| Interval { mean: -i.mean, ..i })),
                    first["energy"]["method"].as_str().unwrap_or("unknown"),
                    first["energy"]["boundary"].as_str().unwrap_or("unknown boundary"),
                ));
                Verdict::of(energy)
            }
            false => {
                let of = |r: &Value| format!("{} of {}", r["energy"]["method"], r["energy"]["boundary"]);
                let kinds: std::collections::BTreeSet<String> = a.iter().chain(b).map(of).collect();
                say(format!("the energies are of two kinds: {}", kinds.into_iter().collect::<Vec<_>>().join(" and ")));
                Verdict::NotComparable
            }
        }
    } else if one_machine {
        say(format!("joules are unknown; per token, B over A: time {}, {what} {}", shown(time), shown(used_ratio)));
        say(format!(
            "for watts that are a base and a part in proportion to {}, the energy's ratio lies between the two",
            if what == "CPU-seconds" { "busy CPU time" } else { "utilisation" }
        ));
        Verdict::both(Verdict::of(time), Verdict::of(used_ratio))
    } else {
        Verdict::NotComparable
    };
    if time.is_some_and(|t| t.half.is_none()) {
        say("one repeat of each gives no interval: run more (--repeat)".to_owned());
    }
    if !one_machine {
        say("two kinds of machines".to_owned());
        case.break_even = across(a, b, time, &mut say);
    }
    if let [Some(a_usd), Some(b_usd)] =
        [(first, given.prices[0]), (second, given.prices[1])].map(|(r, usd)| usd.or_else(|| list_price(r)))
    {
        let million = |reports: &[Value], usd: f64| {
            per_token(reports, seconds).map(|s| 1e6 * usd / 3600.0 * s.iter().sum::<f64>() / s.len() as f64)
        };
        if let Some((a, b)) = million(a, a_usd).zip(million(b, b_usd)) {
            say(format!("price per million tokens: A {a:.3} USD, B {b:.3} USD"));
            case.usd_per_million = Some([a, b]);
        }
    }
    if !alike(first, second, given.same_types, &mut say) {
        verdict = Verdict::NotComparable;
    }
    for (name, reports) in [("A", a), ("B", b)] {
        let flags: std::collections::BTreeSet<&str> = reports
            .iter()
            .flat_map(|r| r["validity"]["flags"].as_array().into_iter().flatten().filter_map(Value::as_str))
            .collect();
        if !flags.is_empty() {
            say(format!("{name} is flagged: {}", flags.into_iter().collect::<Vec<_>>().join(", ")));
        }
    }
    case.verdict = verdict;
    case
}

/// Whether one may be called better than the other: they compute the same, or it is said what the difference costs.
fn alike(a: &Value, b: &Value, same_types: bool, say: &mut impl FnMut(String)) -> bool {
    let types = |r: &Value| {
        let known = |path: &str| r.pointer(path).filter(|value| !value.is_null()).cloned();
        known("/model/stored_bytes").zip(known("/model/kv_type"))
    };
    let hash = |r: &Value| r["quality"]["output_sha256"].as_str().map(str::to_owned);
    let outputs = hash(a).zip(hash(b)).map(|(a, b)| a == b);
    if outputs == Some(false) {
        say("outputs differ".to_owned());
    }
    let what = match types(a).zip(types(b)) {
        Some((a, b)) if a == b => return true,
        Some(_) => "stored types differ",
        // Scripts that know no model compare what they like.
        None if outputs == Some(true) || same_types || (a["model"].is_null() && b["model"].is_null()) => return true,
        None => "stored types are not known (--same-types says that both ran the same file)",
    };
    let quality = |r: &Value| r["quality"]["perplexity"].as_f64();
    match quality(a).zip(quality(b)) {
        Some((a, b)) => {
            say(format!("{what}: perplexity A {a:.4}, B {b:.4} ({:+.2} %)", 100.0 * (b / a - 1.0)));
            true
        }
        None => {
            say(format!(
                "{what}, and there is no perplexity on both sides (--perplexity FILE): neither is called better"
            ));
            false
        }
    }
}

/// What would have to hold of watts that nobody has measured.
fn across(
    a: &[Value],
    b: &[Value],
    time: Option<Interval>,
    say: &mut impl FnMut(String),
) -> Option<(&'static str, f64)> {
    let mean = |reports: &[Value], amount: &dyn Fn(&Value) -> Option<f64>| {
        per_token(reports, amount).map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    let (a_joules, b_joules) = (mean(a, &joules), mean(b, &joules));
    // P · t per token below the other's joules per token.
    let even = match (a_joules, b_joules) {
        (Some(_), Some(_)) => None,
        (None, Some(theirs)) => mean(a, &seconds).map(|s| ("a", theirs / s)),
        (Some(theirs), None) => mean(b, &seconds).map(|s| ("b", theirs / s)),
        (None, None) => {
            if let Some(time) = time {
                say(format!("B spends less if its watts are below {:.3} times those of A", (-time.mean).exp()));
            }
            None
        }
    };
    if let Some((side, watts)) = even {
        say(format!("{} spends less below {watts:.2} W", side.to_uppercase()));
    }
    even
}

fn list_price(report: &Value) -> Option<f64> {
    Instances::built_in().find(report["host"]["instance_type"].as_str()?)?.price_per_hour
}

/// A ratio for a person.
fn shown(ratio: Option<Interval>) -> String {
    match ratio.map(|r| (r.mean.exp(), r.ends())) {
        None => "unknown".to_owned(),
        Some((mean, None)) => format!("{mean:.3}"),
        Some((mean, Some((low, high)))) => format!("{mean:.3} ({:.3} to {:.3})", low.exp(), high.exp()),
    }
}

#[cfg(test)]
mod tests;
