//! Requests that nobody in his senses sends.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Answer, call, plain, well_formed};

fn values() -> Vec<Value> {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    vec![
        json!(null),
        json!(-1),
        json!(0),
        json!(0.5),
        json!(1_u64 << 31),
        json!(1_u64 << 63),
        json!(1e308),
        json!(""),
        json!("x".repeat(1 << 20)),
        json!([]),
        json!({}),
        json!(true),
        json!([null]),
        json!([[]]),
        json!({"a": 1}),
        json!([-1]),
        json!([1_u64 << 40]),
        json!("\u{0}\u{fffd}"),
        json!({"type": 7}),
        deep,
    ]
}

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

fn check(path: &str, answer: &Answer, what: &str) {
    assert!(answer.status == 200 || (400..500).contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    if answer.status != 200 {
        let body = answer.json();
        let anthropic = path == "/v1/messages" && body["type"] == "error" && body["error"]["message"].is_string();
        assert!(anthropic || well_formed(&body), "{what}: {body}");
        assert!(answer.body.len() < 1000, "{what}: an error of {} bytes", answer.body.len());
    }
}

#[test]
fn every_field_with_every_bad_value_is_refused_or_harmless() {
    let live = plain();
    let mut refused = 0;
    let mut all = 0;
    for (path, base) in bases() {
        for field in njoule_server::request_fields() {
            for value in values() {
                let mut body = base.clone();
                body[field] = value.clone();
                let text = value.to_string();
                let what = format!("{path} {field} = {}", &text[..text.len().min(60)]);
                let answer = live.post(path, &body);
                check(path, &answer, &what);
                all += 1;
                refused += usize::from(answer.status != 200);
            }
        }
    }
    assert!(all >= 2000 && refused >= 1000, "{refused} of {all} refused");
    live.wait_until_idle();
    assert_eq!(live.get("/health").status, 200);
}

#[test]
fn what_is_out_of_range_is_refused_by_its_name() {
    let live = plain();
    let chat = |field: &str, value: Value| (field.to_owned(), value);
    let huge: Vec<String> = (0..100_000).map(|i| i.to_string()).collect();
    let biases: serde_json::Map<String, Value> = (0..2000).map(|i| (i.to_string(), json!(1))).collect();
    let cases = [
        chat("temperature", json!(2.1)),
        chat("temperature", json!(-0.1)),
        chat("temperature", json!("1")),
        chat("top_p", json!(1.1)),
        chat("top_k", json!(-2)),
        chat("top_k", json!(1.0)),
        chat("min_p", json!(2)),
        chat("presence_penalty", json!(2.5)),
        chat("frequency_penalty", json!(-2.5)),
        chat("repetition_penalty", json!(0)),
        chat("max_tokens", json!(0)),
        chat("max_tokens", json!(true)),
        chat("max_tokens", json!(1.0)),
        chat("min_tokens", json!(99)),
        chat("n", json!(0)),
        chat("n", json!(9)),
        chat("n", json!(1_000_000)),
        chat("stop", json!(huge)),
        chat("stop", json!(["a", "b", "c", "d", "e"])),
        chat("stop", json!([""])),
        chat("stop", json!("x".repeat(257))),
        chat("stop_token_ids", json!([272])),
        chat("logit_bias", json!({"272": 1})),
        chat("logit_bias", json!({"x": 1})),
        chat("logit_bias", json!(biases)),
        chat("top_logprobs", json!(1)),
        chat("logit_bias", json!([[1, 1]])),
        chat("seed", json!(1_u64 << 63)),
        chat("stream_options", json!({"include_usage": true})),
        chat("stream_options", json!([])),
        chat("max_tokens", json!(-1)),
        chat("top_logprobs", json!(0)),
        chat("n_predict", json!(0)),
        chat("grammar", json!("root ::= \"a\"")),
        chat("json_schema", json!(3)),
        chat("guided_json", json!(3)),
        chat("guided_choice", json!([])),
        chat("bad_words", json!([""])),
        chat("bad_words", json!(vec!["x"; 129])),
        chat("allowed_token_ids", json!([])),
        chat("allowed_token_ids", json!([272])),
        chat("thinking_token_budget", json!(-1)),
        chat("tools", json!([])),
        chat("tool_choice", json!("auto")),
        chat("tool_choice", json!("required")),
        chat("chat_template", json!("{{ messages }}")),
        chat("chat_template_kwargs", json!({"messages": []})),
        chat("cache_salt", json!("a/b")),
        chat("reasoning_effort", json!("much")),
        chat("best_of", json!(2)),
    ];
    for (field, value) in cases {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
        body[&field] = value;
        let start = Instant::now();
        let answer = live.post("/v1/chat/completions", &body);
        let error = answer.json();
        assert_eq!((answer.status, error["error"]["param"].as_str()), (400, Some(field.as_str())), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{field}");
    }
    let long = json!({"prompt": vec![5; 600], "max_tokens": 1});
    live.post("/v1/completions", &long).is_error(400, "context_length_exceeded");
    let much = json!({"prompt": [5], "max_tokens": i64::MAX});
    live.post("/v1/completions", &much).is_error(400, "context_length_exceeded");
    let many = json!({"prompt": vec!["a"; 1025]});
    assert_eq!(live.post("/v1/completions", &many).is_error(400, "invalid_value")["param"], "prompt");
    let crowd = json!({"messages": vec![json!({"role": "user", "content": ""}); 10_000]});
    assert_eq!(live.post("/v1/chat/completions", &crowd).is_error(400, "invalid_value")["param"], "messages");
}

#[test]
fn bodies_that_are_no_json_are_refused() {
    let live = plain();
    let deep = "[".repeat(10_000);
    for body in ["", "{", "[]", "null", "\u{fffd}", "{\"a\":NaN}", deep.as_str(), "{\"prompt\": \"\\ud800\"}"] {
        let answer =
            call(live.address, "POST", "/v1/completions", &[("content-type", "application/json")], body.as_bytes());
        answer.is_error(400, "invalid_json");
    }
}

#[test]
fn special_tokens_in_a_message_stay_text() {
    let live = plain();
    let ids = |text: &str| -> Vec<u64> {
        let answer = live.ok("/tokenize", &json!({"messages": [{"role": "user", "content": text}]}));
        answer["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    let end = u64::from(live.tokenizer.token_id("<|im_end|>").expect("the fixture has it"));
    let count = |ids: &[u64]| ids.iter().filter(|id| **id == end).count();
    assert_eq!(count(&ids("a<|im_end|>b")), count(&ids("ab")));
}

#[test]
fn prompts_that_cannot_fit_are_refused_by_their_bytes() {
    let live = plain();
    let words: Vec<String> = (0_u64..400_000).map(|i| format!("{:x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let words = &words.join(" ")[..6 << 20];
    let chat = |text: String| json!({"messages": [{"role": "user", "content": text}], "max_tokens": 4});
    for (path, body) in [
        ("/v1/completions", json!({"prompt": words, "max_tokens": 4})),
        ("/v1/completions", json!({"prompt": ["Hi", words], "max_tokens": 4})),
        ("/v1/chat/completions", chat(words.to_owned())),
        // One that is guarded, because it spells a special token.
        ("/v1/chat/completions", chat(format!("<|im_end|>{words}"))),
        ("/v1/messages", chat(words.to_owned())),
    ] {
        let begun = Instant::now();
        let answer = live.post(path, &body);
        let text = answer.text();
        assert!(answer.status == 400 && text.contains("the prompt has at least "), "{path}: {text}");
        if path != "/v1/messages" {
            answer.is_error(400, "context_length_exceeded");
        }
        // Encoding takes seconds.
        assert!(begun.elapsed() < Duration::from_secs(2), "{path}: {:?}", begun.elapsed());
    }
    let mut full = chat("Hello ".repeat(90));
    full.as_object_mut().unwrap().remove("max_tokens");
    let error = live.post("/v1/chat/completions", &full).is_error(400, "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("no room for an answer") && !message.contains("max_tokens"), "{message}");
}
