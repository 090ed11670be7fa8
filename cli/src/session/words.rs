//! Positional arguments of verbs that take a text and may take a MODEL before it: `[MODEL] [TEXT]`.

use std::path::Path;

use crate::args::UsageError;
use crate::fetch::{Env, ModelRef};

/// What up to two positional arguments mean.
#[derive(Debug)]
pub struct Words {
    /// The model.
    pub model: ModelRef,
    /// The text, if one was given.
    pub text: Option<String>,
}

impl Words {
    /// Two words are model and text. One is the text, unless the text comes from elsewhere (`has_text`) or the word can
    /// only be a model: a preset, a package, an existing directory or `.gguf` file.
    pub fn read(words: &[String], model: Option<&str>, has_text: bool, env: &Env) -> Result<Words, UsageError> {
        let (named, text) = match (words, model) {
            ([], model) => (model, None),
            ([text], Some(model)) if !has_text => (Some(model), Some(text)),
            ([word], None) if has_text || is_model(word) => (Some(word.as_str()), None),
            ([text], None) => (None, Some(text)),
            ([model, text], None) if !has_text => (Some(model.as_str()), Some(text)),
            _ => return Err(UsageError("too many arguments: quote a text of several words".into())),
        };
        let parse = |given: &str| ModelRef::parse(given).map_err(|error| UsageError(error.to_string()));
        let model = named.or_else(|| env.var("NJOULE_MODEL")).map_or(Ok(ModelRef::Default), parse)?;
        Ok(Words { model, text: text.cloned() })
    }
}

fn is_model(word: &str) -> bool {
    let named = word.starts_with("random:") || word.starts_with("pypi:");
    let path = Path::new(word);
    let gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    (named && !word.contains(char::is_whitespace)) || path.is_dir() || (gguf && path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str], model: Option<&str>, has_text: bool) -> Result<(String, Option<String>), UsageError> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let read = Words::read(&words, model, has_text, &Env::default())?;
        Ok((read.model.to_string(), read.text))
    }

    #[test]
    fn one_word_is_the_text_unless_it_can_only_be_a_model() {
        let default = ModelRef::Default.to_string();
        assert_eq!(
            read(&["why is the sky blue"], None, false).unwrap(),
            (default.clone(), Some("why is the sky blue".into()))
        );
        assert_eq!(read(&["random:synth-1b"], None, false).unwrap(), ("random:synth-1b".into(), None));
        assert_eq!(read(&["org/name"], None, true).unwrap(), ("org/name".into(), None));
        assert_eq!(read(&["org/name", "text"], None, false).unwrap(), ("org/name".into(), Some("text".into())));
        assert_eq!(read(&["text"], Some("org/name"), false).unwrap(), ("org/name".into(), Some("text".into())));
        assert_eq!(read(&[], None, false).unwrap(), (default, None));
        assert!(read(&["text"], Some("org/name"), true).is_err() && read(&["a", "b"], Some("c/d"), false).is_err());
    }
}
