//! Rotary frequencies with every scaling that checkpoints ask for.
//!
//! Formulas follow transformers 4.57 `modeling_rope_utils.py`; frequencies are computed in f64 and rounded to f32 once
//! (transformers computes in f32: the difference is at most 1 ulp of f32).

use std::fmt;

use crate::config::{RopeConfig, RopeScaling};

/// Inverse frequencies of one rotary embedding: pair `i` of a head at position `p` turns by `p * inv_freq[i]`, and
/// cosine and sine are multiplied by `amplitude`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Radians per position, one per rotated pair.
    pub inv_freq: Vec<f32>,
    /// Factor of cosine and sine (yarn's attention factor; 1 otherwise).
    pub amplitude: f32,
    /// Other frequencies for long sequences.
    pub long: Option<LongRope>,
}

/// Frequencies of sequences beyond a length (LongRoPE, Ding et al. 2024, arXiv:2402.13753). Which a sequence gets is decided
/// once, by its prompt and the most tokens that may follow.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Sequences of more tokens than this take `inv_freq`.
    pub beyond: usize,
    /// As in [`RopeTable`], and as many.
    pub inv_freq: Vec<f32>,
}

impl RopeTable {
    /// The table that rotates `width` values of every head.
    pub fn new(config: &RopeConfig, width: usize) -> Self {
        let base = |i: usize| config.theta.powf(-(2.0 * i as f64) / width as f64);
        let pairs = width / 2;
        let table = |f: &dyn Fn(usize) -> f64, amplitude: f64| RopeTable {
            inv_freq: (0..pairs).map(|i| f(i) as f32).collect(),
            amplitude: amplitude as f32,
            long: None,
        };
        match &config.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => table(&base, 1.0),
            RopeScaling::Linear { factor } => table(&|i| base(i) / factor, 1.0),
            RopeScaling::Divisors(divisors) => table(&|i| base(i) / f64::from(divisors[i]), 1.0),
            RopeScaling::Long { short, long, original_max_len, attention_factor } => {
                let short = table(&|i| base(i) / short[i], *attention_factor);
                let inv_freq = table(&|i| base(i) / long[i], 1.0).inv_freq;
                RopeTable { long: Some(LongRope { beyond: *original_max_len, inv_freq }), ..short }
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_len } => {
                let original = *original_max_len as f64;
                table(&|i| llama3(base(i), *factor, *low_freq_factor, *high_freq_factor, original), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_max_len,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
                truncate,
            } => {
                let original = *original_max_len as f64;
                // The pair that makes `rotations` turns over the original context.
                let pair = |rotations: f64| {
                    let turns = original / (rotations * 2.0 * std::f64::consts::PI);
                    width as f64 * turns.ln() / (2.0 * config.theta.ln())
                };
                let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let amplitude = attention_factor.unwrap_or_else(|| match (mscale, mscale_all_dim) {
                    (Some(m), Some(all)) if *m != 0.0 && *all != 0.0 => {
                        yarn_mscale(*factor, *m) / yarn_mscale(*factor, *all)
                    }
                    _ => yarn_mscale(*factor, 1.0),
                });
                let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                table(&|i| base(i) / factor * ramp(i) + base(i) * (1.0 - ramp(i)), amplitude)
            }
        }
    }

    /// Values of a head that are rotated.
    pub fn width(&self) -> usize {
        2 * self.inv_freq.len()
    }
}

fn llama3(inv_freq: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / inv_freq;
    if wavelength < original / high {
        inv_freq
    } else if wavelength > original / low {
        inv_freq / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
    }
}

/// Factor of cosine and sine that yarn derives from its scaling factor.
pub(crate) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl fmt::Display for RopeTable {
    /// Length, amplitude, ends, and a hash over all bits: canonical and short.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = |f: &[f32]| {
            let bytes = f.iter().flat_map(|x| x.to_bits().to_le_bytes());
            let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
            let (first, last) = (f.first().copied().unwrap_or(0.0), f.last().copied().unwrap_or(0.0));
            (format!("{first:e}..{last:e}"), format!("#{hash:016x}"))
        };
        let (range, hash) = ends(&self.inv_freq);
        write!(f, "{} pairs {range} amplitude {} {hash}", self.inv_freq.len(), self.amplitude)?;
        self.long.as_ref().map_or(Ok(()), |long| {
            let (range, hash) = ends(&long.inv_freq);
            write!(f, ", beyond {} tokens {range} {hash}", long.beyond)
        })
    }
}

#[cfg(test)]
mod tests;
