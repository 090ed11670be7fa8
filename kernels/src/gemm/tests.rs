//! Tiles against sums in f64: every stored type, number of tokens and odd number of columns, on every set.
//!
//! The tight bound compares with what the kernel may see: weights as they decode, activations as they were rounded.
//! Whether that rounding is good enough is the business of the loose one.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // `!(error <= bound)`: NaN must fail

use half::bf16;

use super::*;
use crate::fixture::{Matrix, Noise, bits, decoded, padded, report};
use crate::isa::Kernels;

const COLS: [usize; 16] = [1, 2, 3, 15, 16, 17, 20, 31, 32, 33, 48, 63, 64, 65, 100, 257];
/// Three panels of values (the last one short) and one of padding.
const ROWS: usize = 40;
/// Distance of tokens in the results: more than a matrix needs, so that a write past its panel shows.
const STRIDE: usize = 4 * PANEL + 3;

/// Tokens packed as one tile: codes and metadata.
fn pack(kernels: &Kernels, weight: &Packed, tokens: &[&[f32]]) -> (Vec<u32>, Vec<u32>) {
    let (kind, n) = (act_kind(weight.stored(), kernels.bf16), tokens.len());
    let (codes_len, meta_len) = kind.bytes(weight.cols());
    // 0xff is NaN in every float type and -1 in codes: what packing does not write shows.
    let (mut codes, mut meta) = (vec![u32::MAX; (codes_len * n).div_ceil(4)], vec![u32::MAX; meta_len * n / 4]);
    for (t, x) in tokens.iter().enumerate() {
        let x = padded(x, GROUP);
        let (codes, meta) = (codes.as_mut_ptr().cast(), meta.as_mut_ptr().cast());
        // SAFETY: the kernels are available; `x` is padded to the group, the buffers hold `n` tokens.
        unsafe { (kernels.pack_row)(kind, x.as_ptr(), weight.cols(), codes, meta, (t, n), true) };
    }
    (codes, meta)
}

/// All panels for `tokens` as one tile: a row of `STRIDE` values for each.
fn product(kernels: &Kernels, weight: &Packed, tokens: &[&[f32]], bias: Option<&[f32]>) -> Vec<Vec<f32>> {
    let (codes, meta) = pack(kernels, weight, tokens);
    let n = tokens.len();
    let bias = bias.map(|b| padded_bias(b, weight));
    let mut out = vec![f32::NAN; n * STRIDE];
    for panel in 0..weight.panels() {
        let args = TileArgs {
            panel: weight.panel(panel),
            cols: weight.cols(),
            act: codes.as_ptr().cast(),
            meta: meta.as_ptr().cast(),
            out: out[panel * PANEL..].as_mut_ptr(),
            out_stride: STRIDE,
            bias: bias.as_ref().map_or(std::ptr::null(), |b| b[panel * PANEL..].as_ptr()),
        };
        // SAFETY: as above; `out` holds the panel of every token.
        unsafe { kernels.tiles[weight.stored() as usize][n - 1](&args) };
    }
    out.chunks(STRIDE).map(<[f32]>::to_vec).collect()
}

/// A token as the kernel sees it: rounded by the half crate, or decoded from the packed codes, of which there may be
/// several passes over all groups (a coarse one, a fine one) that add up.
fn rounded(kernels: &Kernels, weight: &Packed, x: &[f32]) -> Vec<f64> {
    match act_kind(weight.stored(), kernels.bf16) {
        ActKind::F32 => x.iter().map(|x| f64::from(*x)).collect(),
        ActKind::Bf16 => x.iter().map(|x| bf16::from_f32(*x).to_f64()).collect(),
        ActKind::Int8 => {
            let (codes, meta) = pack(kernels, weight, &[x]);
            let codes: Vec<u8> = codes.iter().flat_map(|c| c.to_le_bytes()).collect();
            let groups = x.len().div_ceil(GROUP);
            let part = |pass: usize, i: usize| {
                let group = pass * groups + i / GROUP;
                f64::from(codes[group * GROUP + i % GROUP] as i8) * f64::from(f32::from_bits(meta[group * META]))
            };
            let passes = codes.len() / (groups * GROUP);
            (0..x.len()).map(|i| (0..passes).map(|pass| part(pass, i)).sum()).collect()
        }
    }
}

#[test]
fn activations_are_rounded_to_half_a_step_of_their_group_at_most() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, stored) in Kernels::available().flat_map(|k| Stored::ALL.map(|s| (k, s))) {
        for cols in COLS {
            let weight = Matrix::random(1, cols, 1).pack(stored);
            for (t, x) in tokens(12, cols, &mut Noise::new(cols as u64)).iter().enumerate() {
                cases += 1;
                let seen = rounded(kernels, &weight, x);
                for (group, seen) in x.chunks(GROUP).zip(seen.chunks(GROUP)) {
                    let largest = group.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                    let close = |(x, seen): (&f32, &f64)| (f64::from(*x) - seen).abs() <= f64::from(largest) / 253.9;
                    if !group.iter().zip(seen).all(close) {
                        failures.push(format!("{} {} cols {cols} token {t}", kernels.isa.name(), stored.name()));
                    }
                }
            }
        }
    }
    report(cases, &failures);
}

/// `(sum of products, sum of their magnitudes)`.
fn dot(w: &[f32], x: &[f64]) -> (f64, f64) {
    w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()))
}

/// Tokens of different sizes, one of them zero, some with a value that dwarfs the others of its group.
fn tokens(n: usize, cols: usize, noise: &mut Noise) -> Vec<Vec<f32>> {
    let token = |t: usize| {
        let mut x = noise.values(cols, [1.0, 0.0, 30.0, 1e-3][t % 4]);
        if t % 3 == 2 {
            let at = noise.below(cols);
            x[at] = -700.0;
        }
        x
    };
    (0..n).map(token).collect()
}

fn refs(x: &[Vec<f32>]) -> Vec<&[f32]> {
    x.iter().map(Vec::as_slice).collect()
}

#[test]
fn every_tile_equals_the_sum_in_f64() {
    let (mut cases, mut failures, mut worst) = (0, vec![], 0.0_f64);
    for (kernels, stored) in Kernels::available().flat_map(|k| Stored::ALL.map(|s| (k, s))) {
        for (i, cols) in COLS.into_iter().enumerate() {
            let mut noise = Noise::new(i as u64);
            let weight = Matrix::random(ROWS, cols, 100 + i as u64).pack(stored);
            let rows = decoded(&weight);
            let x = tokens(kernels.tile, cols, &mut noise);
            let bias = noise.values(ROWS, 1.0);
            // A minimum makes products of its own beside the codes', up to the range of a group, which may cancel.
            let hidden = if stored == Stored::Int4Min { 2.0 } else { 0.0 };
            for n in 1..=kernels.tile {
                let with_bias = (n + i) % 2 == 0;
                let out = product(kernels, &weight, &refs(&x[..n]), with_bias.then_some(&bias));
                cases += 1;
                let at = || format!("{} {} cols {cols} tokens {n}", kernels.isa.name(), stored.name());
                for t in 0..n {
                    let seen = rounded(kernels, &weight, &x[t]);
                    for r in 0..ROWS {
                        let (mut want, mut size) = dot(&rows[r], &seen);
                        size += hidden * seen.iter().map(|x| x.abs()).sum::<f64>();
                        if with_bias {
                            want += f64::from(bias[r]);
                            size += f64::from(bias[r]).abs();
                        }
                        let error = (f64::from(out[t][r]) - want).abs();
                        worst = worst.max(error / size.max(1e-30));
                        if !(error <= 1e-6 * size + 1e-30) {
                            failures.push(format!("{}: token {t} row {r} is {}, not {want}", at(), out[t][r]));
                        }
                    }
                    let (padding, beyond) = out[t][ROWS..].split_at(4 * PANEL - ROWS);
                    if !padding.iter().all(|x| *x == 0.0) {
                        failures.push(format!("{}: padding of token {t} is {padding:?}", at()));
                    }
                    if !beyond.iter().all(|x| x.is_nan()) {
                        failures.push(format!("{}: token {t} is written past its panels", at()));
                    }
                }
            }
        }
    }
    println!("{cases} cases, worst error {worst:.2e} of the sum of magnitudes");
    report(cases, &failures);
}

#[test]
fn a_token_has_the_same_bits_whatever_stands_beside_it() {
    let (mut cases, mut failures) = (0, vec![]);
    for (kernels, stored) in Kernels::available().flat_map(|k| Stored::ALL.map(|s| (k, s))) {
        for (i, cols) in COLS.into_iter().enumerate() {
            let mut noise = Noise::new(i as u64);
            let weight = Matrix::random(ROWS, cols, 200 + i as u64).pack(stored);
            let bias = noise.values(ROWS, 1.0);
            let x = tokens(kernels.tile, cols, &mut noise);
            let alone: Vec<_> =
                x.iter().map(|x| bits(&product(kernels, &weight, &[x], Some(&bias))[0][..ROWS])).collect();
            for n in 2..=kernels.tile {
                // Every token in every place of a tile of n, beside changing others.
                for shift in 0..n {
                    let order: Vec<usize> = (0..n).map(|t| (t + shift) % n).collect();
                    let beside: Vec<&[f32]> = order.iter().map(|t| x[*t].as_slice()).collect();
                    let out = product(kernels, &weight, &beside, Some(&bias));
                    cases += 1;
                    for (place, t) in order.iter().enumerate() {
                        if bits(&out[place][..ROWS]) != alone[*t] {
                            let (isa, stored) = (kernels.isa.name(), stored.name());
                            failures.push(format!("{isa} {stored} cols {cols}: token {t} at {place} of {n}"));
                        }
                    }
                }
            }
        }
    }
    println!("{cases} cases");
    report(cases, &failures);
}

#[test]
fn rounding_of_weights_and_activations_costs_what_their_types_say() {
    let (mut cases, mut failures) = (0, vec![]);
    let cols = 512;
    let matrix = Matrix::random(ROWS, cols, 7);
    let x = Noise::new(8).values(cols, 1.0);
    let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    for (kernels, stored) in Kernels::available().flat_map(|k| Stored::ALL.map(|s| (k, s))) {
        let out = &product(kernels, &matrix.pack(stored), &[&x], None)[0];
        let (mut error, mut size) = (0.0, 0.0);
        for r in 0..ROWS {
            let want = dot(&matrix.values[r * cols..][..cols], &exact).0;
            error += (f64::from(out[r]) - want).powi(2);
            size += want.powi(2);
        }
        let relative = (error / size).sqrt();
        let bound = match stored {
            Stored::F32 => 1e-6,
            Stored::F16 => 5e-4,
            Stored::Bf16 => 4e-3,
            Stored::Int8 => 0.02,
            Stored::Int4 => 0.15,
            Stored::Int4Min => 0.12,
        };
        cases += 1;
        if !(relative <= bound) {
            failures.push(format!("{} {}: {relative:.2e} exceeds {bound}", kernels.isa.name(), stored.name()));
        }
    }
    report(cases, &failures);
}

#[test]
fn a_value_that_is_not_finite_shows_in_its_own_token_only() {
    let (mut cases, mut failures) = (0, vec![]);
    let cols = 70;
    let good = Noise::new(3).values(cols, 1.0);
    for (kernels, stored) in Kernels::available().flat_map(|k| Stored::ALL.map(|s| (k, s))) {
        let weight = Matrix::random(ROWS, cols, 4).pack(stored);
        let alone = bits(&product(kernels, &weight, &[&good], None)[0][..ROWS]);
        for (value, at) in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(|v| [0, 31, 69].map(|at| (v, at)))
        {
            let mut bad = good.clone();
            bad[at] = value;
            let out = product(kernels, &weight, &[&good, &bad, &good], None);
            cases += 1;
            if out[1][..ROWS].iter().any(|x| x.is_finite()) {
                failures.push(format!("{} {}: {value} at {at} is lost", kernels.isa.name(), stored.name()));
            }
            if bits(&out[0][..ROWS]) != alone || bits(&out[2][..ROWS]) != alone {
                failures.push(format!("{} {}: {value} at {at} spreads", kernels.isa.name(), stored.name()));
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn tiny_activations_stay_tiny() {
    let (mut cases, mut failures) = (0, vec![]);
    let cols = 64;
    for (kernels, stored) in Kernels::available().flat_map(|k| Stored::ALL.map(|s| (k, s))) {
        let weight = Matrix::random(ROWS, cols, 5).pack(stored);
        for exponent in 20..=45 {
            let scale = 10.0_f64.powi(-exponent) as f32;
            let x = Noise::new(6).values(cols, scale);
            let out = &product(kernels, &weight, &[&x], None)[0][..ROWS];
            cases += 1;
            // At most 64 products of values below 1 and `scale`. Below 4e-37 the reciprocal of the scale overflows and
            // codes mean nothing, but the scale still makes them nothing.
            if !out.iter().all(|y| f64::from(*y).abs() <= 64.0 * f64::from(scale) + 1e-28) {
                failures.push(format!("{} {} 1e-{exponent}: {out:?}", kernels.isa.name(), stored.name()));
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn tiles_cover_the_rows_in_order_with_even_parts() {
    for (rows, tile) in (1..200).flat_map(|r| [1, 4, 6, 12].map(|t| (r, t))) {
        let tiles = Tiles::new(rows, tile);
        let mut next = 0;
        for (first, n) in (0..tiles.count()).map(|i| tiles.at(i)) {
            assert_eq!(first, next, "{rows} rows by {tile}");
            assert!(n >= 1 && n <= tile && n.abs_diff(rows / tiles.count()) <= 1, "{rows} rows by {tile}: {n}");
            for row in first..first + n {
                assert_eq!(tiles.of(row), (first, n), "row {row} of {rows} by {tile}");
            }
            next = first + n;
        }
        assert_eq!(next, rows);
        assert_eq!(tiles.count(), rows.div_ceil(tile));
    }
}
