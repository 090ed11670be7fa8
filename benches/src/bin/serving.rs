//! njoule's server beside llama.cpp's: the same file, threads and clients, in turn; ratios of medians.
//!
//! ```text
//! serving --njoule BIN --llama DIR --gguf FILE [--threads T] [--clients 1,4,16,32] [--requests N] [--rounds N]
//! ```
//!
//! DIR holds `llama-server`. The client is `njoule bench --endpoint`, in a process of its own, and the same for both: each
//! of N requests (4) of a client asks for 64 tokens, after 96 words of its own (`distinct`), or after 256 words that all share
//! and 16 of its own (`shared`); no prompt comes twice. CPU seconds are those of the server's process.

use anyhow::{Context, Result, bail};
use njoule_benches::flags::Flags;
use njoule_benches::servers::{Figures, Load, Setup};

fn main() -> Result<()> {
    let o = Options::parse()?;
    let most = *o.clients.iter().max().context("--clients is empty")?;
    let setup = Setup { places: most, ..o.setup };
    let servers = [setup.njoule(&[])?, setup.llama()?];
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
                    let requests = o.requests.get();
                    let load = Load { workload, words: own_words, tokens: "64", clients, requests, rate: 1.0, seed };
                    figures.push(server.measure(&load)?);
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

struct Options {
    setup: Setup,
    clients: Vec<usize>,
    requests: std::num::NonZero<usize>,
    rounds: std::num::NonZero<usize>,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut flags = Flags::read()?;
        let mut take = |name: &str, default: Option<&str>| flags.take(name, default);
        let options = Options {
            setup: Setup {
                njoule: take("njoule", None)?,
                llama: take("llama", None)?,
                gguf: take("gguf", None)?,
                threads: take("threads", Some("2"))?,
                places: 1,
            },
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
