//! `njoule chat` through pipes.

mod support;

use support::*;

#[test]
fn each_line_gets_an_answer_and_commands_get_none() {
    let model = model("llama_plain");
    let args = ["chat", "-m", &model, "-n", "8", "--temperature", "0", "--ignore-eos", "--max-len", "256"];
    let one = run_with(&args, "Hello\n");
    assert_eq!(one.code, 0, "{}", one.stderr);
    assert!(!one.stdout.is_empty());
    // After /clear the conversation starts anew, so the same line gets the same answer.
    let both = run_with(&args, "Hello\n/clear\n\nHello\n/exit\nHello\n");
    assert_eq!((both.code, both.stdout), (0, one.stdout.repeat(2)), "{}", both.stderr);
    assert!(both.stderr.contains("forgotten"), "{}", both.stderr);
    let unknown = run_with(&args, "/exti\n");
    assert!(unknown.stdout.is_empty() && unknown.stderr.contains("/exti"), "{}", unknown.stderr);
}

#[test]
fn history_counts_and_oldest_turns_are_dropped_with_a_notice() {
    let model = model("llama_plain");
    let args = ["chat", "-m", &model, "-n", "8", "--temperature", "0", "--ignore-eos", "--context", "96"];
    let said = "A line of some length.\n".repeat(8);
    let full = run_with(&args, &said);
    assert_eq!(full.code, 0, "{}", full.stderr);
    assert!(full.stderr.contains("the context of 96 tokens is full"), "{}", full.stderr);
    let long = run_with(&args, &format!("{}\nHi\n", "long ".repeat(200)));
    assert_eq!(long.code, 0, "{}", long.stderr);
    assert!(long.stderr.contains("shorten it"), "{}", long.stderr);
}

#[test]
fn model_without_tokenizer_is_refused() {
    run_with(&["chat", "-m", &model("llama_tied")], "Hello\n").fails_with(1, &["no tokenizer"]);
}

#[test]
fn smollm2_remembers_what_was_said() {
    let Some(model) = asset(SMOLLM2, "smollm2_remembers_what_was_said") else { return };
    let chat = run_with(
        &["chat", "-m", &model, "-n", "60", "--temperature", "0", "--quiet"],
        "My name is Ada.\nWhat is my name?\n",
    );
    assert_eq!((chat.code, chat.stderr.as_str()), (0, ""));
    let second = chat.stdout.rfind("Ada");
    assert!(second.is_some(), "{}", chat.stdout);
}
