//! What `usage` and `/metrics` say about cached prompts and guessed tokens, and who may share what.

use njoule_runtime::{Request, Speculate};
use njoule_server::ServerConfig;
use serde_json::{Value, json};

use crate::support::{call, plain, read_answer, send, start, start_with};

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[test]
fn cached_tokens_are_counted_within_one_key_and_salt() {
    let keys = ["one", "two"].map(String::from);
    let live = start("qwen3", 4, ServerConfig { api_keys: keys.to_vec(), ..ServerConfig::default() });
    let ask = |key: &str, salt: Value| {
        let body = json!({"prompt": vec![5; 100], "max_tokens": 2, "ignore_eos": true, "cache_salt": salt});
        let headers = [("content-type", "application/json"), ("x-api-key", key)];
        let answer = call(live.address, "POST", "/v1/completions", &headers, body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        cached(&answer.json())
    };
    assert_eq!(ask("one", Value::Null), 0);
    assert_eq!(ask("one", Value::Null), 96);
    for (key, salt) in [("two", Value::Null), ("one", json!("a")), ("two", json!("a")), ("two", json!("0"))] {
        assert_eq!((ask(key, salt.clone()), ask(key, salt)), (0, 96), "{key}");
    }
    for name in ["njoule_prefix_cache", "vllm:prefix_cache"] {
        assert_eq!(live.metric(&format!("{name}_queries_total")), 1000.0);
        assert_eq!(live.metric(&format!("{name}_hits_total")), 480.0);
    }
    live.wait_until_idle();
}

#[test]
fn a_conversation_finds_its_own_turns_again() {
    let live = plain();
    let body = json!({"messages": [{"role": "user", "content": "Tell me a long story about a long road."}],
        "max_tokens": 60, "ignore_eos": true, "temperature": 0});
    let first = live.ok("/v1/chat/completions", &body);
    let again = live.ok("/v1/chat/completions", &body);
    assert_eq!((cached(&first), first["choices"].clone()), (0, again["choices"].clone()));
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(cached(&again), (prompt - 1) / 32 * 32);
}

#[test]
fn guesses_change_no_answer_and_are_counted() {
    let body = json!({"prompt": vec![7; 40], "max_tokens": 80, "ignore_eos": true, "temperature": 0, "logprobs": 2});
    let without = plain();
    let wanted = without.ok("/v1/completions", &body);
    assert!(!without.get("/metrics").text().contains("spec_decode"), "absent where it is off");
    let live = start_with("qwen3", 4, ServerConfig::default(), |config| config.speculate = Speculate::UpTo(4));
    let got = live.ok("/v1/completions", &body);
    assert_eq!(got["choices"], wanted["choices"]);
    let [drafts, drafted, accepted] = ["drafts", "draft_tokens", "accepted_tokens"]
        .map(|name| live.metric(&format!("vllm:spec_decode_num_{name}_total")));
    assert!(drafts > 0.0 && drafted >= accepted && accepted > 0.0, "{drafts} {drafted} {accepted}");
    assert!(live.engine.stats().steps < without.engine.stats().steps);
}

#[test]
fn a_full_queue_of_one_key_keeps_no_other_key_out() {
    let keys = ["one", "two"].map(String::from);
    let config = ServerConfig { api_keys: keys.to_vec(), max_queued_requests: 3, ..ServerConfig::default() };
    let live = start("qwen3", 1, config);
    live.gate.allow(Some(0));
    let taken: Vec<_> = (0..6).map(|_| live.engine.submit(Request::new(vec![1], 3)).unwrap()).collect();
    let body = json!({"prompt": "Hi", "max_tokens": 3, "ignore_eos": true}).to_string();
    let ask = |key: &str| {
        let headers = [("content-type", "application/json"), ("x-api-key", key)];
        send(live.address, "POST", "/v1/completions", &headers, body.as_bytes())
    };
    read_answer(&mut ask("one")).unwrap().is_error(503, "overloaded");
    let mut other = ask("two");
    live.wait_for("taken in", |live| live.engine.stats().running + live.engine.stats().queued == 7);
    read_answer(&mut ask("two")).unwrap().is_error(503, "overloaded");
    live.gate.allow(None);
    assert_eq!(read_answer(&mut other).unwrap().status, 200);
    assert!(taken.into_iter().all(|handle| handle.wait().is_ok()));
}
