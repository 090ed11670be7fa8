//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's interface over the same engine.

mod blocks;
mod stream;

use std::sync::Arc;

use njoule_models::chat::ChatInput;
use njoule_runtime::FinishReason;
use njoule_runtime::request::StopMatch;
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::chat::{Answered, call_id, looks};
use crate::energy::{Energy, Keeper, Used};
use crate::error::ApiError;
use crate::fields::{Field, Fields, wrong_type};
use crate::generation::{Generation, Work};
use crate::mailbox::Part;
use crate::masks;
use crate::model::{Model, shorten};
use crate::output::{Looks, Thoughts};
use crate::params::{Ask, Params, stop_strings};
use crate::respond::Reply;
use crate::sse::EventStream;
use crate::structured::Spec;
use crate::tenant::Tenant;
use crate::tools::{Choice, MAX_TOOLS, Tools};

/// A request for a message, ready to run.
pub struct Messages {
    model: Arc<Model>,
    stream: bool,
    prompt_tokens: usize,
    looks: Looks,
    work: Work,
    id: String,
    tenant: Tenant,
}

impl Messages {
    /// Reads a body and encodes its messages.
    pub fn prepare(app: &Arc<App>, model: &Arc<Model>, mut fields: Fields) -> Result<Messages, ApiError> {
        let max_tokens = fields.count("max_tokens", 1..=usize::MAX)?;
        let max_tokens = max_tokens.ok_or_else(|| ApiError::value("max_tokens", "max_tokens is needed"))?;
        let stop = fields.array("stop_sequences", usize::MAX)?.unwrap_or_default();
        let stop = stop_strings("stop_sequences", stop)?;
        let stream = fields.flag("stream")?;
        let mut params = Params::plain(&fields, model, max_tokens, stop, stream);
        let sampling = params.sampling_mut();
        sampling.temperature = fields.number("temperature", 0.0..=1.0)?.unwrap_or(sampling.temperature);
        sampling.top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(sampling.top_p);
        let top_k = fields.count("top_k", 0..=usize::MAX)?;
        sampling.top_k = top_k.map_or(sampling.top_k, |k| k.min(model.vocab()));
        let Conversation { input, tools, budget, structure } = read(model, &mut fields)?;
        let ids = model.encode_chat(None, &input, model.max_len)?;
        let looks = looks(model, &tools, structure.is_some(), &ids);
        if looks.has_special_marks() {
            params.show_special();
        }
        let spec = tools.demand(looks.format, structure.as_ref())?;
        let constraint = spec.as_ref().map(Spec::param);
        let grammar = spec.map(|spec| model.mask(&spec, &looks)).transpose()?;
        let budget = budget.filter(|_| looks.thoughts != Thoughts::None);
        let budget = budget.map(|tokens| model.budget(tokens, &looks)).transpose()?;
        let mask = masks::all(grammar.into_iter().chain(budget).collect());
        let ask = Ask { param: "messages", continues: false, logprobs: None, prompt_logprobs: None, mask };
        let requests = params.requests(app, model, &ids, max_tokens, ask)?;
        app.admit_tokens(model, ids.len(), params.tenant())?;
        app.metrics.params_n.observe_count(1);
        app.metrics.params_max_tokens.observe_count(max_tokens);
        let work = Work { requests, layout: params.layout(), constraint };
        let id = format!("msg_{}", app.unique());
        let tenant = params.tenant();
        Ok(Messages { model: model.clone(), stream, prompt_tokens: ids.len(), looks, work, id, tenant })
    }

    /// Runs it.
    pub async fn run(self, app: &Arc<App>) -> Result<Reply, ApiError> {
        let Messages { model, stream, prompt_tokens, looks, work, id, tenant } = self;
        let keeper = Keeper::new(app, tenant);
        if stream {
            let generation = Generation::stream(app, &model, work)?;
            let render = stream::Stream::new(id, model.name().to_owned(), looks, prompt_tokens, keeper);
            return Ok(Reply::Events(EventStream::new(generation, Box::new(render), app.config.ping_interval)));
        }
        let parts = Generation::start(app, &model, work)?.finish().await?;
        let part = parts.into_iter().next().unwrap_or_default();
        let Answered { reasoning, content, calls, .. } = Answered::new(&looks, &part);
        let (stop_reason, stop_sequence) = stop_reason(&part, calls.len());
        let mut all = Vec::new();
        if !reasoning.is_empty() {
            all.push(json!({"type": "thinking", "thinking": reasoning, "signature": ""}));
        }
        if !content.is_empty() || calls.is_empty() {
            all.push(json!({"type": "text", "text": content}));
        }
        for (i, call) in calls.iter().enumerate() {
            let input: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
            all.push(json!({"type": "tool_use", "id": tool_id(&id, i), "name": call.name, "input": input}));
        }
        let mut used = Used::default();
        used.add(&part);
        let used = keeper.keep(&id, &used);
        let usage = usage(prompt_tokens, part.cached(), part.tokens, used);
        let message = Message { id: &id, model: model.name(), content: all, stop_reason, stop_sequence, usage };
        Ok(Reply::metered(&message.json(), used))
    }
}

/// `usage`: tokens of the prompt that were not cached, those that were, and those of the answer; with what was used, where that is
/// asked for. Nobody pays for what is put into the cache.
fn usage(prompt_tokens: usize, cached: usize, output_tokens: usize, used: Option<Energy>) -> Value {
    let mut usage = json!({"input_tokens": prompt_tokens.saturating_sub(cached), "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0, "output_tokens": output_tokens});
    if let Some(used) = used {
        usage["energy"] = json!(used);
    }
    usage
}

/// `count_tokens`.
pub fn count_tokens(_app: &App, model: &Model, mut fields: Fields) -> Result<Reply, ApiError> {
    let Conversation { input, .. } = read(model, &mut fields)?;
    Ok(Reply::json(&json!({"input_tokens": model.encode_chat(None, &input, usize::MAX)?.len()})))
}

/// What is to be answered, in OpenAI's shapes, which is what templates read.
struct Conversation {
    input: ChatInput,
    tools: Tools,
    /// Tokens of thoughts at most.
    budget: Option<usize>,
    /// What the answer must look like.
    structure: Option<Spec>,
}

fn read(model: &Model, fields: &mut Fields) -> Field<Conversation> {
    model.check_name(fields.string("model")?.as_deref())?;
    let given = fields.take("messages").ok_or_else(|| ApiError::value("messages", "messages are needed"))?;
    let mut messages = match fields.take("system") {
        None => Vec::new(),
        Some(system) => vec![json!({"role": "system", "content": blocks::text("system", &system)?})],
    };
    let Value::Array(list) = given else { return Err(wrong_type("messages", "an array", &given)) };
    for message in list {
        blocks::read(message, &mut messages)?;
    }
    let messages = crate::chat::messages::read(messages.into())?;
    let tools = fields.array("tools", MAX_TOOLS)?.unwrap_or_default();
    let tools = tools.iter().map(tool).collect::<Field<Vec<_>>>()?;
    let choice = Fields::of_object(fields.object("tool_choice")?.unwrap_or_default());
    let tools = tool_choice(choice, tools)?;
    let mut input = ChatInput { tools: tools.shown(), ..ChatInput::new(messages) };
    let mut budget = None;
    if let Some(mut thinking) = fields.object("thinking")?.map(Fields::of_object) {
        let kind = thinking.string("type")?;
        let given = thinking.count("budget_tokens", 0..=usize::MAX)?;
        let thinks = match kind.as_deref() {
            Some("enabled") => {
                budget = given;
                true
            }
            // As long as the model sees fit.
            Some("adaptive") => true,
            Some("disabled") => false,
            _ => return Err(ApiError::value("thinking", "thinking.type must be enabled, adaptive or disabled")),
        };
        input.variables.insert("enable_thinking".into(), thinks.into());
    }
    let config = Fields::of_object(fields.object("output_config")?.unwrap_or_default()).object("format")?;
    // The same by its older name.
    let structure = match (config, fields.object("output_format")?) {
        (Some(_), Some(_)) => {
            return Err(ApiError::value("output_format", "give output_config.format or output_format, not both"));
        }
        (Some(format), None) => Spec::of_output("output_config", format)?,
        (None, Some(format)) => Spec::of_output("output_format", format)?,
        (None, None) => None,
    };
    Ok(Conversation { input, tools, budget, structure })
}

fn tool(tool: &Value) -> Field<Value> {
    match &tool["type"] {
        Value::Null => {}
        Value::String(kind) if kind == "custom" => {}
        Value::String(kind) => {
            let kind = shorten(kind);
            let message = format!(
                "tools of type {kind} are not supported: this server runs none; describe a tool by its input_schema"
            );
            return Err(ApiError::unsupported("tools", message));
        }
        other => return Err(wrong_type("tools", "tools whose type is a string", other)),
    }
    match &tool["name"] {
        Value::String(_) => Ok(json!({"type": "function", "function": {
            "name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"]}})),
        _ => Err(ApiError::value("tools", "a tool needs a name and an input_schema")),
    }
}

fn tool_choice(mut choice: Fields, tools: Vec<Value>) -> Field<Tools> {
    let single = choice.flag("disable_parallel_tool_use")?;
    match choice.string("type")?.as_deref() {
        None | Some("auto") => Tools::new(tools, Choice::Auto, single),
        Some("none") => Ok(Tools::default()),
        Some("any") => Tools::new(tools, Choice::Required, single),
        Some("tool") => {
            let name =
                choice.string("name")?.ok_or_else(|| ApiError::value("tool_choice", "tool_choice.name is needed"))?;
            Tools::new(tools, Choice::Named(name), single)
        }
        Some(_) => Err(ApiError::value("tool_choice", "tool_choice.type must be auto, any, tool or none")),
    }
}

struct Message<'a> {
    id: &'a str,
    model: &'a str,
    content: Vec<Value>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: Value,
}

impl Message<'_> {
    fn json(&self) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": self.content,
            "stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence, "usage": self.usage,
        })
    }
}

/// Why a message ended, and the sequence that ended it; nothing of one that was broken off.
fn stop_reason(part: &Part, calls: usize) -> (Option<&'static str>, Option<String>) {
    let Some(end) = &part.end else { return (None, None) };
    match (&end.reason, &end.matched) {
        (FinishReason::Stop, Some(StopMatch::Text(text))) => (Some("stop_sequence"), Some(text.clone())),
        (FinishReason::Stop, _) if calls > 0 => (Some("tool_use"), None),
        (FinishReason::Stop, _) => (Some("end_turn"), None),
        (FinishReason::Length, _) => (Some("max_tokens"), None),
        _ => (None, None),
    }
}

fn tool_id(message: &str, i: usize) -> String {
    format!("toolu_{}", call_id(message, 0, i))
}

/// An event of a stream.
fn event(out: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    crate::sse::named(out, name, value);
}
