//! `usage` of OpenAI's answers.

use serde::Serialize;

use crate::energy::Energy;

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Of its prompts, each once.
    pub prompt_tokens: usize,
    /// Of all its choices.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    energy: Option<Energy>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct PromptDetails {
    /// In the cache already, and not run.
    cached_tokens: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    /// Of thoughts.
    reasoning_tokens: usize,
}

impl Usage {
    /// Their sum.
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Usage {
        let total_tokens = prompt_tokens + completion_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() }
    }

    /// The same, with what was in the cache.
    pub fn cached(mut self, tokens: usize) -> Usage {
        self.prompt_tokens_details.cached_tokens = tokens;
        self
    }

    /// The same, with what of the answer was thought.
    pub fn thought(mut self, tokens: usize) -> Usage {
        self.completion_tokens_details.reasoning_tokens = tokens;
        self
    }

    /// The same, with what was used where the request asked for it.
    pub fn used(self, energy: Option<Energy>) -> Usage {
        Usage { energy, ..self }
    }
}

/// What identifies an answer: the same in all its chunks.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    /// `chatcmpl-...` or `cmpl-...`.
    pub id: String,
    /// Kind of the object.
    pub object: &'static str,
    /// Unix time.
    pub created: u64,
    /// Name of the model.
    pub model: String,
}
