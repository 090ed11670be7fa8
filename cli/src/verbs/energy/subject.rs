//! Whose energy is asked for, and by which meters.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use njoule_energy::conditions::Conditions;
use njoule_energy::load::Part;
use njoule_energy::meter::feed::SharedCommand;
use njoule_energy::{Meters, Report, Root, Snapshot, Wanted, Window};
use serde_json::Value;

use super::place::is_here;
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

/// Meters that are read once a second, so that no counter wraps unseen and no minute is missed.
pub struct Polled {
    meters: Arc<Mutex<Meters>>,
    root: Root,
    commands: Vec<Arc<SharedCommand>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Polled {
    /// Opens them.
    pub fn open(wanted: &Wanted) -> anyhow::Result<Polled> {
        let meters = Meters::open(wanted);
        let (commands, root) = (meters.commands(), meters.root().clone());
        let (meters, ours) = (Arc::new(Mutex::new(meters)), commands.clone());
        let (stop, stopped) = mpsc::channel::<()>();
        let polled = meters.clone();
        let body = move || {
            let start = Instant::now();
            for round in 1u32.. {
                // Absolute deadlines with a fifth of jitter: a program of a steady rhythm must not hide between the looks.
                let jitter = 0.2 * (f64::from(round.wrapping_mul(2_654_435_769)) / f64::from(u32::MAX) * 2.0 - 1.0);
                let due = start + Duration::from_secs_f64((f64::from(round) + jitter).max(0.0));
                match stopped.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        commands.iter().for_each(|command| command.run());
                        lock(&polled).poll();
                    }
                    _ => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("njoule-meters".into()).spawn(body);
        let thread = Some(thread.context("cannot start a thread for the meters")?);
        Ok(Polled { meters, root, commands: ours, stop: Some(stop), thread })
    }

    /// Where all stand at a window's beginning. What it costs to read the conditions lies before it.
    pub fn begin(&self) -> Snapshot {
        let conditions = Some(Conditions::read(&self.root));
        Snapshot { conditions, ..self.snapshot() }
    }

    /// The same at its end, and behind it. The end is now: a feed's command that takes its time is waited for afterwards,
    /// and the stamp of what it says tells how far behind the end that is.
    pub fn end(&self) -> Snapshot {
        let end = self.now();
        Snapshot { conditions: Some(Conditions::read(&self.root)), ..end }
    }

    /// Where all stand now, as far as feeds' commands can say.
    fn now(&self) -> Snapshot {
        let mut now = lock(&self.meters).snapshot();
        if !self.commands.is_empty() {
            self.commands.iter().for_each(|command| command.run_if_it_answers());
            lock(&self.meters).refresh(&mut now);
        }
        now
    }

    /// Where all stand. Waits for the command of a feed, if there is one, and holds nobody else up meanwhile.
    pub fn snapshot(&self) -> Snapshot {
        self.commands.iter().for_each(|command| command.run());
        lock(&self.meters).snapshot()
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.stop = None;
        self.commands.iter().for_each(|command| command.stop());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A panic of another thread leaves totals as they were.
fn lock(meters: &Mutex<Meters>) -> std::sync::MutexGuard<'_, Meters> {
    meters.lock().unwrap_or_else(PoisonError::into_inner)
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
        let report = self.until(mark, end.as_ref(), run_id, subject, |_| {});
        *mark = match end {
            Some(end) => Mark::now(Ok(Beginning::Here(Box::new(end)))),
            None => self.mark(),
        };
        report
    }

    /// The report since `mark`. What could not be asked is unknown, never this machine's in the place of another's.
    pub fn since(&self, mark: &Mark, run_id: &str, subject: &Subject, adjust: impl Fn(&mut Report)) -> Value {
        self.until(mark, None, run_id, subject, adjust)
    }

    /// Until `end`, or now.
    fn until(
        &self,
        mark: &Mark,
        end: Option<&Snapshot>,
        run_id: &str,
        subject: &Subject,
        adjust: impl Fn(&mut Report),
    ) -> Value {
        let unknown = |reason: String| {
            let duration_s = mark.at.elapsed().as_secs_f64();
            let mut report = Report::unknown(run_id, subject.to_string(), Some(reason), mark.unix_s, duration_s);
            of_this_build(&mut report);
            adjust(&mut report);
            report.json()
        };
        let start = match &mark.snapshot {
            Ok(start) => start,
            Err(reason) => return unknown(reason.clone()),
        };
        match (self, start) {
            (Source::Here(meters), Beginning::Here(start)) => {
                let window = match end {
                    Some(end) => Window::between(start, end),
                    None => Window::between(start, &meters.end()),
                };
                match window {
                    Ok(window) => {
                        let mut report = Report::of(run_id, subject.to_string(), window);
                        of_this_build(&mut report);
                        adjust(&mut report);
                        report.json()
                    }
                    Err(reason) => unknown(reason.to_string()),
                }
            }
            (Source::There(url), Beginning::There(start)) => {
                // The work and the client are ours, and so are the figures of both.
                let mut ours = Report::unknown(run_id, subject.to_string(), None, mark.unix_s, 0.0);
                of_this_build(&mut ours);
                adjust(&mut ours);
                let completed = ask(url, Some(start)).and_then(|mut theirs| {
                    ours.complete(&mut theirs)
                        .map_err(|what| format!("{url}: what answers there is no agent: {what}"))?;
                    Ok(theirs)
                });
                completed.unwrap_or_else(unknown)
            }
            _ => unknown("the beginning is of other meters".into()),
        }
    }
}

fn of_this_build(report: &mut Report) {
    report.git = commit::of_this_build().map(str::to_owned);
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
