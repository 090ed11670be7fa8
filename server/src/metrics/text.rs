//! Prometheus' text format, version 0.0.4.

use std::fmt::Write;
use std::sync::Arc;

use njoule_runtime::EngineStats;
use njoule_runtime::engine::EngineFigures;
use serde_json::Value;

use super::{Histogram, Metrics, energy};
use crate::model::unix_seconds;

/// Whose names are exported beside `njoule_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// vLLM's, which routers and dashboards read.
    #[default]
    Vllm,
    /// None.
    Off,
}

/// What is asked of others when somebody scrapes.
#[derive(Clone, Debug)]
pub struct Scrape<'a> {
    /// Label `model_name`.
    pub model: &'a str,
    /// The engine's figures.
    pub stats: Option<EngineStats>,
    /// And its distributions.
    pub figures: Option<&'a EngineFigures>,
    /// The meters, as their source describes them, where this process tells those of the machine.
    pub meters: Option<Arc<Value>>,
    /// Tokens of a cache block.
    pub block_len: usize,
    /// Whether prompts are looked for in the cache.
    pub prefix_cache: bool,
    /// Whether tokens are guessed.
    pub speculates: bool,
    /// Requests that are being read and tokenised.
    pub preparing: usize,
    /// HTTP requests that are being answered.
    pub in_flight: usize,
    /// Whether new requests are taken.
    pub ready: bool,
    /// What loading took.
    pub load_seconds: f64,
    /// What compiling its modules took, where it has some.
    pub compile_seconds: Option<f64>,
}

impl Metrics {
    /// All figures as text.
    pub fn write(&self, scrape: &Scrape<'_>, names: Names) -> String {
        let mut out = Text::new(label(scrape.model));
        self.write_gauges(&mut out, scrape, names);
        let vllm = names == Names::Vllm;
        let counters = [
            ("prompt_tokens", "Prompt tokens processed", &self.prompt_tokens),
            ("generation_tokens", "Tokens generated", &self.generation_tokens),
        ];
        for (name, help, counter) in counters {
            out.counter(&format!("njoule_{name}_total"), help, &[("", counter.read() as f64)]);
            if vllm {
                out.counter(&format!("vllm:{name}_total"), help, &[("", counter.read() as f64)]);
            }
        }
        let finished = [
            ("finished_reason=\"stop\"", self.stopped.read() as f64),
            ("finished_reason=\"length\"", self.cut.read() as f64),
            ("finished_reason=\"abort\"", self.aborted.read() as f64),
            ("finished_reason=\"error\"", self.errors.read() as f64),
        ];
        let rejected = [
            ("reason=\"requests\"", self.rejected_requests.read() as f64),
            ("reason=\"tokens\"", self.rejected_tokens.read() as f64),
            ("reason=\"draining\"", self.rejected_draining.read() as f64),
        ];
        out.counter("njoule_requests_finished_total", "Sequences that ended, by reason", &finished);
        out.counter("njoule_admission_rejections_total", "Requests refused for want of room", &rejected);
        if vllm {
            out.counter("vllm:request_success_total", "Sequences that ended, by reason", &finished);
            out.counter("vllm:admission_rejections_total", "Requests refused for want of room", &rejected);
        }
        let slow = [("", self.slow_readers.read() as f64)];
        out.counter("njoule_slow_readers_total", "Answers cut off because they were not read", &slow);
        let labels: Vec<String> = (1..6).map(|digit| format!("status=\"{digit}xx\"")).collect();
        let responses: Vec<(&str, f64)> =
            labels.iter().zip(&self.responses[1..]).map(|(label, n)| (label.as_str(), n.read() as f64)).collect();
        out.counter("njoule_http_responses_total", "HTTP responses by status", &responses);
        if let Some(stats) = scrape.stats {
            energy::write(&mut out, scrape, &stats, &self.tokens(&stats));
        }
        if let Some(figures) = scrape.figures {
            write_steps(&mut out, figures, vllm);
        }
        for (name, help, histogram) in self.histograms() {
            out.histogram(&format!("njoule_{name}"), help, histogram);
            if vllm {
                out.histogram(&format!("vllm:{name}"), help, histogram);
            }
        }
        out.into_string()
    }

    /// Tokens by what became of them.
    fn tokens(&self, stats: &EngineStats) -> [(&'static str, u64); 5] {
        [
            ("input", self.prompt_tokens.read()),
            ("cached_input", stats.cached_tokens),
            ("output", self.generation_tokens.read()),
            ("padded", stats.padded_rows),
            ("rejected", stats.drafted_tokens.saturating_sub(stats.accepted_tokens)),
        ]
    }

    fn histograms(&self) -> [(&'static str, &'static str, &Histogram); 12] {
        [
            ("time_to_first_token_seconds", "From submission to the first token", &self.ttft),
            ("inter_token_latency_seconds", "Between two tokens of a sequence", &self.inter_token),
            ("request_time_per_output_token_seconds", "Mean time per token after the first", &self.per_token),
            ("e2e_request_latency_seconds", "From submission to the end", &self.e2e),
            ("request_queue_time_seconds", "From submission to the first step", &self.queue),
            ("request_inference_time_seconds", "From the first step to the end", &self.inference),
            ("request_prefill_time_seconds", "From the first step to the first token", &self.prefill),
            ("request_decode_time_seconds", "From the first token to the end", &self.decode),
            ("request_prompt_tokens", "Prompt tokens per request", &self.request_prompt_tokens),
            ("request_generation_tokens", "Generated tokens per sequence", &self.request_generation_tokens),
            ("request_params_n", "Parameter n", &self.params_n),
            ("request_params_max_tokens", "Parameter max_tokens", &self.params_max_tokens),
        ]
    }

    fn write_gauges(&self, out: &mut Text, scrape: &Scrape<'_>, names: Names) {
        let vllm = names == Names::Vllm;
        out.gauge("njoule_ready", "Whether new requests are taken", f64::from(u8::from(scrape.ready)));
        out.gauge("njoule_model_load_seconds", "What loading the model took", scrape.load_seconds);
        out.gauge("njoule_http_requests_in_flight", "HTTP requests that are being answered", scrape.in_flight as f64);
        if let Some(seconds) = scrape.compile_seconds {
            out.gauge(
                "njoule_compile_seconds",
                "Time of the compiler for the modules that are served, whenever that was",
                seconds,
            );
        }
        let Some(stats) = scrape.stats else { return };
        let waiting = (stats.queued + scrape.preparing) as f64;
        let usage = stats.blocks_used as f64 / stats.blocks_total.max(1) as f64;
        out.gauge("njoule_num_requests_running", "Sequences in the running batch", stats.running as f64);
        out.gauge("njoule_num_requests_waiting", "Sequences that wait", waiting);
        out.gauge("njoule_kv_cache_usage_ratio", "Share of the cache's blocks in use, 0 to 1", usage);
        let steps = [
            ("kind=\"prefill\"", stats.prefill_seconds),
            ("kind=\"decode\"", stats.decode_seconds),
            ("kind=\"host\"", stats.host_seconds),
        ];
        out.counter("njoule_engine_seconds_total", "Time in steps (by rows) and between them", &steps);
        let cached = [("", stats.cached_tokens as f64)];
        out.counter("njoule_prompt_tokens_cached_total", "Prompt tokens that were in the cache", &cached);
        let looked_up = [("", stats.looked_up_tokens as f64)];
        if scrape.prefix_cache {
            let help = "Prompt tokens that were looked for in the cache";
            out.counter("njoule_prefix_cache_queries_total", help, &looked_up);
            out.counter("njoule_prefix_cache_hits_total", "Of these, tokens that were there", &cached);
            let idle = stats.blocks_idle as f64;
            out.gauge("njoule_prefix_cache_idle_blocks", "Blocks not in use that can be found again", idle);
        }
        let guesses = [
            ("drafts", "Times that guesses for a sequence were checked", stats.drafts),
            ("draft_tokens", "Tokens guessed and run", stats.drafted_tokens),
            ("accepted_tokens", "Of these, tokens that were right", stats.accepted_tokens),
        ];
        for (name, help, count) in guesses.into_iter().filter(|_| scrape.speculates) {
            out.counter(&format!("njoule_spec_decode_num_{name}_total"), help, &[("", count as f64)]);
            if vllm {
                out.counter(&format!("vllm:spec_decode_num_{name}_total"), help, &[("", count as f64)]);
            }
        }
        let steps = [
            ("steps", "Steps run", stats.steps),
            (
                "retried_steps",
                "Steps run again: the device was busy, refused a sequence, or masks were late",
                stats.retried_steps,
            ),
            ("padded_tokens", "Rows that a device computed for nobody, to fill its buckets", stats.padded_rows),
        ];
        for (name, help, count) in steps {
            out.counter(&format!("njoule_{name}_total"), help, &[("", count as f64)]);
        }
        out.counter(
            "njoule_num_preemptions_total",
            "Sequences that gave up their cache",
            &[("", stats.preemptions as f64)],
        );
        if vllm {
            out.gauge("vllm:num_requests_running", "Sequences in the running batch", stats.running as f64);
            out.gauge("vllm:num_requests_waiting", "Sequences that wait", waiting);
            let by_reason = [("reason=\"capacity\"", waiting), ("reason=\"deferred\"", 0.0)];
            out.family("vllm:num_requests_waiting_by_reason", "Sequences that wait, by reason", "gauge", &by_reason);
            out.gauge("vllm:kv_cache_usage_perc", "Share of the cache's blocks in use, 0 to 1", usage);
            let info = format!("block_size=\"{}\",num_gpu_blocks=\"{}\"", scrape.block_len, stats.blocks_total);
            out.family("vllm:cache_config_info", "The cache", "gauge", &[(&info, 1.0)]);
            // There are none to be loaded; routers look for the time of it.
            let none = "max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"";
            out.family("vllm:lora_requests_info", "LoRA adapters", "gauge", &[(none, unix_seconds() as f64)]);
            out.counter("vllm:prompt_tokens_cached_total", "Prompt tokens that were in the cache", &cached);
            if scrape.prefix_cache {
                let help = "Prompt tokens that were looked for in the cache";
                out.counter("vllm:prefix_cache_queries_total", help, &looked_up);
                out.counter("vllm:prefix_cache_hits_total", "Of these, tokens that were there", &cached);
            }
            let preemptions = [("", stats.preemptions as f64)];
            out.counter("vllm:num_preemptions_total", "Sequences that gave up their cache", &preemptions);
        }
    }
}

/// Times and sizes of steps, and what a device has answered instead.
fn write_steps(out: &mut Text, figures: &EngineFigures, vllm: bool) {
    let help = "Tokens of a step: run of prompts, and generated";
    out.histogram("njoule_iteration_tokens_total", help, figures.iteration_tokens());
    if vllm {
        out.histogram("vllm:iteration_tokens_total", help, figures.iteration_tokens());
    }
    let help = "Time of a step by the rows it computed, rounded up to a power of two";
    out.head("njoule_step_seconds", help, "histogram");
    for (rows, steps) in figures.step_seconds() {
        out.buckets("njoule_step_seconds", &format!("bucket=\"{rows}\""), steps);
    }
    let errors = figures.device_errors();
    if !errors.is_empty() {
        let labels: Vec<(String, f64)> =
            errors.iter().map(|(code, count)| (format!("code=\"{code}\""), *count as f64)).collect();
        let samples: Vec<(&str, f64)> = labels.iter().map(|(label, count)| (label.as_str(), *count)).collect();
        out.counter("njoule_device_errors_total", "Steps that a device did not do, by the code it answered", &samples);
    }
}

/// A text in the making.
pub(super) struct Text {
    out: String,
    /// Of every sample.
    labels: String,
}

impl Text {
    /// Nothing yet; every sample will have these labels.
    pub(super) fn new(labels: String) -> Text {
        Text { out: String::with_capacity(16 << 10), labels }
    }

    /// What was written.
    pub(super) fn into_string(self) -> String {
        self.out
    }

    /// The same with other labels on every sample, until `write` is done.
    pub(super) fn labelled(&mut self, labels: &str, write: impl FnOnce(&mut Text)) {
        let before = std::mem::replace(&mut self.labels, labels.to_owned());
        write(self);
        self.labels = before;
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help, "gauge", &[("", value)]);
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, samples: &[(&str, f64)]) {
        self.family(name, help, "counter", samples);
    }

    pub(super) fn family(&mut self, name: &str, help: &str, kind: &str, samples: &[(&str, f64)]) {
        self.head(name, help, kind);
        for (labels, value) in samples {
            self.sample(name, labels, *value);
        }
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        self.buckets(name, "", histogram);
    }

    /// The samples of one histogram of a family.
    pub(super) fn buckets(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let (buckets, sum) = histogram.read();
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in &buckets {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            self.sample(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), *count as f64);
        }
        let count = buckets.last().map_or(0, |(_, count)| *count);
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, count as f64);
    }

    // Writing to a string does not fail.
    pub(super) fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let comma = if labels.is_empty() || self.labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.out, "{name}{{{}{comma}{labels}}} {value}", self.labels);
    }
}

fn label(model: &str) -> String {
    format!("model_name=\"{}\",engine=\"0\"", escaped(model))
}

/// A text as the value of a label.
pub(super) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_a_type_and_labels_are_escaped() {
        let metrics = Metrics::default();
        metrics.generation_tokens.add(7);
        let scrape = Scrape {
            model: "a\"b",
            stats: None,
            figures: None,
            meters: None,
            block_len: 16,
            prefix_cache: true,
            speculates: true,
            preparing: 0,
            in_flight: 0,
            ready: true,
            load_seconds: 1.5,
            compile_seconds: None,
        };
        let text = metrics.write(&scrape, Names::Vllm);
        assert!(text.contains("vllm:generation_tokens_total{model_name=\"a\\\"b\",engine=\"0\"} 7\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let declared = |name: &str| text.contains(&format!("# TYPE {name} "));
            assert!(declared(name) || declared(family), "{line}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
        assert!(!metrics.write(&scrape, Names::Off).contains("vllm:"));
    }
}
