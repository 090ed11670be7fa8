//! Picks a token from a row of logits, or from [candidates](Sampler::sample_candidates) where a backend returns no logits.
//!
//! The order is vLLM's: forbidden tokens and bias, penalties (repetition, frequency, presence), temperature, min-p,
//! top-k, top-p, each renormalising what is left. Log-probabilities are those of the model, before any of it.
//!
//! Invariant: the token is a function of the row, the parameters, the sequence's own tokens and (seed, output index)
//! alone, so that a sequence that is preempted or replayed gets the same tokens whatever runs beside it. The row is
//! unchanged afterwards.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

#[cfg(doc)]
use crate::backend::Masks;

mod candidates;
mod draw;
mod filter;
mod logprob;
mod params;
mod simd;

#[cfg(test)]
pub(crate) mod tests;

pub use candidates::{Drawn, mass};
pub use draw::uniform;
use filter::Candidate;
pub use logprob::TokenLogprob;
pub use params::{SamplingError, SamplingParams};

/// A row that has no token to pick: it holds NaN or infinity, or no token is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite;

/// Whether a row can be sampled: no NaN, no infinity, not everything impossible.
pub fn is_sound(logits: &[f32]) -> bool {
    simd::argmax(logits).is_ok()
}

/// Scratch for sampling rows of one vocabulary; owned by the engine thread.
#[derive(Debug)]
pub struct Sampler {
    /// Logits that were changed, oldest first.
    changed: Vec<(usize, f32)>,
    candidates: Vec<Candidate>,
    edge: Vec<Candidate>,
    /// A row with its mask applied.
    masked: Vec<f32>,
    vocab: usize,
    /// Probabilities relative to the likeliest token's, and per block their sum and their largest.
    weights: Vec<f32>,
    masses: Vec<f64>,
    peaks: Vec<f32>,
}

impl Sampler {
    /// Scratch for rows of `vocab` logits.
    pub fn new(vocab: usize) -> Self {
        Sampler {
            changed: Vec::with_capacity(1024),
            candidates: Vec::with_capacity(vocab.min(filter::ROOM)),
            edge: Vec::with_capacity(vocab.min(EDGE_ROOM)),
            masked: Vec::new(),
            vocab,
            weights: Vec::new(),
            peaks: Vec::new(),
            masses: Vec::with_capacity(vocab.div_ceil(simd::BLOCK)),
        }
    }

    /// Picks a token from its `logits`, which are changed on the way and restored.
    pub fn sample(&mut self, logits: &mut [f32], pick: &Pick<'_>) -> Result<u32, NotFinite> {
        let Some(mask) = pick.mask else {
            return self.sample_any(logits, pick);
        };
        // The model's own output must be sound, also where nobody will look.
        simd::argmax(logits)?;
        let mut masked = std::mem::take(&mut self.masked);
        masked.clear();
        for (block, word) in logits.chunks(32).zip(mask) {
            let allowed = |i: usize| word >> i & 1 == 1;
            masked.extend(block.iter().enumerate().map(|(i, x)| if allowed(i) { *x } else { f32::NEG_INFINITY }));
        }
        // A mask that is too short allows nothing behind its end.
        masked.resize(logits.len(), f32::NEG_INFINITY);
        let picked = self.sample_any(&mut masked, pick);
        self.masked = masked;
        picked
    }

    fn sample_any(&mut self, logits: &mut [f32], pick: &Pick<'_>) -> Result<u32, NotFinite> {
        let &Pick { params, history, forbidden, seed, index, .. } = pick;
        // Checked before anything is forbidden: the model's own output must be sound.
        let (most, at) = simd::argmax(logits)?;
        let untouched = forbidden.is_empty() && params.logit_bias.is_empty() && history.seen.is_empty();
        if params.is_greedy() && untouched {
            return Ok(token(at));
        }
        self.adjust(logits, params, history, forbidden);
        let picked = if untouched { Ok((most, at)) } else { simd::argmax(logits) };
        let picked =
            picked.map(
                |(most, at)| {
                    if params.is_greedy() { at } else { self.draw(logits, most, params, uniform(seed, index)) }
                },
            );
        for (id, logit) in self.changed.drain(..).rev() {
            logits[id] = logit;
        }
        picked.map(token)
    }

    /// Applies what makes tokens more or less likely one by one.
    fn adjust(&mut self, logits: &mut [f32], params: &SamplingParams, history: &History, forbidden: &[u32]) {
        let changed = &mut self.changed;
        let mut set = |id: u32, f: &dyn Fn(f32) -> f32| {
            // Ids were checked against the vocabulary when the request was accepted; end tokens of a broken
            // configuration may still lie outside.
            if let Some(logit) = logits.get_mut(id as usize) {
                changed.push((id as usize, *logit));
                *logit = f(*logit);
            }
        };
        for &id in forbidden {
            set(id, &|_| f32::NEG_INFINITY);
        }
        for &(id, bias) in &params.logit_bias {
            set(id, &|logit| logit + bias);
        }
        for seen in &history.seen {
            set(seen.id, &|logit| penalised(logit, params, seen));
        }
    }
}

/// More candidates than any device returns.
const EDGE_ROOM: usize = 1024;

/// How to pick a token.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// Temperature, filters, penalties, biases.
    pub params: &'a SamplingParams,
    /// The sequence's tokens.
    pub history: &'a History,
    /// Tokens that are not picked.
    pub forbidden: &'a [u32],
    /// Tokens that may be picked, all if `None`; see [`Masks`].
    pub mask: Option<&'a [u32]>,
    /// Seed of the sequence.
    pub seed: u64,
    /// Number of the output token.
    pub index: u64,
}

/// A logit of a token that the sequence holds.
fn penalised(logit: f32, params: &SamplingParams, seen: &Seen) -> f32 {
    let repetition = params.repetition_penalty;
    let logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
    if seen.count == 0 {
        return logit;
    }
    logit - params.frequency_penalty * seen.count as f32 - params.presence_penalty
}

/// A position in a row as a token. Vocabularies fit into 32 bits, which the engine checks at its start.
fn token(at: usize) -> u32 {
    at as u32
}

/// The tokens of a sequence that penalties look at; empty if it has no penalties.
#[derive(Debug, Default)]
pub struct History {
    active: bool,
    seen: Vec<Seen>,
    places: HashMap<u32, usize, BuildHasherDefault<Spread>>,
}

/// Spreads token ids, of which each candidate of each row is one: they are small and distinct, and a product with an odd
/// number keeps them so. Nobody can make more of them collide than the vocabulary holds.
#[derive(Clone, Copy, Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((self.0 as u32).rotate_left(8) ^ u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        let product = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug)]
struct Seen {
    id: u32,
    /// Occurrences in the output.
    count: u32,
}

impl History {
    /// The history of a sequence that starts with `prompt` and will get at most `max_new` tokens.
    pub fn new(params: &SamplingParams, prompt: &[u32], max_new: usize) -> Self {
        let mut history = History { active: params.has_penalties(), ..History::default() };
        if history.active {
            history.seen.reserve(prompt.len() + max_new);
            history.places.reserve(prompt.len() + max_new);
            if params.repetition_penalty != 1.0 {
                for &id in prompt {
                    history.seen_mut(id);
                }
            }
        }
        history
    }

    /// Adds an output token.
    pub fn push(&mut self, id: u32) {
        if self.active {
            self.seen_mut(id).count += 1;
        }
    }

    fn of(&self, id: u32) -> Option<&Seen> {
        self.places.get(&id).map(|at| &self.seen[*at])
    }

    fn seen_mut(&mut self, id: u32) -> &mut Seen {
        let next = self.seen.len();
        let at = *self.places.entry(id).or_insert(next);
        if at == next {
            self.seen.push(Seen { id, count: 0 });
        }
        &mut self.seen[at]
    }
}
