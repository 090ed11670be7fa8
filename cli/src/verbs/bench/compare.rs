//! `njoule bench compare A B`: which of two runs spends less energy per token.
//!
//! Of every case that both have, repeats are paired and the logarithms of their ratios get Student's 95 % interval; which of
//! the differences stand together is Holm's procedure over all cases. Where joules are unknown on either side, watts that are
//! a base and a part in proportion to utilisation give a bracket: the energy's ratio lies between the ratio of times and
//! the ratio of utilisation-seconds, whatever both watts are. What must hold before anything is compared is in `grounds`, what
//! decides a case in `case`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value, json};

use self::case::{Evidence, Kind, case};
use super::interval::{Interval, holm};
use super::reports::{key, read};
use crate::verbs::Context;

mod case;
mod grounds;

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
    /// They cannot be compared, or what is significant contradicts itself.
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
            let only_in = json!({"a": alone(&a, &b), "b": alone(&b, &a)});
            let verdict =
                json!({"verdict": verdict.name(), "exit_code": verdict.code(), "cases": cases, "only_in": only_in});
            writeln!(context.out, "{verdict}")?;
        } else {
            for case in &cases {
                writeln!(context.out, "{}: {}", case.key, case.verdict.name())?;
                for line in &case.lines {
                    writeln!(context.out, "  {line}")?;
                }
            }
            for (name, keys) in [("A", alone(&a, &b)), ("B", alone(&b, &a))] {
                keys.iter().try_for_each(|key| writeln!(context.out, "{key}: only in {name}, not compared"))?;
            }
            let has = |verdict| cases.iter().any(|case| case.verdict == verdict);
            if cases.is_empty() {
                writeln!(context.out, "no case is in both")?;
            } else if has(Verdict::Better) && has(Verdict::Worse) {
                writeln!(context.out, "B spends less in some cases and more in others: there is no one verdict")?;
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

/// Cases that `these` have and `others` lack.
fn alone(these: &[Value], others: &[Value]) -> Vec<String> {
    let keys = |reports: &[Value]| reports.iter().map(key).collect::<BTreeSet<String>>();
    keys(these).difference(&keys(others)).cloned().collect()
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
    /// What its repeats say, if they may say anything.
    evidence: Option<Evidence>,
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

/// All cases that both have, with their verdicts: of the findings that chance is unlikely to have made together.
fn cases(a: &[Value], b: &[Value], given: Given) -> Vec<Case> {
    let group = |reports: &[Value]| {
        let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for report in reports {
            groups.entry(key(report)).or_default().push(report.clone());
        }
        groups
    };
    let (a, b) = (group(a), group(b));
    let mut cases: Vec<Case> = a.iter().filter_map(|(key, a)| b.get(key).map(|b| case(key, a, b, given))).collect();
    let chances: Vec<f64> = cases.iter().filter_map(|case| case.evidence).map(|evidence| evidence.chance).collect();
    let mut stands = holm(&chances).into_iter();
    for case in &mut cases {
        let Some(evidence) = case.evidence else { continue };
        case.verdict = match (stands.next(), evidence.kind) {
            (Some(true), Kind::Better) => Verdict::Better,
            (Some(true), Kind::Worse) => Verdict::Worse,
            (Some(true), Kind::Contradiction) => Verdict::NotComparable,
            _ => Verdict::Same,
        };
    }
    cases
}

#[cfg(test)]
mod tests;
