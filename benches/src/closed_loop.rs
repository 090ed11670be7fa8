//! Clients of a server in a closed loop: each sends its next request when the last one is answered, streamed by SSE from
//! `/v1/completions`, which njoule and llama.cpp both have.
//!
//! Invariant: every figure is of whole requests that succeeded; one that fails ends the run.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Load {
    /// Clients at once.
    pub clients: usize,
    /// Requests of each.
    pub requests: usize,
    /// Words that all prompts begin with.
    pub shared_words: usize,
    /// Words of a prompt that no other has.
    pub own_words: usize,
    /// Tokens of each answer.
    pub tokens: usize,
    /// Makes the prompts differ from those of other runs.
    pub seed: u64,
}

/// What they saw.
#[derive(Debug)]
pub struct Seen {
    /// From the first request to the last answer.
    pub wall: Duration,
    /// Tokens of all answers, by the server's own count.
    pub tokens: u64,
    /// Prompt tokens, by the server's own count.
    pub prompt_tokens: u64,
    /// Seconds from a request to the first piece of its answer, sorted.
    pub ttft: Vec<f64>,
    /// Seconds per token after the first, a value per request, sorted.
    pub tpot: Vec<f64>,
}

/// One answer.
struct Answer {
    tokens: u64,
    prompt_tokens: u64,
    ttft: f64,
    tpot: f64,
}

/// Runs the clients against `url` (`http://HOST:PORT`).
pub fn run(url: &str, load: &Load) -> Result<Seen> {
    let start = Instant::now();
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let client = |client: usize| -> Result<Vec<Answer>> {
            let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
            (0..load.requests).map(|request| ask(&agent, url, load, client * load.requests + request)).collect()
        };
        let clients: Vec<_> = (0..load.clients).map(|number| scope.spawn(move || client(number))).collect();
        let joined =
            clients.into_iter().map(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
        joined.collect::<Result<Vec<_>>>().map(|lists| lists.into_iter().flatten().collect())
    })?;
    let sorted = |figure: fn(&Answer) -> f64| {
        let mut values: Vec<f64> = answers.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    Ok(Seen {
        wall: start.elapsed(),
        tokens: answers.iter().map(|answer| answer.tokens).sum(),
        prompt_tokens: answers.iter().map(|answer| answer.prompt_tokens).sum(),
        ttft: sorted(|answer| answer.ttft),
        tpot: sorted(|answer| answer.tpot),
    })
}

/// The value below which `share` of the sorted values are.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}

fn ask(agent: &ureq::Agent, url: &str, load: &Load, number: usize) -> Result<Answer> {
    let body = json!({
        "prompt": prompt(load, number),
        "max_tokens": load.tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let start = Instant::now();
    let request = agent.post(format!("{url}/v1/completions")).header("content-type", "application/json");
    let response = request.send(body.to_string())?;
    if response.status() != 200 {
        bail!("{url} answered {}: {}", response.status(), response.into_body().read_to_string()?);
    }
    let (mut first, mut last, mut usage) = (None, start, None);
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
        let chunk: Value = serde_json::from_str(data)?;
        if let Some(error) = chunk.get("error") {
            bail!("{url} broke off: {error}");
        }
        if chunk["choices"].as_array().is_some_and(|choices| !choices.is_empty()) {
            last = Instant::now();
            first.get_or_insert(last);
        }
        if chunk["usage"].is_object() {
            usage = Some((chunk["usage"]["completion_tokens"].as_u64(), chunk["usage"]["prompt_tokens"].as_u64()));
        }
    }
    let first = first.context("an answer without a piece")?;
    let (Some(tokens), Some(prompt_tokens)) = usage.context("an answer without usage")? else { bail!("no counts") };
    if tokens != load.tokens as u64 {
        bail!("{tokens} tokens where {} were asked", load.tokens);
    }
    let after = (tokens - 1).max(1) as f64;
    Ok(Answer {
        tokens,
        prompt_tokens,
        ttft: (first - start).as_secs_f64(),
        tpot: (last - first).as_secs_f64() / after,
    })
}

/// Words that begin all prompts of a load, then words of this request alone.
fn prompt(load: &Load, number: usize) -> String {
    let shared = words(load.seed, load.shared_words);
    let own = words(mixed(mixed(load.seed).wrapping_add(number as u64 + 1)), load.own_words);
    shared.chain(own).collect::<Vec<_>>().join(" ")
}

fn words(seed: u64, count: usize) -> impl Iterator<Item = &'static str> {
    // Weyl's sequence, mixed: the words only have to differ.
    (0..count as u64).map(move |at| {
        let x = mixed(seed.wrapping_add(at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        WORDS[(x >> 32) as usize % WORDS.len()]
    })
}

/// splitmix64's finaliser.
fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const WORDS: [&str; 32] = [
    "river", "stone", "light", "garden", "window", "paper", "music", "winter", "market", "letter", "bridge", "morning",
    "forest", "silver", "engine", "doctor", "island", "memory", "number", "planet", "school", "summer", "thread",
    "valley", "wonder", "yellow", "animal", "butter", "castle", "dinner", "evening", "father",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_prompt_comes_twice_in_a_run_or_in_another() {
        let load = |seed, shared_words| Load { clients: 32, requests: 4, shared_words, own_words: 16, tokens: 1, seed };
        let mut seen = std::collections::HashSet::new();
        for seed in 1..40 {
            for number in 0..32 * 4 {
                assert!(seen.insert(prompt(&load(seed, 0), number)), "{seed} {number}");
            }
        }
        let shared = |seed, number| prompt(&load(seed, 16), number);
        let first = |text: String| text.split(' ').take(16).collect::<Vec<_>>().join(" ");
        assert_eq!(first(shared(1, 0)), first(shared(1, 7)));
        assert_ne!(first(shared(1, 0)), first(shared(2, 0)));
    }
}
