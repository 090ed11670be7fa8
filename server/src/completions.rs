//! `POST /v1/completions`: plain text or token ids, continued.

mod stream;

use std::sync::Arc;

use njoule_runtime::FinishReason;
use serde::Serialize;
use serde_json::Value;

use crate::app::App;
use crate::energy::{Keeper, Used};
use crate::error::ApiError;
use crate::fields::{Field, Fields, token_id, wrong_type};
use crate::generation::{Generation, Layout, Work};
use crate::logprobs::{PromptLogprobs, TextLogprobs, TextPlace};
use crate::mailbox::Part;
use crate::model::{Model, unix_seconds};
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
    echo: Option<Vec<String>>,
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
        let mask = params.structure.as_ref().map(|spec| model.mask(spec, false)).transpose()?;
        let ask = Ask { param: "prompt", continues: true, logprobs, prompt_logprobs: logprobs.filter(|_| echo), mask };
        let (mut requests, mut ids, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for prompt in prompts(given, model.vocab())? {
            let encoded = match &prompt {
                Prompt::Text(text) => model.encode(text, add_special)?,
                Prompt::Ids(ids) => ids.clone(),
            };
            requests.extend(params.requests(app, model, &encoded, max_new, ask.clone())?);
            if echo {
                texts.push(match prompt {
                    Prompt::Text(text) => text,
                    Prompt::Ids(ids) => model.tokenizer().decode(&ids, params.skip_special()),
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
        let work = Work { requests, layout: params.layout() };
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
        let writer = Writer { model: model.clone(), logprobs: logprobs.is_some(), echo, prompts, layout };
        let keeper = Keeper::new(app, params.tenant());
        let unread = app.config.max_unread;
        if let Some(options) = params.stream {
            let generation = Generation::start(app, &model, work, unread)?;
            let render = stream::Stream::new(writer, head, options, keeper);
            let stream = EventStream::new(generation, Box::new(render), app.config.ping_interval);
            return Ok(Reply::Events(stream));
        }
        let parts = Generation::start(app, &model, work, usize::MAX)?.finish().await?;
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

/// Turns parts into text and log-probabilities.
struct Writer {
    model: Arc<Model>,
    logprobs: bool,
    echo: Option<Vec<String>>,
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
            text.insert_str(0, &echo[prompt]);
            if self.logprobs {
                let all = logprobs.get_or_insert_with(TextLogprobs::default);
                if let Some(&first) = self.prompts[prompt].first() {
                    all.push_first(&self.model, first, &mut state.place);
                }
                part.prompt_logprobs.iter().for_each(|t| all.push_token(&self.model, t, &mut state.place));
                state.prompt = part.prompt_logprobs.len();
            }
        }
        if let Some(all) = &mut logprobs {
            part.logprobs.iter().for_each(|t| all.push_token(&self.model, t, &mut state.place));
        }
        (text, logprobs.map(Arc::new))
    }

    fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }
}

fn finish_reason(part: &Part) -> Option<&'static str> {
    part.end.as_ref().map(|end| if end.reason == FinishReason::Stop { "stop" } else { "length" })
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
}

/// Copies of a choice share their log-probabilities.
fn shared<T: Serialize, S: serde::Serializer>(value: &Option<Arc<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_deref().serialize(serializer)
}

/// OpenAI's.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Prompts of a request.
pub const MAX_PROMPTS: usize = 1024;
