//! What is answered: shapes, and that streams say what whole answers say.

use serde_json::{Value, json};

use crate::support::{Live, THINKS, plain, start, with_template};
use njoule_server::ServerConfig;

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

/// What the choices of a stream add up to: text, finish reason.
fn gather(events: &[Value], text: impl Fn(&Value) -> Option<&str>) -> Vec<(String, Option<String>)> {
    let mut all: Vec<(String, Option<String>)> = Vec::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        all.resize(all.len().max(index + 1), Default::default());
        assert!(all[index].1.is_none(), "a chunk after the last");
        all[index].0.push_str(text(choice).unwrap_or_default());
        all[index].1 = choice["finish_reason"].as_str().map(str::to_owned);
    }
    all
}

#[test]
fn a_chat_has_all_that_the_schema_demands() {
    let live = plain();
    let answer = live.ok("/v1/chat/completions", &chat(json!({"max_tokens": 4, "ignore_eos": true})));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("m")));
    assert!(answer["created"].is_u64());
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!((&choice["logprobs"], &choice["message"]["refusal"]), (&Value::Null, &Value::Null));
    assert_eq!(choice["message"]["role"], "assistant");
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 4);
    assert_eq!(usage["completion_tokens_details"], json!({"reasoning_tokens": 0}));
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );
}

#[test]
fn tokens_of_thoughts_are_counted() {
    let live = start(&with_template("qwen3", THINKS), 4, ServerConfig::default());
    let usage = |usage: &Value| {
        (usage["completion_tokens"].clone(), usage["completion_tokens_details"]["reasoning_tokens"].clone())
    };
    for (thinks, wanted) in [(true, 14), (false, 0)] {
        let body = chat(json!({"max_tokens": 7, "n": 2, "ignore_eos": true, "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": thinks}}));
        let whole = live.ok("/v1/chat/completions", &body);
        assert_eq!(whole["choices"][0]["message"]["reasoning_content"].is_string(), thinks, "{whole}");
        assert_eq!(usage(&whole["usage"]), (json!(14), json!(wanted)));
        let options = json!({"include_usage": true, "continuous_usage_stats": true});
        let events =
            live.post("/v1/chat/completions", &with(with(body, "stream", json!(true)), "stream_options", options));
        let events = events.events();
        assert_eq!(usage(&events.last().unwrap()["usage"]), (json!(14), json!(wanted)));
        let so_far = &events[events.len() - 2]["usage"];
        assert_eq!(usage(so_far), (json!(7), json!(wanted / 2)), "of one choice");
    }
    let text = live.ok("/v1/completions", &json!({"prompt": "Hi", "max_tokens": 3, "ignore_eos": true}));
    assert_eq!(usage(&text["usage"]), (json!(3), json!(0)));
}

#[test]
fn offsets_of_an_echo_are_those_of_its_text() {
    let live = plain();
    let hi = live.tokenizer.encode_plain("Hi").unwrap();
    let ids = [vec![3], hi.clone(), vec![4], hi].concat();
    for (prompt, skip) in [(json!(ids), true), (json!(ids), false), (json!("<|im_start|>Hi<|im_end|>Hi"), true)] {
        let body = json!({"prompt": prompt, "skip_special_tokens": skip, "max_tokens": 3, "echo": true, "logprobs": 0,
            "temperature": 0, "ignore_eos": true});
        let choice = live.ok("/v1/completions", &body)["choices"][0].clone();
        let (text, logprobs) = (choice["text"].as_str().unwrap(), &choice["logprobs"]);
        let tokens = logprobs["tokens"].as_array().unwrap();
        assert_eq!(tokens[0], "<|im_start|>");
        let text: Vec<char> = text.chars().collect();
        for (token, at) in tokens.iter().zip(logprobs["text_offset"].as_array().unwrap()) {
            let token = token.as_str().unwrap();
            let at = usize::try_from(at.as_u64().unwrap()).unwrap();
            let stands_there = text[at..].iter().collect::<String>().starts_with(token);
            let hidden = token.starts_with("<|") && skip && !prompt.is_string();
            assert!(stands_there || hidden || token.contains('\u{fffd}'), "{token} at {at} of {choice}");
        }
    }
}

#[test]
fn ids_of_tokens_are_told_where_they_are_asked_for() {
    let live = plain();
    let ask = json!({"max_tokens": 5, "ignore_eos": true, "temperature": 0, "return_token_ids": true, "logprobs": 1});
    let mut body = ask.clone();
    body["prompt"] = json!("Hello");
    let whole = live.ok("/v1/completions", &body)["choices"][0].clone();
    let prompt = live.tokenizer.encode("Hello", true).unwrap();
    assert_eq!(whole["prompt_token_ids"], json!(prompt));
    let ids = whole["token_ids"].as_array().unwrap().clone();
    assert_eq!(ids.len(), 5);
    let gathered = |events: &[Value], name: &str| -> Vec<Value> {
        let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
        choices.flat_map(|choice| choice[name].as_array().cloned().unwrap_or_default()).collect()
    };
    let events = live.post("/v1/completions", &with(body.clone(), "stream", json!(true))).events();
    assert_eq!(
        (gathered(&events, "token_ids"), json!(gathered(&events, "prompt_token_ids"))),
        (ids.clone(), json!(prompt))
    );
    body["return_tokens_as_token_ids"] = json!(true);
    let named = live.ok("/v1/completions", &body)["choices"][0]["logprobs"].clone();
    let wanted: Vec<String> = ids.iter().map(|id| format!("token_id:{id}")).collect();
    assert_eq!(named["tokens"], json!(wanted));
    assert!(named["top_logprobs"][0].as_object().unwrap().contains_key(&wanted[0]), "{named}");

    let mut body = chat(ask);
    (body["logprobs"], body["return_tokens_as_token_ids"]) = (json!(true), json!(true));
    let whole = live.ok("/v1/chat/completions", &body);
    let prompt = &whole["prompt_token_ids"];
    assert_eq!(json!(prompt.as_array().unwrap().len()), whole["usage"]["prompt_tokens"]);
    let choice = &whole["choices"][0];
    let named: Vec<Value> =
        choice["logprobs"]["content"].as_array().unwrap().iter().map(|t| t["token"].clone()).collect();
    let wanted: Vec<String> =
        choice["token_ids"].as_array().unwrap().iter().map(|id| format!("token_id:{id}")).collect();
    assert_eq!(json!(named), json!(wanted));
    let events = live.post("/v1/chat/completions", &with(body, "stream", json!(true))).events();
    assert_eq!(
        (json!(gathered(&events, "token_ids")), &events[0]["prompt_token_ids"]),
        (choice["token_ids"].clone(), prompt)
    );
}

#[test]
fn streams_say_what_whole_answers_say() {
    let live = plain();
    for seed in 0..20 {
        let body = chat(json!({"max_tokens": 40, "seed": seed, "n": 2, "temperature": 1.5, "stop": ["e", "ab"]}));
        let whole = live.ok("/v1/chat/completions", &body);
        let streamed = with(with(body, "stream", json!(true)), "stream_options", json!({"include_usage": true}));
        let events = live.post("/v1/chat/completions", &streamed).events();
        let choices = gather(&events, |choice| choice["delta"]["content"].as_str());
        let (last, before) = events.split_last().unwrap();
        assert_eq!(last["usage"], whole["usage"], "seed {seed}");
        assert_eq!(last["choices"], json!([]));
        assert!(before.iter().all(|event| event["usage"].is_null() && event["object"] == "chat.completion.chunk"));
        assert!(before.iter().all(|event| event["id"] == last["id"] && event["created"] == last["created"]));
        for (i, (text, reason)) in choices.iter().enumerate() {
            let choice = &whole["choices"][i];
            assert_eq!(
                (json!(text), json!(reason)),
                (choice["message"]["content"].clone(), choice["finish_reason"].clone())
            );
        }
        let first: Vec<_> = events.iter().filter(|e| e["choices"][0]["delta"]["role"] == "assistant").collect();
        assert_eq!(first.len(), 2, "one first chunk per choice");

        let body =
            json!({"prompt": ["Hello", "You"], "max_tokens": 30, "seed": seed, "echo": seed % 2 == 0, "logprobs": 2});
        let whole = live.ok("/v1/completions", &body);
        let events = live.post("/v1/completions", &with(body, "stream", json!(true))).events();
        assert!(events.iter().all(|event| event.get("usage").is_none()), "no usage unless asked for");
        for (i, (text, reason)) in gather(&events, |choice| choice["text"].as_str()).iter().enumerate() {
            let choice = &whole["choices"][i];
            assert_eq!((json!(text), json!(reason)), (choice["text"].clone(), choice["finish_reason"].clone()));
            let of_stream = |name: &str| -> Vec<Value> {
                let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
                let own = choices.filter(|choice| choice["index"] == json!(i));
                own.flat_map(|choice| choice["logprobs"][name].as_array().cloned().unwrap_or_default()).collect()
            };
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(json!(of_stream(name)), choice["logprobs"][name], "{name}");
            }
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    // The documentation of njoule_runtime has the same numbers, from transformers 4.57.
    let live = start("llama_plain", 2, ServerConfig::default());
    let body = json!({"prompt": [1, 153, 126, 119, 176], "max_tokens": 5, "temperature": 0, "logprobs": 0});
    let answer = live.ok("/v1/completions", &body);
    let spelled = |id: &u32| String::from_utf8_lossy(&live.tokenizer.token_bytes(*id).unwrap()).into_owned();
    let wanted: Vec<String> = [227, 200, 144, 256, 191].iter().map(spelled).collect();
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(wanted));
}

#[test]
fn log_likelihoods_can_be_read_off_an_echo() {
    // As lm-eval's local-completions asks: ids, echo, one alternative, one token, greedy.
    let live = plain();
    let ids: Vec<u32> = (5..25).collect();
    let body = json!({"model": "m", "prompt": [ids, ids], "max_tokens": 1, "echo": true, "logprobs": 1, "temperature": 0,
        "seed": 1234});
    let answer = live.ok("/v1/completions", &body);
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    for choice in answer["choices"].as_array().unwrap() {
        let logprobs = &choice["logprobs"];
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[name].as_array().unwrap().len(), 21, "{name}");
        }
        assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
        for at in 1..21 {
            let own = logprobs["token_logprobs"][at].as_f64().unwrap();
            let top = logprobs["top_logprobs"][at].as_object().unwrap();
            let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
            assert!(own < 0.0 && own <= best && (at < 20 || own == best), "{own} {top:?}");
        }
    }
    assert_eq!(answer["choices"][0]["logprobs"], answer["choices"][1]["logprobs"]);
}

#[test]
fn greedy_choices_are_decoded_once_and_copied() {
    let live = plain();
    let before = live.engine.stats().generated_tokens;
    let answer =
        live.ok("/v1/chat/completions", &chat(json!({"n": 3, "temperature": 0, "max_tokens": 5, "ignore_eos": true})));
    let texts: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert!(texts.len() == 3 && texts.iter().all(|text| *text == texts[0]));
    assert_eq!(live.engine.stats().generated_tokens - before, 5);
    assert_eq!(answer["usage"]["completion_tokens"], 15);
}

#[test]
fn a_seed_repeats_and_its_choices_differ() {
    let live = plain();
    let body = chat(json!({"n": 2, "seed": -7, "max_tokens": 20, "temperature": 2, "ignore_eos": true}));
    let (a, b) = (live.ok("/v1/chat/completions", &body), live.ok("/v1/chat/completions", &body));
    assert_eq!(a["choices"], b["choices"]);
    assert_ne!(a["choices"][0]["message"], a["choices"][1]["message"]);
}

#[test]
fn chat_logprobs_have_bytes_and_as_many_alternatives_as_asked() {
    let live = plain();
    let body =
        chat(json!({"max_tokens": 6, "logprobs": true, "top_logprobs": 3, "temperature": 0, "ignore_eos": true}));
    let answer = live.ok("/v1/chat/completions", &body);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 6);
    for token in content {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(token["logprob"], token["top_logprobs"][0]["logprob"], "greedy takes the first");
        assert!(token["bytes"].is_array() && token["token"].is_string());
    }
    let body = with(body, "stream", json!(true));
    let events = live.post("/v1/chat/completions", &body).events();
    let of_stream: Vec<&Value> =
        events.iter().flat_map(|e| e["choices"][0]["logprobs"]["content"].as_array().into_iter().flatten()).collect();
    assert_eq!(json!(of_stream), json!(content));
}

#[test]
fn bias_least_length_and_stop_tokens_hold() {
    let live = plain();
    let forced = chat(json!({"logit_bias": {"80": 100}, "max_tokens": 3, "temperature": 0}));
    assert_eq!(live.ok("/v1/chat/completions", &forced)["choices"][0]["message"]["content"], "lll");
    let stopped = with(forced.clone(), "stop_token_ids", json!([80]));
    let answer = live.ok("/v1/chat/completions", &stopped);
    assert_eq!(
        (&answer["choices"][0]["finish_reason"], &answer["usage"]["completion_tokens"]),
        (&json!("stop"), &json!(1))
    );
    let longer = with(stopped, "min_tokens", json!(3));
    assert_eq!(live.ok("/v1/chat/completions", &longer)["usage"]["completion_tokens"], 3);
    let text = with(forced.clone(), "stop", json!("ll"));
    assert_eq!(live.ok("/v1/chat/completions", &text)["choices"][0]["message"]["content"], "");
    let kept = with(text, "include_stop_str_in_output", json!(true));
    assert_eq!(live.ok("/v1/chat/completions", &kept)["choices"][0]["message"]["content"], "ll");
}

#[test]
fn prompt_logprobs_are_null_and_then_one_per_token() {
    let live = plain();
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 1, "prompt_logprobs": 2});
    let answer = live.ok("/v1/completions", &body);
    let all = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert!(all.len() == 3 && all[0].is_null());
    assert!(all[1]["6"]["logprob"].as_f64().unwrap() < 0.0 && all[2]["7"]["decoded_token"].is_string());
}

#[test]
fn text_and_ids_go_both_ways() {
    let live = plain();
    let there = live.ok("/tokenize", &json!({"prompt": "Hello, world", "return_token_strs": true}));
    assert_eq!(there["count"].as_u64().unwrap() as usize, there["tokens"].as_array().unwrap().len());
    assert_eq!(there["token_strs"].as_array().unwrap().len(), there["tokens"].as_array().unwrap().len());
    let back = live.ok("/detokenize", &json!({"tokens": there["tokens"]}));
    assert_eq!(back["prompt"], "Hello, world");
    let chat = live.ok("/tokenize", &json!({"messages": [{"role": "user", "content": "Hello"}]}));
    let answer = live.ok("/v1/chat/completions", &self::chat(json!({"max_tokens": 1})));
    assert_eq!(answer["usage"]["prompt_tokens"], chat["count"]);
}

#[test]
fn invocations_take_either_kind() {
    let live = plain();
    let chat = live.ok("/invocations", &chat(json!({"max_tokens": 1})));
    assert_eq!(chat["object"], "chat.completion");
    assert_eq!(live.ok("/invocations", &json!({"prompt": "a", "max_tokens": 1}))["object"], "text_completion");
    live.post("/invocations", &json!({"input": "a"})).is_error(400, "unsupported_parameter");
}

#[test]
fn models_have_all_names() {
    let live = plain();
    let list = live.get("/v1/models").json();
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["m", "other"]);
    assert_eq!(live.get("/v1/models/other").json()["max_model_len"], 512);
    live.get("/v1/models/third").is_error(404, "model_not_found");
    live.post("/v1/chat/completions", &with(chat(json!({})), "model", json!("x"))).is_error(404, "model_not_found");
}

#[test]
fn an_answer_is_the_same_whatever_runs_beside_it() {
    let live = plain();
    let body = |i: usize| chat(json!({"max_tokens": 20 + i, "temperature": 0, "ignore_eos": true, "logprobs": true}));
    let alone: Vec<Value> = (0..8).map(|i| live.ok("/v1/chat/completions", &body(i))["choices"].clone()).collect();
    std::thread::scope(|scope| {
        let live: &Live = &live;
        for _ in 0..3 {
            for (i, alone) in alone.iter().enumerate() {
                scope.spawn(move || {
                    for _ in 0..5 {
                        assert_eq!(&live.ok("/v1/chat/completions", &body(i))["choices"], alone);
                    }
                });
            }
        }
    });
}

#[test]
fn figures_add_up_to_the_usage_of_the_answers() {
    let live = plain();
    let (mut prompt, mut generated) = (0, 0);
    for i in 0..6 {
        let body = chat(json!({"n": 1 + i % 3, "temperature": i % 2, "max_tokens": 5 + i}));
        let usage = live.ok("/v1/chat/completions", &body)["usage"].clone();
        prompt += usage["prompt_tokens"].as_u64().unwrap();
        generated += usage["completion_tokens"].as_u64().unwrap();
    }
    live.wait_until_idle();
    assert_eq!(live.metric("vllm:prompt_tokens_total"), prompt as f64);
    assert_eq!(live.metric("njoule_generation_tokens_total"), generated as f64);
    assert_eq!(live.metric("vllm:num_requests_running"), 0.0);
}

#[test]
fn steps_that_were_run_again_and_rows_for_nobody_are_counted() {
    use std::sync::atomic::Ordering;
    let live = plain();
    let counts =
        || ["steps", "retried_steps", "padded_tokens"].map(|name| live.metric(&format!("njoule_{name}_total")));
    let ask = || live.ok("/v1/completions", &json!({"prompt": "Hi", "max_tokens": 5, "ignore_eos": true}));
    ask();
    live.wait_until_idle();
    let [before, retried, padded] = counts();
    assert!(before >= 5.0 && (retried, padded) == (0.0, 0.0), "{before} {retried} {padded}");
    live.gate.padding.store(3, Ordering::Relaxed);
    live.gate.busy.store(true, Ordering::Relaxed);
    ask();
    live.wait_until_idle();
    let [after, retried, padded] = counts();
    assert_eq!((retried, padded), (1.0, 3.0 * (after - before)));
    assert_eq!(live.metric("njoule_device_errors_total{model_name=\"m\",engine=\"0\",code=\"1005\"}"), 1.0);
    assert_eq!(live.metric("njoule_tokens_total{model=\"m\",kind=\"padded\"}"), padded);
}

#[test]
fn structured_answers_are_what_was_asked_for() {
    let live = plain();
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["ok", "kind"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    for seed in 0..8 {
        let body = chat(json!({"response_format": format, "seed": seed, "max_tokens": 200}));
        let whole = live.ok("/v1/chat/completions", &body);
        let choice = &whole["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        let text = choice["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        assert!(value["ok"].is_boolean() && (value["kind"] == "a" || value["kind"] == "b"), "{value}");
        let events = live.post("/v1/chat/completions", &with(body, "stream", json!(true))).events();
        assert_eq!(gather(&events, |choice| choice["delta"]["content"].as_str())[0].0, text);
        let outputs = json!({"choice": ["yes", "no"]});
        let body = json!({"prompt": "Hi", "structured_outputs": outputs, "seed": seed, "max_tokens": 20});
        let text = live.ok("/v1/completions", &body)["choices"][0]["text"].clone();
        assert!(text == "yes" || text == "no", "{text}");
    }
    let bad = chat(json!({"structured_outputs": {"regex": "("}}));
    assert_eq!(live.post("/v1/chat/completions", &bad).is_error(400, "grammar_error")["param"], "structured_outputs");
}

#[test]
fn demanded_calls_come_and_others_are_free_beside_them() {
    let live = plain();
    // As clients make them of types: the parts apart, and nothing said of other properties.
    let parameters = json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/Yes"}}, "required": ["x"],
        "$defs": {"Yes": {"type": "boolean"}}});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let named = json!({"type": "function", "function": {"name": "g"}});
    for seed in 0..4 {
        let body =
            chat(json!({"tools": [tool("f"), tool("g")], "tool_choice": named, "seed": seed, "max_tokens": 300}));
        let whole = live.ok("/v1/chat/completions", &body);
        let choice = &whole["choices"][0];
        assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!("g")));
        let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["x"].is_boolean());
        let events = live.post("/v1/chat/completions", &with(body, "stream", json!(true))).events();
        let of_stream: Vec<&Value> = events
            .iter()
            .flat_map(|e| e["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten())
            .collect();
        assert_eq!(of_stream.len(), 1);
        assert_eq!((&of_stream[0]["function"], &of_stream[0]["index"]), (&calls[0]["function"], &json!(0)));
    }
    let unknown = chat(json!({"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "h"}}}));
    assert_eq!(live.post("/v1/chat/completions", &unknown).is_error(400, "invalid_value")["param"], "tool_choice");
}
