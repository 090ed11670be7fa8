//! What this machine can do at most: the two lines of a roofline, measured with the kernels themselves.
//!
//! Bandwidth is a streaming read of a buffer that no cache holds; the peak is a full tile whose panel and activations
//! stay in the first-level cache. Both are the best of several short runs, since a neighbour only ever takes away.

use std::hint::black_box;
use std::num::NonZero;
use std::ops::Range;
use std::time::Instant;

use crate::attention::MAX_TILE;
use crate::buffer::{Buffer, OutOfMemory};
use crate::gemm::{self, TileArgs};
use crate::isa::Kernels;
use crate::packed::{GROUP, PANEL, PackError, Packed, Source, Stored};
use crate::team::{Counter, Team};

/// Why a probe cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// No memory for the buffer.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The threads could not be started.
    #[error("cannot start the probe's threads")]
    Threads(#[from] std::io::Error),
}

/// Bytes per second that `threads` threads read together from a buffer of `len` bytes, which should be several times the
/// last-level cache.
pub fn read_bandwidth(threads: NonZero<usize>, len: usize) -> Result<f64, ProbeError> {
    let mut buffer = Buffer::zeroed(len)?;
    // Pages that were never written are one page of zeros, which stays in the cache.
    buffer.as_mut_slice().fill(1);
    let bytes = buffer.as_slice();
    let mut team = Team::new(threads)?;
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let mut counter = Counter::default();
        counter.reset();
        let start = Instant::now();
        team.run(&|worker| {
            worker.claim(&counter, bytes.len() / LINE, CLAIM / LINE, |lines| {
                black_box(sum(&bytes[lines.start * LINE..lines.end * LINE]));
            });
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(len as f64 / best)
}

/// Adds all words, eight lanes at a time, so that nothing but the reads takes time.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; 8];
    let (lines, _) = bytes.as_chunks::<LINE>();
    for line in lines {
        let (words, _) = line.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Operations per second (a multiply-add is two) of matrix tiles of `stored` weights on `threads` threads together.
pub fn tile_peak(kernels: &'static Kernels, stored: Stored, threads: NonZero<usize>) -> Result<f64, ProbeError> {
    let packed = Packed::pack(&Ramp, stored).map_err(|e| match e {
        PackError::Memory(e) => ProbeError::Memory(e),
        PackError::Value { .. } => unreachable!("the ramp's values are small"),
    })?;
    let tile = kernels.tile;
    let kind = gemm::act_kind(stored, kernels.bf16);
    let (codes_len, meta_len) = kind.bytes(COLS);
    let (mut codes, mut meta) = (Buffer::zeroed(codes_len * tile)?, Buffer::zeroed((meta_len * tile).max(64))?);
    let mut row = vec![0.0; COLS];
    Ramp.read_f32(0..1, &mut row);
    for t in 0..tile {
        let (codes, meta) = (codes.as_mut_slice().as_mut_ptr(), meta.as_mut_slice().as_mut_ptr());
        // SAFETY: `kernels` exists, so its instruction set does; the row has COLS values, a multiple of the group, and
        // the buffers have the bytes that `kind` wants for `tile` tokens.
        unsafe { (kernels.pack_row)(kind, row.as_ptr(), COLS, codes, meta, (t, tile), false) };
    }
    let kernel = kernels.tiles[stored as usize][tile - 1];
    let (panel, codes, meta) = (&packed, codes.as_slice(), meta.as_slice());
    let mut team = Team::new(threads)?;
    let mut seconds = |calls: usize| {
        let start = Instant::now();
        team.run(&|_| {
            let mut out = [0.0_f32; PANEL * MAX_TILE];
            for _ in 0..calls {
                let args = TileArgs {
                    panel: panel.panel(0),
                    cols: COLS,
                    act: codes.as_ptr(),
                    meta: meta.as_ptr(),
                    out: out.as_mut_ptr(),
                    out_stride: PANEL,
                    bias: std::ptr::null(),
                };
                // SAFETY: as above; the panel is one of COLS columns, and `out` holds PANEL values for every token.
                unsafe { kernel(black_box(&args)) };
            }
            black_box(&mut out);
        });
        start.elapsed().as_secs_f64()
    };
    let mut calls = 64;
    while seconds(calls) < RUN_SECONDS && calls < 1 << 24 {
        calls *= 2;
    }
    let best = (0..PASSES).map(|_| seconds(calls)).fold(f64::INFINITY, f64::min);
    let ops = 2 * PANEL * COLS * tile * calls * threads.get();
    Ok(ops as f64 / best)
}

/// A matrix of one pair of panels with small values.
struct Ramp;

impl Source for Ramp {
    fn shape(&self) -> (usize, usize) {
        (2 * PANEL, COLS)
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        for (i, x) in (rows.start * COLS..).zip(out) {
            *x = (i % 29) as f32 / 29.0 - 0.5;
        }
    }

    fn read_blocks(&self, _rows: Range<usize>, _out: &mut Vec<u8>) {}
}

/// Columns of the probe's panel: with them an f32 panel and its activations fit into 32 KiB.
const COLS: usize = 256;
const _: () = assert!(COLS.is_multiple_of(GROUP));

const LINE: usize = 64;
/// Bytes that a thread claims at a time.
const CLAIM: usize = 1 << 20;
const PASSES: usize = 8;
/// Length of a run of tiles: short beside a time slice, long beside the start of a team.
const RUN_SECONDS: f64 = 2e-3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_this_machine_has_a_peak() {
        let one = NonZero::<usize>::MIN;
        for kernels in Kernels::available() {
            for stored in Stored::ALL {
                let peak = tile_peak(kernels, stored, one).expect("memory and threads");
                assert!(peak.is_finite() && peak > 1e6, "{} {}: {peak}", kernels.isa.name(), stored.name());
            }
        }
    }

    #[test]
    fn bandwidth_is_a_positive_number() {
        let two = NonZero::new(2).unwrap();
        let bandwidth = read_bandwidth(two, 8 << 20).expect("memory and threads");
        assert!(bandwidth.is_finite() && bandwidth > 1e6, "{bandwidth}");
    }
}
