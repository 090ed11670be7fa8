//! A physical core: `neuron{N}/neuron_core{K}`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::counter::{self, Counts, Memory};
use super::field::{self, Field};

/// A core's directory. Each method reads its files anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreDir {
    index: u32,
    path: PathBuf,
}

/// Cycles of one row group of the matrix unit: its real activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeRow {
    /// Which.
    pub group: u64,
    /// Multiplying.
    pub matmul: u64,
    /// Loading weights.
    pub weight_load: u64,
    /// Neither.
    pub idle: u64,
}

impl CoreDir {
    pub(super) fn new(index: u32, path: PathBuf) -> CoreDir {
        CoreDir { index, path }
    }

    /// Its number within the device.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `NCv2`, ...
    pub fn arch_type(&self) -> Field<String> {
        field::line(&self.path.join("info/architecture/arch_type"))
    }

    /// How often runtime calls ended with each status, since the driver was loaded; `success` is one of them. Names are
    /// those of new drivers (`execute_*`).
    pub fn statuses(&self) -> Counts {
        counter::totals(&self.path.join("stats/status"))
    }

    /// Statuses other than success that were seen at least once.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        let seen = self.statuses().into_iter().filter_map(|(name, count)| Some((name, count.ok()?)));
        seen.filter(|(name, count)| name != "success" && *count > 0).collect()
    }

    /// Device memory in use.
    pub fn memory(&self) -> Memory {
        counter::memory(&self.path.join("stats/memory_usage/device_mem"))
    }

    /// Device memory by use.
    pub fn memory_parts(&self) -> BTreeMap<String, Memory> {
        counter::memory_parts(&self.path.join("stats/memory_usage/device_mem"))
    }

    /// `inference_count`, `flop_count`, `nc_time_in_use` (microseconds), ... Before driver 2.30.2 values appear only when a
    /// process ends.
    pub fn other_info(&self) -> Counts {
        counter::totals(&self.path.join("stats/other_info"))
    }

    /// The matrix unit's cycle counters.
    pub fn pe_counters(&self) -> Field<Vec<PeRow>> {
        field::text(&self.path.join("stats/tensor_engine/pe_cntrs")).parse(pe_rows)
    }
}

/// Lines of four numbers, the names of the columns before them.
fn pe_rows(text: &str) -> Option<Vec<PeRow>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let rows = lines.skip_while(|line| line.starts_with("xrow_grp"));
    let parsed: Option<Vec<PeRow>> = rows.map(pe_row).collect();
    parsed.filter(|rows| !rows.is_empty())
}

fn pe_row(line: &str) -> Option<PeRow> {
    let numbers: Option<Vec<u64>> = line.split(',').take(5).map(|n| n.trim().parse().ok()).collect();
    let [group, matmul, weight_load, idle] = numbers?[..] else { return None };
    Some(PeRow { group, matmul, weight_load, idle })
}
