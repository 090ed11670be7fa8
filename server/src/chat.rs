//! `POST /v1/chat/completions`: messages, answered.

pub mod messages;
mod stream;

use std::sync::Arc;

use njoule_models::chat::{ChatInput, ChatTemplate};
use njoule_runtime::FinishReason;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::app::App;
use crate::energy::{Keeper, Used};
use crate::error::ApiError;
use crate::fields::{Field, Fields};
use crate::generation::{Generation, Work};
use crate::logprobs::{ChatLogprobs, PromptLogprobs, Spelling};
use crate::mailbox::Part;
use crate::masks;
use crate::model::{Model, unix_seconds};
use crate::output::{Call, Delta, Format, Looks, Parser, Thoughts};
use crate::params::{Ask, Params, alternatives};
use crate::respond::Reply;
use crate::sse::EventStream;
use crate::tools::Tools;
use crate::usage::{Head, Usage};

/// A request for chat completions, ready to run.
pub struct Chat {
    model: Arc<Model>,
    params: Params,
    /// Where log-probabilities are asked for.
    logprobs: Option<Spelling>,
    prompt: Vec<u32>,
    looks: Looks,
    work: Work,
    head: Head,
}

impl Chat {
    /// Reads a body and encodes its messages.
    pub fn prepare(app: &Arc<App>, model: &Arc<Model>, mut fields: Fields) -> Result<Chat, ApiError> {
        let mut params = Params::take(&mut fields, app, model, 1)?;
        let logprobs = fields.flag("logprobs")?;
        let top = fields.take("top_logprobs").map(|value| alternatives("top_logprobs", &value)).transpose()?;
        if top.is_some() && !logprobs {
            return Err(ApiError::value("top_logprobs", "top_logprobs needs logprobs: true"));
        }
        for name in ["functions", "function_call"] {
            let idle =
                |value: &Value| *value == "none" || *value == "auto" || value.as_array().is_some_and(Vec::is_empty);
            if fields.take(name).is_some_and(|value| !idle(&value)) {
                return Err(ApiError::unsupported(name, format!("{name} is not supported; use tools")));
            }
        }
        if fields.flag("echo")? {
            return Err(ApiError::unsupported("echo", "echo is not supported in chat"));
        }
        let tools = Tools::take(&mut fields)?;
        let budget = fields.count("thinking_token_budget", 0..=usize::MAX)?;
        let given = fields.take("messages").ok_or_else(|| ApiError::value("messages", "messages are needed"))?;
        let input = ChatInput {
            messages: messages::read(given)?,
            tools: tools.shown(),
            documents: fields.array("documents", MAX_DOCUMENTS)?,
            add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            continue_final_message: fields.flag("continue_final_message")?,
            variables: variables(&mut fields)?,
            now: None,
        };
        if input.add_generation_prompt && input.continue_final_message {
            let message = "continue_final_message needs add_generation_prompt: false";
            return Err(ApiError::value("continue_final_message", message));
        }
        let template = own_template(&mut fields, app)?;
        let mut ids = model.encode_chat(template.as_ref(), &input, model.max_len)?;
        if fields.flag("add_special_tokens")? {
            let mut all = model.encode("", true)?;
            all.append(&mut ids);
            ids = all;
        }
        let looks = looks(model, &tools, params.structure.is_some(), &ids);
        if looks.has_special_marks() {
            params.show_special();
        }
        let spec = tools.demand(looks.format, params.structure.as_ref())?;
        let constraint = params.constraint(spec.as_ref());
        let grammar = spec.map(|spec| model.mask(&spec, &looks)).transpose()?;
        // A model that does not think keeps to any budget.
        let budget = budget.filter(|_| looks.thoughts != Thoughts::None);
        let budget = budget.map(|tokens| model.budget(tokens, &looks)).transpose()?;
        let mask = masks::all(grammar.into_iter().chain(budget).collect());
        let room = model.max_len.saturating_sub(ids.len());
        let max_new = params.max_tokens.unwrap_or(room.max(1));
        let ask = Ask {
            param: "messages",
            continues: input.continue_final_message,
            logprobs: logprobs.then(|| top.unwrap_or(0)),
            prompt_logprobs: None,
            mask,
        };
        let requests = params.requests(app, model, &ids, max_new, ask)?;
        app.admit_tokens(model, ids.len(), params.tenant())?;
        app.metrics.params_n.observe_count(params.n);
        if let Some(max) = params.max_tokens {
            app.metrics.params_max_tokens.observe_count(max);
        }
        let object = if params.stream.is_some() { "chat.completion.chunk" } else { "chat.completion" };
        let head = Head {
            id: format!("chatcmpl-{}", app.unique()),
            object,
            created: unix_seconds(),
            model: model.name().to_owned(),
        };
        let work = Work { requests, layout: params.layout(), constraint };
        let logprobs = logprobs.then(|| params.spelling(model));
        Ok(Chat { model: model.clone(), params, logprobs, prompt: ids, looks, work, head })
    }

    /// Runs it.
    pub async fn run(self, app: &Arc<App>) -> Result<Reply, ApiError> {
        let Chat { model, params, logprobs, prompt, looks, work, head } = self;
        let (layout, prompt_tokens, with_ids) = (work.layout, prompt.len(), params.token_ids());
        let prompt_token_ids = with_ids.then_some(prompt);
        let keeper = Keeper::new(app, params.tenant());
        if let Some(options) = params.stream {
            let generation = Generation::stream(app, &model, work)?;
            let prompt = stream::Prompt { tokens: prompt_tokens, ids: prompt_token_ids };
            let render = stream::Stream::new(head, options, layout, looks, logprobs, prompt, keeper);
            let stream = EventStream::new(generation, Box::new(render), app.config.ping_interval);
            return Ok(Reply::Events(stream));
        }
        let parts = Generation::start(app, &model, work)?.finish().await?;
        let mut prompt_logprobs = None;
        let (mut completion_tokens, mut thought, mut cached, mut used) = (0, 0, 0, Used::default());
        let mut choices = Vec::new();
        for (sequence, part) in parts.iter().enumerate() {
            completion_tokens += part.tokens * layout.copies;
            used.add(part);
            cached += if layout.is_first(sequence) { part.cached() } else { 0 };
            if params.prompt_logprobs.is_some() && sequence == 0 {
                prompt_logprobs = Some(PromptLogprobs::new(&model, &part.prompt_logprobs));
            }
            for index in layout.choices(sequence) {
                let answer = Answered::new(&looks, part);
                thought += answer.thought;
                choices.push(Choice {
                    index,
                    finish_reason: finish_reason(part, answer.calls.len()),
                    message: answer.message(&head.id, index),
                    logprobs: logprobs.as_ref().map(|spelling| ChatLogprobs::new(spelling, &part.logprobs)),
                    token_ids: with_ids.then(|| part.ids()),
                });
            }
        }
        let used = keeper.keep(&head.id, &used);
        let usage = Usage::new(prompt_tokens, completion_tokens).cached(cached).thought(thought).used(used);
        Ok(Reply::metered(&Completion { head, choices, usage, prompt_logprobs, prompt_token_ids }, used))
    }
}

/// What to look for in the answers to a prompt of `ids`, `structured` where they must look like something.
pub fn looks(model: &Model, tools: &Tools, structured: bool, ids: &[u32]) -> Looks {
    let source = model.template_source();
    let thoughts = Thoughts::of_template(source);
    let tail = &ids[ids.len().saturating_sub(PROMPT_TAIL)..];
    let thinking = thoughts != Thoughts::None && thoughts.are_begun_by(&model.tokenizer().decode(tail, false));
    let callable = tools.callable();
    let format = match Format::of_template(source) {
        // What a grammar writes has no mark there.
        Format::Mistral | Format::Channels if structured || tools.demands() => Format::Bare,
        format => format,
    };
    Looks {
        thoughts,
        thinking,
        format: (!callable.is_empty()).then_some(format),
        tools: callable.into(),
        max_calls: tools.max_calls(),
    }
}

/// Variables of the template, but none that the server sets itself.
fn variables(fields: &mut Fields) -> Field<Map<String, Value>> {
    let mut variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
    if let Some(reserved) = RESERVED.iter().find(|name| variables.contains_key(**name)) {
        return Err(ApiError::value("chat_template_kwargs", format!("chat_template_kwargs may not set {reserved}")));
    }
    if let Some(effort) = fields.string("reasoning_effort")? {
        if !EFFORTS.contains(&effort.as_str()) {
            let message = format!("reasoning_effort must be one of {}", EFFORTS.join(", "));
            return Err(ApiError::value("reasoning_effort", message));
        }
        variables.insert("reasoning_effort".into(), effort.into());
    }
    Ok(variables)
}

/// A template of the request's own, where the server trusts requests that far.
fn own_template(fields: &mut Fields, app: &App) -> Field<Option<ChatTemplate>> {
    let Some(source) = fields.string("chat_template")? else { return Ok(None) };
    if !app.config.trust_request_chat_template {
        let message = "chat_template is not taken from requests here (--trust-request-chat-template)";
        return Err(ApiError::unsupported("chat_template", message));
    }
    let template = ChatTemplate::new(&source, None, None);
    template.map(Some).map_err(|error| ApiError::value("chat_template", error.to_string()))
}

/// An answer taken apart.
#[derive(Debug, Default)]
pub struct Answered {
    /// Thoughts.
    pub reasoning: String,
    /// What is said.
    pub content: String,
    /// Calls of tools.
    pub calls: Vec<Call>,
    /// Tokens of thoughts.
    pub thought: usize,
}

impl Answered {
    /// Takes a whole answer apart.
    pub fn new(looks: &Looks, part: &Part) -> Answered {
        let (mut parser, mut deltas) = (Parser::new(looks.clone()), Vec::new());
        parser.take(part, &mut deltas);
        let mut all = Answered { thought: parser.thought(), ..Answered::default() };
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => all.reasoning.push_str(&text),
                Delta::Content(text) => all.content.push_str(&text),
                Delta::Call(call) => all.calls.push(call),
            }
        }
        all
    }

    fn message(self, id: &str, choice: usize) -> Message {
        let reasoning = Some(self.reasoning).filter(|text| !text.is_empty());
        let calls: Vec<ToolCall> =
            self.calls.into_iter().enumerate().map(|(i, call)| ToolCall::new(id, choice, i, call)).collect();
        Message {
            role: "assistant",
            content: Some(self.content).filter(|text| calls.is_empty() || !text.is_empty()),
            refusal: None,
            reasoning_content: reasoning.clone(),
            reasoning,
            tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
        }
    }
}

/// Why a choice ended, as chat says it; nothing of one that was broken off.
pub fn finish_reason(part: &Part, calls: usize) -> Option<&'static str> {
    match part.end.as_ref()?.reason {
        FinishReason::Stop if calls > 0 => Some("tool_calls"),
        FinishReason::Stop => Some("stop"),
        FinishReason::Length => Some("length"),
        _ => None,
    }
}

/// Nine letters and digits, which is what Mistral's templates demand of the ids of calls.
pub fn call_id(answer: &str, choice: usize, index: usize) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (answer, choice, index).hash(&mut hasher);
    let mut rest = hasher.finish();
    let mut digit = || {
        let digit = ALPHABET[(rest % ALPHABET.len() as u64) as usize];
        rest /= ALPHABET.len() as u64;
        char::from(digit)
    };
    (0..9).map(|_| digit()).collect()
}

#[derive(Debug, Serialize)]
struct Completion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<Choice>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ToolCall>>,
}

/// A call of a tool in OpenAI's shape.
#[derive(Debug, Serialize)]
struct ToolCall {
    /// In streams alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    arguments: String,
}

impl ToolCall {
    fn new(answer: &str, choice: usize, index: usize, call: Call) -> ToolCall {
        let function = Function { name: call.name, arguments: call.arguments };
        ToolCall { index: None, id: call_id(answer, choice, index), kind: "function", function }
    }
}

const RESERVED: [&str; 7] =
    ["messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "tokenize"];
/// `reasoning_effort`.
pub const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
/// Documents of a request.
pub const MAX_DOCUMENTS: usize = 1024;
/// Tokens at the end of a prompt that show whether the thoughts have begun.
const PROMPT_TAIL: usize = 32;
const ALPHABET: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
