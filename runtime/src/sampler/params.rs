//! Sampling parameters and their limits.

/// How tokens are picked. The default is greedy without penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Flattens (> 1) or sharpens (< 1) the distribution; 0 is greedy, and then `top_k`, `top_p` and `min_p` are ignored.
    pub temperature: f32,
    /// Keeps that many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens that have this probability together; 1 keeps all, 0 keeps one.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the most likely one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the output once per occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the sequence; without one the engine draws one.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// Temperatures below are greedy, as in vLLM.
const GREEDY_BELOW: f32 = 1e-5;

impl SamplingParams {
    /// Whether the most likely token is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }

    /// Whether the sequence's tokens matter.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// What is added to the logits one by one, each token once: `logit_bias`, and `-inf` for `forbidden` tokens.
    pub(crate) fn biases(&self, forbidden: &[u32], vocab: usize) -> Vec<(u32, f32)> {
        let mut all = std::collections::BTreeMap::new();
        for &(id, value) in &self.logit_bias {
            *all.entry(id).or_insert(0.0) += value;
        }
        let known = forbidden.iter().filter(|id| usize::try_from(**id).is_ok_and(|id| id < vocab));
        all.extend(known.map(|id| (*id, f32::NEG_INFINITY)));
        all.into_iter().collect()
    }

    /// Checks every parameter against its limits for a vocabulary of `vocab` tokens.
    pub fn validate(&self, vocab: usize) -> Result<(), SamplingError> {
        let range = |field, value: f32, low: f32, high: f32| {
            if value >= low && value <= high {
                Ok(())
            } else {
                Err(SamplingError::OutOfRange { field, value, low, high })
            }
        };
        range("temperature", self.temperature, 0.0, 2.0)?;
        range("top_p", self.top_p, 0.0, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return Err(SamplingError::RepetitionPenalty(self.repetition_penalty));
        }
        if self.logit_bias.len() > MAX_BIASES {
            return Err(SamplingError::TooManyBiases { count: self.logit_bias.len(), limit: MAX_BIASES });
        }
        for &(id, value) in &self.logit_bias {
            if usize::try_from(id).map_or(true, |id| id >= vocab) {
                return Err(SamplingError::BiasToken { id, vocab });
            }
            range("logit_bias", value, -100.0, 100.0)?;
        }
        Ok(())
    }
}

/// Entries of `logit_bias` at most.
const MAX_BIASES: usize = 1024;

/// A sampling parameter out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// Outside a closed range (or not a number).
    #[error("{field} is {value}, it must be between {low} and {high}")]
    OutOfRange {
        /// Parameter.
        field: &'static str,
        /// Given.
        value: f32,
        /// Least.
        low: f32,
        /// Most.
        high: f32,
    },
    /// Zero, negative or not finite.
    #[error("repetition_penalty is {0}, it must be positive and finite")]
    RepetitionPenalty(f32),
    /// A bias for a token that the model does not have.
    #[error("logit_bias holds token id {id}, but the vocabulary has {vocab} tokens")]
    BiasToken {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Too long a list.
    #[error("logit_bias has {count} entries, the limit is {limit}")]
    TooManyBiases {
        /// Given.
        count: usize,
        /// Limit.
        limit: usize,
    },
}
