//! `njoule top`: what a server does right now, from its `/metrics`.
//!
//! On a terminal one picture that is drawn anew; elsewhere a line a time, with `--json` an object. A server that cannot be
//! reached is asked again.

mod figures;
mod scrape;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;
use ureq::Agent;
use ureq::tls::TlsConfig;

use self::figures::{Figures, unix_seconds};
use self::scrape::Snapshot;
use super::Context;
use crate::args::UsageError;
use crate::fetch;

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server: http://HOST:PORT or HOST:PORT
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Seconds between two looks
    #[arg(long, short = 'n', value_name = "SECONDS", default_value_t = 2.0)]
    interval: f64,
    /// Print the figures of one interval and end; exit code 1 if the server cannot be reached
    #[arg(long)]
    once: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Looks until somebody ends it.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        if !(SHORTEST..=LONGEST).contains(&self.interval) {
            return Err(UsageError(format!("--interval must be {SHORTEST} to {LONGEST} seconds")).into());
        }
        let interval = Duration::from_secs_f64(self.interval);
        let url = metrics_url(&self.url);
        let agent = agent(context, interval)?;
        let drawn = std::io::stdout().is_terminal() && !self.json && !self.once;
        let mut before: Option<Snapshot> = None;
        // Lines of the last picture.
        let mut lines = 0;
        loop {
            let started = Instant::now();
            let mut show = |page: Vec<String>, lines: &mut usize| -> std::io::Result<()> {
                if drawn {
                    if *lines > 0 {
                        write!(context.out, "\x1b[{lines}A\r\x1b[J")?;
                    }
                    *lines = page.len();
                }
                page.iter().try_for_each(|line| writeln!(context.out, "{}", printable(line)))?;
                context.out.flush()
            };
            match look(&agent, &url) {
                Ok(now) => {
                    if let Some(before) = &before {
                        let figures = Figures::between(before, &now);
                        let page = match () {
                            () if self.json => vec![figures.json(&self.url).to_string()],
                            () if drawn => figures.page(&self.url),
                            () => vec![figures.line()],
                        };
                        show(page, &mut lines)?;
                        if self.once {
                            return Ok(());
                        }
                    }
                    before = Some(now);
                }
                Err(error) if self.once => bail!("{url}: {error:#}"),
                Err(error) => {
                    let page = match self.json {
                        true => json!({"time": unix_seconds(), "url": self.url, "reachable": false, "error": format!("{error:#}")})
                            .to_string(),
                        false => format!("{}: {error:#}; trying again", self.url),
                    };
                    show(vec![page], &mut lines)?;
                    before = None;
                }
            }
            std::thread::sleep(interval.saturating_sub(started.elapsed()));
        }
    }
}

/// Without what would steer a terminal: names are the server's.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn look(agent: &Agent, url: &str) -> anyhow::Result<Snapshot> {
    let mut answer = agent.get(url).call()?;
    if answer.status() != 200 {
        bail!("status {}", answer.status());
    }
    let text = answer.body_mut().with_config().limit(MAX_BYTES).read_to_string().context("no text")?;
    Ok(Snapshot::read(&text, Instant::now()))
}

/// Where a server has its metrics.
fn metrics_url(given: &str) -> String {
    let url = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
    let path = url.split_once("://").is_some_and(|(_, rest)| rest.trim_end_matches('/').contains('/'));
    if path { url } else { format!("{}/metrics", url.trim_end_matches('/')) }
}

/// A client that asks the server itself and waits no longer than it is worth.
fn agent(context: &Context<'_>, interval: Duration) -> anyhow::Result<Agent> {
    let tls = TlsConfig::builder().root_certs(fetch::tls::roots(&context.fetch.env, None)?).build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .http_status_as_error(false)
        .timeout_global(Some(interval.max(LEAST_PATIENCE)))
        .build();
    Ok(config.into())
}

const SHORTEST: f64 = 0.05;
const LONGEST: f64 = 3600.0;
const LEAST_PATIENCE: Duration = Duration::from_secs(2);
const MAX_BYTES: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c — d"), "a\u{fffd}[2Jb\u{fffd}c — d");
    }

    #[test]
    fn a_server_is_asked_for_its_metrics() {
        for (given, url) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000/metrics"),
            ("https://a/", "https://a/metrics"),
            ("http://a/other", "http://a/other"),
        ] {
            assert_eq!(metrics_url(given), url);
        }
    }
}
