//! What a grammar costs per token: the time between tokens of one stream with it and without it, the prompt and the server the
//! same and nobody beside, token by token.
//!
//! A second stream without it says what such differences are worth on this machine. Times are a client's; chunks that carry more
//! than one token are left out. Beside them stands what the server counts between its steps, where masks are made: that has the
//! noise of the steps not in it.
//!
//! Invariant: two times are compared at the same token of the same prompt, so that both steps have the same context.

use std::io::{BufRead, BufReader};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Case, Options, body, post};

/// Microseconds between tokens, and their differences.
#[derive(Debug, Default)]
pub struct Costs {
    schemas: usize,
    with: Vec<f64>,
    without: Vec<f64>,
    /// Of tokens that both have.
    difference: Vec<f64>,
    /// Of two streams without.
    noise: Vec<f64>,
    /// Between the server's steps, per token of a stream.
    host_with: Vec<f64>,
    host_without: Vec<f64>,
    host_difference: Vec<f64>,
    /// Milliseconds to the first token more.
    first: Vec<f64>,
}

/// One stream: microseconds to the first token, and before each that came alone, by its number.
struct Stream {
    first: f64,
    /// Between steps, per token.
    host: f64,
    gaps: Vec<Option<f64>>,
}

/// Measures on a sample of the schemas, as far as they are answered.
pub fn measure(url: &str, cases: &[Case], options: &Options) -> anyhow::Result<Costs> {
    let mut costs = Costs::default();
    for (at, case) in cases.iter().enumerate().step_by(cases.len().div_ceil(options.sample).max(1)) {
        let stream = |tokens: usize, constrained: bool| stream(url, &body(case, at, tokens, constrained));
        // The prompt is in the cache for those that count.
        let Some(warm) = stream(options.max_tokens.min(TOKENS), true)? else { continue };
        let tokens = warm.gaps.len() + 1;
        let (Some(with), Some(without), Some(again)) =
            (stream(tokens, true)?, stream(tokens, false)?, stream(tokens, false)?)
        else {
            bail!("{}: answered once, and not the next time", case.name);
        };
        costs.schemas += 1;
        costs.first.push((with.first - without.first) / 1e3);
        costs.with.extend(with.gaps.iter().flatten());
        costs.without.extend(without.gaps.iter().flatten());
        costs.difference.extend(with.beyond(&without));
        costs.noise.extend(again.beyond(&without));
        // Of two the smaller one: what comes between takes time and gives none.
        let host = without.host.min(again.host);
        costs.host_with.push(with.host);
        costs.host_without.push(host);
        costs.host_difference.push(with.host - host);
    }
    Ok(costs)
}

impl Stream {
    /// What it took more than another, where both have a time.
    fn beyond(&self, other: &Stream) -> impl Iterator<Item = f64> {
        self.gaps.iter().zip(&other.gaps).filter_map(|(own, other)| Some((*own)? - (*other)?))
    }
}

/// Reads one stream; `None` where it is refused.
fn stream(url: &str, body: &Value) -> anyhow::Result<Option<Stream>> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"continuous_usage_stats": true});
    let host = host_seconds(url)?;
    let start = Instant::now();
    let mut response = post(url, &body)?;
    if response.status().as_u16() != 200 {
        return Ok(None);
    }
    let (mut last, mut tokens) = (start, 0);
    let mut stream = Stream { first: 0.0, host: 0.0, gaps: vec![] };
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line?;
        let Some(chunk) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
        let now = Instant::now();
        let chunk: Value = serde_json::from_str(chunk)?;
        if chunk["error"].is_object() {
            bail!("a stream ended by {}", chunk["error"]);
        }
        let so_far = chunk["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
        let gap = (now - last).as_secs_f64() * 1e6;
        match (tokens, so_far - tokens.min(so_far)) {
            (_, 0) => continue,
            (0, new) => {
                stream.first = gap;
                stream.gaps.extend((1..new).map(|_| None));
            }
            (_, new) => {
                stream.gaps.extend((1..new).map(|_| None));
                stream.gaps.push((new == 1).then_some(gap));
            }
        }
        (last, tokens) = (now, so_far);
    }
    stream.host = (host_seconds(url)? - host) * 1e6 / (stream.gaps.len() + 1) as f64;
    Ok(Some(stream))
}

/// Seconds that the engine has spent between steps.
fn host_seconds(url: &str) -> anyhow::Result<f64> {
    let text = ureq::get(format!("{url}/metrics")).call()?.body_mut().read_to_string()?;
    let is_host = |line: &&str| line.starts_with("njoule_engine_seconds_total") && line.contains("kind=\"host\"");
    let value = text.lines().find(is_host).and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.context("/metrics has no seconds between steps")
}

impl Costs {
    /// One line per figure, the median and the 99th percentile.
    pub fn print(mut self) {
        println!("one stream alone, {} schemas, {} tokens with a mask:", self.schemas, self.with.len());
        let lines = [
            ("us between tokens with a mask", &mut self.with),
            ("us without", &mut self.without),
            ("us more with it, token by token", &mut self.difference),
            ("us more of a second run without", &mut self.noise),
            ("us per token between steps with it", &mut self.host_with),
            ("us per token between steps without", &mut self.host_without),
            ("us per token between steps more", &mut self.host_difference),
            ("ms more to the first token", &mut self.first),
        ];
        for (what, values) in lines {
            values.sort_by(f64::total_cmp);
            println!("  {what:<36} median {:>8.1}  p99 {:>8.1}", at(values, 0.5), at(values, 0.99));
        }
    }
}

/// The value below which that part of sorted ones lies.
fn at(sorted: &[f64], part: f64) -> f64 {
    let place = (sorted.len() as f64 * part) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Tokens of a stream at most.
const TOKENS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_of_tokens_that_both_streams_have_alone() {
        let of = |gaps: &[Option<f64>]| Stream { first: 0.0, host: 0.0, gaps: gaps.to_vec() };
        let (one, other) = (of(&[Some(5.0), None, Some(9.0), Some(1.0)]), of(&[Some(3.0), Some(3.0), Some(4.0)]));
        assert_eq!(one.beyond(&other).collect::<Vec<_>>(), [2.0, 5.0]);
    }

    #[test]
    fn percentiles_are_values_of_the_sample() {
        let values: Vec<f64> = (0..200).map(f64::from).collect();
        assert_eq!([at(&values, 0.5), at(&values, 0.99)], [100.0, 198.0]);
        assert_eq!(at(&[7.0], 0.99), 7.0);
        assert!(at(&[], 0.5).is_nan());
    }
}
