//! Row kernels against their formulas in f64, with lengths around every set's lanes.

use super::{NormArgs, NormKind};
use crate::fixture::{Noise, padded, report};
use crate::isa::Kernels;
use crate::packed::GROUP;

const COLS: [usize; 14] = [1, 2, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 64, 100];
const EPS: f32 = 1e-5;

fn near(got: f32, want: f64) -> bool {
    (f64::from(got) - want).abs() <= 1e-6 * (want.abs() + 1.0)
}

fn norm(kind: NormKind, x: &[f64], weight: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / n } else { 0.0 };
    let scale = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + f64::from(EPS)).sqrt();
    let bias = |i: usize| bias.map_or(0.0, |b| f64::from(b[i]));
    x.iter().enumerate().map(|(i, x)| (x - mean) * scale * f64::from(weight[i]) + bias(i)).collect()
}

fn args(kind: NormKind, weight: &[f32], bias: Option<&[f32]>) -> NormArgs {
    NormArgs { kind, weight: weight.as_ptr(), bias: bias.map_or(std::ptr::null(), |b| b.as_ptr()), eps: EPS }
}

const KINDS: [NormKind; 2] = [NormKind::Rms, NormKind::Layer];

#[test]
fn norms_equal_their_formulas_and_keep_padding_zero() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, cols) in Kernels::available().flat_map(|k| COLS.map(|c| (k, c))) {
        let noise = &mut Noise::new(cols as u64);
        // Far from zero, so that a mean forgotten or taken over the padding shows.
        let x: Vec<f32> = noise.values(cols, 3.0).iter().map(|x| x + 2.0).collect();
        let x = padded(&x, GROUP);
        let [delta, weight, bias] = [3.0, 2.0, 1.0].map(|size| padded(&noise.values(cols, size), GROUP));
        let n = x.len();
        for case in 0..16 {
            let [with_delta, in_place, with_bias, layer] = [1, 2, 4, 8].map(|bit| case & bit != 0);
            let (kind, bias) = (KINDS[usize::from(layer)], with_bias.then_some(&bias[..]));
            let (mut x, mut own_sum, mut out) = (x.clone(), vec![f32::NAN; n + 1], vec![f32::NAN; n + 1]);
            let plain: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let added: Vec<f64> = x.iter().zip(&delta).map(|(x, d)| f64::from(x + d)).collect();
            let base = if with_delta { added } else { plain };
            let want = norm(kind, &base[..cols], &weight, bias);
            let from = x.as_mut_ptr();
            let sum = if in_place { from } else { own_sum.as_mut_ptr() };
            // SAFETY: the kernels are available; all rows hold `n` values, the padded length.
            unsafe {
                let delta = with_delta.then_some(delta.as_ptr());
                (kernels.add_norm)(&args(kind, &weight, bias), from, delta, (cols, n), sum, out.as_mut_ptr());
            }
            cases += 1;
            let at = format!(
                "{} {kind:?} cols {cols} delta {with_delta} in place {in_place} bias {with_bias}",
                kernels.isa.name()
            );
            let sum = if in_place { &x } else { &own_sum };
            if with_delta && (0..n).any(|i| f64::from(sum[i]) != base[i]) {
                failures.push(format!("{at}: sum"));
            }
            // A single column deviates from its own mean by the rounding of that mean alone.
            if (0..cols).any(|i| !near(out[i], want[i])) {
                failures.push(format!("{at}: {:?}, not {want:?}", &out[..cols]));
            }
            if out[cols..n].iter().any(|x| *x != 0.0) || !out[n].is_nan() {
                failures.push(format!("{at}: padding is {:?}", &out[cols..]));
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn head_norms_keep_to_their_heads() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, head) in Kernels::available().flat_map(|k| COLS.map(|c| (k, c))) {
        for (heads, kind) in [1, 2, 3].into_iter().flat_map(|h| KINDS.map(|k| (h, k))) {
            let (noise, cols) = (&mut Noise::new(head as u64), heads * head);
            let x = noise.values(cols, 3.0);
            // Every head has weights of its own.
            let (weight, bias) = (noise.values(cols, 2.0), noise.values(cols, 1.0));
            let bias = (heads != 2).then_some(&bias[..]);
            let mut out = vec![f32::NAN; cols + 1];
            let mut own = x.clone();
            let args = args(kind, &weight, bias);
            // SAFETY: the kernels are available; rows and weights hold `cols` values.
            unsafe {
                (kernels.head_norm)(&args, x.as_ptr(), head, cols, out.as_mut_ptr());
                (kernels.head_norm)(&args, own.as_ptr(), head, cols, own.as_mut_ptr());
            }
            cases += 1;
            let want = x.chunks(head).enumerate().flat_map(|(h, x)| {
                let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                norm(kind, &x, &weight[h * head..], bias.map(|b| &b[h * head..]))
            });
            if want.zip(&out).any(|(want, got)| !near(*got, want)) || !out[cols].is_nan() {
                failures.push(format!("{} {kind:?} {heads} heads of {head}", kernels.isa.name()));
            }
            if own != out[..cols] {
                failures.push(format!("{} {kind:?} {heads} heads of {head} in place", kernels.isa.name()));
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn rope_rotates_the_pairs_of_a_head_and_leaves_the_rest() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, pairs) in
        Kernels::available().flat_map(|k| [1, 2, 4, 7, 8, 9, 10, 16, 17, 32, 40, 64].map(|p| (k, p)))
    {
        for (heads, rest, halves) in
            [(1, 0), (3, 0), (2, 5)].into_iter().flat_map(|(h, r)| [(h, r, true), (h, r, false)])
        {
            let head = 2 * pairs + rest;
            let noise = &mut Noise::new(pairs as u64);
            let x = noise.values(heads * head, 3.0);
            let angles: Vec<f32> = noise.values(pairs, 3.0);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let mut got = x.clone();
            got.push(f32::NAN);
            // Neighbours take two of each.
            let both: Vec<f32> = cos.iter().flat_map(|c| [*c, *c]).collect();
            let signed: Vec<f32> = sin.iter().flat_map(|s| [-s, *s]).collect();
            // SAFETY: the kernels are available; the row holds `heads * head` values, the tables what each takes.
            unsafe {
                let (row, cols) = (got.as_mut_ptr(), heads * head);
                if halves {
                    (kernels.rope_half)(row, head, cols, cos.as_ptr(), sin.as_ptr(), pairs);
                } else {
                    (kernels.rope_neighbours)(row, head, cols, both.as_ptr(), signed.as_ptr(), pairs);
                }
            }
            let mut want: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for start in (0..heads * head).step_by(head) {
                for i in 0..pairs {
                    let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                    let (i, j) =
                        if halves { (start + i, start + pairs + i) } else { (start + 2 * i, start + 2 * i + 1) };
                    let (a, b) = (want[i], want[j]);
                    want[i] = a * c - b * s;
                    want[j] = a * s + b * c;
                }
            }
            cases += 1;
            if (0..want.len()).any(|i| !near(got[i], want[i])) || !got[want.len()].is_nan() {
                failures
                    .push(format!("{} {heads} heads of {head}, {pairs} pairs, halves {halves}", kernels.isa.name()));
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn elementwise_work_reaches_the_last_value_and_no_further() {
    for (kernels, n) in Kernels::available().flat_map(|k| [32, 64, 96].map(|n| (k, n))) {
        let noise = &mut Noise::new(n as u64);
        let (x, y) = (noise.values(n, 3.0), noise.values(n, 3.0));
        let (x, y) = (&x, &y);
        let check = |what: &str, run: &dyn Fn(*mut f32), want: &dyn Fn(usize) -> f32| {
            let mut out = vec![f32::NAN; n + 1];
            out[..n].copy_from_slice(y);
            run(out.as_mut_ptr());
            let fits = |i: usize| (out[i] - want(i)).abs() <= 2e-7 * want(i).abs();
            assert!((0..n).all(fits) && out[n].is_nan(), "{} {what} {n}", kernels.isa.name());
        };
        let (a, b) = (x.as_ptr(), y.as_ptr());
        let add = |out| {
            // SAFETY: the kernels are available; rows hold `n` values.
            unsafe { (kernels.add)(a, b, out, n) }
        };
        check("add", &add, &|i| x[i] + y[i]);
        let mul = |out| {
            // SAFETY: as above.
            unsafe { (kernels.mul)(a, b, out, n) }
        };
        check("mul", &mul, &|i| x[i] * y[i]);
        let scale = |out| {
            // SAFETY: as above.
            unsafe { (kernels.scale)(a, 0.37, out, n) }
        };
        check("scale", &scale, &|i| x[i] * 0.37);
        let clamp = |out| {
            // SAFETY: as above.
            unsafe { (kernels.clamp)(a, 0.6, out, n) }
        };
        check("clamp", &clamp, &|i| x[i].clamp(-0.6, 0.6));
        let mut nan = vec![f32::NAN; n];
        // SAFETY: as above; a row in place.
        unsafe { (kernels.clamp)(nan.as_ptr(), 0.6, nan.as_mut_ptr(), n) };
        assert!(nan.iter().all(|x| x.is_nan()), "{}: a NaN stays one", kernels.isa.name());
        let add_scaled = |out| {
            // SAFETY: as above.
            unsafe { (kernels.add_scaled)(a, 0.5, out, n) }
        };
        check("add_scaled", &add_scaled, &|i| (f64::from(x[i]) * 0.5 + f64::from(y[i])) as f32);
    }
}

#[test]
fn a_soft_cap_equals_its_formula_and_keeps_what_is_far_below_it() {
    let (mut cases, mut failures) = (0, vec![]);
    let x: Vec<f32> = (0..4096).map(|i| (i as f32 - 2048.0) * 10.0_f32.powi(i % 9 - 6)).collect();
    for (kernels, cap) in Kernels::available().flat_map(|k| [0.5, 30.0, 50.0].map(|c| (k, c))) {
        let mut out = vec![f32::NAN; x.len() + 1];
        // SAFETY: the kernels are available; rows hold `x.len()` values.
        unsafe { (kernels.softcap)(x.as_ptr(), cap, out.as_mut_ptr(), x.len()) };
        for (x, y) in x.iter().zip(&out) {
            cases += 1;
            let want = f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
            if !((f64::from(*y) - want).abs() <= 1e-6 * want.abs()) {
                failures.push(format!("{} cap {cap} of {x} is {y}, not {want}", kernels.isa.name()));
            }
        }
        assert!(out[x.len()].is_nan());
        let mut nan = [f32::NAN; 16];
        // SAFETY: as above; a row of 16 values in place.
        unsafe { (kernels.softcap)(nan.as_ptr(), cap, nan.as_mut_ptr(), 16) };
        assert!(nan.iter().all(|x| x.is_nan()), "{}: a NaN stays one", kernels.isa.name());
    }
    report(cases, &failures);
}
