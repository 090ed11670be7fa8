//! Tools of a request, and whether the model may or must call them.

use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Field, Fields, wrong_type};
use crate::output::{Format, Tool};
use crate::structured::Spec;

/// `tools`, `tool_choice` and `parallel_tool_calls`.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    tools: Vec<Value>,
    names: Vec<String>,
    choice: Choice,
    single: bool,
}

/// `tool_choice`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// As the model likes.
    #[default]
    Auto,
    /// No calls.
    None,
    /// At least one call.
    Required,
    /// A call of this one.
    Named(String),
}

impl Tools {
    /// Takes the fields.
    pub fn take(fields: &mut Fields) -> Field<Tools> {
        let given = fields.array("tools", MAX_TOOLS)?;
        if given.as_ref().is_some_and(Vec::is_empty) {
            return Err(ApiError::value("tools", "tools is empty; leave it out where there are none"));
        }
        let single = fields.boolean("parallel_tool_calls")? == Some(false);
        let choice = match fields.take("tool_choice") {
            None => Choice::Auto,
            Some(Value::String(choice)) => match choice.as_str() {
                "none" => Choice::None,
                _ if given.is_none() => return Err(ApiError::value("tool_choice", "tool_choice needs tools")),
                "auto" => Choice::Auto,
                "required" => Choice::Required,
                _ => return Err(ApiError::value("tool_choice", "tool_choice must be none, auto or required")),
            },
            Some(Value::Object(choice)) => match choice.get("function").and_then(|function| function.get("name")) {
                Some(Value::String(name)) => Choice::Named(name.clone()),
                _ => return Err(ApiError::value("tool_choice", "tool_choice.function.name is needed")),
            },
            Some(other) => return Err(wrong_type("tool_choice", "a string or an object", &other)),
        };
        Tools::new(given.unwrap_or_default(), choice, single)
    }

    /// Tools in OpenAI's shape, one call of them at most if `single`.
    pub fn new(tools: Vec<Value>, choice: Choice, single: bool) -> Field<Tools> {
        let names = tools.iter().map(name).collect::<Field<Vec<_>>>()?;
        match &choice {
            Choice::Named(name) if !names.contains(name) => {
                return Err(ApiError::value("tool_choice", "tool_choice names no tool of the request"));
            }
            Choice::Required if names.is_empty() => {
                return Err(ApiError::value("tool_choice", "tool_choice needs tools"));
            }
            _ => {}
        }
        Ok(Tools { tools, names, choice, single })
    }

    /// Whether a call must come.
    pub fn demands(&self) -> bool {
        matches!(self.choice, Choice::Required | Choice::Named(_))
    }

    /// What an answer must look like: a call, written in `format`, where one must come; where one may come, it or what the
    /// request wants of an answer.
    pub fn demand(&self, format: Option<Format>, structure: Option<&Spec>) -> Field<Option<Spec>> {
        let Some(format) = format else { return Ok(structure.cloned()) };
        if let Some(structure) = structure.filter(|structure| !structure.goes_with_tools()) {
            let message = format!("{} and tools that may be called exclude each other", structure.param());
            return Err(ApiError::value(structure.param(), message));
        }
        let single = self.single || matches!(self.choice, Choice::Named(_));
        if !self.demands() {
            return structure.map_or(Ok(None), |structure| structure.or_calls(&self.tools, format, single));
        }
        let wanted = |name: &String| match &self.choice {
            Choice::Named(wanted) => name == wanted,
            _ => true,
        };
        let named = self.tools.iter().zip(&self.names).filter(|(_, name)| wanted(name));
        let tools: Vec<Value> = named.map(|(tool, _)| tool.clone()).collect();
        Spec::calls(&tools, format, single).map(Some)
    }

    /// What the chat template is given.
    pub fn shown(&self) -> Option<Vec<Value>> {
        (self.choice != Choice::None && !self.tools.is_empty()).then(|| self.tools.clone())
    }

    /// What may be called.
    pub fn callable(&self) -> Vec<Tool> {
        if self.choice == Choice::None {
            return Vec::new();
        }
        let tool = |(tool, name): (&Value, &String)| Tool {
            name: name.clone(),
            parameters: tool["function"]["parameters"].clone(),
        };
        self.tools.iter().zip(&self.names).map(tool).collect()
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

/// Tools of a request.
pub const MAX_TOOLS: usize = 128;
/// Bytes of a function's name.
pub const MAX_NAME: usize = 256;
