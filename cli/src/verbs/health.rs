//! `njoule health`: whether a server answers, as an exit code, for images that have no curl.
//!
//! Invariant: it ends within its timeout, and what it says is what the server has said.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::TlsConfig;

use super::Context;
use crate::args::UsageError;
use crate::fetch::{self, Env};

/// Arguments of `health`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The server: http://HOST:PORT or HOST:PORT [default: port $NJOULE_PORT or 8000 of this machine, by https where
    /// $NJOULE_TLS_CERT is set]
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Demand that it takes new requests: not while it drains, nor with a full queue
    #[arg(long, conflicts_with = "live")]
    ready: bool,
    /// Demand no more than that its engine is not lost: also while it loads
    #[arg(long)]
    live: bool,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    timeout: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Asks once; whatever is not 200 is an error.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        if !(SHORTEST..=LONGEST).contains(&self.timeout) {
            return Err(UsageError(format!("--timeout must be {SHORTEST} to {LONGEST} seconds")).into());
        }
        let server = self.url.as_deref().map_or_else(|| of_variables(&context.fetch.env), with_scheme);
        let path = match () {
            () if self.ready => "/ready",
            () if self.live => "/live",
            () => "/health",
        };
        let url = format!("{}{path}", server.trim_end_matches('/'));
        let begun = Instant::now();
        let asked = ask(&url, Duration::from_secs_f64(self.timeout), &context.fetch.env);
        let (status, why) = match asked {
            Ok((200, _)) => (Some(200), None),
            Ok((status, message)) => (Some(status), Some(message.unwrap_or_else(|| format!("status {status}")))),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        if self.json {
            let told = json!({"url": url, "ok": why.is_none(), "status": status, "error": why,
                "seconds": begun.elapsed().as_secs_f64()});
            writeln!(context.out, "{told}")?;
        } else if why.is_none() {
            writeln!(context.out, "ok")?;
        }
        match why {
            None => Ok(()),
            Some(why) => bail!("{url}: {why}"),
        }
    }
}

/// Status, and the message of an error.
fn ask(url: &str, timeout: Duration, env: &Env) -> anyhow::Result<(u16, Option<String>)> {
    // Whoever answers on the loopback interface is this machine, and certificates name others.
    let tls = match is_loopback(url) {
        true => TlsConfig::builder().disable_verification(true).build(),
        false => TlsConfig::builder().root_certs(fetch::tls::roots(env, None)?).build(),
    };
    let config = Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .build();
    let mut answer = Agent::from(config).get(url).call()?;
    let text = answer.body_mut().with_config().limit(MAX_BYTES).read_to_string().unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    Ok((answer.status().as_u16(), body["error"]["message"].as_str().map(str::to_owned)))
}

fn with_scheme(given: &str) -> String {
    if given.contains("://") { given.to_owned() } else { format!("http://{given}") }
}

/// The server that a process with these variables would be.
fn of_variables(env: &Env) -> String {
    let encrypted = ["NJOULE_TLS_CERT", "NJOULE_SSL_CERTFILE"].iter().any(|name| env.var(name).is_some());
    let scheme = if encrypted { "https" } else { "http" };
    // One that listens everywhere listens here too.
    let host = env.var("NJOULE_HOST").filter(|host| !EVERYWHERE.contains(host)).unwrap_or("127.0.0.1");
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    format!("{scheme}://{host}:{}", env.var("NJOULE_PORT").unwrap_or("8000"))
}

fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(host, _)| host),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

const EVERYWHERE: [&str; 3] = ["0.0.0.0", "::", "[::]"];
const SHORTEST: f64 = 0.01;
const LONGEST: f64 = 3600.0;
const MAX_BYTES: u64 = 64 << 10;

const EXAMPLES: &str = "\
Examples:
  njoule health                         exit code 0 when the server here has its model and its engine lives, else 1
  njoule health --ready 10.0.0.7:8000   when it takes new requests

Of a server on this machine the certificate is not checked.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_url_it_asks_the_server_that_the_variables_describe() {
        for (pairs, url) in [
            (&[][..], "http://127.0.0.1:8000"),
            (&[("NJOULE_PORT", "9"), ("NJOULE_HOST", "0.0.0.0")], "http://127.0.0.1:9"),
            (&[("NJOULE_HOST", "10.0.0.7"), ("NJOULE_TLS_CERT", "c.pem")], "https://10.0.0.7:8000"),
            (&[("NJOULE_HOST", "::1")], "http://[::1]:8000"),
        ] {
            assert_eq!(of_variables(&Env::from_pairs(pairs.iter().copied())), url);
        }
    }

    #[test]
    fn certificates_of_other_machines_are_checked() {
        for (url, here) in [
            ("https://127.0.0.1:8000/health", true),
            ("https://[::1]/health", true),
            ("https://localhost/health", true),
            ("https://127.0.0.1@example.org/health", false),
            ("https://localhost.example.org:1/health", false),
            ("https://10.0.0.7:8000/health", false),
        ] {
            assert_eq!(is_loopback(url), here, "{url}");
        }
    }
}
