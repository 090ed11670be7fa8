//! Sampling against values worked out by hand and against the distribution itself.

use proptest::prelude::*;

use super::*;

pub mod candidates;

fn choose<'a>(params: &'a SamplingParams, history: &'a History, seed: u64, index: u64) -> Pick<'a> {
    Pick { params, history, forbidden: &[], mask: None, seed, index }
}

fn pick(logits: &[f32], params: &SamplingParams, history: &History, index: u64) -> u32 {
    let mut row = logits.to_vec();
    let picked = Sampler::new(logits.len()).sample(&mut row, &choose(params, history, 7, index)).unwrap();
    assert_eq!(row, logits, "the row is restored");
    picked
}

fn at(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..SamplingParams::default() }
}

/// Probabilities after temperature and filters, from their definitions.
fn reference(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let softmax = |logits: &[f64]| -> Vec<f64> {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logits.iter().map(|x| (x - most).exp()).sum();
        logits.iter().map(|x| (x - most).exp() / total).collect()
    };
    let mut scaled: Vec<f64> = logits.iter().map(|&x| f64::from(x) / f64::from(params.temperature)).collect();
    let probs = softmax(&scaled);
    let most = probs.iter().copied().fold(0.0, f64::max);
    for (x, p) in scaled.iter_mut().zip(&probs) {
        if *p < most * f64::from(params.min_p) {
            *x = f64::NEG_INFINITY;
        }
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| scaled[b].total_cmp(&scaled[a]).then(a.cmp(&b)));
    if params.top_k > 0 {
        for &i in order.iter().skip(params.top_k) {
            scaled[i] = f64::NEG_INFINITY;
        }
    }
    let probs = softmax(&scaled);
    let mut before = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        if rank > 0 && before >= f64::from(params.top_p) {
            scaled[i] = f64::NEG_INFINITY;
        }
        before += probs[i];
    }
    softmax(&scaled)
}

/// Chi-square statistic of `n` draws, and the degrees of freedom.
fn chi_square(logits: &[f32], params: &SamplingParams, n: u64) -> (f64, usize) {
    let (mut sampler, mut row) = (Sampler::new(logits.len()), logits.to_vec());
    let history = History::default();
    let mut counts = vec![0f64; logits.len()];
    for index in 0..n {
        let id = sampler.sample(&mut row, &choose(params, &history, 42, index)).unwrap();
        counts[id as usize] += 1.0;
    }
    let (mut sum, mut cells, mut rest) = (0.0, 0, (0.0, 0.0));
    for (count, p) in counts.iter().zip(reference(logits, params)) {
        let wanted = p * n as f64;
        assert!(p > 0.0 || *count == 0.0, "a filtered token was drawn");
        if wanted < 5.0 {
            rest = (rest.0 + count, rest.1 + wanted);
        } else {
            sum += (count - wanted).powi(2) / wanted;
            cells += 1;
        }
    }
    if rest.1 >= 5.0 {
        sum += (rest.0 - rest.1).powi(2) / rest.1;
        cells += 1;
    }
    (sum, cells - 1)
}

fn rough(n: usize, spread: f32) -> Vec<f32> {
    let logit = |i| (uniform(99, i) as f32 - 0.5) * spread;
    (0..n as u64).map(logit).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let cases = [
        (rough(10, 4.0), at(1.0)),
        (rough(10, 4.0), at(0.5)),
        (rough(700, 6.0), at(1.0)),
        (rough(700, 6.0), SamplingParams { top_k: 40, ..at(0.8) }),
        (rough(700, 6.0), SamplingParams { top_p: 0.7, ..at(1.0) }),
        (rough(700, 6.0), SamplingParams { min_p: 0.2, ..at(1.0) }),
        (rough(700, 6.0), SamplingParams { min_p: 0.1, top_p: 0.9, ..at(1.3) }),
        (rough(700, 6.0), SamplingParams { min_p: 0.1, top_p: 0.5, top_k: 30, ..at(1.3) }),
    ];
    for (logits, params) in cases {
        let (sum, freedom) = chi_square(&logits, &params, 60_000);
        // Mean + 4.5 standard deviations of the chi-square distribution: once in some 10^5 for a right sampler.
        let freedom = freedom as f64;
        let limit = freedom + 4.5 * (2.0 * freedom).sqrt() + 3.0;
        assert!(sum < limit, "{params:?}: {sum:.1} with {freedom} degrees of freedom");
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest_and_ignores_filters() {
    let logits = [0.0, 3.0, 1.0, 3.0];
    let params = SamplingParams { top_k: 3, top_p: 0.1, min_p: 0.5, ..at(0.0) };
    assert_eq!(pick(&logits, &params, &History::default(), 0), 1);
}

#[test]
fn filters_at_their_limits_keep_one_token_or_all() {
    let logits = rough(300, 6.0);
    let best = simd::argmax(&logits).unwrap().1 as u32;
    let one = [
        SamplingParams { top_p: 0.0, ..at(2.0) },
        SamplingParams { top_k: 1, ..at(2.0) },
        SamplingParams { min_p: 1.0, ..at(2.0) },
    ];
    for params in one {
        for index in 0..200 {
            assert_eq!(pick(&logits, &params, &History::default(), index), best);
        }
    }
    let all = [
        SamplingParams { top_p: 1.0, ..at(2.0) },
        SamplingParams { top_k: 300, ..at(2.0) },
        SamplingParams { top_k: usize::MAX, ..at(2.0) },
    ];
    for params in all {
        for index in 0..200 {
            let same = pick(&logits, &at(2.0), &History::default(), index);
            assert_eq!(pick(&logits, &params, &History::default(), index), same);
        }
    }
}

#[test]
fn top_p_keeps_the_token_that_reaches_it() {
    // Probabilities 1/2, 1/4, 1/8, 1/8.
    let logits = [0.5f32.ln(), 0.25f32.ln(), 0.125f32.ln(), 0.125f32.ln()];
    let drawn = |top_p| {
        let params = SamplingParams { top_p, ..at(1.0) };
        let mut seen = [false; 4];
        for index in 0..500 {
            seen[pick(&logits, &params, &History::default(), index) as usize] = true;
        }
        seen
    };
    assert_eq!(drawn(0.49), [true, false, false, false]);
    assert_eq!(drawn(0.51), [true, true, false, false]);
    assert_eq!(drawn(0.74), [true, true, false, false]);
    assert_eq!(drawn(0.8), [true, true, true, false]);
    assert_eq!(drawn(0.999), [true, true, true, true]);
}

/// Logits after bias and penalties.
fn adjusted(logits: &[f32], params: &SamplingParams, prompt: &[u32], output: &[u32]) -> Vec<f32> {
    let mut history = History::new(params, prompt, 8);
    output.iter().for_each(|id| history.push(*id));
    let mut row = logits.to_vec();
    Sampler::new(logits.len()).adjust(&mut row, params, &history, &[]);
    row
}

#[test]
fn penalties_have_the_values_of_their_formulas() {
    let logits = [2.0, -2.0, 1.0, 0.0, 4.0];
    let (prompt, output) = ([0, 1, 1], [2, 2, 1]);
    // Transformers' RepetitionPenaltyLogitsProcessor: positive logits of tokens in prompt or output are divided,
    // negative ones multiplied, each once.
    let repetition = SamplingParams { repetition_penalty: 2.0, ..at(1.0) };
    assert_eq!(adjusted(&logits, &repetition, &prompt, &output), [1.0, -4.0, 0.5, 0.0, 4.0]);
    // OpenAI: frequency * count in the output, presence once if it is there; the prompt does not count.
    let openai = SamplingParams { frequency_penalty: 0.5, presence_penalty: 0.25, ..at(1.0) };
    assert_eq!(adjusted(&logits, &openai, &prompt, &output), [2.0, -2.75, -0.25, 0.0, 4.0]);
    // vLLM: bias first, then repetition, then frequency and presence.
    let all = SamplingParams { logit_bias: vec![(2, 1.0), (3, -5.0)], repetition_penalty: 2.0, ..openai };
    assert_eq!(adjusted(&logits, &all, &prompt, &output), [1.0, -4.75, -0.25, -5.0, 4.0]);
}

#[test]
fn bias_and_forbidden_tokens_steer_the_choice_and_leave_the_row_as_it_was() {
    let logits = [1.0, 2.0, 3.0];
    let bias = SamplingParams { logit_bias: vec![(0, 100.0)], ..at(0.0) };
    assert_eq!(pick(&logits, &bias, &History::default(), 0), 0);
    let mut row = logits.to_vec();
    let mut sampler = Sampler::new(3);
    let history = History::default();
    let params = at(1.0);
    let mut forbid =
        |ids: &[u32]| sampler.sample(&mut row, &Pick { forbidden: ids, ..choose(&params, &history, 1, 0) });
    assert_eq!(forbid(&[1, 2, 2, 77]), Ok(0), "ids beyond the vocabulary are ignored");
    assert_eq!(forbid(&[0, 1, 2]), Err(NotFinite));
    assert_eq!(row, logits);
}

#[test]
fn rows_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        for params in [at(0.0), at(1.0), SamplingParams { top_k: 5, ..at(1.0) }] {
            let mut row = rough(600, 2.0);
            row[555] = bad;
            let mut sampler = Sampler::new(600);
            let picked = sampler.sample(&mut row, &choose(&params, &History::default(), 0, 0));
            assert_eq!(picked, Err(NotFinite));
            assert_eq!(sampler.logprob(&row, 0, 0), Err(NotFinite));
        }
    }
}

#[test]
fn log_probabilities_equal_those_of_double_precision() {
    let logits = rough(5000, 20.0);
    let exact = reference(&logits, &at(1.0));
    let mut sampler = Sampler::new(logits.len());
    let result = sampler.logprob(&logits, 1234, 20).unwrap();
    assert!((f64::from(result.logprob) - exact[1234].ln()).abs() < 2e-6);
    let mut order: Vec<usize> = (0..5000).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    for (&(id, logprob), &wanted) in result.top.iter().zip(&order) {
        assert_eq!(id as usize, wanted);
        assert_eq!(logprob, sampler.logprob(&logits, id, 0).unwrap().logprob);
    }
    assert_eq!(result.top.len(), 20);
}

#[test]
fn random_numbers_are_those_of_splitmix64() {
    // The generator's first outputs for seed 0 are e220a8397b1dcdaf, 6e789e6aa1b965f4; `uniform` runs the stream that
    // starts at the first one.
    let mut state: u64 = 0xe220_a839_7b1d_cdaf;
    for index in 0..5 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        assert_eq!(uniform(0, index), (z >> 11) as f64 / 2f64.powi(53));
    }
    let mean: f64 = (0..100_000).map(|seed| uniform(seed, 3)).sum::<f64>() / 1e5;
    assert!((mean - 0.5).abs() < 0.005, "neighbouring seeds give unrelated numbers");
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let refused = |params: SamplingParams| params.validate(100).unwrap_err().to_string();
    let base = SamplingParams::default();
    assert_eq!(base.validate(100), Ok(()));
    assert_eq!(
        refused(SamplingParams { temperature: -0.1, ..base.clone() }),
        "temperature is -0.1, it must be between 0 and 2"
    );
    assert_eq!(refused(SamplingParams { top_p: 1.5, ..base.clone() }), "top_p is 1.5, it must be between 0 and 1");
    assert!(refused(SamplingParams { min_p: f32::NAN, ..base.clone() }).starts_with("min_p"));
    assert_eq!(
        refused(SamplingParams { repetition_penalty: 0.0, ..base.clone() }),
        "repetition_penalty is 0, it must be positive and finite"
    );
    assert_eq!(
        refused(SamplingParams { presence_penalty: 2.5, ..base.clone() }),
        "presence_penalty is 2.5, it must be between -2 and 2"
    );
    assert_eq!(
        refused(SamplingParams { logit_bias: vec![(100, 1.0)], ..base.clone() }),
        "logit_bias holds token id 100, but the vocabulary has 100 tokens"
    );
    assert_eq!(
        refused(SamplingParams { logit_bias: vec![(0, 0.0); 1025], ..base }),
        "logit_bias has 1025 entries, the limit is 1024"
    );
}

proptest! {
    #[test]
    fn only_tokens_that_the_filters_keep_are_drawn(
        logits in prop::collection::vec(-8.0f32..8.0, 1..600),
        temperature in 0.05f32..2.0,
        top_k in 0usize..700,
        top_p in 0.0f32..=1.0,
        min_p in prop::sample::select(vec![0.0f32, 0.01, 0.3, 1.0]),
        seed: u64,
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        // Rounding may move a limit by one token: what lies within it is kept by slightly wider filters.
        let wider = SamplingParams {
            top_p: (top_p + 1e-5).min(1.0),
            min_p: min_p * (1.0 - 1e-4),
            ..params.clone()
        };
        let kept = reference(&logits, &wider);
        let (mut row, mut sampler) = (logits.clone(), Sampler::new(logits.len()));
        for index in 0..20 {
            let id = sampler.sample(&mut row, &choose(&params, &History::default(), seed, index)).unwrap();
            prop_assert!(kept[id as usize] > 0.0);
        }
        prop_assert_eq!(row, logits);
    }

    #[test]
    fn any_row_gives_a_token_or_an_error(
        bits in prop::collection::vec(any::<u32>(), 0..600),
        top_k in 0usize..50,
        top_p in 0.0f32..=1.0,
        min_p in 0.0f32..=1.0,
        temperature in 0.0f32..2.0,
    ) {
        let mut row: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let params = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        let picked = Sampler::new(row.len()).sample(&mut row, &choose(&params, &History::default(), 1, 1));
        if let Ok(id) = picked {
            prop_assert!(row[id as usize] > f32::NEG_INFINITY);
        }
    }
}
