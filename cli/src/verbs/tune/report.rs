//! What `tune` prints: a table for people, one object for scripts, and charts.

use std::io::Write;
use std::num::NonZero;

use njoule_energy::bound::BatchLaw;
use njoule_runtime::policy::{Bounds, Objective};
use serde_json::{Value, json};

use super::points::{Laws, Point, Setup, on_frontier};
use crate::session::operating::{OperatingPoint, Others};
use crate::session::options::kv_name;
use crate::verbs::bench::plot::chart::{Chart, Point as Mark, Scale, Series};

/// Everything that was found.
pub struct Found<'a> {
    /// The model, as it was asked for.
    pub model: &'a str,
    /// All that was measured.
    pub points: &'a [Point],
    /// The types that were asked for.
    pub types: Setup,
    /// Whether joules are what was made small.
    pub joules: bool,
    /// Of setups.
    pub laws: &'a [Laws],
    /// Share of guesses that must be right, by batch.
    pub needed: &'a [(NonZero<usize>, f64)],
    /// The cheapest point within the latency.
    pub chosen: Option<&'a Point>,
    /// What is kept of it.
    pub point: Option<&'a OperatingPoint>,
    /// Perplexity of a text, by setup; the first is of the types that were asked for.
    pub perplexities: &'a [(Setup, f64)],
    /// Latency that a point may have.
    pub tpot: f64,
}

impl Found<'_> {
    fn unit(&self) -> &'static str {
        if self.joules { "J" } else { "CPU ms" }
    }

    /// Of what is printed: milliseconds where it is CPU time.
    fn shown(&self, cost: f64) -> f64 {
        if self.joules { cost } else { 1e3 * cost }
    }

    fn base(&self) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(|p| p.setup.same_types(&self.types) && p.guesses == 0)
    }

    fn other_types(&self) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(|p| !p.setup.same_types(&self.types))
    }

    /// The point that one of other types is held against: the same but for them.
    fn beside(&self, other: &Point) -> Option<&Point> {
        let same = |p: &&Point| {
            (p.setup.threads, p.setup.wait, p.batch) == (other.setup.threads, other.setup.wait, other.batch)
        };
        self.base().find(same)
    }

    fn perplexity(&self, setup: &Setup) -> Option<f64> {
        self.perplexities.iter().find(|(of, _)| of.same_types(setup)).map(|(_, perplexity)| *perplexity)
    }

    fn is_chosen(&self, point: &Point) -> bool {
        self.chosen.is_some_and(|c| (c.setup, c.batch, c.guesses) == (point.setup, point.batch, point.guesses))
    }

    /// The object; its keys are a contract.
    pub fn json(&self, kept: Option<&std::path::Path>) -> Value {
        let point = |p: &Point| {
            json!({
                "quant": p.setup.quant.name(), "kv_type": p.setup.kv.map(kv_name), "threads": p.setup.threads,
                "wait": p.setup.wait.name(), "batch": p.batch, "step_s": p.step_s, "tokens_per_s": p.tokens_per_s,
                "cpu_s_per_token": p.cpu_s_per_token,
                "energy": {"joules_per_token": p.joules_per_token, "method": p.method},
                "on_frontier": on_frontier(p, self.points, self.joules),
            })
        };
        let law = |laws: &Laws| {
            let Setup { quant, kv, threads, wait } = laws.setup;
            json!({
                "quant": quant.name(), "kv_type": kv.map(kv_name), "threads": threads, "wait": wait.name(),
                "law": laws.cost, "step_s": laws.time.map(|t| json!({"row_s": t.a, "step_s": t.b, "worst_residual": t.worst_residual})),
            })
        };
        let other = |p: &Point| {
            let base = self.beside(p);
            let perplexities = self.perplexity(&p.setup).zip(self.perplexity(&self.types));
            let mut value = point(p);
            value["cost_ratio"] = json!(base.map(|base| p.cost(self.joules) / base.cost(self.joules)));
            value["same_output"] = json!(base.map(|base| base.output_sha256 == p.output_sha256));
            value["perplexity"] = json!(self.perplexity(&p.setup));
            value["perplexity_ratio"] = json!(perplexities.map(|(theirs, ours)| theirs / ours));
            value
        };
        let needed = |(batch, share): &(NonZero<usize>, f64)| json!({"batch": batch, "acceptance_needed": share});
        json!({
            "model": self.model,
            "currency": if self.joules { "joules" } else { "cpu_seconds" },
            "points": self.base().map(point).collect::<Vec<_>>(),
            "laws": self.laws.iter().map(law).collect::<Vec<_>>(),
            "guesses": self.needed.iter().map(needed).collect::<Vec<_>>(),
            "other_types": self.other_types().map(other).collect::<Vec<_>>(),
            "perplexity": self.perplexity(&self.types),
            "chosen": self.chosen.map(point),
            "operating_point": self.point,
            "kept_in": kept,
        })
    }

    /// For a person.
    pub fn table(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let unit = self.unit();
        let heading = format!("{unit}/token");
        writeln!(
            out,
            "{:>8} {:>6} {:>6} {:>10} {:>10} {heading:>14}",
            "threads", "wait", "batch", "step ms", "tokens/s"
        )?;
        for p in self.base() {
            let mark = match () {
                () if self.is_chosen(p) => " <",
                () if on_frontier(p, self.points, self.joules) => " *",
                () => "",
            };
            let (step_ms, cost) = (1e3 * p.step_s, self.shown(p.cost(self.joules)));
            writeln!(
                out,
                "{:>8} {:>6} {:>6} {step_ms:>10.2} {:>10.1} {cost:>14.4}{mark}",
                p.setup.threads,
                p.setup.wait.name(),
                p.batch,
                p.tokens_per_s
            )?;
        }
        writeln!(out, "* nothing is both faster and cheaper; < chosen")?;
        for laws in self.laws.iter().filter(|laws| laws.setup.same_types(&self.types)) {
            let setup = format!("--threads {} --wait {}", laws.setup.threads, laws.setup.wait.name());
            let within = |law: &BatchLaw| 100.0 * law.worst_residual;
            match laws.cost {
                Some(law) => {
                    let (a, b) = (self.shown(law.a), self.shown(law.b));
                    writeln!(out, "{setup}: a token costs {a:.4} + {b:.4}/batch {unit}, within {:.0} %", within(&law))?;
                }
                None => writeln!(out, "{setup}: no a + b/batch fits what a token costs")?,
            }
            if let Some(law) = laws.time {
                let (row, step) = (1e3 * law.a, 1e3 * law.b);
                writeln!(out, "{setup}: a step takes {step:.2} + {row:.3}*batch ms, within {:.0} %", within(&law))?;
            }
        }
        self.write_guesses(out)?;
        self.write_types(out)?;
        let method = self.points.iter().find_map(|point| point.method.clone());
        match (self.joules, method) {
            (true, Some(method)) => writeln!(out, "energy: {method}"),
            _ => writeln!(out, "energy: unknown (no meter for all points); CPU time stands in its place"),
        }?;
        match self.point {
            Some(point) => write_settings(point, out),
            None => writeln!(out, "no point keeps {:.0} ms between tokens: none is chosen", 1e3 * self.tpot),
        }
    }

    fn write_guesses(&self, out: &mut dyn Write) -> std::io::Result<()> {
        if self.needed.is_empty() {
            return Ok(());
        }
        let share = |(batch, share): &(NonZero<usize>, f64)| format!("{:.0} % at {batch}", 100.0 * share);
        let shares: Vec<String> = self.needed.iter().map(share).collect();
        writeln!(out, "guesses (--speculate): one pays if it is right more often than {}", shares.join(", "))
    }

    /// What changes tokens stands beside the point that it is held against, with what is known of its quality.
    fn write_types(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for p in self.other_types() {
            let Some(base) = self.beside(p) else { continue };
            let ratio = p.cost(self.joules) / base.cost(self.joules);
            let what = match p.setup.kv == self.types.kv {
                true => format!("weights {}", p.setup.quant.name()),
                false => format!("cache {}", p.setup.kv.map_or("default", kv_name)),
            };
            let quality = match self.perplexity(&p.setup).zip(self.perplexity(&self.types)) {
                Some((theirs, ours)) => {
                    format!("perplexity {theirs:.4} against {ours:.4} ({:+.2} %)", 100.0 * (theirs / ours - 1.0))
                }
                None => {
                    let same = base.output_sha256 == p.output_sha256;
                    let outputs = if same { "the same last outputs" } else { "other outputs" };
                    format!("{outputs}, quality unknown (--perplexity FILE)")
                }
            };
            let step_ms = 1e3 * p.step_s;
            writeln!(
                out,
                "{what}: {:.4} {}/token ({ratio:.2} times), step {step_ms:.2} ms; {quality}; not chosen",
                self.shown(p.cost(self.joules)),
                self.unit()
            )?;
        }
        Ok(())
    }

    /// Latency against cost, and what guesses need.
    pub fn charts(&self) -> Vec<Chart> {
        let method = self.points.iter().find_map(|p| p.method.as_deref()).filter(|_| self.joules);
        let unit = match method {
            Some(method) => format!("J per token ({method})"),
            None => "CPU ms per token (energy unknown)".to_owned(),
        };
        let mark = |p: &Point| {
            let y = self.shown(p.cost(self.joules));
            Mark { x: 1e3 * p.step_s, y, range: (y, y) }
        };
        let of = |name: &str, joined: bool, points: Vec<&Point>| Series {
            name: name.to_owned(),
            joined,
            points: points.into_iter().map(mark).collect(),
        };
        let frontier = |p: &&Point| on_frontier(p, self.points, self.joules);
        let mut series = vec![
            of("frontier", true, self.base().filter(frontier).collect()),
            of("others", false, self.base().filter(|p| !frontier(p)).collect()),
            of("other types", false, self.other_types().collect()),
            of("chosen", false, self.chosen.into_iter().collect()),
        ];
        series.retain(|series| !series.points.is_empty());
        let mut charts = vec![Chart {
            title: "Frontier: cost against latency".to_owned(),
            x: "time between tokens (ms)".to_owned(),
            y: unit,
            x_scale: Scale::Linear,
            series,
        }];
        if !self.needed.is_empty() {
            let at = |(batch, share): &(NonZero<usize>, f64)| {
                let y = 100.0 * share;
                Mark { x: batch.get() as f64, y, range: (y, y) }
            };
            let points = self.needed.iter().map(at).collect();
            charts.push(Chart {
                title: "Guessed tokens".to_owned(),
                x: "sequences at once".to_owned(),
                y: "share that must be right to pay (%)".to_owned(),
                x_scale: Scale::Log2,
                series: vec![Series { name: "one guess each".to_owned(), joined: true, points }],
            });
        }
        charts
    }
}

/// What each objective gets.
fn write_settings(point: &OperatingPoint, out: &mut dyn Write) -> std::io::Result<()> {
    let Others { latency, throughput } = point.objectives.unwrap_or_default();
    let cheapest = point.setting(Objective::TokensPerJoule(Bounds::default()));
    for (objective, setting) in [("tokens-per-joule", cheapest), ("latency", latency), ("throughput", throughput)] {
        if let Some(setting) = setting {
            writeln!(out, "--objective {objective}: {setting}")?;
        }
    }
    match point.kv {
        Some(kv) => writeln!(
            out,
            "a cache of {} is cheaper and changes what the model says: `njoule serve --tuned-kv` uses it",
            kv_name(kv)
        ),
        None => Ok(()),
    }
}
