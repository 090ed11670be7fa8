//! What the tests of several kernels share: reproducible numbers, matrices in memory, sums in f64. Cases are tables; a
//! test runs all of them and reports every failure at once.

use std::ops::Range;

use crate::packed::{Packed, Source, Stored};

/// Reproducible numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// In -1..1, the larger the rarer.
    pub fn value(&mut self) -> f32 {
        let unit = |bits: u64| (bits >> 40) as f32 / (1 << 23) as f32 - 1.0;
        unit(self.bits()) * unit(self.bits()).abs()
    }

    /// `n` values below `scale`.
    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.value() * scale).collect()
    }

    /// `0..n` in some order.
    pub fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// A matrix to pack, as values and (where given) as GGUF blocks.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f32>,
    pub blocks: Option<Vec<Vec<u8>>>,
}

impl Matrix {
    /// Random values.
    pub fn random(rows: usize, cols: usize, seed: u64) -> Self {
        Matrix { rows, cols, values: Noise::new(seed).values(rows * cols, 1.0), blocks: None }
    }

    /// It, packed.
    pub fn pack(&self, stored: Stored) -> Packed {
        Packed::pack(self, stored).expect("finite values")
    }
}

impl Source for Matrix {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.values[rows.start * self.cols..rows.end * self.cols]);
    }

    fn read_blocks(&self, rows: Range<usize>, out: &mut Vec<u8>) {
        self.blocks.iter().for_each(|blocks| blocks[rows.clone()].iter().for_each(|b| out.extend_from_slice(b)));
    }
}

/// The rows of a packed matrix as they decode.
pub fn decoded(packed: &Packed) -> Vec<Vec<f32>> {
    let row = |r| {
        let mut out = vec![f32::NAN; packed.cols()];
        packed.row_f32(r, &mut out);
        out
    };
    (0..packed.rows()).map(row).collect()
}

/// `x` with zeros up to a multiple of `to`.
pub fn padded(x: &[f32], to: usize) -> Vec<f32> {
    let mut x = x.to_vec();
    x.resize(x.len().next_multiple_of(to), 0.0);
    x
}

/// Values as bits, to compare exactly.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Fails with all of `failures` (the first forty in words).
#[track_caller]
pub fn report(cases: usize, failures: &[String]) {
    let shown = failures.len().min(40);
    assert!(failures.is_empty(), "{} failures in {cases} cases:\n{}", failures.len(), failures[..shown].join("\n"));
}
