//! What dispatch wants to know of a body: how its prompt begins, its cache salt, and whether it is to be streamed.
//!
//! Invariant: any bytes give an outline; a body that is no JSON has an empty one, and whoever answers it says so.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The part of a body that dispatch looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The beginning of what the model will read, about.
    pub text: Vec<u8>,
    /// `cache_salt`.
    pub salt: Vec<u8>,
    /// `stream`.
    pub stream: bool,
}

impl Outline {
    /// Of a body.
    pub fn of(body: &[u8]) -> Outline {
        let mut fields = Fields::default();
        let mut json = serde_json::Deserializer::from_slice(body);
        if (&mut fields).deserialize(&mut json).is_err() {
            return Outline::default();
        }
        let mut text = Vec::new();
        // As templates have them.
        for part in [&fields.tools, &fields.system, &fields.messages, &fields.prompt] {
            text.extend_from_slice(&part[..part.len().min(TEXT - text.len())]);
        }
        Outline { text, salt: fields.salt, stream: fields.stream == [1] }
    }
}

#[derive(Default)]
struct Fields {
    tools: Vec<u8>,
    system: Vec<u8>,
    messages: Vec<u8>,
    prompt: Vec<u8>,
    salt: Vec<u8>,
    stream: Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for &mut Fields {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Fields {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let field = match &*name {
                "tools" => &mut self.tools,
                "system" => &mut self.system,
                "messages" => &mut self.messages,
                "prompt" => &mut self.prompt,
                "cache_salt" => &mut self.salt,
                "stream" => &mut self.stream,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            map.next_value_seed(Gather(field))?;
        }
        Ok(())
    }
}

/// Appends the scalars of a value, up to [`TEXT`] bytes.
struct Gather<'a>(&'a mut Vec<u8>);

impl Gather<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let room = TEXT.saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl<'de> DeserializeSeed<'de> for Gather<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Gather<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("any value")
    }

    fn visit_str<E>(mut self, text: &str) -> Result<(), E> {
        self.put(text.as_bytes());
        Ok(())
    }

    fn visit_bool<E>(mut self, value: bool) -> Result<(), E> {
        self.put(&[u8::from(value)]);
        Ok(())
    }

    fn visit_u64<E>(mut self, value: u64) -> Result<(), E> {
        self.put(&value.to_le_bytes());
        Ok(())
    }

    fn visit_i64<E>(mut self, value: i64) -> Result<(), E> {
        self.put(&value.to_le_bytes());
        Ok(())
    }

    fn visit_f64<E>(mut self, value: f64) -> Result<(), E> {
        self.put(&value.to_le_bytes());
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Gather(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(Gather(&mut *self.0))?;
        }
        Ok(())
    }
}

/// Bytes of text that are looked at: what differs later shares what a cache can share.
const TEXT: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_gathered_in_the_order_of_templates() {
        assert_eq!(Outline::of(b"{"), Outline::default(), "what is no JSON has none");
        let body = br#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "stream": true,
            "system": "S", "cache_salt": "c", "n": 2}"#;
        let wanted = Outline { text: b"SusertextHi".into(), salt: b"c".into(), stream: true };
        assert_eq!(Outline::of(body), wanted);
        assert_eq!(Outline::of(br#"{"prompt": [1, 2], "stream": 1}"#).text.len(), 16);
        assert!(!Outline::of(br#"{"prompt": "a", "stream": false}"#).stream);
        let long = format!(r#"{{"prompt": "{}", "system": "{}"}}"#, "a".repeat(9000), "b".repeat(3000));
        let text = Outline::of(long.as_bytes()).text;
        assert_eq!((text.len(), text.iter().filter(|byte| **byte == b'b').count()), (TEXT, 3000));
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_outline(body in prop::collection::vec(any::<u8>(), 0..400)) {
            Outline::of(&body);
        }

        #[test]
        fn any_json_has_an_outline(body in r#"[\[\]{}:,"a-c0-9.]{0,80}"#) {
            prop_assert!(Outline::of(body.as_bytes()).text.len() <= TEXT);
            Outline::of(format!(r#"{{"messages": {body}}}"#).as_bytes());
        }
    }
}
