//! What makes minijinja behave as transformers' Jinja environment.
//!
//! Printing (`None`, `True`, lists and dicts as Python writes them), `tojson` as `json.dumps` without HTML escapes, the
//! functions `raise_exception` and `strftime_now`, tests that count strings among sequences, Python's string methods, and
//! the `generation` tag, which marks what a model trains on and renders nothing.

use std::fmt;
use std::time::SystemTime;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::json::{Style, display, dumps};
use super::time::strftime;

/// Sets an environment up.
pub(super) fn install(env: &mut Environment<'static>) {
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&display(value)).map_err(Error::from),
    });
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    // Filters on text take the `str` of whatever they are given.
    env.add_filter("string", |value: &Value| display(value));
    env.add_filter("upper", |value: &Value| display(value).to_uppercase());
    env.add_filter("lower", |value: &Value| display(value).to_lowercase());
    env.add_filter("trim", |value: &Value, chars: Option<String>| match (display(value), chars) {
        (text, None) => strip(&text).to_owned(),
        (text, Some(chars)) => text.trim_matches(|c| chars.contains(c)).to_owned(),
    });
    let padding = [
        ("indent", Value::from_function(minijinja::filters::indent)),
        ("batch", Value::from_function(minijinja::filters::batch)),
        ("slice", Value::from_function(minijinja::filters::slice)),
    ];
    for (name, filter) in padding {
        env.add_filter(name, move |state: &State, args: Rest<Value>| {
            args.iter().skip(1).try_for_each(bounded)?;
            filter.call(state, &args)
        });
    }
    let format = Value::from_function(minijinja::filters::format);
    env.add_filter("format", move |state: &State, args: Rest<Value>| {
        args.first().map_or(Ok(()), bounded_format)?;
        format.call(state, &args)
    });
    // An undefined value is an empty sequence.
    for name in ["length", "count"] {
        env.add_filter(name, |value: &Value| match value.kind() {
            ValueKind::Undefined => Ok(0),
            _ => minijinja::filters::length(value),
        });
    }
    let is_sequence =
        |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined);
    env.add_test("sequence", is_sequence);
    env.add_test("iterable", move |v: &Value| is_sequence(v) || v.kind() == ValueKind::Iterable);
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let message = display(message);
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", |format: &str| strftime(SystemTime::now(), format));
}

/// `strftime_now` at a fixed time.
pub(super) fn strftime_at(now: SystemTime) -> Value {
    Value::from_function(move |format: &str| strftime(now, format))
}

/// What rendering fails with where the engine panics.
pub(super) fn broken() -> Error {
    Error::new(ErrorKind::InvalidOperation, "the template engine gave up")
}

/// The message of `raise_exception`, if that is why rendering failed.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = next {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Some(message.clone());
        }
        next = cause.source();
    }
    None
}

#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn tojson(value: &Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<Value, Error> {
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii).unwrap_or(false);
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) => Some(" ".repeat(usize::try_from(width).unwrap_or(0).min(MAX_INDENT))),
    };
    let separators = match kwargs.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    dumps(value, &Style { indent, ensure_ascii, sort_keys, separators }).map(Value::from)
}

/// Widest indentation of `tojson`.
const MAX_INDENT: usize = 64;

/// Refuses widths and counts that the engine would allocate without looking.
fn bounded(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number if f64::try_from(value.clone()).is_ok_and(|x| x > MAX_COUNT) => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("{value} is too large a width or count")))
        }
        // Keyword arguments.
        ValueKind::Map => value.try_iter()?.try_for_each(|key| value.get_item(&key).and_then(|inner| bounded(&inner))),
        _ => Ok(()),
    }
}

/// Refuses format strings with widths of more than five digits.
fn bounded_format(format: &Value) -> Result<(), Error> {
    let longest = format.as_str().into_iter().flat_map(|s| s.split(|c: char| !c.is_ascii_digit())).map(str::len).max();
    match longest {
        Some(6..) => Err(Error::new(ErrorKind::InvalidOperation, "the format string has too large a width")),
        _ => Ok(()),
    }
}

/// Largest width or count of filters that pad.
const MAX_COUNT: f64 = 100_000.0;

/// Python's methods. White space is Python's: `str.strip` of pycompat leaves U+001C to U+001F.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), []) = (value.as_str(), args) {
        match name {
            "strip" => return Ok(strip(text).into()),
            "lstrip" => return Ok(lstrip(text).into()),
            "rstrip" => return Ok(text.trim_end_matches(is_space).into()),
            _ => {}
        }
    }
    if name == "format" {
        bounded_format(value)?;
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// `str.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.lstrip()`.
pub(super) fn lstrip(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// `str.isspace` of one character.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Rewrites what the engine does not know or does wrong: `{% generation %}` and `{% endgeneration %}` become an `if` that
/// is always true, and `[::-1]` becomes the filter `reverse` (the engine panics on an empty list).
pub(super) fn prepare(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((at, close)) = next_tag(rest) {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let Some(end) = tag.find(close) else {
            rest = tag;
            continue;
        };
        let inside = &tag[..end];
        match inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&inside.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&inside.replacen("endgeneration", "endif", 1)),
            _ => push_reversed(inside, &mut out),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// Position of the next tag, and what ends it.
fn next_tag(text: &str) -> Option<(usize, &'static str)> {
    text.match_indices('{').find_map(|(at, _)| {
        let close = match text.as_bytes().get(at + 1)? {
            b'%' => "%}",
            b'{' => "}}",
            _ => return None,
        };
        Some((at, close))
    })
}

fn push_reversed(mut expression: &str, out: &mut String) {
    while let Some((before, after)) = expression.split_once("[::-1]") {
        out.push_str(before);
        // What follows a filter's name would be read as its arguments.
        out.push_str(if after.starts_with(['.', '[', '(']) { "[::-1]" } else { "|reverse" });
        expression = after;
    }
    out.push_str(expression);
}
