//! Rounding of weights to codes, one row at a time. Each function says whether all values were finite and all scales
//! fit their type. Codes are chosen for the scale as it is stored, so that rounding the scale costs nothing twice.

use half::f16;

use super::{GROUP, PANEL, put};

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, x| m.max(x.abs()))
}

fn finite(values: &[f32]) -> bool {
    values.iter().all(|x| x.is_finite())
}

/// Nearest code of `x` in `lo..=hi` for `1 / scale`.
fn code(x: f32, inverse: f32, (lo, hi): (f32, f32)) -> f32 {
    (x * inverse).round_ties_even().clamp(lo, hi)
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn put_code8(panel: &mut [u8], r: usize, c: usize, code: f32) {
    panel[c / 4 * 64 + r * 4 + c % 4] = (code as i8 as u8) ^ 0x80;
}

/// One f32 scale: largest magnitude / 127.
pub fn int8(row: &[f32], r: usize, panel: &mut [u8]) -> bool {
    let groups = row.len().div_ceil(GROUP);
    let scale = largest(row) / 127.0;
    let inv = inverse(scale);
    row.iter().enumerate().for_each(|(c, x)| put_code8(panel, r, c, code(*x, inv, (-127.0, 127.0))));
    put(panel, groups * PANEL * GROUP + r * 4, &scale.to_le_bytes());
    finite(row) && inv.is_finite()
}

/// One f16 scale per group: largest magnitude / 127.
pub fn int8_groups(row: &[f32], r: usize, panel: &mut [u8]) -> bool {
    let groups = row.len().div_ceil(GROUP);
    let mut fits = finite(row);
    for (g, values) in row.chunks(GROUP).enumerate() {
        let scale = f16::from_f32(largest(values) / 127.0);
        let inv = inverse(scale.to_f32());
        for (i, x) in values.iter().enumerate() {
            put_code8(panel, r, g * GROUP + i, code(*x, inv, (-127.0, 127.0)));
        }
        put(panel, groups * PANEL * GROUP + (g * PANEL + r) * 2, &scale.to_le_bytes());
        fits &= scale.is_finite();
    }
    fits
}

fn put_code4(panel: &mut [u8], r: usize, g: usize, i: usize, code: f32) {
    let (quad, k) = (i / 4, i % 4);
    let byte = &mut panel[(g * 4 + quad % 4) * 64 + r * 4 + k];
    *byte |= (code as u8) << (4 * (quad / 4));
}

/// As Q4_0: the value of largest magnitude gets code 0.
pub fn int4(row: &[f32], r: usize, panel: &mut [u8]) -> bool {
    let groups = row.len().div_ceil(GROUP);
    let mut fits = finite(row);
    for (g, values) in row.chunks(GROUP).enumerate() {
        let peak = values.iter().fold(0.0_f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        let scale = f16::from_f32(peak / -8.0);
        let inv = inverse(scale.to_f32());
        for (i, x) in values.iter().enumerate() {
            put_code4(panel, r, g, i, code(x + 8.0 * scale.to_f32(), inv, (0.0, 15.0)));
        }
        put(panel, groups * PANEL * GROUP / 2 + (g * PANEL + r) * 2, &scale.to_le_bytes());
        fits &= scale.is_finite();
    }
    fits
}

/// Scale and minimum per group, chosen for the least squared error among shrunken ranges: the outermost values of a
/// group often cost the others more than clipping them does.
pub fn int4_min(row: &[f32], r: usize, panel: &mut [u8]) -> bool {
    let groups = row.len().div_ceil(GROUP);
    let scales = groups * PANEL * GROUP / 2;
    let mut fits = finite(row);
    for (g, values) in row.chunks(GROUP).enumerate() {
        let (lo, hi) = values.iter().fold((0.0_f32, 0.0_f32), |(lo, hi), x| (lo.min(*x), hi.max(*x)));
        let (mut scale, mut min, mut least) = (f16::ZERO, f16::ZERO, f32::INFINITY);
        for shrink in [1.0, 0.96, 0.92, 0.88, 0.84, 0.8_f32] {
            let m = f16::from_f32(lo * shrink);
            let d = f16::from_f32((hi * shrink - m.to_f32()) / 15.0);
            let error = values.iter().map(|x| (decode(*x, d, m) - x).powi(2)).sum::<f32>();
            if error < least {
                (scale, min, least) = (d, m, error);
            }
        }
        let inv = inverse(scale.to_f32());
        for (i, x) in values.iter().enumerate() {
            put_code4(panel, r, g, i, code(x - min.to_f32(), inv, (0.0, 15.0)));
        }
        put(panel, scales + (g * PANEL + r) * 2, &scale.to_le_bytes());
        put(panel, scales + ((groups + g) * PANEL + r) * 2, &min.to_le_bytes());
        fits &= scale.is_finite() && min.is_finite();
    }
    fits
}

/// What `x` becomes at this scale and minimum.
fn decode(x: f32, scale: f16, min: f16) -> f32 {
    code(x - min.to_f32(), inverse(scale.to_f32()), (0.0, 15.0)) * scale.to_f32() + min.to_f32()
}
