//! 8-bit floats: conversion to and from `f32`, round to nearest even.
//!
//! Layout: sign, exponent, mantissa, from the high bit. E4M3 and E5M2 follow IEEE 754 (the exponent of all ones means
//! infinity or NaN); E4M3FN (OCP OFP8) has no infinity, and only the code of all ones is NaN. What is too large becomes
//! infinity, or NaN where there is none.

/// 1-4-3 with IEEE infinities, bias 7, largest 240: what Trainium and Inferentia2 compute with.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct F8E4M3(pub u8);

/// 1-4-3 without infinities, bias 7, largest 448: what checkpoints store.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct F8E4M3FN(pub u8);

/// 1-5-2 with IEEE infinities, bias 15, largest 57344.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct F8E5M2(pub u8);

impl F8E4M3 {
    /// The value.
    pub fn to_f32(self) -> f32 {
        E4M3.widen(self.0)
    }

    /// The nearest code.
    pub fn from_f32(x: f32) -> Self {
        F8E4M3(E4M3.narrow(x))
    }
}

impl F8E4M3FN {
    /// The value.
    pub fn to_f32(self) -> f32 {
        E4M3FN.widen(self.0)
    }

    /// The nearest code.
    pub fn from_f32(x: f32) -> Self {
        F8E4M3FN(E4M3FN.narrow(x))
    }
}

impl F8E5M2 {
    /// The value.
    pub fn to_f32(self) -> f32 {
        E5M2.widen(self.0)
    }

    /// The nearest code.
    pub fn from_f32(x: f32) -> Self {
        F8E5M2(E5M2.narrow(x))
    }
}

macro_rules! ordered {
    ($($type:ty)*) => {$(
        /// As values.
        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                self.to_f32().partial_cmp(&other.to_f32())
            }
        }

        /// As values: the two zeros are equal, NaN is not.
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.to_f32() == other.to_f32()
            }
        }
    )*};
}

ordered!(F8E4M3 F8E4M3FN F8E5M2);

struct Format {
    mantissa: i32,
    bias: i32,
    /// The largest finite code, without sign.
    largest: u8,
    /// What lies beyond it, without sign.
    overflow: u8,
    nan: u8,
}

impl Format {
    fn widen(&self, code: u8) -> f32 {
        let sign = if code & 0x80 != 0 { -1.0 } else { 1.0 };
        let magnitude = code & 0x7f;
        if magnitude > self.largest {
            return if magnitude == self.overflow && self.overflow != self.nan {
                sign * f32::INFINITY
            } else {
                f32::NAN
            };
        }
        let exponent = i32::from(magnitude >> self.mantissa);
        let fraction = f32::from(magnitude & ((1 << self.mantissa) - 1)) / (1 << self.mantissa) as f32;
        let value = if exponent == 0 {
            fraction * 2f32.powi(1 - self.bias)
        } else {
            (1.0 + fraction) * 2f32.powi(exponent - self.bias)
        };
        sign * value
    }

    fn narrow(&self, x: f32) -> u8 {
        let sign = ((x.to_bits() >> 24) & 0x80) as u8;
        if x.is_nan() {
            return sign | self.nan;
        }
        let magnitude = x.abs();
        // In units of the last place at this exponent the value is exact in f32, and so is its rounding.
        let exponent = (((magnitude.to_bits() >> 23) & 0xff) as i32 - 127).max(1 - self.bias);
        let units = (magnitude * 2f32.powi(self.mantissa - exponent)).round_ties_even();
        // The carry of a rounded mantissa runs into the exponent, as it should.
        let code = ((exponent + self.bias - 1) << self.mantissa) as f32 + units;
        sign | if code > f32::from(self.largest) { self.overflow } else { code as u8 }
    }
}

const E4M3: Format = Format { mantissa: 3, bias: 7, largest: 0x77, overflow: 0x78, nan: 0x7c };
const E4M3FN: Format = Format { mantissa: 3, bias: 7, largest: 0x7e, overflow: 0x7f, nan: 0x7f };
const E5M2: Format = Format { mantissa: 2, bias: 15, largest: 0x7b, overflow: 0x7c, nan: 0x7e };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_code_survives_the_round_trip() {
        for code in 0..=255u8 {
            for format in [E4M3, E4M3FN, E5M2] {
                let value = format.widen(code);
                if !value.is_nan() {
                    assert_eq!(format.narrow(value), code, "{value}");
                }
            }
        }
    }

    #[test]
    fn limits_are_the_documented_ones() {
        assert_eq!(F8E4M3(0x77).to_f32(), 240.0);
        assert_eq!(F8E4M3FN(0x7e).to_f32(), 448.0);
        assert_eq!(F8E5M2(0x7b).to_f32(), 57344.0);
        assert_eq!(F8E4M3::from_f32(1e9).to_f32(), f32::INFINITY);
        assert!(F8E4M3FN::from_f32(1e9).to_f32().is_nan());
        assert_eq!(F8E4M3::from_f32(2f32.powi(-10)).0, 0, "half the smallest ties to even");
        assert_eq!(F8E4M3::from_f32(1.5 * 2f32.powi(-9)).0, 2);
    }
}
