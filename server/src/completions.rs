//! `POST /v1/completions`: plain text or token ids, continued.

mod stream;

use std::ops::Range;
use std::sync::Arc;

use njoule_runtime::FinishReason;
use serde::Serialize;
use serde_json::Value;

use crate::app::App;
use crate::energy::{Keeper, Used};
use crate::error::ApiError;
use crate::fields::{Field, Fields, token_id, wrong_type};
use crate::generation::{Generation, Layout, Work};
use crate::logprobs::{PromptLogprobs, Spelling, TextLogprobs, TextPlace};
use crate::mailbox::Part;
use crate::model::{Model, unix_seconds};
use crate::output::Looks;
use crate::params::{Ask, Params, alternatives};
use crate::respond::Reply;
use crate::sse::EventStream;
use crate::usage::{Head, Usage};

/// A prompt as it came.
#[derive(Debug)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A request for completions, ready to run.
pub struct Completions {
    model: Arc<Model>,
    params: Params,
    logprobs: Option<usize>,
    /// Text of each prompt, where it shall stand before the answer.
    echo: Option<Vec<Echo>>,
    prompts: Vec<Vec<u32>>,
    work: Work,
    head: Head,
}

impl Completions {
    /// Reads a body and encodes its prompts.
    pub fn prepare(app: &Arc<App>, model: &Arc<Model>, mut fields: Fields) -> Result<Completions, ApiError> {
        let echo = fields.flag("echo")?;
        let params = Params::take(&mut fields, app, model, usize::from(!echo))?;
        let logprobs = fields.take("logprobs").map(|value| alternatives("logprobs", &value)).transpose()?;
        for name in ["suffix", "tools", "functions", "thinking_token_budget"] {
            // An empty suffix is what some clients send by habit.
            let idle = [Value::String(String::new()), Value::Array(vec![])];
            if fields.take(name).is_some_and(|value| !idle.contains(&value)) {
                return Err(ApiError::unsupported(name, format!("{name} is not supported here")));
            }
        }
        let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
        let given = fields.take("prompt").ok_or_else(|| ApiError::value("prompt", "a prompt is needed"))?;
        let max_new = params.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let constraint = params.constraint(params.structure.as_ref());
        let mask = params.structure.as_ref().map(|spec| model.mask(spec, &Looks::default())).transpose()?;
        let ask = Ask { param: "prompt", continues: true, logprobs, prompt_logprobs: logprobs.filter(|_| echo), mask };
        let (mut requests, mut ids, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for prompt in prompts(given, model.vocab())? {
            let encoded = match &prompt {
                Prompt::Text(text) => model.encode_prompt(text, add_special)?,
                Prompt::Ids(ids) => ids.clone(),
            };
            requests.extend(params.requests(app, model, &encoded, max_new, ask.clone())?);
            if echo {
                texts.push(match prompt {
                    // What the tokenizer puts around a text is not in it.
                    Prompt::Text(text) if add_special => {
                        let (before, behind) = model.tokenizer().around();
                        Echo { text, shown: before.len()..encoded.len() - behind.len(), special: true }
                    }
                    Prompt::Text(text) => Echo { text, shown: 0..encoded.len(), special: true },
                    Prompt::Ids(ids) => {
                        let text = model.tokenizer().decode(&ids, params.skip_special());
                        Echo { text, shown: 0..ids.len(), special: !params.skip_special() }
                    }
                });
            }
            ids.push(encoded);
        }
        app.admit_tokens(model, ids.iter().map(Vec::len).sum(), params.tenant())?;
        app.metrics.params_n.observe_count(params.n);
        app.metrics.params_max_tokens.observe_count(max_new);
        let head = Head {
            id: format!("cmpl-{}", app.unique()),
            object: "text_completion",
            created: unix_seconds(),
            model: model.name().to_owned(),
        };
        let work = Work { requests, layout: params.layout(), constraint };
        Ok(Completions {
            model: model.clone(),
            logprobs,
            echo: echo.then_some(texts),
            prompts: ids,
            work,
            head,
            params,
        })
    }

    /// Runs it.
    pub async fn run(self, app: &Arc<App>) -> Result<Reply, ApiError> {
        let Completions { model, params, logprobs, echo, prompts, work, head } = self;
        let layout = work.layout;
        let writer = Writer {
            spelling: params.spelling(&model),
            model: model.clone(),
            logprobs: logprobs.is_some(),
            token_ids: params.token_ids(),
            special: !params.skip_special(),
            echo,
            prompts,
            layout,
        };
        let keeper = Keeper::new(app, params.tenant());
        if let Some(options) = params.stream {
            let generation = Generation::stream(app, &model, work)?;
            let render = stream::Stream::new(writer, head, options, keeper);
            let stream = EventStream::new(generation, Box::new(render), app.config.ping_interval);
            return Ok(Reply::Events(stream));
        }
        let parts = Generation::start(app, &model, work)?.finish().await?;
        let mut choices = Vec::new();
        let (mut completion_tokens, mut cached, mut used) = (0, 0, Used::default());
        for (sequence, mut part) in parts.into_iter().enumerate() {
            completion_tokens += part.tokens * layout.copies;
            used.add(&part);
            cached += if layout.is_first(sequence) { part.cached() } else { 0 };
            let prompt_logprobs = params.prompt_logprobs.map(|_| PromptLogprobs::new(&model, &part.prompt_logprobs));
            let mut state = State::default();
            let (text, logprobs) = writer.write(sequence, &mut part, &mut state, true);
            let choice = Choice {
                index: 0,
                text,
                logprobs,
                finish_reason: finish_reason(&part),
                prompt_logprobs: prompt_logprobs.map(Arc::new),
                token_ids: writer.ids(&part),
                prompt_token_ids: writer.prompt_ids(sequence),
            };
            choices.extend(layout.choices(sequence).map(|index| Choice { index, ..choice.clone() }));
        }
        let used = keeper.keep(&head.id, &used);
        let usage = Usage::new(writer.prompt_tokens(), completion_tokens).cached(cached).used(used);
        Ok(Reply::metered(&Answer { head, choices, usage }, used))
    }
}

/// `string`, `[string]`, `[int]` or `[[int]]`.
fn prompts(given: Value, vocab: usize) -> Field<Vec<Prompt>> {
    let wrong = |other: &Value| wrong_type("prompt", "a string, an array of strings, or arrays of token ids", other);
    let list = match given {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) => list,
        other => return Err(wrong(&other)),
    };
    let ids = |list: Vec<Value>| -> Field<Prompt> {
        Ok(Prompt::Ids(list.iter().map(|id| token_id("prompt", id, vocab)).collect::<Field<_>>()?))
    };
    match list.first() {
        None => return Err(ApiError::value("prompt", "the prompt is empty")),
        Some(Value::Number(_)) => return Ok(vec![ids(list)?]),
        Some(_) if list.len() > MAX_PROMPTS => {
            let message = format!("there are {} prompts, the limit is {MAX_PROMPTS}", list.len());
            return Err(ApiError::value("prompt", message));
        }
        Some(_) => {}
    }
    let prompt = |value: Value| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(list) => ids(list),
        other => Err(wrong(&other)),
    };
    list.into_iter().map(prompt).collect()
}

/// A prompt that stands before the answer.
struct Echo {
    text: String,
    /// Tokens that are in the text,
    shown: Range<usize>,
    /// special ones among them or not.
    special: bool,
}

/// Turns parts into text and log-probabilities.
struct Writer {
    model: Arc<Model>,
    spelling: Spelling,
    logprobs: bool,
    /// Whether ids of tokens are told.
    token_ids: bool,
    /// Whether special tokens are in the text of answers.
    special: bool,
    echo: Option<Vec<Echo>>,
    prompts: Vec<Vec<u32>>,
    layout: Layout,
}

/// How far a sequence has been written.
#[derive(Clone, Debug, Default)]
struct State {
    echoed: bool,
    /// Prompt tokens whose log-probabilities were written.
    prompt: usize,
    /// Where the next token begins.
    place: TextPlace,
}

impl Writer {
    /// What `part` adds: prompt first where it is echoed, with its log-probabilities complete.
    fn write(
        &self,
        sequence: usize,
        part: &mut Part,
        state: &mut State,
        always: bool,
    ) -> (String, Option<Arc<TextLogprobs>>) {
        let mut text = std::mem::take(&mut part.text);
        let mut logprobs = (self.logprobs && (always || !part.logprobs.is_empty())).then(TextLogprobs::default);
        let prompt = self.layout.prompt(sequence);
        if let Some(echo) = self.echo.as_ref().filter(|_| !state.echoed) {
            state.echoed = true;
            let Echo { text: before, shown, special } = &echo[prompt];
            text.insert_str(0, before);
            if self.logprobs {
                let all = logprobs.get_or_insert_with(TextLogprobs::default);
                let is_shown = |at: usize, id: u32| shown.contains(&at) && (*special || !self.is_special(id));
                if let Some(&first) = self.prompts[prompt].first() {
                    all.push_first(&self.spelling, first, is_shown(0, first), &mut state.place);
                }
                for (at, token) in (1..).zip(&part.prompt_logprobs) {
                    all.push_token(&self.spelling, token, is_shown(at, token.id), &mut state.place);
                }
                state.prompt = part.prompt_logprobs.len();
            }
        }
        if let Some(all) = &mut logprobs {
            for token in &part.logprobs {
                let shown = self.special || !self.is_special(token.id);
                all.push_token(&self.spelling, token, shown, &mut state.place);
            }
        }
        (text, logprobs.map(Arc::new))
    }

    fn is_special(&self, id: u32) -> bool {
        self.model.tokenizer().is_special(id)
    }

    /// Ids of a part, where they are asked for.
    fn ids(&self, part: &Part) -> Option<Vec<u32>> {
        self.token_ids.then(|| part.ids())
    }

    /// Ids of a prompt, where they are asked for.
    fn prompt_ids(&self, sequence: usize) -> Option<Vec<u32>> {
        self.token_ids.then(|| self.prompts[self.layout.prompt(sequence)].clone())
    }

    fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }
}

/// Why a choice ended; nothing of one that was broken off.
fn finish_reason(part: &Part) -> Option<&'static str> {
    match part.end.as_ref()?.reason {
        FinishReason::Stop => Some("stop"),
        FinishReason::Length => Some("length"),
        _ => None,
    }
}

#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    head: Head,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Clone, Debug, Serialize)]
struct Choice {
    index: usize,
    text: String,
    #[serde(serialize_with = "shared")]
    logprobs: Option<Arc<TextLogprobs>>,
    finish_reason: Option<&'static str>,
    #[serde(serialize_with = "shared", skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Arc<PromptLogprobs>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// Copies of a choice share their log-probabilities.
fn shared<T: Serialize, S: serde::Serializer>(value: &Option<Arc<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_deref().serialize(serializer)
}

/// OpenAI's.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Prompts of a request.
pub const MAX_PROMPTS: usize = 1024;
