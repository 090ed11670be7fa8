//! A core's bytes of each weight, in the layout that lowering chose.
//!
//! Rows are read in bounded chunks and handed on in order. A matrix that is stored transposed is held once while it is
//! turned, one expert at a time; nothing else is held whole.

use std::ops::Range;

use half::bf16;
use njoule_hlo::DType;
use njoule_models::program::{Program, WeightDecl, WeightId, WeightUse};
use njoule_models::weights::{WeightRows, WeightSource};
use rayon::prelude::*;

use super::interface::WeightPart;
use super::shard::{Order, Run, Sharded};
use crate::backend::cpu::store::routers;
use crate::backend::{LoadError, Quant};

/// Takes the bytes of a weight's parts, each in order.
pub type Sink<'a> = dyn FnMut(WeightPart, &[u8]) -> Result<(), LoadError> + 'a;

/// Element type of each weight's values on the device, by [`WeightId`]: vectors in f32, matrices as `quant` says, but for
/// routers beside int8: an expert chosen wrongly is an error beside which rounding is small, and they are a thousandth.
pub fn stored(program: &Program, quant: Quant) -> Vec<DType> {
    let routers = routers(program);
    let of = |(id, decl): (u32, &WeightDecl)| match quant {
        _ if decl.usage == WeightUse::Vector => DType::F32,
        Quant::Int8 if routers.contains(&WeightId(id)) => DType::F32,
        Quant::Int8 => DType::S8,
        Quant::Bf16 => DType::BF16,
        // What lowering refuses is of no type; f32 holds everything.
        Quant::None | Quant::Int4 | Quant::Auto => DType::F32,
    };
    (0..).zip(&program.weights).map(of).collect()
}

/// Writes what core `rank` has of `weight` as elements of `dtype`, little endian: all values, then, of int8, all scales.
///
/// A scale is the largest of its whole row over 127, and so the same on every core.
pub fn write_part(
    source: &dyn WeightSource,
    sharded: &Sharded,
    weight: WeightId,
    dtype: DType,
    rank: usize,
    sink: &mut Sink<'_>,
) -> Result<(), LoadError> {
    let decl = sharded.whole.weight(weight);
    let view = source.get(decl)?;
    let part = sharded.part(weight);
    let whole = |n: usize| vec![Run { from: Some(0), len: n }];
    let runs = |split: &Option<std::sync::Arc<super::shard::Split>>, n: usize| match split {
        Some(split) => split.of_rank(rank).to_vec(),
        None => whole(n),
    };
    let slab = Slab {
        view: &*view,
        decl,
        members: runs(&part.members, decl.experts.unwrap_or(1)),
        rows: runs(&part.rows, decl.rows),
        cols: runs(&part.cols, decl.cols),
        order: part.order,
    };
    match dtype {
        DType::F32 => slab.write::<f32>(sink),
        DType::BF16 => slab.write::<bf16>(sink),
        DType::S8 => slab.write::<i8>(sink),
        other => Err(LoadError::Unsupported { backend: "neuron", what: format!("it stores no weights as {other}") }),
    }
}

/// An element of a weight on the device.
trait Stored: Copy + Default + Send + Sync {
    const NAME: &'static str;
    const SCALED: bool = false;

    /// Nothing where the type cannot hold the value.
    fn of(x: f32, scale: f32) -> Option<Self>;

    fn push(self, out: &mut Vec<u8>);
}

impl Stored for f32 {
    const NAME: &'static str = "f32";

    fn of(x: f32, _: f32) -> Option<f32> {
        Some(x).filter(|x| x.is_finite())
    }

    fn push(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
}

impl Stored for bf16 {
    const NAME: &'static str = "bf16";

    fn of(x: f32, _: f32) -> Option<bf16> {
        Some(bf16::from_f32(x)).filter(|x| x.is_finite())
    }

    fn push(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
}

impl Stored for i8 {
    const NAME: &'static str = "int8";
    const SCALED: bool = true;

    fn of(x: f32, scale: f32) -> Option<i8> {
        let code = (x / scale).round_ties_even();
        code.is_finite().then(|| code.clamp(-127.0, 127.0) as i8) // in range
    }

    fn push(self, out: &mut Vec<u8>) {
        out.push(self as u8);
    }
}

struct Slab<'a> {
    view: &'a dyn WeightRows,
    decl: &'a WeightDecl,
    /// Of a stack; of a single matrix or vector just that.
    members: Vec<Run>,
    rows: Vec<Run>,
    cols: Vec<Run>,
    order: Order,
}

impl Slab<'_> {
    fn write<T: Stored>(&self, sink: &mut Sink<'_>) -> Result<(), LoadError> {
        let len = |runs: &[Run]| runs.iter().map(|r| r.len).sum::<usize>();
        let (rows, cols) = (len(&self.rows), len(&self.cols));
        let mut scales: Vec<f32> = vec![];
        let mut bytes = vec![];
        let each = |run: &Run| (0..run.len).map(|i| run.from.map(|from| from + i)).collect::<Vec<_>>();
        for member in self.members.iter().flat_map(each) {
            let mut turned = vec![];
            if self.order == Order::InOut {
                turned
                    .try_reserve_exact(rows * cols)
                    .map_err(|_| LoadError::Memory { bytes: rows * cols * size_of::<T>(), what: "a turned weight" })?;
                turned.resize(rows * cols, T::default());
            }
            let mut at = 0;
            for run in &self.rows {
                for first in (0..run.len).step_by(self.chunk()) {
                    let chunk = first..(first + self.chunk()).min(run.len);
                    let values = match member.zip(run.from) {
                        None => {
                            scales.extend(chunk.clone().map(|_| 1.0));
                            vec![T::default(); chunk.len() * cols]
                        }
                        Some((member, from)) => {
                            let base = member * self.decl.rows + from;
                            self.read::<T>(base + chunk.start..base + chunk.end, cols, &mut scales)?
                        }
                    };
                    if self.order == Order::InOut {
                        turned.par_chunks_mut(rows).enumerate().for_each(|(col, out)| {
                            for (row, out) in out[at..at + chunk.len()].iter_mut().enumerate() {
                                *out = values[row * cols + col];
                            }
                        });
                    } else {
                        hand_on(&values, &mut bytes, sink)?;
                    }
                    at += chunk.len();
                }
            }
            for values in turned.chunks(CHUNK) {
                hand_on(values, &mut bytes, sink)?;
            }
        }
        if !T::SCALED {
            return Ok(());
        }
        bytes.clear();
        scales.iter().for_each(|scale| scale.push(&mut bytes));
        sink(WeightPart::Scales, &bytes)
    }

    /// Rows that are read together.
    fn chunk(&self) -> usize {
        (CHUNK / self.decl.cols.max(1)).max(1)
    }

    /// This core's columns of rows of the view, and the rows' scales.
    fn read<T: Stored>(&self, rows: Range<usize>, cols: usize, scales: &mut Vec<f32>) -> Result<Vec<T>, LoadError> {
        let wide = self.decl.cols;
        let mut read = vec![0.0; rows.len() * wide];
        // Some rows for each thread; a single one is a vector.
        let together = rows.len().div_ceil(4).max(1);
        read.par_chunks_mut((together * wide).max(1)).enumerate().for_each(|(i, out)| {
            let first = rows.start + i * together;
            self.view.read_f32(first..first + out.len() / wide.max(1), out);
        });
        self.view.release(rows.clone());
        let mut values = vec![T::default(); rows.len() * cols];
        let mut of_rows = vec![1.0; rows.len()];
        let each = values.par_chunks_mut(cols.max(1)).zip(read.par_chunks(wide.max(1))).zip(&mut of_rows);
        each.enumerate().try_for_each(|(i, ((out, row), scale))| {
            let fail = || LoadError::Values {
                name: self.decl.name.clone(),
                stored: T::NAME,
                what: format!("row {} holds a value that is not finite or too large", rows.start + i),
            };
            if T::SCALED {
                let largest = row.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
                let step = largest / 127.0;
                // Of a row of zeros, or of values too small to have a scale, the codes are zero.
                *scale = if step > f32::MIN_POSITIVE { step } else { 1.0 };
            }
            let mut at = 0;
            for run in &self.cols {
                if let Some(from) = run.from {
                    for (out, x) in out[at..at + run.len].iter_mut().zip(&row[from..]) {
                        *out = T::of(*x, *scale).ok_or_else(fail)?;
                    }
                }
                at += run.len;
            }
            Ok::<_, LoadError>(())
        })?;
        scales.extend(of_rows);
        Ok(values)
    }
}

fn hand_on<T: Stored>(values: &[T], bytes: &mut Vec<u8>, sink: &mut Sink<'_>) -> Result<(), LoadError> {
    bytes.clear();
    values.iter().for_each(|value| value.push(bytes));
    sink(WeightPart::Values, bytes)
}

/// Values that are read or handed on at once.
const CHUNK: usize = 1 << 20;

#[cfg(test)]
mod tests;
