//! Row kernels against their formulas in f64, with lengths around every set's lanes.

use crate::fixture::{Noise, padded, report};
use crate::isa::Kernels;
use crate::packed::GROUP;

const COLS: [usize; 14] = [1, 2, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 64, 100];
const EPS: f32 = 1e-5;

fn near(got: f32, want: f64) -> bool {
    (f64::from(got) - want).abs() <= 1e-6 * (want.abs() + 1.0)
}

fn norm(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * f64::from(*w)).collect()
}

#[test]
fn norms_divide_by_the_root_mean_square_and_keep_padding_zero() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, cols) in Kernels::available().flat_map(|k| COLS.map(|c| (k, c))) {
        let noise = &mut Noise::new(cols as u64);
        let x = padded(&noise.values(cols, 3.0), GROUP);
        let delta = padded(&noise.values(cols, 3.0), GROUP);
        let weight = padded(&noise.values(cols, 2.0), GROUP);
        let n = x.len();
        for with_delta in [false, true] {
            for in_place in [false, true] {
                let (mut x, mut own_sum, mut out) = (x.clone(), vec![f32::NAN; n + 1], vec![f32::NAN; n + 1]);
                let plain: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let added: Vec<f64> = x.iter().zip(&delta).map(|(x, d)| f64::from(x + d)).collect();
                let base = if with_delta { added } else { plain };
                let want = norm(&base[..cols], &weight);
                let from = x.as_mut_ptr();
                let sum = if in_place { from } else { own_sum.as_mut_ptr() };
                // SAFETY: the kernels are available; all rows hold `n` values, the padded length.
                unsafe {
                    let delta = with_delta.then_some(delta.as_ptr());
                    (kernels.add_rms_norm)(from, delta, weight.as_ptr(), EPS, (cols, n), sum, out.as_mut_ptr());
                }
                cases += 1;
                let at = format!("{} cols {cols} delta {with_delta} in place {in_place}", kernels.isa.name());
                let sum = if in_place { &x } else { &own_sum };
                if with_delta && (0..n).any(|i| f64::from(sum[i]) != base[i]) {
                    failures.push(format!("{at}: sum"));
                }
                if (0..cols).any(|i| !near(out[i], want[i])) {
                    failures.push(format!("{at}: {:?}, not {want:?}", &out[..cols]));
                }
                if out[cols..n].iter().any(|x| *x != 0.0) || !out[n].is_nan() {
                    failures.push(format!("{at}: padding is {:?}", &out[cols..]));
                }
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn head_norms_keep_to_their_heads() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, head) in Kernels::available().flat_map(|k| COLS.map(|c| (k, c))) {
        for heads in [1, 2, 3] {
            let noise = &mut Noise::new(head as u64);
            let x = noise.values(heads * head, 3.0);
            let weight = noise.values(head, 2.0);
            let mut out = vec![f32::NAN; heads * head + 1];
            let mut own = x.clone();
            // SAFETY: the kernels are available; rows hold `heads * head` values, the weight `head`.
            unsafe {
                (kernels.head_rms_norm)(x.as_ptr(), weight.as_ptr(), EPS, head, heads * head, out.as_mut_ptr());
                (kernels.head_rms_norm)(own.as_ptr(), weight.as_ptr(), EPS, head, heads * head, own.as_mut_ptr());
            }
            cases += 1;
            let want = x.chunks(head).flat_map(|x| {
                let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                norm(&x, &weight)
            });
            if want.zip(&out).any(|(want, got)| !near(*got, want)) || !out[heads * head].is_nan() {
                failures.push(format!("{} {heads} heads of {head}", kernels.isa.name()));
            }
            if own != out[..heads * head] {
                failures.push(format!("{} {heads} heads of {head} in place", kernels.isa.name()));
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn rope_rotates_the_halves_of_a_head_and_leaves_the_rest() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, pairs) in
        Kernels::available().flat_map(|k| [1, 2, 4, 7, 8, 9, 10, 16, 17, 32, 40, 64].map(|p| (k, p)))
    {
        for (heads, rest) in [(1, 0), (3, 0), (2, 5)] {
            let head = 2 * pairs + rest;
            let noise = &mut Noise::new(pairs as u64);
            let x = noise.values(heads * head, 3.0);
            let angles: Vec<f32> = noise.values(pairs, 3.0);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let mut got = x.clone();
            got.push(f32::NAN);
            // SAFETY: the kernels are available; the row holds `heads * head` values, the table `pairs` angles.
            unsafe { (kernels.rope_half)(got.as_mut_ptr(), head, heads * head, cos.as_ptr(), sin.as_ptr(), pairs) };
            let mut want: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for start in (0..heads * head).step_by(head) {
                for i in 0..pairs {
                    let (a, b) = (want[start + i], want[start + pairs + i]);
                    let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                    want[start + i] = a * c - b * s;
                    want[start + pairs + i] = a * s + b * c;
                }
            }
            cases += 1;
            if (0..want.len()).any(|i| !near(got[i], want[i])) || !got[want.len()].is_nan() {
                failures.push(format!("{} {heads} heads of {head}, {pairs} pairs", kernels.isa.name()));
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn addition_is_exact_to_the_last_value_and_no_further() {
    for kernels in Kernels::available() {
        for n in [32, 64, 96] {
            let noise = &mut Noise::new(n as u64);
            let (x, y) = (noise.values(n, 3.0), noise.values(n, 3.0));
            let mut out = vec![f32::NAN; n + 1];
            // SAFETY: the kernels are available; rows hold `n` values.
            unsafe { (kernels.add)(x.as_ptr(), y.as_ptr(), out.as_mut_ptr(), n) };
            assert!((0..n).all(|i| out[i] == x[i] + y[i]) && out[n].is_nan(), "{} {n}", kernels.isa.name());
        }
    }
}
