//! `njoule batch`: a file of requests in OpenAI's batch format, answered by a model in this process.
//!
//! Answers are the server's, without HTTP. Results come in the order of completion; a run that was interrupted goes on where
//! it stopped. stdout stays empty but for `--json`'s summary.
//!
//! Invariant: no file is changed before the model is loaded, and none that is not ours.

mod job;
mod lines;
mod output;
mod reader;
mod summary;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use njoule_server::local::{Answered, Local};
use njoule_server::{ModelParts, ServerConfig};

use self::job::{Job, Names, Refused};
use self::output::Output;
use self::reader::{Input, Line, Reader};
use self::summary::Summary;
use super::Context;
use super::serve::{Defaults, EngineLost, OUTPUTS};
use crate::args::{ModelArgs, UsageError};
use crate::session::metering::{self, EnergyWaitArgs, MeteringArgs};
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
    /// Name that requests ask for; several by commas or blanks, answers carry the first [default: the model as it was named]
    #[arg(long, visible_alias = "alias", value_name = "NAME", num_args = 1.., value_delimiter = ',')]
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
    energy_wait: EnergyWaitArgs,
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
        let mut output = Output::resume(&self.output, &mut done)?;
        // Once more: a link to what was not there has led nowhere.
        distinct(&self.input, &self.output, &errors_path)?;
        // What failed before is tried again: the file is this run's alone.
        let mut errors = Output::anew(&errors_path)?;

        let model = Model::open(&asked, context)?;
        let loader = model.load_text();
        let sequences = options.sequences(usize::MAX);
        let max_len = model.max_len(options.context, 0, context)?;
        let size = Size { max_len, max_seqs: sequences, max_outputs: sequences.max(OUTPUTS) };
        let session = model.start(&options, size, context)?;
        // Until here nothing is to be finished, and a build that it waited for has its own end by Ctrl-C.
        let interrupt = Interrupt::install()?;
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
            compile: session.facts.compile,
            seed: None,
        };
        let local = Local::start(parts, ServerConfig { max_n: self.max_n.get(), ..ServerConfig::default() })?;

        let (sender, events) = channel();
        let lines = sender.clone();
        let reader = Reader::start(input, MAX_LINE, move |input| lines.send(Event::Input(input)).is_ok())?;
        output.begin()?;
        errors.begin()?;
        let mut run = Run {
            local,
            reader,
            sender,
            events,
            output,
            errors,
            done,
            seen: Names::default(),
            in_flight: 0,
            in_flight_bytes: 0,
            window: sequences.saturating_mul(2).saturating_add(SPARE),
            summary: Summary::default(),
            bar: bar(context, bytes),
        };
        let ended = run.all(&interrupt, context);
        let Run { local, mut output, mut errors, summary, bar, .. } = run;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let synced = output.sync().and_then(|()| errors.sync());
        drop(errors);
        let times = summary.times(started);
        // Who ends it by Ctrl-C or an error is not kept.
        if matches!(ended, Ok(true)) {
            let expects = self.metering.neuron_watts.is_some();
            metering::wait(&session.engine, self.energy_wait.patience(expects), &interrupt, context);
        }
        let lost = local.is_lost();
        let (stats, reasons) = local.finish();
        let figures = summary.finish(times, &stats, reasons);
        let failed = figures.failed();
        if self.json {
            writeln!(context.out, "{}", figures.json(&session.facts_now(), &self.output, &errors_path))?;
            context.out.flush()?;
        }
        if !context.quiet {
            eprintln!("{figures}");
        }
        let complete = ended?;
        synced?;
        match () {
            () if lost => Err(EngineLost.into()),
            () if !complete => Err(Interrupted.into()),
            () if failed > 0 => Err(anyhow!("{failed} requests failed; {} says why", errors_path.display())),
            () => Ok(()),
        }
    }
}

/// A batch that runs.
struct Run {
    local: Local,
    reader: Reader,
    sender: Sender<Event>,
    events: Receiver<Event>,
    output: Output,
    errors: Output,
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

/// What a run waits for.
enum Event {
    Input(Input),
    Answered(Done),
}

/// A request that is answered.
struct Done {
    custom_id: String,
    /// Of its line.
    bytes: usize,
    answered: Answered,
}

impl Run {
    /// Reads, submits and writes until all is answered, the engine is lost, or Ctrl-C and the end of what runs. False if Ctrl-C
    /// has left lines unanswered.
    fn all(&mut self, interrupt: &Interrupt, context: &Context<'_>) -> anyhow::Result<bool> {
        let (mut told, mut left, mut read_error) = (false, false, None);
        // When the last request was answered after a stop.
        let mut idle_since: Option<Instant> = None;
        loop {
            let stopped = interrupt.pressed() || self.local.is_lost();
            while !stopped && !self.is_full() && self.reader.ask(AHEAD) {}
            if interrupt.pressed() && !std::mem::replace(&mut told, true) {
                context.note(&format!("{} requests still run; Ctrl-C again leaves them", self.in_flight));
            }
            if let Some(bar) = &self.bar {
                bar.set_message(self.summary.progress());
            }
            if self.in_flight == 0 {
                if self.reader.ended() || self.local.is_lost() || left {
                    break;
                }
                if stopped {
                    // Whether that was all, the next line says, unless it is long in coming.
                    if idle_since.get_or_insert_with(Instant::now).elapsed() > LAST_LOOK {
                        left = true;
                        break;
                    }
                    self.reader.ask(1);
                }
            }
            let Ok(mut event) = self.events.recv_timeout(POLL) else { continue };
            loop {
                match event {
                    Event::Answered(done) => self.write(&done)?,
                    Event::Input(input) => {
                        self.reader.came(&input);
                        match input {
                            Input::Line(line) if stopped => left |= !line.is_blank(),
                            Input::Line(line) => self.take(&line)?,
                            Input::End => {}
                            // What is running is answered before it is reported.
                            Input::Failed(error) => read_error = Some(error),
                        }
                    }
                }
                match self.events.try_recv() {
                    Ok(next) => event = next,
                    Err(_) => break,
                }
            }
        }
        match read_error {
            Some(error) => Err(anyhow::Error::new(error).context("cannot read the input to its end")),
            None => Ok(!left),
        }
    }

    /// Whether no more lines are to be read now.
    fn is_full(&self) -> bool {
        self.in_flight + self.reader.asked() >= self.window || self.in_flight_bytes >= MAX_IN_FLIGHT_BYTES
    }

    fn take(&mut self, line: &Line) -> anyhow::Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_position(line.offset);
        }
        let Some(bytes) = &line.bytes else {
            let message = format!("the line is longer than {MAX_LINE} bytes");
            return self.refuse(line.number, &Refused { custom_id: None, code: "line_too_long", message });
        };
        if line.is_blank() {
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
            let _ = sender.send(Event::Answered(Done { custom_id, bytes: size, answered }));
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
            _ => self.errors.append(&record)?,
        }
        self.summary.answered(&done.answered);
        Ok(())
    }

    fn refuse(&mut self, line: u64, refused: &Refused) -> anyhow::Result<()> {
        self.summary.refused();
        Ok(self.errors.append(&output::refused(line, refused))?)
    }
}

fn open(path: &Path) -> anyhow::Result<(Box<dyn BufRead + Send>, Option<u64>)> {
    if path == Path::new(STDIN) {
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

/// One file cannot be read and written, by whatever names it goes.
fn distinct(input: &Path, output: &Path, errors: &Path) -> anyhow::Result<()> {
    if output == Path::new(STDIN) || errors == Path::new(STDIN) {
        return Err(UsageError("answers and errors go to files, not to `-`".into()).into());
    }
    let (input, output, errors) = (Place::of(input), Place::of(output), Place::of(errors));
    if input == output || input == errors || output == errors {
        return Err(UsageError("input, output and errors must be three different files".into()).into());
    }
    Ok(())
}

/// What a path leads to.
#[derive(PartialEq, Eq)]
enum Place {
    /// A file by its device and number.
    There(u64, u64),
    /// Where one would be made.
    NotYet(PathBuf),
}

impl Place {
    fn of(path: &Path) -> Place {
        let path = if path == Path::new(STDIN) { Path::new("/dev/stdin") } else { path };
        if let Ok(metadata) = std::fs::metadata(path) {
            return Place::There(metadata.dev(), metadata.ino());
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match (parent.canonicalize(), path.file_name()) {
            (Ok(parent), Some(name)) => Place::NotYet(parent.join(name)),
            _ => Place::NotYet(path.to_owned()),
        }
    }
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

/// The input that is stdin.
const STDIN: &str = "-";
/// Lines that are read ahead of those in flight; they may have [`MAX_LINE`] bytes each.
const AHEAD: usize = 8;
/// How long the line that says whether an input had another one is waited for.
const LAST_LOOK: Duration = Duration::from_millis(250);
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
Exit codes: 0 all answered, 1 some failed, 70 the engine was lost, 130 stopped by Ctrl-C with requests left.
";
