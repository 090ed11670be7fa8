//! Grammars over the vocabulary of a fixture.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::fields::Fields;
use crate::output::Format;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/qwen3")).expect("the fixture")
}

fn spec(outputs: Value) -> Result<Spec, ApiError> {
    let body = json!({"structured_outputs": outputs});
    let mut fields = Fields::of_body(body.to_string().as_bytes())?;
    Spec::take(&mut fields).map(|spec| spec.expect("one is given"))
}

/// Whether an answer of exactly `text` may be given.
fn accepts(spec: &Spec, text: &str) -> bool {
    let tokenizer = tokenizer();
    let mask = Grammars::default().compile(spec, &tokenizer, VOCAB, &[2, 4], Vec::new()).expect("it compiles");
    let mut stream = mask.start(&[]);
    let ids = tokenizer.encode_plain(text).expect("text");
    let allowed = |stream: &mut Box<dyn MaskStream>, generated: &[u32]| {
        let mut words = vec![0; VOCAB.div_ceil(32)];
        stream.fill(generated, &mut words).expect("a mask");
        words
    };
    for (at, id) in ids.iter().enumerate() {
        if !is_set(&allowed(&mut stream, &ids[..at]), *id) {
            return false;
        }
    }
    let end = allowed(&mut stream, &ids);
    assert_eq!(is_set(&end, 2), is_set(&end, 4), "one end token is as good as another");
    is_set(&end, 2)
}

const VOCAB: usize = 272;

#[test]
fn each_kind_lets_through_what_it_should() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false});
    let cases = [
        (json!({"json": schema}), "{\"a\": 12}", "{\"b\": 1}"),
        (json!({"json": schema.to_string()}), "{\"a\": 1}", "{\"a\": \"x\"}"),
        (json!({"json_object": true}), "{\"any\": [1]}", "[1]"),
        (json!({"regex": "[ab]{2,3}"}), "aba", "abc"),
        (json!({"choice": ["yes", "no \"quoted\""]}), "no \"quoted\"", "maybe"),
        (json!({"grammar": "start: \"a\" | \"b\" start"}), "bba", "bb"),
        (
            json!({"grammar": "root ::= \"SELECT \" col (\", \" col)* end\ncol ::= [a-c]+ | \"\\\"x\\\"\"\nend ::= | \";\""}),
            "SELECT ab, \"x\";",
            "SELECT d",
        ),
    ];
    for (outputs, good, bad) in cases {
        let spec = spec(outputs.clone()).expect("a grammar");
        assert!(accepts(&spec, good), "{outputs} {good}");
        assert!(!accepts(&spec, bad), "{outputs} {bad}");
    }
}

#[test]
fn demanded_calls_are_written_as_the_model_writes_them() {
    let tools = [
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}},
        "required": ["x"], "additionalProperties": false}}}),
    ];
    let tagged = Spec::calls(&tools, Format::Tagged, false).unwrap();
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
    assert!(accepts(&tagged, one) && accepts(&tagged, &format!("{one}\n{one}")) && !accepts(&tagged, "no"));
    let single = Spec::calls(&tools, Format::Tagged, true).unwrap();
    assert!(accepts(&single, one) && !accepts(&single, &format!("{one}\n{one}")));
    let bare = Spec::calls(&tools, Format::Bare, false).unwrap();
    assert!(accepts(&bare, "{\"name\": \"f\", \"parameters\": {\"x\": 1}}"));
    assert!(!accepts(&bare, "{\"name\": \"g\", \"parameters\": {\"x\": 1}}"));
}

#[test]
fn a_preempted_answer_gets_the_same_masks_again_and_thoughts_are_free() {
    let tokenizer = tokenizer();
    let spec = spec(json!({"regex": "ab"})).unwrap();
    let ids = tokenizer.encode_plain("ab").unwrap();
    let mask = Grammars::default().compile(&spec, &tokenizer, VOCAB, &[2], vec![8, 9]).unwrap();
    let mut stream = mask.start(&[]);
    let mut fill = |generated: &[u32]| {
        let mut words = vec![0; VOCAB.div_ceil(32)];
        stream.fill(generated, &mut words).unwrap();
        words
    };
    let thinking = fill(&[50, 60]);
    assert!(thinking.iter().all(|word| *word == u32::MAX));
    assert!(fill(&[50, 60, 8]).iter().all(|word| *word == u32::MAX), "both must have come");
    let begun = fill(&[50, 60, 8, 9]);
    assert!(is_set(&begun, ids[0]) && !is_set(&begun, 60));
    let later = fill(&[50, 60, 8, 9, ids[0]]);
    assert_eq!(fill(&[50, 60, 8, 9]), begun);
    assert_eq!(fill(&[50, 60, 8, 9, ids[0]]), later);
}

#[test]
fn grammars_that_blow_up_are_refused_or_done_within_a_second() {
    let tokenizer = tokenizer();
    let deep = (0..70).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let recursive =
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}}}});
    let cases = [
        json!({"regex": "(a+)+$"}),
        json!({"regex": "a{1,100000}"}),
        json!({"regex": "((a{1,100}){1,100}){1,100}"}),
        json!({"regex": "("}),
        json!({"json": deep}),
        json!({"json": recursive}),
        json!({"json": {"enum": vec!["x".repeat(1000); 1100]}}),
        json!({"grammar": "start: start"}),
        json!({"grammar": "%%%"}),
        json!({"choice": []}),
        json!({"regex": ""}),
        json!({"regex": "a", "choice": ["b"]}),
        json!({}),
        json!({"regex": 3}),
    ];
    for outputs in cases {
        let begun = Instant::now();
        let done = spec(outputs.clone())
            .and_then(|spec| Grammars::default().compile(&spec, &tokenizer, VOCAB, &[2], Vec::new()));
        let text = outputs.to_string();
        let what = &text[..text.len().min(80)];
        if let Err(error) = done {
            assert_eq!(error.status.as_u16(), 400, "{what}: {error:?}");
            assert!(error.message.len() < 500, "{what}: {error:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {:?}", begun.elapsed());
    }
}
