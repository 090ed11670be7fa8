//! Calls of tools as models write them.
//!
//! Invariant: text that is no call gives `None`, whatever it is.

use serde_json::{Map, Value};

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name of the tool.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// What stands between `<tool_call>` and `</tool_call>`.
pub fn read_tagged(text: &str) -> Option<Vec<Call>> {
    let text = text.trim();
    if text.starts_with(FUNCTION) {
        return read_function(text).map(|call| vec![call]);
    }
    let value: Value = serde_json::from_str(text).ok()?;
    Some(vec![of_object(value)?])
}

/// One call or several, with `;` between them, and nothing else; all of known `tools`.
pub fn read_bare(text: &str, tag: &str, tools: &[String]) -> Option<Vec<Call>> {
    let mut rest = text.trim().strip_prefix(tag).unwrap_or(text).trim();
    let mut calls = Vec::new();
    loop {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let call = of_object(values.next()?.ok()?)?;
        if !tools.contains(&call.name) {
            return None;
        }
        calls.push(call);
        rest = rest[values.byte_offset()..].trim_start();
        if rest.is_empty() {
            return Some(calls);
        }
        rest = rest.strip_prefix(';').unwrap_or(rest).trim_start();
    }
}

/// What stands behind the first `[TOOL_CALLS]`: a list of calls, or a name and its arguments, each with its own mark.
pub fn read_mistral(text: &str, mark: &str) -> Option<Vec<Call>> {
    let trimmed = text.trim();
    if trimmed.starts_with('[') {
        let Value::Array(list) = serde_json::from_str(trimmed).ok()? else { return None };
        return list.into_iter().map(of_object).collect::<Option<Vec<_>>>().filter(|calls| !calls.is_empty());
    }
    let one = |part: &str| {
        let (name, arguments) = part.split_at(part.find('{')?);
        // Newer models write `name[ARGS]{...}`, some with `[CALL_ID]...` between.
        let name = name.split('[').next()?.trim();
        let arguments: Map<String, Value> = serde_json::from_str(arguments.trim()).ok()?;
        let named = !name.is_empty() && !name.contains(char::is_whitespace);
        named.then(|| Call { name: name.to_owned(), arguments: Value::Object(arguments).to_string() })
    };
    trimmed.split(mark).map(one).collect()
}

/// `{"name": ..., "arguments" or "parameters": {...}}`.
fn of_object(value: Value) -> Option<Call> {
    let Value::Object(mut map) = value else { return None };
    let Some(Value::String(name)) = map.remove("name") else { return None };
    let arguments = match map.remove("arguments").or_else(|| map.remove("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        // Some models write the object as a string.
        Some(Value::String(text)) if serde_json::from_str::<Map<String, Value>>(&text).is_ok() => text,
        Some(_) => return None,
    };
    (!name.is_empty()).then_some(Call { name, arguments })
}

/// `<function=name><parameter=key>value</parameter>...</function>`; a value that is JSON is taken as such, else as a string.
fn read_function(text: &str) -> Option<Call> {
    let (name, mut rest) = text.strip_prefix(FUNCTION)?.split_once('>')?;
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() || rest.starts_with("</function>") {
            let name = name.trim().to_owned();
            return (!name.is_empty()).then(|| Call { name, arguments: Value::Object(arguments).to_string() });
        }
        let (key, after) = rest.strip_prefix("<parameter=")?.split_once('>')?;
        let (value, after) = after.split_once("</parameter>")?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        arguments.insert(key.trim().to_owned(), value);
        rest = after;
    }
}

const FUNCTION: &str = "<function=";
