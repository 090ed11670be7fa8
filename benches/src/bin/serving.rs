//! njoule's server beside llama.cpp's: the same file, threads and clients, in turn; ratios of medians.
//!
//! ```text
//! serving --njoule BIN --llama DIR --gguf FILE [--threads T] [--clients 1,4,16,32] [--requests N] [--rounds N]
//! ```
//!
//! DIR holds `llama-server`. The client is `njoule bench --endpoint`, in a process of its own, and the same for both: each
//! of N requests (4) of a client asks for 64 tokens, after 96 words of its own (`distinct`), or after 256 words that all share
//! and 16 of its own (`shared`); no prompt comes twice. CPU seconds are those of the server's process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use njoule_benches::flags::Flags;
use serde_json::Value;

fn main() -> Result<()> {
    let o = Options::parse()?;
    let most = *o.clients.iter().max().context("--clients is empty")?;
    let servers = [Server::njoule(&o, most)?, Server::llama(&o, most)?];
    let mut seed = 1;
    println!(
        "{:22} {:>9} {:>9} {:>6}   p50 TTFT ms, p99; p50 TPOT ms, p99; CPU s per 1000 tokens",
        "case", "njoule t/s", "llama.cpp", "ratio"
    );
    for (pattern, workload, own_words) in [("distinct", "closed", "96"), ("shared", "shared-prefix", "16")] {
        for &clients in &o.clients {
            let mut rounds: [Vec<Figures>; 2] = Default::default();
            for _ in 0..o.rounds.get() {
                seed += 1;
                for (server, figures) in servers.iter().zip(&mut rounds) {
                    figures.push(server.measure(&o, workload, own_words, clients, seed)?);
                }
            }
            let [ours, theirs] = rounds.map(|figures| Figures::median(&figures));
            println!(
                "{:22} {:9.1} {:9.1} {:6.2}   njoule {ours}   llama.cpp {theirs}   CPU ratio {:.2}",
                format!("{pattern}, {clients} clients"),
                ours.rate,
                theirs.rate,
                ours.rate / theirs.rate,
                theirs.cpu / ours.cpu,
            );
        }
    }
    Ok(())
}

/// Medians, or one round's.
#[derive(Debug, Default)]
struct Figures {
    /// Generated tokens per second.
    rate: f64,
    /// Milliseconds.
    ttft: [f64; 2],
    /// Milliseconds.
    tpot: [f64; 2],
    /// Seconds per 1,000 generated tokens.
    cpu: f64,
}

impl Figures {
    fn median(rounds: &[Figures]) -> Figures {
        let of = |figure: &dyn Fn(&Figures) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Figures {
            rate: of(&|f| f.rate),
            ttft: [0, 1].map(|at| of(&|f| f.ttft[at])),
            tpot: [0, 1].map(|at| of(&|f| f.tpot[at])),
            cpu: of(&|f| f.cpu),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { ttft, tpot, cpu, .. } = self;
        write!(f, "{:.0}, {:.0}; {:.1}, {:.1}; {cpu:.2}", ttft[0], ttft[1], tpot[0], tpot[1])
    }
}

/// A server's process; it ends with the value.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn njoule(o: &Options, clients: usize) -> Result<Server> {
        let mut command = Command::new(&o.njoule);
        command.args(["serve", &o.gguf, "--port", "0", "--threads", &o.threads, "--log-level", "warn"]);
        command.args(["--max-num-seqs", &clients.to_string(), "--max-model-len", &CONTEXT.to_string()]);
        let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot run {}", o.njoule))?;
        let mut lines = BufReader::new(child.stderr.take().context("a pipe was asked for")?).lines();
        let url = lines.find_map(|line| line.ok()?.strip_prefix("listening on ").map(str::to_owned));
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Ok(Server { child, url: url.context("njoule ended before it listened")? })
    }

    fn llama(o: &Options, clients: usize) -> Result<Server> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(format!("{}/llama-server", o.llama));
        command.args(["-m", &o.gguf, "--port", &port.to_string(), "-t", &o.threads, "-tb", &o.threads]);
        command.args(["-np", &clients.to_string(), "-c", &(clients * CONTEXT).to_string(), "--threads-http", "4"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot run llama-server")?;
        let server = Server { child, url: format!("http://127.0.0.1:{port}") };
        let start = Instant::now();
        while ureq::get(format!("{}/health", server.url)).call().is_err() {
            if start.elapsed() > Duration::from_secs(60) {
                bail!("llama-server does not answer");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    fn measure(&self, o: &Options, workload: &str, words: &str, clients: usize, seed: u64) -> Result<Figures> {
        let mut command = Command::new(&o.njoule);
        command.args(["bench", "--endpoint", &self.url, "--meter", &format!("pid:{}", self.child.id()), "--json"]);
        command.args(["--workload", workload, "--batch", &clients.to_string(), "--prompt", words, "--gen", "64"]);
        command.args(["--requests", &o.requests.to_string(), "--seed", &seed.to_string(), "--repeat", "1"]);
        let output = command.stderr(Stdio::inherit()).output()?;
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
        Ok(Figures {
            rate: number("/metrics/output_tokens_per_s")?,
            ttft: ms("ttft_s")?,
            tpot: ms("itl_s")?,
            cpu: number("/cpu_s")? / tokens * 1e3,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Options {
    njoule: String,
    llama: String,
    gguf: String,
    threads: String,
    clients: Vec<usize>,
    requests: std::num::NonZero<usize>,
    rounds: std::num::NonZero<usize>,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut flags = Flags::read()?;
        let mut take = |name: &str, default: Option<&str>| flags.take(name, default);
        let options = Options {
            njoule: take("njoule", None)?,
            llama: take("llama", None)?,
            gguf: take("gguf", None)?,
            threads: take("threads", Some("2"))?,
            clients: take("clients", Some("1,4,16,32"))?
                .split(',')
                .map(|count| count.parse().context("--clients"))
                .collect::<Result<_>>()?,
            requests: take("requests", Some("4"))?.parse().context("--requests")?,
            rounds: take("rounds", Some("3"))?.parse().context("--rounds")?,
        };
        flags.finish()?;
        if options.clients.contains(&0) {
            bail!("--clients: there is at least one");
        }
        Ok(options)
    }
}

/// Tokens that a sequence may have.
const CONTEXT: usize = 1024;
