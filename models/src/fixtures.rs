//! Where tests find the golden files, see testdata/README.md.

use std::path::PathBuf;

/// A file or directory of `testdata/`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata")).join(name)
}

/// `testdata/{fixture}/config.json`.
pub fn config_json(fixture: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(path(fixture).join("config.json")).expect("fixture is present");
    serde_json::from_str(&text).expect("fixture is JSON")
}

/// The checkpoint fixtures in Hugging Face form.
pub const CHECKPOINTS: [&str; 8] =
    ["llama_plain", "llama_tied", "llama3_rope", "llama_linear", "llama_yarn", "mistral", "qwen2", "qwen3"];
