//! Calls of tools as models write them.
//!
//! Invariant: text that is no call gives `None`, whatever it is.

use serde_json::{Map, Value};

use super::Tool;

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name of the tool.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// What stands between `<tool_call>` and `</tool_call>`.
pub fn read_tagged(text: &str, tools: &[Tool]) -> Option<Vec<Call>> {
    let text = text.trim();
    if text.starts_with(FUNCTION) {
        return read_function(text, tools).map(|call| vec![call]);
    }
    let value: Value = serde_json::from_str(text).ok()?;
    Some(vec![of_object(value)?])
}

/// One call or several, with `;` between them, and nothing else; all of known `tools`.
pub fn read_bare(text: &str, tag: &str, tools: &[Tool]) -> Option<Vec<Call>> {
    let mut rest = text.trim().strip_prefix(tag).unwrap_or(text).trim();
    let mut calls = Vec::new();
    loop {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let call = of_object(values.next()?.ok()?)?;
        if !tools.iter().any(|tool| tool.name == call.name) {
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

/// `<function=name><parameter=key>value</parameter>...</function>`, each value as the tool's schema has it.
fn read_function(text: &str, tools: &[Tool]) -> Option<Call> {
    let (name, mut rest) = text.strip_prefix(FUNCTION)?.split_once('>')?;
    let name = name.trim();
    let parameters = tools.iter().find(|tool| tool.name == name).map(|tool| &tool.parameters["properties"]);
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() || rest.starts_with("</function>") {
            let call = Call { name: name.to_owned(), arguments: Value::Object(arguments).to_string() };
            return (!name.is_empty()).then_some(call);
        }
        let (key, after) = rest.strip_prefix("<parameter=")?.split_once('>')?;
        let (value, after) = after.split_once("</parameter>")?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let key = key.trim();
        arguments.insert(key.to_owned(), argument(value, parameters.and_then(|all| all.get(key))));
        rest = after;
    }
}

/// A value that was written without quotes: a string where its schema says so, JSON where it is such, else a string.
fn argument(text: &str, schema: Option<&Value>) -> Value {
    let string = || Value::String(text.to_owned());
    let Ok(value) = serde_json::from_str::<Value>(text) else { return string() };
    match schema.and_then(kinds) {
        Some(kinds) if kinds.contains(&"string") && (value.is_string() || !kinds.contains(&kind(&value))) => string(),
        _ => value,
    }
}

/// Types of a schema's values, as [`kind`] names them, where it says.
fn kinds(schema: &Value) -> Option<Vec<&str>> {
    let named = |name: &Value| match name.as_str()? {
        "integer" => Some("number"),
        name => TYPES.into_iter().find(|known| *known == name),
    };
    match (&schema["type"], &schema["enum"]) {
        (Value::Array(names), _) => names.iter().map(named).collect(),
        (name @ Value::String(_), _) => Some(vec![named(name)?]),
        (_, Value::Array(values)) => Some(values.iter().map(kind).collect()),
        _ if schema.get("const").is_some() => Some(vec![kind(&schema["const"])]),
        _ => {
            let parts = schema["anyOf"].as_array().or(schema["oneOf"].as_array())?;
            Some(parts.iter().map(kinds).collect::<Option<Vec<_>>>()?.concat())
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];
const FUNCTION: &str = "<function=";
