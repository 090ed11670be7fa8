//! Answers as models write them, cut in every way.

use super::*;

fn looks(format: Option<Format>) -> Looks {
    Looks { thinks: true, thinking: false, format, tools: vec!["f".into(), "g".into()], max_calls: None }
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
    assert!(ends_thinking("<|im_start|>assistant\n<think>\n") && !ends_thinking("<think>\n\n</think>\n\n"));
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
    assert!(thinks("{{ '</think>' }}") && !thinks("plain"));
}
