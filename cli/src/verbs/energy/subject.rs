//! Whose energy is asked for, and by which meters.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use njoule_energy::load::Part;
use njoule_energy::meter::Scope;
use njoule_energy::meter::feed::FeedSource;
use njoule_energy::profile::NeuronWatts;
use njoule_energy::{Meters, Report, Root, Snapshot, Wanted, Window};
use serde_json::Value;

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
    /// A meter outside: cmd:COMMAND, csv:FILE or unix:SOCKET that gives lines t_unix_s,joules
    #[arg(long, value_name = "FEED")]
    pub feed: Option<FeedSource>,
    /// What that meter covers
    #[arg(long, value_enum, default_value_t, requires = "feed")]
    pub feed_scope: FeedScope,
    /// Its relative uncertainty, such as 0.02; unknown without
    #[arg(long, value_name = "SHARE", requires = "feed", value_parser = uncertainty)]
    pub feed_uncertainty: Option<f64>,
    /// Watts of a Neuron device: base=20..60,span=40..150 (at 0 %, and added at 100 %)
    #[arg(long, value_name = "PROFILE", env = "NJOULE_NEURON_WATTS")]
    pub neuron_watts: Option<NeuronWatts>,
    /// The instance's type, where the machine does not say it
    #[arg(long, value_name = "TYPE")]
    pub instance: Option<String>,
}

/// What an outside meter covers.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum FeedScope {
    /// The machine at the plug.
    #[default]
    Wall,
    /// The machine behind its power supplies.
    Node,
    /// The accelerators.
    Accelerator,
}

fn uncertainty(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|u: &f64| (0.0..=1.0).contains(u));
    share.ok_or_else(|| format!("{text:?} is no share from 0 to 1"))
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
    /// The meters of this machine.
    pub fn wanted(&self, part: Option<Part>) -> Wanted {
        let scope = match self.feed_scope {
            FeedScope::Wall => Scope::Wall,
            FeedScope::Node => Scope::Node,
            FeedScope::Accelerator => Scope::Accelerator,
        };
        let nvml = std::env::var_os("NJOULE_NVML").filter(|path| !path.is_empty()).map(PathBuf::from);
        Wanted {
            root: Root::from_environment(),
            feed: self.feed.clone().map(|feed| (feed, scope, self.feed_uncertainty)),
            neuron_watts: self.neuron_watts.clone(),
            instance: self.instance.clone(),
            part,
            nvml,
        }
    }
}

/// Meters that are read once a second, so that no counter wraps unseen and no minute is missed.
pub struct Polled {
    meters: Arc<Mutex<Meters>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Polled {
    /// Opens them.
    pub fn open(wanted: &Wanted) -> anyhow::Result<Polled> {
        let meters = Arc::new(Mutex::new(Meters::open(wanted)));
        let (stop, stopped) = mpsc::channel::<()>();
        let polled = meters.clone();
        let body = move || {
            let start = Instant::now();
            for round in 1u32.. {
                // Absolute deadlines with a fifth of jitter: a program of a steady rhythm must not hide between the looks.
                let jitter = 0.2 * (f64::from(round.wrapping_mul(2_654_435_769)) / f64::from(u32::MAX) * 2.0 - 1.0);
                let due = start + Duration::from_secs_f64((f64::from(round) + jitter).max(0.0));
                match stopped.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Err(mpsc::RecvTimeoutError::Timeout) => lock(&polled).poll(),
                    _ => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("njoule-meters".into()).spawn(body);
        Ok(Polled { meters, stop: Some(stop), thread: Some(thread.context("cannot start a thread for the meters")?) })
    }

    /// Where all stand.
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.meters).snapshot()
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.stop = None;
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
}

/// A beginning.
pub struct Mark {
    at: Instant,
    unix_s: f64,
    snapshot: Result<Value, String>,
}

impl MeterArgs {
    /// Opens what was asked for.
    pub fn open(&self) -> anyhow::Result<Source> {
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
        let snapshot = match self {
            Source::Here(meters) => serde_json::to_value(meters.snapshot()).map_err(|e| e.to_string()),
            Source::There(url) => ask(url, None),
        };
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Mark { at: Instant::now(), unix_s, snapshot }
    }

    /// The report since `mark`. What could not be asked is unknown, never this machine's in the place of another's.
    pub fn since(&self, mark: &Mark, run_id: &str, subject: &Subject, adjust: impl Fn(&mut Report)) -> Value {
        let unknown = |reason: String| {
            let duration_s = mark.at.elapsed().as_secs_f64();
            let mut report = Report::unknown(run_id, subject.to_string(), Some(reason), mark.unix_s, duration_s);
            adjust(&mut report);
            report.json()
        };
        let start = match &mark.snapshot {
            Ok(start) => start,
            Err(reason) => return unknown(reason.clone()),
        };
        match self {
            Source::Here(meters) => {
                let start = serde_json::from_value::<Snapshot>(start.clone()).map_err(|e| e.to_string());
                let window = start.and_then(|a| Window::between(&a, &meters.snapshot()).map_err(|e| e.to_string()));
                match window {
                    Ok(window) => {
                        let mut report = Report::of(run_id, subject.to_string(), window);
                        adjust(&mut report);
                        report.json()
                    }
                    Err(reason) => unknown(reason),
                }
            }
            Source::There(url) => match ask(url, Some(start)) {
                Ok(mut theirs) => {
                    // The work and the client are ours, and so are the figures of both.
                    let mut ours = Report::unknown(run_id, subject.to_string(), None, mark.unix_s, 0.0);
                    adjust(&mut ours);
                    ours.complete(&mut theirs);
                    theirs
                }
                Err(reason) => unknown(reason),
            },
        }
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
