//! What a server did between two looks at its metrics, for people and for programs. What is not known is a dash, or null.

use serde_json::{Value, json};

use super::scrape::Snapshot;

/// Figures of a time between two looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    model: Option<String>,
    ready: Option<bool>,
    /// Tokens per second.
    generated: Option<f64>,
    prompt: Option<f64>,
    /// Sequences.
    running: Option<f64>,
    waiting: Option<f64>,
    /// Tokens generated per step.
    batch: Option<f64>,
    /// Share of the cache in use.
    cache: Option<f64>,
    /// Share of prompt tokens that were in the cache.
    cached: Option<f64>,
    finished: Option<f64>,
    preemptions: Option<f64>,
    rejected: Option<f64>,
    ttft: [Option<f64>; 2],
    tpot: [Option<f64>; 2],
    watts: Option<f64>,
    tokens_per_joule: Option<f64>,
}

impl Figures {
    /// Of the time from `before` to `now`; rates are unknown where the server began anew.
    pub fn between(before: &Snapshot, now: &Snapshot) -> Figures {
        let seconds = (now.at - before.at).as_secs_f64();
        let growth = |name: &str| now.growth(before, name);
        let rate = |name: &str| growth(name).filter(|_| seconds > 0.0).map(|growth| growth / seconds);
        let share = |part: Option<f64>, whole: Option<f64>| Some(part? / whole.filter(|whole| *whole > 0.0)?);
        let quantiles = |name: &str| QUANTILES.map(|q| now.quantile(before, name, q));
        let joules = growth("energy_attributed_joules_total");
        Figures {
            model: now.model.clone(),
            ready: now.value("ready").map(|ready| ready == 1.0),
            generated: rate("generation_tokens_total"),
            prompt: rate("prompt_tokens_total"),
            running: now.value("num_requests_running"),
            waiting: now.value("num_requests_waiting"),
            batch: share(growth("generation_tokens_total"), growth("steps_total")),
            cache: now.value("kv_cache_usage_ratio").or_else(|| now.value("kv_cache_usage_perc")),
            // Both are counted when a prompt is begun; `prompt_tokens_total` is when its request has ended.
            cached: share(growth("prefix_cache_hits_total"), growth("prefix_cache_queries_total")),
            finished: rate("requests_finished_total").or_else(|| rate("request_success_total")),
            preemptions: growth("num_preemptions_total"),
            rejected: growth("admission_rejections_total"),
            ttft: quantiles("time_to_first_token_seconds"),
            tpot: quantiles("request_time_per_output_token_seconds"),
            // What is attributed is counted once; meters may lie within each other.
            watts: joules.filter(|_| seconds > 0.0).map(|joules| joules / seconds),
            tokens_per_joule: share(growth("generation_tokens_total"), joules),
        }
    }

    /// One object.
    pub fn json(&self, url: &str) -> Value {
        let [ttft_p50, ttft_p95] = self.ttft;
        let [tpot_p50, tpot_p95] = self.tpot;
        json!({
            "time": unix_seconds(), "url": url, "reachable": true, "model": self.model, "ready": self.ready,
            "generated_tokens_per_s": self.generated, "prompt_tokens_per_s": self.prompt,
            "running": self.running, "waiting": self.waiting, "tokens_per_step": self.batch,
            "kv_cache_usage": self.cache, "prompt_cached_share": self.cached,
            "finished_per_s": self.finished, "preemptions": self.preemptions, "rejected": self.rejected,
            "ttft_s": {"p50": ttft_p50, "p95": ttft_p95}, "tpot_s": {"p50": tpot_p50, "p95": tpot_p95},
            "watts": self.watts, "tokens_per_joule": self.tokens_per_joule,
        })
    }

    /// One line.
    pub fn line(&self) -> String {
        format!(
            "{} tok/s, {} prompt tok/s | {} running, {} waiting, cache {} | TTFT {}, TPOT {} | {} W, {} tok/J",
            plain(self.generated, 1),
            plain(self.prompt, 1),
            plain(self.running, 0),
            plain(self.waiting, 0),
            percent(self.cache),
            milliseconds(self.ttft[0]),
            milliseconds(self.tpot[0]),
            plain(self.watts, 1),
            plain(self.tokens_per_joule, 2),
        )
    }

    /// Several lines, for a terminal.
    pub fn page(&self, url: &str) -> Vec<String> {
        let model = self.model.as_deref().unwrap_or(UNKNOWN);
        let state = match self.ready {
            Some(true) => "ready",
            Some(false) => "not ready",
            None => UNKNOWN,
        };
        let pair =
            |[p50, p95]: [Option<f64>; 2]| format!("p50 {:>9}   p95 {:>9}", milliseconds(p50), milliseconds(p95));
        vec![
            format!("{url}  {model}  {state}"),
            format!("generated  {:>10} tok/s   prompt {:>10} tok/s", plain(self.generated, 1), plain(self.prompt, 1)),
            format!("sequences  {:>10} running {:>10} waiting", plain(self.running, 0), plain(self.waiting, 0)),
            format!("step       {:>10} tokens  {:>10} finished/s", plain(self.batch, 2), plain(self.finished, 2)),
            format!("cache      {:>10} used    {:>10} of prompts cached", percent(self.cache), percent(self.cached)),
            format!("TTFT       {}", pair(self.ttft)),
            format!("TPOT       {}", pair(self.tpot)),
            format!("energy     {:>10} W       {:>10} tok/J", plain(self.watts, 1), plain(self.tokens_per_joule, 2)),
            format!("lately     {:>10} preempted {:>8} refused", plain(self.preemptions, 0), plain(self.rejected, 0)),
        ]
    }
}

/// Seconds of Unix time.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn plain(value: Option<f64>, digits: usize) -> String {
    value.map_or(UNKNOWN.to_owned(), |value| format!("{value:.digits$}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or(UNKNOWN.to_owned(), |value| format!("{:.1} %", value * 100.0))
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or(UNKNOWN.to_owned(), |value| format!("{:.1} ms", value * 1e3))
}

const UNKNOWN: &str = "—";
const QUANTILES: [f64; 2] = [0.5, 0.95];

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn rates_are_of_the_time_between_and_what_is_absent_is_unknown() {
        let start = Instant::now();
        let before = Snapshot::read(
            "njoule_generation_tokens_total 10\nnjoule_steps_total 4\nnjoule_num_requests_running 1\n",
            start,
        );
        let text = "njoule_generation_tokens_total 50\nnjoule_steps_total 14\nnjoule_num_requests_running 3\n";
        let now = Snapshot::read(text, start + Duration::from_secs(2));
        let figures = Figures::between(&before, &now);
        assert_eq!((figures.generated, figures.batch, figures.running), (Some(20.0), Some(4.0), Some(3.0)));
        assert_eq!((figures.watts, figures.tokens_per_joule, figures.cache), (None, None, None));
        assert_eq!(figures.json("u")["watts"], Value::Null);
        assert!(figures.line().ends_with("— W, — tok/J"), "{}", figures.line());
        // Of what was looked for, not of the prompts whose requests have ended.
        let cached = |hits: u32, queries: u32, ended: u32, after: u64| {
            let text = format!(
                "njoule_prefix_cache_hits_total {hits}\nnjoule_prefix_cache_queries_total {queries}\n\
                 njoule_prompt_tokens_cached_total {hits}\nnjoule_prompt_tokens_total {ended}\n"
            );
            Snapshot::read(&text, start + Duration::from_secs(after))
        };
        assert_eq!(Figures::between(&cached(0, 0, 0, 0), &cached(30, 40, 10, 1)).cached, Some(0.75));
        // A server that was started anew counts from 0 again.
        let anew = Figures::between(
            &now,
            &Snapshot::read("njoule_generation_tokens_total 1\n", start + Duration::from_secs(3)),
        );
        assert_eq!((anew.generated, anew.running), (None, None));
    }
}
