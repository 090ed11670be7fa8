//! What a manifest's content is called.
//!
//! Two builds of the same have the same name: what was measured while they were made is left out of it, and kept from
//! change by a sum of its own. Both are of what the manifest says, not of how its text is laid out: blanks and the order of
//! fields do not count, and of a number that is no integer ten digits do.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::digest;

/// The name: of everything but itself, the sum, and what was measured.
pub(super) fn of_content(manifest: &Value) -> String {
    hash(manifest, &|path, key| match path {
        [] => ["id", "checksum"].contains(&key),
        ["modules"] => ["seconds", "peak_bytes"].contains(&key),
        _ => false,
    })
}

/// The sum: of everything but itself.
pub(super) fn of_everything(manifest: &Value) -> String {
    hash(manifest, &|path, key| path.is_empty() && key == "checksum")
}

/// Whether a field is left out, by the fields that lead to it.
type LeftOut<'a> = dyn Fn(&[&str], &str) -> bool + 'a;

fn hash(value: &Value, left_out: &LeftOut<'_>) -> String {
    let mut hasher = Sha256::new();
    write(value, &mut vec![], left_out, &mut hasher);
    digest::hex(&hasher.finalize())
}

fn write<'a>(value: &'a Value, path: &mut Vec<&'a str>, left_out: &LeftOut<'_>, to: &mut Sha256) {
    match value {
        Value::Object(fields) => {
            to.update(b"{");
            for (key, value) in sorted(fields) {
                if left_out(path, key) {
                    continue;
                }
                text(key, to);
                path.push(key);
                write(value, path, left_out, to);
                path.pop();
            }
            to.update(b"}");
        }
        Value::Array(items) => {
            to.update(b"[");
            items.iter().for_each(|item| write(item, path, left_out, to));
            to.update(b"]");
        }
        Value::String(string) => text(string, to),
        Value::Number(number) => {
            let whole = |x: &f64| x.fract() == 0.0 && x.abs() < EXACT;
            let digits = match (number.is_f64(), number.as_f64()) {
                // As another program may have written it.
                (true, Some(x)) if whole(&x) => format!("{x:.0}"),
                (true, Some(x)) => format!("{x:.9e}"),
                _ => number.to_string(),
            };
            to.update(b"#");
            to.update(digits);
            to.update(b";");
        }
        Value::Bool(true) => to.update(b"t"),
        Value::Bool(false) => to.update(b"f"),
        Value::Null => to.update(b"n"),
    }
}

/// Its length stands before it: no two sequences of texts are one.
fn text(string: &str, to: &mut Sha256) {
    to.update(b"\"");
    to.update((string.len() as u64).to_le_bytes());
    to.update(string);
}

fn sorted(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = fields.iter().collect();
    all.sort_unstable_by_key(|(key, _)| *key);
    all
}

/// Below, every integer is a float.
const EXACT: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order_and_spelling_do_not_count_and_everything_else_does() {
        let read = |text: &str| of_content(&serde_json::from_str(text).unwrap());
        let one = read(r#"{"a": 1.0, "b": [{"c": 0.1, "d": "x"}]}"#);
        assert_eq!(one, read(r#"{"b":[{"d":"x","c":1e-1}],"a":1}"#));
        for other in [
            r#"{"a": 1.0, "b": [{"c": 0.2, "d": "x"}]}"#,
            r#"{"a": 1.0, "b": [[{"c": 0.1, "d": "x"}]]}"#,
            r#"{"a": 1.0, "b": [{"c": 0.1}, {"d": "x"}]}"#,
            r#"{"a": "1", "b": [{"c": 0.1, "d": "x"}]}"#,
            r#"{"a": 1.0, "b": [{"c": 0.1, "d": "x", "e": null}]}"#,
        ] {
            assert_ne!(one, read(other), "{other}");
        }
    }

    #[test]
    fn what_was_measured_is_in_the_sum_alone() {
        let manifest = |seconds: f64, plan: f64| json!({"id": "", "plan": {"seconds": plan}, "modules": [{"name": "m", "seconds": seconds, "peak_bytes": 3}]});
        assert_eq!(of_content(&manifest(1.5, 1.0)), of_content(&manifest(2.5, 1.0)));
        assert_ne!(of_everything(&manifest(1.5, 1.0)), of_everything(&manifest(2.5, 1.0)));
        assert_ne!(of_content(&manifest(1.5, 1.0)), of_content(&manifest(1.5, 2.0)));
    }
}
