//! Matrix tiles: one panel of weights by up to [`Simd::TILE`] tokens, accumulators in registers.
//!
//! **Batch invariance** rests here: an output element is accumulated over its columns in one fixed order, whatever the
//! number of tokens in the tile. Activations come packed per tile, tokens innermost, so that a tile reads them as a
//! stream of broadcasts:
//!
//! ```text
//! ActKind::F32    [col][token] f32            cols rounded up to even
//! ActKind::Bf16   [col/2][token][2] bf16      likewise
//! ActKind::Int8   codes [col/4][token][4] i8  cols rounded up to GROUP
//!                 meta  [group][4][token]: scale f32, scale * sum f32, -8 * sum i32, -128 * sum i32
//!                 each twice: coarse codes, then fine ones
//! ```
//!
//! A token's group is rounded to 8 bits with one scale. Where one value dwarfs the others (the residual stream of
//! language models has such channels: Dettmers et al. 2022, arXiv:2208.07339), they would lose their bits to it: such a
//! group gets a second, fine set of codes for what the first left over, 16 bits in all. The choice is the token's own;
//! a tile makes the second pass where any of its tokens needs it, and adds exact zeros to the others.

use crate::packed::{GROUP, PANEL, Packed, Stored};
use crate::simd::Simd;

/// How activations are packed for a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActKind {
    /// As they are.
    F32,
    /// Rounded to bf16, in pairs.
    Bf16,
    /// Rounded to 8 bits with one scale per group of 32, to 16 in groups that need it.
    Int8,
}

impl ActKind {
    /// Bytes per token of `(codes, meta)` for an input of `cols`.
    pub fn bytes(self, cols: usize) -> (usize, usize) {
        let groups = cols.div_ceil(GROUP);
        match self {
            ActKind::F32 => (cols.next_multiple_of(2) * 4, 0),
            ActKind::Bf16 => (cols.next_multiple_of(2) * 2, 0),
            ActKind::Int8 => (2 * groups * GROUP, 2 * groups * META * 4),
        }
    }
}

/// 32-bit words of metadata per token and group.
pub const META: usize = 4;

/// How `rows` tokens are cut into tiles: as few as possible, as even as possible.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    rows: usize,
    count: usize,
}

impl Tiles {
    /// Tiles of at most `tile` tokens.
    pub fn new(rows: usize, tile: usize) -> Self {
        Tiles { rows, count: rows.div_ceil(tile) }
    }

    /// Number of tiles.
    pub fn count(self) -> usize {
        self.count
    }

    /// `(first token, tokens)` of tile `i`.
    pub fn at(self, i: usize) -> (usize, usize) {
        let (base, extra) = (self.rows / self.count, self.rows % self.count);
        (i * base + i.min(extra), base + usize::from(i < extra))
    }

    /// `(first token, tokens)` of the tile that holds `row`.
    pub fn of(self, row: usize) -> (usize, usize) {
        let (base, extra) = (self.rows / self.count, self.rows % self.count);
        let large = extra * (base + 1);
        self.at(if row < large { row / (base + 1) } else { extra + (row - large) / base })
    }
}

/// What a tile kernel reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct TileArgs {
    /// The panel's bytes.
    pub panel: *const u8,
    /// Columns of the matrix.
    pub cols: usize,
    /// The tile's packed activations.
    pub act: *const u8,
    /// Their metadata (int8).
    pub meta: *const u8,
    /// `[token][PANEL]` results at `out_stride`.
    pub out: *mut f32,
    /// Distance of tokens in `out`, in values.
    pub out_stride: usize,
    /// [`PANEL`] values added to every token, or null.
    pub bias: *const f32,
}

/// A tile kernel for one stored type and number of tokens.
pub type TileFn = unsafe fn(&TileArgs);

/// Computes one panel for `NT` tokens; `STORED` is `Stored as u8`.
#[inline(always)]
pub unsafe fn tile<S: Simd, const STORED: u8, const NT: usize>(a: &TileArgs) {
    // SAFETY: the caller vouches for the instruction set and the pointers.
    unsafe {
        for part in 0..PANEL / S::LANES {
            let row = part * S::LANES;
            let acc = accumulate::<S, STORED, NT>(a, row);
            for t in 0..NT {
                let mut x = acc[t];
                if !a.bias.is_null() {
                    x = S::add(x, S::load(a.bias.add(row)));
                }
                S::store(a.out.add(t * a.out_stride + row), x);
            }
        }
    }
}

#[inline(always)]
unsafe fn accumulate<S: Simd, const STORED: u8, const NT: usize>(a: &TileArgs, row: usize) -> [S::F; NT] {
    // SAFETY: as `tile`; `row` is the first row of this part of the panel.
    unsafe {
        let mut acc = [S::zero(); NT];
        let (groups, act) = (a.cols.div_ceil(GROUP), a.act.cast::<f32>());
        if STORED == Stored::F32 as u8 {
            let w = a.panel.cast::<f32>().add(row);
            for k in 0..a.cols {
                stream::<S, 1>(w.add(k * PANEL).cast());
                let w = S::load(w.add(k * PANEL));
                for t in 0..NT {
                    acc[t] = S::fma(w, S::splat(*act.add(k * NT + t)), acc[t]);
                }
            }
        } else if STORED == Stored::F16 as u8 {
            let w = a.panel.cast::<u16>().add(row);
            for k in 0..a.cols {
                stream::<S, 1>(w.add(k * PANEL).cast());
                let w = S::load_f16(w.add(k * PANEL));
                for t in 0..NT {
                    acc[t] = S::fma(w, S::splat(*act.add(k * NT + t)), acc[t]);
                }
            }
        } else if STORED == Stored::Bf16 as u8 {
            let w = a.panel.cast::<u16>().add(2 * row);
            for pair in 0..a.cols.div_ceil(2) {
                let w = w.add(pair * PANEL * 2);
                stream::<S, 1>(w.cast());
                if S::BF16 {
                    for t in 0..NT {
                        acc[t] = S::dot2_bf16(acc[t], w, a.act.cast::<u16>().add((pair * NT + t) * 2));
                    }
                } else {
                    let (even, odd) = S::load_bf16_pairs(w);
                    for t in 0..NT {
                        acc[t] = S::fma(even, S::splat(*act.add(2 * pair * NT + t)), acc[t]);
                    }
                    for t in 0..NT {
                        acc[t] = S::fma(odd, S::splat(*act.add((2 * pair + 1) * NT + t)), acc[t]);
                    }
                }
            }
        } else if STORED == Stored::Int8 as u8 {
            for g in 0..groups {
                let at = Stored::Int8.group(g);
                stream::<S, 9>(a.panel.add(g * Stored::Int8.pair_bytes() / 2));
                let w = a.panel.add(at.codes + row * 4);
                let scale = S::load_f16(a.panel.add(at.scales).cast::<u16>().add(row));
                let mut part = Codes::of(a, g, NT);
                loop {
                    let dots = S::dot_i8::<NT>(w, part.codes, part.meta.add(3 * NT).cast());
                    for t in 0..NT {
                        acc[t] = S::fma(S::mul(S::to_f32(dots[t]), S::splat(*part.meta.add(t))), scale, acc[t]);
                    }
                    if !part.next::<NT>(groups) {
                        break;
                    }
                }
            }
        } else {
            let stored = if STORED == Stored::Int4 as u8 { Stored::Int4 } else { Stored::Int4Min };
            for g in 0..groups {
                let at = stored.group(g);
                stream::<S, 5>(a.panel.add(g * stored.pair_bytes() / 2));
                let w = a.panel.add(at.codes + row * 4);
                let scale = S::load_f16(a.panel.add(at.scales).cast::<u16>().add(row));
                let mut part = Codes::of(a, g, NT);
                loop {
                    if STORED == Stored::Int4 as u8 {
                        let dots = S::dot_i4::<NT>(w, part.codes, part.meta.add(2 * NT).cast());
                        for t in 0..NT {
                            acc[t] = S::fma(S::mul(S::to_f32(dots[t]), S::splat(*part.meta.add(t))), scale, acc[t]);
                        }
                    } else {
                        let zeros = [0; NT];
                        let dots = S::dot_i4::<NT>(w, part.codes, zeros.as_ptr());
                        let min = S::load_f16(a.panel.add(at.minima).cast::<u16>().add(row));
                        for t in 0..NT {
                            acc[t] = S::fma(S::mul(S::to_f32(dots[t]), S::splat(*part.meta.add(t))), scale, acc[t]);
                        }
                        for t in 0..NT {
                            acc[t] = S::fma(min, S::splat(*part.meta.add(NT + t)), acc[t]);
                        }
                    }
                    if !part.next::<NT>(groups) {
                        break;
                    }
                }
            }
        }
        acc
    }
}

/// A group's codes in work: the coarse ones, then the fine ones where some token of the tile has them.
struct Codes {
    codes: *const i8,
    meta: *const f32,
    fine: bool,
}

impl Codes {
    #[inline(always)]
    unsafe fn of(a: &TileArgs, group: usize, nt: usize) -> Self {
        // SAFETY: the tile holds codes and metadata of every group.
        unsafe {
            let codes = a.act.cast::<i8>().add(group * GROUP * nt);
            Codes { codes, meta: a.meta.cast::<f32>().add(group * META * nt), fine: false }
        }
    }

    /// Turns to the fine codes; false where there are none or they are done.
    #[inline(always)]
    unsafe fn next<const NT: usize>(&mut self, groups: usize) -> bool {
        if self.fine {
            return false;
        }
        // SAFETY: the fine halves of codes and metadata follow the coarse ones.
        unsafe {
            let meta = self.meta.add(groups * META * NT);
            let any = (0..NT).fold(0, |any, t| any | (*meta.add(t)).to_bits());
            if any == 0 {
                return false;
            }
            *self = Codes { codes: self.codes.add(groups * GROUP * NT), meta, fine: true };
            true
        }
    }
}

/// Asks for the `LINES` lines that lie [`AHEAD`] of `p`, so that bandwidth and not latency bounds a tile of few tokens.
#[inline(always)]
unsafe fn stream<S: Simd, const LINES: usize>(p: *const u8) {
    for line in 0..LINES {
        // SAFETY: a prefetch may name any address.
        unsafe { S::prefetch(p.wrapping_add(AHEAD + 64 * line)) }
    }
}

/// Bytes ahead of the group in work: some 200 ns of streaming.
const AHEAD: usize = 6144;

/// Packs one row as token `t` of a tile of `nt`; `fine` lets a group have fine codes. `x` holds zeros from `cols` up to a multiple of [`GROUP`].
#[inline(always)]
pub unsafe fn pack_row<S: Simd>(
    kind: ActKind,
    x: *const f32,
    cols: usize,
    act: *mut u8,
    meta: *mut u8,
    (t, nt): (usize, usize),
    fine: bool,
) {
    // SAFETY: the caller vouches for the instruction set, `x` and the tile's buffers.
    unsafe {
        match kind {
            ActKind::F32 => {
                for k in 0..cols.next_multiple_of(2) {
                    *act.cast::<f32>().add(k * nt + t) = *x.add(k);
                }
            }
            ActKind::Bf16 => {
                let mut rounded = [0_u16; 64];
                for at in (0..cols).step_by(GROUP) {
                    for i in (0..GROUP).step_by(S::LANES) {
                        S::store_bf16(rounded.as_mut_ptr().add(i), S::load(x.add(at + i)));
                    }
                    for pair in 0..(cols - at).min(GROUP).div_ceil(2) {
                        let to = act.cast::<u32>().add((at / 2 + pair) * nt + t);
                        to.write_unaligned(rounded.as_ptr().add(2 * pair).cast::<u32>().read_unaligned());
                    }
                }
            }
            ActKind::Int8 => {
                let groups = cols.div_ceil(GROUP);
                for g in 0..groups {
                    let (act, meta) = (act.add(g * GROUP * nt), meta.add(g * META * nt * 4));
                    pack_group::<S>(x.add(g * GROUP), act, meta, (t, nt), groups, fine);
                }
            }
        }
    }
}

/// A group is split in coarse and fine codes where its largest square exceeds this many mean squares: where one value is
/// half of the group. A normal sample of 32 stays near 5. At 10, perplexity is the same and batches cost a tenth more.
const CREST: f32 = 16.0;

/// One group of 32 values to codes and metadata. A value that is not finite makes the scale not finite, so that it
/// shows in the results. Fine codes and metadata stand `groups` groups after the coarse ones.
#[inline(always)]
unsafe fn pack_group<S: Simd>(
    x: *const f32,
    act: *mut u8,
    meta: *mut u8,
    (t, nt): (usize, usize),
    groups: usize,
    fine: bool,
) {
    // SAFETY: as `pack_row`.
    unsafe {
        let mut largest = S::isplat(0);
        let mut squares = S::zero();
        for i in (0..GROUP).step_by(S::LANES) {
            let v = S::load(x.add(i));
            largest = S::imax(largest, S::abs_bits(v));
            squares = S::fma(v, v, squares);
        }
        let largest = f32::from_bits(S::ihmax(largest) as u32);
        let scale = largest / 127.0;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut rest = [0.0_f32; GROUP];
        put_codes::<S>(x, (scale, inverse), act, meta.cast::<f32>().add(t), (t, nt), Some(&mut rest));
        let (act, meta) = (act.add(groups * GROUP * nt), meta.cast::<f32>().add(groups * META * nt + t));
        if fine && largest * largest * GROUP as f32 > CREST * S::sum(squares) {
            // What is left lies within half a step, and a fine code is a 254th of a step.
            put_codes::<S>(rest.as_ptr(), (scale / 254.0, inverse * 254.0), act, meta, (t, nt), None);
        } else {
            meta.write_unaligned(0.0);
            meta.add(nt).write_unaligned(0.0);
        }
    }
}

/// Rounds 32 values and writes them as token `t` of `nt`, with their metadata; `rest` gets what rounding left over.
#[inline(always)]
unsafe fn put_codes<S: Simd>(
    x: *const f32,
    (scale, inverse): (f32, f32),
    act: *mut u8,
    meta: *mut f32,
    (t, nt): (usize, usize),
    rest: Option<&mut [f32; GROUP]>,
) {
    // SAFETY: as `pack_row`; `meta` is the token's.
    unsafe {
        let mut codes = [0_i8; GROUP];
        let mut sum = S::isplat(0);
        let rest = rest.map(|r| r.as_mut_ptr());
        for i in (0..GROUP).step_by(S::LANES) {
            let v = S::load(x.add(i));
            let q = S::round(S::mul(v, S::splat(inverse)));
            sum = S::iadd(sum, q);
            S::store_i8(codes.as_mut_ptr().add(i), q);
            if let Some(rest) = rest {
                S::store(rest.add(i), S::fma(S::to_f32(q), S::splat(-scale), v));
            }
        }
        let sum = S::isum(sum);
        for j in 0..GROUP / 4 {
            let quad = codes.as_ptr().add(4 * j).cast::<u32>().read_unaligned();
            act.cast::<u32>().add(j * nt + t).write_unaligned(quad);
        }
        meta.write_unaligned(scale);
        meta.add(nt).write_unaligned(scale * sum as f32);
        meta.add(2 * nt).cast::<i32>().write_unaligned(sum.wrapping_mul(-8));
        meta.add(3 * nt).cast::<i32>().write_unaligned(sum.wrapping_mul(-128));
    }
}

/// The activations that `stored` takes where bf16 pairs multiply in hardware (`bf16`) or not.
pub fn act_kind(stored: Stored, bf16: bool) -> ActKind {
    match stored {
        Stored::F32 | Stored::F16 => ActKind::F32,
        Stored::Bf16 if bf16 => ActKind::Bf16,
        Stored::Bf16 => ActKind::F32,
        Stored::Int8 | Stored::Int4 | Stored::Int4Min => ActKind::Int8,
    }
}

/// Biases of a matrix, or of a stack of them, padded to whole panels.
pub fn padded_bias(bias: &[f32], weight: &Packed) -> Vec<f32> {
    let mut padded = vec![0.0; weight.count() * weight.panels() * PANEL];
    for (to, from) in padded.chunks_mut((weight.panels() * PANEL).max(1)).zip(bias.chunks(weight.rows().max(1))) {
        to[..from.len()].copy_from_slice(from);
    }
    padded
}

#[cfg(test)]
mod tests;
