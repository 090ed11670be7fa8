//! `response_format`, `structured_outputs` and demanded calls of tools, as grammars.

use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Field, Fields, wrong_type};
use crate::output::Format;
use crate::structured::{gbnf, schema};

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    kind: Kind,
    param: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Json(Value),
    Regex(String),
    Lark(String),
}

impl Spec {
    /// Takes `response_format`, `structured_outputs` and llama.cpp's `json_schema`, of which one may be given. What vLLM had before
    /// `structured_outputs`, and ignores now, is refused.
    pub fn take(fields: &mut Fields) -> Field<Option<Spec>> {
        let format = match fields.object("response_format")? {
            None => None,
            Some(format) => response_format(format)?,
        };
        let outputs = fields
            .object("structured_outputs")?
            .map(|map| structured_outputs("structured_outputs", map))
            .transpose()?;
        let mut all: Vec<Spec> = format.into_iter().chain(outputs).collect();
        let gbnf = "grammar";
        if fields.take(gbnf).is_some_and(|grammar| grammar != "") {
            let message =
                "grammar is llama.cpp's; structured_outputs.grammar takes Lark, response_format a JSON schema";
            return Err(ApiError::unsupported(gbnf, message));
        }
        for (name, kind) in OLDER_NAMES {
            if fields.take(name).is_some_and(|value| value != false) {
                let message = format!("{name} is not supported any more; structured_outputs.{kind} says the same");
                return Err(ApiError::unsupported(name, message));
            }
        }
        let llama = "json_schema";
        if let Some(value) = fields.take(llama).filter(|value| *value != false) {
            all.push(structured_outputs(llama, Map::from_iter([("json".to_owned(), value)]))?);
        }
        match all.pop() {
            Some(last) if !all.is_empty() => {
                let message = "give one of response_format, structured_outputs and json_schema, not several";
                Err(ApiError::value(last.param, message))
            }
            one => Ok(one),
        }
    }

    /// What Anthropic's `output_config.format` demands, or by an older name `output_format`.
    pub fn of_output(param: &'static str, mut format: Map<String, Value>) -> Field<Option<Spec>> {
        let schema = format.remove("schema");
        match (format.get("type").and_then(Value::as_str), schema) {
            (Some("json_schema"), Some(schema @ Value::Object(_))) => of_schema(param, schema).map(Some),
            (Some("json_schema"), _) => Err(ApiError::value(param, "a format of type json_schema needs a schema")),
            _ => Err(ApiError::value(param, "the type of a format must be json_schema")),
        }
    }

    /// An answer that this schema describes.
    pub fn json(schema: Value) -> Field<Spec> {
        of_schema("response_format", schema)
    }

    /// An answer that is one call of one of these tools, or several, as the model writes them.
    pub fn calls(tools: &[Value], format: Format, single: bool) -> Field<Spec> {
        let schema = calls(tools, format)?;
        let kind = match format {
            Format::Tagged => Kind::Lark(format!("start: calls\n{}", tagged(schema, single))),
            // Their marks are special tokens, which a grammar does not write; the object alone says as much.
            Format::Bare | Format::Mistral | Format::Channels => Kind::Json(spaced(schema, ONE_SPACE)),
        };
        Ok(Spec { kind, param: "tool_choice" })
    }

    /// Whether it may stand beside tools, as a `response_format` may and vLLM's fields may not.
    pub fn goes_with_tools(&self) -> bool {
        self.format().is_some()
    }

    fn format(&self) -> Option<&Value> {
        match &self.kind {
            Kind::Json(schema) if BESIDE_TOOLS.contains(&self.param) => Some(schema),
            _ => None,
        }
    }

    /// An answer that looks like this, or is a call of one of these tools; `None` where it may not stand beside them.
    pub fn or_calls(&self, tools: &[Value], format: Format, single: bool) -> Field<Option<Spec>> {
        let Some(answer) = self.format() else { return Ok(None) };
        let (schema, answer) = (calls(tools, format)?, spaced(answer.clone(), INDENTED));
        // Each has a root of its own, which its references begin at.
        let calls = match format {
            Format::Tagged => tagged(schema, single),
            Format::Bare | Format::Mistral | Format::Channels => {
                format!("calls: %json {}\n", spaced(schema, ONE_SPACE))
            }
        };
        let kind = Kind::Lark(format!("start: calls | answer\n{calls}answer: %json {answer}\n"));
        Ok(Some(Spec { kind, param: self.param }))
    }

    /// The field that it came in.
    pub fn param(&self) -> &'static str {
        self.param
    }

    pub fn grammar(&self) -> Result<TopLevelGrammar, String> {
        Ok(match &self.kind {
            Kind::Json(schema) => TopLevelGrammar::from_json_schema(spaced(schema.clone(), INDENTED)),
            Kind::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Kind::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        })
    }
}

/// A call of one of these tools, as an object.
fn calls(tools: &[Value], format: Format) -> Field<Value> {
    let key = if format == Format::Bare { "parameters" } else { "arguments" };
    let one = |(i, tool): (usize, &Value)| {
        let function = &tool["function"];
        let mut arguments = match &function["parameters"] {
            Value::Null => json!({"type": "object"}),
            schema => schema.clone(),
        };
        // Before it is changed: that goes from schema to schema, however deep.
        check_schema("tools", &arguments)?;
        schema::close(&mut arguments);
        schema::rebase(&mut arguments, &format!("#/anyOf/{i}/properties/{key}"));
        Ok(json!({"type": "object", "properties": {"name": {"const": function["name"]}, key: arguments},
            "required": ["name", key], "additionalProperties": false}))
    };
    let schema = json!({"anyOf": tools.iter().enumerate().map(one).collect::<Field<Vec<_>>>()?});
    check_schema("tools", &schema)?;
    Ok(schema)
}

/// The rule `calls` of a model that marks calls.
fn tagged(schema: Value, single: bool) -> String {
    let more = if single { "" } else { " (\"\\n\" call)*" };
    let schema = spaced(schema, ONE_SPACE);
    format!("calls: call{more}\ncall: \"<tool_call>\\n\" body \"\\n</tool_call>\"\nbody: %json {schema}\n")
}

/// An answer that a schema of a request describes.
fn of_schema(param: &'static str, mut schema: Value) -> Field<Spec> {
    check_schema(param, &schema)?;
    schema::close(&mut schema);
    Ok(Spec { kind: Kind::Json(schema), param })
}

/// A schema whose answers have this between their parts at most: else small models run into white space for ever.
fn spaced(mut schema: Value, white_space: &str) -> Value {
    if let Value::Object(map) = &mut schema {
        map.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": white_space}));
    }
    schema
}

fn response_format(mut format: Map<String, Value>) -> Field<Option<Spec>> {
    let param = "response_format";
    let kind = match format.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        _ => return Err(ApiError::value(param, "response_format.type must be text, json_object or json_schema")),
    };
    let schema = match kind.as_str() {
        "text" => return Ok(None),
        // With a schema beside the type, as llama.cpp has it.
        "json_object" => format.remove("schema"),
        "json_schema" => match (format.remove("json_schema"), format.remove("schema")) {
            (Some(Value::Object(mut inner)), _) => inner.remove("schema"),
            (None | Some(Value::Null), Some(schema @ Value::Object(_))) => Some(schema),
            (other, _) => return Err(wrong_type(param, "an object with json_schema", &other.unwrap_or(Value::Null))),
        },
        _ => return Err(ApiError::value(param, "response_format.type must be text, json_object or json_schema")),
    };
    match schema {
        None | Some(Value::Null) => of_schema(param, json!({"type": "object"})).map(Some),
        Some(schema @ Value::Object(_)) => of_schema(param, schema).map(Some),
        Some(other) => Err(wrong_type(param, "an object with a schema", &other)),
    }
}

fn structured_outputs(param: &'static str, outputs: Map<String, Value>) -> Field<Spec> {
    let mut given = outputs.into_iter().filter(|(name, value)| KINDS.contains(&name.as_str()) && !value.is_null());
    let (Some((name, value)), None) = (given.next(), given.next()) else {
        return Err(ApiError::value(
            param,
            "structured_outputs needs exactly one of json, json_object, regex, choice, grammar",
        ));
    };
    let kind = match (name.as_str(), value) {
        ("json_object", Value::Bool(true)) => Kind::Json(json!({"type": "object"})),
        ("json", schema @ Value::Object(_)) => return of_schema(param, schema),
        ("json", Value::String(text)) => {
            let schema =
                serde_json::from_str(&text).map_err(|e| ApiError::value(param, format!("json is no schema: {e}")))?;
            return of_schema(param, schema);
        }
        ("regex", Value::String(regex)) => Kind::Regex(sized(param, regex)?),
        ("grammar", Value::String(grammar)) if gbnf::is_gbnf(&grammar) => {
            let regex = gbnf::regex(&sized(param, grammar)?, MAX_BYTES);
            Kind::Regex(regex.map_err(|error| ApiError::coded("grammar_error", param, error.to_string()))?)
        }
        ("grammar", Value::String(grammar)) => {
            let grammar = sized(param, grammar)?;
            let parts = grammar.bytes().filter(|byte| matches!(byte, b'(' | b'[' | b':')).count();
            check_parts(param, "rules and groups", parts)?;
            Kind::Lark(grammar)
        }
        ("choice", Value::Array(choices)) => choice(param, &choices)?,
        (_, other) => return Err(wrong_type(param, &format!("of the right type in {name}"), &other)),
    };
    Ok(Spec { kind, param })
}

fn choice(param: &'static str, choices: &[Value]) -> Field<Kind> {
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        return Err(ApiError::value(param, format!("choice must have 1 to {MAX_CHOICES} strings")));
    }
    let quoted = |choice: &Value| match choice {
        // Lark's strings are written as JSON's are.
        Value::String(text) if !text.is_empty() => Ok(sized(param, Value::String(text.clone()).to_string())?),
        _ => Err(ApiError::value(param, "choice must hold strings that are not empty")),
    };
    let all = choices.iter().map(quoted).collect::<Field<Vec<_>>>()?;
    Ok(Kind::Lark(format!("start: {}\n", sized(param, all.join(" | "))?)))
}

fn sized(param: &'static str, text: String) -> Field<String> {
    match text.is_empty() || text.len() > MAX_BYTES {
        true => Err(ApiError::coded("grammar_error", param, format!("a grammar must have 1 to {MAX_BYTES} bytes"))),
        false => Ok(text),
    }
}

/// Bounds what may stand within each other: a compiler that goes down all of it has room for so much.
fn check_parts(param: &'static str, what: &str, parts: usize) -> Field<()> {
    match parts > MAX_PARTS {
        true => Err(ApiError::coded("grammar_error", param, format!("a grammar may have {MAX_PARTS} {what} at most"))),
        false => Ok(()),
    }
}

fn check_schema(param: &'static str, schema: &Value) -> Field<()> {
    let (mut values, mut level, mut references) = (vec![schema], 0, 0);
    while !values.is_empty() {
        level += 1;
        references += values.iter().filter(|value| value.get("$ref").is_some()).count();
        if level > MAX_NESTING {
            let message = format!("a schema may be nested {MAX_NESTING} deep at most");
            return Err(ApiError::coded("grammar_error", param, message));
        }
        let inner = |value: &'_ &Value| matches!(value, Value::Array(_) | Value::Object(_));
        values = values
            .into_iter()
            .flat_map(|value| match value {
                Value::Array(values) => values.iter().collect::<Vec<_>>(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            })
            .filter(inner)
            .collect();
    }
    check_parts(param, "references", references)?;
    let bytes = schema.to_string().len();
    if bytes > MAX_BYTES {
        return Err(ApiError::coded("grammar_error", param, format!("a schema may have {MAX_BYTES} bytes at most")));
    }
    Ok(())
}

/// Fields that may stand beside tools: an answer is a call or what they describe.
const BESIDE_TOOLS: [&str; 3] = ["response_format", "output_config", "output_format"];
/// Names that vLLM had before `structured_outputs`, and what they are there.
const OLDER_NAMES: [(&str, &str); 5] = [
    ("guided_json", "json"),
    ("guided_json_object", "json_object"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
];
const KINDS: [&str; 5] = ["json", "json_object", "regex", "choice", "grammar"];
/// An answer may be indented.
const INDENTED: &str = " |\\n[ \\t]{0,20}";
/// A call is read by programs.
const ONE_SPACE: &str = " ";
const MAX_BYTES: usize = 1 << 20;
const MAX_NESTING: usize = 64;
const MAX_PARTS: usize = 1 << 13;
/// Strings of a choice.
pub const MAX_CHOICES: usize = 1024;
