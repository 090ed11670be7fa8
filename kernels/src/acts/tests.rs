//! Activations against their formulas in f64, from far below zero to far above, on every set.

use super::*;
use crate::fixture::{Noise, report};
use crate::isa::Kernels;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The normal distribution's function by Simpson's rule from 0 to `x`: no series of ours to be wrong twice.
fn phi(x: f64) -> f64 {
    let (n, density) = (2000, |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt());
    if x < -12.0 {
        return 0.0;
    }
    let h = x.min(12.0) / f64::from(n);
    let inner = (1..n).map(|i| density(h * f64::from(i)) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum::<f64>();
    0.5 + h / 3.0 * (density(0.0) + inner + density(x.min(12.0)))
}

fn formula(act: Act, x: f64) -> f64 {
    match act {
        Act::Silu => x * sigmoid(x),
        Act::Gelu => x * phi(x),
        Act::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Act::Relu => x.max(0.0),
        Act::Relu2 => x.max(0.0).powi(2),
        Act::Sigmoid => sigmoid(x),
    }
}

/// -128 to 128, then around zero, then numbers of every size.
fn inputs() -> Vec<f32> {
    let even = (0..2048).map(|i| (i as f32 - 1024.0) / 8.0);
    let near = (0..1024).map(|i| (i as f32 - 512.0) / 1e3);
    let sizes = (0..1024).map(|i| 10.0_f32.powf(i as f32 / 32.0 - 25.0) * if i % 2 == 0 { 1.0 } else { -1.0 });
    even.chain(near).chain(sizes).collect()
}

#[test]
fn activations_equal_their_formulas() {
    let (x, mut failures, mut cases) = (inputs(), vec![], 0);
    for (kernels, act) in Kernels::available().flat_map(|k| Act::ALL.map(|a| (k, a))) {
        let mut out = vec![f32::NAN; x.len() + 1];
        // SAFETY: the kernels are available; both hold `x.len()` values, a multiple of every set's lanes.
        unsafe { (kernels.act)(act, x.as_ptr(), out.as_mut_ptr(), x.len()) };
        let mut worst = 0.0_f64;
        for (x, y) in x.iter().zip(&out) {
            cases += 1;
            let want = formula(act, f64::from(*x));
            // An ulp or two of the result; far out in the tail, where the argument's rounding counts, of the input.
            let error = (f64::from(*y) - want).abs() / (want.abs() + 0.3 * f64::from(x.abs()).min(1.0) + 1e-30);
            worst = worst.max(error);
            if !(error <= 1e-6) {
                failures.push(format!("{} {act:?}({x}) is {y}, not {want}", kernels.isa.name()));
            }
        }
        println!("{} {act:?}: worst {worst:.2e}", kernels.isa.name());
        assert!(out[x.len()].is_nan(), "no further than the last");
    }
    report(cases, &failures);
}

#[test]
fn a_nan_stays_one() {
    let x = [f32::NAN; 16];
    for (kernels, act) in Kernels::available().flat_map(|k| Act::ALL.map(|a| (k, a))) {
        let mut out = [0.0; 16];
        // SAFETY: the kernels are available; all rows hold 16 values.
        unsafe { (kernels.act)(act, x.as_ptr(), out.as_mut_ptr(), 16) };
        assert!(out.iter().all(|y| y.is_nan()), "{} {act:?}", kernels.isa.name());
        let ones = [1.0; 16];
        for (glu, gate, up) in [
            (Glu::Act(act), &x, &ones),
            (Glu::Act(act), &ones, &x),
            (Glu::ClampedSwish { alpha: 1.7, limit: 7.0 }, &x, &ones),
            (Glu::ClampedSwish { alpha: 1.7, limit: 7.0 }, &ones, &x),
        ] {
            out.fill(0.0);
            // SAFETY: as above.
            unsafe { (kernels.glu)(glu, gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), 16) };
            assert!(out.iter().all(|y| y.is_nan()), "{} {glu:?}", kernels.isa.name());
        }
    }
}

#[test]
fn gated_halves_meet_as_their_formula_says() {
    let (gate, mut failures, mut cases) = (inputs(), vec![], 0);
    let n = gate.len();
    let up = Noise::new(1).values(n, 20.0);
    let clamped = [(1.702, 7.0), (1.0, 0.5)].map(|(alpha, limit)| Glu::ClampedSwish { alpha, limit });
    let all: Vec<Glu> = Act::ALL.into_iter().map(Glu::Act).chain(clamped).collect();
    for (kernels, glu) in Kernels::available().flat_map(|k| all.iter().map(move |g| (k, *g))) {
        let mut out = vec![f32::NAN; n + 1];
        // SAFETY: the kernels are available; all three hold `n` values, a multiple of every set's lanes.
        unsafe { (kernels.glu)(glu, gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), n) };
        for i in 0..n {
            cases += 1;
            let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
            let (want, size) = match glu {
                Glu::Act(act) => {
                    let value = formula(act, g);
                    (value * u, (value.abs() + 0.3 * g.abs().min(1.0)) * u.abs())
                }
                Glu::ClampedSwish { alpha, limit } => {
                    let (alpha, limit) = (f64::from(alpha), f64::from(limit));
                    let (g, u) = (g.min(limit), u.clamp(-limit, limit));
                    let swish = g * sigmoid(alpha * g);
                    (swish * (u + 1.0), (swish.abs() + 0.1 * g.abs().min(1.0)) * (u.abs() + 1.0))
                }
            };
            if !((f64::from(out[i]) - want).abs() <= 1e-6 * size + 1e-30) {
                failures.push(format!("{} {glu:?}({g}, {u}) is {}, not {want}", kernels.isa.name(), out[i]));
            }
        }
        assert!(out[n].is_nan(), "no further than the last");
    }
    report(cases, &failures);
}
