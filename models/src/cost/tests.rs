//! Costs against counts made by hand.

use proptest::prelude::*;

use super::*;
use crate::config::ModelConfig;
use crate::fixtures;

fn program(fixture: &str) -> Program {
    ModelConfig::from_hf_json(&fixtures::config_json(fixture)).unwrap().program()
}

// llama_plain: vocab 272, hidden 64, ffn 96, 3 layers, 4 query and 2 key heads of 16.
const LAYER: u64 = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96;
const HEAD: u64 = 272 * 64;

#[test]
fn parameters_are_those_of_the_file() {
    let p = program("llama_plain");
    assert_eq!(p.parameters(), 3 * (LAYER + 2 * 64) + 2 * HEAD + 64);
    assert_eq!(program("qwen2").parameters_of(WeightUse::Vocabulary), HEAD, "a tied head counts once");
    assert_eq!(p.kv_values_per_token(), 3 * 2 * 2 * 16);
}

#[test]
fn a_step_streams_everything_but_an_untied_embedding() {
    let bf16 = |_: &WeightDecl| 2.0;
    let (plain, tied) = (program("llama_plain"), program("llama_tied"));
    assert_eq!(plain.streamed_bytes(bf16), 2.0 * (plain.parameters() - HEAD) as f64);
    assert_eq!(tied.streamed_bytes(bf16), tied.weight_bytes(bf16));
}

#[test]
fn a_decode_step_costs_two_operations_per_weight_and_its_context() {
    let cost = Span { rows: 1, context: 9, outputs: 1 }.cost(&program("llama_plain"));
    assert_eq!(cost.linear_flops, 2 * (3 * LAYER + HEAD));
    assert_eq!(cost.attention_flops, 3 * 2 * 4 * 32 * 10);
    assert_eq!((cost.kv_values_read, cost.kv_values_written), (3 * 64 * 10, 3 * 64));
}

#[test]
fn a_prefill_saves_the_last_layer_of_rows_without_logits() {
    let p = program("llama_plain");
    let cost = Span { rows: 8, context: 0, outputs: 1 }.cost(&p);
    let after_attention = 64 * 64 + 3 * 64 * 96;
    assert_eq!(cost.linear_flops, 2 * (8 * (3 * LAYER - after_attention) + after_attention + HEAD));
    assert_eq!(cost.attention_flops, 3 * 2 * 4 * 32 * 36);
    assert_eq!(Span { rows: 0, context: 5, outputs: 0 }.cost(&p), Cost::default());
}

#[test]
fn a_window_bounds_what_is_attended() {
    let cost = Span { rows: 1, context: 100, outputs: 1 }.cost(&program("mistral"));
    assert_eq!(cost.kv_values_read, 3 * 64 * 16);
    assert_eq!(cost.attention_flops, 3 * 2 * 4 * 32 * 16);
}

proptest! {
    /// The few numbers of a program give what a walk over its operations gives.
    #[test]
    fn rates_are_the_costs(rows in 0usize..40, context in 0usize..100, outputs in 0usize..40) {
        for fixture in ["llama_plain", "mistral", "mixtral", "gemma3_text", "gpt2"] {
            let program = program(fixture);
            let span = Span { rows, context, outputs };
            prop_assert_eq!(Rates::of(&program).cost(span), span.cost(&program), "{}", fixture);
        }
    }

    #[test]
    fn attended_keys_equal_the_count_query_by_query(
        rows in 0usize..40, context in 0usize..40, window in prop::option::of(1usize..50),
    ) {
        let one = |i: usize| (context + i + 1).min(window.unwrap_or(usize::MAX)) as u64;
        let seen = |key: usize| (0..rows).any(|i| key <= context + i && context + i - key < window.unwrap_or(usize::MAX));
        let span = Span { rows, context, outputs: 0 };
        prop_assert_eq!(span.attended_keys(window), (0..rows).map(one).sum::<u64>());
        let distinct = (0..context + rows).filter(|key| seen(*key)).count() as u64;
        prop_assert_eq!(span.distinct_keys(window), distinct);
    }
}
