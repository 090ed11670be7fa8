//! The model that is served: engine, text, names, and the defaults of its generation config.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use njoule_models::chat::{ChatError, ChatInput, ChatTemplate};
use njoule_models::checkpoint::GenerationDefaults;
use njoule_models::tokenizer::{Tokenizer, TokenizerError};
use njoule_runtime::request::{TokenMask, TokenText, TokenizerText};
use njoule_runtime::{Engine, SamplingParams};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::masks::Budget;
use crate::output::{CHANNEL_ENDS, FINAL, Format, Looks, Thoughts};
use crate::structured::{Grammars, Spec};

/// What a server is given to serve.
#[derive(Clone)]
pub struct ModelParts {
    /// The engine; the server ends it when it ends.
    pub engine: Engine,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, if the model has one.
    pub template: Option<Arc<ChatTemplate>>,
    /// Names by which clients may ask for it; the first is the one that answers carry.
    pub names: Vec<String>,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// What the model's generation config says about sampling; `None` where it shall not count.
    pub defaults: Option<GenerationDefaults>,
    /// What loading took.
    pub load: Duration,
    /// What compiling its modules took, whenever that was; `None` where nothing was compiled.
    pub compile: Option<Duration>,
    /// Seed of requests that give none; each is drawn with one of its own where there is none.
    pub seed: Option<u64>,
}

/// The model that is served.
pub struct Model {
    parts: ModelParts,
    /// Of all its chat templates.
    template_source: String,
    grammars: Grammars,
    /// When it was loaded, in seconds of Unix time.
    pub created: u64,
    /// Prompt and answer together.
    pub max_len: usize,
    /// Sampling where a request says nothing.
    pub sampling: SamplingParams,
}

impl Model {
    /// Takes over what is served.
    pub fn new(mut parts: ModelParts) -> Model {
        let capacity = parts.engine.config().capacity;
        let max_len = capacity.max_len.min(capacity.blocks * capacity.block_len);
        let sampling = SamplingParams { seed: parts.seed, ..defaults(parts.defaults.as_ref()) };
        let sources = parts.template.as_ref().map_or(&[][..], |template| template.sources());
        let template_source: String = sources.iter().map(|(_, source)| source.as_str()).collect();
        if Thoughts::of_template(&template_source) == Thoughts::Channels {
            // A file may name but one end.
            let ends = CHANNEL_ENDS.iter().filter_map(|mark| parts.tokenizer.token_id(mark));
            parts.eos.extend(ends.filter(|id| !parts.eos.contains(id)).collect::<Vec<_>>());
        }
        Model { parts, template_source, grammars: Grammars::default(), created: unix_seconds(), max_len, sampling }
    }

    /// Source of its chat templates, which shows how it writes thoughts and calls.
    pub fn template_source(&self) -> &str {
        &self.template_source
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.parts.engine
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.parts.tokenizer
    }

    /// The chat template.
    pub fn template(&self) -> Option<&Arc<ChatTemplate>> {
        self.parts.template.as_ref()
    }

    /// The name that answers carry.
    pub fn name(&self) -> &str {
        self.parts.names.first().map_or("", String::as_str)
    }

    /// All names.
    pub fn names(&self) -> &[String] {
        &self.parts.names
    }

    /// Tokens that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.parts.eos
    }

    /// What loading took.
    pub fn load(&self) -> Duration {
        self.parts.load
    }

    /// What compiling took.
    pub fn compile(&self) -> Option<Duration> {
        self.parts.compile
    }

    /// Size of the vocabulary that logits have.
    pub fn vocab(&self) -> usize {
        self.parts.engine.vocab()
    }

    /// Whether a request for `name` means this model.
    pub fn check_name(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if !self.parts.names.iter().any(|known| known == name) => Err(ApiError {
                param: Some("model".into()),
                ..ApiError::new(
                    hyper::StatusCode::NOT_FOUND,
                    "model_not_found",
                    format!("the model {:?} is not served here; GET /v1/models tells what is", shorten(name)),
                )
            }),
            _ => Ok(()),
        }
    }

    /// Ids of a text in which special tokens are recognised.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ApiError> {
        self.parts.tokenizer.encode(text, add_special).map_err(|error| self.encode_error("prompt", &error))
    }

    /// Ids of a prompt; one that certainly does not fit into the model is refused before it is encoded.
    pub fn encode_prompt(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ApiError> {
        let fits = self.parts.tokenizer.check_length(text, self.max_len);
        fits.map_err(|error| self.encode_error("prompt", &error))?;
        self.encode(text, add_special)
    }

    /// Ids of a text of a client's in which nothing is special, without anything before it.
    pub fn encode_plain(&self, param: &'static str, text: &str) -> Result<Vec<u32>, ApiError> {
        self.parts.tokenizer.encode_plain(text).map_err(|error| self.encode_error(param, &error))
    }

    /// Ids of a chat, rendered by `template` or the model's own, unless it certainly has more than `most`.
    pub fn encode_chat(
        &self,
        template: Option<&ChatTemplate>,
        input: &ChatInput,
        most: usize,
    ) -> Result<Vec<u32>, ApiError> {
        let template = template.or(self.parts.template.as_deref()).ok_or_else(|| {
            ApiError::value("messages", "the model has no chat template; /v1/completions continues plain text")
        })?;
        template.encode_within(&self.parts.tokenizer, input, most).map_err(|error| match error {
            ChatError::Encode(error) => self.encode_error("messages", &error),
            error => ApiError::value("messages", error.to_string()),
        })
    }

    /// Source of an answer's text.
    pub fn text(&self, skip_special: bool, continues: bool) -> Arc<dyn TokenText> {
        Arc::new(TokenizerText::new(self.parts.tokenizer.clone(), skip_special).continuing(continues))
    }

    /// The masks of answers that look like `spec`: behind the thoughts, where the prompt has begun some or the model always
    /// writes some.
    pub fn mask(&self, spec: &Spec, looks: &Looks) -> Result<Arc<dyn TokenMask>, ApiError> {
        let tokenizer = &self.parts.tokenizer;
        let after: Vec<u32> = match looks.thoughts {
            Thoughts::Channels if looks.format == Some(Format::Bare) => Vec::new(),
            Thoughts::Channels => self.encode(FINAL, false)?,
            marked if looks.thinking => {
                marked.marks().and_then(|(_, end)| tokenizer.token_id(end)).into_iter().collect()
            }
            _ => Vec::new(),
        };
        self.grammars.compile(spec, tokenizer, self.vocab(), self.eos(), after)
    }

    /// The mask of thoughts that have at most so many tokens.
    pub fn budget(&self, tokens: usize, looks: &Looks) -> Result<Arc<dyn TokenMask>, ApiError> {
        let refused = |why: &str| {
            ApiError::unsupported("thinking_token_budget", format!("thoughts of this model cannot be cut: {why}"))
        };
        let (begin, end) = looks.thoughts.marks().ok_or_else(|| refused("no mark ends them"))?;
        let tokenizer = &self.parts.tokenizer;
        let id = tokenizer.token_id(end).ok_or_else(|| refused(&format!("{end} is not one token")))?;
        Ok(Arc::new(Budget { tokens, begin: tokenizer.token_id(begin), end: id, begun: looks.thinking }))
    }

    /// Why a text that came in `param` has no ids.
    fn encode_error(&self, param: &'static str, error: &TokenizerError) -> ApiError {
        match error {
            TokenizerError::TooLong { least, .. } => {
                let message = format!(
                    "the prompt has at least {least} tokens: more than the {} tokens of the model",
                    self.max_len
                );
                ApiError::context_length(param, message)
            }
            error => ApiError::value(param, error.to_string()),
        }
    }

    /// A token's bytes; an id without a token has none.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.parts.tokenizer.token_bytes(id).unwrap_or_default()
    }

    /// A token's text; what is not UTF-8 by itself shows U+FFFD.
    pub fn token_string(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// As an element of `/v1/models`, under one of its names.
    pub fn describe(&self, name: &str) -> Value {
        json!({
            "id": name, "object": "model", "created": self.created, "owned_by": "njoule", "root": self.name(),
            "parent": null, "max_model_len": self.max_len, "sampling_defaults": self.describe_sampling(),
        })
    }

    /// Sampling where a request says nothing.
    pub fn describe_sampling(&self) -> Value {
        let s = &self.sampling;
        json!({
            "temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "min_p": s.min_p,
            "repetition_penalty": s.repetition_penalty,
        })
    }
}

/// OpenAI's defaults, and the generation config's where it asks for sampling.
fn defaults(config: Option<&GenerationDefaults>) -> SamplingParams {
    let off = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let Some(config) = config.filter(|config| config.do_sample == Some(true)) else { return off };
    SamplingParams {
        temperature: config.temperature.unwrap_or(off.temperature).clamp(0.0, 2.0),
        top_p: config.top_p.unwrap_or(off.top_p).clamp(0.0, 1.0),
        top_k: config.top_k.map_or(off.top_k, |k| usize::try_from(k).unwrap_or(0)),
        repetition_penalty: config.repetition_penalty.filter(|p| *p > 0.0).unwrap_or(off.repetition_penalty),
        ..off
    }
}

/// The beginning of what a client sent, for a message.
pub fn shorten(text: &str) -> &str {
    match text.char_indices().nth(64) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// Now, in seconds of Unix time.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
