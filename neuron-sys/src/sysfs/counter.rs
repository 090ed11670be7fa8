//! Counters: directories of a `total` and a `present`, and for memory a `peak`; in some drivers plain files.

use std::collections::BTreeMap;
use std::path::Path;

use super::field::{self, Field};

/// Counters by name.
pub type Counts = BTreeMap<String, Field<u64>>;

/// Memory of one use, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Now in use; the driver calls it `total`.
    pub used: Field<u64>,
    /// The most that was in use.
    pub peak: Field<u64>,
}

/// A counter since the driver was loaded: `path/total`, or the file `path` itself.
pub(super) fn total(path: &Path) -> Field<u64> {
    match field::number(&path.join("total")) {
        Field::Absent => field::number(path),
        found => found,
    }
}

/// All counters of a directory.
pub(super) fn totals(dir: &Path) -> Counts {
    let counters = field::names(dir).into_iter().filter(|name| is_name(name));
    counters.map(|name| (current_name(&name), total(&dir.join(&name)))).collect()
}

/// Memory that `path` counts.
pub(super) fn memory(path: &Path) -> Memory {
    Memory { used: total(path), peak: field::number(&path.join("peak")) }
}

/// Memory by use: the directories in `path`.
pub(super) fn memory_parts(path: &Path) -> BTreeMap<String, Memory> {
    let parts = field::names(path).into_iter().filter(|name| is_name(name) && path.join(name).is_dir());
    parts.map(|name| (name.clone(), memory(&path.join(name)))).collect()
}

/// Older drivers say `infer_*` where newer ones say `execute_*`.
fn current_name(name: &str) -> String {
    match name.strip_prefix("infer_") {
        Some(rest) => format!("execute_{rest}"),
        None => name.to_owned(),
    }
}

fn is_name(name: &str) -> bool {
    !["uevent", "subsystem", "power", "health_status"].contains(&name)
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
}
