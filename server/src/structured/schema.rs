//! JSON schemas as clients send them, made fit to be grammars: references that hold where a schema is put into another one, and
//! objects that end.
//!
//! Invariant: what a changed schema describes, the one that was sent describes too. Only what stands where a schema stands is
//! touched: names of properties and values of `enum`, `const` and `default` are the client's.

use serde_json::{Map, Value};

/// Makes the references of a schema hold that is put at `at` (`#/...`) of another one.
pub fn rebase(schema: &mut Value, at: &str) {
    each(schema, &mut |map| {
        if let Some(Value::String(reference)) = map.get_mut("$ref")
            && let Some(rest) = reference.strip_prefix('#')
            && (rest.is_empty() || rest.starts_with('/'))
        {
            *reference = format!("{at}{rest}");
        }
    });
}

/// Lets no more properties come than an object lists, where it says nothing of others, as xgrammar and llama.cpp do: small models
/// add some for ever. Where parts of a schema hold together nothing is closed, for what one of them does not list another may
/// demand.
pub fn close(schema: &mut Value) {
    let mut combined = false;
    each(schema, &mut |map| combined |= combines(map));
    if combined {
        return;
    }
    each(schema, &mut |map| {
        let Some(Value::Object(listed)) = map.get("properties") else { return };
        let unlisted = |name: &Value| name.as_str().is_none_or(|name| !listed.contains_key(name));
        let demands = match map.get("required") {
            Some(Value::Array(names)) => names.iter().any(unlisted),
            Some(_) => true,
            None => false,
        };
        let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
        let fits = usize::try_from(least).is_ok_and(|least| least <= listed.len());
        if !demands && fits && !map.contains_key("additionalProperties") && !map.contains_key("patternProperties") {
            map.insert("additionalProperties".into(), false.into());
        }
    });
}

/// Whether more than one part of a schema holds for the same value.
fn combines(map: &Map<String, Value>) -> bool {
    let parts =
        ["properties", "$ref", "allOf", "anyOf", "oneOf"].iter().filter(|name| map.contains_key(**name)).count();
    let several = map.get("allOf").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    parts > 1 || several || COMBINE.iter().any(|name| map.contains_key(*name))
}

/// Calls `change` with a schema that is an object and with those within it.
fn each(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(map) = schema else { return };
    change(map);
    for (name, value) in map {
        match (name.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                Value::Object(named),
            ) => {
                named.values_mut().for_each(|schema| each(schema, change));
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(all)) => {
                all.iter_mut().for_each(|schema| each(schema, change));
            }
            (name, one @ Value::Object(_)) if ONE.contains(&name) => each(one, change),
            _ => {}
        }
    }
}

/// Where one schema stands.
const ONE: [&str; 11] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
];
/// What holds beside what else a schema says of an object.
const COMBINE: [&str; 9] = [
    "not",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(mut schema: Value) -> Value {
        close(&mut schema);
        schema
    }

    #[test]
    fn objects_that_list_their_properties_are_closed_wherever_they_stand() {
        let object = json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]});
        let end = json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false});
        assert_eq!(closed(object.clone()), end);
        for (open, shut) in [
            (json!({"items": object}), json!({"items": end})),
            (json!({"anyOf": [object, {"type": "null"}]}), json!({"anyOf": [end, {"type": "null"}]})),
            (json!({"$ref": "#/$defs/a", "$defs": {"a": object}}), json!({"$ref": "#/$defs/a", "$defs": {"a": end}})),
            (json!({"allOf": [object]}), json!({"allOf": [end]})),
            (json!({"additionalProperties": object}), json!({"additionalProperties": end})),
        ] {
            assert_eq!(closed(open), shut);
        }
    }

    #[test]
    fn what_would_be_another_schema_stays_as_it_is() {
        let object = json!({"properties": {"x": {}}});
        for schema in [
            json!({"type": "object"}),
            json!({"properties": {"x": {}}, "additionalProperties": true}),
            json!({"properties": {"x": {}}, "additionalProperties": {"type": "string"}}),
            json!({"properties": {"x": {}}, "patternProperties": {"^y": {}}}),
            json!({"properties": {"x": {}}, "required": ["x", "y"]}),
            json!({"properties": {"x": {}}, "minProperties": 2}),
            json!({"allOf": [object, {"properties": {"y": {}}}]}),
            json!({"properties": {"x": {}}, "anyOf": [{"required": ["x"]}, {"required": ["y"]}]}),
            json!({"$ref": "#/$defs/a", "properties": {"y": {}}, "$defs": {"a": object}}),
            json!({"not": object}),
            json!({"properties": {"x": {}}, "if": {}, "then": {}}),
            json!({"enum": [object]}),
            json!({"default": object, "const": object, "examples": [object]}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
        // A property may have any name.
        let named =
            json!({"properties": {"not": {"enum": [{"properties": {"x": {}}}]}}, "additionalProperties": false});
        assert_eq!(closed(named.clone()), named);
    }

    #[test]
    fn references_follow_a_schema_and_nothing_else_does() {
        let mut schema = json!({"properties": {"$ref": {"$ref": "#/$defs/a"}, "self": {"$ref": "#"}, "far": {"$ref": "http://a/b"}},
            "$defs": {"a": {"const": {"$ref": "#/x"}}}});
        rebase(&mut schema, "#/anyOf/0");
        assert_eq!(
            schema,
            json!({"properties": {"$ref": {"$ref": "#/anyOf/0/$defs/a"}, "self": {"$ref": "#/anyOf/0"}, "far": {"$ref": "http://a/b"}},
                "$defs": {"a": {"const": {"$ref": "#/x"}}}})
        );
    }
}
