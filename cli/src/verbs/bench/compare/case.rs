//! One case: what its repeats say, and what may be said of two machines.

use njoule_energy::profile::NeuronWatts;
use njoule_energy::report::util_seconds;
use njoule_runtime::backend::neuron::plan::Instances;
use serde_json::Value;

use super::super::interval::{Interval, paired_ratio, ratio_of_runs};
use super::super::record::BY_BLOCKS;
use super::super::reports::tokens;
use super::{Case, Given, Verdict, grounds};

/// What a case's repeats say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evidence {
    pub kind: Kind,
    /// How likely chance alone makes it.
    pub chance: f64,
}

/// Of the second run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It spends less.
    Better,
    /// It spends more.
    Worse,
    /// It spends less by one figure and more by another, and either may be the true one.
    Contradiction,
}

impl Evidence {
    /// Of figures of which each may be the true one (the ends of a bracket, or one alone), as logarithms of B over A: what all
    /// say is as sure as the least sure of them. `None` where one has no interval.
    fn of(figures: &[Option<Interval>]) -> Option<Evidence> {
        let figures: Vec<(f64, f64)> =
            figures.iter().map(|figure| figure.and_then(|f| Some((f.mean, f.chance?)))).collect::<Option<_>>()?;
        let least = |sign: f64| {
            let of_sign = figures.iter().filter(|(mean, _)| mean * sign > 0.0).map(|(_, chance)| *chance);
            of_sign.fold(f64::INFINITY, f64::min)
        };
        let (less, more) = (least(-1.0), least(1.0));
        let all = figures.iter().map(|(_, chance)| *chance).fold(0.0, f64::max);
        Some(match (less.is_finite(), more.is_finite()) {
            (true, true) => Evidence { kind: Kind::Contradiction, chance: less.max(more) },
            (true, false) => Evidence { kind: Kind::Better, chance: all },
            (false, _) => Evidence { kind: Kind::Worse, chance: all },
        })
    }
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

fn has_devices(report: &Value) -> bool {
    report["neuron_power"].as_array().is_some_and(|devices| !devices.is_empty())
}

/// Utilisation-seconds of the accelerators, over the time that the tokens took; where there is none, CPU-seconds of what ran
/// the model.
fn used(report: &Value) -> Option<f64> {
    match has_devices(report) {
        true => util_seconds(report),
        false => report["cpu_s"].as_f64().or_else(|| report["cpu"]["part_s"].as_f64()),
    }
}

/// Compares the repeats of a case. Its verdict is not final before all cases are known.
pub fn case(key: &str, a: &[Value], b: &[Value], given: Given) -> Case {
    let ratio = |amount: &dyn Fn(&Value) -> Option<f64>| paired_ratio(&per_token(a, amount)?, &per_token(b, amount)?);
    let (time, used_ratio, energy) = (ratio(&seconds), ratio(&used), ratio(&joules));
    let by_blocks = by_blocks(a, b);
    let energy = by_blocks.or(energy);
    let what = if has_devices(&a[0]) { "utilisation-seconds" } else { "CPU-seconds" };
    let mut case = Case {
        key: key.to_owned(),
        verdict: Verdict::NotComparable,
        evidence: None,
        lines: vec![],
        ratios: vec![("joules_per_token", energy), ("seconds_per_token", time), ("used_seconds_per_token", used_ratio)],
        break_even: None,
        usd_per_million: None,
    };
    let first = &a[0];
    let one_machine = grounds::one_machine(a, b);
    let mut say = |line: String| case.lines.push(line);

    let known = a.iter().chain(b).all(|r| joules(r).is_some());
    let mut evidence = if known {
        match grounds::two_kinds_of_joules(a, b) {
            None => {
                say(format!(
                    "tokens per joule, B over A: {} ({}, {})",
                    shown(energy.map(|i| Interval { mean: -i.mean, ..i })),
                    first["energy"]["method"].as_str().unwrap_or("unknown"),
                    first["energy"]["boundary"].as_str().unwrap_or("unknown boundary"),
                ));
                match one_machine {
                    true => Evidence::of(&possible(a, b, energy)),
                    false => apart(a, b, &mut say).and_then(|()| Evidence::of(&[energy])),
                }
            }
            Some(why) => {
                say(why);
                None
            }
        }
    } else if one_machine {
        say(format!("joules are unknown; per token, B over A: time {}, {what} {}", shown(time), shown(used_ratio)));
        say(format!(
            "for watts that are a base and a part in proportion to {}, the energy's ratio lies between the two",
            if what == "CPU-seconds" { "busy CPU time" } else { "utilisation" }
        ));
        Evidence::of(&[time, used_ratio])
    } else {
        None
    };
    if by_blocks.is_some() && evidence.is_some() {
        say("one repeat of each: the interval is by blocks of 10 s within both, and what differs from run to run is not in it (--repeat)"
            .to_owned());
    } else if time.is_some_and(|t| t.half.is_none()) {
        say("one repeat of each: without repeats no interval is known, and no difference is claimed (--repeat)"
            .to_owned());
        if a == b {
            say("they are the same report".to_owned());
            evidence = evidence.or(Some(Evidence { kind: Kind::Worse, chance: 1.0 }));
        }
    } else if a.len() != b.len() {
        say(format!("A has {} repeats and B {}: the surplus has no partner and is left out", a.len(), b.len()));
    }
    if !one_machine {
        say("two kinds of machines".to_owned());
        case.break_even = across(a, b, time, &mut say);
    }
    if let [Some(a_usd), Some(b_usd)] =
        [(first, given.prices[0]), (&b[0], given.prices[1])].map(|(r, usd)| usd.or_else(|| list_price(r)))
    {
        let million = |reports: &[Value], usd: f64| {
            per_token(reports, seconds).map(|s| 1e6 * usd / 3600.0 * s.iter().sum::<f64>() / s.len() as f64)
        };
        if let Some((a, b)) = million(a, a_usd).zip(million(b, b_usd)) {
            say(format!("price per million tokens: A {a:.3} USD, B {b:.3} USD"));
            case.usd_per_million = Some([a, b]);
        }
    }
    let fair = grounds::fair(a, b, given.same_types, &mut say);
    case.evidence = evidence.filter(|_| fair);
    case
}

/// Of one run on each side whose joules a sensor counts and whose intervals are by their blocks: the ratio of joules per token.
fn by_blocks(a: &[Value], b: &[Value]) -> Option<Interval> {
    let run = |reports: &[Value]| {
        let [report] = reports else { return None };
        let stats = &report["stats"]["output_tokens_per_joule"];
        if stats["interval"] != BY_BLOCKS || grounds::no_sensor_method(reports) {
            return None;
        }
        let end = |at: usize| stats["ci95"][at].as_f64();
        let blocks = stats["blocks"].as_u64().and_then(|n| usize::try_from(n).ok())?;
        Some((tokens(report)? / joules(report)?, [end(0)?, end(1)?], blocks))
    };
    // Of tokens per joule the logarithm's sign is the other one.
    ratio_of_runs(run(b)?, run(a)?)
}

/// The ratios of which each may be the true one: measured joules have one; of an estimate's interval both ends, and of declared
/// watts that are intervals the mixtures of their ends, which no repeat makes surer.
fn possible(a: &[Value], b: &[Value], energy: Option<Interval>) -> Vec<Option<Interval>> {
    let ratio = |amount: &dyn Fn(&Value) -> Option<f64>| paired_ratio(&per_token(a, amount)?, &per_token(b, amount)?);
    let end = |path: &'static str| ratio(&move |r: &Value| r.pointer(path)?.as_f64());
    match a[0]["energy"]["method"].as_str() {
        Some("estimated") => match (end("/energy/low_j"), end("/energy/high_j")) {
            (Some(low), Some(high)) => vec![energy, Some(low), Some(high)],
            _ => vec![energy],
        },
        Some("derived") => {
            let mixed = [
                ratio(&|r| with_watts(r, |w| (w.base.low, w.span.high))),
                ratio(&|r| with_watts(r, |w| (w.base.high, w.span.low))),
            ];
            let mixed: Vec<Option<Interval>> = mixed.into_iter().filter(Option::is_some).collect();
            [vec![energy], mixed].concat()
        }
        _ => vec![energy],
    }
}

/// Joules of a run with these watts of the devices' profile in the place of its middle.
fn with_watts(report: &Value, watts: impl Fn(&NeuronWatts) -> (f64, f64)) -> Option<f64> {
    let devices = report["neuron_power"].as_array()?;
    let profile: NeuronWatts = devices.first()?["profile"].as_str()?.parse().ok()?;
    let (base_w, span_w) = watts(&profile);
    let theirs: f64 = devices.iter().map(|device| device["energy_j"].as_f64()).sum::<Option<f64>>()?;
    let beside = (joules(report)? - theirs).max(0.0);
    Some(beside + base_w * devices.len() as f64 * seconds(report)? + span_w * util_seconds(report)?)
}

/// Joules of two machines differ only if their absolute intervals do: what a sensor is off by does not cancel. `None` says why
/// they decide nothing.
fn apart(a: &[Value], b: &[Value], say: &mut impl FnMut(String)) -> Option<()> {
    if let Some(why) = grounds::no_sensor(a).or_else(|| grounds::no_sensor(b)) {
        say(why);
        return None;
    }
    let end = |reports: &[Value], path: &str| per_token(reports, |r| r.pointer(path)?.as_f64());
    let interval = |reports: &[Value]| {
        let (low, high) = end(reports, "/energy/low_j").zip(end(reports, "/energy/high_j"))?;
        Some((low.into_iter().fold(f64::INFINITY, f64::min), high.into_iter().fold(0.0, f64::max)))
    };
    let Some((a, b)) = interval(a).zip(interval(b)) else {
        say("the energies have no interval: they decide nothing between two machines".to_owned());
        return None;
    };
    let shown = format!("J per token: A {:.6} to {:.6}, B {:.6} to {:.6}", a.0, a.1, b.0, b.1);
    if a.0 <= b.1 && b.0 <= a.1 {
        say(format!("{shown}: the intervals of two machines' meters overlap"));
        return None;
    }
    say(shown);
    Some(())
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
        // As far as A's joules can be believed there.
        (Some(theirs), Some(_)) => mean(b, &seconds).map(|s| ("b", theirs / s)),
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
