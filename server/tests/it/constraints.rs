//! What constrains tokens besides grammars, and grammars by their older names.

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
fn older_names_of_structured_outputs_constrain_as_the_new_one_does() {
    let live = plain();
    let cases = [
        ("guided_regex", "regex", json!("[0-9]{3}x")),
        ("guided_choice", "choice", json!(["yes", "no"])),
        (
            "guided_json",
            "json",
            json!({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false}),
        ),
        ("guided_grammar", "grammar", json!("start: \"a\" \"b\"")),
    ];
    for (old, new, value) in cases {
        let choice = |body: Value| complete(&live, body)["text"].clone();
        let by_old = choice(json!({old: value, "ignore_eos": false, "seed": 1, "max_tokens": 60}));
        let by_new =
            choice(json!({"structured_outputs": {new: value}, "ignore_eos": false, "seed": 1, "max_tokens": 60}));
        assert_eq!(by_old, by_new, "{old}");
    }
    let both = json!({"prompt": "Hi", "guided_regex": "a", "structured_outputs": {"regex": "b"}});
    assert_eq!(live.post("/v1/completions", &both).is_error(400, "invalid_value")["param"], "guided_regex");
}

#[test]
fn constraints_hold_together() {
    let live = plain();
    for seed in 0..8 {
        let body = json!({"guided_choice": ["aa", "ab", "bb"], "bad_words": ["b"], "ignore_eos": false, "seed": seed});
        assert_eq!(complete(&live, body)["text"], "aa");
    }
    // Nothing is left: an error, not a hang.
    let nothing = json!({"prompt": "Hi", "guided_choice": ["b"], "bad_words": ["b"], "max_tokens": 4});
    live.post("/v1/completions", &nothing).is_error(400, "grammar_error");
}
