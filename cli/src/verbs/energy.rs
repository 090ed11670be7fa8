//! `njoule energy`: an instrument for anybody's script.
//!
//! `watch` and `record` read this machine's meters or an agent's (`--meter URL`), `serve` is that agent, `calibrate` finds
//! watts of a Neuron device. What is unknown is null with its reason and no failure, unless `--require-energy` asks for more.

mod agent;
mod calibrate;
pub mod place;
pub mod polled;
mod record;
pub mod subject;
mod watch;

use anyhow::bail;
use njoule_energy::Method;
use serde_json::Value;

pub use self::record::CommandEnded;
pub use self::watch::seconds;
use super::Context;

/// Arguments of `energy`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print the energy of every interval.
    Watch(watch::Args),
    /// The energy while a command runs, or for some seconds, as one report.
    Record(record::Args),
    /// Let other programs and machines ask for this machine's energy, over HTTP.
    Serve(agent::Args),
    /// Find watts of this machine's Neuron devices by a meter outside.
    Calibrate(calibrate::Args),
    /// Print the JSON Schema of reports.
    Schema,
}

impl Args {
    /// Does it.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        match self.what {
            What::Watch(args) => args.run(context),
            What::Record(args) => args.run(context),
            What::Serve(args) => args.run(context),
            What::Calibrate(args) => args.run(context),
            What::Schema => Ok(write!(context.out, "{}", njoule_energy::report::JSON_SCHEMA)?),
        }
    }
}

/// How good a figure must be.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Required {
    /// A sensor's.
    Measured,
    /// Or the hardware's own model.
    HardwareModel,
    /// Or measured times declared constants.
    Derived,
    /// Or estimated: anything but unknown.
    Estimated,
}

impl Required {
    /// Fails if a report's energy is unknown or weaker.
    pub fn check(self, report: &Value) -> anyhow::Result<()> {
        let weakest = match self {
            Required::Measured => Method::Measured,
            Required::HardwareModel => Method::HardwareModel,
            Required::Derived => Method::Derived,
            Required::Estimated => Method::Estimated,
        };
        let method: Option<Method> = serde_json::from_value(report["energy"]["method"].clone()).ok();
        match method {
            Some(method) if method <= weakest => Ok(()),
            Some(method) => bail!("the energy is {}, --require-energy {} was asked for", method.name(), weakest.name()),
            None => bail!("the energy is unknown, --require-energy {} was asked for", weakest.name()),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  njoule energy watch                            this machine, once a second
  njoule energy record -- ./benchmark.sh         the energy while a command runs; its exit code
  njoule energy record --json -o run.json -- ./benchmark.sh
  njoule energy record --meter pid:4242 --seconds 60      a share by CPU time
  njoule energy serve --host 0.0.0.0             on the machine that serves a model; then, elsewhere:
  njoule energy record --meter http://SERVER:9788 -- ./client.sh
  njoule energy watch --feed csv:pdu.csv         a wall meter that appends lines t_unix_s,joules
  njoule energy calibrate --feed csv:pdu.csv --minutes 60
";
