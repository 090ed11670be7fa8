//! Tools of a request, and whether the model may or must call them.

use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Field, Fields, wrong_type};

/// `tools`, `tool_choice` and `parallel_tool_calls`.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    tools: Vec<Value>,
    names: Vec<String>,
    none: bool,
    single: bool,
}

impl Tools {
    /// Takes the fields.
    pub fn take(fields: &mut Fields) -> Field<Tools> {
        let given = fields.array("tools", MAX_TOOLS)?;
        if given.as_ref().is_some_and(Vec::is_empty) {
            return Err(ApiError::value("tools", "tools is empty"));
        }
        let tools = given.unwrap_or_default();
        let names = tools.iter().map(name).collect::<Field<Vec<_>>>()?;
        let single = fields.boolean("parallel_tool_calls")? == Some(false);
        let none = match fields.take("tool_choice") {
            None => false,
            Some(Value::String(choice)) if choice == "none" => true,
            Some(_) if tools.is_empty() => return Err(ApiError::value("tool_choice", "tool_choice needs tools")),
            Some(Value::String(choice)) if choice == "auto" => false,
            Some(Value::String(choice)) if choice == "required" => {
                return Err(ApiError::unsupported("tool_choice", "tool_choice required is not supported yet"));
            }
            Some(Value::Object(choice)) => {
                let named = choice.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
                return Err(match named {
                    Some(name) if names.iter().any(|known| known == name) => {
                        ApiError::unsupported("tool_choice", "a named tool_choice is not supported yet")
                    }
                    Some(_) => ApiError::value("tool_choice", "tool_choice names no tool of the request"),
                    None => ApiError::value("tool_choice", "tool_choice.function.name is needed"),
                });
            }
            Some(other) => {
                return Err(match other {
                    Value::String(_) => ApiError::value("tool_choice", "tool_choice must be none, auto or required"),
                    other => wrong_type("tool_choice", "a string or an object", &other),
                });
            }
        };
        Ok(Tools { tools, names, none, single })
    }

    /// Tools in OpenAI's shape that the model may call as it likes.
    pub fn auto(tools: Vec<Value>, single: bool) -> Field<Tools> {
        let names = tools.iter().map(name).collect::<Field<Vec<_>>>()?;
        Ok(Tools { tools, names, none: false, single })
    }

    /// What the chat template is given.
    pub fn shown(&self) -> Option<Vec<Value>> {
        (!self.none && !self.tools.is_empty()).then(|| self.tools.clone())
    }

    /// Names of the tools that may be called.
    pub fn callable(&self) -> Vec<String> {
        if self.none { Vec::new() } else { self.names.clone() }
    }

    /// Calls at most.
    pub fn max_calls(&self) -> Option<usize> {
        self.single.then_some(1)
    }
}

fn name(tool: &Value) -> Field<String> {
    let function = match tool {
        Value::Object(tool) if tool.get("type").is_none_or(|kind| kind == "function") => tool.get("function"),
        Value::Object(_) => return Err(ApiError::unsupported("tools", "only tools of type function are supported")),
        other => return Err(wrong_type("tools", "an array of objects", other)),
    };
    let Some(Value::Object(function)) = function else {
        return Err(ApiError::value("tools", "a tool has no function"));
    };
    let parameters = function.get("parameters");
    if parameters.is_some_and(|parameters| !parameters.is_object() && !parameters.is_null()) {
        return Err(ApiError::value("tools", "a function's parameters must be a JSON schema"));
    }
    match function.get("name") {
        Some(Value::String(name)) if !name.is_empty() && name.len() <= MAX_NAME => Ok(name.clone()),
        _ => Err(ApiError::value("tools", format!("a function's name must be a string of 1 to {MAX_NAME} bytes"))),
    }
}

const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 256;
