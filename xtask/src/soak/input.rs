//! Requests that nobody in his senses sends, measured from outside.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Map, Value, json};

use super::Scale;
use super::live::{Answer, Live, percentile};

fn bases() -> [(&'static str, Value); 5] {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    [
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 1})),
        ("/v1/completions", json!({"prompt": "Hi", "max_tokens": 1})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 1})),
        ("/tokenize", json!({"prompt": "Hi"})),
        ("/detokenize", json!({"tokens": [5]})),
    ]
}

/// Values as JSON text: some cannot be made by a library.
fn values() -> Vec<String> {
    let mut values: Vec<String> = [
        "null",
        "-1",
        "0",
        "0.5",
        "2147483648",
        "9223372036854775808",
        "1e308",
        "1e999",
        "\"\"",
        "[]",
        "{}",
        "true",
        "[null]",
        "[[]]",
        "{\"a\":1}",
        "[-1]",
        "[1099511627776]",
        "\"\\ud800\"",
    ]
    .map(str::to_owned)
    .into();
    values.push(format!("\"{}\"", "x".repeat(1 << 20)));
    values.push("[".repeat(10_000) + &"]".repeat(10_000));
    values
}

fn sound(answer: &Answer, what: &str) -> anyhow::Result<()> {
    ensure!(answer.status == 200 || (400..500).contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    if answer.status != 200 {
        ensure!(answer.json()?["error"]["message"].is_string(), "{what}: {}", answer.text());
    }
    Ok(())
}

/// Every field with every bad value.
pub fn bad_input(scale: &Scale) -> anyhow::Result<String> {
    let live = Live::start(scale, &[])?;
    let (mut all, mut refused, mut times) = (0, 0, Vec::new());
    let rounds = scale.count(2, 1);
    let mut before = live.resident()?;
    for round in 0..rounds {
        for (path, base) in bases() {
            for field in njoule_server::request_fields() {
                for value in values() {
                    if !scale.full && all % 4 != 0 && value.len() > 1000 {
                        continue;
                    }
                    let mut text = base.clone();
                    text.as_object_mut().map(|fields| fields.remove(field));
                    let text = format!(
                        "{},\"{field}\":{value}}}",
                        text.to_string().trim_end_matches('}').trim_end_matches("{,")
                    );
                    let text = text.replacen("{,", "{", 1);
                    let answer = live.ask("POST", path, text.as_bytes())?;
                    sound(&answer, &format!("{path} {field} {}", &value[..value.len().min(40)]))?;
                    all += 1;
                    refused += usize::from(answer.status != 200);
                    // What it answers to is work of the model, and a megabyte that of the network.
                    if answer.status != 200 && value.len() < 1000 {
                        times.push(answer.took);
                    }
                }
            }
        }
        if round == 0 && rounds > 1 {
            before = live.resident()?;
        }
    }
    live.idle(Duration::from_secs(10))?;
    let grown = (live.resident()? - before) as f64 / f64::from(1 << 20);
    let p99 = percentile(&mut times, 0.99);
    ensure!(all >= scale.count(2000, 1000) && refused * 3 > all, "{refused} of {all} refused");
    ensure!(p99 <= scale.within(20), "p99 {p99:?}");
    ensure!(!scale.full || grown <= 5.0, "grown by {grown:.1} MiB");
    Ok(format!(
        "{all} bodies, {refused} refused, no 5xx, p99 {:.1} ms, grown by {grown:.1} MiB",
        p99.as_secs_f64() * 1e3
    ))
}

/// Values that would be expensive to obey: beside a stream of the tiny model, and in full beside one of the default model too.
pub fn extremes(scale: &Scale) -> anyhow::Result<String> {
    let tiny = beside_extremes(scale, &Live::start(scale, &[])?);
    if !scale.full {
        return tiny.map(|(figures, _)| figures);
    }
    // Both are told, whichever does not hold.
    let (small, holds) = beside_extremes(scale, &Live::start_default(scale)?)?;
    let (tiny, tiny_holds) = tiny?;
    let figures = format!("{tiny}; of the default model: {small}");
    ensure!(tiny_holds && holds, "{figures}");
    Ok(figures)
}

/// What was measured, and whether the stream was at most twice as slow.
fn beside_extremes(scale: &Scale, live: &Live) -> anyhow::Result<(String, bool)> {
    let chat = |field: &str, value: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
        body[field] = value;
        ("/v1/chat/completions", body)
    };
    let biases = |count: usize| -> Map<String, Value> { (0..count).map(|i| (i.to_string(), json!(1))).collect() };
    let message = json!({"role": "user", "content": ""});
    let cases = [
        chat("max_tokens", json!(i64::MAX)),
        chat("n", json!(1_000_000)),
        chat("stop", json!(vec!["a"; 100_000])),
        chat("logit_bias", json!(biases(100_000))),
        chat("logit_bias", json!(biases(1_000_000))),
        chat("top_logprobs", json!(1_000_000)),
        chat("messages", json!(vec![message; 10_000])),
        chat("tools", json!(vec![json!({"type": "function", "function": {"name": "f"}}); 10_000])),
        ("/v1/completions", json!({"prompt": "x".repeat(10 << 20)})),
        ("/v1/completions", json!({"prompt": "x ".repeat(1 << 20), "max_tokens": 1})),
        ("/v1/completions", json!({"prompt": vec![5; 1_000_000], "max_tokens": 1})),
    ];
    let cases = cases.map(|(path, body)| (path, body.to_string()));
    let ((), mut calm) = live.beside(|| {
        std::thread::sleep(Duration::from_secs(scale.count(5, 2) as u64));
        Ok(())
    })?;
    let (slowest, mut busy) = live.beside(|| {
        let mut slowest = Duration::ZERO;
        for (path, text) in cases.iter().cycle().take(scale.count(50, 1) * cases.len()) {
            let answer = live.ask("POST", path, text.as_bytes())?;
            let what = &text[..text.len().min(60)];
            ensure!(matches!(answer.status, 400 | 413), "{what}: {} {}", answer.status, answer.text());
            ensure!(answer.took <= scale.within(50), "{what}: {:?}", answer.took);
            slowest = slowest.max(answer.took);
        }
        Ok(slowest)
    })?;
    ensure!(live.get("/health")?.status == 200, "it is not well");
    let (calm, busy) = (percentile(&mut calm, 0.99), percentile(&mut busy, 0.99));
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let figures = format!(
        "{} bodies refused, the slowest after {:.1} ms; p99 between tokens of a stream {:.2} ms without them, {:.2} ms beside them",
        cases.len(),
        milliseconds(slowest),
        milliseconds(calm),
        milliseconds(busy)
    );
    // On a machine that builds meanwhile two runs do not compare.
    Ok((figures, busy <= 2 * calm))
}

/// Grammars that would be expensive to compile, while another request must go on.
pub fn grammars(scale: &Scale) -> anyhow::Result<String> {
    let live = Live::start(scale, &[])?;
    let mut nested = json!({"type": "string"});
    for _ in 0..65 {
        nested = json!({"type": "array", "items": nested});
    }
    let wide: Map<String, Value> =
        (0..20_000).map(|i| (format!("key_{i}_{}", "x".repeat(20)), json!({"type": "string"}))).collect();
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let regex = |regex: &str| json!({"structured_outputs": {"regex": regex}});
    let cases = [
        regex("(a+)+$"),
        regex("a{1,100000}"),
        regex("(a|aa|aaa){500}{500}"),
        regex("("),
        schema(nested),
        schema(json!({"type": "object", "properties": wide})),
        schema(json!({"$ref": "#"})),
        schema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})),
        schema(json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$", "minLength": 100_000})),
        json!({"structured_outputs": {"grammar": "start: start start | \"a\""}}),
        json!({"structured_outputs": {"choice": vec!["x".repeat(1000); 1000]}}),
    ];
    let before = live.resident()?;
    let ((slowest, taken), mut gaps) = live.beside(|| {
        let (mut slowest, mut taken) = (Duration::ZERO, 0);
        for extra in &cases {
            let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0});
            for (name, value) in extra.as_object().into_iter().flatten() {
                body[name] = value.clone();
            }
            let begun = Instant::now();
            let answer = live.post("/v1/chat/completions", &body)?;
            let text = extra.to_string();
            sound(&answer, &text[..text.len().min(80)])?;
            slowest = slowest.max(begun.elapsed());
            ensure!(begun.elapsed() <= scale.within(1000), "{}: {:?}", &text[..text.len().min(80)], begun.elapsed());
            taken += usize::from(answer.status == 200);
        }
        Ok((slowest, taken))
    })?;
    let (grown, longest) = ((live.resident()? - before) >> 20, percentile(&mut gaps, 1.0));
    let figures = format!(
        "{} grammars, {taken} taken, the slowest after {:.0} ms, {grown} MiB kept; a stream beside them stood for {:.0} ms at most",
        cases.len(),
        slowest.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3
    );
    ensure!(grown <= 64 && longest <= scale.within(100), "{figures}");
    Ok(figures)
}
