//! The architectures, one [`Definition`] each: how its config is read and how its program is traced.
//!
//! A family is a file of [`families`](self): the keys of `config.json` that it reads beyond the common ones, the defaults of
//! its configuration class, and one function over the [`Tracer`]. What two families share is one function of [`crate::blocks`].
//! `docs/adding-a-model.md` walks through a new one.

mod cohere;
mod deepseek;
mod exaone4;
mod falcon;
mod gemma;
mod glm4;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granitemoe;
mod llama;
mod mixtral;
mod nemotron;
mod olmo;
mod olmo2;
mod olmoe;
mod opt;
mod phi;
mod phi3;
mod qwen;
mod qwen_moe;
mod smollm3;
mod stablelm;
mod starcoder2;

use serde_json::json;

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
    Gemma,
    Gemma2,
    Gemma3Text,
    Gemma3,
    Granite,
    SmolLM3,
    Olmo,
    Olmo2,
    Gpt2,
    Starcoder2,
    GptNeox,
    StableLm,
    Phi,
    Glm4,
    Cohere,
    Cohere2,
    Exaone4,
    Nemotron,
    GptBigCode,
    Opt,
    GraniteMoe,
    Olmoe,
    Falcon,
    DeepseekV2,
    DeepseekV3,
}

/// What njoule knows about a family.
pub struct Definition {
    /// `model_type` in config.json.
    pub(crate) name: &'static str,
    /// The class in `architectures`.
    pub(crate) class: &'static str,
    /// The section of config.json that holds the model, where it is the language model of a larger one.
    pub(crate) part_of: Option<PartOf>,
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

/// Where the config of a larger model has that of its language model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartOf {
    /// The section.
    pub(crate) key: &'static str,
    /// Prefix of its keys in errors.
    pub(crate) path: &'static str,
    /// Keys beside it that are about the other parts.
    pub(crate) beside: &'static [&'static str],
}

impl Family {
    /// Every supported family.
    pub const ALL: [Family; 34] = [
        Family::Llama,
        Family::Mistral,
        Family::Mixtral,
        Family::Qwen2,
        Family::Qwen2Moe,
        Family::Qwen3,
        Family::Qwen3Moe,
        Family::Phi3,
        Family::GptOss,
        Family::Gemma,
        Family::Gemma2,
        Family::Gemma3Text,
        Family::Gemma3,
        Family::Granite,
        Family::SmolLM3,
        Family::Olmo,
        Family::Olmo2,
        Family::Gpt2,
        Family::Starcoder2,
        Family::GptNeox,
        Family::StableLm,
        Family::Phi,
        Family::Glm4,
        Family::Cohere,
        Family::Cohere2,
        Family::Exaone4,
        Family::Nemotron,
        Family::GptBigCode,
        Family::Opt,
        Family::GraniteMoe,
        Family::Olmoe,
        Family::Falcon,
        Family::DeepseekV2,
        Family::DeepseekV3,
    ];

    /// The family of this `model_type`.
    pub fn from_name(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|f| f.name() == name)
    }

    /// `model_type` in config.json.
    pub fn name(self) -> &'static str {
        self.definition().name
    }

    /// The model that its configuration class describes where a config says nothing more.
    pub fn usual(self) -> ModelConfig {
        let Definition { part_of, defaults, .. } = self.definition();
        let mut json = json!({"model_type": self.name()});
        if self == Family::DeepseekV2 {
            json["num_experts_per_tok"] = 6.into(); // the one key without a default
        }
        if let Some(part) = part_of {
            json[part.key] = json!({"vocab_size": defaults.vocab});
        }
        ModelConfig::from_hf_json(&json).expect("a class's own defaults make a model") // a test makes every one
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
            Family::Gemma => &gemma::GEMMA,
            Family::Gemma2 => &gemma::GEMMA2,
            Family::Gemma3Text => &gemma::GEMMA3_TEXT,
            Family::Gemma3 => &gemma::GEMMA3,
            Family::Granite => &granite::GRANITE,
            Family::SmolLM3 => &smollm3::SMOLLM3,
            Family::Olmo => &olmo::OLMO,
            Family::Olmo2 => &olmo2::OLMO2,
            Family::Gpt2 => &gpt2::GPT2,
            Family::Starcoder2 => &starcoder2::STARCODER2,
            Family::GptNeox => &gpt_neox::GPT_NEOX,
            Family::StableLm => &stablelm::STABLELM,
            Family::Phi => &phi::PHI,
            Family::Glm4 => &glm4::GLM4,
            Family::Cohere => &cohere::COHERE,
            Family::Cohere2 => &cohere::COHERE2,
            Family::Exaone4 => &exaone4::EXAONE4,
            Family::Nemotron => &nemotron::NEMOTRON,
            Family::GptBigCode => &gpt_bigcode::GPT_BIGCODE,
            Family::Opt => &opt::OPT,
            Family::GraniteMoe => &granitemoe::GRANITEMOE,
            Family::Olmoe => &olmoe::OLMOE,
            Family::Falcon => &falcon::FALCON,
            Family::DeepseekV2 => &deepseek::DEEPSEEK_V2,
            Family::DeepseekV3 => &deepseek::DEEPSEEK_V3,
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
