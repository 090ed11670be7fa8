//! Servers under requests that arrive by the clock, at shares of what fills one of them: what a token costs where there is time.
//!
//! ```text
//! arrivals --njoule BIN --llama DIR --gguf FILE [--threads T] [--loads 0.2,0.5,0.8] [--seconds S] [--rounds N]
//!          [--of njoule|llama] [--places N] [--words N] [--tokens N] [--tpot TIME] [--ttft TIME]
//! ```
//!
//! Requests have the lengths of a published conversation trace (`njoule bench --endpoint --workload chat`), at most WORDS (64) and
//! TOKENS (64). What fills njoule and llama.cpp is measured first: many requests at once. Then each server gets the same requests at
//! the same moments, in turn: njoule with either objective, and llama.cpp, unless the load is beyond nine tenths of what fills it.
//! Medians of the rounds.

use anyhow::{Context, Result, bail};
use njoule_benches::flags::Flags;
use njoule_benches::servers::{Figures, Load, Setup};

fn main() -> Result<()> {
    let o = Options::parse()?;
    let promise = ["--objective", "tokens-per-joule", "--tpot", &o.tpot, "--ttft", &o.ttft];
    let servers = [
        ("latency", o.setup.njoule(&["--objective", "latency"])?),
        ("tokens-per-joule", o.setup.njoule(&promise)?),
        ("llama.cpp", o.setup.llama()?),
    ];
    let load = |rate: f64, requests: usize, seed: u64| Load {
        workload: "chat",
        words: &o.words,
        tokens: &o.tokens,
        clients: o.setup.places,
        requests,
        rate,
        seed,
    };
    let fill = |at: usize| -> Result<f64> {
        let (name, server) = &servers[at];
        let Figures { requests, rate, cpu, .. } = server.measure(&load(1e6, FILL * o.setup.places, 1))?;
        println!("{name} filled: {requests:.2} requests/s, {rate:.0} tokens/s, {cpu:.2} CPU s per 1000 tokens");
        Ok(requests)
    };
    let (ours, theirs) = (fill(0)?, fill(2)?);
    let full = [ours, ours, theirs];
    println!(
        "{:24} {:>9} {:>10}   p50 TTFT ms, p99; p50 TPOT ms, p99; CPU s per 1000 tokens",
        "case", "req/s", "tokens/s"
    );
    for &share in &o.loads {
        let rate = share * if o.of_llama { theirs } else { ours };
        let requests = ((rate * o.seconds) as usize).max(8);
        let mut rounds: Vec<Vec<Figures>> = servers.iter().map(|_| vec![]).collect();
        for round in 0..o.rounds.get() {
            for at in 0..servers.len() {
                // Nobody is always the first.
                let at = (at + round) % servers.len();
                if rate < MOST * full[at] {
                    rounds[at].push(servers[at].1.measure(&load(rate, requests, 2 + round as u64))?);
                }
            }
        }
        for ((name, _), figures) in servers.iter().zip(rounds) {
            if figures.is_empty() {
                println!("{:24} more than it can do", format!("{:.0} %, {name}", share * 100.0));
                continue;
            }
            let median = Figures::median(&figures);
            let case = format!("{:.0} %, {name}", share * 100.0);
            println!("{case:24} {:9.2} {:10.1}   {median}", median.requests, median.rate);
        }
    }
    Ok(())
}

struct Options {
    setup: Setup,
    loads: Vec<f64>,
    /// Whether loads are shares of what fills llama.cpp's server.
    of_llama: bool,
    seconds: f64,
    rounds: std::num::NonZero<usize>,
    words: String,
    tokens: String,
    tpot: String,
    ttft: String,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut flags = Flags::read()?;
        let setup = Setup::read(&mut flags)?;
        let mut take = |name: &str, default: Option<&str>| flags.take(name, default);
        let options = Options {
            setup: Setup { places: take("places", Some("32"))?.parse().context("--places")?, ..setup },
            loads: take("loads", Some("0.2,0.5,0.8"))?
                .split(',')
                .map(|share| share.parse().context("--loads"))
                .collect::<Result<_>>()?,
            of_llama: match take("of", Some("njoule"))?.as_str() {
                "njoule" => false,
                "llama" => true,
                other => bail!("--of {other}: it is njoule or llama"),
            },
            seconds: take("seconds", Some("30"))?.parse().context("--seconds")?,
            rounds: take("rounds", Some("3"))?.parse().context("--rounds")?,
            words: take("words", Some("64"))?,
            tokens: take("tokens", Some("64"))?,
            tpot: take("tpot", Some("200ms"))?,
            ttft: take("ttft", Some("2s"))?,
        };
        flags.finish()?;
        if !options.loads.iter().all(|share| *share > 0.0 && *share < 1.0) {
            bail!("--loads are shares of what fills a server, between 0 and 1");
        }
        Ok(options)
    }
}

/// Requests for each place, to fill a server.
const FILL: usize = 3;

/// Share of what fills a server beyond which arrivals would pile up.
const MOST: f64 = 0.9;
