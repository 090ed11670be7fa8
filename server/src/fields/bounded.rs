//! Reads the JSON of a body, and no further than its limits.
//!
//! Invariant: what a limit refuses is refused at the first entry beyond it, so that a body costs what may be in it, not what
//! somebody has put there; what is within limits is read as serde_json reads it.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::chat::MAX_DOCUMENTS;
use crate::chat::messages::MAX_MESSAGES;
use crate::error::ApiError;
use crate::params::{MAX_BAD_WORDS, MAX_BIASES, MAX_STOP_IDS, MAX_STOPS};
use crate::tools::MAX_TOOLS;

/// Entries that a field of a body may have, in an array or an object, where it has a limit of its own.
const MOST: [(&str, usize); 8] = [
    ("messages", MAX_MESSAGES),
    ("documents", MAX_DOCUMENTS),
    ("tools", MAX_TOOLS),
    ("logit_bias", MAX_BIASES),
    ("bad_words", MAX_BAD_WORDS),
    ("stop", MAX_STOPS),
    ("stop_sequences", MAX_STOPS),
    ("stop_token_ids", MAX_STOP_IDS),
];

/// The value of a JSON text.
///
/// # Errors
/// A field that is beyond its limit, by its name; else `invalid` of what serde_json says.
pub fn read(text: &[u8], invalid: impl FnOnce(serde_json::Error) -> ApiError) -> Result<Value, ApiError> {
    let refusal = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_slice(text);
    let read = Part { place: Place::Body, refusal: &refusal }.deserialize(&mut json);
    let read = read.and_then(|value| json.end().map(|()| value));
    read.map_err(|error| refusal.take().unwrap_or_else(|| invalid(error)))
}

/// Where in a body a value stands.
#[derive(Clone, Copy)]
enum Place {
    Body,
    /// A field with a limit.
    Limited(&'static str, usize),
    Within,
}

/// A value that is to be read.
#[derive(Clone, Copy)]
struct Part<'a> {
    place: Place,
    /// Why it was not read on.
    refusal: &'a RefCell<Option<ApiError>>,
}

impl Part<'_> {
    fn of(self, field: &str) -> Self {
        let place = match self.place {
            Place::Body => MOST.iter().find(|(name, _)| *name == field),
            _ => None,
        };
        Part { place: place.map_or(Place::Within, |(name, most)| Place::Limited(name, *most)), ..self }
    }

    /// Refuses an entry after `count` others.
    fn check<E: Error>(self, count: usize) -> Result<(), E> {
        match self.place {
            Place::Limited(name, most) if count >= most => {
                let message = format!("{name} has more than {most} entries, which is the limit");
                *self.refusal.borrow_mut() = Some(ApiError::value(name, message));
                Err(E::custom("beyond a limit"))
            }
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.place {
            // Without limits: serde_json's own.
            Place::Within => serde::Deserialize::deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = entries.next_element()? {
            self.check(values.len())?;
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let (mut map, mut count) = (Map::new(), 0);
        while let Some(name) = entries.next_key::<String>()? {
            // Names that come twice are entries too, though the last of them counts.
            self.check(count)?;
            count += 1;
            let value = entries.next_value_seed(self.of(&name))?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(text: &str) -> Result<Value, ApiError> {
        read(text.as_bytes(), |error| ApiError::value("body", error.to_string()))
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_before_it_is_read_on() {
        for (name, most) in MOST {
            let list = |count: usize| format!("{{\"{name}\": [{}0", "0,".repeat(count - 1));
            assert_eq!(of(&format!("{}]}}", list(most))), Ok(json!({name: vec![0; most]})));
            // Nothing ends it: what follows the limit was not looked at.
            let refused = of(&list(most + 1)).unwrap_err();
            assert_eq!((refused.status.as_u16(), refused.param.as_deref()), (400, Some(name)));
            assert!(refused.message.contains(&format!("more than {most} ")), "{refused:?}");
            let keys: String = (0..=most).map(|key| format!("\"{key}\": 1,")).collect();
            assert_eq!(of(&format!("{{\"{name}\": {{{keys}")).unwrap_err(), refused);
            let same = "\"1\": 1,".repeat(most + 1);
            assert_eq!(of(&format!("{{\"{name}\": {{{same}")).unwrap_err(), refused);
            // A limit is the field's, not that of one within another of its name.
            assert!(of(&format!("{{\"a\": {}]}}}}", list(most + 1))).is_ok());
        }
    }

    /// Any value of JSON.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 40, 4, |inner| {
            let name = prop_oneof![Just("stop".to_owned()), Just("messages".to_owned()), ".{0,3}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((name, inner), 0..4).prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_within_limits_is_read_as_serde_json_reads_it(value in value(), cut in 0.0..1.0_f64) {
            let text = value.to_string();
            prop_assert_eq!(of(&text).unwrap(), serde_json::from_str::<Value>(&text).unwrap());
            let cut: String = text.chars().take((text.chars().count() as f64 * cut) as usize).collect();
            let said = serde_json::from_str::<Value>(&cut).map_err(|error| error.to_string());
            prop_assert_eq!(of(&cut).map_err(|error| error.message), said);
        }

        #[test]
        fn no_bytes_are_too_much_for_it(bytes: Vec<u8>) {
            let said = serde_json::from_slice::<Value>(&bytes).map_err(|error| error.to_string());
            let read = read(&bytes, |error| ApiError::value("body", error.to_string()));
            prop_assert_eq!(read.map_err(|error| error.message), said);
        }
    }
}
