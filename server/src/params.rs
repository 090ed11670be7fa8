//! The fields that chat and text completions have in common.
//!
//! Invariant: limits are those of the table in docs/serving.md; a [`Params`] can be handed to the engine as it is, but for
//! the limits that depend on the prompt.

use std::sync::Arc;

use njoule_runtime::request::TokenMask;
use njoule_runtime::{Request, SamplingParams};
use serde_json::{Map, Value};

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Field, Fields, integer, number, wrong_type};
use crate::generation::Layout;
use crate::logprobs::Spelling;
use crate::masks::{self, Allowed, Without};
use crate::model::Model;
use crate::structured::Spec;
use crate::tenant::Tenant;

/// How answers are generated and delivered.
#[derive(Clone, Debug)]
pub struct Params {
    /// Choices per prompt.
    pub n: usize,
    /// Tokens at most, if given.
    pub max_tokens: Option<usize>,
    /// Whether and how the answer is streamed.
    pub stream: Option<StreamOptions>,
    /// Log-probabilities of prompt tokens, beside those of that many of the most likely ones.
    pub prompt_logprobs: Option<usize>,
    /// What the answer must look like.
    pub structure: Option<Spec>,
    /// Whose cached prefixes may be used.
    scope: Option<String>,
    /// Who takes turns with others.
    client: u64,
    /// Whom they count for.
    tenant: Tenant,
    sampling: SamplingParams,
    min_tokens: usize,
    ignore_eos: bool,
    stop: Vec<String>,
    stop_token_ids: Vec<u32>,
    include_stop: bool,
    skip_special: bool,
    /// Whether the answer has ids of tokens beside their text.
    token_ids: bool,
    /// Whether log-probabilities name tokens by their ids.
    tokens_as_ids: bool,
    priority: i64,
    /// Whether the answer says what it has used.
    metered: bool,
    /// Tokens that may come, whatever a grammar says, by the fields that say it.
    masks: Vec<(&'static str, Arc<dyn TokenMask>)>,
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether a last chunk carries the usage.
    pub include_usage: bool,
    /// Whether every chunk carries the usage so far.
    pub continuous: bool,
}

impl Params {
    /// Takes the common fields; `least` is the least `max_tokens`.
    pub fn take(fields: &mut Fields, app: &App, model: &Model, least: usize) -> Field<Params> {
        refuse_unsupported(fields)?;
        model.check_name(fields.string("model")?.as_deref())?;
        let vocab = model.vocab();
        let n = fields.count("n", 1..=app.config.max_n)?.unwrap_or(1);
        if let Some(best_of) = fields.integer("best_of", 1..=i64::MAX)?
            && usize::try_from(best_of) != Ok(n)
        {
            return Err(ApiError::unsupported("best_of", "best_of must equal n"));
        }
        let max_tokens = max_tokens(fields, least)?;
        let min_tokens = fields.count("min_tokens", 0..=usize::MAX)?.unwrap_or(0);
        if let Some(max) = max_tokens.filter(|max| min_tokens > *max) {
            return Err(ApiError::value("min_tokens", format!("min_tokens is {min_tokens}, max_tokens is {max}")));
        }
        let stream = stream(fields)?;
        let prompt_logprobs = fields.count("prompt_logprobs", 0..=MAX_LOGPROBS)?;
        if prompt_logprobs.is_some() && stream.is_some() {
            return Err(ApiError::value("prompt_logprobs", "prompt_logprobs cannot be streamed"));
        }
        let structure = Spec::take(fields)?;
        Ok(Params {
            structure,
            scope: scope(fields)?,
            client: client(fields),
            tenant: fields.tenant(),
            n,
            max_tokens,
            stream,
            prompt_logprobs,
            sampling: sampling(fields, model)?,
            min_tokens,
            ignore_eos: fields.flag("ignore_eos")?,
            stop: stop(fields)?,
            stop_token_ids: fields.token_ids("stop_token_ids", MAX_STOP_IDS, vocab)?.unwrap_or_default(),
            include_stop: fields.flag("include_stop_str_in_output")?,
            skip_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            token_ids: fields.flag("return_token_ids")?,
            tokens_as_ids: fields.flag("return_tokens_as_token_ids")?,
            priority: fields.integer("priority", i64::MIN..=i64::MAX)?.unwrap_or(0),
            metered: fields.is_metered(),
            masks: token_masks(fields, model)?,
        })
    }

    /// The parameters of an API that has few of them.
    pub fn plain(fields: &Fields, model: &Model, max_tokens: usize, stop: Vec<String>, stream: bool) -> Params {
        Params {
            n: 1,
            structure: None,
            scope: fields.tenant().key().map(|owner| format!("{owner}/")),
            client: fields.tenant().client(None),
            tenant: fields.tenant(),
            max_tokens: Some(max_tokens),
            stream: stream.then(StreamOptions::default),
            prompt_logprobs: None,
            sampling: model.sampling.clone(),
            min_tokens: 0,
            ignore_eos: false,
            stop,
            stop_token_ids: Vec::new(),
            include_stop: false,
            skip_special: true,
            token_ids: false,
            tokens_as_ids: false,
            priority: 0,
            metered: fields.is_metered(),
            masks: Vec::new(),
        }
    }

    /// How tokens are picked.
    pub fn sampling_mut(&mut self) -> &mut SamplingParams {
        &mut self.sampling
    }

    /// Whom they count for.
    pub fn tenant(&self) -> Tenant {
        self.tenant
    }

    /// Whether special tokens are left out of texts.
    pub fn skip_special(&self) -> bool {
        self.skip_special
    }

    /// Whether the answer has ids of tokens beside their text.
    pub fn token_ids(&self) -> bool {
        self.token_ids
    }

    /// How log-probabilities name the tokens of `model`.
    pub fn spelling(&self, model: &Arc<Model>) -> Spelling {
        Spelling::new(model, self.tokens_as_ids)
    }

    /// The field that says which tokens may come, `grammar` being that of a grammar.
    pub fn constraint(&self, grammar: Option<&Spec>) -> Option<&'static str> {
        grammar.map(Spec::param).or(self.masks.first().map(|(name, _)| *name))
    }

    /// Shows special tokens in the text, where somebody looks for them there.
    pub fn show_special(&mut self) {
        self.skip_special = false;
    }

    /// How many sequences a prompt needs: a greedy choice is decoded once and copied.
    pub fn layout(&self) -> Layout {
        let copies = if self.sampling.is_greedy() { self.n } else { 1 };
        Layout { n: self.n, copies }
    }

    /// The sequences of a prompt of ids, each of at most `max_new` tokens.
    pub fn requests(&self, app: &App, model: &Model, prompt: &[u32], max_new: usize, ask: Ask) -> Field<Vec<Request>> {
        let max_len = model.max_len;
        let total = prompt.len().saturating_add(max_new);
        if prompt.len() > max_len || total > max_len {
            let tokens = prompt.len();
            let message = match self.max_tokens {
                // Nothing was asked for that could be less.
                None if tokens >= max_len => format!(
                    "the prompt has {tokens} tokens: no room for an answer within the {max_len} tokens of the model"
                ),
                None => format!(
                    "the prompt has {tokens} tokens and max_tokens is {max_new} unless set: together more than the {max_len} tokens of the model"
                ),
                Some(max_new) => format!(
                    "the prompt has {tokens} tokens and max_tokens is {max_new}: together more than the {max_len} tokens of the model"
                ),
            };
            return Err(ApiError::context_length(ask.param, message));
        }
        if prompt.is_empty() {
            return Err(ApiError::value(ask.param, "the prompt is empty"));
        }
        let deadline = app.config.request_timeout.map(|limit| std::time::Instant::now() + limit);
        let request = Request {
            sampling: self.sampling.clone(),
            eos_ids: model.eos().to_vec(),
            ignore_eos: self.ignore_eos,
            stop_token_ids: self.stop_token_ids.clone(),
            stop: self.stop.clone(),
            include_stop: self.include_stop,
            min_tokens: self.min_tokens,
            text: Some(model.text(self.skip_special, ask.continues)),
            logprobs: ask.logprobs,
            prompt_logprobs: ask.prompt_logprobs.or(self.prompt_logprobs),
            priority: self.priority,
            cache_salt: self.scope.clone(),
            client: self.client,
            mask: masks::all(self.masks.iter().map(|(_, mask)| mask.clone()).chain(ask.mask).collect()),
            deadline,
            energy: self.metered,
            ..Request::new(prompt.to_vec(), max_new)
        };
        let sequences = self.n / self.layout().copies;
        let seeded = |i: usize| {
            let mut request = request.clone();
            // Choices of one seed must differ from each other and from nothing else.
            request.sampling.seed = self.sampling.seed.map(|seed| seed.wrapping_add(i as u64));
            if i > 0 {
                request.prompt_logprobs = None;
            }
            request
        };
        Ok((0..sequences).map(seeded).collect())
    }
}

/// What an endpoint asks of its sequences.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The field that the prompt came in.
    pub param: &'static str,
    /// Whether the answer continues the prompt's own text.
    pub continues: bool,
    /// Log-probabilities of generated tokens.
    pub logprobs: Option<usize>,
    /// Log-probabilities of prompt tokens.
    pub prompt_logprobs: Option<usize>,
    /// Which tokens may come.
    pub mask: Option<Arc<dyn TokenMask>>,
}

fn max_tokens(fields: &mut Fields, least: usize) -> Field<Option<usize>> {
    let mut given = None;
    // The last is llama.cpp's name.
    for name in ["max_completion_tokens", "max_tokens", "n_predict"] {
        given = given.or(fields.count(name, least..=usize::MAX)?);
    }
    Ok(given)
}

fn sampling(fields: &mut Fields, model: &Model) -> Field<SamplingParams> {
    let defaults = model.sampling.clone();
    let top_k = match fields.integer("top_k", -1..=i64::MAX)? {
        None => defaults.top_k,
        Some(-1) => 0,
        Some(k) => usize::try_from(k).unwrap_or(usize::MAX).min(model.vocab()),
    };
    let repetition_penalty = fields.number("repetition_penalty", 0.0..=f64::from(f32::MAX))?;
    if repetition_penalty.is_some_and(|penalty| penalty <= 0.0) {
        return Err(ApiError::value("repetition_penalty", "repetition_penalty must be more than 0"));
    }
    Ok(SamplingParams {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(defaults.temperature),
        top_k,
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(defaults.top_p),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(defaults.min_p),
        repetition_penalty: repetition_penalty.unwrap_or(defaults.repetition_penalty),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(fields.object("logit_bias")?.unwrap_or_default(), model.vocab())?,
        seed: match fields.integer("seed", i64::MIN..=i64::MAX)? {
            None => defaults.seed,
            // Any seed, to vLLM and llama.cpp.
            Some(-1) => None,
            Some(seed) => Some(seed.cast_unsigned()),
        },
    })
}

fn logit_bias(map: Map<String, Value>, vocab: usize) -> Field<Vec<(u32, f32)>> {
    if map.len() > MAX_BIASES {
        let message = format!("logit_bias has {} entries, the limit is {MAX_BIASES}", map.len());
        return Err(ApiError::value("logit_bias", message));
    }
    let bias = |(key, value): (String, Value)| {
        let key: Value = key.parse::<i64>().map_err(|_| ApiError::value("logit_bias", "a key is no token id"))?.into();
        let id = crate::fields::token_id("logit_bias", &key, vocab)?;
        Ok((id, number("logit_bias", &value, f64::MIN..=f64::MAX)?.clamp(-100.0, 100.0)))
    };
    map.into_iter().map(bias).collect()
}

fn stop(fields: &mut Fields) -> Field<Vec<String>> {
    let given = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![Value::String(stop)],
        Some(Value::Array(stops)) => stops,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    stop_strings("stop", given)
}

/// At most four strings, none empty, none long.
pub fn stop_strings(name: &'static str, given: Vec<Value>) -> Field<Vec<String>> {
    if given.len() > MAX_STOPS {
        return Err(ApiError::value(name, format!("{name} has {} strings, the limit is {MAX_STOPS}", given.len())));
    }
    let one = |value: Value| match value {
        Value::String(text) if text.is_empty() => Err(ApiError::value(name, format!("{name} holds an empty string"))),
        Value::String(text) if text.len() > MAX_STOP_BYTES => {
            let message = format!("{name} holds a string of {} bytes, the limit is {MAX_STOP_BYTES}", text.len());
            Err(ApiError::value(name, message))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type(name, "a string or an array of strings", &other)),
    };
    given.into_iter().map(one).collect()
}

fn stream(fields: &mut Fields) -> Field<Option<StreamOptions>> {
    let stream = fields.flag("stream")?;
    let options = fields.object("stream_options")?;
    if options.is_some() && !stream {
        return Err(ApiError::value("stream_options", "stream_options needs stream: true"));
    }
    let mut options = Fields::of_object(options.unwrap_or_default());
    let options = StreamOptions {
        include_usage: options.flag("include_usage")?,
        continuous: options.flag("continuous_usage_stats")?,
    };
    Ok(stream.then_some(options))
}

/// Cached prefixes are shared between requests of one API key and one salt, so that nobody can time another's prompt.
fn scope(fields: &mut Fields) -> Field<Option<String>> {
    let owner = fields.tenant().key();
    let Some(salt) = fields.string("cache_salt")? else { return Ok(owner.map(|owner| format!("{owner}/"))) };
    let bad = salt.is_empty() || salt.chars().count() > 128 || salt.contains(['@', '/', '\\', '\0']);
    match bad {
        true => Err(ApiError::value("cache_salt", "cache_salt must be 1 to 128 characters without @ / \\ and NUL")),
        // A salt holds no slash.
        false => Ok(Some(owner.map_or(salt.clone(), |owner| format!("{owner}/{salt}")))),
    }
}

/// Who takes turns: the owner of the API key; without keys an address, and whoever the request says it is for.
fn client(fields: &mut Fields) -> u64 {
    let user = fields.take("user");
    fields.tenant().client(user.as_ref().and_then(Value::as_str))
}

/// `allowed_token_ids` and `bad_words`.
fn token_masks(fields: &mut Fields, model: &Model) -> Field<Vec<(&'static str, Arc<dyn TokenMask>)>> {
    let mut masks: Vec<(&'static str, Arc<dyn TokenMask>)> = Vec::new();
    if let Some(ids) = fields.token_ids("allowed_token_ids", usize::MAX, model.vocab())? {
        if ids.is_empty() {
            return Err(ApiError::value("allowed_token_ids", "allowed_token_ids is empty: no token could come"));
        }
        masks.push(("allowed_token_ids", Arc::new(Allowed(ids))));
    }
    let mut words: Vec<Vec<u32>> = Vec::new();
    for word in fields.array("bad_words", MAX_BAD_WORDS)?.unwrap_or_default() {
        let Value::String(word) = word else { return Err(wrong_type("bad_words", "an array of strings", &word)) };
        if word.trim().is_empty() || word.len() > MAX_STOP_BYTES {
            let message = format!("bad_words must hold words of 1 to {MAX_STOP_BYTES} bytes");
            return Err(ApiError::value("bad_words", message));
        }
        // At the beginning of a text and within it.
        for text in [word.clone(), format!(" {}", word.trim_start())] {
            let ids = model.encode_plain("bad_words", &text)?;
            if !ids.is_empty() && !words.contains(&ids) {
                words.push(ids);
            }
        }
    }
    if !words.is_empty() {
        masks.push(("bad_words", Arc::new(Without(words))));
    }
    Ok(masks)
}

/// Refuses what would be answered wrongly if it were ignored.
fn refuse_unsupported(fields: &mut Fields) -> Field<()> {
    let name = "use_beam_search";
    if fields.take(name).is_some_and(|value| value != false) {
        return Err(ApiError::unsupported(name, format!("{name} is not supported")));
    }
    let name = "truncate_prompt_tokens";
    match fields.take(name) {
        None => Ok(()),
        Some(_) => Err(ApiError::unsupported(name, format!("{name} is not supported: send what is to be read"))),
    }
}

/// An integer that is a count of alternatives.
pub fn alternatives(name: &'static str, value: &Value) -> Field<usize> {
    let most = i64::try_from(MAX_LOGPROBS).unwrap_or(i64::MAX);
    Ok(usize::try_from(integer(name, value, 0..=most)?).unwrap_or(MAX_LOGPROBS))
}

/// Alternatives per token.
pub const MAX_LOGPROBS: usize = 20;
pub const MAX_BIASES: usize = 1024;
pub const MAX_STOPS: usize = 4;
pub const MAX_STOP_BYTES: usize = 256;
pub const MAX_STOP_IDS: usize = 64;
pub const MAX_BAD_WORDS: usize = 128;
