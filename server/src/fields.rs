//! A request's JSON object, field by field, into values that cannot be wrong.
//!
//! Invariant: a value is taken with its type and its limits or refused by its name; nothing is coerced. `null` counts as
//! absent, as OpenAI's schema has it for what is optional; integers are JSON integers, never floats or booleans.

mod bounded;

use std::ops::RangeInclusive;

use memchr::{memchr, memchr_iter, memchr2};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::tenant::Tenant;

/// The fields that have not been taken yet.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    tenant: Tenant,
    metered: bool,
}

#[cfg(test)]
thread_local! {
    /// Names that were asked for on this thread.
    pub static ASKED: std::cell::RefCell<std::collections::BTreeSet<String>> = const { std::cell::RefCell::new(std::collections::BTreeSet::new()) };
}

/// A field or why it is refused.
pub type Field<T> = Result<T, ApiError>;

impl Fields {
    /// The fields of a body, which must be an object.
    pub fn of_body(body: &[u8]) -> Field<Fields> {
        let refuse = |code, message: String| ApiError::new(hyper::StatusCode::BAD_REQUEST, code, message);
        // All commas together are counted much faster than those that are no text.
        if commas(body) >= MOST_VALUES && values(body) > MOST_VALUES {
            return Err(refuse("too_many_values", format!("the body has more than {MOST_VALUES} values")));
        }
        let invalid = |message: String| refuse("invalid_json", message);
        // A mark of the byte order is no part of the text.
        let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        match bounded::read(text, |error| invalid(format!("the body is not JSON: {error}")))? {
            Value::Object(map) => Ok(Fields::of_object(map)),
            _ => Err(invalid("the body is not a JSON object".into())),
        }
    }

    /// The fields of a nested object.
    pub fn of_object(map: Map<String, Value>) -> Fields {
        Fields { map, tenant: Tenant::default(), metered: false }
    }

    /// The same, sent by this one.
    pub fn sent_by(self, tenant: Tenant) -> Fields {
        Fields { tenant, ..self }
    }

    /// The same, of a request that wants to know what it uses.
    pub fn metered(self, metered: bool) -> Fields {
        Fields { metered, ..self }
    }

    /// Whether the answer says what it has used.
    pub fn is_metered(&self) -> bool {
        self.metered
    }

    /// Whom they count for.
    pub fn tenant(&self) -> Tenant {
        self.tenant
    }

    /// The field, unless it is absent or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        ASKED.with_borrow_mut(|asked| asked.insert(name.to_owned()));
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there and not null.
    pub fn has(&self, name: &str) -> bool {
        #[cfg(test)]
        ASKED.with_borrow_mut(|asked| asked.insert(name.to_owned()));
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &'static str) -> Field<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(name, "a boolean", &other)),
        }
    }

    /// A boolean that is off where it is absent.
    pub fn flag(&mut self, name: &'static str) -> Field<bool> {
        Ok(self.boolean(name)?.unwrap_or(false))
    }

    /// An integer within limits.
    pub fn integer(&mut self, name: &'static str, limits: RangeInclusive<i64>) -> Field<Option<i64>> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => integer(name, &value, limits).map(Some),
        }
    }

    /// An integer within limits that starts at 0 or above.
    pub fn count(&mut self, name: &'static str, limits: RangeInclusive<usize>) -> Field<Option<usize>> {
        let most = i64::try_from(*limits.end()).unwrap_or(i64::MAX);
        let least = i64::try_from(*limits.start()).unwrap_or(i64::MAX);
        let value = self.integer(name, least..=most)?;
        // Within limits that are usize.
        Ok(value.map(|value| usize::try_from(value).unwrap_or(usize::MAX)))
    }

    /// A finite number within limits.
    pub fn number(&mut self, name: &'static str, limits: RangeInclusive<f64>) -> Field<Option<f32>> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => number(name, &value, limits).map(Some),
        }
    }

    /// A string.
    pub fn string(&mut self, name: &'static str) -> Field<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(name, "a string", &other)),
        }
    }

    /// An object.
    pub fn object(&mut self, name: &'static str) -> Field<Option<Map<String, Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(name, "an object", &other)),
        }
    }

    /// An array of at most `most` values.
    pub fn array(&mut self, name: &'static str, most: usize) -> Field<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) if values.len() <= most => Ok(Some(values)),
            Some(Value::Array(values)) => {
                Err(ApiError::value(name, format!("{name} has {} entries, the limit is {most}", values.len())))
            }
            Some(other) => Err(wrong_type(name, "an array", &other)),
        }
    }

    /// Token ids of a vocabulary of `vocab`, at most `most`.
    pub fn token_ids(&mut self, name: &'static str, most: usize, vocab: usize) -> Field<Option<Vec<u32>>> {
        let Some(values) = self.array(name, most)? else { return Ok(None) };
        values.iter().map(|value| token_id(name, value, vocab)).collect::<Field<_>>().map(Some)
    }
}

/// A token id of a vocabulary of `vocab`.
pub fn token_id(name: &'static str, value: &Value, vocab: usize) -> Field<u32> {
    let most = i64::try_from(vocab).unwrap_or(i64::MAX) - 1;
    // The limit fits into 32 bits: the engine checked the vocabulary.
    Ok(u32::try_from(integer(name, value, 0..=most)?).unwrap_or(u32::MAX))
}

/// An integer within limits.
pub fn integer(name: &'static str, value: &Value, limits: RangeInclusive<i64>) -> Field<i64> {
    let Value::Number(given) = value else { return Err(wrong_type(name, "an integer", value)) };
    match given.as_i64() {
        Some(number) if limits.contains(&number) => Ok(number),
        None if given.is_f64() => Err(wrong_type(name, "an integer", value)),
        _ => {
            let (least, most) = (limits.start(), limits.end());
            let limits = if *most == i64::MAX { format!("at least {least}") } else { format!("{least} to {most}") };
            Err(ApiError::value(name, format!("{name} is {given}, it must be {limits}")))
        }
    }
}

/// A finite number within limits.
pub fn number(name: &'static str, value: &Value, limits: RangeInclusive<f64>) -> Field<f32> {
    let Some(given) = value.as_f64() else { return Err(wrong_type(name, "a number", value)) };
    if !given.is_finite() || !limits.contains(&given) {
        let (least, most) = (limits.start(), limits.end());
        return Err(ApiError::value(name, format!("{name} is {value}, it must be {least} to {most}")));
    }
    // Rounds; the limits lie within f32.
    Ok(given as f32)
}

/// A value of the wrong type.
pub fn wrong_type(name: &str, wanted: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a float",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    ApiError::value(name.to_owned(), format!("{name} must be {wanted}, not {found}"))
}

fn commas(bytes: &[u8]) -> usize {
    memchr_iter(b',', bytes).count()
}

/// Values of a body, about: what commas part, counted no further than beyond the most. Text is passed over.
fn values(body: &[u8]) -> usize {
    let (mut parting, mut rest) = (0, body);
    while parting < MOST_VALUES
        && let Some(begin) = memchr(b'"', rest)
    {
        parting += commas(&rest[..begin]);
        rest = &rest[begin + 1..];
        while let Some(end) = memchr2(b'"', b'\\', rest) {
            let escape = rest[end] == b'\\';
            rest = rest.get(end + 1 + usize::from(escape)..).unwrap_or_default();
            if !escape {
                break;
            }
        }
    }
    parting + commas(rest) + 1
}

/// Values of a body at most: in memory each takes some forty times what `0,` takes in the body.
const MOST_VALUES: usize = 1 << 19;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of_body(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_body_of_too_many_values_is_refused_before_they_take_memory() {
        assert_eq!(values(br#"{"a": [1, 2, 3], "b,\",": ",,\\", "c": {"d": ","}}"#), 5);
        assert_eq!([values(b""), values(br#"",,"#), values(br#""\"#), values(br#""a,b\\",1"#)], [1, 3, 1, 2]);
        let body = |count: usize| format!("{{\"prompt\": [{}0]}}", "0,".repeat(count - 1));
        assert!(Fields::of_body(body(MOST_VALUES).as_bytes()).is_ok());
        let refused = Fields::of_body(body(MOST_VALUES + 1).as_bytes()).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (400, "too_many_values"));
        assert!(Fields::of_body(format!("{{\"a\": \"{}\"}}", ",".repeat(1 << 20)).as_bytes()).is_ok());
    }

    #[test]
    fn integers_are_json_integers_within_limits() {
        let mut all = fields(json!({"a": 3, "b": 3.0, "c": true, "d": u64::MAX, "e": null, "f": -1, "g": "3"}));
        assert_eq!(all.integer("a", 0..=9), Ok(Some(3)));
        assert_eq!(all.integer("e", 0..=9), Ok(None));
        for name in ["b", "c", "d", "f", "g"] {
            let error = all.integer(name, 0..=i64::MAX).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{error:?}");
        }
    }

    #[test]
    fn numbers_are_finite_and_within_limits() {
        let mut all = fields(json!({"a": 1, "b": 0.5, "c": 1e308, "d": "1", "e": -0.1}));
        assert_eq!(all.number("a", 0.0..=2.0), Ok(Some(1.0)));
        assert_eq!(all.number("b", 0.0..=2.0), Ok(Some(0.5)));
        assert!(all.number("c", 0.0..=2.0).is_err() && all.number("d", 0.0..=2.0).is_err());
        assert!(all.number("e", 0.0..=2.0).is_err());
    }

    #[test]
    fn a_body_is_an_object() {
        for body in [&b""[..], b"[]", b"1", b"{", b"\xff", b"{\"a\": NaN}"] {
            assert_eq!(Fields::of_body(body).unwrap_err().code, "invalid_json");
        }
        assert!(Fields::of_body(b"\xef\xbb\xbf{}").is_ok());
        let deep = "[".repeat(10_000);
        assert_eq!(Fields::of_body(deep.as_bytes()).unwrap_err().code, "invalid_json");
    }
}
