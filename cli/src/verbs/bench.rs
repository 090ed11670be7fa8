//! `njoule bench`: speed and energy of a model on this machine, or of any server that speaks OpenAI's interface.
//!
//! Without `--endpoint` cases run straight on the executor (`sweep`), with it by clients over HTTP (`load`). Both give reports
//! of the form `njoule.energy/1`, one per case, phase and repeat (`record`), which `compare` and `plot` read.

mod blocks;
pub mod case;
mod client;
mod compare;
mod identity;
mod interval;
mod lines;
mod load;
pub mod measure;
pub mod plot;
pub mod record;
mod reports;
mod roofline;
mod steps;
pub mod sweep;
mod table;

pub use self::compare::Compared;
use super::Context;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    sweep: sweep::SweepArgs,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Say which of two runs spends less energy per token, with an interval; exit code 0 no difference, 10 the second, 11 the first, 12 not comparable.
    Compare(compare::Args),
    /// Draw reports: tokens per joule against batch and latency, energy by phase, distance to the physical bound.
    Plot(plot::Args),
}

impl Args {
    /// Does it.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        match self.what {
            Some(What::Compare(args)) => args.run(context),
            Some(What::Plot(args)) => args.run(context),
            None => self.sweep.run(context),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  njoule bench                                          the default model
  njoule bench -m model.gguf --batch 1,4,16 --prompt 32 --gen 64 --threads 2
  njoule bench -m model.gguf --batch 1 --prompt 512 --gen 0 --json   prefill alone
  njoule bench random:synth-1b --quant int4             a published shape without a download
  njoule bench --report a.jsonl --html a.html --csv a.csv            energy, latency, plots
  njoule bench --endpoint http://127.0.0.1:8000 --batch 1,8 --prompt 96 --gen 64 --meter pid:4242
  njoule bench --endpoint http://127.0.0.1:8080 --workload chat --rate 2 --report b.jsonl -- llama-server -m model.gguf
  njoule bench compare a.jsonl b.jsonl                  exit code 10: b spends less per token

Bandwidth use (mbu) is weight and cache bytes per step, times steps per second, over the bandwidth
that a streaming read reaches with the same threads; roofline is the time that bandwidth and tile
peak allow, over the time taken. TTFT is the time until every sequence of the case has its first token.
Reports have the form njoule.energy/1 (`njoule energy schema`), a line each; joules that no meter gives are null.
";
