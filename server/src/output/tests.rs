//! Answers as models write them, cut in every way.

use super::*;
use crate::mailbox::Step;

fn looks(format: Option<Format>) -> Looks {
    let tools = ["f", "g"].map(|name| Tool { name: name.into(), ..Tool::default() });
    Looks { thoughts: Thoughts::Tags, thinking: false, format, tools: tools.into(), max_calls: None }
}

/// Reasoning, content, and calls as `name(arguments)`.
fn split(looks: &Looks, pieces: &[&str]) -> (String, String, Vec<String>) {
    let mut parser = Parser::new(looks.clone());
    let mut deltas = Vec::new();
    pieces.iter().for_each(|piece| parser.push(piece, &mut deltas));
    parser.finish(&mut deltas);
    let mut all = (String::new(), String::new(), Vec::new());
    for delta in deltas {
        match delta {
            Delta::Reasoning(text) => all.0.push_str(&text),
            Delta::Content(text) => all.1.push_str(&text),
            Delta::Call(call) => all.2.push(format!("{}({})", call.name, call.arguments)),
        }
    }
    assert_eq!(parser.calls(), all.2.len());
    all
}

/// The same for the whole text and for every cut into two and into characters.
fn check(looks: &Looks, text: &str, reasoning: &str, content: &str, calls: &[&str]) {
    let wanted = (reasoning.to_owned(), content.to_owned(), calls.iter().map(|c| c.to_string()).collect());
    assert_eq!(split(looks, &[text]), wanted, "{text:?}");
    for (cut, _) in text.char_indices() {
        assert_eq!(split(looks, &[&text[..cut], &text[cut..]]), wanted, "{text:?} cut at {cut}");
    }
    let chars: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(split(looks, &chars.iter().map(String::as_str).collect::<Vec<_>>()), wanted, "{text:?} in characters");
}

#[test]
fn plain_text_is_content_whatever_its_white_space() {
    for format in [None, Some(Format::Tagged), Some(Format::Bare), Some(Format::Mistral)] {
        for text in ["", " ", "hello", "  hello \n", "a < b", "<thin", "a </think> b", "<tool", "[TOOL", "<|pyth"] {
            check(&looks(format), text, "", text, &[]);
        }
    }
}

#[test]
fn thoughts_are_cut_off_with_their_white_space() {
    let looks = looks(None);
    check(&looks, "<think>\nwell, so\n</think>\n\nYes.\n", "well, so", "Yes.\n", &[]);
    check(&looks, "\n<think></think>Yes.", "", "Yes.", &[]);
    check(&looks, "<think> never ends ", "never ends", "", &[]);
    let begun = Looks { thinking: true, ..looks };
    check(&begun, "\nwell\n\nso </think> Yes.", "well\n\nso", "Yes.", &[]);
    assert!(
        Thoughts::Tags.are_begun_by("<|im_start|>assistant\n<think>\n")
            && !Thoughts::Tags.are_begun_by("<think>\n\n</think>\n\n")
    );
}

#[test]
fn tagged_calls_are_read_and_what_is_none_stays_content() {
    let looks = looks(Some(Format::Tagged));
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": [2]}}\n</tool_call>";
    let f = "f({\"b\":1,\"a\":[2]})";
    check(&looks, one, "", "", &[f]);
    check(&looks, &format!("Let me see.\n{one}\n{one}\n"), "", "Let me see.", &[f, f]);
    check(&looks, &format!("<think>\nhm\n</think>\n\n{one}"), "hm", "", &[f]);
    check(&looks, "<tool_call>{\"name\": \"g\"}", "", "", &["g({})"]);
    check(&looks, "a <tool_call>nonsense</tool_call> b", "", "a <tool_call>nonsense</tool_call> b", &[]);
    let coder = "<tool_call>\n<function=f>\n<parameter=x>\n3\n</parameter>\n<parameter=y>\na b\n</parameter>\n</function>\n</tool_call>";
    check(&looks, coder, "", "", &["f({\"x\":3,\"y\":\"a b\"})"]);
    let single = Looks { max_calls: Some(1), ..looks };
    check(&single, &format!("{one}{one}"), "", "", &[f]);
}

#[test]
fn bare_calls_must_name_a_tool() {
    let looks = looks(Some(Format::Bare));
    check(&looks, "{\"name\": \"f\", \"parameters\": {\"x\": 1}}", "", "", &["f({\"x\":1})"]);
    check(&looks, "<|python_tag|>{\"name\": \"f\"}; {\"name\": \"g\"}", "", "", &["f({})", "g({})"]);
    check(&looks, "{\"name\": \"someone\"}", "", "{\"name\": \"someone\"}", &[]);
    check(&looks, "{ not json", "", "{ not json", &[]);
}

#[test]
fn mistral_writes_lists_or_names_with_arguments() {
    let looks = looks(Some(Format::Mistral));
    check(&looks, "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}]", "", "", &["f({})"]);
    check(&looks, "[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]g{}", "", "", &["f({\"x\":1})", "g({})"]);
    check(&looks, "ok [TOOL_CALLS] what", "", "ok [TOOL_CALLS] what", &[]);
}

#[test]
fn a_template_shows_its_format() {
    assert_eq!(Format::of_template("x <tool_call> y"), Format::Tagged);
    assert_eq!(Format::of_template("[AVAILABLE_TOOLS] [TOOL_CALLS]"), Format::Mistral);
    assert_eq!(Format::of_template("Environment: ipython"), Format::Bare);
    assert_eq!(Format::of_template("<|channel|> [TOOL_CALLS]"), Format::Channels);
    let thoughts = ["{{ '</think>' }}", "plain", "[THINK][/THINK]", "<|channel|>"].map(Thoughts::of_template);
    assert_eq!(thoughts, [Thoughts::Tags, Thoughts::None, Thoughts::Brackets, Thoughts::Channels]);
}

#[test]
fn channels_are_thoughts_answers_and_calls() {
    let looks = Looks { thoughts: Thoughts::Channels, ..looks(Some(Format::Channels)) };
    let thoughts = "<|channel|>analysis<|message|>hm\n\nwell<|end|>";
    check(
        &looks,
        &format!("{thoughts}<|start|>assistant<|channel|>final<|message|> Yes. < <|"),
        "hm\n\nwell",
        " Yes. < <|",
        &[],
    );
    check(&looks, "<|channel|>analysis<|message|>never ends", "never ends", "", &[]);
    let call = "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"x\": 1}<|call|>";
    check(&looks, &format!("{thoughts}{call}"), "hm\n\nwell", "", &["f({\"x\": 1})"]);
    let other = " to=functions.g<|channel|>commentary json<|message|>{}";
    check(&looks, other, "", "", &["g({})"]);
    let said = "<|channel|>commentary<|message|>Let me see.<|end|>";
    check(&looks, &format!("{said}{call}"), "", "Let me see.", &["f({\"x\": 1})"]);
    check(&looks, " to=functions.g<|message|>none", "", "none", &[]);
    for plain in ["", " ", "{\"a\": 1}", "Yes. <|channel|>", "<|chan", " two"] {
        check(&looks, plain, "", plain, &[]);
    }
    let begun = Looks { thinking: true, ..looks };
    check(&begun, "hm<|end|><|start|>assistant<|channel|>final<|message|>Yes", "hm", "Yes", &[]);
    assert!(Thoughts::Channels.are_begun_by("<|start|>assistant<|channel|>analysis<|message|>"));
}

#[test]
fn thoughts_in_brackets_come_before_calls_of_their_family() {
    let looks = Looks { thoughts: Thoughts::Brackets, ..looks(Some(Format::Mistral)) };
    check(&looks, "[THINK]hm[/THINK]Yes [x]", "hm", "Yes [x]", &[]);
    check(&looks, "[THINK]hm[/THINK][TOOL_CALLS]f[ARGS]{}", "hm", "", &["f({})"]);
    check(&looks, "[THIS] <think>", "", "[THIS] <think>", &[]);
}

#[test]
fn an_argument_without_quotes_has_the_type_of_its_schema() {
    let parameters = serde_json::json!({"properties": {"s": {"type": "string"}, "i": {"type": "integer"},
        "o": {"type": ["string", "null"]}, "a": {"anyOf": [{"type": "string"}, {"type": "number"}]}, "e": {"enum": ["1", "2"]},
        "r": {"$ref": "#/$defs/x"}}});
    let looks = Looks { tools: [Tool { name: "f".into(), parameters }].into(), ..looks(Some(Format::Tagged)) };
    for (key, text, wanted) in [
        ("s", "12345", "\"12345\""),
        ("s", "\"quoted\"", "\"\\\"quoted\\\"\""),
        ("s", "true", "\"true\""),
        ("s", "{\"a\": 1}", "\"{\\\"a\\\": 1}\""),
        ("i", "12345", "12345"),
        ("i", "many", "\"many\""),
        ("o", "null", "null"),
        ("o", "7", "\"7\""),
        ("a", "7", "7"),
        ("e", "1", "\"1\""),
        ("r", "7", "7"),
        ("unknown", "7", "7"),
    ] {
        let call = format!("<tool_call><function=f><parameter={key}>\n{text}\n</parameter></function></tool_call>");
        check(&looks, &call, "", "", &[&format!("f({{\"{key}\":{wanted}}})")]);
    }
}

#[test]
fn tokens_of_thoughts_are_counted_without_their_marks() {
    let part = |tokens: &[&str]| {
        let mut part = Part::default();
        for (id, token) in (0..).zip(tokens) {
            part.text.push_str(token);
            part.steps.push(Step { id, end: part.text.len() });
        }
        part
    };
    let tagged = ["<think>", "\n", "well", ", so", "\n", "</think>", "\n\n", "Yes", "."];
    let channels = [
        "<|channel|>",
        "analysis",
        "<|message|>",
        "well",
        ", so",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|channel|>",
        "final",
        "<|message|>",
        "Yes",
        ".",
    ];
    let cases = [
        (looks(None), &tagged[..], 4),
        (Looks { thinking: true, ..looks(None) }, &tagged[1..], 4),
        (Looks { thoughts: Thoughts::Channels, ..looks(None) }, &channels[..], 2),
        (Looks { thoughts: Thoughts::None, ..looks(None) }, &tagged[..], 0),
    ];
    for (looks, tokens, wanted) in cases {
        let (mut whole, mut pieces, mut deltas) = (Parser::new(looks.clone()), Parser::new(looks), Vec::new());
        whole.take(&part(tokens), &mut deltas);
        assert!(deltas.len() <= 2, "{deltas:?}");
        tokens.iter().for_each(|token| pieces.take(&part(&[token]), &mut deltas));
        assert_eq!([whole.thought(), pieces.thought()], [wanted; 2], "{tokens:?}");
    }
}
