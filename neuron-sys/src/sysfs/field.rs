//! One file, one value, and the ways in which there is none.
//!
//! Invariant: a read takes [`MAX_BYTES`] at most, never waits (only plain files are opened) and never fails otherwise than
//! by a variant of [`Field`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// What a file gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field<T> {
    /// Its value.
    Value(T),
    /// There is no such file.
    Absent,
    /// This user may not read it.
    Denied,
    /// It cannot be read, for another reason.
    Failed(String),
    /// It holds something else than was expected: its beginning.
    Garbage(String),
}

impl<T> Field<T> {
    /// The value if there is one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Field::Value(value) => Some(value),
            _ => None,
        }
    }

    /// The value if there is one.
    pub fn ok(self) -> Option<T> {
        match self {
            Field::Value(value) => Some(value),
            _ => None,
        }
    }

    /// Why there is no value, in words; none if there is one.
    pub fn problem(&self) -> Option<String> {
        match self {
            Field::Value(_) => None,
            Field::Absent => Some("absent".to_owned()),
            Field::Denied => Some("not readable by this user".to_owned()),
            Field::Failed(reason) => Some(format!("not readable: {reason}")),
            Field::Garbage(text) => Some(format!("not understood: {text:?}")),
        }
    }

    /// Another value, where there is one.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Field<U> {
        self.split().map_or_else(|none| none, |value| Field::Value(f(value)))
    }

    /// The value, or the same lack of one of another type.
    fn split<U>(self) -> Result<T, Field<U>> {
        match self {
            Field::Value(value) => Ok(value),
            Field::Absent => Err(Field::Absent),
            Field::Denied => Err(Field::Denied),
            Field::Failed(reason) => Err(Field::Failed(reason)),
            Field::Garbage(text) => Err(Field::Garbage(text)),
        }
    }
}

impl Field<String> {
    /// What `parse` makes of the text; garbage if nothing.
    pub fn parse<T>(self, parse: impl FnOnce(&str) -> Option<T>) -> Field<T> {
        match self.split() {
            Ok(text) => parse(&text).map_or_else(|| Field::Garbage(beginning(&text)), Field::Value),
            Err(none) => none,
        }
    }
}

/// The file's text, blanks at both ends removed.
pub fn text(path: &Path) -> Field<String> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Field::Absent,
        ErrorKind::PermissionDenied => Field::Denied,
        _ => Field::Failed(error.to_string()),
    };
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(found) if found.is_dir() => return Field::Absent,
        Ok(_) => return Field::Failed("not a plain file".to_owned()),
        Err(error) => return failed(error),
    }
    let mut bytes = vec![];
    if let Err(error) = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
        return failed(error);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Field::Value(text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()),
        Err(error) => Field::Garbage(beginning(&String::from_utf8_lossy(error.as_bytes()))),
    }
}

/// A text of one line that is not empty and has no control characters: a name.
pub fn line(path: &Path) -> Field<String> {
    text(path).parse(|text| {
        let plain = !text.is_empty() && text.len() <= 256 && !text.chars().any(char::is_control);
        plain.then(|| text.to_owned())
    })
}

/// A whole number.
pub fn number(path: &Path) -> Field<u64> {
    text(path).parse(|text| text.parse().ok())
}

/// Entries `PREFIX{number}` of a directory, by number: at most [`MAX_ENTRIES`].
pub(super) fn numbered(dir: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let number = |name: &str| {
        let digits = name.strip_prefix(prefix)?;
        let number: u32 = digits.parse().ok()?;
        (number.to_string() == digits).then_some(number) // no +1, no 01
    };
    let found: BTreeMap<u32, PathBuf> =
        names(dir).into_iter().filter_map(|name| Some((number(&name)?, dir.join(name)))).collect();
    found.into_iter().collect()
}

/// The directory's names that are text, sorted: at most [`MAX_ENTRIES`].
pub(super) fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    let mut names: Vec<_> =
        entries.take(MAX_ENTRIES).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// A text's first characters, for a message.
pub(super) fn beginning(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// What is read of a file; the largest that the driver writes are a page.
pub const MAX_BYTES: u64 = 1 << 16;
/// What is read of a directory; the largest, `/proc`, has one per process.
pub const MAX_ENTRIES: usize = 1 << 16;
const SHOWN: usize = 60;
