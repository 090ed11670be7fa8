//! A file with a line for every request or step: JSON objects, or CSV where its name ends in `.csv`.
//!
//! Invariant: all lines of a file have the same fields in the same order; unknown is null, and empty in CSV.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Map, Value};

use super::measure::create;
use crate::verbs::whole::LineFile;

/// Such a file.
pub struct Lines {
    path: PathBuf,
    file: LineFile,
    csv: bool,
    /// Whether CSV has its head.
    begun: bool,
}

impl Lines {
    /// Makes it.
    pub fn make(path: &Path) -> anyhow::Result<Lines> {
        let csv = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"));
        Ok(Lines { path: path.to_owned(), file: LineFile::new(create(path)?), csv, begun: false })
    }

    /// Adds a line. Objects have no place in CSV.
    pub fn write(&mut self, fields: &[(&str, Value)]) -> anyhow::Result<()> {
        self.put(fields).with_context(|| format!("{}: cannot write", self.path.display()))
    }

    /// Everything is in the file by then.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.file.flush().with_context(|| format!("{}: cannot write", self.path.display()))
    }

    fn put(&mut self, fields: &[(&str, Value)]) -> io::Result<()> {
        if !self.csv {
            let object: Map<String, Value> =
                fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
            return self.file.keep(&Value::Object(object).to_string());
        }
        let flat = || fields.iter().filter(|(key, _)| *key != NESTED);
        if !std::mem::replace(&mut self.begun, true) {
            let names: Vec<&str> = flat().map(|(key, _)| *key).collect();
            self.file.keep(&names.join(","))?;
        }
        let values: Vec<String> = flat().map(|(_, value)| field(Some(value))).collect();
        self.file.keep(&values.join(","))
    }
}

/// A value in CSV.
pub fn field(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) if text.contains(['"', ',', '\n', '\r']) => {
            format!("\"{}\"", text.replace('"', "\"\""))
        }
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// The one field that is an object.
pub const NESTED: &str = "energy";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_are_objects_or_csv_by_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let fields = |id: &str| [("id", json!(id)), ("energy", json!({"total_j": 1})), ("total_j", Value::Null)];
        let written = |name: &str| {
            let path = dir.path().join(name);
            let mut lines = Lines::make(&path).unwrap();
            ["a", "b,c"].iter().for_each(|id| lines.write(&fields(id)).unwrap());
            lines.finish().unwrap();
            std::fs::read_to_string(path).unwrap()
        };
        assert_eq!(written("x.csv"), "id,total_j\na,\n\"b,c\",\n");
        let jsonl = written("x.jsonl");
        let first: Value = serde_json::from_str(jsonl.lines().next().unwrap()).unwrap();
        assert_eq!(first, json!({"id": "a", "energy": {"total_j": 1}, "total_j": null}));
        assert_eq!(jsonl.lines().count(), 2);
    }
}
