//! The one line of figures after an answer.

use std::fmt;
use std::time::Duration;

use njoule_runtime::EngineStats;
use njoule_runtime::engine::{Energy, EnergyStats};
use njoule_runtime::request::Usage;
use serde_json::{Value, json};

/// Figures of one or several answers.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    prompt_tokens: usize,
    generated_tokens: usize,
    prefill_tokens_per_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    /// From submission to the first token of the first answer.
    ttft: Option<Duration>,
    load: Duration,
    /// Steps that the engine ran, tokens that it guessed, and of these the right ones; unknown of one answer of several.
    steps: Option<[u64; 3]>,
    energy: Spent,
}

/// Of all that an engine did, loading included, or of one answer.
#[derive(Clone, Copy, Debug)]
enum Spent {
    Run(EnergyStats),
    Answer(Option<Energy>),
}

impl Figures {
    /// Of answers that an engine gave, all it did.
    pub fn new(usages: &[Usage], stats: &EngineStats, load: Duration) -> Figures {
        let rate = |tokens: u64, seconds: f64| (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds);
        Figures {
            prompt_tokens: usages.iter().map(|u| u.prompt_tokens).sum(),
            generated_tokens: usages.iter().map(|u| u.generated_tokens).sum(),
            prefill_tokens_per_s: rate(stats.prefill_tokens, stats.prefill_seconds),
            // A guess that was right is a token that no step had to be run for.
            decode_tokens_per_s: rate(stats.decode_tokens + stats.accepted_tokens, stats.decode_seconds),
            ttft: usages.first().and_then(|u| u.ttft),
            load,
            steps: Some([stats.steps, stats.drafted_tokens, stats.accepted_tokens]),
            energy: Spent::Run(stats.energy.whole()),
        }
    }

    /// Of one answer of an engine that gives several.
    pub fn of_one(usage: &Usage, load: Duration) -> Figures {
        let rate =
            |tokens: usize, time: Duration| (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64());
        Figures {
            prompt_tokens: usage.prompt_tokens,
            generated_tokens: usage.generated_tokens,
            prefill_tokens_per_s: rate(usage.prompt_tokens - usage.cached_tokens, usage.prefill),
            // The first token is prefill's.
            decode_tokens_per_s: rate(usage.generated_tokens.saturating_sub(1), usage.decode),
            ttft: usage.ttft,
            load,
            steps: None,
            energy: Spent::Answer(usage.energy_now().map(Energy::from)),
        }
    }

    /// As the `figures` object of a report.
    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "ttft_s": self.ttft.map(|t| t.as_secs_f64()),
            "load_s": self.load.as_secs_f64(),
            "steps": self.steps.map(|[steps, ..]| steps),
            "drafted_tokens": self.steps.map(|[_, drafted, _]| drafted),
            "accepted_tokens": self.steps.map(|[.., accepted]| accepted),
            "energy": self.energy.json(),
        })
    }
}

impl Spent {
    fn json(&self) -> Value {
        let (joules, method, cpu_s) = match self {
            Spent::Run(stats) => {
                let joules = stats.split.map(|split| split.total());
                (joules, stats.method.map(|method| method.name()), Some(stats.cpu_s))
            }
            Spent::Answer(used) => {
                let used = used.as_ref();
                (used.and_then(|u| u.total_j), used.and_then(|u| u.method), used.map(|u| u.cpu_s))
            }
        };
        json!({"total_j": joules, "method": method, "cpu_s": cpu_s})
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spent::Run(stats) => f.write_str(&stats.text()),
            Spent::Answer(Some(used)) => f.write_str(&used.text()),
            Spent::Answer(None) => f.write_str("unknown"),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        let ttft = self.ttft.map_or("-".to_owned(), |t| format!("{:.3} s", t.as_secs_f64()));
        write!(
            f,
            "{} prompt + {} generated tokens | prefill {} tok/s, decode {} tok/s | TTFT {ttft}, load {:.3} s | energy: {}",
            self.prompt_tokens,
            self.generated_tokens,
            rate(self.prefill_tokens_per_s),
            rate(self.decode_tokens_per_s),
            self.load.as_secs_f64(),
            self.energy,
        )
    }
}
