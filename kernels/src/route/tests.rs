//! Shares against their definition in f64: sort by score, keep, divide.

use super::*;
use crate::fixture::{Noise, report};
use crate::isa::Kernels;

/// The definition; scores of equal logits are equal.
fn reference(routing: &Routing, x: &[f32]) -> Vec<f64> {
    let largest = x.iter().fold(f64::NEG_INFINITY, |m, x| m.max(f64::from(*x)));
    let total: f64 = x.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    let score = |x: &f32| match routing.score {
        RouteScore::Softmax => (f64::from(*x) - largest).exp() / total,
        RouteScore::Sigmoid => 1.0 / (1.0 + (-f64::from(*x)).exp()),
    };
    let scores: Vec<f64> = x.iter().map(score).collect();
    let mut ranks: Vec<f64> =
        scores.iter().enumerate().map(|(i, s)| s + routing.bias.as_ref().map_or(0.0, |b| f64::from(b[i]))).collect();
    if let Some(RouteGroups { count, kept, best }) = routing.groups {
        let size = x.len() / count;
        let sum = |ranks: &[f64]| {
            let mut ranks = ranks.to_vec();
            ranks.sort_by(|a, b| b.total_cmp(a));
            ranks[..best].iter().sum::<f64>()
        };
        let sums: Vec<f64> = ranks.chunks(size).map(sum).collect();
        let mut groups: Vec<usize> = (0..count).collect();
        groups.sort_by(|a, b| sums[*b].total_cmp(&sums[*a]).then(a.cmp(b)));
        groups[kept..].iter().for_each(|g| ranks[g * size..(g + 1) * size].fill(f64::NEG_INFINITY));
    }
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]).then(a.cmp(b)));
    let kept = &order[..routing.top_k];
    let sum: f64 = kept.iter().map(|i| scores[*i]).sum();
    let divisor = if routing.normalise { sum } else { 1.0 };
    (0..x.len())
        .map(|i| if kept.contains(&i) { scores[i] / divisor * f64::from(routing.factor) } else { 0.0 })
        .collect()
}

fn plain(score: RouteScore) -> Routing {
    Routing { score, bias: None, groups: None, top_k: 1, normalise: true, factor: 1.0 }
}

#[test]
fn a_bias_and_groups_decide_who_is_kept_and_not_how_much() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, (experts, count)) in
        Kernels::available().flat_map(|k| [(8, 4), (12, 3), (64, 64), (256, 8), (9, 1)].map(|e| (k, e)))
    {
        for (kept, best, has_bias) in [(1, 1, true), (count, 1, false), (usize::div_ceil(count, 2), 2, true)] {
            let size = experts / count;
            let noise = &mut Noise::new((experts * 7 + kept * 3 + best) as u64);
            let x = noise.values(experts, 4.0);
            // Of both signs: an expert that is out ranks below every other.
            let bias = has_bias.then(|| noise.values(experts, 1.5).iter().map(|b| b - 1.0).collect());
            let groups = Some(RouteGroups { count, kept, best: best.min(size) });
            for top_k in [1, (kept * size).min(3), kept * size] {
                let routing = Routing { bias: bias.clone(), groups, top_k, ..plain(RouteScore::Sigmoid) };
                let (got, want) = (shares(kernels, &routing, &x), reference(&routing, &x));
                cases += 1;
                let near = |(got, want): (&f32, &f64)| {
                    (f64::from(*got) - want).abs() <= 2e-6 * want && (*got == 0.0) == (*want == 0.0)
                };
                if !got.iter().zip(&want).all(near) {
                    failures.push(format!("{} {experts} {routing:?}: {got:?}, not {want:?}", kernels.isa.name()));
                }
            }
        }
    }
    report(cases, &failures);
}

fn shares(kernels: &Kernels, routing: &Routing, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() + 1];
    // SAFETY: the kernels are available; rows hold `x.len()` values.
    unsafe { (kernels.route)(routing, x.as_ptr(), x.len(), out.as_mut_ptr()) };
    assert!(out.pop().is_some_and(f32::is_nan), "no further than the last expert");
    out
}

#[test]
fn shares_equal_their_definition() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, experts) in Kernels::available().flat_map(|k| [1, 2, 7, 8, 9, 16, 17, 60, 128, 257].map(|e| (k, e))) {
        for (i, top_k) in [1, 2, 4, 8].into_iter().filter(|k| *k <= experts).chain([experts]).enumerate() {
            let noise = &mut Noise::new((experts * 10 + i) as u64);
            let mut x = noise.values(experts, 8.0);
            if i % 2 == 1 {
                // Ties: logits of few values.
                x.iter_mut().for_each(|x| *x = x.round());
            }
            for (score, normalise) in
                [RouteScore::Softmax, RouteScore::Sigmoid].into_iter().flat_map(|s| [(s, false), (s, true)])
            {
                let routing = Routing { top_k, normalise, factor: [1.0, 2.5][i % 2], ..plain(score) };
                let (got, want) = (shares(kernels, &routing, &x), reference(&routing, &x));
                cases += 1;
                let near = |(got, want): (&f32, &f64)| {
                    (f64::from(*got) - want).abs() <= 2e-6 * want && (*got == 0.0) == (*want == 0.0)
                };
                if !got.iter().zip(&want).all(near) {
                    failures.push(format!("{} {experts} {routing:?}: {got:?}, not {want:?}", kernels.isa.name()));
                }
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn of_equal_scores_the_lower_numbers_are_kept() {
    for kernels in Kernels::available() {
        let routing = Routing { top_k: 3, ..plain(RouteScore::Softmax) };
        let got = shares(kernels, &routing, &[1.0, 2.0, 1.0, 1.0, 2.0, 1.0]);
        let kept: Vec<usize> = (0..6).filter(|i| got[*i] != 0.0).collect();
        assert_eq!(kept, [0, 1, 4], "{}", kernels.isa.name());
    }
}

#[test]
fn logits_that_are_no_numbers_show_and_keep_no_more_than_their_number() {
    for (kernels, score) in
        Kernels::available().flat_map(|k| [RouteScore::Softmax, RouteScore::Sigmoid].map(|s| (k, s)))
    {
        for bad in [0, 5, 18] {
            let mut x = Noise::new(1).values(19, 3.0);
            x[bad] = f32::NAN;
            let got = shares(kernels, &Routing { top_k: 4, ..plain(score) }, &x);
            let kept = got.iter().filter(|s| **s != 0.0).count();
            assert!(kept == 4 && got.iter().any(|s| s.is_nan()), "{} {score:?}: {got:?}", kernels.isa.name());
        }
    }
}
