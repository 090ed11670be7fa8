//! Runs the points that the search asks for: each setup on a model of its own, on the executor, as `bench` runs its cases.

use std::num::NonZero;
use std::time::Duration;

use indicatif::ProgressBar;
use njoule_runtime::backend::Capacity;
use serde_json::{Value, json};

use super::Args;
use super::descent::Measure;
use super::points::{Point, Setup};
use crate::args::UsageError;
use crate::fetch::ModelRef;
use crate::session::backend::{AnyBackend, Loaded};
use crate::session::options::kv_name;
use crate::session::{Model, RunOptions};
use crate::verbs::Context;
use crate::verbs::bench::case::{Bench, Case, median};
use crate::verbs::bench::measure::Metered;
use crate::verbs::bench::record::{self, Run};
use crate::verbs::bench::sweep::{NEURON_SECONDS, phase_run};

/// Measures points, each setup on a model of its own.
pub struct Measuring<'a, 'c> {
    /// What is measured, and how long.
    pub args: &'a Args,
    /// The model.
    pub asked: &'a ModelRef,
    /// What no setup says.
    pub options: &'a RunOptions,
    /// Meters.
    pub metered: &'a Metered,
    /// Where notes go.
    pub context: &'a Context<'c>,
    /// Where progress is shown.
    pub bar: Option<&'a ProgressBar>,
    /// By setup.
    pub reports: Vec<(Setup, Vec<Value>)>,
}

impl Measure for Measuring<'_, '_> {
    fn measure(&mut self, setup: &Setup, batches: &[NonZero<usize>], guesses: usize) -> anyhow::Result<Vec<Point>> {
        let Args { prompt, r#gen, min_time, measure, .. } = self.args;
        let case = |batch: NonZero<usize>| Case { batch: batch.get(), prompt: prompt.get(), generated: r#gen.get() };
        let len = case(NonZero::<usize>::MIN).tokens();
        let model = Model::open(self.asked, self.context)?;
        let options = self.options.with_setup(setup);
        let limit = options.context.unwrap_or(model.checkpoint.config.max_len);
        if len > limit {
            return Err(UsageError(format!("{len} tokens per sequence are more than the context of {limit}")).into());
        }
        let widest = batches.iter().map(|batch| batch.get()).max().unwrap_or(1);
        let capacity = |backend: &AnyBackend| {
            let block_len = backend.limits(&model).block_len;
            let rows = widest * (1 + guesses);
            let blocks = widest * len.div_ceil(block_len);
            Capacity { blocks, block_len, max_rows: 512.max(rows), max_seqs: widest, max_outputs: rows, max_len: len }
        };
        if let Some(bar) = self.bar {
            bar.set_message(format!("{setup}: loading"));
        }
        let Loaded { capacity, mut executor, backend, .. } = options.load(&model, capacity, self.context)?;
        let least = min_time.unwrap_or(0.0);
        if backend.name() == "neuron" && least < NEURON_SECONDS && measure.wants_energy() {
            return Err(UsageError(format!(
                "the Neuron driver has one figure a minute, and three whole minutes are needed: --min-time {NEURON_SECONDS}s"
            ))
            .into());
        }
        let types = backend.stored_types(&model)?;
        let described = record::model(&[
            ("id", json!(model.name)),
            ("backend", json!(backend.name())),
            ("quant", json!(setup.quant.name())),
            ("stored_bytes", json!(types)),
            ("kv_type", json!(kv_name(backend.kv_type()))),
            ("threads", json!(setup.threads)),
            ("wait", json!(setup.wait.name())),
        ]);
        let mut bench = Bench::new(&mut *executor, capacity, model.program.vocab());
        let mut points = vec![];
        for &batch in batches {
            if let Some(bar) = self.bar {
                let rows = if guesses > 0 { ", guesses" } else { "" };
                bar.set_message(format!("{setup}, batch {batch}{rows}"));
            }
            let point =
                self.point(&mut bench, setup, case(batch), guesses, Duration::from_secs_f64(least), &described)?;
            points.extend(point);
            if let Some(bar) = self.bar {
                bar.set_length(bar.length().unwrap_or(0).max(bar.position() + 1));
                bar.inc(1);
            }
        }
        Ok(points)
    }
}

impl Measuring<'_, '_> {
    /// The medians of a case's runs.
    fn point(
        &mut self,
        bench: &mut Bench<'_>,
        setup: &Setup,
        case: Case,
        guesses: usize,
        least: Duration,
        described: &Value,
    ) -> anyhow::Result<Option<Point>> {
        bench.guess(0);
        let warmup = bench.warm_up(case)?;
        bench.prefill(case, Duration::ZERO)?;
        bench.guess(guesses);
        let mut runs = vec![];
        for repeat in 0..self.args.repeat.get() {
            let mark = self.metered.source.mark();
            let Some(phase) = bench.decode(case, least)? else { continue };
            let run = Run {
                workload: if guesses > 0 { "decode-guessed" } else { "decode" },
                concurrency: case.batch,
                prompt: case.prompt,
                generated: case.generated,
                repeat,
                warmup: Some(warmup),
                ..Run::default()
            };
            let report = record::of(self.metered, &mark, &phase_run(run, &phase), described);
            let joules = report["energy"]["total_j"].as_f64().map(|joules| joules / phase.tokens as f64);
            let method = report["energy"]["method"].as_str().map(str::to_owned);
            self.keep(setup, report);
            runs.push((phase, joules, method));
        }
        let phases: Vec<_> = runs.iter().map(|(phase, ..)| *phase).collect();
        let Some((median, batch)) = median(&phases).zip(NonZero::new(case.batch)) else {
            return Ok(None);
        };
        let mut joules: Option<Vec<f64>> = runs.iter().map(|(_, joules, _)| *joules).collect();
        if let Some(joules) = &mut joules {
            joules.sort_by(f64::total_cmp);
        }
        Ok(Some(Point {
            setup: *setup,
            batch,
            guesses,
            step_s: median.seconds / median.steps as f64,
            tokens_per_s: median.rate(),
            cpu_s_per_token: median.cpu_seconds / median.tokens as f64,
            joules_per_token: joules.map(|joules| joules[joules.len() / 2]),
            method: runs.pop().and_then(|(_, _, method)| method),
            output_sha256: median.output_sha256,
        }))
    }

    fn keep(&mut self, setup: &Setup, report: Value) {
        match self.reports.iter_mut().find(|(of, _)| of == setup) {
            Some((_, reports)) => reports.push(report),
            None => self.reports.push((*setup, vec![report])),
        }
    }

    /// All reports, by setup, with the statistics of each.
    pub fn finish(self) -> Vec<(String, Vec<Value>)> {
        let finish = |(setup, mut reports): (Setup, Vec<Value>)| {
            record::finish(&mut reports, None);
            (setup.to_string(), reports)
        };
        self.reports.into_iter().map(finish).collect()
    }
}
