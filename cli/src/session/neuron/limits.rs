//! How long a device may take, as the environment says it.

use std::time::Duration;

use njoule_runtime::backend::neuron::NeuronBackend;
use njoule_runtime::backend::neuron::artifact::Artifact;

use crate::args::UsageError;
use crate::fetch::Env;

/// The limits that are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    step: Option<Duration>,
    load: Option<Duration>,
}

impl Limits {
    /// Of these variables; a value that is no number of seconds is refused.
    pub fn of(env: &Env) -> Result<Limits, UsageError> {
        let seconds = |name: &str| match env.var(name).map(|text| (text, text.parse::<u64>())) {
            None => Ok(None),
            Some((_, Ok(seconds))) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
            Some((text, _)) => Err(UsageError(format!("{name}={text}: give a whole number of seconds, at least 1"))),
        };
        Ok(Limits { step: seconds("NJOULE_NEURON_STEP_TIMEOUT")?, load: seconds("NJOULE_NEURON_LOAD_TIMEOUT")? })
    }

    /// The backend of an artifact under these limits.
    pub fn on(self, artifact: Artifact) -> NeuronBackend {
        let mut backend = NeuronBackend::new(artifact);
        backend.step_limit = self.step.unwrap_or(backend.step_limit);
        backend.load_limit = self.load.unwrap_or(backend.load_limit);
        backend
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_taken_and_anything_else_is_refused_by_name() {
        let of = |value: &str| Limits::of(&Env::from_pairs([("NJOULE_NEURON_STEP_TIMEOUT", value)]));
        assert_eq!(of("7").unwrap(), Limits { step: Some(Duration::from_secs(7)), load: None });
        assert_eq!(of("").unwrap().step, None);
        for wrong in ["0", "7s", "-1", "1.5", "soon"] {
            let UsageError(text) = of(wrong).unwrap_err();
            assert!(text.starts_with(&format!("NJOULE_NEURON_STEP_TIMEOUT={wrong}: give")), "{text}");
        }
    }
}
