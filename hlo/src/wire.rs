//! The protobuf wire format, as much as `HloModuleProto` needs.
//!
//! Written by hand rather than derived: [`crate::encode`] and [`crate::decode`] go straight between bytes and typed
//! operations, so there is no second set of message structs to fill and to check, no generated code, and decoding takes
//! memory in proportion to the input. Nothing recurses: a message is a slice, and its fields are walked.

/// Appends fields to a message.
///
/// Zero numbers, empty strings and empty lists are left out, as proto3 does; what must be present though empty (an empty
/// layout) is written by [`Writer::message`].
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub bytes: Vec<u8>,
}

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn key(&mut self, field: u32, wire: u32) {
        self.varint(u64::from(field << 3 | wire));
    }

    pub(crate) fn int(&mut self, field: u32, value: i64) {
        if value != 0 {
            self.key(field, VARINT);
            self.varint(value as u64); // two's complement, as int64 and int32 are written
        }
    }

    pub(crate) fn size(&mut self, field: u32, value: usize) {
        self.int(field, value as i64); // sizes are below 2^40
    }

    pub(crate) fn flag(&mut self, field: u32, value: bool) {
        self.int(field, i64::from(value));
    }

    pub(crate) fn blob(&mut self, field: u32, value: &[u8]) {
        if !value.is_empty() {
            self.key(field, BYTES);
            self.varint(value.len() as u64);
            self.bytes.extend_from_slice(value);
        }
    }

    pub(crate) fn text(&mut self, field: u32, value: &str) {
        self.blob(field, value.as_bytes());
    }

    /// A packed list of integers.
    pub(crate) fn ints(&mut self, field: u32, values: impl IntoIterator<Item = i64>) {
        let mut packed = Writer::default();
        for value in values {
            packed.varint(value as u64);
        }
        self.blob(field, &packed.bytes);
    }

    /// A packed list of sizes.
    pub(crate) fn sizes(&mut self, field: u32, values: impl IntoIterator<Item = usize>) {
        self.ints(field, values.into_iter().map(|n| n as i64));
    }

    /// A message, written even where it is empty.
    pub(crate) fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.key(field, BYTES);
        self.varint(inner.bytes.len() as u64);
        self.bytes.append(&mut inner.bytes);
    }

    /// One entry of a `map<string, string>`.
    pub(crate) fn entry(&mut self, field: u32, key: &str, value: &str) {
        self.message(field, |w| {
            w.text(1, key);
            w.text(2, value);
        });
    }
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// A varint, or a fixed-width number.
    Number(u64),
    /// A string, a message, a packed list.
    Bytes(&'a [u8]),
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The message ends inside a number or inside a field.
    #[error("the bytes end inside a field")]
    Truncated,
    /// A number of more than ten bytes.
    #[error("a number runs on for more than ten bytes")]
    Varint,
    /// Groups and reserved codes.
    #[error("wire type {0} is not used by hlo")]
    WireType(u8),
    /// A number where bytes belong, or the reverse.
    #[error("field {0} has the wrong wire type")]
    Kind(u32),
    /// A string that is not UTF-8.
    #[error("field {0} is not UTF-8")]
    Text(u32),
}

/// Walks the fields of a message.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for i in 0..10 {
            let (&byte, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
            self.rest = rest;
            // Bits beyond the 64th are dropped, as other readers do.
            value |= u64::from(byte & 0x7f).checked_shl(7 * i).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(WireError::Varint)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let len = usize::try_from(len).map_err(|_| WireError::Truncated)?;
        let (head, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), WireError> {
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).map_err(|_| WireError::Varint)?;
        let value = match (key & 7) as u32 {
            VARINT => Value::Number(self.varint()?),
            BYTES => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            FIXED32 => {
                let raw = self.take(4)?;
                Value::Number(raw.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
            }
            FIXED64 => {
                let raw = self.take(8)?;
                Value::Number(raw.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
            }
            other => return Err(WireError::WireType(other as u8)),
        };
        Ok((field, value))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Value<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.field();
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

impl<'a> Value<'a> {
    pub(crate) fn int(self, field: u32) -> Result<i64, WireError> {
        match self {
            Value::Number(n) => Ok(n as i64), // two's complement
            Value::Bytes(_) => Err(WireError::Kind(field)),
        }
    }

    pub(crate) fn bytes(self, field: u32) -> Result<&'a [u8], WireError> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Number(_) => Err(WireError::Kind(field)),
        }
    }

    pub(crate) fn text(self, field: u32) -> Result<String, WireError> {
        let bytes = self.bytes(field)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| WireError::Text(field))
    }

    /// Appends a repeated integer, packed or not.
    pub(crate) fn ints(self, out: &mut Vec<i64>) -> Result<(), WireError> {
        match self {
            Value::Number(n) => out.push(n as i64),
            Value::Bytes(bytes) => {
                let mut packed = Reader::new(bytes);
                while !packed.rest.is_empty() {
                    out.push(packed.varint()? as i64);
                }
            }
        }
        Ok(())
    }
}

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_round_trip() {
        let values = [0, 1, 127, 128, i64::from(u32::MAX), i64::MAX, -1, i64::MIN];
        let mut w = Writer::default();
        w.ints(3, values);
        w.int(4, -7);
        w.text(5, "é");
        let fields: Vec<_> = Reader::new(&w.bytes).map(Result::unwrap).collect();
        let mut got = vec![];
        fields[0].1.ints(&mut got).unwrap();
        assert_eq!(got, values);
        assert_eq!(fields[1].1.int(4), Ok(-7));
        assert_eq!(fields[2].1.text(5).unwrap(), "é");
        assert_eq!(fields[2].1.int(5), Err(WireError::Kind(5)));
    }

    #[test]
    fn broken_bytes_are_errors() {
        let all = |bytes: &[u8]| Reader::new(bytes).try_for_each(|f| f.map(|_| ()));
        assert_eq!(all(&[0x0a, 5, 1]), Err(WireError::Truncated));
        assert_eq!(all(&[0xff; 11]), Err(WireError::Varint));
        assert_eq!(all(&[0x0b]), Err(WireError::WireType(3)));
        assert_eq!(all(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Err(WireError::Truncated));
    }
}
