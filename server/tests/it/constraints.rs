//! What constrains tokens besides grammars, grammars that cannot be had, and those by names that are gone.

use serde_json::{Value, json};

use crate::support::{Live, plain};

fn complete(live: &Live, extra: Value) -> Value {
    let mut body = json!({"prompt": "Hi", "max_tokens": 24, "ignore_eos": true, "temperature": 1.5});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    live.ok("/v1/completions", &body)["choices"][0].clone()
}

#[test]
fn only_allowed_tokens_come() {
    let live = plain();
    let allowed: Vec<u32> = live.tokenizer.encode("abc", false).unwrap();
    for seed in 0..8 {
        let choice = complete(&live, json!({"allowed_token_ids": allowed, "seed": seed, "logprobs": 0}));
        let text = choice["text"].as_str().unwrap();
        let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
        assert_eq!(tokens.len(), 24);
        let of = |id: &u32| String::from_utf8(live.tokenizer.token_bytes(*id).unwrap()).unwrap();
        let texts: Vec<String> = allowed.iter().map(of).collect();
        assert!(tokens.iter().all(|token| texts.iter().any(|text| token == text)), "{text}");
    }
}

#[test]
fn bad_words_do_not_come_where_they_would_have() {
    let live = plain();
    let greedy = json!({"temperature": 0});
    let free = complete(&live, greedy)["text"].as_str().unwrap().to_owned();
    // Two letters that follow each other in the free answer, as a word of two tokens or of one.
    let word: String = free.chars().filter(char::is_ascii_alphabetic).take(1).collect();
    assert!(!word.is_empty(), "{free}");
    let kept = complete(&live, json!({"temperature": 0, "bad_words": [word]}))["text"].as_str().unwrap().to_owned();
    assert_ne!(free, kept);
    let bad = live.tokenizer.encode_plain(&word).unwrap();
    let ids = live.tokenizer.encode_plain(&kept).unwrap();
    assert!(!ids.windows(bad.len()).any(|window| window == bad), "{word} in {kept}");
}

#[test]
fn names_that_vllm_ignores_now_are_refused_with_the_one_that_it_has() {
    let live = plain();
    for (name, value) in [
        ("guided_json", json!({"type": "object"})),
        ("guided_json_object", json!(true)),
        ("guided_regex", json!("[0-9]{3}x")),
        ("guided_choice", json!(["yes", "no"])),
        ("guided_grammar", json!("start: \"a\" \"b\"")),
    ] {
        let error =
            live.post("/v1/completions", &json!({"prompt": "Hi", name: value})).is_error(400, "unsupported_parameter");
        assert_eq!(error["param"], name);
        assert!(error["message"].as_str().unwrap().contains("structured_outputs"), "{error}");
    }
    assert_eq!(live.post("/v1/completions", &json!({"prompt": "Hi", "guided_json": null})).status, 200);
}

#[test]
fn grammars_that_go_deep_are_compiled_or_refused_and_end_nothing() {
    let live = plain();
    let chain: String = (0..8_000).map(|i| format!("r{i}: \"a\" r{}\n", i + 1)).collect();
    let longer: String = (0..40_000).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let refs = |n: u32| -> serde_json::Map<String, Value> {
        (0..n)
            .map(|i| (format!("a{i}"), json!({"anyOf": [{"$ref": format!("#/$defs/a{}", i + 1)}, {"type": "null"}]})))
            .chain([(format!("a{n}"), json!({"type": "null"}))])
            .collect()
    };
    let nested = |n: usize| format!("start: {}\"a\"{}\n", "(".repeat(n), ")".repeat(n));
    for outputs in [
        json!({"grammar": format!("start: r0\n{chain}r8000: \"b\"\n")}),
        json!({"grammar": format!("start: r0\n{longer}r40000: \"b\"\n")}),
        json!({"grammar": nested(8_000)}),
        json!({"grammar": nested(400_000)}),
        json!({"grammar": format!("root ::= {}\"a\"{}", "(".repeat(60), ")".repeat(60))}),
        json!({"regex": format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000))}),
        json!({"json": {"$ref": "#/$defs/a0", "$defs": refs(8_000)}}),
        json!({"json": {"$ref": "#/$defs/a0", "$defs": refs(9_000)}}),
    ] {
        let answer =
            live.post("/v1/completions", &json!({"prompt": "Hi", "max_tokens": 2, "structured_outputs": outputs}));
        assert!(answer.status == 200 || answer.is_error(400, "grammar_error").is_object(), "{}", answer.text());
    }
    assert_eq!(live.get("/health").status, 200);
}

#[test]
fn a_grammar_in_vllms_notation_is_obeyed_or_refused_in_words() {
    let live = plain();
    let ask = |grammar: &str| json!({"prompt": "Hi", "structured_outputs": {"grammar": grammar}, "max_tokens": 60, "temperature": 1.5});
    for seed in 0..4 {
        let mut body = ask("root ::= \"SELECT \" col (\", \" col)? # SQL\ncol ::= \"a\" | \"b\"");
        body["seed"] = seed.into();
        let text = live.ok("/v1/completions", &body)["choices"][0]["text"].as_str().unwrap().to_owned();
        assert!(["a", "b"].iter().any(|end| text.starts_with("SELECT ") && text.ends_with(end)), "{text}");
    }
    for (grammar, words) in [
        (
            "root ::= \"(\" root \")\"",
            "the rule root refers to itself: EBNF is taken without that; write the grammar in Lark",
        ),
        ("root ::= (\"a\"", "line 1: a closing parenthesis is missing"),
    ] {
        let error = live.post("/v1/completions", &ask(grammar)).is_error(400, "grammar_error");
        assert_eq!(error["param"], "structured_outputs");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
}

#[test]
fn a_grammar_that_cannot_begin_is_refused_in_words_by_its_field() {
    let live = plain();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let endless = json!({"$ref": "#"});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": endless}});
    let all: Vec<String> = (0..3000).map(|i| format!("r{i}")).collect();
    let rules: String = all.iter().map(|name| format!("{name}: \"a\" {name} | \"b\"\n")).collect();
    let wide = format!("start: {}\n{rules}", all.join(" | "));
    for (param, more) in [
        ("response_format", json!({"response_format": format})),
        ("structured_outputs", json!({"structured_outputs": {"json": endless}})),
        ("json_schema", json!({"json_schema": endless})),
        ("structured_outputs", json!({"structured_outputs": {"grammar": wide}})),
    ] {
        // A stream is refused before it begins.
        let mut body = json!({"messages": messages, "max_tokens": 20, "stream": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = live.post("/v1/chat/completions", &body).is_error(400, "grammar_error");
        let message = error["message"].as_str().unwrap();
        assert_eq!(error["param"], param, "{error}");
        assert!(message.starts_with("the grammar cannot be used: ") && !message.contains(['<', '\n']), "{error}");
        assert!(!message.contains("NoExtension") && !message.contains("TooComplex"), "{error}");
    }
}

#[test]
fn constraints_hold_together() {
    let live = plain();
    for seed in 0..8 {
        let choice = json!({"choice": ["aa", "ab", "bb"]});
        let body = json!({"structured_outputs": choice, "bad_words": ["b"], "ignore_eos": false, "seed": seed});
        assert_eq!(complete(&live, body)["text"], "aa");
    }
    // Nothing is left: an error, not a hang.
    let nothing = json!({"prompt": "Hi", "structured_outputs": {"choice": ["b"]}, "bad_words": ["b"], "max_tokens": 4});
    let error = live.post("/v1/completions", &nothing).is_error(400, "grammar_error");
    assert_eq!(error["param"], "structured_outputs");
    let nothing = json!({"prompt": "Hi", "allowed_token_ids": [7], "logit_bias": {}, "bad_words": ["b"], "max_tokens": 4,
        "min_tokens": 4, "stop_token_ids": [7]});
    assert_eq!(live.post("/v1/completions", &nothing).is_error(400, "grammar_error")["param"], "allowed_token_ids");
}
