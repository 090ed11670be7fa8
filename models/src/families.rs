//! The architectures, one [`Definition`] each: how its config is read and how its program is traced.
//!
//! A family is a file of [`families`](self): the keys of `config.json` that it reads beyond the common ones, the defaults of
//! its configuration class, and one function over the [`Tracer`]. What two families share is one function of [`crate::blocks`].
//! `docs/adding-a-model.md` walks through a new one.

mod gpt_oss;
mod llama;
mod mixtral;
mod phi3;
mod qwen;
mod qwen_moe;

use crate::config::{ConfigError, Defaults, Keys, ModelConfig};
use crate::program::{Program, Val};
use crate::tracer::Tracer;

/// A family of architectures, as its reference implementation names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are transformers' own
pub enum Family {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen2Moe,
    Qwen3,
    Qwen3Moe,
    Phi3,
    GptOss,
}

/// What njoule knows about a family.
pub struct Definition {
    /// `model_type` in config.json.
    pub(crate) name: &'static str,
    /// The class in `architectures`.
    pub(crate) class: &'static str,
    /// Keys that [`Definition::read`] reads, beyond the common ones.
    pub(crate) keys: &'static [&'static str],
    /// Common keys that this family calls otherwise: `(common, its own)`.
    pub(crate) aliases: &'static [(&'static str, &'static str)],
    /// What its configuration class assumes for absent keys.
    pub(crate) defaults: Defaults,
    /// Reads its own keys over what the common ones gave.
    pub(crate) read: fn(&Keys<'_>, &mut ModelConfig) -> Result<(), ConfigError>,
    /// The model.
    pub(crate) trace: fn(&mut Tracer, &ModelConfig) -> Val,
}

impl Family {
    /// Every supported family.
    pub const ALL: [Family; 9] = [
        Family::Llama,
        Family::Mistral,
        Family::Mixtral,
        Family::Qwen2,
        Family::Qwen2Moe,
        Family::Qwen3,
        Family::Qwen3Moe,
        Family::Phi3,
        Family::GptOss,
    ];

    /// The family of this `model_type`.
    pub fn from_name(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|f| f.name() == name)
    }

    /// `model_type` in config.json.
    pub fn name(self) -> &'static str {
        self.definition().name
    }

    pub(crate) fn definition(self) -> &'static Definition {
        match self {
            Family::Llama => &llama::LLAMA,
            Family::Mistral => &llama::MISTRAL,
            Family::Mixtral => &mixtral::MIXTRAL,
            Family::Qwen2 => &qwen::QWEN2,
            Family::Qwen2Moe => &qwen_moe::QWEN2_MOE,
            Family::Qwen3 => &qwen::QWEN3,
            Family::Qwen3Moe => &qwen_moe::QWEN3_MOE,
            Family::Phi3 => &phi3::PHI3,
            Family::GptOss => &gpt_oss::GPT_OSS,
        }
    }
}

/// Traces the model that `c` describes.
pub fn program(c: &ModelConfig) -> Program {
    let family = c.family.definition();
    let mut t = Tracer::new(family.name);
    let logits = (family.trace)(&mut t, c);
    t.finish(logits)
}

#[cfg(test)]
mod tests;
