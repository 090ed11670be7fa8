//! What a batch has come to: requests, tokens, time, energy.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use njoule_energy::Method;
use njoule_runtime::EngineStats;
use njoule_runtime::engine::EnergyStats;
use njoule_server::local::Answered;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::session::Facts;

/// Counts while a batch runs.
#[derive(Debug)]
pub struct Summary {
    answered: u64,
    failed: u64,
    skipped: u64,
    tokens: Tokens,
    started: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tokens {
    prompt: u64,
    generated: u64,
    cached: u64,
}

/// What is read of an answer: OpenAI's names or Anthropic's.
#[derive(Default, Deserialize)]
struct Body {
    #[serde(default)]
    usage: Usage,
}

#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default, alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: u64,
}

impl Default for Summary {
    fn default() -> Self {
        Summary { answered: 0, failed: 0, skipped: 0, tokens: Tokens::default(), started: Instant::now() }
    }
}

impl Summary {
    /// A request has its answer, or an error that a server would have sent.
    pub fn answered(&mut self, answered: &Answered) {
        if answered.status != 200 {
            self.failed += 1;
            return;
        }
        self.answered += 1;
        let body: Body = serde_json::from_slice(&answered.body).unwrap_or_default();
        self.tokens.prompt += body.usage.prompt_tokens;
        self.tokens.generated += body.usage.completion_tokens;
        self.tokens.cached += body.usage.prompt_tokens_details.cached_tokens;
    }

    /// A line was no request.
    pub fn refused(&mut self) {
        self.failed += 1;
    }

    /// A request was answered by an earlier run.
    pub fn skipped(&mut self) {
        self.skipped += 1;
    }

    /// For the bar.
    pub fn progress(&self) -> String {
        let rate = self.tokens.generated as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        format!("{} answered, {} failed{skipped}, {rate:.0} tok/s", self.answered, self.failed)
    }

    /// What it has taken until now: from a loaded model, and from `started` on.
    pub fn times(&self, started: Instant) -> [Duration; 2] {
        [self.started.elapsed(), started.elapsed()]
    }

    /// With the engine's figures, and why its energy is unknown if it is.
    pub fn finish(self, [run, total]: [Duration; 2], stats: &EngineStats, reasons: Vec<String>) -> Figures {
        Figures { run, total, steps: stats.steps, energy: stats.energy.whole(), reasons, counts: self }
    }
}

/// What a batch came to.
#[derive(Debug)]
pub struct Figures {
    counts: Summary,
    /// From a loaded model to the last answer.
    run: Duration,
    /// Loading included.
    total: Duration,
    steps: u64,
    /// Of all of it; unknown if a part of it is.
    energy: EnergyStats,
    reasons: Vec<String>,
}

impl Figures {
    /// Requests without an answer.
    pub fn failed(&self) -> u64 {
        self.counts.failed
    }

    /// Generated tokens per second, without loading; unknown where nothing was generated.
    fn rate(&self) -> Option<f64> {
        let seconds = self.run.as_secs_f64();
        (self.counts.tokens.generated > 0 && seconds > 0.0).then(|| self.counts.tokens.generated as f64 / seconds)
    }

    /// Joules of the whole run, loading included; unknown if a part of it is.
    fn joules(&self) -> Option<(f64, &'static str)> {
        self.energy.split.map(|split| split.total()).zip(self.energy.method.map(Method::name))
    }

    fn energy(&self) -> Value {
        let joules = self.joules();
        let generated = self.counts.tokens.generated;
        json!({
            "total_j": joules.map(|(joules, _)| joules),
            "low_j": joules.and(self.energy.joules).and_then(|j| j.low()),
            "high_j": joules.and(self.energy.joules).and_then(|j| j.high()),
            "method": joules.map(|(_, method)| method),
            "by_bucket": joules.and(self.energy.split),
            "output_tokens_per_joule": joules.filter(|(joules, _)| *joules > 0.0).map(|(joules, _)| generated as f64 / joules),
            "cpu_s": self.energy.cpu_s,
            "core_s": self.energy.core_s,
            "util_s": self.energy.util_s(),
            "util_unknown_s": self.energy.util_unknown_s,
            "reasons": if joules.is_none() { &self.reasons[..] } else { &[] },
        })
    }

    /// As one object.
    pub fn json(&self, facts: &Facts, output: &Path, errors: &Path) -> Value {
        let Summary { answered, failed, skipped, tokens, .. } = self.counts;
        json!({
            "model": facts.json(),
            "output": output,
            "errors": (failed > 0).then_some(errors),
            "requests": {"answered": answered, "failed": failed, "skipped": skipped},
            "tokens": {"prompt": tokens.prompt, "generated": tokens.generated, "cached": tokens.cached},
            "steps": self.steps,
            "seconds": self.run.as_secs_f64(),
            "total_seconds": self.total.as_secs_f64(),
            "generated_tokens_per_s": self.rate(),
            "energy": self.energy(),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { answered, failed, skipped, tokens, .. } = self.counts;
        let rate = self.rate().map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        let energy = match self.joules() {
            Some(_) => self.energy.text(),
            None => format!("unknown ({})", self.reasons.first().map_or("not told of all of the time", String::as_str)),
        };
        write!(
            f,
            "{answered} answered, {failed} failed, {skipped} skipped | {} prompt + {} generated tokens in {:.3} s, {rate} tok/s | energy: {energy}",
            tokens.prompt,
            tokens.generated,
            self.run.as_secs_f64(),
        )
    }
}
