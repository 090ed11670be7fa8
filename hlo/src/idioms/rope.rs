//! Rotary positions, computed on the device in f32 from integer positions: in bf16, positions beyond 256 are not even
//! integers.

use crate::{Builder, DType, Tensor, Val};

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// i and i + width/2, as Hugging Face checkpoints have it.
    Halves,
    /// 2i and 2i + 1.
    Neighbours,
}

/// Cosines and sines of a step, shared by all layers: `f32[tokens, width/2]` each.
#[derive(Clone, Copy, Debug)]
pub struct Angles {
    /// Cosines.
    pub cosine: Val,
    /// Sines.
    pub sine: Val,
}

/// Angles of `positions s32[tokens]` at these inverse frequencies, both functions multiplied by `scale` (YaRN's attention
/// factor; 1 otherwise). Llama-3's and the other scalings are folded into the frequencies by the caller.
#[track_caller]
pub fn angles(b: &mut Builder, positions: Val, inverse_frequencies: &[f32], scale: f32) -> Angles {
    let n = inverse_frequencies.len();
    let dims = [positions.dim(0), n];
    let frequencies = Tensor::new(&[n], inverse_frequencies.to_vec()).expect("as long as it is");
    let frequencies = b.constant(frequencies);
    let frequencies = b.broadcast(frequencies, &[1], &dims);
    let positions = b.convert(positions, DType::F32);
    let positions = b.broadcast(positions, &[0], &dims);
    let angle = b.multiply(positions, frequencies);
    let [cosine, sine] = [b.cosine(angle), b.sine(angle)].map(|x| {
        if scale == 1.0 {
            return x;
        }
        let factor = b.full_like(x, scale);
        b.multiply(x, factor)
    });
    Angles { cosine, sine }
}

/// `x [tokens, heads, d]` rotated; elements beyond the angles' width pass unchanged. In f32, rounded to x's type.
#[track_caller]
pub fn rotate(b: &mut Builder, x: Val, angles: Angles, pairing: Pairing) -> Val {
    let half = angles.cosine.dim(1);
    b.check(x.rank() == 3 && 2 * half <= x.dim(2), || format!("{half} angles for {}", x.shape()));
    let (tokens, heads, d) = (x.dim(0), x.dim(1), x.dim(2));
    let dims = [tokens, heads, half];
    let [cosine, sine] = [angles.cosine, angles.sine].map(|t| b.broadcast(t, &[0, 2], &dims));
    let wide = b.convert(x, DType::F32);
    let (first, second) = match pairing {
        Pairing::Halves => (b.slice_dim(wide, 2, 0..half), b.slice_dim(wide, 2, half..2 * half)),
        Pairing::Neighbours => {
            let turned = b.slice_dim(wide, 2, 0..2 * half);
            let pairs = b.reshape(turned, &[tokens, heads, half, 2]);
            let [first, second] = [0, 1].map(|i| {
                let one = b.slice_dim(pairs, 3, i..i + 1);
                b.reshape(one, &dims)
            });
            (first, second)
        }
    };
    let [fc, fs, sc, ss] =
        [(first, cosine), (first, sine), (second, cosine), (second, sine)].map(|(x, t)| b.multiply(x, t));
    let (first, second) = (b.subtract(fc, ss), b.add(sc, fs));
    let mut parts = match pairing {
        Pairing::Halves => vec![first, second],
        Pairing::Neighbours => {
            let [first, second] = [first, second].map(|x| b.reshape(x, &[tokens, heads, half, 1]));
            let pairs = b.concatenate(&[first, second], 3);
            vec![b.reshape(pairs, &[tokens, heads, 2 * half])]
        }
    };
    if 2 * half < d {
        parts.push(b.slice_dim(wide, 2, 2 * half..d));
    }
    let turned = if parts.len() == 1 { parts[0] } else { b.concatenate(&parts, 2) };
    b.convert(turned, x.dtype())
}
