//! A view of a quantised matrix.
//!
//! A value is `scale * (code - zero)` in f32, as the reference implementations compute it. Rows can also be had as blocks
//! of 32 with their codes as they are: `Q4_0` and `Q4_1` for 4-bit integers, `Q8_0` for whatever fits a signed byte less
//! its zero point.

use std::ops::Range;

use half::f16;

use super::methods::Resolved;
use super::part::Tensor;
use super::scales::Zeros;
use super::{Codes, Parts};
use crate::program::{View, WeightDecl};
use crate::weights::{Encoding, GgmlType, Holds, WeightRows};

/// Which group the columns are of.
#[derive(Clone, Copy, Debug)]
pub enum Groups<'a> {
    /// This many columns after the other, the last group may be short.
    Even(usize),
    /// Of the group at each column's place (little-endian i32), which exists.
    Index(&'a [[u8; 4]]),
}

/// Rows of a quantised matrix.
pub struct PartRows<'a> {
    parts: Parts,
    data: Resolved<'a>,
    view: View,
    /// Experts, rows of each.
    planes: usize,
    rows: usize,
    /// Of the codes.
    tensor: Tensor<'a>,
}

impl<'a> PartRows<'a> {
    /// The rows that `decl` asks for; its view lies within the matrix.
    pub fn new(parts: Parts, data: Resolved<'a>, decl: &WeightDecl, tensor: Tensor<'a>) -> Self {
        let rows =
            PartRows { parts, data, view: decl.view, planes: decl.experts.unwrap_or(1), rows: decl.rows, tensor };
        rows.tensor.file.will_need(rows.span(0..rows.all_rows()));
        rows
    }

    fn all_rows(&self) -> usize {
        self.planes * self.rows
    }

    /// Where the matrix has row `row` of the view.
    fn place(&self, row: usize) -> usize {
        row / self.rows * self.view.of_rows + self.view.row(row % self.rows)
    }

    /// Bytes of the file that hold the codes of `rows`, which may hold others too.
    fn span(&self, rows: Range<usize>) -> Range<usize> {
        let start = self.tensor.start;
        let all = start..start + self.data.codes.bytes.len();
        let Some(last) = rows.clone().last() else { return start..start };
        let span = self.data.codes.span(self.place(rows.start)..self.place(last) + 1);
        span.map_or(all, |span| start + span.start..start + span.end)
    }

    /// Calls `f` with up to [`ROWS`] rows at a time: their places, and their codes less the zero points.
    fn each(&self, rows: Range<usize>, codes: &mut [f32], mut f: impl FnMut(&[usize], &mut [f32])) {
        let cols = self.data.codes.cols;
        let mut places = [0; ROWS];
        for (i, codes) in codes.chunks_mut((ROWS * cols).max(1)).enumerate() {
            let first = rows.start + i * ROWS;
            let n = ROWS.min(rows.end - first);
            places[..n].iter_mut().enumerate().for_each(|(i, p)| *p = self.place(first + i));
            self.data.codes.read(&places[..n], codes);
            f(&places[..n], codes);
        }
    }

    /// Multiplies codes of a row with its scales, less its zero points.
    fn scale(&self, row: usize, codes: &mut [f32]) {
        // Zero points are small whole numbers, and so are the codes that have any.
        let (scale, zero) = (|group| self.data.scales.at(row, group), |group| self.data.zeros.at(row, group) as f32);
        match self.data.groups {
            Groups::Even(n) => codes.chunks_mut(n).enumerate().for_each(|(group, codes)| {
                let (scale, zero) = (scale(group), zero(group));
                codes.iter_mut().for_each(|x| *x = scale * (*x - zero));
            }),
            Groups::Index(index) => codes.iter_mut().zip(index).for_each(|(x, group)| {
                let group = u32::from_le_bytes(*group) as usize; // checked to exist
                *x = scale(group) * (*x - zero(group));
            }),
        }
    }

    /// Columns of a group, where blocks of 32 do not straddle groups.
    fn group_of_blocks(&self) -> Result<usize, &'static str> {
        match self.data.groups {
            Groups::Index(_) => Err("its columns are reordered"),
            Groups::Even(n) if n.is_multiple_of(BLOCK) || n >= self.data.codes.cols => Ok(n),
            Groups::Even(_) => Err("its groups are no multiple of 32 columns"),
        }
    }

    /// Whether f16 has every scale of the view that is needed.
    fn scales_fit(&self, group: usize) -> bool {
        let cols = self.data.codes.cols;
        let mut codes = vec![];
        self.data.scales.are_f16()
            || (0..self.all_rows()).all(|row| {
                let row = self.place(row);
                let misfits = |g: usize| {
                    let scale = self.data.scales.at(row, g);
                    f16::from_f32(scale).to_f32() != scale
                };
                let groups = cols.div_ceil(group);
                if !(0..groups).any(misfits) {
                    return true;
                }
                // A group of zeros needs no scale.
                codes.resize(cols, 0.0);
                self.data.codes.read(&[row], &mut codes);
                let is_zero = |g: usize| {
                    let zero = self.data.zeros.at(row, g) as f32;
                    codes.chunks(group).nth(g).is_some_and(|c| c.iter().all(|x| *x == zero))
                };
                (0..groups).all(|g| !misfits(g) || is_zero(g))
            })
    }
}

impl WeightRows for PartRows<'_> {
    fn encoding(&self) -> Encoding {
        Encoding::Parts(self.parts)
    }

    fn shape(&self) -> (usize, usize) {
        (self.all_rows(), self.data.codes.cols)
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.data.codes.cols;
        assert!(rows.end <= self.all_rows() && out.len() == rows.len() * cols, "rows of the view, and room for them");
        self.each(rows, out, |places, values| {
            places.iter().zip(values.chunks_exact_mut(cols)).for_each(|(row, values)| self.scale(*row, values));
        });
    }

    fn raw_row(&self, _row: usize) -> Option<&[u8]> {
        None
    }

    fn release(&self, rows: Range<usize>) {
        // Where rows share words, the pages under them are needed until the last row is read.
        let shared = self.data.codes.span(0..1).is_none();
        if !shared || rows.end == self.all_rows() {
            self.tensor.file.release(self.span(rows));
        }
    }

    fn holds(&self, kind: GgmlType) -> Holds {
        let group = match self.group_of_blocks() {
            Ok(group) => group,
            Err(why) => return Holds::Not(why),
        };
        let zero = match self.data.zeros {
            Zeros::Constant(zero) => Some(zero),
            Zeros::Stored(_) => None,
        };
        match (kind, self.parts.codes, zero) {
            (_, Codes::Fp8, _) => return Holds::Not("its codes are floats"),
            (GgmlType::Q4_0, Codes::Int4, Some(8)) => {}
            (GgmlType::Q4_0, Codes::Int4, _) => return Holds::Not("its zero points vary"),
            // Minima are products of scales and zero points.
            (GgmlType::Q4_1, Codes::Int4, _) => return Holds::Rounded,
            (GgmlType::Q4_0 | GgmlType::Q4_1, ..) => return Holds::Not("its codes have more than 4 bits"),
            (GgmlType::Q8_0, Codes::Int4 | Codes::Mxfp4, _) => {}
            (GgmlType::Q8_0, Codes::Int8, Some(0)) => {}
            (GgmlType::Q8_0, Codes::Int8, Some(128)) => {}
            (GgmlType::Q8_0, Codes::Int8, _) => return Holds::Not("its codes less their zero points exceed 8 bits"),
            _ => return Holds::Not("it is of another type"),
        }
        if self.scales_fit(group) { Holds::Exactly } else { Holds::Rounded }
    }

    fn read_blocks(&self, rows: Range<usize>, kind: GgmlType, out: &mut Vec<u8>) {
        let cols = self.data.codes.cols;
        let Ok(group) = self.group_of_blocks() else { return };
        let mut codes = vec![0.0; rows.len() * cols];
        self.each(rows, &mut codes, |places, codes| {
            for (&row, codes) in places.iter().zip(codes.chunks_exact(cols)) {
                for (b, codes) in codes.chunks(BLOCK).enumerate() {
                    let g = b * BLOCK / group;
                    put_block(kind, codes, self.data.scales.at(row, g), self.data.zeros.at(row, g) as f32, out);
                }
            }
        });
    }
}

/// Appends one block, padded with codes of zero; layouts in ggml's `ggml-common.h`. What [`WeightRows::holds`] allows
/// fits its fields.
fn put_block(kind: GgmlType, codes: &[f32], scale: f32, zero: f32, out: &mut Vec<u8>) {
    // A group of zeros needs no scale, and may have one that does not fit.
    let scale = if codes.iter().all(|x| *x == zero) { 0.0 } else { scale };
    let code = |i: usize| *codes.get(i).unwrap_or(&zero);
    out.extend(f16::from_f32(scale).to_le_bytes());
    match kind {
        GgmlType::Q8_0 => out.extend((0..BLOCK).map(|i| (code(i) - zero) as i8 as u8)),
        _ => {
            if kind == GgmlType::Q4_1 {
                out.extend(f16::from_f32(-scale * zero).to_le_bytes());
            }
            out.extend((0..BLOCK / 2).map(|i| code(i) as u8 | (code(i + BLOCK / 2) as u8) << 4));
        }
    }
}

/// Values of a block.
const BLOCK: usize = 32;

/// Rows that are read together: where rows share words, neighbours are in one cache line.
const ROWS: usize = 16;
