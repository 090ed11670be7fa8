//! Passes over a whole row, written so that the compiler vectorises them for whatever the target has.
//!
//! Invariant: results do not depend on the machine: lanes are added up in one fixed order, without fused operations.

use super::NotFinite;

/// Logits looked at together; whole blocks without a candidate are skipped.
pub const BLOCK: usize = 256;

/// Independent lanes of the loops. Measured with SSE2: 8 is twice as fast as 16 for maxima, 16 faster than 8 for sums alone.
pub const LANES: usize = 8;
const SUM_LANES: usize = 16;

/// The largest logit and where it first occurs. Infinity, NaN and a row without any finite logit are errors.
pub fn argmax(logits: &[f32]) -> Result<(f32, usize), NotFinite> {
    let (mut most, mut start, mut nan) = (f32::NEG_INFINITY, 0, false);
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        let (block_most, block_nan) = block_max(block);
        nan |= block_nan;
        if block_most > most {
            (most, start) = (block_most, i * BLOCK);
        }
    }
    if nan || !most.is_finite() {
        return Err(NotFinite);
    }
    let within = logits[start..].iter().position(|&logit| logit == most);
    Ok((most, start + within.ok_or(NotFinite)?))
}

/// The largest number of a block, and whether it holds NaN.
pub fn block_max(block: &[f32]) -> (f32, bool) {
    let mut most = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            most[i] = if chunk[i] > most[i] { chunk[i] } else { most[i] };
            nan[i] |= chunk[i].is_nan();
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        most[i] = if x > most[i] { x } else { most[i] };
        nan[i] |= x.is_nan();
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (most, nan.into_iter().any(|lane| lane))
}

/// Sum of `exp(x - most)` over a block; no `x` may exceed `most`.
pub fn block_mass(block: &[f32], most: f32) -> f64 {
    let mut sums = [0f32; SUM_LANES];
    let (chunks, rest) = block.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for i in 0..SUM_LANES {
            sums[i] += exp(chunk[i] - most);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        sums[i] += exp(x - most);
    }
    sums.into_iter().map(f64::from).sum()
}

/// Writes `exp((x - most) * scale)`, or 0 where that is below `least`, to `weights` and returns their sum; no `x` may
/// exceed `most`.
pub fn weigh(block: &[f32], most: f32, scale: f32, least: f32, weights: &mut [f32]) -> f64 {
    let weight = |x: f32| {
        let weight = exp((x - most) * scale);
        if weight >= least { weight } else { 0.0 }
    };
    let mut sums = [0f32; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    let (outs, rest_out) = weights.as_chunks_mut::<LANES>();
    for (chunk, out) in chunks.iter().zip(outs) {
        for i in 0..LANES {
            out[i] = weight(chunk[i]);
            sums[i] += out[i];
        }
    }
    for (i, (&x, out)) in rest.iter().zip(rest_out).enumerate() {
        *out = weight(x);
        sums[i] += *out;
    }
    sums.into_iter().map(f64::from).sum()
}

/// Sum of the weights of a block that are at least `least`.
pub fn mass_at_least(weights: &[f32], least: f32) -> f64 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            sums[i] += if chunk[i] >= least { chunk[i] } else { 0.0 };
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        sums[i] += if x >= least { x } else { 0.0 };
    }
    sums.into_iter().map(f64::from).sum()
}

/// Sets weights below `least` to 0 and returns the sum of the others.
pub fn keep(weights: &mut [f32], least: f32) -> f64 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = weights.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = if chunk[i] >= least { chunk[i] } else { 0.0 };
            sums[i] += chunk[i];
        }
    }
    for (i, x) in rest.iter_mut().enumerate() {
        *x = if *x >= least { *x } else { 0.0 };
        sums[i] += *x;
    }
    sums.into_iter().map(f64::from).sum()
}

/// `e^x` for `x <= 0` within 2 units in the last place; 0 below -87.
///
/// Cephes' expf: x = n ln 2 + r, a polynomial in r, n added to the exponent. Adding 1.5 * 2^23 rounds to n and leaves it in
/// the low bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.0e-1;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let y = (p * r * r + r + 1.0) * power;
    if x > -87.0 { y } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(x <= -87.0 || error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_refuses_what_is_not_finite() {
        let mut row = vec![0.5f32; 700];
        row[300] = 2.0;
        row[650] = 2.0;
        assert_eq!(argmax(&row), Ok((2.0, 300)));
        row[0] = f32::NEG_INFINITY;
        assert_eq!(argmax(&row), Ok((2.0, 300)));
        for at in [0, 15, 299, 699] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut row = row.clone();
                row[at] = bad;
                assert_eq!(argmax(&row), Err(NotFinite), "{bad} at {at}");
            }
        }
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), Err(NotFinite));
        assert_eq!(argmax(&[]), Err(NotFinite));
        assert_eq!(argmax(&[-1.0]), Ok((-1.0, 0)));
    }
}
