//! njoule's server beside llama.cpp's: the same file, threads and clients, in turn; ratios of medians.
//!
//! ```text
//! serving --njoule BIN --llama DIR --gguf FILE [--threads T] [--clients 1,4,16,32] [--requests N] [--rounds N]
//! ```
//!
//! DIR holds `llama-server`. The client is `njoule bench --endpoint`, in a process of its own, and the same for all: each
//! of N requests (4) of a client asks for 64 tokens, after 96 words of its own (`distinct`), or after 256 words that all share
//! and 16 of its own (`shared`); no prompt comes twice. njoule's server runs as it comes, which is with guesses where they pay, and
//! without. CPU seconds are those of the server's process.

use anyhow::{Context, Result, bail};
use njoule_benches::flags::Flags;
use njoule_benches::servers::{Figures, Load, Setup};

fn main() -> Result<()> {
    let o = Options::parse()?;
    let most = *o.clients.iter().max().context("--clients is empty")?;
    let setup = Setup { places: most, ..o.setup };
    let servers = [
        ("njoule", setup.njoule(&[])?),
        ("without guesses", setup.njoule(&["--speculate", "off"])?),
        ("llama.cpp", setup.llama()?),
    ];
    let mut seed = 1;
    println!(
        "{:22} {:16} {:>9} {:>6} {:>6}   p50 TTFT ms, p99; p50 TPOT ms, p99; CPU s per 1000 tokens",
        "case", "server", "tokens/s", "ratio", "CPU"
    );
    for (pattern, workload, own_words) in [("distinct", "closed", "96"), ("shared", "shared-prefix", "16")] {
        for &clients in &o.clients {
            let mut rounds: [Vec<Figures>; 3] = Default::default();
            for round in 0..o.rounds.get() {
                seed += 1;
                for at in 0..servers.len() {
                    // Nobody is always the first.
                    let at = (at + round) % servers.len();
                    let requests = o.requests.get();
                    let load = Load { workload, words: own_words, tokens: "64", clients, requests, rate: 1.0, seed };
                    rounds[at].push(servers[at].1.measure(&load)?);
                }
            }
            let medians = rounds.map(|figures| Figures::median(&figures));
            let theirs = &medians[2];
            for ((name, _), figures) in servers.iter().zip(&medians) {
                // How many times the other server's tokens, and how many times less CPU time.
                let (faster, thriftier) = (figures.rate / theirs.rate, theirs.cpu / figures.cpu);
                let case = format!("{pattern}, {clients} clients");
                println!("{case:22} {name:16} {:9.1} {faster:6.2} {thriftier:6.2}   {figures}", figures.rate);
            }
        }
    }
    Ok(())
}

struct Options {
    setup: Setup,
    clients: Vec<usize>,
    requests: std::num::NonZero<usize>,
    rounds: std::num::NonZero<usize>,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut flags = Flags::read()?;
        let setup = Setup::read(&mut flags)?;
        let mut take = |name: &str, default: Option<&str>| flags.take(name, default);
        let options = Options {
            setup,
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
