//! The machine's two limits, and how near a phase comes to them.

use std::collections::BTreeMap;
use std::num::NonZero;

use njoule_kernels::isa::Kernels;
use njoule_kernels::packed::Stored;
use njoule_kernels::probe::{self, ProbeError};

use super::case::Phase;

/// Limits of this machine with a number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// Bytes per second of a streaming read.
    pub bandwidth: f64,
    /// Operations per second of a matrix tile that stays in the first-level cache.
    pub peak: f64,
    /// Stored type of the tile: the one that most of the model's bytes have.
    pub peak_type: &'static str,
}

impl Roofline {
    /// Measures both with the kernels that ran the model.
    pub fn measure(
        kernels: &'static Kernels,
        types: &BTreeMap<&'static str, usize>,
        threads: NonZero<usize>,
    ) -> Result<Roofline, ProbeError> {
        let main = types.iter().max_by_key(|(_, bytes)| **bytes).map_or("f32", |(name, _)| *name);
        let stored = Stored::ALL.into_iter().find(|s| s.name() == main).unwrap_or(Stored::F32);
        let bandwidth = probe::read_bandwidth(threads, probe_bytes())?;
        let peak = probe::tile_peak(kernels, stored, threads)?;
        Ok(Roofline { bandwidth, peak, peak_type: stored.name() })
    }

    /// Share of the bandwidth that a phase used.
    pub fn bandwidth_use(&self, phase: &Phase) -> f64 {
        bytes(phase) / phase.seconds / self.bandwidth
    }

    /// Time that the nearer limit allows, over the time taken.
    pub fn share(&self, phase: &Phase) -> f64 {
        (bytes(phase) / self.bandwidth).max(phase.cost.flops / self.peak) / phase.seconds
    }
}

fn bytes(phase: &Phase) -> f64 {
    phase.cost.weight_bytes + phase.cost.kv_bytes
}

/// Four times the last-level cache, within bounds.
fn probe_bytes() -> usize {
    let size = |level: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{level}/size");
        std::fs::read_to_string(path).ok()?.trim().strip_suffix('K')?.parse::<usize>().ok()
    };
    let last = (0..8).filter_map(size).max().unwrap_or(0);
    last.saturating_mul(4 * 1024).clamp(128 << 20, 1 << 30)
}
