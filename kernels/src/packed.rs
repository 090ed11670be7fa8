//! Weight matrices laid out once, at load, for the kernels that read them.
//!
//! A matrix `[rows, cols]` is cut into panels of [`PANEL`] rows; a panel is one contiguous run of bytes, padded with
//! zeros to whole panels and groups, so that a kernel streams it front to back and has no tail:
//!
//! ```text
//! F32          [col][16 rows] f32                      F16  [col][16 rows] f16
//! Bf16         [col/2][16 rows][2 cols] bf16
//! Int8, Int4, Int4Min: per pair of groups
//!   [2 groups][16 rows] f16 scales; Int4Min then [2 groups][16 rows] f16 minima; then the codes of both:
//!   Int8       [2 groups][8 quads][16 rows][4 cols] u8; value = scale * (code - 128)
//!   Int4       [2 groups][4 steps][16 rows][4 cols] u8: low nibble quad j, high nibble quad j + 4;
//!              value = scale * (code - 8)
//!   Int4Min    as Int4; value = scale * code + minimum
//! ```
//!
//! A group is [`GROUP`] columns, a quad four. Scales stand before the codes they belong to, so that a panel is one
//! stream of memory, and two groups' together, so that every part is whole cache lines. Q8_0, Q4_0 and Q4_1 blocks are
//! held bit for bit. The layout is the same for every instruction set. The panel count is even, so that `rows` rounds up
//! to [`GROUP`] like activations do.
//!
//! A stack of matrices of one shape (experts) is the panels of the first, then those of the second, and so on: one run
//! of memory, of which a step reads the matrices it uses.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::buffer::{Arena, Buffer, OutOfMemory};

/// Rows of a panel.
pub const PANEL: usize = 16;
/// Columns that share a scale.
pub const GROUP: usize = 32;

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits, one f16 scale per row and group.
    Int8,
    /// 4 bits, f16 scale per row and group, zero at code 8.
    Int4,
    /// 4 bits, f16 scale and minimum per row and group.
    Int4Min,
}

impl Stored {
    /// Every kind.
    pub const ALL: [Stored; 6] = [Stored::F32, Stored::F16, Stored::Bf16, Stored::Int8, Stored::Int4, Stored::Int4Min];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Stored::F32 => "f32",
            Stored::F16 => "f16",
            Stored::Bf16 => "bf16",
            Stored::Int8 => "int8-g32",
            Stored::Int4 => "int4-g32",
            Stored::Int4Min => "int4-g32-min",
        }
    }

    /// Whether activations are quantised for it.
    pub fn is_int(self) -> bool {
        matches!(self, Stored::Int8 | Stored::Int4 | Stored::Int4Min)
    }

    /// Bytes of a panel over `cols` columns.
    pub fn panel_bytes(self, cols: usize) -> usize {
        let (pairs, groups) = (cols.div_ceil(2), cols.div_ceil(GROUP));
        match self {
            Stored::F32 => cols * PANEL * 4,
            Stored::F16 => cols * PANEL * 2,
            Stored::Bf16 => pairs * PANEL * 4,
            Stored::Int8 | Stored::Int4 | Stored::Int4Min => groups.div_ceil(2) * self.pair_bytes(),
        }
    }

    /// Bytes of the codes of a panel's group (integer types).
    pub(crate) const fn code_bytes(self) -> usize {
        if matches!(self, Stored::Int8) { PANEL * GROUP } else { PANEL * GROUP / 2 }
    }

    /// Bytes of the scales and minima of a pair of groups.
    const fn header_bytes(self) -> usize {
        if matches!(self, Stored::Int4Min) { 8 * PANEL } else { 4 * PANEL }
    }

    /// Bytes of a pair of groups of a panel.
    pub(crate) const fn pair_bytes(self) -> usize {
        self.header_bytes() + 2 * self.code_bytes()
    }

    /// Where group `g` of an integer type lies in its panel.
    #[inline(always)]
    pub(crate) const fn group(self, g: usize) -> GroupAt {
        let (pair, second) = (g / 2 * self.pair_bytes(), g % 2);
        let scales = pair + second * 2 * PANEL;
        let codes = pair + self.header_bytes() + second * self.code_bytes();
        GroupAt { scales, minima: scales + 4 * PANEL, codes }
    }
}

/// Offsets in a panel's bytes, of the first row of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupAt {
    /// f16 scales, one per row.
    pub scales: usize,
    /// f16 minima, one per row ([`Stored::Int4Min`]).
    pub minima: usize,
    /// Codes.
    pub codes: usize,
}

/// Rows of a matrix to pack, read in chunks.
pub trait Source: Sync {
    /// `(rows, cols)`.
    fn shape(&self) -> (usize, usize);
    /// Values of `rows`, row-major.
    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]);
    /// Appends `rows` as GGUF blocks of the packed kind (Q8_0, Q4_0 or Q4_1), to be held bit for bit; appends nothing,
    /// whatever the rows, where their values are to be quantised instead.
    fn read_blocks(&self, rows: Range<usize>, out: &mut Vec<u8>);
    /// The rows are packed and not needed again.
    fn done(&self, _rows: Range<usize>) {}
}

/// A packed matrix, or a stack of them.
#[derive(Debug)]
pub struct Packed {
    count: usize,
    rows: usize,
    cols: usize,
    stored: Stored,
    panel_bytes: usize,
    data: Buffer,
}

/// Why a matrix cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// No memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// A value is not finite, or its scale does not fit.
    #[error("row {row} holds a value that cannot be stored as {stored}")]
    Value {
        /// Row of the value.
        row: usize,
        /// Stored type.
        stored: &'static str,
    },
}

impl Packed {
    /// Packs all of `source`, in parallel over panels.
    pub fn pack(source: &dyn Source, stored: Stored) -> Result<Self, PackError> {
        Packed::pack_stack(source, 1, stored, &mut Arena::default())
    }

    /// Packs `source` as `count` matrices of equally many rows, in memory of `arena`; where that is filled, they are there.
    pub fn pack_stack(source: &dyn Source, count: usize, stored: Stored, arena: &mut Arena) -> Result<Self, PackError> {
        let (all_rows, cols) = source.shape();
        assert!(count > 0 && all_rows.is_multiple_of(count), "matrices of a stack have one shape");
        let rows = all_rows / count;
        let panels = rows.next_multiple_of(GROUP) / PANEL;
        let panel_bytes = stored.panel_bytes(cols);
        let mut data = arena.zeroed(count * panels * panel_bytes)?;
        if arena.is_filled() {
            return Ok(Packed { count, rows, cols, stored, panel_bytes, data });
        }
        // Source rows of a panel, of all the stack's; none where it is padding alone.
        let rows_of = |panel: usize| {
            let (matrix, first) = (panel / panels, (panel % panels * PANEL).min(rows));
            matrix * rows + first..matrix * rows + (first + PANEL).min(rows)
        };
        // Chunks keep the decoded rows small and release the file's pages as they go.
        let per_chunk = (1_usize << 20).div_ceil(panel_bytes.max(1)).clamp(2, 64);
        data.as_mut_slice().par_chunks_mut(per_chunk * panel_bytes).enumerate().try_for_each(|(i, chunk)| {
            let first = i * per_chunk;
            let mut values = Vec::new();
            for (p, panel) in chunk.chunks_mut(panel_bytes).enumerate() {
                let rows = rows_of(first + p);
                if !rows.is_empty() {
                    pack_panel(source, rows, cols, stored, panel, &mut values)?;
                }
            }
            let last = first + chunk.len() / panel_bytes - 1;
            source.done(rows_of(first).start..rows_of(last).end);
            Ok::<_, PackError>(())
        })?;
        Ok(Packed { count, rows, cols, stored, panel_bytes, data })
    }

    /// Bytes that a matrix takes.
    pub fn bytes_of(rows: usize, cols: usize, stored: Stored) -> usize {
        rows.next_multiple_of(GROUP) / PANEL * stored.panel_bytes(cols)
    }

    /// Matrices of the stack.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows of a matrix, without padding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How it is stored.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// Bytes of the whole stack.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Panels of a matrix, padding included.
    pub fn panels(&self) -> usize {
        self.rows.next_multiple_of(GROUP) / PANEL
    }

    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// Panel `i` of the whole stack.
    pub(crate) fn panel(&self, i: usize) -> *const u8 {
        self.data.as_slice()[i * self.panel_bytes..][..self.panel_bytes].as_ptr()
    }

    /// Decodes row `row` of the whole stack's rows.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (matrix, row) = (row / self.rows, row % self.rows);
        let panel = matrix * self.panels() + row / PANEL;
        let data = &self.data.as_slice()[panel * self.panel_bytes..][..self.panel_bytes];
        let r = row % PANEL;
        let out = &mut out[..self.cols];
        let u16_at = |at: usize| u16::from_le_bytes([data[at], data[at + 1]]);
        let f32_at = |at: usize| f32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
        let f16_at = |at: usize| f16::from_bits(u16_at(at + 2 * r)).to_f32();
        let group = |c: usize| self.stored.group(c / GROUP);
        let code8 = |c: usize| f32::from(data[group(c).codes + c % GROUP / 4 * 64 + r * 4 + c % 4]);
        let code4 = |c: usize| {
            let quad = c % GROUP / 4;
            let byte = data[group(c).codes + quad % 4 * 64 + r * 4 + c % 4];
            f32::from(if quad < 4 { byte & 15 } else { byte >> 4 })
        };
        match self.stored {
            Stored::F32 => out.iter_mut().enumerate().for_each(|(c, o)| *o = f32_at((c * PANEL + r) * 4)),
            Stored::F16 => {
                out.iter_mut().enumerate().for_each(|(c, o)| *o = f16::from_bits(u16_at((c * PANEL + r) * 2)).to_f32())
            }
            Stored::Bf16 => out.iter_mut().enumerate().for_each(|(c, o)| {
                *o = bf16::from_bits(u16_at((c / 2 * PANEL + r) * 4 + c % 2 * 2)).to_f32();
            }),
            Stored::Int8 => {
                out.iter_mut().enumerate().for_each(|(c, o)| *o = f16_at(group(c).scales) * (code8(c) - 128.0));
            }
            Stored::Int4 => {
                out.iter_mut().enumerate().for_each(|(c, o)| *o = f16_at(group(c).scales) * (code4(c) - 8.0));
            }
            Stored::Int4Min => out.iter_mut().enumerate().for_each(|(c, o)| {
                *o = f16_at(group(c).scales) * code4(c) + f16_at(group(c).minima);
            }),
        }
    }
}

/// Packs up to [`PANEL`] rows into `panel`, which holds zeros.
fn pack_panel(
    source: &dyn Source,
    rows: Range<usize>,
    cols: usize,
    stored: Stored,
    panel: &mut [u8],
    values: &mut Vec<f32>,
) -> Result<(), PackError> {
    let fails = |r: usize| PackError::Value { row: rows.start + r, stored: stored.name() };
    if stored.is_int() {
        // Padding rows and columns must decode to zero: with scale 0 any code does, so codes need no care.
        let mut blocks = Vec::new();
        source.read_blocks(rows.clone(), &mut blocks);
        if !blocks.is_empty() {
            for (r, blocks) in blocks.chunks_exact(blocks.len() / rows.len()).enumerate() {
                if !blocks::scatter(blocks, r, stored, panel) {
                    return Err(fails(r));
                }
            }
            return Ok(());
        }
    }
    values.resize(rows.len() * cols, 0.0);
    source.read_f32(rows.clone(), values);
    for (r, row) in values.chunks_exact(cols.max(1)).enumerate() {
        let fits = match stored {
            Stored::F32 => {
                row.iter().enumerate().for_each(|(c, x)| put(panel, (c * PANEL + r) * 4, &x.to_le_bytes()));
                true
            }
            Stored::F16 => {
                row.iter()
                    .enumerate()
                    .for_each(|(c, x)| put(panel, (c * PANEL + r) * 2, &f16::from_f32(*x).to_le_bytes()));
                row.iter().all(|x| !x.is_finite() || x.abs() <= 65504.0)
            }
            Stored::Bf16 => {
                row.iter().enumerate().for_each(|(c, x)| {
                    put(panel, (c / 2 * PANEL + r) * 4 + c % 2 * 2, &bf16::from_f32(*x).to_le_bytes());
                });
                true
            }
            Stored::Int8 => quantise::int8(row, r, panel),
            Stored::Int4 => quantise::int4(row, r, panel),
            Stored::Int4Min => quantise::int4_min(row, r, panel),
        };
        if !fits {
            return Err(fails(r));
        }
    }
    Ok(())
}

fn put<const N: usize>(panel: &mut [u8], at: usize, bytes: &[u8; N]) {
    panel[at..at + N].copy_from_slice(bytes);
}

mod blocks;
mod quantise;
#[cfg(test)]
mod tests;
