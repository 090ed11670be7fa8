//! Whole models: the programs of the configs in `testdata/`, with the suite's own weights.

use std::path::{Path, PathBuf};

use njoule_models::ModelConfig;

use crate::Case;
use crate::steps::CAPACITY;

/// One case per directory with a config.
pub fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let entries = std::fs::read_dir(&root).expect("testdata is part of the checkout");
    let mut dirs: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
    dirs.sort();
    let configs: Vec<PathBuf> = dirs.into_iter().map(|dir| dir.join("config.json")).filter(|c| c.is_file()).collect();
    configs.iter().map(|path| case(path)).collect()
}

fn case(path: &Path) -> Case {
    let text = std::fs::read_to_string(path).expect("a readable config");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("a config is JSON");
    // Learned positions: the weights are the suite's own, so the table can be as long as its script.
    for key in ["n_positions", "max_position_embeddings"] {
        if json[key].as_u64().is_some_and(|len| len < CAPACITY.max_len as u64) {
            json[key] = CAPACITY.max_len.into();
        }
    }
    let config = ModelConfig::from_hf_json(&json).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let name = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    Case { name: format!("model {name}"), program: config.program() }
}
