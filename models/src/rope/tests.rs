//! Tables against transformers' own functions (testdata/rope/make.py).

use serde_json::Value;

use super::*;
use crate::ModelConfig;
use crate::fixtures;

#[test]
fn tables_equal_those_of_transformers() {
    let text = std::fs::read_to_string(fixtures::path("rope/golden.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let cases = cases.as_object().unwrap();
    assert_eq!(cases.len(), 12);
    for (name, case) in cases {
        let config = ModelConfig::from_hf_json(&case["config"]).unwrap();
        let table = RopeTable::new(&config.rope, config.rope_width);
        let expected: Vec<f64> = case["inv_freq"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(table.inv_freq.len(), expected.len(), "{name}");
        for (i, (got, want)) in table.inv_freq.iter().zip(expected).enumerate() {
            // transformers rounds every step to f32: a few units in the last place.
            assert!((f64::from(*got) - want).abs() <= 5e-7 * want, "{name}, pair {i}: {got} against {want}");
        }
        let amplitude = case["attention_factor"].as_f64().unwrap();
        assert!((f64::from(table.amplitude) - amplitude).abs() < 1e-7, "{name}");
    }
}

#[test]
fn llama3_scaling_equals_the_divisors_that_gguf_files_store() {
    // Llama 3.2 1B: wavelengths below 8192/4 are kept, those above 8192 divided by 32.
    let scaling =
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_len: 8192 };
    let scaled = RopeTable::new(&RopeConfig { theta: 5e5, scaling }, 64);
    let plain = RopeTable::new(&RopeConfig { theta: 5e5, scaling: RopeScaling::None }, 64);
    let divisors: Vec<f32> = plain.inv_freq.iter().zip(&scaled.inv_freq).map(|(p, s)| p / s).collect();
    assert_eq!((divisors[0], divisors[31]), (1.0, 32.0));
    let again = RopeTable::new(&RopeConfig { theta: 5e5, scaling: RopeScaling::Divisors(divisors) }, 64);
    for (a, b) in scaled.inv_freq.iter().zip(again.inv_freq) {
        assert!((a - b).abs() <= 2e-7 * a);
    }
}

#[test]
fn text_of_a_table_is_short_and_tells_tables_apart() {
    let text =
        |factor| RopeTable::new(&RopeConfig { theta: 1e4, scaling: RopeScaling::Linear { factor } }, 16).to_string();
    assert!(text(2.0).starts_with("8 pairs 5e-1..") && text(2.0).len() < 80, "{}", text(2.0));
    assert_ne!(text(2.0), text(2.5));
}
