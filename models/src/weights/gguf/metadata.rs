//! Typed metadata of a GGUF file.
//!
//! Strings and arrays stay in the file and are decoded when asked for: a vocabulary of 150 000 tokens costs nothing until
//! a tokenizer wants it. Invariant: every range lies within the file and holds what its type says.

use std::collections::HashMap;
use std::ops::Range;

use crate::config::ConfigError;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// Where the bytes of a string lie.
    String(Range<usize>),
    /// Where the elements of an array lie.
    Array(Array),
}

/// An array within the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Type of the elements.
    pub element: Kind,
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub span: Range<usize>,
}

/// Type of a value (`gguf_type` in gguf.h), arrays aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

impl Kind {
    /// Type by its number in the file; 9 is the array.
    pub fn from_id(id: u32) -> Option<Kind> {
        use Kind::*;
        let kinds = [U8, I8, U16, I16, U32, I32, F32, Bool, String];
        match id {
            10 => Some(U64),
            11 => Some(I64),
            12 => Some(F64),
            _ => usize::try_from(id).ok().and_then(|i| kinds.get(i).copied()),
        }
    }

    /// Bytes of a value; `None` for strings.
    pub fn size(self) -> Option<usize> {
        use Kind::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String => None,
        }
    }

    /// Decodes one value of `size()` little-endian bytes; `None` for a string or a boolean that is neither 0 nor 1.
    pub fn decode(self, bytes: &[u8]) -> Option<Value> {
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        // The sign is extended by shifting up and down again.
        let signed = || {
            let shift = 64 - 8 * u32::try_from(bytes.len()).unwrap_or(8);
            unsigned.cast_signed().checked_shl(shift).unwrap_or(0) >> shift.min(63)
        };
        use Kind::*;
        Some(match self {
            U8 | U16 | U32 | U64 => Value::Unsigned(unsigned),
            I8 | I16 | I32 | I64 => Value::Signed(signed()),
            F32 => Value::Float(f64::from(f32::from_le_bytes(bytes.try_into().ok()?))),
            F64 => Value::Float(f64::from_le_bytes(wide)),
            Bool if unsigned <= 1 => Value::Bool(unsigned == 1),
            Bool | String => return None,
        })
    }
}

/// The metadata of a file, beside the file's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    pub(super) entries: &'a HashMap<String, Value>,
    pub(super) bytes: &'a [u8],
}

impl<'a> Metadata<'a> {
    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.entries.keys().map(String::as_str)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.entries.get(key)
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(key, "a string", |v| match v {
            Value::String(span) => std::str::from_utf8(self.bytes.get(span.clone())?).ok(),
            _ => None,
        })
    }

    /// A whole number, of any integer type.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        self.typed(key, "a whole number", Value::as_unsigned)
    }

    /// A number of any type.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number", |v| match v {
            Value::Float(x) => Some(*x),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(key, "a boolean", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    /// A token id.
    pub fn token(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        // -1 (or the same bits unsigned) is how some files write "none".
        let none = |v: &Value| matches!(v, Value::Signed(-1) | Value::Unsigned(0xffff_ffff));
        if self.get(key).is_some_and(none) {
            return Ok(None);
        }
        self.typed(key, "a token id", |v| v.as_unsigned().and_then(|n| u32::try_from(n).ok()))
    }

    /// An array of strings; empty where absent.
    pub fn strings(&self, key: &str) -> Result<Vec<&'a str>, ConfigError> {
        let list = self.typed(key, "an array of UTF-8 strings", |v| {
            let Value::Array(array @ Array { element: Kind::String, .. }) = v else { return None };
            let mut rest = self.bytes.get(array.span.clone())?;
            let mut strings = Vec::with_capacity(array.count);
            while let Some((len, tail)) = rest.split_first_chunk::<8>() {
                let (string, tail) = tail.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
                strings.push(std::str::from_utf8(string).ok()?);
                rest = tail;
            }
            Some(strings)
        })?;
        Ok(list.unwrap_or_default())
    }

    /// An array of numbers or booleans, element by element; empty where absent.
    pub fn numbers(&self, key: &str) -> Result<Vec<Value>, ConfigError> {
        let list = self.typed(key, "an array of numbers", |v| {
            let Value::Array(Array { element, span, .. }) = v else { return None };
            self.bytes.get(span.clone())?.chunks_exact(element.size()?).map(|b| element.decode(b)).collect()
        })?;
        Ok(list.unwrap_or_default())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(ConfigError::Type { key: key.to_owned(), expected, value: self.show(value) }),
        }
    }

    /// The value for an error message, shortened.
    pub fn show(&self, value: &Value) -> String {
        match value {
            Value::Unsigned(n) => n.to_string(),
            Value::Signed(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Bool(b) => b.to_string(),
            Value::Array(a) => format!("an array of {} {:?}", a.count, a.element),
            Value::String(span) => {
                let bytes = self.bytes.get(span.clone()).unwrap_or_default();
                format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]))
            }
        }
    }
}

impl Value {
    /// The value as a number that cannot be negative.
    pub fn as_unsigned(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Whether the value switches a feature off.
    pub fn is_neutral(&self) -> bool {
        match self {
            Value::Unsigned(n) => *n == 0,
            Value::Signed(n) => *n == 0,
            Value::Float(x) => *x == 0.0,
            Value::Bool(b) => !b,
            Value::String(span) => span.is_empty(),
            Value::Array(a) => a.count == 0,
        }
    }
}
