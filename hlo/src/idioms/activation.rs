//! Activation functions.

use super::in_f32;
use crate::builder::Custom;
use crate::op::Direction;
use crate::{Builder, Val};

/// x · σ(x), in f32: there is one rounding, where σ in bf16 would add another.
#[track_caller]
pub fn silu(b: &mut Builder, x: Val) -> Val {
    if b.uses(Custom::Silu) {
        return b.custom_call(Custom::Silu.target(), &[x], "", x.shape());
    }
    in_f32(b, x, |b, x| {
        let gate = b.logistic(x);
        b.multiply(x, gate)
    })
}

/// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), the approximation that checkpoints call `gelu_pytorch_tanh`; in f32.
#[track_caller]
pub fn gelu_tanh(b: &mut Builder, x: Val) -> Val {
    if b.uses(Custom::GeluTanh) {
        return b.custom_call(Custom::GeluTanh.target(), &[x], "", x.shape());
    }
    in_f32(b, x, |b, x| {
        let square = b.multiply(x, x);
        let cube = b.multiply(square, x);
        let small = b.full_like(x, 0.044_715);
        let cube = b.multiply(cube, small);
        let inner = b.add(x, cube);
        let factor = b.full_like(x, (2.0 / std::f32::consts::PI).sqrt());
        let inner = b.multiply(inner, factor);
        let tanh = b.tanh(inner);
        let one = b.full_like(x, 1.0);
        let gate = b.add(tanh, one);
        let half = b.full_like(x, 0.5);
        let x = b.multiply(x, half);
        b.multiply(x, gate)
    })
}

/// x · Φ(x) in f32, Φ the normal distribution's function: within 8e-8 of it (Abramowitz and Stegun 7.1.26: erf of |x| as
/// 1 - p(t) e^(-x²), t = 1 / (1 + 0.3275911 |x|), to 1.5e-7). `erf` itself is no operation of HLO's that Neuron has.
#[track_caller]
pub fn gelu(b: &mut Builder, x: Val) -> Val {
    in_f32(b, x, |b, x| {
        let root = b.full_like(x, std::f32::consts::FRAC_1_SQRT_2);
        let z = b.multiply(x, root);
        let size = b.abs(z);
        let one = b.full_like(x, 1.0);
        let slope = b.full_like(x, 0.327_591_1);
        let t = b.multiply(size, slope);
        let t = b.add(t, one);
        let t = b.divide(one, t);
        let mut sum = b.full_like(x, 1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            sum = b.multiply(sum, t);
            let c = b.full_like(x, c);
            sum = b.add(sum, c);
        }
        sum = b.multiply(sum, t);
        let square = b.multiply(z, z);
        let square = b.negate(square);
        let bell = b.exponential(square);
        let half = b.full_like(x, 0.5);
        let tail = b.multiply(sum, bell);
        let tail = b.multiply(tail, half); // Φ(-|x|)
        let body = b.subtract(one, tail);
        let zero = b.full_like(x, 0.0);
        let below = b.compare(Direction::Lt, x, zero);
        let share = b.select(below, tail, body);
        b.multiply(x, share)
    })
}

/// cap · tanh(x / cap).
#[track_caller]
pub fn soft_cap(b: &mut Builder, x: Val, cap: f32) -> Val {
    let cap = b.full_like(x, cap);
    let share = b.divide(x, cap);
    let bent = b.tanh(share);
    b.multiply(bent, cap)
}
