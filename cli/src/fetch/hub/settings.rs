//! Where the hub and its cache are, and who asks: the variables of huggingface_hub (`constants.py`).

use std::path::PathBuf;

use crate::fetch::url::Url;
use crate::fetch::{Env, FetchError, FetchOptions};

/// The hub as this environment sees it. No `Debug`: it may hold a token.
pub struct HubSettings {
    /// The server.
    pub endpoint: Url,
    /// The shared cache.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<String>,
    /// Why the network may not be used, if so.
    pub offline: Option<&'static str>,
}

impl HubSettings {
    /// Reads the variables and the token's file.
    pub fn load(options: &FetchOptions) -> Result<HubSettings, FetchError> {
        let env = &options.env;
        let endpoint = env.var("HF_ENDPOINT").unwrap_or("https://huggingface.co");
        let endpoint =
            Url::parse(endpoint).map_err(|why| FetchError::BadUrl { setting: "HF_ENDPOINT".to_owned(), why })?;
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| env.flag(name));
        let offline = if options.offline { Some(options.why_offline()) } else { offline };
        Ok(HubSettings { endpoint, cache: cache_dir(env)?, token: token(env)?, offline })
    }
}

/// The shared cache's directory.
pub fn cache_dir(env: &Env) -> Result<PathBuf, FetchError> {
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        if let Some(path) = env.path(name) {
            return Ok(path);
        }
    }
    Ok(hf_home(env)?.join("hub"))
}

fn hf_home(env: &Env) -> Result<PathBuf, FetchError> {
    match env.path("HF_HOME") {
        Some(home) => Ok(home),
        None => Ok(env.cache_home()?.join("huggingface")),
    }
}

fn token(env: &Env) -> Result<Option<String>, FetchError> {
    // The variable forbids to send a token that nobody asked to send, and there is no other way to ask.
    if env.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return Ok(None);
    }
    if let Some(token) = env.var("HF_TOKEN").or_else(|| env.var("HUGGING_FACE_HUB_TOKEN")) {
        return Ok(Some(token.to_owned()));
    }
    let path = match env.path("HF_TOKEN_PATH") {
        Some(path) => path,
        None => hf_home(env)?.join("token"),
    };
    let token = std::fs::read_to_string(path).unwrap_or_default(); // most people have none
    Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty() && !token.contains(char::is_control)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_directory_follows_the_first_variable_that_is_set() {
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "/c", "/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/e", "/e/.cache/huggingface/hub"),
        ];
        for first in 0..all.len() {
            let env = Env::from_pairs(all[first..].iter().map(|(name, value, _)| (*name, *value)));
            assert_eq!(cache_dir(&env).unwrap(), PathBuf::from(all[first].2), "{}", all[first].0);
        }
        assert!(matches!(cache_dir(&Env::default()), Err(FetchError::NoHome)));
    }

    #[test]
    fn token_comes_from_the_variable_then_the_file_unless_forbidden() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        let of = |more: &[(&str, &str)]| {
            let base = [("HF_HOME", home.path().to_str().unwrap())];
            token(&Env::from_pairs(base.iter().chain(more).copied())).unwrap()
        };
        assert_eq!(of(&[("HF_TOKEN", "from-var")]).as_deref(), Some("from-var"));
        assert_eq!(of(&[]).as_deref(), Some("from-file"));
        assert_eq!(of(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "x")]), None);
        assert_eq!(of(&[("HF_TOKEN_PATH", "/nowhere")]), None);
    }
}
