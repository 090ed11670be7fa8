//! Messages of a client, as chat templates want them.
//!
//! Invariant: what comes out has a known role and text as its content; arguments of earlier calls are objects.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Field, wrong_type};

/// Reads `messages`.
pub fn read(given: Value) -> Field<Vec<Value>> {
    let list = match given {
        Value::Array(list) => list,
        other => return Err(wrong_type("messages", "an array", &other)),
    };
    if list.is_empty() || list.len() > MAX_MESSAGES {
        let message = format!("there are {} messages, there must be 1 to {MAX_MESSAGES}", list.len());
        return Err(ApiError::value("messages", message));
    }
    list.into_iter().enumerate().map(|(i, message)| read_one(i, message)).collect()
}

fn read_one(i: usize, message: Value) -> Field<Value> {
    let at = |field: &str| format!("messages[{i}]{field}");
    let Value::Object(mut message) = message else { return Err(wrong_type(&at(""), "an object", &message)) };
    let role = match message.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            // Templates know it by its older name.
            "developer" => "system",
            "system" | "user" | "assistant" | "tool" => role,
            _ => return Err(ApiError::value(at(".role"), "a role must be system, developer, user, assistant or tool")),
        }
        .to_owned(),
        other => return Err(wrong_type(&at(".role"), "a string", other.unwrap_or(&Value::Null))),
    };
    let content = match message.remove("content") {
        // A call that was made, and one that gave nothing.
        None | Some(Value::Null) if role == "assistant" || role == "tool" => None,
        Some(content @ Value::String(_)) => Some(content),
        Some(Value::Array(parts)) => Some(Value::String(join(&at(".content"), parts)?)),
        other => {
            let other = other.unwrap_or(Value::Null);
            return Err(wrong_type(&at(".content"), "a string or an array of text parts", &other));
        }
    };
    if let Some(calls) = message.get_mut("tool_calls").filter(|calls| !calls.is_null()) {
        read_calls(&at(".tool_calls"), calls)?;
    }
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.unwrap_or_else(|| Value::String(String::new())));
    Ok(Value::Object(message))
}

/// Text parts become one text, a line each; also as the Responses API names them, and as bare strings.
fn join(at: &str, parts: Vec<Value>) -> Field<String> {
    let without = || ApiError::value(at.to_owned(), format!("{at} holds a part without text"));
    let text = |part: Value| {
        let mut part = match part {
            Value::String(text) => return Ok(text),
            Value::Object(part) => part,
            _ => return Err(without()),
        };
        let name = match part.get("type") {
            Some(Value::String(kind)) => match kind.as_str() {
                "text" | "input_text" | "output_text" => "text",
                "refusal" => "refusal",
                _ => {
                    let message = "only content parts of type text are supported";
                    return Err(ApiError::unsupported(at.to_owned(), message));
                }
            },
            _ => return Err(without()),
        };
        match part.remove(name) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(without()),
        }
    };
    Ok(parts.into_iter().map(text).collect::<Field<Vec<_>>>()?.join("\n"))
}

/// OpenAI sends arguments as JSON text, templates write them as JSON.
fn read_calls(at: &str, calls: &mut Value) -> Field<()> {
    let Value::Array(calls) = calls else { return Err(wrong_type(at, "an array", calls)) };
    for call in calls {
        let Some(Value::Object(function)) = call.get_mut("function") else {
            return Err(ApiError::value(at.to_owned(), format!("{at} holds a call without a function")));
        };
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(ApiError::value(at.to_owned(), format!("{at} holds a function without a name")));
        }
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
            Some(Value::String(text)) => match serde_json::from_str::<Map<String, Value>>(text) {
                Ok(map) => Value::Object(map),
                Err(_) => Value::String(text.clone()),
            },
            Some(object @ Value::Object(_)) => object.clone(),
            Some(other) => return Err(wrong_type(at, "arguments as JSON text", other)),
        };
        function.insert("arguments".into(), arguments);
    }
    Ok(())
}

/// Messages of a request.
pub const MAX_MESSAGES: usize = 2048;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_parts_are_joined_and_arguments_become_objects() {
        let read = read(json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
            {"role": "tool", "tool_call_id": "2", "content": null},
            {"role": "user", "content": ["c", {"type": "input_text", "text": "d"}, {"type": "refusal", "refusal": "e"}]},
        ]));
        let read = read.unwrap();
        assert_eq!((&read[0]["role"], &read[0]["content"]), (&json!("system"), &json!("a\nb")));
        assert_eq!(read[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!([&read[1]["content"], &read[3]["content"], &read[4]["content"]], ["", "", "c\nd\ne"]);
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_place() {
        let cases = [
            (json!([]), "messages"),
            (json!({}), "messages"),
            (json!([3]), "messages[0]"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 3}]), "messages[0].content"),
            (json!([{"role": "king", "content": ""}]), "messages[0].role"),
            (json!([{"content": ""}]), "messages[0].role"),
            (json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), "messages[0].content"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls"),
        ];
        for (given, param) in cases {
            let error = read(given.clone()).expect_err(&given.to_string());
            assert_eq!(error.param.as_deref(), Some(param), "{given}");
        }
    }
}
