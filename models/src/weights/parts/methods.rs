//! The parts of each method's matrices, checked: types, shapes, groups, zero points.

use safetensors::tensor::Dtype;

use super::codes::{CodeTensor, Layout, Number};
use super::part::{Named, Part};
use super::rows::Groups;
use super::scales::{Scales, Zeros};
use crate::config::{Group, ScaleOf};
use crate::weights::WeightError;

/// The parts of a matrix, checked against each other.
pub struct Resolved<'a> {
    /// Codes.
    pub codes: CodeTensor<'a>,
    /// Scales.
    pub scales: Scales<'a>,
    /// Zero points.
    pub zeros: Zeros<'a>,
    /// Which columns share them.
    pub groups: Groups<'a>,
}

/// Sizes of the matrix that the config implies.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Experts, else 1.
    pub planes: usize,
    /// Rows of each.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

pub fn gptq<'a>(
    codes: &Part<'a>,
    weight: Named<'a, '_>,
    Sizes { rows, cols, .. }: Sizes,
    (bits, group): (u32, Group),
    zeros_less_one: bool,
) -> Result<Resolved<'a>, WeightError> {
    let per_word = 32 / bits as usize; // 4 or 8: both fit
    if !cols.is_multiple_of(per_word) || !rows.is_multiple_of(per_word) {
        return Err(codes.broken(format!("{rows} x {cols} values do not fill words of {per_word}")));
    }
    codes.check(&[Dtype::I32], &[cols / per_word, rows])?;
    let (per_group, groups) = groups_of(group, cols);
    let qzeros = weight.need("qzeros", &[Dtype::I32], &[groups, rows / per_word])?;
    let scales = weight.need("scales", FLOATS, &[groups, rows])?;
    let zeros = Zeros::inputs(qzeros.bytes(), bits, rows, zeros_less_one);
    if let Some((group, row)) = zeros.ambiguous(groups, rows) {
        return Err(qzeros.broken(format!(
            "the zero point of group {group}, column {row} is stored as {}: with checkpoint_format gptq, which stores \
             them less one, implementations disagree whether that means 0",
            (1 << bits) - 1
        )));
    }
    let order = match weight.get("g_idx") {
        None => Groups::Even(per_group),
        Some(index) => group_index(&index, cols, (per_group, groups))?,
    };
    Ok(Resolved {
        codes: CodeTensor {
            bytes: codes.bytes(),
            layout: Layout::Inputs { bits },
            number: Number::Unsigned,
            rows,
            cols,
        },
        scales: Scales::new(scales.tensor, (1, rows), 1),
        zeros: zeros.simplified(groups, rows),
        groups: order,
    })
}

pub fn awq<'a>(
    codes: &Part<'a>,
    weight: Named<'a, '_>,
    Sizes { rows, cols, .. }: Sizes,
    group: Group,
) -> Result<Resolved<'a>, WeightError> {
    if !rows.is_multiple_of(8) {
        return Err(codes.broken(format!("{rows} rows do not fill words of 8")));
    }
    codes.check(&[Dtype::I32], &[cols, rows / 8])?;
    let (per_group, groups) = whole_groups(codes, group, cols)?;
    let qzeros = weight.need("qzeros", &[Dtype::I32], &[groups, rows / 8])?;
    let scales = weight.need("scales", FLOATS, &[groups, rows])?;
    Ok(Resolved {
        codes: CodeTensor { bytes: codes.bytes(), layout: Layout::Awq, number: Number::Unsigned, rows, cols },
        scales: Scales::new(scales.tensor, (1, rows), 1),
        zeros: Zeros::awq(qzeros.bytes(), rows).simplified(groups, rows),
        groups: Groups::Even(per_group),
    })
}

pub fn packed<'a>(
    codes: &Part<'a>,
    weight: Named<'a, '_>,
    Sizes { rows, cols, .. }: Sizes,
    (bits, scale): (u32, ScaleOf),
    (symmetric, reordered): (bool, bool),
) -> Result<Resolved<'a>, WeightError> {
    let per_word = 32 / bits as usize; // 4 or 8: both fit
    codes.check(&[Dtype::I32], &[rows, cols.div_ceil(per_word)])?;
    if let Some(shape) = weight.get("weight_shape") {
        shape.check(&[Dtype::I64, Dtype::I32], &[2])?;
        let size = |i: usize| {
            let width = shape.bytes().len() / 2;
            let mut value = [0; 8];
            value[..width].copy_from_slice(&shape.bytes()[i * width..][..width]);
            u64::from_le_bytes(value)
        };
        if (size(0), size(1)) != (rows as u64, cols as u64) {
            let (found, expected) = ((size(0), size(1)), (rows, cols));
            return Err(shape.broken(format!("says {found:?}, the config implies {expected:?}")));
        }
    }
    let shared = Shared::of(codes, weight, scale, (rows, cols))?;
    let middle = 1_i32 << (bits - 1); // 8 or 128
    let zeros = match symmetric {
        true => Zeros::Constant(middle),
        // Packed where there is one per group; in files of the format's first versions, and for a tensor, plain.
        false => match weight.find("weight_zero_point")? {
            point if point.dtype() == Dtype::I32 => {
                let groups = shared.groups(codes)?;
                point.check(&[Dtype::I32], &[rows.div_ceil(per_word), groups])?;
                Zeros::outputs(point.bytes(), bits, groups).simplified(groups, rows)
            }
            point => shared.zeros(&point, middle)?,
        },
    };
    let order = match (reordered, shared.per_group) {
        (false, per_group) => Groups::Even(per_group),
        (true, per_group) => group_index(&weight.find("weight_g_idx")?, cols, (per_group, shared.groups(codes)?))?,
    };
    let layout = Layout::Outputs { bits, row_bytes: cols.div_ceil(per_word) * 4 };
    let codes = CodeTensor { bytes: codes.bytes(), layout, number: Number::Unsigned, rows, cols };
    Ok(Resolved { codes, scales: shared.scales, zeros, groups: order })
}

pub fn int8<'a>(
    codes: &Part<'a>,
    weight: Named<'a, '_>,
    Sizes { rows, cols, .. }: Sizes,
    scale: ScaleOf,
    symmetric: bool,
) -> Result<Resolved<'a>, WeightError> {
    codes.check(&[Dtype::I8], &[rows, cols])?;
    let shared = Shared::of(codes, weight, scale, (rows, cols))?;
    let zeros = match symmetric {
        true => Zeros::Constant(0),
        false => shared.zeros(&weight.find("weight_zero_point")?, 0)?,
    };
    let layout = Layout::Outputs { bits: 8, row_bytes: cols };
    let codes = CodeTensor { bytes: codes.bytes(), layout, number: Number::Signed, rows, cols };
    Ok(Resolved { codes, scales: shared.scales, zeros, groups: Groups::Even(shared.per_group) })
}

pub fn fp8<'a>(
    codes: &Part<'a>,
    weight: Named<'a, '_>,
    Sizes { rows, cols, .. }: Sizes,
    scale: ScaleOf,
) -> Result<Resolved<'a>, WeightError> {
    codes.check(&[Dtype::F8_E4M3], &[rows, cols])?;
    let shared = Shared::of(codes, weight, scale, (rows, cols))?;
    let layout = Layout::Outputs { bits: 8, row_bytes: cols };
    let codes = CodeTensor { bytes: codes.bytes(), layout, number: Number::E4m3, rows, cols };
    Ok(Resolved { codes, scales: shared.scales, zeros: Zeros::Constant(0), groups: Groups::Even(shared.per_group) })
}

pub fn mxfp4<'a>(
    codes: &Part<'a>,
    named: Named<'a, '_>,
    Sizes { planes, rows, cols }: Sizes,
) -> Result<Resolved<'a>, WeightError> {
    if !cols.is_multiple_of(MX_BLOCK) {
        return Err(codes.broken(format!("{cols} columns are no multiple of {MX_BLOCK}")));
    }
    let blocks = cols / MX_BLOCK;
    codes.check(&[Dtype::U8], &[planes, rows, blocks, MX_BLOCK / 2])?;
    let scales = named.need("_scales", &[Dtype::U8, Dtype::F8_E8M0], &[planes, rows, blocks])?;
    let layout = Layout::Outputs { bits: 4, row_bytes: cols / 2 };
    let codes = CodeTensor { bytes: codes.bytes(), layout, number: Number::TwiceE2m1, rows: planes * rows, cols };
    Ok(Resolved {
        codes,
        scales: Scales::new(scales.tensor, (blocks, 1), 1).halved(),
        zeros: Zeros::Constant(0),
        groups: Groups::Even(MX_BLOCK),
    })
}

/// Scales of a compressed-tensors or fp8 weight.
struct Shared<'a> {
    scales: Scales<'a>,
    /// Columns that share a scale.
    per_group: usize,
    /// Rows and groups of one scale each; `None` where blocks or the whole tensor share one.
    of_rows: Option<(usize, usize)>,
}

impl<'a> Shared<'a> {
    fn of(
        codes: &Part<'a>,
        weight: Named<'a, '_>,
        scale: ScaleOf,
        (rows, cols): (usize, usize),
    ) -> Result<Self, WeightError> {
        let part = match weight.get("weight_scale_inv") {
            Some(part) => part,
            None => weight.find("weight_scale")?,
        };
        match scale {
            ScaleOf::Tensor => {
                part.check_any(FLOATS, &[&[], &[1], &[1, 1]])?;
                Ok(Shared { scales: Scales::new(part.tensor, (0, 0), 1), per_group: cols.max(1), of_rows: None })
            }
            ScaleOf::Row(group) => {
                let (per_group, groups) = whole_groups(codes, group, cols)?;
                let plain: &[&[usize]] = &[&[rows, groups], &[rows]];
                part.check_any(FLOATS, if groups == 1 { plain } else { &plain[..1] })?;
                let scales = Scales::new(part.tensor, (groups, 1), 1);
                Ok(Shared { scales, per_group, of_rows: Some((rows, groups)) })
            }
            ScaleOf::Block(of_rows, of_cols) => {
                let blocks = cols.div_ceil(of_cols);
                part.check(FLOATS, &[rows.div_ceil(of_rows), blocks])?;
                let scales = Scales::new(part.tensor, (blocks, 1), of_rows);
                Ok(Shared { scales, per_group: of_cols, of_rows: None })
            }
        }
    }

    fn groups(&self, codes: &Part<'_>) -> Result<usize, WeightError> {
        let groups = self.of_rows.map(|(_, groups)| groups);
        groups.ok_or_else(|| codes.broken("has packed zero points or reordered columns without groups".to_owned()))
    }

    /// Plain zero points: one for each scale.
    fn zeros(&self, part: &Part<'a>, middle: i32) -> Result<Zeros<'a>, WeightError> {
        match self.of_rows {
            Some((rows, groups)) => {
                part.check(&[Dtype::I8], &[rows, groups])?;
                Ok(Zeros::plain(part.bytes(), (groups, 1), middle).simplified(groups, rows))
            }
            None if self.scales.is_one() => {
                part.check_any(&[Dtype::I8], &[&[], &[1], &[1, 1]])?;
                Ok(Zeros::plain(part.bytes(), (0, 0), middle).simplified(1, 1))
            }
            None => Err(part.broken("zero points of blocks are not supported".to_owned())),
        }
    }
}

/// Columns of a group, and groups of a row; the last may be short.
fn groups_of(group: Group, cols: usize) -> (usize, usize) {
    match group {
        Group::Row => (cols.max(1), 1),
        Group::Of(n) => (n, cols.div_ceil(n)),
    }
}

fn whole_groups(codes: &Part<'_>, group: Group, cols: usize) -> Result<(usize, usize), WeightError> {
    match group {
        Group::Of(n) if !cols.is_multiple_of(n) => {
            Err(codes.broken(format!("groups of {n} columns do not divide its {cols} columns")))
        }
        group => Ok(groups_of(group, cols)),
    }
}

/// The group of every column, checked to exist.
fn group_index<'a>(
    part: &Part<'a>,
    cols: usize,
    (per_group, groups): (usize, usize),
) -> Result<Groups<'a>, WeightError> {
    part.check(&[Dtype::I32], &[cols])?;
    let (index, _) = part.bytes().as_chunks::<4>();
    let group = |bytes: &[u8; 4]| usize::try_from(i32::from_le_bytes(*bytes)).ok().filter(|g| *g < groups);
    if let Some(col) = index.iter().position(|bytes| group(bytes).is_none()) {
        let found = i32::from_le_bytes(index[col]);
        return Err(part.broken(format!("column {col} is of group {found}, there are {groups}")));
    }
    let in_order = index.iter().enumerate().all(|(col, bytes)| group(bytes) == Some(col / per_group));
    Ok(if in_order { Groups::Even(per_group) } else { Groups::Index(index) })
}

const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E8M0];

/// Values of an mxfp4 block.
pub const MX_BLOCK: usize = 32;
