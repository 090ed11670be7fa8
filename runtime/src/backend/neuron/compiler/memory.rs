//! How much memory a compile takes: measured, remembered, and guessed where nothing was measured.
//!
//! No figure of AWS's exists but that 8B models do not compile on hosts of 16 GB (aws-neuron-sdk issue 1222). The guess for
//! an unmeasured module is njoule's own, on the safe side.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Resident bytes of all processes of a group, or of all but its first.
pub(super) fn of_group(group: u32, but_first: bool) -> u64 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let pages: u64 = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let pid: u32 = name.to_str()?.parse().ok().filter(|pid| !(but_first && *pid == group))?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The command's name may hold anything, so fields are counted from its last parenthesis: state is the first.
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
            let of: u32 = fields.nth(2)?.parse().ok()?;
            let rss = fields.nth(18)?.parse::<u64>().ok()?;
            (of == group).then_some(rss)
        })
        .sum();
    pages.saturating_mul(rustix::param::page_size() as u64)
}

/// Bytes that the host has to give.
pub(super) fn available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Peaks of past compiles.
#[derive(Debug)]
pub(super) struct Peaks {
    path: PathBuf,
    known: Vec<Peak>,
}

/// One of them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Peak {
    hlo_bytes: u64,
    peak: u64,
}

impl Peaks {
    /// Those that the file remembers; a broken line is left out.
    pub fn open(dir: &Path) -> Peaks {
        let path = dir.join("peaks.jsonl");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let known = text.lines().rev().take(MOST).filter_map(|line| serde_json::from_str(line).ok()).collect();
        Peaks { path, known }
    }

    /// Remembers one. Lost where it cannot be written: the next guess is worse, nothing else.
    pub fn add(&mut self, hlo_bytes: u64, peak: u64) {
        if peak == 0 {
            return;
        }
        let one = Peak { hlo_bytes, peak };
        self.known.push(one);
        if let (Ok(line), Ok(mut file)) =
            (serde_json::to_string(&one), fs::OpenOptions::new().append(true).create(true).open(&self.path))
        {
            // One write: lines of processes that append at once do not mix.
            let _ = std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes());
        }
    }

    /// What a module of that many bytes is likely to need: the largest peak of those at most twice as large or half as
    /// large, by proportion, else njoule's own guess.
    pub fn estimate(&self, hlo_bytes: u64) -> u64 {
        let near = |p: &&Peak| p.hlo_bytes > 0 && p.hlo_bytes <= 2 * hlo_bytes && hlo_bytes <= 2 * p.hlo_bytes;
        let scaled = |p: &Peak| (p.peak as f64 * (hlo_bytes as f64 / p.hlo_bytes as f64).max(1.0)) as u64;
        self.known.iter().filter(near).map(scaled).max().unwrap_or(BASE + hlo_bytes * PER_BYTE)
    }
}

/// Lines of the file that are looked at.
const MOST: usize = 1000;
/// The compiler itself.
const BASE: u64 = 2 << 30;
/// An 8B decode module has about half a megabyte: 2 + 10 GB.
const PER_BYTE: u64 = 20 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_group_takes_memory_and_an_absent_one_none() {
        let own = rustix::process::getpgid(None).unwrap().as_raw_nonzero().get();
        assert!(of_group(u32::try_from(own).unwrap(), false) > 1 << 20);
        assert_eq!(of_group(u32::MAX, false), 0);
    }

    #[test]
    fn a_measured_peak_replaces_the_guess_for_modules_of_about_its_size_and_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut peaks = Peaks::open(dir.path());
        assert!(peaks.estimate(500_000) > 8 << 30);
        peaks.add(400_000, 3 << 30);
        assert_eq!(peaks.estimate(400_000), 3 << 30);
        assert_eq!(peaks.estimate(300_000), 3 << 30);
        assert_eq!(peaks.estimate(800_000), 6 << 30);
        assert!(peaks.estimate(900_000) > 6 << 30, "too far away: a guess again");
        fs::write(dir.path().join("peaks.jsonl"), "junk\n{\"hlo_bytes\":10,\"peak\":7}\n").unwrap();
        assert_eq!(Peaks::open(dir.path()).estimate(10), 7);
    }
}
