//! Composite operations, in the forms that real XLA has been seen to take and to compute as expected.
//!
//! Each says why it has its form. All compute in f32 where rounding would show, keep integers below 2^24 (integer
//! arithmetic may pass through f32 on the device), and take finite minima instead of -inf. Where neuronx-cc has a custom
//! call for the whole, [`crate::Options`] decides; plain operations are the default.

mod activation;
mod attention;
mod choose;
mod lower;
mod mask;
mod norm;
mod quant;
mod rope;
mod rows;
mod sample;

pub use activation::{gelu, gelu_tanh, silu, soft_cap};
pub use attention::{Attention, KeysValues, attend};
pub use choose::{Sharded, arg_max, sharded_arg_max, sharded_top_k, top_k};
pub use lower::lower;
pub use mask::{MASKED, before, causal, from_bits, masked};
pub use norm::{log_sum_exp, rms_norm, softmax};
pub use quant::scaled_matmul;
pub use rope::{Angles, Pairing, angles, rotate};
pub use rows::{cache_rows, one_hot, take_rows, take_rows_by_dot, write_rows};
pub use sample::{cumulative_sum, draw};

use crate::{Builder, DType, Val};

/// x in f32 through `f`, and back to x's type.
#[track_caller]
fn in_f32(b: &mut Builder, x: Val, f: impl FnOnce(&mut Builder, Val) -> Val) -> Val {
    let wide = b.convert(x, DType::F32);
    let y = f(b, wide);
    b.convert(y, x.dtype())
}

/// Repeats y along the dimension of `like` that it lacks: the reverse of a reduction of `dim`.
#[track_caller]
fn along(b: &mut Builder, y: Val, like: &[usize], dim: usize) -> Val {
    let map: Vec<usize> = (0..like.len()).filter(|&d| d != dim).collect();
    b.broadcast(y, &map, like)
}

/// The largest id or count that an idiom makes: f32 holds all integers up to it.
const MAX_INDEX: usize = 1 << 24;

#[cfg(test)]
mod tests;
