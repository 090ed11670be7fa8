//! What is said to those who ask for what other servers have and this one has not.
//!
//! Invariant: what a message names as the path to ask instead is one of [`PATHS`].

use crate::model::shorten;
use crate::routes::PATHS;

/// Why there is nothing at a path, and what to ask instead.
pub fn nothing_at(path: &str) -> String {
    let shown = shorten(path);
    // A base URL with a part too many or too few, which is what happens most.
    let known = || PATHS.iter().map(|(known, _)| *known).filter(|known| !known.contains('{'));
    let versioned = format!("/v1{path}");
    let is_within = |known: &str| known.starts_with("/v1/") && path.ends_with(known);
    if let Some(meant) = known().find(|known| versioned == *known || is_within(known)) {
        return format!("there is no {shown}; did you mean {meant}?");
    }
    if path.starts_with("/api/") {
        return format!("there is no {shown}: Ollama's interface is not served; {ASK}");
    }
    let bare = path.strip_prefix("/v1").unwrap_or(path);
    let first = bare.trim_start_matches('/').split('/').next().unwrap_or_default();
    match ELSEWHERE.iter().find(|(names, _)| names.contains(&first)) {
        Some((_, advice)) => format!("there is no {shown}: {advice}"),
        None => format!("there is no {shown}; GET /openapi.json tells what there is"),
    }
}

const ASK: &str = "ask POST /v1/chat/completions, and GET /v1/models for names";

/// First parts of paths, without their version, and what is said of them.
const ELSEWHERE: [(&[&str], &str); 5] = [
    (&["responses", "conversations"], "the Responses API is not served; ask POST /v1/chat/completions"),
    (
        &["embeddings", "embedding", "rerank", "score", "pooling", "classify"],
        "this server generates text alone; embeddings and scores need a server of a model for them",
    ),
    (&["batches", "files"], "batches are not kept here; the command `njoule batch` answers a file of requests"),
    (
        &["completion", "infill", "apply-template", "props", "slots"],
        "llama.cpp's own interface is not served; ask POST /v1/completions or POST /v1/chat/completions",
    ),
    (
        &["audio", "images", "moderations", "assistants", "threads", "fine_tuning", "vector_stores", "realtime"],
        "this server generates text alone; ask POST /v1/chat/completions",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Route;

    #[test]
    fn what_is_not_there_names_what_is() {
        let cases = [
            ("/completions", "did you mean /v1/completions?"),
            ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
            ("//v1/models", "did you mean /v1/models?"),
            ("/api/chat", "Ollama"),
            ("/api/version", "Ollama"),
            ("/api/v1/models", "did you mean /v1/models?"),
            ("/v1/responses", "Responses API"),
            ("/v1/responses/resp_1", "Responses API"),
            ("/v1/embeddings", "embeddings"),
            ("/embeddings", "embeddings"),
            ("/completion", "llama.cpp"),
            ("/v1/batches", "njoule batch"),
            ("/v1/audio/speech", "text alone"),
            ("/", "/openapi.json"),
            ("/nowhere", "/openapi.json"),
        ];
        for (path, words) in cases {
            assert!(Route::of(path).is_none(), "{path}");
            assert!(nothing_at(path).contains(words), "{path}: {}", nothing_at(path));
        }
        assert!(nothing_at(&"/é".repeat(9000)).len() < 300);
    }

    #[test]
    fn what_is_to_be_asked_instead_is_there() {
        let advice = ELSEWHERE.iter().map(|(_, advice)| *advice).chain([ASK]);
        for word in advice.flat_map(|advice| advice.split([' ', ',', ';'])).filter(|word| word.starts_with("/v1/")) {
            assert!(Route::of(word).is_some(), "{word}");
        }
    }
}
