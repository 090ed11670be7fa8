//! Anthropic's interface.

use serde_json::{Value, json};

use crate::support::plain;

fn body(extra: Value) -> Value {
    let mut body = json!({"model": "m", "max_tokens": 12, "messages": [{"role": "user", "content": "Hello"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn a_stream_opens_extends_and_closes_its_blocks() {
    let live = plain();
    let greedy = json!({"temperature": 0, "system": [{"type": "text", "text": "Be brief."}]});
    let whole = live.ok("/v1/messages", &body(greedy.clone()));
    assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
    let mut streamed = body(greedy);
    streamed["stream"] = true.into();
    let text = live.post("/v1/messages", &streamed).text();
    let mut names = Vec::new();
    let (mut said, mut end) = (String::new(), Value::Null);
    for event in text.split_terminator("\n\n") {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        let name = name.strip_prefix("event: ").unwrap();
        assert_eq!(data["type"], name);
        said.push_str(data["delta"]["text"].as_str().unwrap_or_default());
        if name == "message_delta" {
            end = data.clone();
        }
        if names.last() != Some(&name.to_owned()) {
            names.push(name.to_owned());
        }
    }
    let order = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names, order);
    assert_eq!(whole["content"], json!([{"type": "text", "text": said}]));
    assert_eq!(end["delta"]["stop_reason"], whole["stop_reason"]);
    assert_eq!(end["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    let counted = live.ok("/v1/messages/count_tokens", &body(json!({"system": "Be brief."})));
    assert_eq!(counted["input_tokens"], whole["usage"]["input_tokens"]);
}

#[test]
fn errors_have_its_own_shape() {
    let live = plain();
    for (extra, kind) in
        [(json!({"max_tokens": 0}), "invalid_request_error"), (json!({"model": "x"}), "not_found_error")]
    {
        let answer = live.post("/v1/messages", &body(extra));
        let error = answer.json();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)), "{error}");
    }
}

#[test]
fn a_demanded_use_of_a_tool_comes() {
    let live = plain();
    let schema = json!({"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": false});
    let body = body(json!({"max_tokens": 300, "tools": [{"name": "f", "description": "d", "input_schema": schema}],
        "tool_choice": {"type": "tool", "name": "f"}}));
    let whole = live.ok("/v1/messages", &body);
    assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
    assert_eq!((&whole["content"][0]["type"], &whole["content"][0]["name"]), (&json!("tool_use"), &json!("f")));
    assert!(whole["content"][0]["input"]["x"].is_boolean());
}
