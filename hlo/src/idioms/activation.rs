//! Activation functions.

use super::in_f32;
use crate::builder::Custom;
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
