//! `njoule tune`: the cheapest way to run a model on this machine.
//!
//! Decode is measured for every number of threads and batch, in joules where a meter gives them and in CPU-seconds where
//! none does; `E(B) = a + b/B` is fitted for each number of threads. The point kept is the cheapest per token whose step takes
//! no longer than `--tpot`; `serve --objective tokens-per-joule` uses it. Stored types are measured beside each other with
//! `--try-quant` and never chosen: they change what the model says.

mod points;

use std::num::NonZero;
use std::time::Duration;

use njoule_energy::bound::BatchLaw;
use njoule_runtime::backend::Capacity;
use serde_json::{Value, json};

use self::points::{Point, choose, laws, on_frontier};
use super::Context;
use super::bench::case::{Bench, Case};
use super::bench::measure::{MeasureArgs, Metered};
use super::bench::record::{self, Run};
use super::bench::sweep::phase_run;
use crate::args::{ModelArgs, UsageError};
use crate::session::backend::{AnyBackend, Loaded};
use crate::session::operating::{OperatingPoint, OperatingPoints};
use crate::session::options::{QuantArg, kv_name};
use crate::session::planning::seconds;
use crate::session::{Model, RunArgs, RunOptions, threads};
use crate::verbs::energy::subject::Subject;

/// Arguments of `tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Sequences at once
    #[arg(long, short = 'b', value_name = "N,N,...", value_delimiter = ',', default_value = "1,2,4,8,16,32")]
    batch: Vec<NonZero<usize>>,
    /// Numbers of threads [default: 1, 2, 4, ... and the cores of this machine]
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', conflicts_with = "threads")]
    try_threads: Vec<NonZero<usize>>,
    /// Stored types to measure beside --quant; they are shown and never chosen
    #[arg(long, value_enum, value_name = "TYPE,...", value_delimiter = ',')]
    try_quant: Vec<QuantArg>,
    /// Time between two tokens that a chosen point may take
    #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "200ms")]
    tpot: f64,
    /// Tokens of each prompt
    #[arg(long, short = 'p', value_name = "N", default_value = "64")]
    prompt: NonZero<usize>,
    /// Decode steps of a run
    #[arg(long, short = 'g', value_name = "N", default_value = "32")]
    r#gen: NonZero<usize>,
    /// Runs of each point; the median counts
    #[arg(long, short = 'r', value_name = "N", default_value = "3")]
    repeat: NonZero<usize>,
    /// Run each point again and again for at least this long, for meters that are slow
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    min_time: Option<f64>,
    /// Do not keep the point
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    /// Measures, prints, keeps.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let options = self.run.options()?;
        let asked = self.model.resolve(&context.fetch.env)?;
        let outputs = self.measure.outputs()?;
        let metered = self.measure.open(Subject::Local)?;
        let mut points = vec![];
        let mut reports = vec![];
        let quants: Vec<Option<QuantArg>> =
            std::iter::once(None).chain(self.try_quant.iter().copied().map(Some)).collect();
        for quant in quants {
            for threads in self.threads(&options) {
                let model = Model::open(&asked, context)?;
                let options = options.clone().with(quant, threads);
                self.measure_points(&model, &options, &metered, &mut points, &mut reports, context)?;
            }
        }
        if context.progress_line() {
            eprint!("\r\x1b[K");
        }
        record::finish(&mut reports, None);
        let joules = points.iter().all(|point| point.joules_per_token.is_some());
        let chosen = choose(&points, options.quant_name(), self.tpot, joules);
        let laws = laws(&points, joules);
        let kept = match &chosen {
            Some(chosen) if !self.dry_run => {
                let law = laws.iter().find(|(quant, threads, _)| (*quant, *threads) == (chosen.quant, chosen.threads));
                let point = OperatingPoint {
                    threads: chosen.threads,
                    batch: chosen.batch,
                    currency: if joules { "joules" } else { "cpu_seconds" }.to_owned(),
                    method: chosen.method.clone().filter(|_| joules),
                    per_token: chosen.cost(joules),
                    tpot_s: chosen.step_s,
                    a: None,
                    b: None,
                };
                let mut all = OperatingPoints::open(&context.fetch.env)?;
                let point = point.with_law(law.and_then(|(_, _, law)| *law));
                Some(all.keep(&asked.to_string(), &options, point)?.clone())
            }
            _ => None,
        };
        if self.json {
            let point = |p: &Point| {
                json!({
                    "quant": p.quant, "threads": p.threads, "batch": p.batch, "step_s": p.step_s,
                    "tokens_per_s": p.tokens_per_s, "cpu_s_per_token": p.cpu_s_per_token,
                    "energy": {"joules_per_token": p.joules_per_token, "method": p.method},
                    "on_frontier": on_frontier(p, &points, joules),
                })
            };
            let law = |(quant, threads, law): &(&str, NonZero<usize>, Option<BatchLaw>)| json!({"quant": quant, "threads": threads, "law": law});
            let result = json!({
                "model": asked.to_string(),
                "currency": if joules { "joules" } else { "cpu_seconds" },
                "points": points.iter().map(point).collect::<Vec<Value>>(),
                "laws": laws.iter().map(law).collect::<Vec<Value>>(),
                "chosen": chosen.as_ref().map(point),
                "kept_in": kept,
            });
            writeln!(context.out, "{result}")?;
        } else {
            self.table(&points, &laws, joules, chosen.as_ref(), context)?;
            if let Some(path) = kept {
                context.note(&format!("kept in {}", path.display()));
            }
        }
        outputs.write(&reports)
    }

    fn threads(&self, options: &RunOptions) -> Vec<NonZero<usize>> {
        if !self.try_threads.is_empty() {
            return self.try_threads.clone();
        }
        if self.run.names_threads() {
            return vec![options.threads];
        }
        let cores = threads::cores();
        let powers = std::iter::successors(Some(NonZero::<usize>::MIN), |n| n.checked_mul(NonZero::new(2)?));
        powers.take_while(|n| *n < cores).chain([cores]).collect()
    }

    fn measure_points(
        &self,
        model: &Model,
        options: &RunOptions,
        metered: &Metered,
        points: &mut Vec<Point>,
        reports: &mut Vec<Value>,
        context: &Context<'_>,
    ) -> anyhow::Result<()> {
        let case =
            |batch: NonZero<usize>| Case { batch: batch.get(), prompt: self.prompt.get(), generated: self.r#gen.get() };
        let len = case(NonZero::<usize>::MIN).tokens();
        let limit = options.context.unwrap_or(model.checkpoint.config.max_len);
        if len > limit {
            return Err(UsageError(format!("{len} tokens per sequence are more than the context of {limit}")).into());
        }
        let widest = self.batch.iter().map(|batch| batch.get()).max().unwrap_or(1);
        let capacity = |backend: &AnyBackend| {
            let block_len = backend.limits(model).block_len;
            let max_rows = 512.max(widest);
            let blocks = widest * len.div_ceil(block_len);
            Capacity { blocks, block_len, max_rows, max_seqs: widest, max_outputs: widest, max_len: len }
        };
        let Loaded { capacity, mut executor, backend, .. } = options.load(model, capacity, context)?;
        let types = backend.stored_types(model)?;
        let described = record::model(&[
            ("id", json!(model.name)),
            ("backend", json!(backend.name())),
            ("quant", json!(options.quant_name())),
            ("stored_bytes", json!(types)),
            ("kv_type", json!(kv_name(backend.kv_type()))),
            ("threads", json!(options.threads)),
        ]);
        let least = Duration::from_secs_f64(self.min_time.unwrap_or(0.0));
        let mut bench = Bench::new(&mut *executor, capacity, model.program.vocab());
        for &batch in &self.batch {
            if context.progress_line() {
                eprint!("\r\x1b[K{} threads, weights {}, batch {batch} ...", options.threads, options.quant_name());
            }
            let case = case(batch);
            let warmup = bench.warm_up(case)?;
            bench.prefill(case, Duration::ZERO)?;
            let mut runs = vec![];
            for repeat in 0..self.repeat.get() {
                let mark = metered.source.mark();
                let Some(phase) = bench.decode(case, least)? else { continue };
                let run = Run {
                    workload: "decode",
                    concurrency: batch.get(),
                    prompt: case.prompt,
                    generated: case.generated,
                    repeat,
                    warmup: Some(warmup),
                    ..Run::default()
                };
                let report = record::of(metered, &mark, &phase_run(run, &phase), &described);
                let joules = report["energy"]["total_j"].as_f64().map(|joules| joules / phase.tokens as f64);
                let method = report["energy"]["method"].as_str().map(str::to_owned);
                reports.push(report);
                runs.push((phase, joules, method));
            }
            let phases: Vec<_> = runs.iter().map(|(phase, ..)| *phase).collect();
            let Some(median) = super::bench::case::median(&phases) else { continue };
            let mut joules: Option<Vec<f64>> = runs.iter().map(|(_, joules, _)| *joules).collect();
            if let Some(joules) = &mut joules {
                joules.sort_by(f64::total_cmp);
            }
            points.push(Point {
                quant: options.quant_name(),
                threads: options.threads,
                batch,
                step_s: median.seconds / median.steps as f64,
                tokens_per_s: median.rate(),
                cpu_s_per_token: median.cpu_seconds / median.tokens as f64,
                joules_per_token: joules.map(|joules| joules[joules.len() / 2]),
                method: runs.pop().and_then(|(_, _, method)| method),
            });
        }
        Ok(())
    }

    fn table(
        &self,
        points: &[Point],
        laws: &[(&str, NonZero<usize>, Option<BatchLaw>)],
        joules: bool,
        chosen: Option<&Point>,
        context: &mut Context<'_>,
    ) -> std::io::Result<()> {
        let unit = if joules { "J" } else { "CPU ms" };
        let cost = |cost: f64| if joules { cost } else { 1e3 * cost };
        writeln!(
            context.out,
            "{:>7} {:>8} {:>6} {:>10} {:>10} {:>14}",
            "weights",
            "threads",
            "batch",
            "step ms",
            "tokens/s",
            format!("{unit}/token")
        )?;
        for point in points {
            let mark = match () {
                () if chosen
                    .is_some_and(|c| (c.quant, c.threads, c.batch) == (point.quant, point.threads, point.batch)) =>
                {
                    " <"
                }
                () if on_frontier(point, points, joules) => " *",
                () => "",
            };
            writeln!(
                context.out,
                "{:>7} {:>8} {:>6} {:>10.2} {:>10.1} {:>14.4}{mark}",
                point.quant,
                point.threads,
                point.batch,
                1e3 * point.step_s,
                point.tokens_per_s,
                cost(point.cost(joules))
            )?;
        }
        writeln!(context.out, "* nothing is both faster and cheaper; < chosen")?;
        for (quant, threads, law) in laws {
            match law {
                Some(law) => writeln!(
                    context.out,
                    "{quant}, {threads} threads: a token costs {:.4} + {:.4}/batch {unit}, within {:.0} %",
                    cost(law.a),
                    cost(law.b),
                    100.0 * law.worst_residual
                )?,
                None => writeln!(context.out, "{quant}, {threads} threads: no a + b/batch fits")?,
            }
        }
        let method = points.iter().find_map(|point| point.method.clone());
        match (joules, method) {
            (true, Some(method)) => writeln!(context.out, "energy: {method}"),
            _ => writeln!(context.out, "energy: unknown (no meter for all points); CPU time stands in its place"),
        }?;
        match chosen {
            Some(_) => Ok(()),
            None => writeln!(context.out, "no point keeps {:.0} ms between tokens: none is chosen", 1e3 * self.tpot),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  njoule tune                                     the default model
  njoule tune -m model.gguf --tpot 100ms --html tune.html
  njoule tune -m MODEL --try-quant int8,int4      types beside each other; docs/accuracy.md has what they cost
  njoule serve -m MODEL --objective tokens-per-joule      uses what was kept
";
