//! Anthropic's interface.

use njoule_server::ServerConfig;
use serde_json::{Value, json};

use crate::support::{THINKS, plain, start, with_template};

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

#[test]
fn cached_tokens_of_a_prompt_are_told_apart() {
    let live = plain();
    let long = json!({"messages": [{"role": "user", "content": "Tell me a long story about a very long road."}], "temperature": 0});
    let all = live.ok("/v1/messages/count_tokens", &body(long.clone()))["input_tokens"].as_u64().unwrap();
    let usage = |usage: &Value| {
        let of = |name: &str| usage[name].as_u64().unwrap_or_else(|| panic!("{name} in {usage}"));
        assert_eq!(of("cache_creation_input_tokens"), 0);
        (of("input_tokens"), of("cache_read_input_tokens"))
    };
    assert_eq!(usage(&live.ok("/v1/messages", &body(long.clone()))["usage"]), (all, 0));
    let cached = (all - 1) / 32 * 32;
    assert!(cached > 0, "{all} tokens");
    assert_eq!(usage(&live.ok("/v1/messages", &body(long.clone()))["usage"]), (all - cached, cached));
    let mut streamed = body(long);
    streamed["stream"] = true.into();
    let text = live.post("/v1/messages", &streamed).text();
    let data = |name: &str| -> Value {
        let event = text.split("\n\n").find(|event| event.starts_with(&format!("event: {name}\n"))).unwrap();
        serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap()
    };
    // When it begins nothing has run yet.
    assert_eq!(usage(&data("message_start")["message"]["usage"]), (all, 0));
    assert_eq!(usage(&data("message_delta")["usage"]), (all - cached, cached));
}

#[test]
fn adaptive_thinking_thinks() {
    let live = start(&with_template("qwen3", THINKS), 2, ServerConfig::default());
    let count = |thinking: Value| {
        live.ok("/v1/messages/count_tokens", &body(json!({"thinking": thinking})))["input_tokens"].clone()
    };
    let enabled = count(json!({"type": "enabled", "budget_tokens": 1024}));
    assert_eq!(count(json!({"type": "adaptive"})), enabled);
    assert_ne!(count(json!({"type": "disabled"})), enabled);
    let whole = live.ok("/v1/messages", &body(json!({"thinking": {"type": "adaptive"}})));
    assert_eq!(whole["content"][0]["type"], "thinking", "{whole}");
    for thinking in [json!({"type": "much"}), json!({})] {
        let error = live.post("/v1/messages", &body(json!({"thinking": thinking})));
        assert!(error.status == 400 && error.text().contains("thinking.type"), "{}", error.text());
    }
}

#[test]
fn an_output_format_is_kept_to() {
    let live = plain();
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
    let format = json!({"type": "json_schema", "schema": schema});
    let tools = json!([{"name": "f", "type": "custom", "input_schema": schema}]);
    for more in [
        json!({"output_config": {"format": format}}),
        json!({"output_format": format}),
        json!({"output_config": {"format": format}, "tools": tools, "tool_choice": {"type": "auto", "disable_parallel_tool_use": true}}),
    ] {
        let mut asked = body(more);
        asked["max_tokens"] = 300.into();
        let whole = live.ok("/v1/messages", &asked);
        let block = &whole["content"][0];
        let value = match block["type"].as_str().unwrap() {
            "tool_use" => block["input"].clone(),
            _ => serde_json::from_str(block["text"].as_str().unwrap()).unwrap_or_else(|e| panic!("{e}: {whole}")),
        };
        assert!(value.as_object().unwrap().len() == 1 && value["ok"].is_boolean(), "{whole}");
    }
    for more in [
        json!({"output_config": {"format": {"type": "xml"}}}),
        json!({"output_config": {"format": {"type": "json_schema"}}}),
        json!({"output_config": {"format": format}, "output_format": format}),
    ] {
        assert_eq!(live.post("/v1/messages", &body(more.clone())).status, 400, "{more}");
    }
}

#[test]
fn tools_of_the_server_are_refused_by_their_type() {
    let live = plain();
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let tools = json!([{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]);
        let answer = live.post(path, &body(json!({"tools": tools})));
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(answer.status == 400 && message.contains("web_search_20250305"), "{message}");
    }
    let answer = live.post("/v1/messages", &body(json!({})));
    assert_eq!(answer.header("request-id"), answer.header("x-request-id"));
    assert!(answer.header("request-id").is_some() && live.get("/health").header("request-id").is_none());
}
