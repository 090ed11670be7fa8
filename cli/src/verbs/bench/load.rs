//! `njoule bench --endpoint URL`: a load on any server that speaks OpenAI's interface, njoule's, vLLM's or llama.cpp's.
//!
//! The same requests for every server: prompts are made of words from `--seed`, answers have a fixed length and are greedy,
//! so their hash tells whether two servers said the same. Energy and CPU time are the server's if `--meter` says whose they are
//! (of a server that is started here: its process); the clients' own CPU time stands apart.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use njoule_energy::load::{Part, own_cpu_s};
use njoule_energy::report::Work;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::case::{Case, until_steady};
use super::client::{Answer, Asked, Endpoint, List, digest};
use super::lines::{Lines, NESTED};
use super::measure::{MeasureArgs, Metered};
use super::record::{self, Run, percentile};
use super::sweep::{NEURON_SECONDS, too_short};
use crate::args::UsageError;
use crate::verbs::Context;
use crate::verbs::energy::subject::Subject;

mod laps;
mod prompts;
mod steady;

use self::laps::Laps;

/// Arguments about a server and what is sent to it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A server")]
pub struct LoadArgs {
    /// Measure the server at this address (http://HOST:PORT) instead of a model in this process
    #[arg(long, value_name = "URL", conflicts_with_all = ["RunArgs", "no_roofline"])]
    pub endpoint: Option<String>,
    /// What is sent
    #[arg(long, value_enum, default_value_t, requires = "endpoint")]
    workload: Workload,
    /// Requests of a case: of each client, or of all with --workload chat and prompts [default: 4, 64, all prompts]
    #[arg(long, value_name = "N", requires = "endpoint")]
    requests: Option<std::num::NonZero<usize>>,
    /// Requests that arrive per second, with --workload chat
    #[arg(long, value_name = "RATE", default_value = "1", value_parser = rate, requires = "endpoint")]
    rate: f64,
    /// Words that all prompts begin with, with --workload shared-prefix
    #[arg(long, value_name = "N", default_value = "256", requires = "endpoint")]
    shared: usize,
    /// A file of prompts for --workload prompts: lines of text, or of JSON objects with "prompt" and, if wanted, "max_tokens"
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    prompts: Option<PathBuf>,
    /// What prompts and arrivals are made from
    #[arg(long, value_name = "N", default_value = "1", requires = "endpoint")]
    seed: u64,
    /// The key that the server asks for
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Write a line for every request: JSON, or CSV if the file's name ends in .csv
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    request_log: Option<PathBuf>,
    /// Start this server, wait until it answers at the endpoint, measure its process, and end it
    #[arg(last = true, value_name = "SERVER", requires = "endpoint")]
    server: Vec<std::ffi::OsString>,
}

/// `--workload`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Workload {
    /// Clients that each send their next request when the last is answered; no prompt comes twice
    #[default]
    Closed,
    /// The same, and all prompts begin alike
    SharedPrefix,
    /// Lengths of a published conversation trace, at most --prompt words and --gen tokens, arriving at random times
    Chat,
    /// A file of prompts
    Prompts,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Workload::Closed => "closed",
            Workload::SharedPrefix => "shared-prefix",
            Workload::Chat => "chat",
            Workload::Prompts => "prompts",
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|r: &f64| *r >= 1e-3 && *r <= 1e6);
    rate.ok_or_else(|| format!("{text:?} is no number of requests per second from 0.001 to 1000000"))
}

/// What `bench`'s own flags say.
pub struct Wanted<'a> {
    /// The model's name.
    pub name: Option<&'a str>,
    /// Clients, words and tokens.
    pub cases: &'a [Case],
    /// Repeats of each.
    pub repeat: usize,
    /// Whether to print JSON.
    pub json: bool,
    /// Seconds that a run of a case lasts at least.
    pub least: Duration,
    /// Seconds in which the idle server is measured first.
    pub idle: Option<f64>,
}

impl LoadArgs {
    /// Runs all cases against the server.
    pub fn run(
        &self,
        url: &str,
        wanted: &Wanted<'_>,
        measure: &MeasureArgs,
        context: &mut Context<'_>,
    ) -> anyhow::Result<()> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(UsageError(format!("--endpoint {url}: an address begins with http:// or https://")).into());
        }
        if (self.workload == Workload::Prompts) != self.prompts.is_some() {
            return Err(UsageError("--workload prompts and --prompts FILE go together".to_owned()).into());
        }
        if wanted.cases.iter().any(|case| case.generated == 0) {
            return Err(UsageError("--gen 0: a server answers at least one token".to_owned()).into());
        }
        let texts = self.prompts.as_deref().map(prompts::read).transpose()?;
        let outputs = measure.outputs()?;
        let mut log = self.request_log.as_deref().map(Lines::make).transpose()?;
        let mut endpoint = Endpoint::new(url, wanted.name, self.api_key.clone());
        let server = self.start(&endpoint)?;
        let mut metered = match &server {
            Some(server) => measure.open(Subject::Part(Part::Process(server.0.id())))?,
            None => measure.open_for(url)?,
        };
        if wanted.least.as_secs_f64() < NEURON_SECONDS && metered.source.has_devices() {
            return Err(too_short().into());
        }
        let name = endpoint.model().map_err(anyhow::Error::msg)?;
        let model = record::model(&[("id", json!(name)), ("endpoint", json!(url))]);

        metered.idle(wanted.idle, context)?;
        // The first requests find the server cold, and no figure is about that.
        let mut warmups = vec![];
        for case in wanted.cases {
            if context.progress_line() {
                eprint!("\r\x1b[Kwarming up {} clients ...", case.batch);
            }
            warmups.push(self.warm_up(&endpoint, *case).map_err(|error| anyhow::anyhow!("{url}: {error}"))?);
        }
        let (mut reports, mut failed, mut first_failure) = (vec![], 0, None);
        for round in 0..wanted.repeat {
            let mut order: Vec<usize> = (0..wanted.cases.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let case = wanted.cases[at];
                if context.progress_line() {
                    eprint!("\r\x1b[K{} clients, run {} of {} ...", case.batch, round + 1, wanted.repeat);
                }
                let plan = |lap| self.plan(case, (round, lap), wanted.least, texts.as_deref());
                let run = Run { repeat: round, warmup: Some(warmups[at]), ..self.run_of(case) };
                let times = Times { least: wanted.least, traced: wanted.repeat == 1 };
                let (report, answers) = self.measure(&endpoint, &metered, case, run, times, &plan, &model);
                for (number, answer) in answers.iter().enumerate() {
                    if let Err(error) = answer {
                        failed += 1;
                        first_failure.get_or_insert_with(|| error.clone());
                    }
                    if let Some(log) = &mut log {
                        line(log, &report, number, answer)?;
                    }
                }
                reports.push(report);
            }
        }
        if context.progress_line() {
            eprint!("\r\x1b[K");
        }
        drop(server);
        log.map_or(Ok(()), Lines::finish)?;
        record::finish(&mut reports, None);
        match wanted.json {
            true => writeln!(context.out, "{}", json!({"model": model, "runs": reports}))?,
            false => table(&name, &reports, context)?,
        }
        outputs.write(&reports)?;
        match first_failure {
            Some(reason) => bail!("{failed} requests failed, the first with: {reason}"),
            None => Ok(()),
        }
    }

    /// Runs a short form of `case` until two runs take equally long, as the executor's cases are warmed up.
    fn warm_up(&self, endpoint: &Endpoint, case: Case) -> Result<(usize, f64), String> {
        let short = case.generated.min(WARM_UP);
        until_steady(|run| {
            // Prompts of its own: what is measured later must not find them in a cache.
            let seed = prompts::mix(self.seed, &[usize::MAX, run, case.batch, case.prompt]);
            let asked = prompts::closed(seed, case.batch, 0, case.prompt, short);
            let start = Instant::now();
            let answers = endpoint.run(&List::of(&asked, &AtomicU64::new(0)), case.batch, start);
            let wall_s = start.elapsed().as_secs_f64();
            answers.into_iter().find_map(Result::err).map_or(Ok(wall_s), Err)
        })
    }

    /// What is the same in all repeats of a case.
    fn run_of(&self, case: Case) -> Run {
        Run {
            workload: self.workload.name(),
            seed: self.seed,
            concurrency: case.batch,
            prompt: case.prompt,
            generated: case.generated,
            ..Run::default()
        }
    }

    fn plan(
        &self,
        case: Case,
        (round, lap): (usize, usize),
        least: Duration,
        texts: Option<&[(String, Option<usize>)]>,
    ) -> Vec<Asked> {
        // Cases, repeats and laps must not find each other's prompts in a cache.
        let seed = match lap {
            0 => prompts::mix(self.seed, &[round, case.batch, case.prompt, case.generated]),
            lap => prompts::mix(self.seed, &[round, case.batch, case.prompt, case.generated, lap]),
        };
        let requests = self.requests.map(std::num::NonZero::get);
        // Those that arrive by the clock arrive for long enough.
        let arriving = requests.unwrap_or(64).max((self.rate * least.as_secs_f64()).ceil() as usize);
        match (self.workload, texts) {
            (Workload::Prompts, Some(texts)) => texts
                .iter()
                .cycle()
                .take(requests.unwrap_or(texts.len()))
                .map(|(text, tokens)| Asked {
                    prompt: text.clone(),
                    tokens: tokens.unwrap_or(case.generated),
                    at: None,
                })
                .collect(),
            (Workload::Chat, _) => prompts::trace(seed, arriving, self.rate, case.prompt, case.generated),
            (Workload::SharedPrefix, _) => {
                prompts::closed(seed, case.batch * requests.unwrap_or(4), self.shared, case.prompt, case.generated)
            }
            (Workload::Closed | Workload::Prompts, _) => {
                prompts::closed(seed, case.batch * requests.unwrap_or(4), 0, case.prompt, case.generated)
            }
        }
    }

    /// Lap after lap for at least `least`.
    #[allow(clippy::too_many_arguments)]
    fn measure(
        &self,
        endpoint: &Endpoint,
        metered: &Metered,
        case: Case,
        run: Run,
        Times { least, traced }: Times,
        plan: &(dyn Fn(usize) -> Vec<Asked> + Sync),
        model: &Value,
    ) -> (Value, Vec<Result<Answer, String>>) {
        let own = own_cpu_s();
        let first = plan(0);
        let first_lap = first.len();
        let pieces = Arc::new(AtomicU64::new(0));
        let mark = metered.source.mark();
        if traced {
            metered.source.trace(&mark, &pieces);
        }
        let start = Instant::now();
        let (answers, window) = if self.workload == Workload::Chat {
            let answers = arriving(endpoint, first, plan, (start, least), &pieces);
            (answers, Err("requests arrive by the clock: no number of them is under way all the time".to_owned()))
        } else {
            let clients = case.batch.min(first_lap);
            let (edges, seen) = channel();
            let laps = Laps::new((plan, first), clients, (start, least), &pieces, edges);
            std::thread::scope(|scope| {
                let window = scope.spawn(move || steady::observe(&seen, metered));
                let answers = endpoint.run(&laps, clients, start);
                // Its sender ends with it: nobody waits for an edge that does not come.
                drop(laps);
                (answers, window.join().unwrap_or_else(|_| Err("reading the meters failed".to_owned())))
            })
        };
        let wall_s = start.elapsed().as_secs_f64();
        let client_cpu_s = own_cpu_s() - own;
        let good: Vec<&Answer> = answers.iter().flatten().collect();
        let sum = |count: &dyn Fn(&Answer) -> u64| Some(good.iter().map(|answer| count(answer)).sum());
        let cached: Option<u64> = good.iter().map(|answer| answer.cached_tokens).sum();
        let input: u64 = good.iter().map(|answer| answer.input_tokens).sum();
        let work = Work {
            requests: Some(good.len() as u64),
            concurrency: Some(case.batch as u64),
            input_tokens: Some(input.saturating_sub(cached.unwrap_or(0))),
            cached_input_tokens: cached,
            output_tokens: sum(&|answer| answer.output_tokens),
            aborted_requests: Some((answers.len() - good.len()) as u64),
            ..Work::default()
        };
        let sorted = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values
        };
        let run = Run {
            work,
            client_cpu_s: Some(client_cpu_s),
            // Little's law: requests under way on average.
            mean_running: Some(good.iter().map(|answer| answer.seconds).sum::<f64>() / wall_s)
                .filter(|n| n.is_finite()),
            ttft: sorted(good.iter().map(|answer| answer.ttft_s).collect()),
            itl: sorted(good.iter().filter_map(|answer| answer.itl_s).collect()),
            // Every repeat has prompts of its own: what they answer is compared between servers, not among them.
            // How many laps there is time for is no answer.
            output_sha256: Some(digest(answers[..first_lap.min(answers.len())].iter().flatten())),
            blocks: traced.then(|| metered.source.traced()),
            counted: Some(pieces.load(Ordering::Relaxed)),
            ..run
        };
        let mut report = record::of(metered, &mark, &run, model);
        let clients = case.batch.min(first_lap);
        (report["steady"], report["steady_reason"]) = match window {
            Ok(span) => (steady::json(span, start, clients, metered, &answers), Value::Null),
            Err(reason) => (Value::Null, json!(reason)),
        };
        (report, answers)
    }

    /// Starts the server that was named, and waits until it answers.
    fn start(&self, endpoint: &Endpoint) -> anyhow::Result<Option<Server>> {
        let Some((program, args)) = self.server.split_first() else { return Ok(None) };
        let shown = program.to_string_lossy();
        if endpoint.is_up() {
            bail!("something answers at the endpoint already: it would be measured in the place of {shown}");
        }
        let child = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut server = Server(child.with_context(|| format!("{shown}: cannot be started"))?);
        // Its last words, should it end; what it says meanwhile is read, so that it never waits for a reader.
        let (sender, said) = channel();
        if let Some(stderr) = server.0.stderr.take() {
            std::thread::spawn(move || {
                BufReader::new(stderr).lines().map_while(Result::ok).for_each(|l| drop(sender.send(l)))
            });
        }
        let (start, mut last) = (Instant::now(), String::new());
        while !endpoint.is_up() {
            match said.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => last = line,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if let Some(status) = server.0.try_wait().context("cannot ask for the server's state")? {
                last = said.try_iter().last().unwrap_or(last);
                bail!("{shown} ended ({status}) before it answered: {last}");
            }
            if start.elapsed() > START {
                bail!("{shown} did not answer at the endpoint within {} s; it last said: {last}", START.as_secs());
            }
        }
        Ok(Some(server))
    }
}

/// How long a run lasts at least, and whether its course is kept.
#[derive(Clone, Copy)]
struct Times {
    least: Duration,
    traced: bool,
}

/// Requests that arrive by the clock, which wait for nobody: lap after lap for at least `least`.
fn arriving(
    endpoint: &Endpoint,
    first: Vec<Asked>,
    plan: &(dyn Fn(usize) -> Vec<Asked> + Sync),
    (start, least): (Instant, Duration),
    pieces: &AtomicU64,
) -> Vec<Result<Answer, String>> {
    let mut answers: Vec<Result<Answer, String>> = vec![];
    let mut next = first;
    for lap in 1.. {
        let begun = Instant::now();
        let mut more = endpoint.run(&List::of(&next, pieces), next.len().min(MOST_CLIENTS), begun);
        let before = (begun - start).as_secs_f64();
        more.iter_mut().flatten().for_each(|answer| answer.later(before));
        let none_good = more.iter().all(Result::is_err);
        answers.append(&mut more);
        if start.elapsed() >= least || none_good {
            break;
        }
        next = plan(lap);
    }
    answers
}

/// A server's process; it ends with the value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Asked first: it may have processes of its own to end.
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok()) {
            let start = Instant::now();
            while start.elapsed() < END && matches!(self.0.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn line(log: &mut Lines, report: &Value, number: usize, answer: &Result<Answer, String>) -> anyhow::Result<()> {
    let id = format!("{}/{number}", report["run_id"].as_str().unwrap_or_default());
    let good = answer.as_ref().ok();
    let energy = good.map_or(Value::Null, |answer| answer.energy.clone());
    let of = |key: &str| energy[key].clone();
    log.write(&[
        ("id", json!(id)),
        ("sent_s", json!(good.map(|a| a.sent_s))),
        ("ttft_s", json!(good.map(|a| a.ttft_s))),
        ("itl_s", json!(good.and_then(|a| a.itl_s))),
        ("seconds", json!(good.map(|a| a.seconds))),
        ("input_tokens", json!(good.map(|a| a.input_tokens))),
        ("cached_input_tokens", json!(good.and_then(|a| a.cached_tokens))),
        ("output_tokens", json!(good.map(|a| a.output_tokens))),
        ("total_j", of("total_j")),
        ("method", of("method")),
        ("rel_unc", of("rel_unc")),
        ("prefill_j", of("prefill_j")),
        ("decode_j", of("decode_j")),
        ("static_j", of("static_j")),
        ("wasted_j", of("wasted_j")),
        ("interpolated", of("interpolated")),
        ("cpu_s", of("cpu_s")),
        (NESTED, energy.clone()),
        ("error", json!(answer.as_ref().err())),
    ])
}

/// Medians over the repeats of every case, for a person.
fn table(name: &str, reports: &[Value], context: &mut Context<'_>) -> std::io::Result<()> {
    let subject = reports.first().and_then(|r| r["subject"].as_str()).unwrap_or("local");
    writeln!(context.out, "{name}; energy and CPU time of {subject}")?;
    writeln!(
        context.out,
        "{:44} {:>9} {:>9} {:>17} {:>17} {:>14} {:>12}",
        "case", "tokens/s", "steady", "TTFT ms p50, p99", "ITL ms p50, p99", "CPU s/1000 tok", "J/token"
    )?;
    let mut keys: Vec<String> = vec![];
    for report in reports {
        let key = super::reports::key(report);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    for key in keys {
        let runs: Vec<&Value> = reports.iter().filter(|r| super::reports::key(r) == key).collect();
        let median = |of: &dyn Fn(&Value) -> Option<f64>| {
            let mut values: Vec<f64> = runs.iter().map(|r| of(r)).collect::<Option<_>>()?;
            values.sort_by(f64::total_cmp);
            percentile(&values, 0.5)
        };
        let at = |path: &'static str, by: f64| {
            median(&|r| Some(by * r.pointer(path)?.as_f64()?)).map_or("-".to_owned(), |x| format!("{x:.1}"))
        };
        let pair = |name: &'static str| match name {
            "ttft" => format!("{}, {}", at("/metrics/ttft_s/p50", 1e3), at("/metrics/ttft_s/p99", 1e3)),
            _ => format!("{}, {}", at("/metrics/itl_s/p50", 1e3), at("/metrics/itl_s/p99", 1e3)),
        };
        let cpu = median(&|r| Some(1e3 * r["cpu_s"].as_f64()? / super::reports::tokens(r)?));
        let joules = median(&|r| r["metrics"]["joules_per_output_token"].as_f64());
        let method = runs[0]["energy"]["method"].as_str().unwrap_or("unknown");
        writeln!(
            context.out,
            "{key:44} {:>9} {:>9} {:>17} {:>17} {:>14} {:>12}",
            at("/metrics/output_tokens_per_s", 1.0),
            at("/steady/metrics/output_tokens_per_s", 1.0),
            pair("ttft"),
            pair("itl"),
            cpu.map_or("-".to_owned(), |s| format!("{s:.3}")),
            joules.map_or("unknown".to_owned(), |j| format!("{j:.4} ({method})")),
        )?;
    }
    if let Some(reason) = reports.iter().find_map(|r| r["steady_reason"].as_str()) {
        writeln!(context.out, "no steady window in every run: {reason}")?;
    }
    if let Some(reasons) = reports.first().map(|r| &r["energy"]["reasons"]).and_then(Value::as_array)
        && !reasons.is_empty()
    {
        let reasons: Vec<&str> = reasons.iter().filter_map(Value::as_str).collect();
        writeln!(context.out, "energy: unknown ({})", reasons.join("; "))?;
    }
    Ok(())
}

/// Tokens of an answer of a warm-up run.
const WARM_UP: usize = 8;

/// Requests that may be open at once.
const MOST_CLIENTS: usize = 1024;

/// How long a server may take to end.
const END: Duration = Duration::from_secs(10);

/// How long a server may take to load its model.
const START: Duration = Duration::from_secs(600);
