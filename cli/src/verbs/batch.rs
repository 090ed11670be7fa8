//! `njoule batch`: a file of requests in OpenAI's batch format, answered by a model in this process.
//!
//! Answers are the server's, without HTTP. Results come in the order of completion; a run that was interrupted goes on where
//! it stopped. stdout stays empty but for `--json`'s summary.

mod job;
mod lines;
mod output;
mod summary;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use njoule_server::local::{Answered, Local};
use njoule_server::{ModelParts, ServerConfig};

use self::job::{Job, Names, Refused};
use self::lines::Lines;
use self::output::Output;
use self::summary::Summary;
use super::Context;
use super::serve::{Defaults, EngineLost, OUTPUTS};
use crate::args::{ModelArgs, UsageError};
use crate::session::metering::MeteringArgs;
use crate::session::{Interrupt, Interrupted, Model, RunArgs, ScheduleArgs, Size};

/// Arguments of `batch`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Requests, one JSON object a line: custom_id, method, url, body; `-` for stdin
    #[arg(short, long, visible_alias = "input-file", value_name = "FILE")]
    input: PathBuf,
    /// Answers are appended here; what is answered there already is skipped
    #[arg(short, long, visible_alias = "output-file", value_name = "FILE")]
    output: PathBuf,
    /// Requests that failed in this run [default: the output's name with .errors before its ending]
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Name that requests ask for; may be repeated, answers carry the first [default: the model as it was named]
    #[arg(long, visible_alias = "alias", value_name = "NAME", num_args = 1..)]
    served_model_name: Vec<String>,
    /// Whether the model's generation_config.json sets sampling defaults
    #[arg(long, value_enum, default_value_t = Defaults::Auto, value_name = "SOURCE")]
    generation_config: Defaults,
    /// Choices of a request at most
    #[arg(long, value_name = "N", default_value = "8")]
    max_n: std::num::NonZero<usize>,
    /// Print one JSON object at the end: requests, tokens, time, energy
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    metering: MeteringArgs,
    #[command(flatten)]
    schedule: ScheduleArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    /// Answers what is not answered yet.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let started = Instant::now();
        let options = self.run.options()?.scheduled(self.schedule.read()?).metered(self.metering.wanted());
        let asked = self.model.resolve(&context.fetch.env)?;
        // The files come first: what is wrong with them is known before a model is loaded.
        let (input, bytes) = open(&self.input)?;
        let errors_path = self.errors.clone().unwrap_or_else(|| beside(&self.output));
        distinct(&self.input, &self.output, &errors_path)?;
        let mut done = Names::default();
        let output = Output::resume(&self.output, &mut done)?;
        // What failed before is tried again: the file is this run's alone.
        Output::discard(&errors_path)?;
        let interrupt = Interrupt::install()?;

        let model = Model::open(&asked, context)?;
        let loader = model.load_text();
        let sequences = options.sequences(usize::MAX);
        let max_len = model.max_len(options.context, 0, context);
        let size = Size { max_len, max_seqs: sequences, max_outputs: sequences.max(OUTPUTS) };
        let session = model.start(&options, size, context)?;
        let text = loader.require("batch cannot do without")?;
        let names = match self.served_model_name.is_empty() {
            true => vec![asked.to_string()],
            false => self.served_model_name.clone(),
        };
        let parts = ModelParts {
            engine: session.engine.clone(),
            eos: session.eos(Some(&text)),
            tokenizer: text.tokenizer.clone(),
            template: text.template.map(Arc::new),
            names,
            defaults: (self.generation_config == Defaults::Auto).then(|| session.checkpoint.generation.clone()),
            load: session.facts.load,
        };
        let local = Local::start(parts, ServerConfig { max_n: self.max_n.get(), ..ServerConfig::default() })?;

        let (sender, answers) = channel();
        let mut run = Run {
            local,
            sender,
            answers,
            output,
            errors: None,
            errors_path: &errors_path,
            done,
            seen: Names::default(),
            in_flight: 0,
            in_flight_bytes: 0,
            window: sequences.saturating_mul(2).saturating_add(SPARE),
            summary: Summary::default(),
            bar: bar(context, bytes),
        };
        let ended = run.all(Lines::new(input, MAX_LINE), &interrupt, context);
        let Run { local, mut output, errors, summary, bar, .. } = run;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let synced = output.sync().and_then(|()| errors.map_or(Ok(()), |mut errors| errors.sync()));
        let lost = local.is_lost();
        let (stats, reasons) = local.finish();
        let figures = summary.finish(started.elapsed(), &stats, reasons);
        let failed = figures.failed();
        if self.json {
            writeln!(context.out, "{}", figures.json(&session.facts, &self.output, &errors_path))?;
            context.out.flush()?;
        }
        if !context.quiet {
            eprintln!("{figures}");
        }
        ended?;
        synced?;
        match () {
            () if lost => Err(EngineLost.into()),
            () if interrupt.pressed() => Err(Interrupted.into()),
            () if failed > 0 => Err(anyhow!("{failed} requests failed; {} says why", errors_path.display())),
            () => Ok(()),
        }
    }
}

/// A batch that runs.
struct Run<'a> {
    local: Local,
    sender: Sender<Done>,
    answers: Receiver<Done>,
    output: Output,
    /// Made when the first request fails.
    errors: Option<Output>,
    errors_path: &'a Path,
    /// Answered by an earlier run, and not met in the input yet.
    done: Names,
    /// Met in the input.
    seen: Names,
    in_flight: usize,
    in_flight_bytes: usize,
    window: usize,
    summary: Summary,
    bar: Option<ProgressBar>,
}

/// A request that is answered.
struct Done {
    custom_id: String,
    /// Of its line.
    bytes: usize,
    answered: Answered,
}

impl Run<'_> {
    /// Reads, submits and writes until all is answered, the engine is lost, or Ctrl-C and the end of what runs.
    fn all(
        &mut self,
        mut lines: Lines<Box<dyn BufRead>>,
        interrupt: &Interrupt,
        context: &Context<'_>,
    ) -> anyhow::Result<()> {
        let (mut ended, mut told, mut read_error) = (false, false, None);
        loop {
            let full = |run: &Self| run.in_flight >= run.window || run.in_flight_bytes >= MAX_IN_FLIGHT_BYTES;
            while !ended && !full(self) && !interrupt.pressed() && !self.local.is_lost() {
                match lines.next() {
                    Ok(Some(line)) => self.take(line)?,
                    Ok(None) => ended = true,
                    // What is running is answered before it is reported.
                    Err(error) => (ended, read_error) = (true, Some(error)),
                }
            }
            if interrupt.pressed() && !std::mem::replace(&mut told, true) {
                context.note(&format!("{} requests still run; Ctrl-C again leaves them", self.in_flight));
            }
            if let Some(bar) = &self.bar {
                bar.set_position(lines.offset());
                bar.set_message(self.summary.progress());
            }
            if self.in_flight == 0 {
                break;
            }
            if let Ok(done) = self.answers.recv_timeout(POLL) {
                self.write(&done)?;
                while let Ok(done) = self.answers.try_recv() {
                    self.write(&done)?;
                }
            }
        }
        match read_error {
            Some(error) => Err(anyhow::Error::new(error).context("cannot read the input to its end")),
            None => Ok(()),
        }
    }

    fn take(&mut self, line: lines::Line<'_>) -> anyhow::Result<()> {
        let Some(bytes) = line.bytes else {
            let message = format!("the line is longer than {MAX_LINE} bytes");
            return self.refuse(line.number, &Refused { custom_id: None, code: "line_too_long", message });
        };
        if bytes.trim_ascii().is_empty() {
            return Ok(());
        }
        let job = match Job::read(bytes) {
            Ok(job) => job,
            Err(refused) => return self.refuse(line.number, &refused),
        };
        if !self.seen.insert(&job.custom_id) {
            let message = "an earlier line has the same custom_id".to_owned();
            let code = "duplicate_custom_id";
            return self.refuse(line.number, &Refused { custom_id: Some(job.custom_id), code, message });
        }
        if self.done.remove(&job.custom_id) {
            self.summary.skipped();
            return Ok(());
        }
        let (sender, size) = (self.sender.clone(), bytes.len());
        let Job { custom_id, url, body } = job;
        self.local.submit(url, body, move |answered| {
            // Nobody waits any more where the run has failed.
            let _ = sender.send(Done { custom_id, bytes: size, answered });
        });
        self.in_flight += 1;
        self.in_flight_bytes += size;
        Ok(())
    }

    fn write(&mut self, done: &Done) -> anyhow::Result<()> {
        self.in_flight -= 1;
        self.in_flight_bytes -= done.bytes;
        let record = output::answered(&done.custom_id, &done.answered);
        match done.answered.status {
            200 => self.output.append(&record)?,
            _ => self.errors()?.append(&record)?,
        }
        self.summary.answered(&done.answered);
        Ok(())
    }

    fn refuse(&mut self, line: u64, refused: &Refused) -> anyhow::Result<()> {
        self.summary.refused();
        Ok(self.errors()?.append(&output::refused(line, refused))?)
    }

    fn errors(&mut self) -> anyhow::Result<&mut Output> {
        if self.errors.is_none() {
            self.errors = Some(Output::create(self.errors_path)?);
        }
        self.errors.as_mut().context("no file of errors")
    }
}

fn open(path: &Path) -> anyhow::Result<(Box<dyn BufRead>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::new(std::io::stdin())), None));
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let bytes = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    Ok((Box::new(BufReader::with_capacity(BUFFER, file)), bytes))
}

/// `out.errors.jsonl` of `out.jsonl`.
fn beside(output: &Path) -> PathBuf {
    match output.extension() {
        Some(end) => output.with_extension(format!("errors.{}", end.to_string_lossy())),
        None => output.with_extension("errors"),
    }
}

/// One file cannot be read and written.
fn distinct(input: &Path, output: &Path, errors: &Path) -> anyhow::Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (input, output, errors) = (real(input), real(output), real(errors));
    if input == output || input == errors || output == errors {
        return Err(UsageError("input, output and errors must be three different files".into()).into());
    }
    Ok(())
}

fn bar(context: &Context<'_>, bytes: Option<u64>) -> Option<ProgressBar> {
    if !context.progress_line() {
        return None;
    }
    let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr());
    let template = if bytes.is_some() { WITH_TOTAL } else { WITHOUT_TOTAL };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    Some(bar)
}

/// Requests in flight beyond those that run: what is read and tokenised ahead.
const SPARE: usize = 8;
/// Bytes of a line, as of a body that the server takes.
const MAX_LINE: usize = 8 << 20;
/// Bytes of lines in flight, of which one may exceed it alone.
const MAX_IN_FLIGHT_BYTES: usize = 64 << 20;
const BUFFER: usize = 256 << 10;
const POLL: Duration = Duration::from_millis(50);
const WITH_TOTAL: &str = "{bar:32} {percent:>3} % {msg} {eta}";
const WITHOUT_TOTAL: &str = "{spinner} {bytes} {msg}";

const EXAMPLES: &str = "\
Examples:
  njoule batch -i requests.jsonl -o answers.jsonl
  njoule batch -i requests.jsonl -o answers.jsonl model.gguf --served-model-name gpt-4o-mini --json

A line of the input is {\"custom_id\": \"1\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {...}}; the
urls /v1/completions and /v1/messages are answered too. Run again, it goes on with what has no answer yet: after
Ctrl-C (which lets running requests finish), a crash, or errors that were mended.
Exit codes: 0 all answered, 1 some failed, 70 the engine was lost, 130 stopped by Ctrl-C.
";
