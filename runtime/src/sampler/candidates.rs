//! Picks from the likeliest tokens and the sum over all, for a backend that does not return its logits.
//!
//! What is exact, up to the rounding of `log_sum_exp`:
//!
//! * greedy without penalties: the backend's own choice;
//! * log-probabilities of candidates, whatever biases and masks there are;
//! * draws with `top_k` of at most the number of candidates, or with a `min_p` that the last candidate does not reach: the
//!   same tokens for the same seeds as from logits, at every temperature;
//! * `top_p` alone at temperature 1 without biases and penalties, while the kept tokens lie among the candidates: likewise.
//!
//! What lies within bounds: `top_p` at another temperature, with a smaller `min_p`, with a mask, or where a token beyond the candidates has a
//! bias or a penalty. The probability beyond the candidates is then known to an interval; its middle is taken. Which tokens
//! are kept differs from logits only if the limit falls into that interval, but a seed's token may be another one of them.
//!
//! What is cut: where tokens beyond the candidates may be among those kept, the draw is from the candidates alone, their
//! probabilities renormalised, and [`Drawn::renormalised`] says so. Without `top_k`, `top_p` and `min_p` that is when the
//! random number falls into the share of the others, whose order in a row of logits is unknown: seeds do not carry over
//! then. Penalties act on candidates: a greedy choice or one of the `top_k` that falls below the last candidate by its
//! penalties, or penalties that make tokens likelier, are reported in the same way.
//!
//! Where a mask was not applied by the device ([`Sampler::sample_late`]) the candidates that it leaves are drawn from: all of
//! the above holds, with what is not listed in the place of what is no candidate.
//!
//! Invariant: sums are added in the order of the logits' passes, so that they are the same bits where the others are 0.

use super::draw::{draw_candidate, total as weight_of, uniform};
use super::filter::{self, Candidate};
use super::params::SamplingParams;
use super::simd::{self, BLOCK};
use super::{NotFinite, Pick, Sampler, TokenLogprob, penalised};
use crate::backend::{Bias, CandidateRow, Masks};

/// A token drawn from candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// The token.
    pub id: u32,
    /// Whether tokens beyond the candidates might have been drawn, had they been known.
    pub renormalised: bool,
}

impl Drawn {
    fn exact(id: u32) -> Self {
        Drawn { id, renormalised: false }
    }
}

/// Weight of the tokens beyond the candidates, relative to the likeliest candidate's: at least, at most.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tail {
    low: f64,
    high: f64,
}

impl Tail {
    const NONE: Tail = Tail { low: 0.0, high: 0.0 };

    fn middle(self) -> f64 {
        (self.low + self.high) / 2.0
    }

    /// The same of `count` tokens of at most weight `floor` each, when every weight is raised to the power `scale`.
    fn scaled(self, count: f64, floor: f64, scale: f64) -> Tail {
        if scale == 1.0 || count == 0.0 || self.high == 0.0 {
            return self;
        }
        // Of a given sum, powers above 1 are largest when all tokens are as heavy as they may be, least when they are equal.
        let heaviest = |sum: f64| if floor > 0.0 { sum * floor.powf(scale - 1.0) } else { 0.0 };
        let equal = |sum: f64| count * (sum / count).powf(scale);
        let most = count * floor.powf(scale);
        if scale > 1.0 {
            Tail { low: equal(self.low).min(most), high: heaviest(self.high).min(most) }
        } else {
            Tail { low: heaviest(self.low).min(most), high: equal(self.high).min(most) }
        }
    }
}

impl Sampler {
    /// Picks output token number `pick.index` from candidates to which `biases` were added (those of forbidden tokens
    /// included) and `pick.mask` applied.
    pub fn sample_candidates(
        &mut self,
        row: CandidateRow<'_>,
        biases: &[Bias],
        pick: &Pick<'_>,
    ) -> Result<Drawn, NotFinite> {
        self.choose(row, biases, pick, false).map(|(drawn, _)| drawn)
    }

    /// The same from candidates to which `pick.mask` was not applied, because it was made while the device computed them.
    /// `None` where they say too little of the tokens that it allows, so that the device has to apply it: what is drawn
    /// otherwise is what would be drawn then, or, without `top_k`, as near to it as the candidates' share lets it be.
    pub fn sample_late(
        &mut self,
        row: CandidateRow<'_>,
        biases: &[Bias],
        pick: &Pick<'_>,
    ) -> Result<Option<Drawn>, NotFinite> {
        check(row)?;
        // Of candidates that are numbers: none of them is allowed.
        let Ok((drawn, certain)) = self.choose(row, biases, pick, true) else { return Ok(None) };
        let many = !pick.params.is_greedy() && !self.ranks(pick.params) && 2 * self.candidates.len() >= row.ids.len();
        Ok((certain || many).then_some(drawn))
    }

    /// Picks, and says whether the same token would be picked if all logits were known; `late` if `pick.mask` was not applied.
    fn choose(
        &mut self,
        row: CandidateRow<'_>,
        biases: &[Bias],
        pick: &Pick<'_>,
        late: bool,
    ) -> Result<(Drawn, bool), NotFinite> {
        let params = pick.params;
        check(row)?;
        let allowed = |id: u32| pick.mask.is_none_or(|mask| Masks::allows(mask, id)) && !pick.forbidden.contains(&id);
        if params.is_greedy() && pick.history.seen.is_empty() && (!late || allowed(row.greedy)) {
            return if allowed(row.greedy) { Ok((Drawn::exact(row.greedy), true)) } else { Err(NotFinite) };
        }
        let floor = self.split(row, pick, allowed).ok_or(NotFinite)?;
        let count = self.candidates.len() + self.edge.len();
        let complete = row.ids.len() >= self.vocab
            || match pick.mask {
                Some(mask) if late => allows_only(mask, count),
                // A device that ran out of allowed tokens has filled up with others.
                _ => count < row.ids.len(),
            };
        // Those that the mask left out are known to be more likely than what is not listed.
        let floor = if late { row.values.last().copied().unwrap_or(floor) } else { floor };
        let unseen = self.edge.len() < pick.history.seen.len();
        let raised = !complete && unseen && raises(params);
        self.candidates.sort_unstable_by(Candidate::order);
        merge(&mut self.candidates, &mut self.edge);
        let most = self.candidates[0].logit;
        if !most.is_finite() {
            return Err(NotFinite);
        }
        if params.is_greedy() {
            let renormalised = raised || (!complete && most < floor);
            return Ok((Drawn { id: self.candidates[0].id, renormalised }, !renormalised));
        }
        // What lies beyond is not asked for where the first candidates are all that is kept.
        let tail = if complete || (self.ranks(params) && params.top_k <= count) {
            Tail::NONE
        } else {
            self.tail(row, biases, pick.mask.is_some() || unseen, floor, most)
        };
        let (drawn, certain) = self.draw_some(most, floor, complete, tail, params, uniform(pick.seed, pick.index));
        Ok((Drawn { renormalised: drawn.renormalised || raised, ..drawn }, certain && !raised))
    }

    /// Takes over a row's tokens that may be picked: those without penalties into `candidates`, the others, penalised, into
    /// `edge`. Returns the last one's logit before penalties.
    fn split(&mut self, row: CandidateRow<'_>, pick: &Pick<'_>, allowed: impl Fn(u32) -> bool) -> Option<f32> {
        self.candidates.clear();
        self.edge.clear();
        let mut floor = None;
        for (&id, &logit) in row.ids.iter().zip(row.values) {
            if !(logit.is_finite() && allowed(id)) {
                continue;
            }
            floor = Some(logit);
            let weight = 0.0;
            match pick.history.of(id) {
                None => self.candidates.push(Candidate { logit, id, weight }),
                Some(seen) => self.edge.push(Candidate { logit: penalised(logit, pick.params, seen), id, weight }),
            }
        }
        floor
    }

    fn ranks(&self, params: &SamplingParams) -> bool {
        params.top_k > 0 && params.top_k < self.vocab
    }

    /// Draws from the ordered candidates, which are all there is if `complete`; `floor` is what no other token exceeds,
    /// `tail` their weight at temperature 1 as far as it is asked for. Says also whether they make no
    /// difference.
    fn draw_some(
        &mut self,
        most: f32,
        floor: f32,
        complete: bool,
        tail: Tail,
        params: &SamplingParams,
        u: f64,
    ) -> (Drawn, bool) {
        let scale = 1.0 / params.temperature;
        let (mut others, mut tail) = ((self.vocab - self.candidates.len()) as f64, tail);
        let heaviest = (f64::from(floor) - f64::from(most)).exp();
        let at_floor = simd::exp((floor - most).min(0.0) * scale);
        if tail.high > 0.0 && at_floor < params.min_p {
            tail = Tail::NONE;
        }
        let ranked = self.ranks(params);
        let beyond = params.top_k.saturating_sub(self.candidates.len());
        if ranked {
            self.candidates.truncate(params.top_k);
            if beyond == 0 {
                tail = Tail::NONE;
            } else if (beyond as f64) < others {
                others = beyond as f64;
                tail.low = 0.0;
                tail.high = tail.high.min(others * heaviest);
            }
        }
        // Of those that rank, penalties may have put some below tokens that are not known.
        let lowest = self.candidates.last().map_or(floor, |c| c.logit);
        let outranked =
            ranked && beyond == 0 && !complete && lowest < floor && at_floor > 0.0 && at_floor >= params.min_p;
        for candidate in &mut self.candidates {
            let weight = simd::exp((candidate.logit - most) * scale);
            candidate.weight = if weight >= params.min_p { weight } else { 0.0 };
        }
        let mut tail = tail.scaled(others, heaviest, f64::from(scale));
        if params.min_p > 0.0 && tail.high > 0.0 {
            tail.low = 0.0;
        }
        let top_p = f64::from(params.top_p);
        if ranked {
            let kept = self.candidates.partition_point(|c| c.weight > 0.0).max(1);
            let kept = &self.candidates[..kept];
            let head = weight_of(kept);
            let beyond = head < (head + tail.high) * top_p;
            let within = |tail: f64| match top_p < 1.0 {
                true => filter::reach(kept, ((head + tail) * top_p).min(head)),
                false => kept,
            };
            let few = within(tail.low).len();
            let certain = tail.high == 0.0 || few == within(tail.high).len();
            let kept = within(tail.middle());
            let sunk = outranked || (tail.high > 0.0 && kept.last().is_some_and(|c| c.logit < floor));
            let id = draw_candidate(kept, u * weight_of(kept)) as u32;
            return (Drawn { id, renormalised: beyond || sunk }, certain && !beyond && !sunk);
        }
        self.draw_unranked(tail, floor, top_p, u)
    }

    /// Draws as [`Sampler::draw`] does without `top_k`: in the order of ids.
    fn draw_unranked(&mut self, tail: Tail, floor: f32, top_p: f64, u: f64) -> (Drawn, bool) {
        self.candidates.sort_unstable_by_key(|c| c.id);
        let head = mass_at_least(&self.candidates, 0.0);
        if top_p >= 1.0 {
            let target = u * (head + tail.middle());
            let renormalised = target >= head && tail.high > 0.0;
            let target = if renormalised { u * head } else { target };
            let id = draw_weight(&self.candidates, 0.0, target);
            return (Drawn { id, renormalised }, tail.high == 0.0);
        }
        let total = head + tail.middle();
        let beyond = head < (head + tail.high) * top_p;
        let target = (total * top_p).min(head);
        let cut = ((1.0 - top_p) * total / self.vocab as f64).min(1.0) as f32;
        let (low, high, mass) = filter::narrow(cut, target, |least| mass_at_least(&self.candidates, least));
        let (least, above) = (f32::from_bits(low), f32::from_bits(high));
        self.edge.clear();
        self.edge.extend(self.candidates.iter().filter(|c| c.weight >= least && c.weight < above));
        self.edge.sort_unstable_by(Candidate::order);
        let edge = filter::reach(&self.edge, target - mass);
        // Penalties may have put candidates below tokens that are none.
        let sunk = tail.high > 0.0 && edge.last().is_some_and(|c| c.logit < floor);
        let target = u * (mass + weight_of(edge));
        let id = if target >= mass && !edge.is_empty() {
            draw_candidate(edge, target - mass) as u32
        } else {
            draw_weight(&self.candidates, above, target)
        };
        (Drawn { id, renormalised: beyond || sunk }, tail.high == 0.0)
    }

    /// Weight of the tokens that are not listed at temperature 1, relative to logit `most`. Of some of them `changed` says that a
    /// mask or a penalty may have taken weight.
    fn tail(&self, row: CandidateRow<'_>, biases: &[Bias], changed: bool, floor: f32, most: f32) -> Tail {
        let most = f64::from(most);
        let weight = |logit: f64| (logit - most).exp();
        let mut rest = weight(f64::from(row.log_sum_exp));
        for (&id, &value) in row.ids.iter().zip(row.values) {
            let logit = f64::from(value) - bias_of(biases, id);
            // A forbidden token's cannot be had back: its weight stays in the rest.
            rest -= if logit.is_finite() { weight(logit) } else { 0.0 };
        }
        let rest = rest.max(0.0);
        let biased = biases.iter().filter(|b| !row.ids.contains(&b.id));
        let (hidden, biased) =
            biased.fold((0, 0), |(all, some), b| (all + 1, some + usize::from(b.value > f32::NEG_INFINITY)));
        let heaviest = weight(f64::from(floor));
        let count = self.vocab.saturating_sub(row.ids.len()) as f64;
        let high = rest.min(count * heaviest);
        if hidden == 0 && !changed {
            return Tail { low: high, high };
        }
        Tail { low: 0.0, high: high + biased as f64 * heaviest }
    }

    /// Log-probability of candidate `id` under the model, beside those of the `top` likeliest ones among the candidates.
    pub fn candidate_logprob(
        &mut self,
        row: CandidateRow<'_>,
        biases: &[Bias],
        id: u32,
        top: usize,
    ) -> Result<TokenLogprob, NotFinite> {
        self.candidates.clear();
        for (&id, &value) in row.ids.iter().zip(row.values) {
            let logit = (f64::from(value) - bias_of(biases, id)) as f32;
            // A forbidden token's logit cannot be had back.
            if logit.is_finite() {
                self.candidates.push(Candidate { logit, id, weight: 0.0 });
            }
        }
        let logprob = |logit: f32| (f64::from(logit) - f64::from(row.log_sum_exp)) as f32;
        let chosen = self.candidates.iter().find(|c| c.id == id).ok_or(NotFinite)?;
        let mut result = TokenLogprob { id, logprob: logprob(chosen.logit), top: Vec::new() };
        if top > 0 {
            self.candidates.sort_unstable_by(Candidate::order);
            result.top = self.candidates.iter().take(top).map(|c| (c.id, logprob(c.logit))).collect();
        }
        Ok(result)
    }
}

/// That candidates are numbers.
fn check(row: CandidateRow<'_>) -> Result<(), NotFinite> {
    let bad = !row.log_sum_exp.is_finite() || row.values.iter().any(|v| v.is_nan() || *v == f32::INFINITY);
    if bad { Err(NotFinite) } else { Ok(()) }
}

/// The model's probability of the candidates, biases included: of all that is allowed, where a mask was applied.
pub fn mass(row: CandidateRow<'_>) -> f64 {
    row.values.iter().map(|value| f64::from(simd::exp((value - row.log_sum_exp).min(0.0)))).sum()
}

/// Whether a mask allows no more than so many tokens.
fn allows_only(mask: &[u32], count: usize) -> bool {
    let mut left = count;
    mask.iter().all(|word| {
        let ones = word.count_ones() as usize;
        let fits = ones <= left;
        left = left.saturating_sub(ones);
        fits
    })
}

/// Whether penalties may make a token likelier.
fn raises(params: &SamplingParams) -> bool {
    params.repetition_penalty < 1.0 || params.presence_penalty < 0.0 || params.frequency_penalty < 0.0
}

/// Puts the `edge` among the ordered candidates, in order.
fn merge(candidates: &mut Vec<Candidate>, edge: &mut [Candidate]) {
    edge.sort_unstable_by(Candidate::order);
    let (mut from, mut left) = (candidates.len(), edge.len());
    candidates.extend_from_slice(edge);
    while left > 0 {
        let to = from + left - 1;
        if from > 0 && candidates[from - 1].order(&edge[left - 1]).is_gt() {
            candidates[to] = candidates[from - 1];
            from -= 1;
        } else {
            candidates[to] = edge[left - 1];
            left -= 1;
        }
    }
}

fn bias_of(biases: &[Bias], id: u32) -> f64 {
    biases.iter().find(|b| b.id == id).map_or(0.0, |b| f64::from(b.value))
}

/// Blocks of candidates in order of their ids, as rows of logits are divided.
fn blocks(candidates: &[Candidate]) -> impl Iterator<Item = &[Candidate]> {
    candidates.chunk_by(|a, b| a.id as usize / BLOCK == b.id as usize / BLOCK)
}

/// Sum of the weights that are at least `least`, in the order of [`simd::mass_at_least`].
fn mass_at_least(candidates: &[Candidate], least: f32) -> f64 {
    blocks(candidates).map(|block| block_mass(block, least)).sum()
}

fn block_mass(block: &[Candidate], least: f32) -> f64 {
    let mut sums = [0f32; simd::LANES];
    for c in block {
        sums[c.id as usize % simd::LANES] += if c.weight >= least { c.weight } else { 0.0 };
    }
    sums.into_iter().map(f64::from).sum()
}

/// The token at which the running sum of weights of at least `least` exceeds `target`, in the order of ids.
fn draw_weight(candidates: &[Candidate], least: f32, target: f64) -> u32 {
    let counts = |c: &&Candidate| c.weight > 0.0 && c.weight >= least;
    let mut sum = 0.0;
    for block in blocks(candidates) {
        let mass = block_mass(block, least);
        if sum + mass <= target {
            sum += mass;
            continue;
        }
        let mut last = None;
        for c in block.iter().filter(counts) {
            (sum, last) = (sum + f64::from(c.weight), Some(c.id));
            if sum > target {
                break;
            }
        }
        if let Some(id) = last {
            return id;
        }
    }
    // Rounding has put the target at the very end.
    candidates.iter().rfind(counts).map_or(0, |c| c.id)
}
