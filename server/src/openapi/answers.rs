//! What requests are made of, and what answers are.

use serde_json::{Map, Value, json};

use super::reference;
use crate::tools::MAX_NAME;

/// By their names.
pub fn schemas() -> Map<String, Value> {
    let part = json!({"type": "object", "required": ["type", "text"], "properties": {
        "type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}}});
    let refused = json!({"type": "object", "required": ["type", "refusal"], "properties": {
        "type": {"type": "string", "enum": ["refusal"]}, "refusal": {"type": "string"}}});
    let named = json!({"type": "object", "required": ["type", "text"], "properties": {
        "type": {"type": "string", "enum": ["text", "input_text", "output_text"]}, "text": {"type": "string"}}});
    let said_part = json!({"anyOf": [{"type": "string"}, named, refused]});
    let content = json!({"anyOf": [{"type": "string"}, {"type": "array", "items": said_part}]});
    let call = json!({"type": "object", "required": ["function"], "properties": {"function": {"type": "object",
        "required": ["name"], "properties": {"name": {"type": "string"}, "arguments": {"type": ["string", "object", "null"]}}}}});
    let said = json!({"type": "object", "required": ["role", "content"], "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user"]}, "content": content}});
    let answered = json!({"type": "object", "required": ["role"], "properties": {
        "role": {"type": "string", "enum": ["assistant", "tool"]}, "content": {"anyOf": [content, {"type": "null"}]},
        "tool_calls": {"type": ["array", "null"], "items": call}}});
    let block = json!({"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}});
    let function = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
        "description": {}, "parameters": {"type": ["object", "null"]}}});
    let tool = json!({"type": "object", "required": ["function"], "properties": {
        "type": {"type": "string", "enum": ["function"]}, "function": function}});
    let named = json!({"type": "object", "required": ["function"], "properties": {
        "function": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}});
    let all = json!({
        "TextPart": part,
        "ChatMessage": {"anyOf": [said, answered]},
        "AnthropicMessage": {"type": "object", "required": ["role", "content"], "properties": {
            "role": {"type": "string", "enum": ["user", "assistant", "system"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": block}]}}},
        "Tool": tool,
        "ToolChoice": {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, named]},
        "Invocation": {"anyOf": [reference("ChatRequest"), reference("CompletionRequest")]},
        "Invoked": {"anyOf": [reference("Chat"), reference("Completion")]},
        "Error": error(),
        "AnthropicError": closed(json!({"type": constant("error"),
            "error": closed(json!({"type": string(), "message": string()}))})),
        "Usage": open(json!({"prompt_tokens": count(), "completion_tokens": count(), "total_tokens": count(),
            "prompt_tokens_details": {"type": "object", "required": ["cached_tokens"], "properties": {"cached_tokens": count()}},
            "completion_tokens_details": closed(json!({"reasoning_tokens": count()}))}),
            json!({"energy": reference("UsedEnergy")})),
        "UsedEnergy": closed(json!({"total_j": amount(), "low_j": amount(), "high_j": amount(), "method": method(), "rel_unc": amount(),
            "prefill_j": amount(), "decode_j": amount(), "wasted_j": amount(), "static_j": amount(),
            "interpolated": {"type": "boolean"}, "cpu_s": {"type": "number", "minimum": 0}, "core_s": amount(), "util_s": amount(),
            "extrapolated": {"type": "boolean", "description": "whether a part of util_s is taken from earlier minutes of other answers, because none has told of it yet: what is told later takes its place"},
            "settled": {"type": "boolean", "description": "whether nothing is still to be told by a meter: else GET /v1/energy/requests/{id} has it later"}})),
        "Energy": closed(json!({"total_j": amount(), "low_j": amount(), "high_j": amount(), "method": method(), "by_bucket": {"anyOf": [{"type": "null"}, closed(json!({
                "prefill_j": amount(), "decode_j": amount(), "wasted_j": amount(), "idle_j": amount(), "load_j": amount(),
                "unattributed_j": amount()}))]},
            "split_by": {"anyOf": [{"type": "null"}, closed(json!({"joules_per_flop": amount(), "joules_per_kv_byte": amount(),
                "joules_per_weight_byte": amount(), "idle_w": amount(), "calibrated": {"type": "boolean"}}))]},
            "watts": amount(), "unknown_s": amount(), "output_tokens": {"type": ["integer", "null"], "minimum": 0}, "output_tokens_per_joule": amount(),
            "cpu_s": amount(), "core_s": amount(), "util_s": amount(), "util_unknown_s": amount(),
            "util_by_bucket": {"anyOf": [{"type": "null"}, closed(json!({"prefill_s": amount(), "decode_s": amount(), "wasted_s": amount(),
                "idle_s": amount(), "load_s": amount(), "unattributed_s": amount()}))]},
            "boundary": {"type": ["string", "null"]}, "meters": {"type": "array", "items": {"type": "object"}}, "reasons": {"type": "array", "items": string()}})),
        "Chat": open(head("chat.completion", reference("ChatChoice")), json!({"prompt_logprobs": {"type": "array"}, "prompt_token_ids": ids()})),
        "ChatChoice": open(json!({"index": count(), "finish_reason": {"type": "string", "enum": ["stop", "length", "tool_calls"]},
            "message": open(json!({"role": constant("assistant"), "content": {"type": ["string", "null"]}, "refusal": {"type": "null"}}),
                json!({"reasoning_content": string(), "reasoning": string(), "tool_calls": {"type": "array", "items": made_call()}})),
            "logprobs": {"anyOf": [{"type": "null"}, open(json!({"content": {"type": "array"}}), json!({}))]}}), json!({"token_ids": ids()})),
        "Completion": head("text_completion", reference("CompletionChoice")),
        "CompletionChoice": open(json!({"index": count(), "text": string(),
            "finish_reason": {"type": "string", "enum": ["stop", "length"]},
            "logprobs": {"anyOf": [{"type": "null"}, closed(json!({"tokens": {"type": "array", "items": string()},
                "token_logprobs": {"type": "array", "items": {"type": ["number", "null"]}},
                "top_logprobs": {"type": "array", "items": {"type": ["object", "null"]}},
                "text_offset": {"type": "array", "items": count()}}))]}}),
            json!({"prompt_logprobs": {"type": "array"}, "token_ids": ids(), "prompt_token_ids": ids()})),
        "Message": closed(json!({"id": string(), "type": constant("message"), "role": constant("assistant"), "model": string(),
            "content": {"type": "array", "items": open(json!({"type": {"type": "string", "enum": ["text", "thinking", "tool_use"]}}), json!({}))},
            "stop_reason": {"type": "string", "enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
            "stop_sequence": {"type": ["string", "null"]},
            "usage": open(json!({"input_tokens": count(), "cache_read_input_tokens": count(),
                "cache_creation_input_tokens": count(), "output_tokens": count()}), json!({"energy": reference("UsedEnergy")}))})),
        "TokenCount": closed(json!({"input_tokens": count()})),
        "Tokens": open(json!({"count": count(), "max_model_len": count(), "tokens": {"type": "array", "items": count()}}),
            json!({"token_strs": {"type": "array", "items": string()}})),
        "Text": closed(json!({"prompt": string()})),
        "Model": open(json!({"id": string(), "object": constant("model"), "created": count(), "owned_by": string(),
            "root": string(), "max_model_len": count(), "sampling_defaults": {"type": "object"}}), json!({"parent": {}})),
        "Models": closed(json!({"object": constant("list"), "data": {"type": "array", "items": reference("Model")}})),
        "Replicas": closed(json!({"status": {"type": "string", "enum": ["ok", "degraded"]}, "replicas": {"type": "array", "items":
            open(json!({"replica": count(), "state": string(), "requests": count(), "restarts": count(), "failing": {"type": "boolean"}}),
                json!({"unloads": count(), "break_even": {"type": ["object", "null"]}}))}})),
        "Version": closed(json!({"version": string()})),
        "OpenApi": {"type": "object", "required": ["openapi", "info", "paths"]},
    });
    match all {
        Value::Object(all) => all,
        _ => Map::new(),
    }
}

fn head(object: &str, choice: Value) -> Value {
    closed(json!({"id": string(), "object": constant(object), "created": count(), "model": string(),
        "choices": {"type": "array", "minItems": 1, "items": choice}, "usage": reference("Usage")}))
}

fn ids() -> Value {
    json!({"type": "array", "items": count()})
}

fn made_call() -> Value {
    closed(
        json!({"id": string(), "type": constant("function"), "function": closed(json!({"name": string(), "arguments": string()}))}),
    )
}

fn error() -> Value {
    let text = || json!({"type": ["string", "null"]});
    closed(json!({"error": closed(json!({"message": string(), "type": string(), "param": text(), "code": text()}))}))
}

/// An object that always has these.
fn closed(properties: Value) -> Value {
    let names: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({"type": "object", "required": names, "properties": properties})
}

/// The same with what may be there besides: of an object's schema, or of properties.
fn open(always: Value, sometimes: Value) -> Value {
    let mut schema = if always.get("required").is_some_and(Value::is_array) { always } else { closed(always) };
    if let (Some(Value::Object(properties)), Value::Object(more)) = (schema.get_mut("properties"), sometimes) {
        properties.extend(more);
    }
    schema
}

fn string() -> Value {
    json!({"type": "string"})
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

/// A number that may be unknown.
fn amount() -> Value {
    json!({"type": ["number", "null"], "minimum": 0})
}

fn method() -> Value {
    json!({"enum": ["measured", "hardware_model", "derived", "estimated", null]})
}

fn constant(value: &str) -> Value {
    json!({"type": "string", "enum": [value]})
}
