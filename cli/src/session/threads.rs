//! How many threads to compute with: one per physical core that this process may use.
//!
//! Two threads of one core share its multipliers, so a second one only adds barriers.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZero;

/// Physical cores within this process's affinity and quota; at least one.
pub fn cores() -> NonZero<usize> {
    let usable = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    match allowed_cores().and_then(NonZero::new) {
        Some(cores) => cores.min(usable),
        None => usable,
    }
}

/// Distinct cores among the CPUs of this process's affinity, as Linux lists them.
fn allowed_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?;
    let siblings =
        |cpu| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok();
    let cores: Option<BTreeSet<String>> = cpu_list(allowed)?.into_iter().map(siblings).collect();
    cores.map(|cores| cores.len())
}

/// `0-3,8` as numbers.
pub fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = vec![];
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last.saturating_sub(first) > MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Far above Linux's own limit (NR_CPUS is at most 8192).
const MAX_CPUS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_ranges_and_numbers() {
        assert_eq!(cpu_list("0-2,5,7-8\n"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(cpu_list(""), None);
        assert_eq!(cpu_list("0-99999999999"), None);
    }
}
