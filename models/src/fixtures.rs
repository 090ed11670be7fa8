//! Where tests find the golden files, see testdata/README.md.

use std::path::PathBuf;

use serde_json::Value;

use crate::config::{ConfigError, ModelConfig};

/// A file or directory of `testdata/`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata")).join(name)
}

/// `testdata/{fixture}/config.json`.
pub fn config_json(fixture: &str) -> Value {
    let text = std::fs::read_to_string(path(fixture).join("config.json")).expect("fixture is present");
    serde_json::from_str(&text).expect("fixture is JSON")
}

/// Reads a config.
pub fn parse(json: Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_hf_json(&json)
}

/// Why it cannot be read.
pub fn error(json: Value) -> String {
    parse(json).unwrap_err().to_string()
}

/// A fixture's config with keys replaced; `null` stays as a null.
pub fn with(fixture: &str, changes: Value) -> Value {
    let mut json = config_json(fixture);
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

/// A fixture's config without some keys.
pub fn without(fixture: &str, keys: &[&str]) -> Value {
    let mut json = config_json(fixture);
    keys.iter().for_each(|k| drop(json.as_object_mut().unwrap().remove(*k)));
    json
}

/// The checkpoint fixtures in Hugging Face form.
pub const CHECKPOINTS: [&str; 38] = [
    "llama_plain",
    "llama_tied",
    "llama3_rope",
    "llama_linear",
    "llama_yarn",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "phi3",
    "phi3_longrope",
    "gpt_oss",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "smollm3",
    "olmo",
    "olmo2",
    "gpt2",
    "starcoder2",
    "gpt_neox",
    "stablelm",
    "phi",
    "glm4",
    "cohere",
    "cohere2",
    "exaone4",
    "nemotron",
    "gpt_bigcode",
    "opt",
    "granitemoe",
    "olmoe",
    "falcon",
    "deepseek_v2",
    "deepseek_v3",
];
