//! Normalisations over one dimension.

use super::{along, in_f32};
use crate::builder::Custom;
use crate::op::Binary;
use crate::{Builder, DType, Val};

/// x / √(mean(x²) + eps) over the last dimension, in f32; then rounded to gamma's type and multiplied by gamma `[h]`.
///
/// The order of rounding and scaling is that of the reference implementations (LlamaRMSNorm of transformers).
#[track_caller]
pub fn rms_norm(b: &mut Builder, x: Val, gamma: Val, eps: f32) -> Val {
    b.check(x.rank() > 0, || "a norm of a scalar".into());
    let dim = x.rank() - 1;
    // The custom call is not used over a single element, as at transformers-neuronx.
    if b.uses(Custom::RmsNorm) && x.dim(dim) > 1 {
        let eps = b.float(x.dtype(), eps);
        let result = x.shape().with_dtype(gamma.dtype());
        return b.custom_call(Custom::RmsNorm.target(), &[x, gamma, eps], &dim.to_string(), result);
    }
    let eps = b.scalar(eps);
    rms_norm_dim(b, x, gamma, eps, dim, gamma.dtype())
}

/// [`rms_norm`] of any dimension, with eps a scalar of the graph.
#[track_caller]
pub(super) fn rms_norm_dim(b: &mut Builder, x: Val, gamma: Val, eps: Val, dim: usize, to: DType) -> Val {
    let wide = b.convert(x, DType::F32);
    let square = b.multiply(wide, wide);
    let sum = b.reduce(Binary::Add, square, &[dim]);
    let share = b.full_like(sum, 1.0 / x.dim(dim) as f32);
    let mean = b.multiply(sum, share);
    let eps = b.convert(eps, DType::F32);
    let eps = b.broadcast(eps, &[], &mean.dims());
    let mean = b.add(mean, eps);
    let scale = b.rsqrt(mean);
    let scale = along(b, scale, &x.dims(), dim);
    let normal = b.multiply(wide, scale);
    let normal = b.convert(normal, gamma.dtype());
    let gamma = b.broadcast(gamma, &[dim], &x.dims());
    let scaled = b.multiply(normal, gamma);
    b.convert(scaled, to)
}

/// exp(x - max) / sum over `dim`, in f32, rounded to x's type.
#[track_caller]
pub fn softmax(b: &mut Builder, x: Val, dim: usize) -> Val {
    if b.uses(Custom::Softmax) {
        return b.custom_call(Custom::Softmax.target(), &[x], &dim.to_string(), x.shape());
    }
    in_f32(b, x, |b, x| {
        let (_, powers, sum) = exponentials(b, x, dim);
        let sum = along(b, sum, &x.dims(), dim);
        b.divide(powers, sum)
    })
}

/// log(Σ exp(x)) over `dim`, in f32: max + log(Σ exp(x - max)), which does not overflow.
#[track_caller]
pub fn log_sum_exp(b: &mut Builder, x: Val, dim: usize) -> Val {
    let x = b.convert(x, DType::F32);
    let (max, _, sum) = exponentials(b, x, dim);
    let log = b.log(sum);
    b.add(max, log)
}

/// The maximum over `dim`, exp(x - max), and its sum over `dim`.
fn exponentials(b: &mut Builder, x: Val, dim: usize) -> (Val, Val, Val) {
    let max = b.reduce(Binary::Maximum, x, &[dim]);
    let every = along(b, max, &x.dims(), dim);
    let shifted = b.subtract(x, every);
    let powers = b.exponential(shifted);
    let sum = b.reduce(Binary::Add, powers, &[dim]);
    (max, powers, sum)
}
