//! Cases on the executor: `--batch` sequences of `--prompt` tokens are prefilled together and then decoded for `--gen` steps.
//!
//! No scheduling, no sampling, no text. Cases are warmed up until they are steady; their repeats are interleaved, every other
//! round in reverse, so that a drift of the machine falls on all of them. The roofline is measured in the same process,
//! after the cases, so that it does not count as their memory.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use njoule_energy::bound::Speeds;
use njoule_energy::report::Work;
use njoule_models::cost::Span;
use njoule_models::program::Program;
use njoule_runtime::backend::Capacity;
use serde_json::{Value, json};

use super::case::{Bench, Case, Phase, Row, median};
use super::identity;
use super::lines::Lines;
use super::load::LoadArgs;
use super::measure::{MeasureArgs, Metered};
use super::record::{self, Run};
use super::roofline::Roofline;
use super::steps::{ROOM, Steps};
use super::table::Report;
use crate::args::{ModelArgs, UsageError};
use crate::session::backend::{AnyBackend, Loaded};
use crate::session::options::kv_name;
use crate::session::{Model, RunArgs, kv_bytes_per_token, timing};
use crate::verbs::energy::subject::{Mark, Subject};
use crate::verbs::{Context, proc_status_bytes, score};

/// Arguments of `bench` without a subcommand.
#[derive(Debug, clap::Args)]
pub struct SweepArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Sequences that are decoded together, one case each; clients, of a server
    #[arg(long, short = 'b', value_name = "N,N,...", value_delimiter = ',', default_value = "1,4,16")]
    batch: Vec<NonZero<usize>>,
    /// Prompt tokens per sequence; several make a case each. Of a server: words, which are about as many tokens
    #[arg(long, short = 'p', value_name = "N,N,...", value_delimiter = ',', default_value = "32")]
    prompt: Vec<NonZero<usize>>,
    /// Decode steps; 0 measures prefill alone. Of a server: tokens of each answer
    #[arg(long, short = 'g', value_name = "N,N,...", value_delimiter = ',', default_value = "64")]
    r#gen: Vec<usize>,
    /// Runs of each case; the median counts
    #[arg(long, short = 'r', default_value = "5", value_name = "N")]
    repeat: NonZero<usize>,
    /// Run each phase, or the load on a server, again and again for at least this long, for meters that are slow
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "0")]
    min_seconds: f64,
    /// Measure for this long first, with the model loaded and nothing to do: watts of the idle baseline
    #[arg(long, value_name = "SECONDS", value_parser = crate::verbs::energy::seconds)]
    idle: Option<f64>,
    /// Do not measure the machine's bandwidth and peak
    #[arg(long)]
    no_roofline: bool,
    /// A text whose perplexity stands beside the figures, as `njoule score --text` has it
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint")]
    perplexity: Option<PathBuf>,
    /// Write a line for every step: JSON, or CSV if the file's name ends in .csv
    #[arg(long, value_name = "FILE")]
    step_log: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    run: RunArgs,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| (0.0..=86_400.0).contains(s));
    seconds.ok_or_else(|| format!("{text:?} is no number of seconds from 0 to 86400"))
}

impl SweepArgs {
    /// Runs the cases and prints their figures.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        if let Some(endpoint) = &self.load.endpoint {
            if self.step_log.is_some() {
                let why = "--step-log: no steps of a server are seen from outside; --request-log has a line for every request";
                return Err(UsageError(why.to_owned()).into());
            }
            let name = self.model.positional.as_deref().or(self.model.model.as_deref());
            let cases = self.cases();
            let wanted = super::load::Wanted {
                name,
                cases: &cases,
                repeat: self.repeat.get(),
                json: self.json,
                least: Duration::from_secs_f64(self.min_seconds),
                idle: self.idle,
            };
            return self.load.run(endpoint, &wanted, &self.measure, context);
        }
        self.sweep(context)
    }

    fn sweep(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let options = self.run.options()?;
        let cases = self.cases();
        let text = self
            .perplexity
            .as_ref()
            .map(|path| std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display())));
        let text = text.transpose()?;
        let outputs = self.measure.outputs()?;
        let mut step_log = self.step_log.as_deref().map(Lines::make).transpose()?;
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, context)?;

        let longest = cases.iter().map(Case::tokens).max().unwrap_or(1);
        let limit = options.context.unwrap_or(model.checkpoint.config.max_len);
        if longest > limit {
            return Err(
                UsageError(format!("{longest} tokens per sequence are more than the context of {limit}")).into()
            );
        }
        let widest = cases.iter().map(|c| c.batch).max().unwrap_or(1);
        let capacity = |backend: &AnyBackend| {
            let block_len = backend.limits(&model).block_len;
            Capacity {
                blocks: cases.iter().map(|c| c.batch * c.tokens().div_ceil(block_len)).max().unwrap_or(1),
                block_len,
                max_rows: STEP_ROWS.max(widest),
                max_seqs: widest,
                max_outputs: widest,
                max_len: longest,
            }
        };
        let mut metered = self.measure.open(Subject::Local)?;
        let Loaded { capacity, mut executor, backend, reason } = options.load(&model, capacity, context)?;
        timing::mark("weights packed, plan made");
        let wants_energy = self.measure.wants_energy() || (self.json && metered.source.has_devices());
        if backend.name() == "neuron" && self.min_seconds < NEURON_SECONDS && wants_energy {
            return Err(too_short().into());
        }
        metered.idle(self.idle, context)?;

        let types = backend.stored_types(&model)?;
        let described = record::model(&[
            ("id", json!(model.name)),
            ("backend", json!(backend.name())),
            ("device", json!(backend.device())),
            ("isa", json!(backend.isa())),
            ("quant", json!(options.quant_name())),
            ("stored_bytes", json!(types)),
            ("weight_bytes", json!(types.values().sum::<usize>())),
            ("weight_dtype", json!(types.iter().max_by_key(|(_, bytes)| **bytes).map(|(name, _)| *name))),
            ("params", json!(model.program.parameters())),
            ("active_params", json!(active_params(&model.program))),
            ("kv_bytes_per_token", json!(kv_bytes_per_token(&model.program, backend.kv_type()))),
            ("tp", json!(backend.tp())),
            ("kv_type", json!(kv_name(backend.kv_type()))),
            ("threads", json!(options.threads)),
        ]);
        let steps = step_log.is_some().then(|| Steps::with_room(ROOM));
        let bench = Bench::new(&mut *executor, capacity, model.program.vocab()).recording(steps);
        let least = Duration::from_secs_f64(self.min_seconds);
        let log = step_log.as_mut();
        let (runs, reports) = (vec![], vec![]);
        let mut rounds = Rounds { bench, least, metered: &metered, model: &described, runs, reports, log };
        let rows = rounds.all(&cases, self.repeat.get(), context)?;
        let (runs, mut reports) = (rounds.runs, rounds.reports);
        step_log.map_or(Ok(()), Lines::finish)?;
        let peak_memory = proc_status_bytes("VmHWM:");
        let memory = executor.memory();
        drop(executor); // its memory is not needed beside the probe's
        let roofline = match backend.kernels().filter(|_| !self.no_roofline) {
            None => None,
            Some(kernels) => Some(Roofline::measure(kernels, &types, options.threads)?),
        };
        if let Some((idle_w, roofline)) = metered.idle_w.zip(roofline) {
            let speeds = Speeds { bytes_per_s: roofline.bandwidth, flops_per_s: roofline.peak };
            runs.iter().zip(&mut reports).for_each(|(run, report)| run.bound_with(report, idle_w, speeds));
        }
        if self.measure.wants_energy() {
            let sha256 = json!(model.path().and_then(identity::sha256));
            reports.iter_mut().for_each(|report| report["model"]["sha256"] = sha256.clone());
        }
        let name = model.name.clone();
        let perplexity = text.map(|text| score::perplexity(model, &text, &options, context)).transpose()?;
        record::finish(&mut reports, perplexity);
        let report = Report {
            model: &name,
            backend: &backend,
            reason: &reason,
            quant: options.quant_name(),
            threads: options.threads.get(),
            repeat: self.repeat.get(),
            types: &types,
            memory,
            peak_memory,
            roofline,
            perplexity,
            rows: &rows,
            reports: &reports,
        };
        match self.json {
            true => writeln!(context.out, "{}", report.json())?,
            false => report.table(context.out)?,
        }
        outputs.write(&reports)
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = vec![];
        for prompt in &self.prompt {
            for generated in &self.r#gen {
                let case =
                    |batch: &NonZero<usize>| Case { batch: batch.get(), prompt: prompt.get(), generated: *generated };
                cases.extend(self.batch.iter().map(case));
            }
        }
        cases
    }
}

/// All repeats of all cases.
struct Rounds<'a> {
    bench: Bench<'a>,
    least: Duration,
    metered: &'a Metered,
    model: &'a Value,
    /// What the reports are of.
    runs: Vec<Run>,
    reports: Vec<Value>,
    /// Where every step goes.
    log: Option<&'a mut Lines>,
}

impl Rounds<'_> {
    fn all(&mut self, cases: &[Case], repeat: usize, context: &Context<'_>) -> anyhow::Result<Vec<Row>> {
        let mut warmups = vec![];
        for case in cases {
            progress(context, &format!("warming up batch {}, prompt {}", case.batch, case.prompt));
            warmups.push(self.bench.warm_up(*case)?);
        }
        let mut phases: Vec<[Vec<Phase>; 2]> = vec![Default::default(); cases.len()];
        for round in 0..repeat {
            let mut order: Vec<usize> = (0..cases.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let case = cases[at];
                let Case { batch, prompt, generated } = case;
                progress(
                    context,
                    &format!("batch {batch}, prompt {prompt}, gen {generated}, run {} of {repeat}", round + 1),
                );
                let run = |workload| Run {
                    workload,
                    concurrency: batch,
                    prompt,
                    generated,
                    repeat: round,
                    warmup: Some(warmups[at]),
                    ..Run::default()
                };
                let mark = self.metered.source.mark();
                let prefill = self.bench.prefill(case, self.least)?;
                self.report(&mark, phase_run(run("prefill"), &prefill))?;
                phases[at][0].push(prefill);
                let mark = self.metered.source.mark();
                let before = self.bench.decoded().load(Ordering::Relaxed);
                if repeat == 1 {
                    self.metered.source.trace(&mark, self.bench.decoded());
                }
                if let Some(decode) = self.bench.decode(case, self.least)? {
                    let blocks = (repeat == 1).then(|| self.metered.source.traced());
                    let counted = Some(self.bench.decoded().load(Ordering::Relaxed) - before);
                    self.report(&mark, Run { blocks, counted, ..phase_run(run("decode"), &decode) })?;
                    phases[at][1].push(decode);
                }
            }
        }
        if context.progress_line() {
            eprint!("\r\x1b[K");
        }
        let rows = cases.iter().zip(&phases).map(|(case, [prefills, decodes])| {
            // Every repeat does the same work, so each phase's median time and median CPU time belong to one cost.
            let prefill = median(prefills).context("no repeat")?;
            Ok(Row { case: *case, prefill, decode: median(decodes) })
        });
        rows.collect()
    }
}

impl Rounds<'_> {
    /// Of the phase that was run last, which began at `mark`.
    fn report(&mut self, mark: &Mark, run: Run) -> anyhow::Result<()> {
        let report = record::of(self.metered, mark, &run, self.model);
        if let (Some(log), Some(steps)) = (&mut self.log, self.bench.steps()) {
            steps.write(&report, log)?;
        }
        self.reports.push(report);
        self.runs.push(run);
        Ok(())
    }
}

/// `run` with what a phase measured.
pub fn phase_run(run: Run, phase: &Phase) -> Run {
    let tokens = Some(phase.tokens as u64);
    let sequences = (run.concurrency * phase.passes) as u64;
    let concurrency = Some(run.concurrency as u64);
    let work =
        Work { requests: Some(sequences), concurrency, padded_tokens: Some(phase.padded_rows), ..Work::default() };
    let work = match run.workload {
        "prefill" => Work { input_tokens: tokens, ..work },
        _ => Work { output_tokens: tokens, ..work },
    };
    let each = phase.seconds / phase.passes as f64;
    let (ttft, itl) = match run.workload {
        "prefill" => (vec![each], vec![]),
        _ => (vec![], vec![phase.seconds / phase.steps as f64]),
    };
    let hash = phase.output_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    Run {
        work,
        steps: Some(phase.steps),
        cpu_s: Some(phase.cpu_seconds),
        ttft,
        itl,
        output_sha256: Some(hash),
        cost: Some(phase.cost),
        ..run
    }
}

/// A line of progress, where there is a terminal.
fn progress(context: &Context<'_>, text: &str) {
    if context.progress_line() {
        eprint!("\r\x1b[K{text} ...");
    }
}

/// Parameters that a token passes: of experts, those that it is sent to.
fn active_params(program: &Program) -> u64 {
    Span { rows: 1, context: 0, outputs: 1 }.cost(program).linear_flops / 2
}

/// Why a run on Neuron devices is refused.
pub fn too_short() -> UsageError {
    UsageError(format!(
        "the Neuron driver has one figure a minute, and three whole minutes are needed: --min-seconds {NEURON_SECONDS}"
    ))
}

/// Rows of a step, as in the engine.
const STEP_ROWS: usize = 512;

/// Three whole minutes, wherever the first begins.
pub const NEURON_SECONDS: f64 = 240.0;
