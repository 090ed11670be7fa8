//! Rounding of weights to codes, one row at a time. Each function says whether all values were finite and all scales
//! fit their type. Codes are chosen for the scale as it is stored, so that rounding the scale costs nothing twice.

use half::f16;

use super::{GROUP, Stored, put};

/// Independent running results, so that a fold need not wait for its last step.
const LANES: usize = 8;

fn largest(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    for chunk in values.chunks(LANES) {
        for (m, x) in lanes.iter_mut().zip(chunk) {
            *m = if x.abs() > *m { x.abs() } else { *m };
        }
    }
    lanes.iter().fold(0.0, |m, x| m.max(*x))
}

fn finite(values: &[f32]) -> bool {
    values.iter().all(|x| x.is_finite())
}

/// Adding it pushes the fraction of a small number out of the mantissa, rounding to nearest even: unlike a call to
/// `round_ties_even`, every instruction set does that four or more at a time.
const ROUNDER: f32 = 12_582_912.0;

/// Nearest code of `x` in `lo..=hi` for `1 / scale`.
#[inline(always)]
fn code(x: f32, inverse: f32, (lo, hi): (f32, f32)) -> f32 {
    // Not `clamp`, which may panic; a NaN becomes `lo`, and is reported by `finite`.
    (x * inverse).max(lo).min(hi) + ROUNDER - ROUNDER
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Writes signed codes of one row to the group's at `at`, a quad at a time.
fn put_codes8(panel: &mut [u8], r: usize, at: usize, values: &[f32], inverse: f32) {
    let mut codes = [0_u8; GROUP];
    for (to, x) in codes.iter_mut().zip(values) {
        *to = (code(*x, inverse, (-127.0, 127.0)) as i32 as u8) ^ 0x80;
    }
    for (i, quad) in codes[..values.len().next_multiple_of(4)].chunks_exact(4).enumerate() {
        put(panel, at + i * 64 + r * 4, &[quad[0], quad[1], quad[2], quad[3]]);
    }
}

/// One f16 scale per group: largest magnitude / 127.
pub fn int8(row: &[f32], r: usize, panel: &mut [u8]) -> bool {
    let mut fits = finite(row);
    for (g, values) in row.chunks(GROUP).enumerate() {
        let at = Stored::Int8.group(g);
        let scale = f16::from_f32(largest(values) / 127.0);
        put_codes8(panel, r, at.codes, values, inverse(scale.to_f32()));
        put(panel, at.scales + r * 2, &scale.to_le_bytes());
        fits &= scale.is_finite();
    }
    fits
}

/// Sets code `i` of one row in the group's at `at`, whose bytes hold zeros.
fn put_code4(panel: &mut [u8], r: usize, at: usize, i: usize, code: f32) {
    let (quad, k) = (i / 4, i % 4);
    let byte = &mut panel[at + quad % 4 * 64 + r * 4 + k];
    *byte |= (code as u8) << (4 * (quad / 4));
}

/// As Q4_0: the value of largest magnitude gets code 0.
pub fn int4(row: &[f32], r: usize, panel: &mut [u8]) -> bool {
    let mut fits = finite(row);
    for (g, values) in row.chunks(GROUP).enumerate() {
        let at = Stored::Int4.group(g);
        let peak = values.iter().fold(0.0_f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        let scale = f16::from_f32(peak / -8.0);
        let inv = inverse(scale.to_f32());
        for (i, x) in values.iter().enumerate() {
            put_code4(panel, r, at.codes, i, code(x + 8.0 * scale.to_f32(), inv, (0.0, 15.0)));
        }
        put(panel, at.scales + r * 2, &scale.to_le_bytes());
        fits &= scale.is_finite();
    }
    fits
}

/// Scale and minimum per group, chosen for the least squared error among shrunken ranges: the outermost values of a
/// group often cost the others more than clipping them does.
pub fn int4_min(row: &[f32], r: usize, panel: &mut [u8]) -> bool {
    let mut fits = finite(row);
    for (g, values) in row.chunks(GROUP).enumerate() {
        let at = Stored::Int4Min.group(g);
        let (lo, hi) = values.iter().fold((0.0_f32, 0.0_f32), |(lo, hi), x| (lo.min(*x), hi.max(*x)));
        let (mut scale, mut min, mut least) = (f16::ZERO, f16::ZERO, f32::INFINITY);
        for shrink in [1.0, 0.96, 0.92, 0.88, 0.84, 0.8_f32] {
            let m = f16::from_f32(lo * shrink);
            let d = f16::from_f32((hi * shrink - m.to_f32()) / 15.0);
            let error = squared_error(values, d.to_f32(), m.to_f32());
            if error < least {
                (scale, min, least) = (d, m, error);
            }
        }
        let inv = inverse(scale.to_f32());
        for (i, x) in values.iter().enumerate() {
            put_code4(panel, r, at.codes, i, code(x - min.to_f32(), inv, (0.0, 15.0)));
        }
        put(panel, at.scales + r * 2, &scale.to_le_bytes());
        put(panel, at.minima + r * 2, &min.to_le_bytes());
        // Where no scale fits, no error is finite.
        fits &= least.is_finite();
    }
    fits
}

/// What storing `values` at this scale and minimum costs.
fn squared_error(values: &[f32], scale: f32, min: f32) -> f32 {
    let inv = inverse(scale);
    let mut lanes = [0.0_f32; LANES];
    for chunk in values.chunks(LANES) {
        for (sum, x) in lanes.iter_mut().zip(chunk) {
            let error = code(x - min, inv, (0.0, 15.0)) * scale + min - x;
            *sum += error * error;
        }
    }
    lanes.iter().sum()
}
