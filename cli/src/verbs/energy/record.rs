//! `njoule energy record`: one report of the time that a command takes, or of some seconds.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use njoule_energy::load::{children_cpu_s, own_cpu_s};
use njoule_energy::report::{self, Client, Work};
use serde_json::Value;

use super::Required;
use super::subject::MeterArgs;
use super::watch::{seconds, utilisation, wait};
use crate::session::{Interrupt, Interrupted};
use crate::verbs::Context;
use crate::verbs::whole::LineFile;

/// Arguments of `energy record`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    meters: MeterArgs,
    /// Record this long, without a command
    #[arg(long, value_name = "SECONDS", conflicts_with = "command", value_parser = seconds)]
    seconds: Option<f64>,
    /// Measure the machine with nothing to do for this long first: watts of the idle baseline
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    idle: Option<f64>,
    /// Tokens that the command generates, for joules per token
    #[arg(long, value_name = "N")]
    output_tokens: Option<u64>,
    /// Prompt tokens that it computes
    #[arg(long, value_name = "N")]
    input_tokens: Option<u64>,
    /// Requests that it makes
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// A name for the run
    #[arg(long, value_name = "NAME", default_value = "record")]
    run: String,
    /// Print the report as one JSON object to stdout, after the command's own output
    #[arg(long)]
    json: bool,
    /// Write the report to a file as JSON
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Fail where the energy is unknown or weaker
    #[arg(long, value_name = "METHOD", value_enum)]
    require_energy: Option<Required>,
    /// The command and its arguments, behind --
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// The recorded command ended with this code.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the command ended with code {0}")]
pub struct CommandEnded(pub u8);

impl Args {
    /// Records.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        // Before the work, so that an hour of it is not lost on a wrong path.
        let file = self.output.as_deref().map(open).transpose()?;
        let source = self.meters.open()?;
        let interrupt = Interrupt::install()?;
        let subject = &self.meters.meter;
        let idle_w = self.idle.and_then(|seconds| source.idle_w(seconds, subject, &interrupt));
        if interrupt.pressed() {
            return Err(Interrupted.into());
        }
        let own = own_cpu_s();
        let children = children_cpu_s();
        let mark = source.mark();
        let status = match self.command.split_first() {
            Some((program, args)) => {
                let shown = program.to_string_lossy();
                let child = Command::new(program).args(args).spawn();
                let mut child = child.with_context(|| format!("{shown}: cannot be started"))?;
                // Ctrl-C reaches the command as well: its end is waited for, and reported.
                Some(child.wait().with_context(|| format!("{shown}: cannot be waited for"))?)
            }
            None => {
                wait(self.seconds.map_or(Duration::from_secs(u64::MAX >> 20), Duration::from_secs_f64), &interrupt);
                None
            }
        };
        let code = status.map(code);
        let client = Client {
            command_cpu_s: status.and_then(|_| Some(children_cpu_s()? - children?)),
            own_cpu_s: Some(own_cpu_s() - own),
            exit_code: code.map(i32::from),
        };
        let work = Work {
            requests: self.requests,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            ..Work::default()
        };
        let report = source.since(&mark, &self.run, subject, |report| {
            (report.client, report.work, report.idle_baseline_w) = (client, work.clone(), idle_w);
        });
        self.give(&report, file, context)?;
        match code {
            Some(code) if code != 0 => Err(CommandEnded(code).into()),
            _ => self.require_energy.map_or(Ok(()), |required| required.check(&report)),
        }
    }

    fn give(&self, report: &Value, file: Option<File>, context: &mut Context<'_>) -> anyhow::Result<()> {
        if let Some((path, file)) = self.output.as_deref().zip(file) {
            write(file, report).with_context(|| format!("{}: cannot write", path.display()))?;
        }
        if self.json {
            writeln!(context.out, "{report}")?;
        } else if !context.quiet {
            // stdout belongs to the command.
            let cpu = report["client"]["command_cpu_s"].as_f64();
            let cpu = cpu.map_or_else(String::new, |s| format!(" | command: {s:.2} CPU-s"));
            eprintln!("{}{}{cpu}", report::text(report), utilisation(report));
        }
        Ok(())
    }
}

/// Opens a report's file; what it holds stays until there is something in its place.
fn open(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    file.with_context(|| format!("{}: cannot write", path.display()))
}

fn write(file: File, report: &Value) -> std::io::Result<()> {
    let mut file = LineFile::new(file);
    // A pipe or a terminal has no length.
    if file.file().metadata()?.is_file() {
        file.begin(Some(0))?;
    }
    file.append(format!("{report}\n").as_bytes())
}

/// As a shell has it: the exit code, or 128 and the signal.
fn code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        if let Some(signal) = status.signal() {
            return u8::try_from(128 + signal).unwrap_or(u8::MAX);
        }
    }
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
