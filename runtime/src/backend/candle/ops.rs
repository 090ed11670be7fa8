//! The ops that look at nothing but their rows, each as its definition reads.

use candle_core::{D, DType, Device, Result, Tensor};
use njoule_models::program::{Act, Glu, NormGroup, NormKind, Pairing, RouteGroups, RouteScore, Routing};
use rayon::prelude::*;

/// `x` rounded to the type that it will be multiplied with, as f32.
pub fn rounded_to(dtype: DType, x: &Tensor) -> Result<Tensor> {
    if dtype == DType::F32 { Ok(x.clone()) } else { x.to_dtype(dtype)?.to_dtype(DType::F32) }
}

/// `x * weight^T + bias`, accumulated in f32.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let product = if weight.dtype() == DType::F32 { x.matmul(&weight.t()?)? } else { product_16(x, weight)? };
    bias.map_or(Ok(product.clone()), |bias| product.broadcast_add(bias))
}

/// The product with a matrix of 16 bits, which is widened a part at a time: candle's own product would round its result.
fn product_16(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let x = rounded_to(weight.dtype(), x)?;
    let (rows, cols) = weight.dims2()?;
    let step = (PART / cols).max(1);
    let part = |i: usize| {
        let part = weight.narrow(0, i * step, step.min(rows - i * step))?;
        x.matmul(&part.to_dtype(DType::F32)?.t()?)
    };
    let parts = 0..rows.div_ceil(step);
    let parts: Vec<Tensor> = match x.device() {
        Device::Cpu => parts.into_par_iter().map(part).collect::<Result<_>>()?,
        Device::Cuda(_) | Device::Metal(_) => parts.map(part).collect::<Result<_>>()?,
    };
    Tensor::cat(&parts, 1)
}

/// A norm of every row or of its groups.
pub fn norm(
    x: &Tensor,
    (kind, eps): (NormKind, f32),
    (weight, bias): (Option<&Tensor>, Option<&Tensor>),
    group: NormGroup,
) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let len = if let NormGroup::Head(len) = group { len } else { cols };
    let groups = x.reshape((rows, cols / len, len))?;
    let centred = match kind {
        NormKind::Rms => groups,
        NormKind::Layer => groups.broadcast_sub(&groups.mean_keepdim(D::Minus1)?)?,
    };
    let divisor = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    let mut out = centred.broadcast_div(&divisor)?;
    // One for all groups, or each its own.
    let per_group = |w: &Tensor| w.reshape((w.elem_count() / len, len));
    if let Some(weight) = weight {
        out = out.broadcast_mul(&per_group(weight)?)?;
    }
    if let Some(bias) = bias {
        out = out.broadcast_add(&per_group(bias)?)?;
    }
    out.reshape((rows, cols))
}

/// An activation function.
pub fn act(x: &Tensor, act: Act) -> Result<Tensor> {
    match act {
        Act::Silu => x.silu(),
        Act::Gelu => x.gelu_erf(),
        Act::GeluTanh => x.gelu(),
        Act::Relu => x.relu(),
        Act::Relu2 => x.relu()?.sqr(),
        Act::Sigmoid => sigmoid(x),
    }
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// How the halves of a gated layer meet.
pub fn glu(gate: &Tensor, up: &Tensor, glu: Glu) -> Result<Tensor> {
    match glu {
        Glu::Act(f) => act(gate, f)? * up,
        Glu::ClampedSwish { alpha, limit } => {
            let gate = gate.minimum(limit)?;
            let up = up.clamp(-limit, limit)?;
            gate.mul(&sigmoid(&(&gate * f64::from(alpha))?)?)? * (up + 1.0)?
        }
    }
}

/// `bound * tanh(x / bound)`.
pub fn cap(x: &Tensor, bound: f32) -> Result<Tensor> {
    (x / f64::from(bound))?.tanh()? * f64::from(bound)
}

/// Cosines and sines of a step, `[rows, 1, pairs]` each, times the amplitude.
#[derive(Clone, Debug)]
pub struct Angles {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Rotates the first values of every head.
pub fn rope(x: &Tensor, Angles { cos, sin }: &Angles, head_dim: usize, pairing: Pairing) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let (heads, pairs) = (cols / head_dim, cos.dim(D::Minus1)?);
    if pairs == 0 {
        return Ok(x.clone());
    }
    let x = x.reshape((rows, heads, head_dim))?;
    let turned = x.narrow(2, 0, 2 * pairs)?;
    let (a, b) = match pairing {
        Pairing::Half => (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?),
        Pairing::Neighbours => {
            let turned = turned.reshape((rows, heads, pairs, 2))?;
            (turned.narrow(3, 0, 1)?.squeeze(3)?, turned.narrow(3, 1, 1)?.squeeze(3)?)
        }
    };
    let (a, b) = ((a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?, (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?);
    let turned = match pairing {
        Pairing::Half => Tensor::cat(&[&a, &b], 2)?,
        Pairing::Neighbours => Tensor::stack(&[&a, &b], 3)?.reshape((rows, heads, 2 * pairs))?,
    };
    let rest = x.narrow(2, 2 * pairs, head_dim - 2 * pairs)?;
    let all = if rest.elem_count() == 0 { turned } else { Tensor::cat(&[&turned, &rest], 2)? };
    all.reshape((rows, cols))
}

/// Each head of `x` followed by that of `y`, or by the only one of `y`.
pub fn join_heads(x: &Tensor, y: &Tensor, [a, b]: [usize; 2]) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let heads = cols / a;
    let y = y.reshape((rows, y.dim(1)? / b, b))?.broadcast_as((rows, heads, b))?;
    Tensor::cat(&[&x.reshape((rows, heads, a))?, &y.contiguous()?], 2)?.reshape((rows, heads * (a + b)))
}

/// A row of a router's logits as the experts' shares.
pub fn shares(logits: &[f32], routing: &Routing, bias: Option<&[f32]>) -> Vec<f32> {
    let scores: Vec<f32> = match routing.score {
        RouteScore::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        RouteScore::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
            let sum: f32 = exps.iter().sum();
            exps.iter().map(|e| e / sum).collect()
        }
    };
    let mut ranks = scores.clone();
    if let Some(bias) = bias {
        ranks.iter_mut().zip(bias).for_each(|(rank, bias)| *rank += bias);
    }
    // Stable: of equal ones, the lower number comes first.
    let by_rank = |ranks: &[f32]| {
        let mut order: Vec<usize> = (0..ranks.len()).collect();
        order.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]));
        order
    };
    if let Some(RouteGroups { count, kept, best }) = routing.groups {
        let size = scores.len() / count;
        let sum = |group: &[f32]| by_rank(group)[..best].iter().map(|i| group[*i]).sum::<f32>();
        let sums: Vec<f32> = ranks.chunks(size).map(sum).collect();
        for g in &by_rank(&sums)[kept..] {
            ranks[g * size..(g + 1) * size].fill(f32::NEG_INFINITY);
        }
    }
    let mut order = by_rank(&ranks);
    order.truncate(routing.top_k);
    let divisor = if routing.normalise { order.iter().map(|e| scores[*e]).sum() } else { 1.0 };
    let mut shares = vec![0.0; scores.len()];
    order.iter().for_each(|e| shares[*e] = scores[*e] / divisor * routing.factor);
    shares
}

/// Values of a matrix that are widened at once; 4 MB of f32.
const PART: usize = 1 << 20;

#[cfg(test)]
mod tests;
