//! Whether a report has the published form.
//!
//! The validator knows the few keywords that the schema uses, and panics on any other: what it does not check, the schema
//! cannot say. The tests of `njoule bench` hold its reports to it too.

use njoule_energy::report::JSON_SCHEMA;
use serde_json::Value;

/// What of `value` is not as `schema` says.
fn errors(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let object = schema.as_object().expect("a schema is an object");
    for (keyword, says) in object {
        let mut wrong = |what: String| found.push(format!("{at}: {what}"));
        match keyword.as_str() {
            "$schema" | "$id" | "title" | "description" | "$defs" => {}
            "$ref" => {
                let name = says.as_str().unwrap().strip_prefix("#/$defs/").expect("a reference into $defs");
                errors(root, &root["$defs"][name], value, at, found);
            }
            "type" => {
                let one = |name: &str| match name {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "number" => value.is_number(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "string" => value.is_string(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("type {other}"),
                };
                let fits = match says {
                    Value::String(name) => one(name),
                    Value::Array(names) => names.iter().any(|name| one(name.as_str().unwrap())),
                    other => panic!("type {other}"),
                };
                if !fits {
                    wrong(format!("{value} is not {says}"));
                }
            }
            "const" if says != value => wrong(format!("{value} is not {says}")),
            "enum" if !says.as_array().unwrap().contains(value) => wrong(format!("{value} is none of {says}")),
            "minimum" if value.as_f64().is_some_and(|v| v < says.as_f64().unwrap()) => {
                wrong(format!("{value} < {says}"))
            }
            "const" | "enum" | "minimum" => {}
            "required" => {
                let Some(value) = value.as_object() else { continue };
                for key in says.as_array().unwrap() {
                    if !value.contains_key(key.as_str().unwrap()) {
                        wrong(format!("{key} is missing"));
                    }
                }
            }
            "properties" => {
                let Some(value) = value.as_object() else { continue };
                for (key, value) in value {
                    match says.get(key) {
                        // Stricter than the schema: what we write is described.
                        None => found.push(format!("{at}: {key} is not described")),
                        Some(schema) => errors(root, schema, value, &format!("{at}.{key}"), found),
                    }
                }
            }
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    errors(root, says, item, &format!("{at}[{i}]"), found);
                }
            }
            other => panic!("keyword {other} is not checked"),
        }
    }
}

/// What of a report is not as its schema says.
pub fn check(report: &Value) -> Vec<String> {
    let schema: Value = serde_json::from_str(JSON_SCHEMA).unwrap();
    let mut found = vec![];
    errors(&schema, &schema, report, "$", &mut found);
    found
}
