//! `/metrics`: the names that routers and dashboards read, with their labels, buckets and numbers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::{Live, call, plain};

/// A sample: its labels and its value.
type Samples = Vec<(BTreeMap<String, String>, f64)>;

/// Samples by name, and the kind of each family.
fn scraped(live: &Live) -> (BTreeMap<String, Samples>, BTreeMap<String, String>) {
    let text = live.get("/metrics").text();
    let (mut samples, mut kinds) = (BTreeMap::<String, Samples>::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is declared twice");
        } else if !line.starts_with('#') {
            let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("{line}"));
            let (labels, value) = rest.rsplit_once("} ").unwrap_or_else(|| panic!("{line}"));
            let labels = labels.strip_suffix('"').unwrap_or_default();
            let pairs = labels.split("\",").filter_map(|pair| pair.split_once("=\""));
            let labels: BTreeMap<String, String> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            samples.entry(name.to_owned()).or_default().push((labels, value.parse().unwrap()));
        }
    }
    (samples, kinds)
}

#[test]
fn every_name_that_vllm_has_is_there_with_its_kind() {
    let live = plain();
    live.ok("/v1/completions", &json!({"prompt": "Hi", "max_tokens": 5, "ignore_eos": true}));
    live.wait_until_idle();
    let (samples, kinds) = scraped(&live);
    let gauges = "num_requests_running num_requests_waiting kv_cache_usage_perc num_requests_waiting_by_reason \
        cache_config_info lora_requests_info";
    let counters = "prompt_tokens prompt_tokens_cached generation_tokens request_success num_preemptions \
        prefix_cache_queries prefix_cache_hits admission_rejections";
    let histograms = "time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds \
        e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds \
        request_prefill_time_seconds request_decode_time_seconds iteration_tokens_total request_prompt_tokens \
        request_generation_tokens request_params_n request_params_max_tokens";
    for (names, kind, end) in [(gauges, "gauge", ""), (counters, "counter", "_total"), (histograms, "histogram", "")] {
        for name in names.split_whitespace() {
            let name = format!("vllm:{name}{end}");
            assert_eq!(kinds.get(&name).map(String::as_str), Some(kind), "{name}");
            let sample = if kind == "histogram" { format!("{name}_count") } else { name };
            let labels = &samples[&sample][0].0;
            assert_eq!((labels["model_name"].as_str(), labels["engine"].as_str()), ("m", "0"), "{sample}");
        }
    }
    let lora = &samples["vllm:lora_requests_info"];
    let labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"].map(|name| lora[0].0[name].as_str());
    assert!(lora.len() == 1 && labels == ["0", "", ""] && lora[0].1 > 1.7e9, "{lora:?}");
    // A guess is neither made nor counted here; the names are of servers that guess.
    assert!(!kinds.contains_key("vllm:spec_decode_num_drafts_total"));
    for gone in ["vllm:gpu_cache_usage_perc", "vllm:time_per_output_token_seconds"] {
        assert!(!kinds.contains_key(gone), "{gone}");
    }
}

#[test]
fn steps_are_told_by_their_tokens_and_their_rows() {
    let live = plain();
    let answer = live.ok("/v1/completions", &json!({"prompt": "Hi there", "max_tokens": 5, "ignore_eos": true}));
    live.wait_until_idle();
    let (samples, kinds) = scraped(&live);
    let steps = samples["njoule_steps_total"][0].1;
    let bounds = |name: &str| -> Vec<String> {
        let buckets = samples[&format!("{name}_bucket")].iter();
        buckets.map(|(labels, _)| labels["le"].clone()).collect()
    };
    let wanted = "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384 +Inf";
    assert_eq!(bounds("vllm:iteration_tokens_total").join(" "), wanted);
    assert_eq!(bounds("vllm:request_params_n").join(" "), "1 2 5 10 20 +Inf");
    for prefix in ["vllm:", "njoule_"] {
        let value = |end: &str| samples[&format!("{prefix}iteration_tokens_total_{end}")][0].1;
        let tokens = answer["usage"]["total_tokens"].as_f64().unwrap();
        assert_eq!((value("count"), value("sum")), (steps, tokens), "{prefix}");
    }
    // By rows, rounded up to a power of two: all steps stand in some bucket, those of one row in the first.
    let counts = &samples["njoule_step_seconds_count"];
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<f64>(), steps);
    let rows: BTreeSet<usize> = counts.iter().map(|(labels, _)| labels["bucket"].parse().unwrap()).collect();
    assert!(rows.contains(&1) && rows.iter().all(|rows| rows.is_power_of_two()), "{rows:?}");
    let times: f64 = samples["njoule_step_seconds_sum"].iter().map(|(_, seconds)| seconds).sum();
    let engine = samples["njoule_engine_seconds_total"].iter().filter(|(labels, _)| labels["kind"] != "host");
    assert!((times - engine.map(|(_, seconds)| seconds).sum::<f64>()).abs() < 1e-6 * steps);
    // Of no device, and of no compiler.
    for absent in ["njoule_device_errors_total", "njoule_compile_seconds", "njoule_padded_rows_total"] {
        assert!(!kinds.contains_key(absent), "{absent}");
    }
    let kinds: BTreeMap<&str, f64> =
        samples["njoule_tokens_total"].iter().map(|(labels, count)| (labels["kind"].as_str(), *count)).collect();
    let prompt = answer["usage"]["prompt_tokens"].as_f64().unwrap();
    let wanted = [("cached_input", 0.0), ("input", prompt), ("output", 5.0), ("padded", 0.0), ("rejected", 0.0)];
    assert_eq!(kinds, wanted.into());
}

#[test]
fn load_balancers_are_told_the_load_in_the_answers_that_they_ask_for() {
    let live = plain();
    let body = json!({"prompt": "Hi", "max_tokens": 2}).to_string();
    let ask = |path: &str, form: &str, body: &str| {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let headers = [("content-type", "application/json"), ("endpoint-load-metrics-format", form)];
        let answer = call(live.address, method, path, &headers, body.as_bytes());
        answer.header("endpoint-load-metrics").map(str::to_owned)
    };
    let text = ask("/v1/completions", "TEXT", &body).unwrap();
    let rest = text.strip_prefix("TEXT named_metrics.kv_cache_usage_perc=").unwrap_or_else(|| panic!("{text}"));
    let (usage, waiting) = rest.split_once(", named_metrics.num_requests_waiting=").unwrap();
    assert!((0.0..=1.0).contains(&usage.parse::<f64>().unwrap()) && waiting == "0.0", "{text}");
    let told = ask("/v1/completions", "JSON", &body).unwrap();
    let told: serde_json::Value = serde_json::from_str(told.strip_prefix("JSON ").unwrap()).unwrap();
    assert!(told["named_metrics"]["kv_cache_usage_perc"].is_number(), "{told}");
    assert_eq!((ask("/v1/completions", "BIN", &body), ask("/health", "TEXT", "")), (None, None));
}
