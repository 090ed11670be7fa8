//! Element types, with their numbers in `xla_data.proto` (PrimitiveType) and their names in HLO text.

use std::fmt;

/// The type of an array's elements.
///
/// `f64`, complex, 16-bit and 4-bit integers are left out: neuronx-cc has none of them, and nothing here emits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// Boolean, one byte.
    Pred,
    /// Signed byte.
    S8,
    /// Unsigned byte.
    U8,
    /// Signed 32-bit integer.
    S32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 64-bit integer: 32-bit on Neuron, so refused there.
    S64,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single.
    F32,
    /// 8-bit float, 4 exponent bits, with infinities, largest 240.
    F8E4M3,
    /// 8-bit float, 4 exponent bits, without infinities, largest 448 (OCP).
    F8E4M3FN,
    /// 8-bit float, 5 exponent bits, with infinities.
    F8E5M2,
}

impl DType {
    /// Every type, in the order of their numbers.
    pub const ALL: [DType; 12] = [
        DType::Pred,
        DType::S8,
        DType::S32,
        DType::S64,
        DType::U8,
        DType::U32,
        DType::F16,
        DType::F32,
        DType::BF16,
        DType::F8E5M2,
        DType::F8E4M3FN,
        DType::F8E4M3,
    ];

    /// PrimitiveType's number.
    pub fn number(self) -> i32 {
        match self {
            DType::Pred => 1,
            DType::S8 => 2,
            DType::S32 => 4,
            DType::S64 => 5,
            DType::U8 => 6,
            DType::U32 => 8,
            DType::F16 => 10,
            DType::F32 => 11,
            DType::BF16 => 16,
            DType::F8E5M2 => 19,
            DType::F8E4M3FN => 20,
            DType::F8E4M3 => 28,
        }
    }

    /// The type of that number, if it is one of ours.
    pub fn from_number(number: i64) -> Option<DType> {
        DType::ALL.into_iter().find(|t| i64::from(t.number()) == number)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::Pred | DType::S8 | DType::U8 | DType::F8E4M3 | DType::F8E4M3FN | DType::F8E5M2 => 1,
            DType::F16 | DType::BF16 => 2,
            DType::S32 | DType::U32 | DType::F32 => 4,
            DType::S64 => 8,
        }
    }

    /// Whether it is a float that arithmetic is defined on: f16, bf16, f32.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32)
    }

    /// Whether it is an 8-bit float, which can be moved, converted and multiplied by `dot` only.
    pub fn is_fp8(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E4M3FN | DType::F8E5M2)
    }

    /// Whether it is an integer; `pred` is not.
    pub fn is_integer(self) -> bool {
        matches!(self, DType::S8 | DType::U8 | DType::S32 | DType::U32 | DType::S64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::Pred => "pred",
            DType::S8 => "s8",
            DType::U8 => "u8",
            DType::S32 => "s32",
            DType::U32 => "u32",
            DType::S64 => "s64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E4M3FN => "f8e4m3fn",
            DType::F8E5M2 => "f8e5m2",
        })
    }
}
