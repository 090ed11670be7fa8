//! From one type to another: floats to the nearest, ties to even; integers wrap; a float becomes an integer by cutting
//! towards zero, saturating, NaN 0.

use half::{bf16, f16};

use crate::tensor::with_type;
use crate::{ArrayShape, Element, F8E4M3, F8E4M3FN, F8E5M2, Tensor};

pub(super) fn convert(x: Tensor, shape: ArrayShape) -> Tensor {
    if x.shape() == shape {
        return x;
    }
    with_type!(x.shape().dtype(), From => with_type!(shape.dtype(), To => {
        let from: &[From] = x.as_slice().unwrap_or_default();
        Tensor::from_vec::<To>(shape, from.iter().map(|&v| cast(v)).collect())
    }))
}

fn cast<From: Number, To: Number>(v: From) -> To {
    if From::FLOAT { To::from_float(v.to_float()) } else { To::from_integer(v.to_integer()) }
}

/// Passes through f32 if it is a float, else through i64: exact both ways for every type there is.
pub(super) trait Number: Element {
    const FLOAT: bool;
    fn to_float(self) -> f32;
    fn to_integer(self) -> i64;
    fn from_float(v: f32) -> Self;
    fn from_integer(v: i64) -> Self;
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl Number for $type {
            const FLOAT: bool = false;
            fn to_float(self) -> f32 {
                self as f32
            }
            fn to_integer(self) -> i64 {
                self as i64
            }
            fn from_float(v: f32) -> Self {
                v as $type
            }
            fn from_integer(v: i64) -> Self {
                v as $type
            }
        }
    )*};
}

macro_rules! floats {
    ($($type:ty)*) => {$(
        impl Number for $type {
            const FLOAT: bool = true;
            fn to_float(self) -> f32 {
                self.to_f32()
            }
            fn to_integer(self) -> i64 {
                self.to_f32() as i64
            }
            fn from_float(v: f32) -> Self {
                <$type>::from_f32(v)
            }
            fn from_integer(v: i64) -> Self {
                <$type>::from_f32(v as f32)
            }
        }
    )*};
}

integers!(i8 u8 i32 u32 i64);
floats!(f16 F8E4M3 F8E4M3FN F8E5M2);

impl Number for bf16 {
    const FLOAT: bool = true;
    #[inline(always)]
    fn to_float(self) -> f32 {
        // As XLA does it: one shift, also for NaN.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    fn to_integer(self) -> i64 {
        self.to_float() as i64
    }
    fn from_float(v: f32) -> Self {
        bf16::from_f32(v)
    }
    fn from_integer(v: i64) -> Self {
        bf16::from_f32(v as f32)
    }
}

impl Number for bool {
    const FLOAT: bool = false;
    fn to_float(self) -> f32 {
        f32::from(self)
    }
    fn to_integer(self) -> i64 {
        i64::from(self)
    }
    fn from_float(v: f32) -> Self {
        v != 0.0
    }
    fn from_integer(v: i64) -> Self {
        v != 0
    }
}

impl Number for f32 {
    const FLOAT: bool = true;
    fn to_float(self) -> f32 {
        self
    }
    fn to_integer(self) -> i64 {
        self as i64
    }
    fn from_float(v: f32) -> Self {
        v
    }
    fn from_integer(v: i64) -> Self {
        v as f32
    }
}
