//! What can be run: families, the forms their checkpoints may have, and what each backend says of them.
//!
//! Invariant: nothing here is a list of its own. Families are [`Family::ALL`], GGUF architectures those that are read, and a
//! refusal is what the backend says when it is asked for the family's usual model.

use njoule_models::config::{Family, Method, gguf_architectures};
use njoule_models::weights::SAFETENSORS_TYPES;
use njoule_models::weights::gguf::TensorType;

use crate::backend::neuron::{ShardError, shard};

/// A family, and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supported {
    /// The family, by the `model_type` of its config.json.
    pub family: Family,
    /// Architectures of GGUF files that may be one; none where llama.cpp has no such files.
    pub gguf: Vec<&'static str>,
    /// Of each backend of [`BACKENDS`], why it refuses the model that the family's configuration class describes on its own; of
    /// neuron, why it makes no modules of it.
    pub refusals: [Option<String>; BACKENDS.len()],
    /// Why modules for Neuron are of one core alone, where they are.
    pub one_core: Option<String>,
}

/// The backends, by the names of `--backend`.
pub const BACKENDS: [&str; 3] = ["cpu", "candle", "neuron"];

/// Types of stored weights: the kind of file, and the types in words.
pub fn stored_types() -> [(&'static str, String); 2] {
    let forms = Method::FORMS.join(", ");
    [("safetensors", format!("{SAFETENSORS_TYPES}; quantised: {forms}")), ("GGUF", TensorType::SUPPORTED.to_owned())]
}

/// Every family.
pub fn families() -> Vec<Supported> {
    Family::ALL.into_iter().map(supported).collect()
}

fn supported(family: Family) -> Supported {
    let is_of = |of: &&'static [Family]| of.contains(&family);
    let gguf = gguf_architectures().filter(|(_, of)| is_of(of)).map(|(name, _)| name).collect();
    let program = family.usual().program();
    let reason = |error| match error {
        ShardError::Op { what, .. } => what,
        other => other.to_string(),
    };
    let refusal = |tp| shard(&program, tp).err().map(reason);
    let neuron = refusal(1);
    // cpu and candle have every operation that a program can hold.
    let one_core = if neuron.is_some() { None } else { refusal(2) };
    Supported { family, gguf, refusals: [None, None, neuron], one_core }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_say_what_their_files_are_and_who_refuses_them() {
        let all = families();
        let of = |family| all.iter().find(|s| s.family == family).unwrap();
        assert_eq!(all.len(), Family::ALL.len());
        assert_eq!(of(Family::Mixtral).gguf, ["llama"]);
        assert_eq!(of(Family::Mistral).gguf, ["llama"], "stored as llama");
        assert!(of(Family::Opt).gguf.is_empty());
        assert_eq!(of(Family::Llama).refusals, [None, None, None]);
        assert_eq!(of(Family::DeepseekV3).refusals, [None, None, None], "joined heads, groups of experts");
    }
}
