//! Weights that f32, f16, bf16 and both int4 types hold exactly, and int8 to a 254th of a group's largest: 4-bit codes times
//! a power of two, both ends of the range in every group.
//!
//! A value is a pure function of (tensor name, its place in the tensor).

use std::ops::Range;

use njoule_models::program::{View, WeightDecl, WeightUse};
use njoule_models::weights::{Container, DType, Encoding, WeightError, WeightRows, WeightSource};

/// Columns that share a scale in the grouped types.
const GROUP: usize = 32;

/// A source that has every tensor.
#[derive(Clone, Copy, Debug)]
pub struct CaseWeights;

impl WeightSource for CaseWeights {
    fn container(&self) -> Container {
        Container::Generated
    }

    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
        let seed = decl.name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| mix(h ^ u64::from(b)));
        let kind = match decl.usage {
            WeightUse::Linear => Kind::Matrix { scale: power_below(0.217 / (decl.cols as f32).sqrt()) },
            WeightUse::Vocabulary => Kind::Matrix { scale: 0.25 },
            WeightUse::Vector if decl.name.contains("norm") => Kind::About { middle: 1.0, scale: 1.0 / 32.0 },
            WeightUse::Vector => Kind::About { middle: 0.0, scale: 1.0 / 16.0 },
        };
        let (experts, rows, cols, view) = (decl.experts.unwrap_or(1), decl.rows, decl.cols, decl.view);
        Ok(Box::new(CaseRows { seed, kind, experts, rows, cols, view }))
    }
}

#[derive(Clone, Copy)]
enum Kind {
    /// Codes -8..=7 times `scale`, ends in every group.
    Matrix { scale: f32 },
    /// `middle` plus codes times `scale`.
    About { middle: f32, scale: f32 },
}

struct CaseRows {
    seed: u64,
    kind: Kind,
    experts: usize,
    rows: usize,
    cols: usize,
    view: View,
}

impl WeightRows for CaseRows {
    fn encoding(&self) -> Encoding {
        Encoding::Dense(DType::F32)
    }

    fn shape(&self) -> (usize, usize) {
        (self.experts * self.rows, self.cols)
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
            let (expert, row) = (row / self.rows, row % self.rows);
            match self.kind {
                Kind::Matrix { scale } => {
                    let seed = mix(self.seed ^ ((expert * self.view.of_rows + self.view.row(row)) as u64));
                    out.iter_mut().enumerate().for_each(|(c, x)| *x = code(seed, c) * scale);
                    for (g, group) in out.chunks_mut(GROUP).enumerate() {
                        let low = mix(seed ^ (g as u64) << 32) as usize % group.len();
                        group[(low + 1) % group.len()] = 7.0 * scale;
                        group[low] = -8.0 * scale;
                    }
                }
                Kind::About { middle, scale } => {
                    let first = expert * self.view.of_rows;
                    let value = |c: usize| middle + scale * code(self.seed, first + self.view.row(c));
                    out.iter_mut().enumerate().for_each(|(c, x)| *x = value(c));
                }
            }
        }
    }

    fn raw_row(&self, _row: usize) -> Option<&[u8]> {
        None
    }

    fn release(&self, _rows: Range<usize>) {}
}

fn code(seed: u64, i: usize) -> f32 {
    (mix(seed.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 60) as f32 - 8.0
}

fn power_below(x: f32) -> f32 {
    x.log2().floor().exp2()
}

/// Splitmix64's finaliser (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
pub(crate) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
