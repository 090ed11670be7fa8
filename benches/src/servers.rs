//! Servers under clients: njoule's and llama.cpp's, each a process, and `njoule bench --endpoint` in another as their client.
//!
//! The client is the same for all, and CPU seconds are those of the server's process alone.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::flags::Flags;

/// Medians, or one round's.
#[derive(Debug, Default)]
pub struct Figures {
    /// Generated tokens per second.
    pub rate: f64,
    /// Requests per second.
    pub requests: f64,
    /// Milliseconds.
    pub ttft: [f64; 2],
    /// Milliseconds.
    pub tpot: [f64; 2],
    /// Seconds per 1,000 generated tokens.
    pub cpu: f64,
    /// Share of njoule's busy time that is not in steps; unknown of another server.
    pub between: f64,
}

impl Figures {
    /// Of several rounds, figure by figure.
    pub fn median(rounds: &[Figures]) -> Figures {
        let of = |figure: &dyn Fn(&Figures) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Figures {
            rate: of(&|f| f.rate),
            requests: of(&|f| f.requests),
            ttft: [0, 1].map(|at| of(&|f| f.ttft[at])),
            tpot: [0, 1].map(|at| of(&|f| f.tpot[at])),
            cpu: of(&|f| f.cpu),
            between: of(&|f| f.between),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { ttft, tpot, cpu, .. } = self;
        write!(f, "{:.0}, {:.0}; {:.1}, {:.1}; {cpu:.2}", ttft[0], ttft[1], tpot[0], tpot[1])?;
        match self.between.is_nan() {
            true => Ok(()),
            false => write!(f, "; {:.1} % between steps", self.between * 100.0),
        }
    }
}

/// A server's process; it ends with the value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    url: String,
    /// The binary that has the clients.
    client: String,
}

/// Servers of one model file with as many threads and places.
#[derive(Clone, Debug)]
pub struct Setup {
    /// njoule's binary.
    pub njoule: String,
    /// Directory of `llama-server`.
    pub llama: String,
    /// The model file.
    pub gguf: String,
    /// Threads of either.
    pub threads: String,
    /// Requests that run together.
    pub places: usize,
}

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// `--workload`.
    pub workload: &'a str,
    /// Words of a prompt that are its own.
    pub words: &'a str,
    /// Tokens of an answer.
    pub tokens: &'a str,
    /// Clients, or with `chat` requests that may run together.
    pub clients: usize,
    /// Of each client, or with `chat` of all.
    pub requests: usize,
    /// Requests that arrive a second, with `chat`.
    pub rate: f64,
    /// What prompts and arrivals are made from.
    pub seed: u64,
}

impl Setup {
    /// `--njoule BIN --llama DIR --gguf FILE [--threads T]`, with one place.
    pub fn read(flags: &mut Flags) -> Result<Setup> {
        Ok(Setup {
            njoule: flags.take("njoule", None)?,
            llama: flags.take("llama", None)?,
            gguf: flags.take("gguf", None)?,
            threads: flags.take("threads", Some("2"))?,
            places: 1,
        })
    }

    /// Starts njoule's server, with more arguments.
    pub fn njoule(&self, more: &[&str]) -> Result<Server> {
        let mut command = Command::new(&self.njoule);
        command.args(["serve", &self.gguf, "--port", "0", "--threads", &self.threads, "--log-level", "warn"]);
        command.args(["--max-num-seqs", &self.places.to_string(), "--max-model-len", &CONTEXT.to_string()]);
        command.args(["--max-queued-requests", &QUEUE.to_string()]).args(more);
        let mut child =
            command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot run {}", self.njoule))?;
        let mut lines = BufReader::new(child.stderr.take().context("a pipe was asked for")?).lines();
        let url = lines.find_map(|line| line.ok()?.strip_prefix("listening on ").map(str::to_owned));
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        let url = url.context("njoule ended before it listened")?;
        Ok(Server { child, url, client: self.njoule.clone() })
    }

    /// Starts llama.cpp's server.
    pub fn llama(&self) -> Result<Server> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(format!("{}/llama-server", self.llama));
        command.args(["-m", &self.gguf, "--port", &port.to_string(), "-t", &self.threads, "-tb", &self.threads]);
        command.args(["-np", &self.places.to_string(), "-c", &(self.places * CONTEXT).to_string()]);
        command.args(["--threads-http", "4"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot run llama-server")?;
        let server = Server { child, url: format!("http://127.0.0.1:{port}"), client: self.njoule.clone() };
        let start = Instant::now();
        while ureq::get(format!("{}/health", server.url)).call().is_err() {
            if start.elapsed() > Duration::from_secs(60) {
                bail!("llama-server does not answer");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }
}

impl Server {
    /// Puts a load on it.
    pub fn measure(&self, load: &Load<'_>) -> Result<Figures> {
        let mut command = Command::new(&self.client);
        command.args(["bench", "--endpoint", &self.url, "--meter", &format!("pid:{}", self.child.id()), "--json"]);
        command.args(["--workload", load.workload, "--batch", &load.clients.to_string(), "--prompt", load.words]);
        command.args(["--gen", load.tokens, "--requests", &load.requests.to_string(), "--repeat", "1"]);
        command.args(["--rate", &load.rate.to_string(), "--seed", &load.seed.to_string()]);
        let before = self.engine_seconds()?;
        let output = command.stderr(Stdio::inherit()).output()?;
        let after = self.engine_seconds()?;
        if !output.status.success() {
            bail!("the clients ended with {}", output.status);
        }
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let run = &report["runs"][0];
        let number = |path: &str| run.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path}"));
        let tokens = number("/workload/output_tokens")?;
        let ms = |name: &str| -> Result<[f64; 2]> {
            Ok([number(&format!("/metrics/{name}/p50"))? * 1e3, number(&format!("/metrics/{name}/p99"))? * 1e3])
        };
        let between = match (before, after) {
            (Some(before), Some(after)) => (after.1 - before.1) / (after.0 + after.1 - before.0 - before.1),
            _ => f64::NAN,
        };
        let rate = number("/metrics/output_tokens_per_s")?;
        Ok(Figures {
            rate,
            requests: rate / tokens * number("/workload/requests")?,
            ttft: ms("ttft_s")?,
            tpot: ms("itl_s")?,
            cpu: number("/cpu_s")? / tokens * 1e3,
            between,
        })
    }

    /// Seconds that njoule's engine has spent in steps and, while it had requests, between them.
    fn engine_seconds(&self) -> Result<Option<(f64, f64)>> {
        let Ok(mut answer) = ureq::get(format!("{}/metrics", self.url)).call() else { return Ok(None) };
        let text = answer.body_mut().read_to_string()?;
        let of = |kind: &str| -> f64 {
            let kind = format!("kind=\"{kind}\"");
            let lines = text.lines().filter(|l| l.starts_with("njoule_engine_seconds_total{") && l.contains(&kind));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        let known = text.contains("njoule_engine_seconds_total{");
        Ok(known.then(|| (of("prefill") + of("decode"), of("host"))))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tokens that a sequence may have.
const CONTEXT: usize = 1024;

/// Requests that may wait at njoule's: as llama.cpp's, it refuses none here.
const QUEUE: usize = 4096;
