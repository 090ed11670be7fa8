//! What a client asks of the engine and what it gets back.
//!
//! Invariant: a request that was accepted ends with exactly one terminal [`Event`] ([`Event::Finished`] or
//! [`Event::Failed`]), whatever happens to it or to the engine.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Later, RequestEnergy};
use crate::sampler::{SamplingError, SamplingParams, TokenLogprob};

mod handle;
mod mask;
mod text;

pub use handle::{CancelToken, Completion, EventSink, RequestHandle, SinkClosed};
pub(crate) use handle::{Control, Reply};
pub use mask::{MaskError, MaskStream, TokenMask};
pub use text::{TextStream, TokenText, TokenizerText};

/// One prompt and what to do with it. Start from [`Request::new`] and set what differs.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt tokens; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are picked; greedy by default.
    pub sampling: SamplingParams,
    /// Tokens to generate at most. 0 only runs the prompt (for `prompt_logprobs` and `prompt_logits`).
    pub max_new_tokens: usize,
    /// The model's end-of-sequence tokens.
    pub eos_ids: Vec<u32>,
    /// Whether `eos_ids` are ordinary tokens.
    pub ignore_eos: bool,
    /// Further tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// Strings that end the answer; need `text`.
    pub stop: Vec<String>,
    /// Whether the stop string stays in the text.
    pub include_stop: bool,
    /// Nothing ends the answer before this many tokens: end and stop tokens are not sampled, stop strings not looked for.
    pub min_tokens: usize,
    /// Which tokens may come next; all without one.
    pub mask: Option<Arc<dyn TokenMask>>,
    /// Cached prefixes are shared between requests of the same salt only.
    pub cache_salt: Option<String>,
    /// Source of the events' text.
    pub text: Option<Arc<dyn TokenText>>,
    /// Log-probability of each generated token, beside that many of the most likely ones.
    pub logprobs: Option<usize>,
    /// Log-probability of each prompt token but the first, beside that many of the most likely ones.
    pub prompt_logprobs: Option<usize>,
    /// Whether the full logits of every prompt position are delivered. The engine pauses the request while
    /// [`EngineConfig::max_unread_rows`](crate::engine::EngineConfig::max_unread_rows) rows are unread, so several such
    /// requests must be read in the order of submission or side by side.
    pub prompt_logits: bool,
    /// Tokens that may be unread: the engine lets the request stand while so many are, and others go on, so that none are made far
    /// ahead of a client that may have gone. Not while others wait for a place.
    pub max_unread_tokens: Option<NonZeroUsize>,
    /// Lower runs first; equal priorities take turns over clients, and one client's run in order of arrival.
    pub priority: i64,
    /// Whose request it is: whoever had least of the engine is next. Clients of the same upper 32 bits are a group, which takes
    /// turns with others as one, and its clients within it.
    pub client: u64,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// Whether its end waits (for a quarter of a second at most) until its energy is known: [`Usage::energy`].
    pub energy: bool,
}

impl Request {
    /// Greedy continuation of `prompt` by at most `max_new_tokens`, without text or log-probabilities.
    pub fn new(prompt: Vec<u32>, max_new_tokens: usize) -> Self {
        Request {
            prompt,
            sampling: SamplingParams::default(),
            max_new_tokens,
            eos_ids: Vec::new(),
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            stop: Vec::new(),
            include_stop: false,
            min_tokens: 0,
            mask: None,
            cache_salt: None,
            text: None,
            logprobs: None,
            prompt_logprobs: None,
            prompt_logits: false,
            max_unread_tokens: None,
            priority: 0,
            client: 0,
            deadline: None,
            energy: false,
        }
    }
}

/// Something that happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Logits of prompt positions; row `i` belongs to position `start + i`. Chunks come in order and without gaps.
    PromptLogits {
        /// First position.
        start: usize,
        /// Columns.
        vocab: usize,
        /// `[positions, vocab]`, row-major.
        rows: Vec<f32>,
    },
    /// Log-probabilities of prompt tokens; entry `i` belongs to position `start + i`, and the first chunk starts at 1.
    PromptLogprobs {
        /// First position.
        start: usize,
        /// One per position.
        tokens: Vec<TokenLogprob>,
    },
    /// A generated token (the one that ends the answer included).
    Token {
        /// Its id.
        id: u32,
        /// Its index among the generated tokens.
        index: usize,
        /// Text that can now be shown; empty while held back, and for tokens that end the answer.
        text: String,
        /// If asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What matched, if `reason` is [`FinishReason::Stop`].
        matched: Option<StopMatch>,
        /// Text that was held back until now.
        text: String,
        /// Figures.
        usage: Usage,
    },
    /// The request could not be completed.
    Failed(RequestError),
}

impl Event {
    /// Whether it is the last event of its request.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Event::Finished { .. } | Event::Failed(_))
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token, a stop token or a stop string.
    Stop,
    /// `max_new_tokens` were generated.
    Length,
    /// The client gave up.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

/// What ended an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopMatch {
    /// One of `eos_ids`.
    Eos(u32),
    /// One of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    Text(String),
}

/// Figures of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated (the one that ended the answer included).
    pub generated_tokens: usize,
    /// From submission to the first step that held a row of it.
    pub queued: Duration,
    /// From submission to the first generated token.
    pub ttft: Option<Duration>,
    /// From the first step to the first generated token (or to the end, if there was none).
    pub prefill: Duration,
    /// From the first generated token to the end.
    pub decode: Duration,
    /// Tokens of the prompt that were in the cache already and were not run.
    pub cached_tokens: usize,
    /// Times its cache was given up and recomputed.
    pub preemptions: u32,
    /// Energy and CPU time, where the request [asked](Request::energy) for them and a row of it was run.
    pub energy: Option<Box<RequestEnergy>>,
    /// The same as it becomes known, where meters had not told all of it by its end.
    pub energy_later: Option<Later>,
}

impl Usage {
    /// Energy and CPU time as far as they are known now.
    pub fn energy_now(&self) -> Option<RequestEnergy> {
        self.energy_later.as_ref().map(Later::now).or(self.energy.as_deref().copied())
    }
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Come back later.
    #[error("{requests} requests with {tokens} prompt tokens are waiting (limits {max_requests} and {max_tokens})")]
    Overloaded {
        /// Waiting requests.
        requests: usize,
        /// Their prompt tokens.
        tokens: usize,
        /// Limit of requests.
        max_requests: usize,
        /// Limit of prompt tokens.
        max_tokens: usize,
    },
    /// A prompt needs a token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The model or the cache cannot hold it.
    #[error("{prompt} prompt tokens and {max_new} new tokens exceed the longest sequence of {max_len} tokens")]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// Most new tokens.
        max_new: usize,
        /// Limit of their sum.
        max_len: usize,
    },
    /// The cache is smaller than this one sequence.
    #[error("{prompt} prompt tokens and {max_new} new tokens need {needed} cache blocks, but there are {blocks}")]
    NeverFits {
        /// Prompt tokens.
        prompt: usize,
        /// Most new tokens.
        max_new: usize,
        /// Blocks needed.
        needed: usize,
        /// Blocks there are.
        blocks: usize,
    },
    /// An id that the model does not have.
    #[error("{field} holds token id {id}, but the vocabulary has {vocab} tokens")]
    TokenId {
        /// Field of the request.
        field: &'static str,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Too many alternatives.
    #[error("{field} asks for {asked} alternatives, the limit is {limit}")]
    Logprobs {
        /// Field of the request.
        field: &'static str,
        /// Asked for.
        asked: usize,
        /// Limit.
        limit: usize,
    },
    /// The backend returns no logits.
    #[error("{field} needs the logits of the prompt, which this backend does not return")]
    NoLogits {
        /// Field of the request.
        field: &'static str,
    },
    /// The backend takes fewer biases.
    #[error("{asked} tokens have a bias or are forbidden by min_tokens, the backend was built for {limit}")]
    Biases {
        /// Tokens.
        asked: usize,
        /// Limit.
        limit: usize,
    },
    /// The backend takes no masks.
    #[error(
        "structured output needs masks of allowed tokens, which the artifact was built without; build it anew with --masks"
    )]
    NoMasks,
    /// An empty stop string would end every answer at once.
    #[error("stop holds an empty string")]
    EmptyStop,
    /// Stop strings are matched over text.
    #[error("stop strings need a tokenizer, and this request has none")]
    StopWithoutText,
    /// More tokens demanded than allowed.
    #[error("min_tokens is {min}, but at most {max} tokens are generated")]
    MinTokens {
        /// Demanded.
        min: usize,
        /// Allowed.
        max: usize,
    },
    /// The engine accepts nothing new.
    #[error("the engine is shutting down")]
    Closed,
    /// The engine has died.
    #[error("the engine has stopped: {0}")]
    Stopped(RequestError),
}

/// Why an accepted request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The model's output cannot be sampled.
    #[error("logits at position {position} are not finite")]
    NonFiniteLogits {
        /// Position whose logits they are.
        position: usize,
    },
    /// The mask of the next token cannot be had, or allows none.
    #[error("no mask of allowed tokens: {0}")]
    Mask(MaskError),
    /// The backend refused the request's part of a step; others went on.
    #[error("step refused: {0}")]
    Refused(String),
    /// The backend failed; every request in flight failed with it and the engine has stopped.
    #[error("step failed: {0}")]
    Step(String),
    /// The device failed and said how; every request in flight failed with it and the engine has stopped.
    #[error("step failed: {what}")]
    Device {
        /// Everything, for the log.
        what: String,
        /// What a client may be told of it.
        told: String,
    },
    /// A bug in the engine or the backend; every request in flight failed with it and the engine has stopped.
    #[error("engine thread panicked: {0}")]
    Panicked(String),
    /// The engine was shut down before the request ended.
    #[error("the engine was shut down")]
    ShutDown,
}

impl RequestError {
    /// A short stable name for logs and error bodies.
    pub fn code(&self) -> &'static str {
        match self {
            RequestError::NonFiniteLogits { .. } => "non_finite_logits",
            RequestError::Mask(_) => "no_mask",
            RequestError::Refused(_) => "step_refused",
            RequestError::Step(_) | RequestError::Device { .. } | RequestError::Panicked(_) => "engine_error",
            RequestError::ShutDown => "shut_down",
        }
    }
}
