//! A line of OpenAI's batch format, read; and the names that lines have.

use std::collections::HashSet;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A request of the input.
#[derive(Debug, PartialEq)]
pub struct Job {
    /// The line's name.
    pub custom_id: String,
    /// What is asked.
    pub url: String,
    /// How.
    pub body: Map<String, Value>,
}

/// A line that is no request.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// The line's name, as far as it has one.
    pub custom_id: Option<String>,
    /// What is wrong, for programs.
    pub code: &'static str,
    /// What is wrong, for people.
    pub message: String,
}

impl Job {
    /// Reads a line.
    pub fn read(line: &[u8]) -> Result<Job, Refused> {
        let refused = |custom_id: Option<&str>, code, message: String| {
            Err(Refused { custom_id: custom_id.map(str::to_owned), code, message })
        };
        let mut map = match serde_json::from_slice(line) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return refused(None, "invalid_json", "the line is no JSON object".into()),
            Err(error) => return refused(None, "invalid_json", format!("the line is no JSON: {error}")),
        };
        let custom_id = match map.remove("custom_id") {
            Some(Value::String(id)) if !id.is_empty() && id.len() <= MAX_ID => id,
            _ => {
                let message = format!("custom_id must be a string of 1 to {MAX_ID} bytes");
                return refused(None, "invalid_custom_id", message);
            }
        };
        let id = Some(&*custom_id);
        if map.get("method").and_then(Value::as_str) != Some("POST") {
            return refused(id, "invalid_method", "method must be \"POST\"".into());
        }
        let url = match map.remove("url") {
            Some(Value::String(url)) => url,
            _ => return refused(id, "invalid_url", "url must be a string such as \"/v1/chat/completions\"".into()),
        };
        match map.remove("body") {
            Some(Value::Object(body)) => Ok(Job { custom_id, url, body }),
            _ => refused(id, "invalid_body", "body must be an object".into()),
        }
    }
}

/// Names that were met, 16 bytes each: a million of them take some 50 MB.
#[derive(Debug, Default)]
pub struct Names(HashSet<[u8; 16]>);

impl Names {
    /// Takes a name in; `false` where it was there.
    pub fn insert(&mut self, name: &str) -> bool {
        self.0.insert(short(name))
    }

    /// Takes a name out; `false` where there was none.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(&short(name))
    }
}

/// Half a hash: two names of a file share it by no chance that matters, and on purpose nobody finds them.
fn short(name: &str) -> [u8; 16] {
    let hash = Sha256::digest(name);
    std::array::from_fn(|i| hash[i])
}

/// OpenAI's clients use a few dozen bytes.
const MAX_ID: usize = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_request_is_refused_by_its_part() {
        let cases = [
            ("{", None, "invalid_json"),
            ("[]", None, "invalid_json"),
            ("{}", None, "invalid_custom_id"),
            (r#"{"custom_id": ""}"#, None, "invalid_custom_id"),
            (r#"{"custom_id": 3}"#, None, "invalid_custom_id"),
            (r#"{"custom_id": "a"}"#, Some("a"), "invalid_method"),
            (r#"{"custom_id": "a", "method": "GET", "url": "/", "body": {}}"#, Some("a"), "invalid_method"),
            (r#"{"custom_id": "a", "method": "POST", "body": {}}"#, Some("a"), "invalid_url"),
            (r#"{"custom_id": "a", "method": "POST", "url": "/", "body": []}"#, Some("a"), "invalid_body"),
        ];
        for (line, id, code) in cases {
            let refused = Job::read(line.as_bytes()).expect_err(line);
            assert_eq!((refused.custom_id.as_deref(), refused.code), (id, code), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_refused(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Job::read(&line);
        }

        #[test]
        fn names_are_as_many_as_they_differ(names in prop::collection::vec("[ab]{0,3}", 0..30)) {
            let (mut short, mut whole) = (Names::default(), std::collections::BTreeSet::new());
            for name in names {
                prop_assert_eq!(short.insert(&name), whole.insert(name));
            }
        }
    }
}
