//! Requests as clients send them that were written for other servers: what vLLM's or llama.cpp's takes is taken here too, or
//! refused with what to do instead.

use njoule_server::ServerConfig;
use serde_json::{Value, json};

use crate::support::{Live, call, plain, read_head, send, start};

/// A chat with `more` in its body.
fn chat(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn ask(live: &Live, more: &Value) -> Value {
    live.ok("/v1/chat/completions", &chat(more))["choices"][0].clone()
}

#[test]
fn fields_that_say_nothing_are_no_reason_to_refuse() {
    let live = plain();
    let said = ask(&live, &json!({"temperature": 0}))["message"].clone();
    for more in [
        json!({"tool_choice": "none", "parallel_tool_calls": true}),
        json!({"functions": [], "function_call": "auto"}),
        json!({"logit_bias": {}}),
        json!({"stop": []}),
        json!({"grammar": ""}),
        json!({"stream": false, "stream_options": null}),
        json!({"response_format": {"type": "text"}}),
        // What front ends for local servers send with every request.
        json!({"typical_p": 1, "tfs_z": 1, "mirostat": 0, "dry_multiplier": 0, "xtc_probability": 0, "cache_prompt": true,
            "id_slot": -1, "n_probs": 0, "samplers": ["top_k"], "timings_per_token": false, "seed": -1, "top_k": -1}),
        json!({"metadata": {"a": "b"}, "store": true, "service_tier": "auto", "modalities": ["text"], "verbosity": "low"}),
    ] {
        let mut more = more;
        more["temperature"] = json!(0);
        assert_eq!(ask(&live, &more)["message"], said, "{more}");
    }
}

#[test]
fn minus_one_is_any_seed_and_llama_cpps_name_counts_tokens_too() {
    let live = plain();
    let text = |seed: i64| {
        let body = json!({"prompt": "Hi", "max_tokens": 32, "ignore_eos": true, "temperature": 2, "seed": seed});
        live.ok("/v1/completions", &body)["choices"][0]["text"].clone()
    };
    assert_eq!(text(7), text(7));
    assert_ne!(text(-1), text(-1), "32 tokens of 272 at the highest temperature");
    let usage = |more: Value| live.ok("/v1/chat/completions", &chat(&more))["usage"]["completion_tokens"].clone();
    assert_eq!(usage(json!({"n_predict": 2, "max_tokens": null, "ignore_eos": true})), 2);
    assert_eq!(usage(json!({"n_predict": 2, "max_tokens": 3, "ignore_eos": true})), 3);
}

#[test]
fn a_schema_holds_wherever_a_client_puts_it_and_adds_nothing() {
    let live = plain();
    // As clients make it of a type: nothing is said of other properties, which a small model would add for ever.
    let schema = json!({"type": "object", "properties": {"ok": {"$ref": "#/$defs/Yes"}}, "required": ["ok"],
        "$defs": {"Yes": {"type": "boolean"}}});
    for format in [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
        json!({"response_format": {"type": "json_schema", "schema": schema}}),
        json!({"response_format": {"type": "json_object", "schema": schema}}),
        json!({"json_schema": schema}),
        json!({"structured_outputs": {"json": schema.to_string()}}),
    ] {
        for seed in 0..3 {
            let mut more = format.clone();
            (more["seed"], more["max_tokens"]) = (json!(seed), json!(200));
            let choice = ask(&live, &more);
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            let value: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
            assert!(value.as_object().unwrap().len() == 1 && value["ok"].is_boolean(), "{value}");
        }
    }
}

#[test]
fn beside_tools_an_answer_is_a_call_or_what_its_schema_describes() {
    let live = plain();
    let schema = json!({"type": "object", "properties": {"ok": {"$ref": "#/$defs/Yes"}}, "required": ["ok"],
        "$defs": {"Yes": {"type": "boolean"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    let one = |text: &str| live.tokenizer.encode_plain(text).unwrap()[0].to_string();
    let (call, say) = (one("<"), one("{"));
    for seed in 0..12 {
        let first = if seed % 2 == 0 { &call } else { &say };
        let body = chat(&json!({"tools": tools, "response_format": format, "parallel_tool_calls": false, "seed": seed,
            "max_tokens": 300, "logit_bias": {first: 100}}));
        let choice = live.ok("/v1/chat/completions", &body)["choices"][0].clone();
        let message = &choice["message"];
        let text = if first == &call {
            assert_eq!(
                (&choice["finish_reason"], &message["content"]),
                (&json!("tool_calls"), &Value::Null),
                "{choice}"
            );
            assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1, "{choice}");
            &message["tool_calls"][0]["function"]["arguments"]
        } else {
            assert_eq!((&choice["finish_reason"], &message["tool_calls"]), (&json!("stop"), &Value::Null), "{choice}");
            &message["content"]
        };
        let value: Value = serde_json::from_str(text.as_str().unwrap()).unwrap_or_else(|e| panic!("{e}: {choice}"));
        assert!(value.as_object().unwrap().len() == 1 && value["ok"].is_boolean(), "{choice}");
    }
    // What must be called is called.
    let demanded = ask(
        &live,
        &json!({"tools": tools, "response_format": format, "tool_choice": "required", "max_tokens": 300, "parallel_tool_calls": false}),
    );
    assert_eq!(demanded["finish_reason"], "tool_calls", "{demanded}");
    // vLLM's fields stand beside no tools, whether these may or must be called.
    for (kind, choice) in [("regex", "auto"), ("json", "auto"), ("json", "required")] {
        let value = if kind == "json" { schema.clone() } else { json!("a") };
        let both = chat(&json!({"tools": tools, "tool_choice": choice, "structured_outputs": {kind: value}}));
        let error = live.post("/v1/chat/completions", &both).is_error(400, "invalid_value");
        assert_eq!(error["param"], "structured_outputs", "{error}");
    }
}

#[test]
fn the_requests_of_vllms_benchmark_get_what_it_reads() {
    let live = plain();
    let body = json!({"model": "m", "prompt": "Hi", "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 7,
        "logprobs": null, "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true});
    let events = live.post("/v1/completions", &body).events();
    let (last, texts) = events.split_last().unwrap();
    assert!(texts.iter().all(|event| event["choices"][0]["text"].is_string()));
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(7)));
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]);
    let body = json!({"model": "m", "messages": messages, "max_completion_tokens": 7, "stream": true,
        "stream_options": {"include_usage": true}, "ignore_eos": true});
    let events = live.post("/v1/chat/completions", &body).events();
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 7);
}

#[test]
fn paths_are_found_with_a_slash_behind_and_without_their_version() {
    let live = plain();
    for path in ["/v1/chat/completions/", "/chat/completions"] {
        assert_eq!(live.post(path, &chat(&json!({}))).status, 200, "{path}");
    }
    for path in ["/models", "/v1/models/", "/v1/models/m/", "/health/"] {
        assert_eq!(live.get(path).status, 200, "{path}");
    }
    let mut head = send(live.address, "HEAD", "/v1/models", &[], b"");
    assert_eq!(read_head(&mut head).unwrap().status, 200);
}

#[test]
fn what_other_servers_have_is_refused_with_what_to_ask_instead() {
    let live = plain();
    for (path, words) in [
        ("/v1/responses", "POST /v1/chat/completions"),
        ("/v1/embeddings", "a server of a model for them"),
        ("/api/chat", "Ollama's interface is not served; ask POST /v1/chat/completions"),
        ("/completion", "POST /v1/completions"),
        ("/v1/v1/completions", "did you mean /v1/completions?"),
    ] {
        let error = live.post(path, &chat(&json!({}))).is_error(404, "unknown_url");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let error = live.post("/v1/chat/completions", &chat(&json!({"model": "gpt-4o"}))).is_error(404, "model_not_found");
    assert!(error["message"].as_str().unwrap().contains("GET /v1/models"), "{error}");
    for (field, words) in [
        (json!({"grammar": "root ::= \"a\""}), "structured_outputs.grammar"),
        (json!({"truncate_prompt_tokens": 8}), "send what is to be read"),
    ] {
        let error = live.post("/v1/chat/completions", &chat(&field)).is_error(400, "unsupported_parameter");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
}

#[test]
fn a_mark_of_the_byte_order_is_no_part_of_a_body() {
    let live = start("qwen3", 2, ServerConfig::default());
    let body = [b"\xef\xbb\xbf".as_slice(), chat(&json!({})).to_string().as_bytes()].concat();
    let answer = call(live.address, "POST", "/v1/chat/completions", &[("content-type", "application/json")], &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}
