//! Bodies of requests, field by field.

use serde_json::{Map, Value, json};

use super::reference;
use crate::chat::messages::MAX_MESSAGES;
use crate::chat::{EFFORTS, MAX_DOCUMENTS};
use crate::completions::MAX_PROMPTS;
use crate::params::{MAX_BAD_WORDS, MAX_BIASES, MAX_LOGPROBS, MAX_STOP_BYTES, MAX_STOP_IDS, MAX_STOPS};
use crate::structured::MAX_CHOICES;
use crate::tokenize::MAX_IDS;
use crate::tools::{MAX_NAME, MAX_TOOLS};

/// A field of a body.
pub struct FieldOf {
    pub name: &'static str,
    schema: Value,
    text: &'static str,
    need: Need,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Required,
    Optional,
    /// Taken without a look.
    Ignored,
}

fn required(name: &'static str, schema: Value, text: &'static str) -> FieldOf {
    FieldOf { name, schema, text, need: Need::Required }
}

fn optional(name: &'static str, schema: Value, text: &'static str) -> FieldOf {
    FieldOf { name, schema, text, need: Need::Optional }
}

fn ignored(name: &'static str) -> FieldOf {
    FieldOf { name, schema: json!({}), text: "Accepted and ignored.", need: Need::Ignored }
}

impl FieldOf {
    /// Whether the server reads it.
    #[cfg(test)]
    pub fn is_read(&self) -> bool {
        self.need != Need::Ignored
    }
}

/// The schema of a body.
pub fn object(fields: &[FieldOf]) -> Value {
    let mut properties = Map::new();
    let mut needed = Vec::new();
    for field in fields {
        let mut schema = field.schema.clone();
        match field.need {
            Need::Required => needed.push(field.name),
            Need::Optional => schema = or_null(schema),
            Need::Ignored => {}
        }
        schema["description"] = field.text.into();
        properties.insert(field.name.to_owned(), schema);
    }
    json!({"type": "object", "properties": properties, "required": needed})
}

fn or_null(mut schema: Value) -> Value {
    match schema.get("type") {
        Some(Value::String(kind)) => {
            schema["type"] = json!([kind, "null"]);
            if let Some(Value::Array(values)) = schema.get_mut("enum") {
                values.push(Value::Null);
            }
            schema
        }
        _ => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}

/// All bodies by their names.
pub fn bodies() -> Vec<(&'static str, Vec<FieldOf>)> {
    let chat = || with(common(1), chat());
    let completions = || with(common(0), completions());
    vec![
        ("ChatRequest", chat()),
        ("CompletionRequest", completions()),
        ("MessagesRequest", with(conversation(), messages())),
        ("CountTokensRequest", conversation()),
        ("TokenizeRequest", tokenize()),
        ("DetokenizeRequest", vec![model(), required("tokens", ids(MAX_IDS), "Ids.")]),
    ]
}

fn with(mut fields: Vec<FieldOf>, more: Vec<FieldOf>) -> Vec<FieldOf> {
    fields.extend(more);
    fields
}

fn model() -> FieldOf {
    optional("model", json!({"type": "string"}), "One of the served names; absent is the served model.")
}

fn user() -> FieldOf {
    optional("user", json!({}), "Without API keys, waiting requests of different users of an address take turns.")
}

fn boolean() -> Value {
    json!({"type": "boolean"})
}

fn integer(least: i64, most: i64) -> Value {
    if most == i64::MAX {
        json!({"type": "integer", "minimum": least})
    } else {
        json!({"type": "integer", "minimum": least, "maximum": most})
    }
}

fn count(least: i64) -> Value {
    integer(least, i64::MAX)
}

fn number(least: f64, most: f64) -> Value {
    json!({"type": "number", "minimum": least, "maximum": most})
}

fn ids(most: usize) -> Value {
    json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": most})
}

fn strings(most: usize) -> Value {
    json!({"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES}, "maxItems": most})
}

fn schema_or_text() -> Value {
    json!({"anyOf": [{"type": "object"}, {"type": "string"}]})
}

fn alternatives() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS})
}

fn common(least: i64) -> Vec<FieldOf> {
    let choice =
        json!({"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_CHOICES});
    let options = json!({"type": "object", "properties": {
        "include_usage": or_null(boolean()), "continuous_usage_stats": or_null(boolean())}});
    let format = json!({"type": "object", "required": ["type"], "properties": {
        "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]}, "schema": {"type": ["object", "null"]}}});
    let outputs = json!({"type": "object", "properties": {
        "json": or_null(schema_or_text()), "json_object": or_null(json!({"type": "boolean", "enum": [true]})),
        "regex": or_null(json!({"type": "string", "minLength": 1})), "choice": or_null(choice.clone()),
        "grammar": or_null(json!({"type": "string", "minLength": 1}))}});
    let biases = json!({"type": "object", "maxProperties": MAX_BIASES, "additionalProperties": {"type": "number"}});
    let salt = json!({"type": "string", "minLength": 1, "maxLength": 128});
    let stop = json!({"anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES}, strings(MAX_STOPS)]});
    let mut words = strings(MAX_BAD_WORDS);
    // White space alone is no word.
    words["items"]["pattern"] = json!("\\S");
    let mut fields = vec![
        model(),
        optional("max_tokens", count(least), "Tokens to generate at most."),
        optional("max_completion_tokens", count(least), "The same; goes before max_tokens."),
        optional("n_predict", count(least), "The same, as llama.cpp names it; comes after max_tokens."),
        optional("min_tokens", count(0), "Nothing ends the answer before."),
        optional("ignore_eos", boolean(), "The model's end tokens end nothing."),
        optional("temperature", number(0.0, 2.0), "0 takes the most likely token."),
        optional("top_p", number(0.0, 1.0), "Share of the probability that is drawn from."),
        optional("top_k", count(-1), "Tokens that are drawn from; -1 and 0 are all."),
        optional("min_p", number(0.0, 1.0), "Least probability, as a share of the highest."),
        optional("presence_penalty", number(-2.0, 2.0), "Of tokens that were generated."),
        optional("frequency_penalty", number(-2.0, 2.0), "Of tokens, by how often they were generated."),
        optional(
            "repetition_penalty",
            json!({"type": "number", "exclusiveMinimum": 0}),
            "Of tokens of prompt and answer.",
        ),
        optional("logit_bias", biases, "By token id; values are clamped to -100..100."),
        optional(
            "seed",
            json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX}),
            "Choice i draws by seed + i; -1 is any seed.",
        ),
        optional("stop", stop, "What ends the answer."),
        optional("stop_token_ids", ids(MAX_STOP_IDS), "Tokens that end the answer."),
        optional("include_stop_str_in_output", boolean(), "The stop string stays in the text."),
        optional("skip_special_tokens", boolean(), "Special tokens are left out of texts; true unless set."),
        optional("bad_words", words, "Words whose tokens are not generated."),
        optional(
            "allowed_token_ids",
            json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}),
            "No other tokens come.",
        ),
        optional("n", count(1), "Choices, at most --max-n."),
        optional("best_of", count(1), "Must equal n."),
        optional("use_beam_search", json!({"type": "boolean", "enum": [false]}), "Not supported."),
        // Of an integer's values none, and null.
        optional("truncate_prompt_tokens", json!({"type": "integer", "enum": []}), "Not supported."),
        optional("prompt_logprobs", alternatives(), "Log-probabilities of prompt tokens; not streamed."),
        optional("stream", boolean(), "Send the answer as it is made, as server-sent events."),
        optional("stream_options", options, "Needs stream: true."),
        optional(
            "response_format",
            format,
            "json_schema has the schema in response_format.json_schema.schema, or in response_format.schema.",
        ),
        optional("structured_outputs", outputs, "Exactly one kind."),
        optional("json_schema", schema_or_text(), "llama.cpp's name of structured_outputs.json."),
        optional(
            "grammar",
            json!({"type": "string", "maxLength": 0}),
            "llama.cpp's, not supported: use structured_outputs.",
        ),
        optional("return_token_ids", boolean(), "The answer has token_ids and prompt_token_ids, as vLLM gives them."),
        optional("return_tokens_as_token_ids", boolean(), "Log-probabilities name tokens token_id:N."),
        optional(
            "cache_salt",
            salt,
            "Cached prefixes are shared within one salt and one API key; without @ / \\ and NUL.",
        ),
        optional("priority", json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX}), "Lower runs first."),
        user(),
    ];
    fields.extend(["guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar"].map(gone));
    fields.extend(["metadata", "store"].map(ignored));
    fields
}

/// A field that vLLM had.
fn gone(name: &'static str) -> FieldOf {
    optional(name, json!({"type": "boolean", "enum": [false]}), "Not supported any more: use structured_outputs.")
}

fn chat() -> Vec<FieldOf> {
    let efforts = json!({"type": "string", "enum": EFFORTS});
    let documents = json!({"type": "array", "maxItems": MAX_DOCUMENTS});
    vec![
        required("messages", array(1, MAX_MESSAGES, reference("ChatMessage")), "The conversation."),
        optional("logprobs", boolean(), "Log-probabilities of generated tokens."),
        optional("top_logprobs", alternatives(), "Beside those of the most likely ones; needs logprobs: true."),
        optional("tools", array(1, MAX_TOOLS, reference("Tool")), "Functions that may be called."),
        optional("tool_choice", reference("ToolChoice"), "none, auto, required, or one function."),
        optional("parallel_tool_calls", boolean(), "false allows one call."),
        optional("documents", documents, "For templates that know them."),
        optional("add_generation_prompt", boolean(), "The answer is the assistant's; true unless set."),
        optional(
            "continue_final_message",
            boolean(),
            "The answer goes on with the last message; needs add_generation_prompt: false.",
        ),
        optional("add_special_tokens", boolean(), "Put what the tokenizer wants before the template's text."),
        optional("chat_template", json!({"type": "string"}), "With --trust-request-chat-template alone."),
        optional("chat_template_kwargs", json!({"type": "object"}), "Variables of the template."),
        optional("reasoning_effort", efforts, "A variable of the template."),
        optional("thinking_token_budget", count(0), "Tokens of thoughts at most: then they are ended."),
        optional("echo", json!({"type": "boolean", "enum": [false]}), "Not supported in chat."),
        optional("functions", json!({"type": "array", "maxItems": 0}), "Not supported: use tools."),
        optional(
            "function_call",
            json!({"type": "string", "enum": ["none", "auto"]}),
            "Not supported: use tool_choice.",
        ),
    ]
}

fn completions() -> Vec<FieldOf> {
    let prompt = json!({"anyOf": [{"type": "string"}, ids_of_any(), {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS,
        "items": {"anyOf": [{"type": "string"}, ids_of_any()]}}]});
    let empty = json!({"anyOf": [{"type": "string", "maxLength": 0}, {"type": "array", "maxItems": 0}]});
    vec![
        required("prompt", prompt, "Text, texts, token ids, or lists of them. Special tokens are recognised."),
        optional("echo", boolean(), "The prompt stands before the answer."),
        optional("logprobs", alternatives(), "Log-probabilities of that many of the most likely tokens."),
        optional("add_special_tokens", boolean(), "Put what the tokenizer wants before the prompt; true unless set."),
        optional("suffix", empty.clone(), "Not supported."),
        optional("tools", empty.clone(), "Not supported here."),
        optional("functions", empty.clone(), "Not supported."),
        optional("thinking_token_budget", empty, "Not supported here."),
    ]
}

fn ids_of_any() -> Value {
    json!({"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}})
}

fn array(least: usize, most: usize, items: Value) -> Value {
    json!({"type": "array", "minItems": least, "maxItems": most, "items": items})
}

fn conversation() -> Vec<FieldOf> {
    let tool = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
        "type": {"type": ["string", "null"], "enum": ["custom", null]},
        "description": {}, "input_schema": {"type": ["object", "null"]}}});
    let choice = json!({"type": "object", "properties": {
        "type": {"type": ["string", "null"], "enum": ["auto", "any", "tool", "none", null]},
        "name": {"type": ["string", "null"]}, "disable_parallel_tool_use": {"type": ["boolean", "null"]}}});
    let format = json!({"type": "object", "required": ["type", "schema"], "properties": {
        "type": {"type": "string", "enum": ["json_schema"]}, "schema": {"type": "object"}}});
    let config = json!({"type": "object", "properties": {"format": or_null(format.clone())}});
    let thinking = json!({"type": "object", "required": ["type"], "properties": {
        "type": {"type": "string", "enum": ["enabled", "adaptive", "disabled"]}, "budget_tokens": {"type": ["integer", "null"], "minimum": 0}}});
    let system = json!({"anyOf": [{"type": "string"}, {"type": "array", "items": reference("TextPart")}]});
    vec![
        model(),
        required("messages", array(1, MAX_MESSAGES, reference("AnthropicMessage")), "The conversation."),
        optional("system", system, "What stands before it."),
        optional("tools", json!({"type": "array", "maxItems": MAX_TOOLS, "items": tool}), "What may be called."),
        optional("tool_choice", choice, "Whether."),
        optional("thinking", thinking, "Whether the model thinks, and budget_tokens of thoughts at most."),
        optional("output_config", config, "format: what the answer must look like."),
        optional("output_format", format, "The older name of output_config.format."),
    ]
}

fn messages() -> Vec<FieldOf> {
    vec![
        required("max_tokens", count(1), "Tokens to generate at most."),
        optional("stop_sequences", strings(MAX_STOPS), "What ends the answer."),
        optional("stream", boolean(), "Send the answer as it is made, as server-sent events."),
        optional("temperature", number(0.0, 1.0), "0 takes the most likely token."),
        optional("top_p", number(0.0, 1.0), "Share of the probability that is drawn from."),
        optional("top_k", count(0), "Tokens that are drawn from; 0 is all."),
        ignored("metadata"),
    ]
}

fn tokenize() -> Vec<FieldOf> {
    vec![
        model(),
        optional("prompt", json!({"type": "string"}), "Text; this or messages."),
        optional("messages", array(1, MAX_MESSAGES, reference("ChatMessage")), "A conversation."),
        optional("add_special_tokens", boolean(), "true for a prompt, false for messages, unless set."),
        optional("return_token_strs", boolean(), "The tokens' texts too."),
        optional("tools", array(1, MAX_TOOLS, reference("Tool")), "For messages."),
        optional("tool_choice", reference("ToolChoice"), "For messages."),
        optional("parallel_tool_calls", boolean(), "For messages."),
        optional("add_generation_prompt", boolean(), "For messages; true unless set."),
        optional("continue_final_message", boolean(), "For messages."),
    ]
}
