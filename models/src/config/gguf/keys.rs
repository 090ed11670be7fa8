//! Typed access to the metadata of one architecture.

use crate::config::ConfigError;
use crate::weights::gguf::{Metadata, Value};

/// Keys under the architecture's name.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) m: Metadata<'a>,
    pub(crate) arch: &'a str,
}

impl Keys<'_> {
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// The error for an absent key.
    pub(super) fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { key: self.name(key) }
    }

    /// The error for a value that is not supported.
    pub(super) fn unsupported(&self, key: &str) -> ConfigError {
        let key = self.name(key);
        let value = self.m.get(&key).map_or_else(|| "absent".to_owned(), |value| self.m.show(value));
        ConfigError::UnsupportedKey { key, value }
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let name = self.name(key);
        let n = self.m.unsigned(&name)?;
        n.map(|n| usize::try_from(n).map_err(|_| ConfigError::value(name, n, "is too large"))).transpose()
    }

    pub(super) fn need(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.m.float(&self.name(key))
    }

    /// A factor that is computed with in f32, stored as such; 0, as llama.cpp has it, where there is none.
    pub(super) fn factor(&self, key: &str) -> Result<Option<f32>, ConfigError> {
        Ok(self.float(key)?.filter(|x| *x != 0.0).map(|x| x as f32))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.m.bool(&self.name(key))?.unwrap_or(default))
    }

    /// A number, or an array of one number repeated.
    pub(super) fn uniform(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let name = self.name(key);
        let Some(Value::Array(_)) = self.m.get(&name) else { return self.size(key) };
        let numbers = self.m.numbers(&name)?;
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().all(|n| n == first) => {
                let n = first.as_unsigned().and_then(|n| usize::try_from(n).ok());
                n.map(Some).ok_or_else(|| ConfigError::value(name, self.m.show(first), "is no size"))
            }
            _ => {
                let value = self.m.get(&name).map(|v| self.m.show(v)).unwrap_or_default();
                Err(ConfigError::value(name, value, "differs between layers, which is not supported"))
            }
        }
    }

    /// The same where the file must have it.
    pub(super) fn need_uniform(&self, key: &str) -> Result<usize, ConfigError> {
        self.uniform(key)?.ok_or_else(|| self.missing(key))
    }

    /// A boolean for each of `layers` layers.
    pub(super) fn flags(&self, key: &str, layers: usize) -> Result<Option<Vec<bool>>, ConfigError> {
        let name = self.name(key);
        let Some(Value::Array(_)) = self.m.get(&name) else { return Ok(None) };
        let flag = |value: &Value| match value {
            Value::Bool(flag) => Some(*flag),
            other => other.as_unsigned().map(|n| n != 0),
        };
        let flags: Option<Vec<bool>> = self.m.numbers(&name)?.iter().map(flag).collect();
        match flags {
            Some(flags) if flags.len() == layers => Ok(Some(flags)),
            _ => Err(ConfigError::value(
                name.clone(),
                self.m.get(&name).map(|v| self.m.show(v)).unwrap_or_default(),
                format!("must have a boolean for each of {layers} layers"),
            )),
        }
    }

    /// Refuses the first key of the architecture that is neither `handled` nor harmless nor neutral.
    pub(super) fn refuse_unknown(&self, handled: &[&[&str]]) -> Result<(), ConfigError> {
        let mut keys: Vec<&str> = self.m.keys().collect();
        keys.sort_unstable(); // the same file gives the same error
        for key in keys {
            let Some(stem) = key.strip_prefix(self.arch).and_then(|s| s.strip_prefix('.')) else { continue };
            let is_known = HARMLESS.contains(&stem) || handled.iter().any(|keys| keys.contains(&stem));
            let value = self.m.get(key).filter(|v| !(is_known || v.is_neutral()));
            // Causal is what every model here is.
            if let Some(value) = value.filter(|v| !(stem == "attention.causal" && **v == Value::Bool(true))) {
                return Err(ConfigError::UnsupportedKey { key: key.to_owned(), value: self.m.show(value) });
            }
        }
        Ok(())
    }
}

/// The layout is a remark of the converter ("Meta AI original pth"), `finetuned` one of the training.
const HARMLESS: [&str; 2] = ["tensor_data_layout", "rope.scaling.finetuned"];
