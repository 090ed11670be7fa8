//! `njoule bench`: how fast this machine runs a model, and how much of what it could do that is.
//!
//! Each case prefills `batch` sequences of `prompt` tokens together and then decodes them for `gen` steps, straight on
//! the executor: no scheduling, no sampling, no text. Figures are medians over `--repeat` runs after a warm-up. The
//! roofline is measured in the same process, after the cases, so that it does not count as their memory.

mod case;
mod report;
mod roofline;

use std::num::NonZero;

use njoule_runtime::backend::Capacity;

use self::case::{Bench, Case};
use self::report::Report;
use self::roofline::Roofline;
use super::Context;
use crate::args::{ModelArgs, UsageError};
use crate::session::backend::{AnyBackend, Loaded};
use crate::session::{Model, RunArgs, timing};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Sequences that are decoded together, one case each
    #[arg(long, short = 'b', value_name = "N,N,...", value_delimiter = ',', default_value = "1,4,16")]
    batch: Vec<NonZero<usize>>,
    /// Prompt tokens per sequence; several make a case each
    #[arg(long, short = 'p', value_name = "N,N,...", value_delimiter = ',', default_value = "32")]
    prompt: Vec<NonZero<usize>>,
    /// Decode steps; 0 measures prefill alone
    #[arg(long, short = 'g', value_name = "N,N,...", value_delimiter = ',', default_value = "64")]
    r#gen: Vec<usize>,
    /// Runs of each case; the median counts
    #[arg(long, short = 'r', default_value = "3", value_name = "N")]
    repeat: NonZero<usize>,
    /// Do not measure the machine's bandwidth and peak
    #[arg(long)]
    no_roofline: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    /// Runs the cases and prints their figures.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let options = self.run.options()?;
        let cases = self.cases();
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, context)?;

        let longest = cases.iter().map(Case::len).max().unwrap_or(1);
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
                blocks: cases.iter().map(|c| c.batch * c.len().div_ceil(block_len)).max().unwrap_or(1),
                block_len,
                max_rows: STEP_ROWS.max(widest),
                max_seqs: widest,
                max_outputs: widest,
                max_len: longest,
            }
        };
        let Loaded { capacity, mut executor, backend, reason } = options.load(&model, capacity, context)?;
        timing::mark("weights packed, plan made");

        let mut bench = Bench::new(&mut *executor, capacity, model.program.vocab());
        let mut measured = vec![];
        for case in cases {
            if context.progress_line() {
                eprint!("\r\x1b[Kbatch {}, prompt {}, gen {} ...", case.batch, case.prompt, case.generated);
            }
            measured.push(bench.run(case, self.repeat.get())?);
        }
        if context.progress_line() {
            eprint!("\r\x1b[K");
        }
        let peak_memory = super::proc_status_bytes("VmHWM:");
        let memory = executor.memory();
        drop(executor); // its memory is not needed beside the probe's
        let types = backend.stored_types(&model)?;
        let roofline = match backend.kernels().filter(|_| !self.no_roofline) {
            None => None,
            Some(kernels) => Some(Roofline::measure(kernels, &types, options.threads)?),
        };
        let report = Report {
            model: &model.name,
            backend: &backend,
            reason: &reason,
            quant: options.quant_name(),
            threads: options.threads.get(),
            repeat: self.repeat.get(),
            types: &types,
            memory,
            peak_memory,
            roofline,
            rows: &measured,
        };
        match self.json {
            true => writeln!(context.out, "{}", report.json())?,
            false => report.table(context.out)?,
        }
        Ok(())
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

/// Rows of a step, as in the engine.
const STEP_ROWS: usize = 512;

const EXAMPLES: &str = "\
Examples:
  njoule bench                                          the default model
  njoule bench -m model.gguf --batch 1,4,16 --prompt 32 --gen 64 --threads 2
  njoule bench -m model.gguf --batch 1 --prompt 512 --gen 0 --json   prefill alone
  njoule bench random:synth-1b --quant int4             a published shape without a download

Bandwidth use (mbu) is weight and cache bytes per step, times steps per second, over the bandwidth
that a streaming read reaches with the same threads; roofline is the time that bandwidth and tile
peak allow, over the time taken. TTFT is the time until every sequence of the case has its first token.
";
