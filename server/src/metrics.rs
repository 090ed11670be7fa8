//! Figures of the server, and how they are written for Prometheus.
//!
//! Invariant: what is exported is true. A name of vLLM's is there only if its meaning is; what is unknown is absent.

mod energy;
mod text;

use std::sync::atomic::{AtomicU64, Ordering};

use njoule_runtime::FinishReason;
use njoule_runtime::histogram::Histogram;
use njoule_runtime::request::Usage;

pub use text::{Names, Scrape};

/// All that the server counts. The engine's own figures are read when somebody scrapes.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) prompt_tokens: Counter,
    pub(crate) generation_tokens: Counter,
    pub(crate) stopped: Counter,
    pub(crate) cut: Counter,
    pub(crate) aborted: Counter,
    pub(crate) errors: Counter,
    pub(crate) slow_readers: Counter,
    pub(crate) rejected_requests: Counter,
    pub(crate) rejected_tokens: Counter,
    pub(crate) rejected_draining: Counter,
    /// Responses by the first digit of their status.
    pub(crate) responses: [Counter; 6],
    pub(crate) ttft: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) per_token: Histogram,
    pub(crate) e2e: Histogram,
    pub(crate) queue: Histogram,
    pub(crate) inference: Histogram,
    pub(crate) prefill: Histogram,
    pub(crate) decode: Histogram,
    pub(crate) request_prompt_tokens: Histogram,
    pub(crate) request_generation_tokens: Histogram,
    pub(crate) params_n: Histogram,
    pub(crate) params_max_tokens: Histogram,
    /// Of requests that replicas answer, until the answer or its first event; not exported.
    forwarded: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let (request, tokens) = (|| Histogram::new(REQUEST), || Histogram::new(TOKENS));
        Metrics {
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            stopped: Counter::default(),
            cut: Counter::default(),
            aborted: Counter::default(),
            errors: Counter::default(),
            slow_readers: Counter::default(),
            rejected_requests: Counter::default(),
            rejected_tokens: Counter::default(),
            rejected_draining: Counter::default(),
            responses: Default::default(),
            ttft: Histogram::new(TTFT),
            inter_token: Histogram::new(INTER_TOKEN),
            per_token: Histogram::new(INTER_TOKEN),
            e2e: request(),
            queue: request(),
            inference: request(),
            prefill: request(),
            decode: request(),
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            params_n: Histogram::new(N),
            params_max_tokens: tokens(),
            forwarded: request(),
        }
    }
}

impl Metrics {
    /// A sequence has ended; `first` says that its prompt has not been counted yet.
    pub(crate) fn finished(&self, reason: FinishReason, usage: &Usage, first: bool) {
        match reason {
            FinishReason::Stop => self.stopped.add(1),
            FinishReason::Length => self.cut.add(1),
            _ => self.aborted.add(1),
        }
        if first {
            self.prompt_tokens.add(usage.prompt_tokens);
            self.request_prompt_tokens.observe_count(usage.prompt_tokens);
        }
        self.request_generation_tokens.observe_count(usage.generated_tokens);
        if matches!(reason, FinishReason::Stop | FinishReason::Length) {
            let (queued, prefill, decode) =
                (usage.queued.as_secs_f64(), usage.prefill.as_secs_f64(), usage.decode.as_secs_f64());
            self.queue.observe(queued);
            self.prefill.observe(prefill);
            self.decode.observe(decode);
            self.inference.observe(prefill + decode);
            self.e2e.observe(queued + prefill + decode);
            if let Some(ttft) = usage.ttft {
                self.ttft.observe(ttft.as_secs_f64());
            }
            if usage.generated_tokens > 1 {
                self.per_token.observe(decode / (usage.generated_tokens - 1) as f64);
            }
        }
    }

    pub(crate) fn failed(&self) {
        self.errors.add(1);
    }

    /// A request was answered by a replica in so much time.
    pub(crate) fn served(&self, time: std::time::Duration) {
        self.forwarded.observe(time.as_secs_f64());
    }

    /// Mean time from submission to the end, of requests that ended by themselves.
    pub(crate) fn service_seconds(&self) -> f64 {
        self.e2e.mean().or_else(|| self.forwarded.mean()).unwrap_or(1.0)
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bounds are those of vLLM 0.32 (`v1/metrics/buckets.py`): dashboards compare servers by them.
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const INTER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0, 100000.0,
];
const N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
