//! `njoule tune`: the cheapest way to run a model on this machine.
//!
//! Decode is measured along one axis after the other (`tune/descent.rs`): batch, threads, how threads wait, guessed tokens, and
//! what changes tokens: types of the cache and, where they are asked for, of the weights. Costs are joules where a meter gives
//! them and CPU-seconds where none does; `E(B) = a + b/B` and `t(B)` are fitted. The point kept is the cheapest per token whose step
//! takes no longer than `--tpot`, with what suits the other objectives beside it; `serve --objective` uses it. What changes tokens
//! is shown and never chosen.

mod descent;
mod measuring;
mod points;
mod report;

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use njoule_runtime::backend::KvType;
use serde_json::Value;

use self::descent::{Axes, descend, in_joules};
use self::measuring::Measuring;
use self::points::{Point, Setup, cheapest, fastest, guesses, laws, needed, quickest, setting};
use self::report::Found;
use super::Context;
use super::bench::measure::MeasureArgs;
use super::score;
use crate::args::ModelArgs;
use crate::fetch::ModelRef;
use crate::session::backend::AnyBackend;
use crate::session::operating::{OperatingPoint, OperatingPoints, Others};
use crate::session::options::{KvArg, QuantArg, WaitArg};
use crate::session::planning::seconds;
use crate::session::{Model, RunArgs, RunOptions, threads};
use crate::verbs::energy::subject::Subject;

/// Arguments of `tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What to look for, one after the other, each from the best point so far
    #[arg(long, value_enum, value_name = "AXIS,...", value_delimiter = ',', default_value = "threads,wait,guesses,kv")]
    axes: Vec<Axis>,
    /// Sequences at once
    #[arg(long, short = 'b', value_name = "N,N,...", value_delimiter = ',', default_value = "1,2,4,8,16,32")]
    batch: Vec<NonZero<usize>>,
    /// Numbers of threads [default: 1, 2, 4, ... and the cores of this machine]
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', conflicts_with = "threads")]
    try_threads: Vec<NonZero<usize>>,
    /// Types of the cache to measure beside --kv-type; they are shown, and kept as an offer to `serve --tuned-kv` [default: all of the
    /// backend]
    #[arg(long, value_enum, value_name = "TYPE,...", value_delimiter = ',')]
    try_kv: Vec<KvArg>,
    /// Stored types to measure beside --quant; they are shown and never chosen
    #[arg(long, value_enum, value_name = "TYPE,...", value_delimiter = ',')]
    try_quant: Vec<QuantArg>,
    /// A text whose perplexity says what other types cost in quality, as `njoule score --text` has it
    #[arg(long, value_name = "FILE")]
    perplexity: Option<PathBuf>,
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

/// `--axes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Axis {
    /// Threads that compute
    Threads,
    /// How they wait for each other
    Wait,
    /// Up to how many sequences guessed tokens pay
    Guesses,
    /// Types of the cache
    Kv,
}

impl Args {
    /// Measures, prints, keeps.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let options = self.run.options()?;
        let asked = self.model.resolve(&context.fetch.env)?;
        let text = self
            .perplexity
            .as_ref()
            .map(|path| std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display())));
        let text = text.transpose()?;
        let outputs = self.measure.outputs()?;
        let metered = self.measure.open(Subject::Local)?;
        let start = Setup {
            quant: options.quant_arg(),
            kv: options.kv(),
            threads: self.try_threads.iter().max().copied().unwrap_or(options.threads),
            wait: options.wait,
        };
        let backend = options.with_setup(&start).without_device(&Model::open(&asked, context)?)?;
        let axes = self.axes(&options, backend.as_ref());
        let bar = bar(context, axes.planned());
        let mut bench = Measuring {
            args: &self,
            asked: &asked,
            options: &options,
            metered: &metered,
            context: &*context,
            bar: bar.as_ref(),
            reports: vec![],
        };
        let points = descend(start, &axes, self.tpot, &mut bench)?;
        let reports = bench.finish();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let perplexities = text.map(|text| self.perplexities(&text, &points, &asked, &options, context)).transpose()?;

        let joules = in_joules(&points);
        let chosen = cheapest(&points, &start, self.tpot, joules);
        let laws = laws(&points, joules);
        let needed = chosen.map(|chosen| needed(&points, &chosen.setup, |p| p.cost(joules))).unwrap_or_default();
        let point = chosen.map(|chosen| self.point(chosen, &points, start, joules, &laws));
        let mut kept = None;
        if let Some(point) = point.as_ref().filter(|_| !self.dry_run) {
            let mut all = OperatingPoints::open(&context.fetch.env)?;
            if let Some(why) = all.broken() {
                context.note(&format!("warning: {why}; it is replaced"));
            }
            kept = Some(all.keep(&asked.to_string(), &options, point)?.to_owned());
        }
        let name = asked.to_string();
        let found = Found {
            model: &name,
            points: &points,
            types: start,
            joules,
            laws: &laws,
            needed: &needed,
            chosen,
            point: point.as_ref(),
            perplexities: perplexities.as_deref().unwrap_or_default(),
            tpot: self.tpot,
        };
        if self.json {
            writeln!(context.out, "{}", found.json(kept.as_deref()))?;
        } else {
            found.table(context.out)?;
            if let Some(path) = kept {
                context.note(&format!("kept in {}", path.display()));
            }
        }
        let named: Vec<(&str, &[Value])> = reports.iter().map(|(name, reports)| (&**name, &**reports)).collect();
        outputs.write_all(&named, &found.charts())
    }

    /// What is worth trying: what the command line names, or what the backend has.
    fn axes(&self, options: &RunOptions, backend: Option<&AnyBackend>) -> Axes {
        let on_cpu = matches!(backend, Some(AnyBackend::Cpu(_)));
        let wanted = |axis| on_cpu && self.axes.contains(&axis);
        let kvs: Vec<KvType> = match self.try_kv.is_empty() {
            false => self.try_kv.iter().map(|kv| kv.kv()).collect(),
            // Who named a type wants that.
            true if wanted(Axis::Kv) && options.kv().is_none() => KvArg::ALL.map(KvArg::kv).into(),
            true => vec![],
        };
        Axes {
            batches: self.batch.clone(),
            threads: self.threads(options, backend.is_some() && self.axes.contains(&Axis::Threads)),
            waits: if wanted(Axis::Wait) && !self.run.names_wait() { WaitArg::ALL.into() } else { vec![] },
            // A guess needs a second step to be looked at.
            guesses: wanted(Axis::Guesses) && self.r#gen.get() > 1,
            kvs: kvs.into_iter().filter(|kv| Some(*kv) != backend.map(AnyBackend::kv_type)).collect(),
            quants: self.try_quant.iter().copied().filter(|quant| *quant != options.quant_arg()).collect(),
        }
    }

    fn threads(&self, options: &RunOptions, wanted: bool) -> Vec<NonZero<usize>> {
        if !self.try_threads.is_empty() {
            return self.try_threads.clone();
        }
        if self.run.names_threads() || !wanted {
            return vec![options.threads];
        }
        let cores = threads::cores();
        let powers = std::iter::successors(Some(NonZero::<usize>::MIN), |n| n.checked_mul(NonZero::new(2)?));
        powers.take_while(|n| *n < cores).chain([cores]).collect()
    }

    /// What is kept: the cheapest point, and beside it what suits the other objectives.
    fn point(
        &self,
        chosen: &Point,
        points: &[Point],
        start: Setup,
        joules: bool,
        laws: &[points::Laws],
    ) -> OperatingPoint {
        // Where time is what counts, by time.
        let by_time = guesses(&needed(points, &chosen.setup, |p| p.step_s));
        let by_cost = guesses(&needed(points, &chosen.setup, |p| p.cost(joules)));
        let latency = quickest(points, &start).map(|p| setting(p, points, false, by_time));
        let throughput = fastest(points, &start).map(|p| setting(p, points, true, by_time));
        let law = laws.iter().find(|laws| laws.setup == chosen.setup);
        let kv = points
            .iter()
            .filter(|p| {
                p.setup.quant == start.quant && p.setup.kv != start.kv && p.cost(joules) < 0.98 * chosen.cost(joules)
            })
            .filter(|p| p.batch == chosen.batch && p.step_s <= self.tpot)
            .min_by(|a, b| a.cost(joules).total_cmp(&b.cost(joules)));
        let point = OperatingPoint {
            version: OperatingPoint::VERSION,
            threads: chosen.setup.threads,
            batch: chosen.batch,
            wait: Some(chosen.setup.wait),
            speculate: by_cost,
            kv: kv.and_then(|p| p.setup.kv),
            currency: if joules { "joules" } else { "cpu_seconds" }.to_owned(),
            method: chosen.method.clone().filter(|_| joules),
            per_token: chosen.cost(joules),
            tpot_s: chosen.step_s,
            a: None,
            b: None,
            row_s: None,
            step_s: None,
            objectives: Some(Others { latency, throughput }),
        };
        point.with_laws(law.and_then(|law| law.cost), law.and_then(|law| law.time))
    }

    /// Perplexities of all types that were measured, those that were asked for first.
    fn perplexities(
        &self,
        text: &str,
        points: &[Point],
        asked: &ModelRef,
        options: &RunOptions,
        context: &mut Context<'_>,
    ) -> anyhow::Result<Vec<(Setup, f64)>> {
        let mut known: Vec<(Setup, f64)> = vec![];
        for point in points {
            if known.iter().any(|(setup, _)| setup.same_types(&point.setup)) {
                continue;
            }
            let model = Model::open(asked, context)?;
            let perplexity = score::perplexity(model, text, &options.with_setup(&point.setup), context)?;
            known.push((point.setup, perplexity));
        }
        Ok(known)
    }
}

impl RunOptions {
    /// The same with a setup.
    fn with_setup(&self, setup: &Setup) -> RunOptions {
        let mut options = self.clone().stored_as(setup.quant);
        if let Some(kv) = setup.kv {
            options = options.caching_as(kv);
        }
        (options.threads, options.wait) = (setup.threads, setup.wait);
        options
    }
}

fn bar(context: &Context<'_>, planned: usize) -> Option<ProgressBar> {
    if !context.progress_line() {
        return None;
    }
    let bar = ProgressBar::with_draw_target(Some(planned as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    Some(bar)
}

const EXAMPLES: &str = "\
Examples:
  njoule tune                                     the default model
  njoule tune -m model.gguf --tpot 100ms --html tune.html
  njoule tune -m MODEL --axes threads,wait        nothing else
  njoule tune -m MODEL --try-kv int8 --try-quant int8,int4 --perplexity text.txt
                                                  types beside each other, with what they cost in quality
  njoule serve -m MODEL --objective tokens-per-joule      uses what was kept
";
