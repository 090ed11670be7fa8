//! Answers without HTTP.

use std::sync::mpsc::channel;

use njoule_server::local::{Answered, Local};
use njoule_server::{ModelParts, ServerConfig};
use serde_json::{Value, json};

use crate::support::{Live, plain};

/// A [`Local`] with a live server's own model.
fn local(live: &Live) -> Local {
    let parts = ModelParts {
        engine: live.engine.clone(),
        tokenizer: live.tokenizer.clone(),
        template: njoule_models::chat::ChatTemplate::of(&live.tokenizer).unwrap().map(std::sync::Arc::new),
        names: vec!["m".into()],
        eos: vec![2],
        defaults: None,
        load: std::time::Duration::ZERO,
        compile: None,
        seed: None,
    };
    Local::start(parts, ServerConfig::default()).unwrap()
}

fn ask(local: &Local, url: &str, body: &Value) -> (u16, Value) {
    let (sender, receiver) = channel();
    local.submit(url.to_owned(), body.as_object().unwrap().clone(), move |answered| sender.send(answered).unwrap());
    let Answered { status, body, .. } = receiver.recv().unwrap();
    assert!(!body.contains(&b'\n'));
    (status, serde_json::from_slice(&body).unwrap())
}

#[test]
fn bodies_are_those_of_the_server_but_for_ids_and_times() {
    let live = plain();
    let local = local(&live);
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let without_id = |mut body: Value| {
        for name in ["id", "created"] {
            body.as_object_mut().unwrap().remove(name);
        }
        // What an earlier request left in the cache is no part of the answer.
        body["usage"]["prompt_tokens_details"] = Value::Null;
        body
    };
    for (url, body) in [
        (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 9, "seed": 3, "n": 2, "logprobs": true, "top_logprobs": 2}),
        ),
        (
            "/v1/completions",
            json!({"prompt": ["a", "b"], "max_tokens": 5, "temperature": 0, "echo": true, "logprobs": 1}),
        ),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 5, "temperature": 0})),
    ] {
        let (status, answer) = ask(&local, url, &body);
        assert_eq!((status, without_id(answer)), (200, without_id(live.ok(url, &body))), "{url}");
    }
}

#[test]
fn what_the_server_refuses_is_refused() {
    let live = plain();
    let local = local(&live);
    for (url, body, status) in [
        ("/v1/chat/completions", json!({"messages": []}), 400),
        ("/v1/completions", json!({"prompt": "a", "temperature": 9}), 400),
        ("/v1/completions", json!({"prompt": "a", "model": "other than m"}), 404),
        ("/v1/messages", json!({"messages": []}), 400),
    ] {
        assert_eq!(ask(&local, url, &body), (status, live.post(url, &body).json()), "{url}");
    }
    let (status, error) = ask(&local, "/v1/embeddings", &json!({}));
    assert_eq!((status, &error["error"]["code"]), (404, &json!("unknown_url")));
    let streamed = json!({"prompt": "a", "stream": true});
    assert_eq!(ask(&local, "/v1/completions", &streamed).0, 400);
}
