//! Drawing from candidates against drawing from the logits they were taken from.

use super::*;
use crate::backend::{Bias, Candidates, Masks};

/// What a device returns of `logits`: bias and mask applied, the `count` largest, ties by id.
pub fn candidates(logits: &[f32], biases: &[Bias], mask: Option<&[u32]>, count: usize) -> Candidates {
    let mut row = logits.to_vec();
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
    let log_sum_exp = (f64::from(most) + sum.ln()) as f32;
    biases.iter().for_each(|b| row[b.id as usize] += b.value);
    if let Some(mask) = mask {
        let masked = row.iter_mut().enumerate().filter(|(i, _)| !Masks::allows(mask, *i as u32));
        masked.for_each(|(_, x)| *x = f32::NEG_INFINITY);
    }
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    order.truncate(count);
    Candidates {
        count: order.len(),
        values: order.iter().map(|&id| row[id as usize]).collect(),
        log_sum_exp: vec![log_sum_exp],
        greedy: vec![order[0]],
        ids: order,
    }
}

fn biases(params: &SamplingParams, forbidden: &[u32]) -> Vec<Bias> {
    let given = params.logit_bias.iter().filter(|(id, _)| !forbidden.contains(id));
    let given = given.map(|&(id, value)| Bias { output: 0, id, value });
    given.chain(forbidden.iter().map(|&id| Bias { output: 0, id, value: f32::NEG_INFINITY })).collect()
}

fn mask_of(vocab: usize, allowed: impl Fn(usize) -> bool) -> Vec<u32> {
    let mut mask = vec![0; Masks::words_for(vocab)];
    (0..vocab).filter(|i| allowed(*i)).for_each(|i| mask[i / 32] |= 1 << (i % 32));
    mask
}

#[test]
fn draws_beyond_the_candidates_are_reported_as_often_as_they_happen() {
    // 100 equal tokens, 25 of them known: three draws of four want another one.
    let (logits, params, history) = (vec![1.0; 100], at(1.0), History::default());
    let few = candidates(&logits, &[], None, 25);
    let mut sampler = Sampler::new(100);
    let mut count = 0;
    for index in 0..4000 {
        let drawn = sampler.sample_candidates(few.row(0), &[], &choose(&params, &history, 3, index)).unwrap();
        assert!(drawn.id < 25);
        count += usize::from(drawn.renormalised);
    }
    assert!((2880..3120).contains(&count), "{count} of 4000");
    let half = SamplingParams { top_p: 0.2, ..at(1.0) };
    let drawn = sampler.sample_candidates(few.row(0), &[], &choose(&half, &history, 3, 0)).unwrap();
    assert!(!drawn.renormalised);
    let most = SamplingParams { top_p: 0.3, ..at(1.0) };
    let drawn = sampler.sample_candidates(few.row(0), &[], &choose(&most, &history, 3, 0)).unwrap();
    assert!(drawn.renormalised);
}

#[test]
fn a_greedy_choice_that_penalties_push_below_the_candidates_is_reported() {
    let logits = [5.0, 4.0, 3.0, 2.9, 0.0];
    let params = SamplingParams { presence_penalty: 2.0, ..at(0.0) };
    let mut history = History::new(&params, &[], 8);
    history.push(0);
    let (two, mut sampler) = (candidates(&logits, &[], None, 2), Sampler::new(5));
    let mut greedy = |history: &History| sampler.sample_candidates(two.row(0), &[], &choose(&params, history, 0, 0));
    assert_eq!(greedy(&history), Ok(Drawn { id: 1, renormalised: false }));
    history.push(1);
    assert_eq!(greedy(&history), Ok(Drawn { id: 0, renormalised: true }), "token 2 would be right");
}

#[test]
fn ranks_that_penalties_push_below_the_candidates_are_reported() {
    let logits = [5.0, 4.0, 3.0, 2.9, 0.0];
    let params = SamplingParams { presence_penalty: 1.5, top_k: 2, ..at(1.0) };
    let mut history = History::new(&params, &[], 8);
    let (three, mut sampler) = (candidates(&logits, &[], None, 3), Sampler::new(5));
    let mut reported = |params: &SamplingParams, history: &History| {
        sampler.sample_candidates(three.row(0), &[], &choose(params, history, 0, 0)).unwrap().renormalised
    };
    history.push(1);
    assert!(!reported(&params, &history), "tokens 0 and 2 are the two");
    history.push(2);
    assert!(reported(&params, &history), "token 3 is the second");
    assert!(!reported(&SamplingParams { min_p: 0.5, ..params.clone() }, &history), "it is too unlikely");
}

#[test]
fn candidates_that_are_not_numbers_or_not_allowed_are_refused() {
    let (params, history, mut sampler) = (at(0.0), History::default(), Sampler::new(4));
    let good = candidates(&[1.0, 2.0, 3.0, 4.0], &[], None, 2);
    let mut bad = good.clone();
    bad.log_sum_exp[0] = f32::NAN;
    let pick = choose(&params, &history, 0, 0);
    assert_eq!(sampler.sample_candidates(bad.row(0), &[], &pick), Err(NotFinite));
    let mut bad = good.clone();
    bad.values[1] = f32::NAN;
    assert_eq!(sampler.sample_candidates(bad.row(0), &[], &pick), Err(NotFinite));
    // A device that was asked for none of its tokens returns those that it masked.
    for temperature in [0.0, 1.0] {
        let params = at(temperature);
        let forbidden = Pick { forbidden: &[3, 2], ..choose(&params, &history, 0, 0) };
        assert_eq!(sampler.sample_candidates(good.row(0), &[], &forbidden), Err(NotFinite));
        let masked = Pick { mask: Some(&[0b0011]), ..choose(&params, &history, 0, 0) };
        assert_eq!(sampler.sample_candidates(good.row(0), &[], &masked), Err(NotFinite));
    }
}

#[test]
fn a_late_mask_asks_the_device_only_where_candidates_do_not_tell() {
    let logits: Vec<f32> = (0..1000).map(|i| 10.0 - 0.2 * i as f32).collect();
    let (few, history, mut sampler) = (candidates(&logits, &[], None, 64), History::default(), Sampler::new(1000));
    let mut late = |params: &SamplingParams, mask: &[u32]| {
        let pick = Pick { mask: Some(mask), ..choose(params, &history, 3, 1) };
        sampler.sample_late(few.row(0), &[], &pick).unwrap().map(|drawn| drawn.id)
    };
    let ranked = |top_k, top_p| SamplingParams { top_k, top_p, ..at(0.8) };
    let (even, third, far) = (mask_of(1000, |i| i % 2 == 1), mask_of(1000, |i| i % 3 == 1), mask_of(1000, |i| i > 63));
    assert_eq!(late(&at(0.0), &even), Some(1), "the likeliest that is allowed");
    assert_eq!(late(&at(0.0), &far), None, "it is none of the candidates");
    assert!(late(&ranked(20, 1.0), &even).is_some(), "32 are allowed");
    assert_eq!(late(&ranked(40, 1.0), &even), None, "32 of 40");
    assert!(late(&ranked(40, 0.9), &even).is_some(), "the others have no part in the first 0.9");
    assert!(late(&ranked(40, 1.0), &mask_of(1000, |i| i == 3 || i == 9)).is_some(), "there are no more");
    assert!(late(&at(1.0), &even).is_some(), "half of them");
    assert_eq!(late(&at(1.0), &third), None);
    assert!((mass(few.row(0)) - 1.0).abs() < 1e-4);
}

#[test]
fn a_mask_works_on_logits_and_leaves_them_as_they_were() {
    let logits = rough(300, 6.0);
    let mask = mask_of(300, |i| i % 7 == 3);
    let (mut row, history, mut sampler) = (logits.clone(), History::default(), Sampler::new(300));
    let best = (0..300u32).filter(|i| i % 7 == 3).max_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize]));
    let (cold, hot) = (at(0.0), at(2.0));
    let greedy = Pick { mask: Some(&mask), ..choose(&cold, &history, 1, 0) };
    assert_eq!(sampler.sample(&mut row, &greedy), Ok(best.unwrap()));
    for index in 0..500 {
        let drawn = Pick { mask: Some(&mask), ..choose(&hot, &history, 1, index) };
        assert_eq!(sampler.sample(&mut row, &drawn).unwrap() % 7, 3);
    }
    let none = Pick { mask: Some(&[0; 10]), ..choose(&cold, &history, 1, 0) };
    assert_eq!(sampler.sample(&mut row, &none), Err(NotFinite));
    let short = Pick { mask: Some(&[1]), ..choose(&cold, &history, 1, 0) };
    assert_eq!(sampler.sample(&mut row, &short), Ok(0));
    assert_eq!(row, logits);
}

#[test]
fn log_probabilities_of_candidates_are_the_models_whatever_was_added() {
    let logits = rough(5000, 20.0);
    let params = SamplingParams { logit_bias: vec![(7, 12.5), (4000, -3.0)], ..at(1.0) };
    let added = biases(&params, &[]);
    let few = candidates(&logits, &added, None, 64);
    let mut sampler = Sampler::new(5000);
    for &id in &few.ids[..20] {
        let exact = sampler.logprob(&logits, id, 20).unwrap();
        let ours = sampler.candidate_logprob(few.row(0), &added, id, 20).unwrap();
        assert!((ours.logprob - exact.logprob).abs() < 5e-6, "{id}: {} not {}", ours.logprob, exact.logprob);
        for (a, b) in ours.top.iter().zip(&exact.top) {
            assert_eq!(a.0, b.0);
            assert!((a.1 - b.1).abs() < 5e-6);
        }
    }
}

prop_compose! {
    fn any_params()(
        temperature in prop::sample::select(vec![0.0f32, 0.3, 0.8, 1.0, 1.0, 1.7]),
        top_k in prop::sample::select(vec![0usize, 0, 5, 20, 64]),
        top_p in prop::sample::select(vec![1.0f32, 0.95, 0.7, 0.2]),
        min_p in prop::sample::select(vec![0.0f32, 0.0, 0.02, 0.3]),
        bias in prop::collection::btree_map(0u32..600, -5.0f32..5.0, 0..4),
    ) -> SamplingParams {
        SamplingParams { temperature, top_k, top_p, min_p, logit_bias: bias.into_iter().collect(), ..at(0.0) }
    }
}

/// Parameters with which the weight of the tokens beyond the candidates is known.
fn tail_is_known(params: &SamplingParams) -> bool {
    params.temperature == 1.0 && params.min_p == 0.0 && params.logit_bias.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_seed_gives_the_same_token_from_candidates_while_what_is_kept_lies_among_them(
        steep in 2.0f32..40.0,
        noise: u64,
        params in any_params(),
        forbidden in prop::collection::btree_set(0u32..600, 0..3),
        masked in prop::sample::select(vec![0usize, 0, 3, 50]),
        seed: u64,
    ) {
        let logits: Vec<f32> = (0..600).map(|i| (uniform(noise, i) as f32 - 0.5) * steep).collect();
        let forbidden: Vec<u32> = forbidden.into_iter().collect();
        let mask = (masked > 0).then(|| mask_of(600, |i| i % masked == 1));
        let added = biases(&params, &forbidden);
        let few = candidates(&logits, &added, mask.as_deref(), 64);
        let (mut sampler, history, mut row) = (Sampler::new(600), History::default(), logits);
        for index in 0..10 {
            let pick = Pick {
                params: &params, history: &history, forbidden: &forbidden, mask: mask.as_deref(), seed, index,
            };
            let exact = sampler.sample(&mut row, &pick).unwrap();
            let drawn = sampler.sample_candidates(few.row(0), &added, &pick).unwrap();
            let complete = masked == 50;
            let within = params.is_greedy() || params.top_k > 0 || complete || few_suffice(&few, &params)
                || (params.top_p < 1.0 && tail_is_known(&params) && masked == 0 && forbidden.is_empty());
            if drawn.renormalised || !within || drawn.id == exact {
                continue;
            }
            // The sum over all tokens is rounded twice on different ways: a number that near a limit may fall on either side.
            let near = [-4e-6f32, -1e-6, 1e-6, 4e-6].into_iter().any(|nudge| {
                let mut nudged = few.clone();
                nudged.log_sum_exp[0] += nudge;
                sampler.sample_candidates(nudged.row(0), &added, &pick).unwrap().id == exact
            });
            prop_assert!(near, "{} from candidates, {exact} from logits", drawn.id);
        }
    }

    #[test]
    fn penalised_draws_by_rank_are_those_from_logits_or_reported(
        steep in 2.0f32..40.0,
        noise: u64,
        params in any_params(),
        (repetition, presence, frequency) in (1.0f32..1.5, 0.0f32..2.0, 0.0f32..2.0),
        likely in 0usize..64,
        others in prop::collection::vec(0u32..600, 0..40),
        seed: u64,
    ) {
        let logits: Vec<f32> = (0..600).map(|i| (uniform(noise, i) as f32 - 0.5) * steep).collect();
        let params = SamplingParams {
            repetition_penalty: repetition, presence_penalty: presence, frequency_penalty: frequency, ..params
        };
        prop_assume!(params.is_greedy() || params.top_k > 0);
        let added = biases(&params, &[]);
        let few = candidates(&logits, &added, None, 64);
        let mut history = History::new(&params, &others, 64);
        few.ids[..likely].iter().chain(&others[others.len() / 2..]).for_each(|id| history.push(*id));
        let (mut sampler, mut row) = (Sampler::new(600), logits);
        for index in 0..10 {
            let pick = choose(&params, &history, seed, index);
            let exact = sampler.sample(&mut row, &pick).unwrap();
            let drawn = sampler.sample_candidates(few.row(0), &added, &pick).unwrap();
            prop_assert!(drawn.renormalised || drawn.id == exact, "{} from candidates, {exact} from logits", drawn.id);
        }
    }

    /// What is drawn from unmasked candidates is what the device's mask would have given, or it is to be asked.
    #[test]
    fn a_mask_that_comes_late_changes_no_token(
        steep in 2.0f32..60.0,
        noise: u64,
        params in any_params(),
        penalty in prop::sample::select(vec![0.0f32, 0.0, 1.0]),
        every in 1usize..40,
        likely in 0usize..20,
        seed: u64,
    ) {
        let logits: Vec<f32> = (0..600).map(|i| (uniform(noise, i) as f32 - 0.5) * steep).collect();
        let params = SamplingParams { presence_penalty: penalty, ..params };
        let added = biases(&params, &[]);
        let few = candidates(&logits, &added, None, 64);
        let mask = mask_of(600, |i| i % every == 0);
        let masked = candidates(&logits, &added, Some(&mask), 64);
        let mut history = History::new(&params, &[], 64);
        few.ids[..likely].iter().for_each(|id| history.push(*id));
        let (mut sampler, mut row) = (Sampler::new(600), logits);
        for index in 0..10 {
            let pick = Pick { mask: Some(&mask), ..choose(&params, &history, seed, index) };
            let late = sampler.sample_late(few.row(0), &added, &pick).unwrap();
            let Some(late) = late else { continue };
            prop_assert!(Masks::allows(&mask, late.id) && few.ids.contains(&late.id));
            if params.is_greedy() || params.top_k > 0 {
                prop_assert_eq!(late.id, sampler.sample(&mut row, &pick).unwrap());
                let applied = sampler.sample_candidates(masked.row(0), &added, &pick).unwrap();
                prop_assert!(applied.renormalised || applied.id == late.id);
            }
        }
    }

    #[test]
    fn what_is_not_reported_lies_within_the_kept_tokens_of_the_logits(
        steep in 2.0f32..40.0,
        noise: u64,
        params in any_params(),
        forbidden in prop::collection::btree_set(0u32..600, 0..3),
        seed: u64,
    ) {
        let logits: Vec<f32> = (0..600).map(|i| (uniform(noise, i) as f32 - 0.5) * steep).collect();
        let forbidden: Vec<u32> = forbidden.into_iter().collect();
        let added = biases(&params, &forbidden);
        let few = candidates(&logits, &added, None, 64);
        let mut row = logits;
        added.iter().for_each(|b| row[b.id as usize] += b.value);
        // The middle of an interval is taken: what is kept is what some top_p near by keeps, which the counter does not tell.
        let loose = SamplingParams { top_p: 1.0, min_p: params.min_p * 0.999, logit_bias: vec![], ..params.clone() };
        let (mut sampler, history) = (Sampler::new(600), History::default());
        for index in 0..10 {
            let pick = Pick { params: &params, history: &history, forbidden: &forbidden, mask: None, seed, index };
            let drawn = sampler.sample_candidates(few.row(0), &added, &pick).unwrap();
            prop_assert!(few.ids.contains(&drawn.id) && !forbidden.contains(&drawn.id));
            if !params.is_greedy() {
                prop_assert!(reference(&row, &loose)[drawn.id as usize] > 0.0);
            }
        }
    }

    #[test]
    fn any_candidates_give_one_of_them_or_an_error(
        bits in prop::collection::vec(any::<u32>(), 1..80),
        log_sum_exp: f32,
        greedy in 0u32..200,
        params in any_params(),
        penalty in -2.0f32..2.0,
    ) {
        let params = SamplingParams { presence_penalty: penalty, ..params };
        let mut history = History::new(&params, &[], 4);
        [3, 5, 190].into_iter().for_each(|id| history.push(id));
        let any = Candidates {
            count: bits.len(),
            values: bits.iter().map(|b| f32::from_bits(*b)).collect(),
            ids: (0..bits.len() as u32).collect(),
            log_sum_exp: vec![log_sum_exp],
            greedy: vec![greedy],
        };
        let added = biases(&params, &[]);
        if let Ok(drawn) = Sampler::new(200).sample_candidates(any.row(0), &added, &choose(&params, &history, 1, 1)) {
            prop_assert!(any.ids.contains(&drawn.id) || (params.is_greedy() && drawn.id == greedy));
        }
    }
}

/// Whether min-p drops the last candidate.
fn few_suffice(few: &Candidates, params: &SamplingParams) -> bool {
    let (first, last) = (few.values[0], few.values[few.count - 1]);
    params.min_p > 0.0 && ((last - first) / params.temperature).exp() < params.min_p * 0.99
}
