//! Scales and zero points of a quantised matrix.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use super::codes::{AWQ_PLACES, field};
use super::part::Tensor;

/// Scales by row and group.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    bytes: &'a [u8],
    kind: Kind,
    /// From one row's to the next's, and from one group's to the next's, in elements.
    strides: (usize, usize),
    /// Rows that share one.
    rows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F32,
    F16,
    Bf16,
    /// `2^(e - bias)`, NaN at 255.
    PowerOfTwo {
        bias: u16,
    },
}

impl<'a> Scales<'a> {
    /// Of a tensor whose type was checked to be a float's or a byte; `rows` share a scale.
    pub fn new(tensor: Tensor<'a>, strides: (usize, usize), rows: usize) -> Self {
        let kind = match tensor.info.dtype {
            Dtype::F32 => Kind::F32,
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::Bf16,
            _ => Kind::PowerOfTwo { bias: 127 },
        };
        Scales { bytes: tensor.bytes(), kind, strides, rows }
    }

    /// Half of each: for codes that are doubled.
    pub fn halved(self) -> Self {
        Scales { kind: Kind::PowerOfTwo { bias: 128 }, ..self }
    }

    /// Whether there is one for all.
    pub fn is_one(&self) -> bool {
        self.strides == (0, 0)
    }

    /// Whether f16 holds every one of them.
    pub fn are_f16(&self) -> bool {
        self.kind == Kind::F16
    }

    /// The scale of a row and group.
    pub fn at(&self, row: usize, group: usize) -> f32 {
        let at = row / self.rows * self.strides.0 + group * self.strides.1;
        let b = self.bytes;
        match self.kind {
            Kind::F32 => f32::from_le_bytes([b[4 * at], b[4 * at + 1], b[4 * at + 2], b[4 * at + 3]]),
            Kind::F16 => f16::from_le_bytes([b[2 * at], b[2 * at + 1]]).to_f32(),
            Kind::Bf16 => bf16::from_le_bytes([b[2 * at], b[2 * at + 1]]).to_f32(),
            Kind::PowerOfTwo { bias } => power_of_two(b[at], bias),
        }
    }
}

/// `2^(e - bias)` for a bias of 127 or 128, exact.
fn power_of_two(e: u8, bias: u16) -> f32 {
    // The exponent field of an f32 has bias 127; below 1 the number is subnormal.
    match (u32::from(e) + 127).checked_sub(u32::from(bias)) {
        _ if e == 255 => f32::NAN,
        Some(field) if field > 0 => f32::from_bits(field << 23),
        Some(_) => f32::from_bits(1 << 22),
        None => f32::from_bits(1 << 21),
    }
}

/// Zero points by row and group: the code that means zero.
#[derive(Clone, Copy, Debug)]
pub enum Zeros<'a> {
    /// The same for all.
    Constant(i32),
    /// In tensors.
    Stored(Stored<'a>),
}

/// Zero points of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    bytes: &'a [u8],
    layout: Layout,
    /// Added to what is stored.
    offset: i32,
}

#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Word `[group, row / n]`.
    Inputs { bits: u32, rows: usize },
    /// Word `[group, row / 8]`, interleaved.
    Awq { rows: usize },
    /// Word `[row / n, group]`.
    Outputs { bits: u32, groups: usize },
    /// Signed bytes.
    Plain { strides: (usize, usize) },
}

impl<'a> Zeros<'a> {
    /// GPTQ's; `rows` fill words.
    pub fn inputs(bytes: &'a [u8], bits: u32, rows: usize, less_one: bool) -> Self {
        Zeros::Stored(Stored { bytes, layout: Layout::Inputs { bits, rows }, offset: i32::from(less_one) })
    }

    /// AWQ's; `rows` fill words.
    pub fn awq(bytes: &'a [u8], rows: usize) -> Self {
        Zeros::Stored(Stored { bytes, layout: Layout::Awq { rows }, offset: 0 })
    }

    /// compressed-tensors' packed ones.
    pub fn outputs(bytes: &'a [u8], bits: u32, groups: usize) -> Self {
        Zeros::Stored(Stored { bytes, layout: Layout::Outputs { bits, groups }, offset: 0 })
    }

    /// Bytes, around a middle code.
    pub fn plain(bytes: &'a [u8], strides: (usize, usize), middle: i32) -> Self {
        Zeros::Stored(Stored { bytes, layout: Layout::Plain { strides }, offset: middle })
    }

    /// One constant where all of `groups` and `rows` have the same.
    pub fn simplified(self, groups: usize, rows: usize) -> Self {
        let first = if groups * rows == 0 { 0 } else { self.at(0, 0) };
        let same = (0..groups).all(|g| (0..rows).all(|r| self.at(r, g) == first));
        if same { Zeros::Constant(first) } else { self }
    }

    /// The first `(group, row)` whose stored zero point has all bits set although they are stored less one: files say so
    /// for 0, and some mean it, some readers see 2^bits, and in some the borrow has spoilt the neighbours.
    pub fn ambiguous(&self, groups: usize, rows: usize) -> Option<(usize, usize)> {
        let Zeros::Stored(Stored { layout: Layout::Inputs { bits, .. }, offset: 1, .. }) = self else { return None };
        let most = 1 << bits;
        (0..groups).find_map(|g| (0..rows).find(|&r| self.at(r, g) == most).map(|r| (g, r)))
    }

    /// The zero point of a row and group.
    pub fn at(&self, row: usize, group: usize) -> i32 {
        let Stored { bytes, layout, offset } = match self {
            Zeros::Constant(zero) => return *zero,
            Zeros::Stored(stored) => stored,
        };
        let word =
            |at: usize| u32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]]);
        // Fields are below 256, and so is a row's place in its word.
        offset
            + match *layout {
                Layout::Inputs { bits, rows } => {
                    let per_word = 32 / bits as usize;
                    field(word((group * rows + row) / per_word), (row % per_word) as u32, bits) as i32
                }
                Layout::Awq { rows } => field(word((group * rows + row) / 8), AWQ_PLACES[row % 8], 4) as i32,
                Layout::Outputs { bits, groups } => {
                    let per_word = 32 / bits as usize;
                    field(word(row / per_word * groups + group), (row % per_word) as u32, bits) as i32
                }
                Layout::Plain { strides } => {
                    let at = row * strides.0 + group * strides.1;
                    i32::from(i8::from_le_bytes([bytes[at]]))
                }
            }
    }
}
