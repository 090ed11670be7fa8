//! A page of plots from reports: one HTML file with SVG in it, which needs nothing else.
//!
//! Every axis has its unit and every energy its method. Where joules are unknown the page says why and shows CPU-seconds in
//! their place, under their own name: nothing is drawn as energy that is none.

pub mod chart;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use self::chart::{Bar, Chart, Point, Scale, Series, bars, escape};
use super::measure::create;
use super::reports::{read, tokens};
use crate::verbs::Context;

/// Arguments of `bench plot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files of reports; each is a colour
    #[arg(required = true, value_name = "REPORTS")]
    reports: Vec<PathBuf>,
    /// Where the page goes
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl Args {
    /// Draws.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let sets = self.reports.iter().map(|path| Ok((path.display().to_string(), read(path)?)));
        let sets: Vec<(String, Vec<Value>)> = sets.collect::<anyhow::Result<_>>()?;
        let named: Vec<(&str, &[Value])> = sets.iter().map(|(name, reports)| (name.as_str(), &reports[..])).collect();
        let mut file = create(&self.output)?;
        let written = std::io::Write::write_all(&mut file, page(&named, &[]).as_bytes());
        written.with_context(|| format!("{}: cannot write", self.output.display()))?;
        context.note(&format!("{}", self.output.display()));
        Ok(())
    }
}

/// What stands for energy on a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Currency {
    Joules,
    CpuSeconds,
}

impl Currency {
    fn unit(self) -> &'static str {
        match self {
            Currency::Joules => "J",
            Currency::CpuSeconds => "CPU-second",
        }
    }

    /// What a run spent.
    fn of(self, report: &Value) -> Option<f64> {
        let spent = match self {
            Currency::Joules => report["energy"]["total_j"].as_f64(),
            Currency::CpuSeconds => report["cpu_s"].as_f64().or_else(|| report["cpu"]["part_s"].as_f64()),
        };
        spent.filter(|x| *x > 0.0)
    }
}

/// The page of some sets of reports, each with its name; it begins with the charts that are given.
pub fn page(sets: &[(&str, &[Value])], first: &[Chart]) -> String {
    let all = || sets.iter().flat_map(|(_, reports)| reports.iter());
    let known = all().any(|r| Currency::Joules.of(r).is_some());
    let currency = if known { Currency::Joules } else { Currency::CpuSeconds };
    let methods: std::collections::BTreeSet<String> = all()
        .filter_map(|r| Some(format!("{}, {}", r["energy"]["method"].as_str()?, r["energy"]["boundary"].as_str()?)))
        .collect();
    let method = methods.into_iter().collect::<Vec<_>>().join("; ");
    let unit = match known {
        true => format!("tokens per joule ({method})"),
        false => "tokens per CPU-second".to_owned(),
    };

    let mut body = String::new();
    let reasons: std::collections::BTreeSet<&str> =
        all().flat_map(|r| r["energy"]["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str)).collect();
    if !known {
        let reasons = reasons.into_iter().collect::<Vec<_>>().join("; ");
        let _ = write!(
            body,
            "<p class=\"warn\">Energy is unknown{}{}. The plots show CPU-seconds of what ran the model, which are no joules.</p>",
            if reasons.is_empty() { "" } else { ": " },
            escape(&reasons)
        );
    }
    let rate = |r: &Value| Some(tokens(r)? / currency.of(r)?);
    let at_once = |r: &Value| r["workload"]["concurrency"].as_f64();
    let per_token_ms = |r: &Value| r.pointer("/metrics/itl_s/p50").and_then(Value::as_f64).map(|s| 1e3 * s);
    let charts = [
        Chart {
            title: format!("{} against batch", if known { "Tokens per joule" } else { "Tokens per CPU-second" }),
            x: "sequences at once".to_owned(),
            y: unit.clone(),
            x_scale: Scale::Log2,
            series: series(sets, &at_once, &rate),
        },
        Chart {
            title: format!("Latency against {}", if known { "tokens per joule" } else { "tokens per CPU-second" }),
            x: unit,
            y: "time between tokens, p50 (ms)".to_owned(),
            x_scale: Scale::Linear,
            series: series(sets, &rate, &per_token_ms),
        },
        Chart {
            title: "Distance to the physical bound".to_owned(),
            x: "sequences at once".to_owned(),
            y: "joules per token over the least possible (1 = the bound)".to_owned(),
            x_scale: Scale::Log2,
            series: series(sets, &at_once, &|r| r["metrics"]["limit_ratio"].as_f64()),
        },
    ];
    for chart in first.iter().chain(&charts) {
        body.push_str(&chart.svg());
    }
    let title = format!("{} by phase", if known { "Energy" } else { "CPU time" });
    let unit = format!(
        "{} per 1000 tokens of the phase{}",
        currency.unit(),
        if known { format!(" ({method})") } else { String::new() }
    );
    body.push_str(&bars(&title, &unit, &phases(sets, currency)));
    body.push_str(&constants(sets));
    body.push_str(&listing(sets, currency));
    let name = all().find_map(|r| r["model"]["id"].as_str()).unwrap_or("runs");
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>njoule bench: {0}</title><style>{STYLE}</style></head>\n\
         <body><h1>{0}</h1>\n{body}</body></html>\n",
        escape(name)
    )
}

/// A line per set, workload and length: the median over repeats, with their range.
fn series(
    sets: &[(&str, &[Value])],
    x: &dyn Fn(&Value) -> Option<f64>,
    y: &dyn Fn(&Value) -> Option<f64>,
) -> Vec<Series> {
    let mut lines: BTreeMap<String, BTreeMap<u64, Vec<(f64, f64)>>> = BTreeMap::new();
    // Prompt tokens are many times cheaper: beside them nothing could be seen of the others.
    let prefill = |r: &Value| r["workload"]["name"] == "prefill";
    let only_prefill = sets.iter().flat_map(|(_, reports)| *reports).all(prefill);
    for (set, report) in sets.iter().flat_map(|(set, reports)| reports.iter().map(move |r| (set, r))) {
        if prefill(report) && !only_prefill {
            continue;
        }
        let workload = &report["workload"];
        let label = |name: &str| workload[name].as_u64().unwrap_or(0);
        let name = workload["name"].as_str().unwrap_or("run");
        let line = format!(
            "{set}{}{name}, prompt {}, gen {}",
            if set.is_empty() { "" } else { ": " },
            label("prompt"),
            label("generated")
        );
        if let Some(point) = x(report).zip(y(report)).filter(|(x, y)| x.is_finite() && y.is_finite()) {
            lines.entry(line).or_default().entry(label("concurrency")).or_default().push(point);
        }
    }
    let line = |(name, points): (String, BTreeMap<u64, Vec<(f64, f64)>>)| Series {
        name,
        joined: true,
        points: points.into_values().map(|repeats| Point::of(&repeats)).collect(),
    };
    lines.into_iter().map(line).collect()
}

/// What each phase of each case spends per 1,000 of its tokens.
fn phases(sets: &[(&str, &[Value])], currency: Currency) -> Vec<Bar> {
    let mut bars: BTreeMap<(String, u64), BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for (set, report) in sets.iter().flat_map(|(set, reports)| reports.iter().map(move |r| (set, r))) {
        let at_once = report["workload"]["concurrency"].as_u64().unwrap_or(0);
        let phase = report["workload"]["name"].as_str().unwrap_or("run").to_owned();
        if let Some((spent, tokens)) = currency.of(report).zip(tokens(report)) {
            let bar = bars.entry(((*set).to_owned(), at_once)).or_default();
            bar.entry(phase).or_default().push(1000.0 * spent / tokens);
        }
    }
    let bar = |((set, at_once), parts): ((String, u64), BTreeMap<String, Vec<f64>>)| Bar {
        name: format!("{set}{}batch {at_once}", if set.is_empty() { "" } else { " " }),
        parts: parts
            .into_iter()
            .map(|(phase, values)| (phase, values.iter().sum::<f64>() / values.len() as f64))
            .collect(),
    };
    bars.into_iter().map(bar).collect()
}

/// The bound's constants, which are declared and partly unverified.
fn constants(sets: &[(&str, &[Value])]) -> String {
    let Some(report) = sets.iter().flat_map(|(_, reports)| reports.iter()).next() else { return String::new() };
    let constants = &report["metrics"]["limit_constants"];
    let number = |name: &str| constants[name].as_f64().map_or("unknown".to_owned(), |x| x.to_string());
    format!(
        "<p>Bound: {} pJ per bit read, {} pJ per operation (declared, unverified), static watts {}; docs/energy.md has the formula.</p>",
        number("eps_m_pj_bit"),
        number("eps_f_pj_flop"),
        number("p_static_w")
    )
}

/// All runs as a table.
fn listing(sets: &[(&str, &[Value])], currency: Currency) -> String {
    let mut rows = String::new();
    for (set, report) in sets.iter().flat_map(|(set, reports)| reports.iter().map(move |r| (set, r))) {
        let number = |x: Option<f64>| x.map_or("unknown".to_owned(), |x| format!("{x:.4}"));
        let flags = report["validity"]["flags"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let cells = [
            (*set).to_owned(),
            report["run_id"].as_str().unwrap_or_default().to_owned(),
            number(report["window"]["duration_s"].as_f64()),
            number(tokens(report)),
            number(currency.of(report)),
            report["energy"]["method"].as_str().unwrap_or("unknown").to_owned(),
            flags.collect::<Vec<_>>().join(", "),
        ];
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let _ = writeln!(rows, "<tr>{cells}</tr>");
    }
    format!(
        "<table><tr><th>file</th><th>run</th><th>seconds</th><th>tokens</th><th>{}s</th><th>method</th><th>flags</th></tr>\n{rows}</table>",
        currency.unit()
    )
}

const STYLE: &str = "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222}\
svg{display:block;margin:1.5em 0;max-width:100%;height:auto}table{border-collapse:collapse;font-size:13px}\
td,th{border:1px solid #ccc;padding:.2em .5em;text-align:left}.warn{background:#fff3cd;padding:.6em 1em}";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(at_once: u64, joules: Option<f64>) -> Value {
        json!({
            "run_id": "decode", "model": {"id": "a<b"},
            "workload": {"name": "decode", "concurrency": at_once, "prompt": 8, "generated": 16, "output_tokens": 16 * at_once},
            "window": {"duration_s": 1.0}, "cpu_s": 2.0,
            "energy": {"total_j": joules, "method": joules.map(|_| "measured"), "boundary": joules.map(|_| "cpu"),
                       "reasons": joules.map_or(json!(["no meter"]), |_| json!([]))},
            "metrics": {"itl_s": {"p50": 0.02}, "limit_ratio": joules, "limit_constants": {"eps_m_pj_bit": 3.9}},
            "validity": {"flags": ["steal"]},
        })
    }

    #[test]
    fn joules_are_drawn_with_their_method_and_nothing_else_as_joules() {
        let known = page(&[("", &[report(1, Some(4.0)), report(4, Some(8.0))])], &[]);
        assert!(
            known.contains("tokens per joule (measured, cpu)") && known.contains("a&lt;b") && known.contains("steal")
        );
        assert!(!known.contains("CPU-second") && !known.contains("no data"));
        let unknown = page(&[("", &[report(1, None), report(4, None)])], &[]);
        assert!(unknown.contains("Energy is unknown: no meter") && unknown.contains("tokens per CPU-second"));
        assert!(!unknown.contains("tokens per joule ("));
        // The bound is about joules alone.
        assert!(unknown.contains("no data"));
    }
}
