//! Whose energy is asked for, and by which meters.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use njoule_energy::load::Part;
use njoule_energy::{Report, Snapshot, Wanted, Window};
use serde_json::Value;

use super::place::is_here;
use super::polled::{Block, Polled};
use super::watch::wait;
use crate::args::UsageError;
use crate::commit;
use crate::session::Interrupt;
use crate::session::metering::MeteringArgs;

/// Arguments that choose meters.
#[derive(clap::Args, Clone, Debug)]
pub struct MeterArgs {
    /// Whose energy: local, pid:N, cgroup:PATH, or the address of an agent (`njoule energy serve`)
    #[arg(long, value_name = "WHOSE", default_value = "local")]
    pub meter: Subject,
    /// This machine's meters.
    #[command(flatten)]
    pub local: LocalArgs,
}

/// Arguments about this machine's meters.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct LocalArgs {
    /// Which meters.
    #[command(flatten)]
    pub metering: MeteringArgs,
    /// The instance's type, where the machine does not say it
    #[arg(long, value_name = "TYPE")]
    pub instance: Option<String>,
}

/// Whose energy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// This machine's.
    Local,
    /// A process's or control group's share of it.
    Part(Part),
    /// Another machine's, by its agent.
    Agent(String),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Subject, String> {
        let wrong = || format!("{text:?} is none of local, pid:N, cgroup:PATH, http://HOST:PORT");
        match text.split_once(':') {
            None if text == "local" => Ok(Subject::Local),
            Some(("pid", pid)) => Ok(Subject::Part(Part::Process(pid.parse().map_err(|_| wrong())?))),
            Some(("cgroup", path)) if !path.is_empty() => Ok(Subject::Part(Part::Group(path.into()))),
            Some(("http" | "https", rest)) if rest.len() > 2 => {
                Ok(Subject::Agent(text.trim_end_matches('/').to_owned()))
            }
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Local => f.write_str("local"),
            Subject::Part(Part::Process(pid)) => write!(f, "pid:{pid}"),
            Subject::Part(Part::Group(path)) => write!(f, "cgroup:{}", path.display()),
            Subject::Agent(url) => f.write_str(url),
        }
    }
}

impl LocalArgs {
    /// A flag of these on the command line, if there is one; the environment's watts may stand for other commands.
    fn first_given(&self) -> Option<&'static str> {
        let watts = std::env::var("NJOULE_NEURON_WATTS").ok().and_then(|text| text.parse().ok());
        let given = [
            ("--feed", self.metering.feed.is_some()),
            ("--neuron-watts", self.metering.neuron_watts.is_some() && self.metering.neuron_watts != watts),
            ("--instance", self.instance.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// The meters of this machine.
    pub fn wanted(&self, part: Option<Part>) -> Wanted {
        Wanted { instance: self.instance.clone(), part, ..self.metering.wanted() }
    }
}

/// Somebody to ask.
pub enum Source {
    /// This machine.
    Here(Polled),
    /// An agent.
    There(String),
    /// Nobody, and why: all that is known is the time.
    Nobody(String),
}

/// A beginning.
pub struct Mark {
    at: Instant,
    unix_s: f64,
    snapshot: Result<Beginning, String>,
}

/// Where the meters stood.
enum Beginning {
    Here(Box<Snapshot>),
    /// As the agent told it.
    There(Value),
}

impl MeterArgs {
    /// Opens what can tell of a server at `url`, of which nobody said who meters it: this machine's meters if it is here, else
    /// nobody. A client's joules are never a server's.
    pub fn open_for(local: LocalArgs, url: &str) -> anyhow::Result<(Source, Subject)> {
        if is_here(url) {
            let args = MeterArgs { meter: Subject::Local, local };
            return Ok((args.open()?, args.meter));
        }
        if let Some(flag) = local.first_given() {
            return Err(UsageError(format!("{flag} is about this machine's meters, and {url} is not on this host: --meter local says that they are the server's all the same, --meter URL asks an agent there")).into());
        }
        let why = format!(
            "{url} is not on this host, and no --meter says who meters it (njoule energy serve there, --meter http://HOST:9788 here)"
        );
        Ok((Source::Nobody(why), Subject::Agent(url.to_owned())))
    }

    /// Opens what was asked for.
    pub fn open(&self) -> anyhow::Result<Source> {
        if matches!(self.meter, Subject::Agent(_))
            && let Some(flag) = self.local.first_given()
        {
            let whose = &self.meter;
            return Err(UsageError(format!("{flag} is about this machine's meters, and --meter {whose} asks another's agent: give it to `njoule energy serve` there")).into());
        }
        Ok(match &self.meter {
            Subject::Local => Source::Here(Polled::open(&self.local.wanted(None))?),
            Subject::Part(part) => Source::Here(Polled::open(&self.local.wanted(Some(part.clone())))?),
            Subject::Agent(url) => Source::There(url.clone()),
        })
    }
}

impl Source {
    /// A window begins.
    pub fn mark(&self) -> Mark {
        Mark::now(match self {
            Source::Here(meters) => Ok(Beginning::Here(Box::new(meters.begin()))),
            Source::There(url) => ask(url, None).map(Beginning::There),
            Source::Nobody(reason) => Err(reason.clone()),
        })
    }

    /// Whether there are Neuron devices, whose driver has one figure a minute.
    pub fn has_devices(&self) -> bool {
        match self {
            Source::Here(meters) => !meters.snapshot().neuron.is_empty(),
            Source::There(url) => {
                ask(url, None).is_ok_and(|told| told["neuron"].as_array().is_some_and(|n| !n.is_empty()))
            }
            Source::Nobody(_) => false,
        }
    }

    /// Watts while this process waits for so long; `None` where no meter says.
    pub fn idle_w(&self, seconds: f64, subject: &Subject, interrupt: &Interrupt) -> Option<f64> {
        let mark = self.mark();
        wait(Duration::from_secs_f64(seconds), interrupt);
        self.since(&mark, "idle", subject, |r| r.kind = "idle")["metrics"]["mean_power_w"].as_f64()
    }

    /// The report since `mark`, which becomes its end. An agent's end is asked for right after its report.
    pub fn lap(&self, mark: &mut Mark, run_id: &str, subject: &Subject) -> Value {
        let end = match self {
            // Not so often: a look at every processor's files costs more than the meters.
            Source::Here(meters) => Some(meters.now()),
            Source::There(_) | Source::Nobody(_) => None,
        };
        let report = self.until(mark, end.as_ref()).report(run_id, subject, |_| {});
        *mark = match end {
            Some(end) => Mark::now(Ok(Beginning::Here(Box::new(end)))),
            None => self.mark(),
        };
        report
    }

    /// The report since `mark`. What could not be asked is unknown, never this machine's in the place of another's.
    pub fn since(&self, mark: &Mark, run_id: &str, subject: &Subject, adjust: impl Fn(&mut Report)) -> Value {
        self.end(mark).report(run_id, subject, adjust)
    }

    /// The window since `mark` ends.
    pub fn end(&self, mark: &Mark) -> Span {
        self.until(mark, None)
    }

    /// Until `end`, or now.
    fn until(&self, mark: &Mark, end: Option<&Snapshot>) -> Span {
        let told = match (self, &mark.snapshot) {
            (_, Err(reason)) => Err(reason.clone()),
            (Source::Here(meters), Ok(Beginning::Here(start))) => {
                let window = match end {
                    Some(end) => Window::between(start, end),
                    None => Window::between(start, &meters.end()),
                };
                window.map(|window| Told::Here(Box::new(window))).map_err(|reason| reason.to_string())
            }
            (Source::There(url), Ok(Beginning::There(start))) => {
                ask(url, Some(start)).map(|theirs| Told::There(url.clone(), theirs))
            }
            _ => Err("the beginning is of other meters".into()),
        };
        let by_client_s = mark.at.elapsed().as_secs_f64();
        let duration_s = match &told {
            Ok(Told::Here(window)) => window.duration_s,
            Ok(Told::There(_, theirs)) => theirs["window"]["duration_s"].as_f64().unwrap_or(by_client_s),
            Err(_) => by_client_s,
        };
        Span { start: mark.at, start_unix_s: mark.unix_s, duration_s, told }
    }

    /// From `mark` on what happens in every ten seconds is kept, with what `done` has counted by then.
    pub fn trace(&self, mark: &Mark, done: &Arc<AtomicU64>) {
        if let (Source::Here(meters), Ok(Beginning::Here(start))) = (self, &mark.snapshot) {
            meters.trace(start, mark.at, done.clone());
        }
    }

    /// What was kept since then, or why nothing was.
    pub fn traced(&self) -> Result<Vec<Block>, String> {
        match self {
            Source::Here(meters) => Ok(meters.traced()),
            Source::There(_) => Err("an agent is asked at the ends of a run alone".to_owned()),
            Source::Nobody(_) => Err("no meter is read".to_owned()),
        }
    }
}

/// A window that has ended, before it is said what was done in it.
pub struct Span {
    start: Instant,
    start_unix_s: f64,
    duration_s: f64,
    told: Result<Told, String>,
}

/// What the meters say of it.
enum Told {
    Here(Box<Window>),
    /// An agent at this address.
    There(String, Value),
}

impl Span {
    /// Its beginning by the client's clock, and its length.
    pub fn place(&self) -> (Instant, f64) {
        (self.start, self.duration_s)
    }

    /// Its report.
    pub fn report(self, run_id: &str, subject: &Subject, adjust: impl Fn(&mut Report)) -> Value {
        let Span { start_unix_s, duration_s, told, .. } = self;
        let made = |mut report: Report| {
            report.git = commit::of_this_build().map(str::to_owned);
            adjust(&mut report);
            report
        };
        let unknown = |reason| made(Report::unknown(run_id, subject.to_string(), reason, start_unix_s, duration_s));
        match told {
            Err(reason) => unknown(Some(reason)).json(),
            Ok(Told::Here(window)) => made(Report::of(run_id, subject.to_string(), *window)).json(),
            // The work and the client are ours, and so are the figures of both.
            Ok(Told::There(url, mut theirs)) => match unknown(None).complete(&mut theirs) {
                Ok(()) => theirs,
                Err(what) => unknown(Some(format!("{url}: what answers there is no agent: {what}"))).json(),
            },
        }
    }
}

impl Mark {
    fn now(snapshot: Result<Beginning, String>) -> Mark {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Mark { at: Instant::now(), unix_s, snapshot }
    }
}

/// Asks an agent: for where it stands, or for a report since `start`.
fn ask(url: &str, start: Option<&Value>) -> Result<Value, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let answer = match start {
        None => agent.get(format!("{url}/v1/energy")).call(),
        Some(start) => agent
            .post(format!("{url}/v1/energy/report"))
            .header("content-type", "application/json")
            .send(start.to_string()),
    };
    let mut answer = answer.map_err(|e| format!("{url}: {e}"))?;
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(MOST_BYTES).read_to_string().map_err(|e| format!("{url}: {e}"))?;
    let value: Option<Value> = serde_json::from_str(&body).ok();
    if !status.is_success() {
        let words = value.as_ref().and_then(|v| v["error"]["message"].as_str()).unwrap_or("no agent answers there");
        return Err(format!("{url}: HTTP {}: {words}", status.as_u16()));
    }
    value.filter(Value::is_object).ok_or_else(|| format!("{url}: what answers there is no agent"))
}

/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of an agent's answer.
const MOST_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_read_and_written() {
        for text in ["local", "pid:12", "cgroup:/system.slice/x.service", "http://h:9788", "https://h"] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        for bad in ["", "pid:x", "pid:-1", "cgroup:", "http:", "here"] {
            assert!(bad.parse::<Subject>().unwrap_err().contains("none of local"), "{bad}");
        }
    }
}
