//! The environment as fetching sees it: a snapshot that is passed along, so that tests never touch the process's own.
//!
//! Values may be secrets (tokens, proxies with passwords): `Debug` shows names alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::FetchError;

/// Environment variables.
#[derive(Clone, Default)]
pub struct Env {
    vars: BTreeMap<String, OsString>,
}

impl Env {
    /// The process's environment as it is now.
    pub fn from_process() -> Self {
        let mut vars: BTreeMap<_, _> =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        if !vars.contains_key("HOME")
            && let Some(home) = std::env::home_dir()
        {
            vars.insert("HOME".to_owned(), home.into());
        }
        Env { vars }
    }

    /// An environment of these variables.
    pub fn from_pairs<K: Into<String>, V: Into<OsString>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Env { vars: pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect() }
    }

    /// A variable that is set, not empty, and text.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name)?.to_str().map(str::trim).filter(|value| !value.is_empty())
    }

    /// A variable that names a path, `~` expanded.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.vars.get(name).filter(|value| !value.is_empty())?;
        Some(match value.to_str() {
            Some(text) => self.expand(text.trim()),
            None => PathBuf::from(value),
        })
    }

    /// Whether a variable says yes, in the words that Hugging Face's library takes.
    pub fn flag(&self, name: &str) -> bool {
        self.var(name).is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str()))
    }

    /// The user's home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.vars.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
    }

    /// A path with a leading `~/` replaced by the home directory.
    pub fn expand(&self, path: &str) -> PathBuf {
        let rest = if path == "~" { Some("") } else { path.strip_prefix("~/") };
        match (rest, self.home()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(path),
        }
    }

    /// `$XDG_CACHE_HOME`, or `~/.cache`.
    pub fn cache_home(&self) -> Result<PathBuf, FetchError> {
        let home = || self.home().map(|home| home.join(".cache"));
        self.path("XDG_CACHE_HOME").or_else(home).ok_or(FetchError::NoHome)
    }

    /// Where everything that is not the hub's is kept: `$NJOULE_CACHE`, or `njoule` in the cache directory.
    pub fn njoule_cache(&self) -> Result<PathBuf, FetchError> {
        match self.path("NJOULE_CACHE") {
            Some(path) => Ok(path),
            None => Ok(self.cache_home()?.join("njoule")),
        }
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.vars.keys()).finish()
    }
}
