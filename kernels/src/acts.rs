//! Activation functions and the ways in which the halves of a gated layer meet.

use crate::simd::{self, Simd};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`.
    Gelu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    Relu2,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

impl Act {
    /// Every function.
    pub const ALL: [Act; 6] = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Relu2, Act::Sigmoid];
}

/// How the two halves of a gated layer meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Glu {
    /// `act(gate) * up`.
    Act(Act),
    /// `g * sigmoid(alpha * g) * (u + 1)` with `g = min(gate, limit)` and `u = clamp(up, -limit, limit)`.
    ClampedSwish {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Bound of both halves.
        limit: f32,
    },
}

/// `f` of one vector; a NaN stays one in all of them.
#[inline(always)]
unsafe fn apply<S: Simd, const ACT: u8>(x: S::F) -> S::F {
    // SAFETY: the caller's instruction set is S's.
    unsafe {
        if ACT == Act::Silu as u8 {
            simd::silu::<S>(x)
        } else if ACT == Act::Gelu as u8 {
            simd::gelu::<S>(x)
        } else if ACT == Act::GeluTanh as u8 {
            simd::gelu_tanh::<S>(x)
        } else if ACT == Act::Sigmoid as u8 {
            simd::sigmoid::<S>(x)
        } else {
            let positive = S::max(S::zero(), x);
            if ACT == Act::Relu2 as u8 { S::mul(positive, positive) } else { positive }
        }
    }
}

/// Runs the generic function of an activation: one loop for each, none with a branch in it.
macro_rules! with_act {
    ($act:expr, $function:ident::<$s:ty>($($arg:expr),*)) => {
        match $act {
            Act::Silu => $function::<$s, { Act::Silu as u8 }>($($arg),*),
            Act::Gelu => $function::<$s, { Act::Gelu as u8 }>($($arg),*),
            Act::GeluTanh => $function::<$s, { Act::GeluTanh as u8 }>($($arg),*),
            Act::Relu => $function::<$s, { Act::Relu as u8 }>($($arg),*),
            Act::Relu2 => $function::<$s, { Act::Relu2 as u8 }>($($arg),*),
            Act::Sigmoid => $function::<$s, { Act::Sigmoid as u8 }>($($arg),*),
        }
    };
}

/// `out = act(x)` over `len` values, a multiple of the lanes; `out` may be `x`.
#[inline(always)]
pub unsafe fn act<S: Simd>(act: Act, x: *const f32, out: *mut f32, len: usize) {
    // SAFETY: the caller vouches for the instruction set and the pointers.
    unsafe { with_act!(act, map::<S>(x, out, len)) }
}

#[inline(always)]
unsafe fn map<S: Simd, const ACT: u8>(x: *const f32, out: *mut f32, len: usize) {
    // SAFETY: as `act`.
    unsafe {
        for i in (0..len).step_by(S::LANES) {
            S::store(out.add(i), apply::<S, ACT>(S::load(x.add(i))));
        }
    }
}

/// `out = glu(gate, up)` over `len` values, a multiple of the lanes.
#[inline(always)]
pub unsafe fn glu<S: Simd>(glu: Glu, gate: *const f32, up: *const f32, out: *mut f32, len: usize) {
    // SAFETY: the caller vouches for the instruction set and the pointers.
    unsafe {
        match glu {
            Glu::Act(act) => with_act!(act, gated::<S>(gate, up, out, len)),
            Glu::ClampedSwish { alpha, limit } => {
                let (lo, hi, alpha) = (S::splat(-limit), S::splat(limit), S::splat(-alpha));
                for i in (0..len).step_by(S::LANES) {
                    // In this order `min` and `max` keep a NaN.
                    let g = S::min(hi, S::load(gate.add(i)));
                    let u = S::max(lo, S::min(hi, S::load(up.add(i))));
                    let e = simd::exp::<S>(S::min(S::mul(g, alpha), S::splat(88.0)));
                    let swish = S::div(g, S::add(S::splat(1.0), e));
                    S::store(out.add(i), S::mul(swish, S::add(u, S::splat(1.0))));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn gated<S: Simd, const ACT: u8>(gate: *const f32, up: *const f32, out: *mut f32, len: usize) {
    // SAFETY: as `glu`.
    unsafe {
        for i in (0..len).step_by(S::LANES) {
            S::store(out.add(i), S::mul(apply::<S, ACT>(S::load(gate.add(i))), S::load(up.add(i))));
        }
    }
}

#[cfg(test)]
mod tests;
