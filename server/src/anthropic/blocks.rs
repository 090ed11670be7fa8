//! Content blocks of Anthropic's messages as OpenAI's messages.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::{Field, wrong_type};

/// Text, or blocks of text.
pub fn text(name: &'static str, content: &Value) -> Field<String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            Ok(blocks.iter().map(|block| text_block(name, block)).collect::<Field<Vec<_>>>()?.join("\n"))
        }
        other => Err(wrong_type(name, "a string or an array of text blocks", other)),
    }
}

fn text_block(name: &'static str, block: &Value) -> Field<String> {
    match (&block["type"], &block["text"]) {
        (Value::String(kind), Value::String(text)) if kind == "text" => Ok(text.clone()),
        (Value::String(kind), _) if kind != "text" => {
            Err(ApiError::unsupported(name, "only content blocks of type text are supported here"))
        }
        _ => Err(ApiError::value(name, format!("{name} holds a block without text"))),
    }
}

/// Appends what a message says: results of tools are messages of their own there.
pub fn read(message: Value, out: &mut Vec<Value>) -> Field<()> {
    let role = match message["role"].as_str() {
        Some(role @ ("user" | "assistant" | "system")) => role,
        _ => return Err(ApiError::value("messages", "a role must be user or assistant")),
    };
    let blocks = match &message["content"] {
        Value::String(text) => {
            out.push(json!({"role": role, "content": text}));
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type("messages", "content as a string or an array of blocks", other)),
    };
    let (mut said, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        match block["type"].as_str() {
            Some("tool_use") if role == "assistant" => {
                let arguments = if block["input"].is_object() { block["input"].clone() } else { json!({}) };
                let function = json!({"name": block["name"], "arguments": arguments});
                calls.push(json!({"id": block["id"], "type": "function", "function": function}));
            }
            Some("thinking") if role == "assistant" => {
                thoughts.push(block["thinking"].as_str().unwrap_or_default().to_owned());
            }
            Some("redacted_thinking") if role == "assistant" => {}
            Some("tool_result") if role == "user" => {
                let content = match &block["content"] {
                    Value::Null => String::new(),
                    content => text("messages", content)?,
                };
                out.push(json!({"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}));
            }
            _ => said.push(text_block("messages", block)?),
        }
    }
    if said.is_empty() && thoughts.is_empty() && calls.is_empty() {
        return match blocks.is_empty() {
            true => Err(ApiError::value("messages", "a message has no content")),
            false => Ok(()),
        };
    }
    let mut message = json!({"role": role, "content": said.join("\n")});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.join("\n").into();
    }
    out.push(message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_tools_become_messages_and_uses_become_calls() {
        let mut out = Vec::new();
        let uses = json!({"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}]});
        let results = json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "3"}]},
            {"type": "text", "text": "And?"}]});
        read(uses, &mut out).unwrap();
        read(results, &mut out).unwrap();
        assert_eq!(out[0]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!((&out[0]["content"], &out[0]["reasoning_content"]), (&json!("Let me see."), &json!("hm")));
        assert_eq!(out[1], json!({"role": "tool", "tool_call_id": "toolu_1", "content": "3"}));
        assert_eq!(out[2], json!({"role": "user", "content": "And?"}));
    }

    #[test]
    fn what_cannot_be_said_to_a_text_model_is_refused() {
        for content in [json!(3), json!([]), json!([{"type": "image", "source": {}}]), json!([{"type": "text"}])] {
            let message = json!({"role": "user", "content": content});
            assert!(read(message.clone(), &mut Vec::new()).is_err(), "{message}");
        }
    }
}
