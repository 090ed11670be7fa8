//! Codes of a quantised matrix, read as the numbers that scales multiply.
//!
//! Words are little-endian, the first code in the lowest bits.

/// The codes of a matrix `[rows, cols]`.
#[derive(Clone, Copy, Debug)]
pub struct CodeTensor<'a> {
    /// Data.
    pub bytes: &'a [u8],
    /// Where each code is.
    pub layout: Layout,
    /// What it means.
    pub number: Number,
    /// Rows, of all experts.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// Where the code of row `r` and column `c` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In word `[c / n, r]`, n = 32 / bits.
    Inputs {
        /// 4 or 8.
        bits: u32,
    },
    /// In word `[c, r / 8]`, in the order of [`AWQ_PLACES`].
    Awq,
    /// In row `r`, low bits first.
    Outputs {
        /// 4 or 8.
        bits: u32,
        /// Bytes of a row.
        row_bytes: usize,
    },
}

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Itself.
    Unsigned,
    /// A two's complement byte.
    Signed,
    /// FP8 E4M3.
    E4m3,
    /// Twice an FP4 E2M1: a whole number.
    TwiceE2m1,
}

/// Which nibble of a word has each of eight neighbouring rows (AutoAWQ packs them 0, 2, 4, 6, 1, 3, 5, 7).
pub const AWQ_PLACES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl CodeTensor<'_> {
    /// Reads all columns of `rows` into `out`, row-major.
    pub fn read(&self, rows: &[usize], out: &mut [f32]) {
        let table = self.number.table();
        let cols = self.cols;
        match self.layout {
            Layout::Inputs { bits } => {
                let per_word = 32 / bits as usize; // 4 or 8
                for (w, words) in self.bytes.chunks_exact(4 * self.rows).enumerate() {
                    let (words, _) = words.as_chunks::<4>();
                    for (&row, out) in rows.iter().zip(out.chunks_exact_mut(cols)) {
                        let word = u32::from_le_bytes(words[row]);
                        for (i, x) in out[w * per_word..][..per_word].iter_mut().enumerate() {
                            *x = table[field(word, i as u32, bits)];
                        }
                    }
                }
            }
            Layout::Awq => {
                for (c, words) in self.bytes.chunks_exact(self.rows / 2).enumerate() {
                    let (words, _) = words.as_chunks::<4>();
                    for (&row, out) in rows.iter().zip(out.chunks_exact_mut(cols)) {
                        out[c] = table[field(u32::from_le_bytes(words[row / 8]), AWQ_PLACES[row % 8], 4)];
                    }
                }
            }
            Layout::Outputs { bits, row_bytes } => {
                for (&row, out) in rows.iter().zip(out.chunks_exact_mut(cols)) {
                    let bytes = &self.bytes[row * row_bytes..][..row_bytes];
                    if bits == 8 {
                        out.iter_mut().zip(bytes).for_each(|(x, b)| *x = table[usize::from(*b)]);
                    } else {
                        for (pair, b) in out.chunks_mut(2).zip(bytes) {
                            let codes = [b & 15, b >> 4];
                            pair.iter_mut().zip(codes).for_each(|(x, code)| *x = table[usize::from(code)]);
                        }
                    }
                }
            }
        }
    }

    /// Bytes that hold `rows` alone; `None` where rows share words.
    pub fn span(&self, rows: std::ops::Range<usize>) -> Option<std::ops::Range<usize>> {
        match self.layout {
            Layout::Outputs { row_bytes, .. } => Some(rows.start * row_bytes..rows.end * row_bytes),
            Layout::Inputs { .. } | Layout::Awq => None,
        }
    }
}

/// Field `i` of a word of fields of 4 or 8 bits: below 256.
pub fn field(word: u32, i: u32, bits: u32) -> usize {
    (word >> (i * bits) & ((1 << bits) - 1)) as usize
}

impl Number {
    fn table(self) -> [f32; 256] {
        std::array::from_fn(|code| {
            let code = code as u8; // an index below 256
            match self {
                Number::Unsigned => f32::from(code),
                Number::Signed => f32::from(code as i8),
                Number::E4m3 => e4m3(code),
                Number::TwiceE2m1 => twice_e2m1(code & 15),
            }
        })
    }
}

/// FP8 E4M3: bias 7, no infinity, NaN where all exponent and mantissa bits are set (OCP OFP8 1.0, table 1).
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        15 if code & 7 == 7 => f32::NAN,
        0 => mantissa * 2f32.powi(-9),
        e => (8.0 + mantissa) * 2f32.powi(e - 10),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// FP4 E2M1 has 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign (OCP Microscaling 1.0, table 5).
fn twice_e2m1(code: u8) -> f32 {
    let magnitude = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}
