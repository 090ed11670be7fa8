//! Tensor types by their number (`ggml_type` in ggml.h).

use std::fmt;

use crate::weights::{DType, Encoding, GgmlType};

/// A tensor's type as the file has it, known or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType(pub u32);

impl TensorType {
    /// What can be read.
    pub const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, \
                                  IQ4_NL, IQ4_XS, MXFP4";

    /// How to read it; `None` where it is not supported.
    pub fn encoding(self) -> Option<Encoding> {
        use GgmlType::*;
        Some(match self.0 {
            0 => Encoding::Dense(DType::F32),
            1 => Encoding::Dense(DType::F16),
            30 => Encoding::Dense(DType::BF16),
            2 => Encoding::GgufBlock(Q4_0),
            3 => Encoding::GgufBlock(Q4_1),
            6 => Encoding::GgufBlock(Q5_0),
            7 => Encoding::GgufBlock(Q5_1),
            8 => Encoding::GgufBlock(Q8_0),
            10 => Encoding::GgufBlock(Q2_K),
            11 => Encoding::GgufBlock(Q3_K),
            12 => Encoding::GgufBlock(Q4_K),
            13 => Encoding::GgufBlock(Q5_K),
            14 => Encoding::GgufBlock(Q6_K),
            20 => Encoding::GgufBlock(IQ4_NL),
            23 => Encoding::GgufBlock(IQ4_XS),
            39 => Encoding::GgufBlock(MXFP4),
            _ => return None,
        })
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(encoding) = self.encoding() {
            return encoding.fmt(f);
        }
        match UNSUPPORTED.iter().find(|(id, _)| *id == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "number {}", self.0),
        }
    }
}

const UNSUPPORTED: [(u32, &str); 23] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];
