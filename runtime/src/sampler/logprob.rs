//! Log-probabilities under the model.
//!
//! Invariant: a token's number is the same whether it is asked for as the token itself or appears among the most likely.

use super::{NotFinite, Sampler, filter, simd};

/// Natural logarithm of a token's probability under the model (before bias, penalties, temperature and filters).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The most likely tokens, best first; ties by id. Computed as `logprob` is, so equal tokens have equal numbers.
    pub top: Vec<(u32, f32)>,
}

impl Sampler {
    /// Log-probability of token `id` of a row, beside those of the `top` most likely ones.
    pub fn logprob(&mut self, logits: &[f32], id: u32, top: usize) -> Result<TokenLogprob, NotFinite> {
        let (most, _) = simd::argmax(logits)?;
        let blocks = logits.chunks(simd::BLOCK);
        let total: f64 = blocks.map(|block| simd::block_mass(block, most)).sum();
        let log_total = total.ln();
        let logprob = |logit: f32| ((f64::from(logit) - f64::from(most)) - log_total) as f32;
        let mut result =
            TokenLogprob { id, logprob: logprob(*logits.get(id as usize).ok_or(NotFinite)?), top: Vec::new() };
        if top > 0 {
            filter::top_k(logits, top, &mut self.candidates);
            let best = self.candidates.iter();
            result.top = best.map(|c| (c.id, logprob(c.logit))).collect();
        }
        Ok(result)
    }
}
