//! CPU time: of the machine, of a process, of a control group, of ourselves.
//!
//! CPU-seconds are a true figure where joules are none, and what a machine's energy is divided by.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::meter::MeterError;
use crate::root::{Root, number, text};

/// CPU time of the whole machine since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineTime {
    /// Seconds that all CPUs together worked.
    pub busy_s: f64,
    /// Seconds that the hypervisor gave to others while work waited.
    pub steal_s: f64,
    /// CPUs.
    pub vcpus: u32,
}

impl MachineTime {
    /// From `/proc/stat`.
    pub fn read(root: &Root) -> Result<MachineTime, MeterError> {
        let path = root.join("/proc/stat");
        let stat = text(&path)?;
        let mut ticks = [0u64; 8];
        let first = stat.lines().next().unwrap_or_default();
        let mut words = first.split_whitespace();
        if words.next() != Some("cpu") {
            return Err(MeterError::unreadable(&path, first));
        }
        for tick in &mut ticks {
            let word = words.next().unwrap_or("0"); // old kernels lack the last columns
            *tick = word.parse().map_err(|_| MeterError::unreadable(&path, first))?;
        }
        let [user, nice, system, _idle, _iowait, irq, softirq, steal] = ticks;
        let numbered =
            |line: &&str| line.strip_prefix("cpu").is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        let vcpus = stat.lines().filter(numbered).count();
        let busy = [user, nice, system, irq, softirq].iter().fold(0u64, |sum, t| sum.saturating_add(*t));
        Ok(MachineTime {
            busy_s: in_seconds(busy),
            steal_s: in_seconds(steal),
            vcpus: u32::try_from(vcpus).unwrap_or(0),
        })
    }
}

/// Whose CPU time is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A process with all its threads, and the children that it has waited for.
    Process(u32),
    /// A control group, by its directory.
    Group(PathBuf),
}

impl Part {
    /// Its CPU-seconds so far.
    pub fn cpu_s(&self, root: &Root) -> Result<f64, MeterError> {
        match self {
            Part::Process(pid) => process(&root.join(format!("/proc/{pid}/stat"))),
            Part::Group(path) => group(&group_dir(root, path)),
        }
    }
}

/// CPU-seconds of the children of this process that it has waited for, and of theirs.
pub fn children_cpu_s() -> Option<f64> {
    let stat = text(Path::new("/proc/self/stat")).ok()?;
    let fields = fields(&stat)?;
    Some(in_seconds(fields.get(13)?.parse::<u64>().ok()? + fields.get(14)?.parse::<u64>().ok()?))
}

/// CPU-seconds of this process.
pub fn own_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// CPU-seconds of this thread.
pub fn thread_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// utime, stime, cutime, cstime.
fn process(path: &Path) -> Result<f64, MeterError> {
    let stat = text(path)?;
    let ticks = fields(&stat).and_then(|fields| {
        let times: Option<Vec<u64>> = fields.get(11..15)?.iter().map(|t| t.parse().ok()).collect();
        times?.into_iter().try_fold(0u64, u64::checked_add)
    });
    ticks.map(in_seconds).ok_or_else(|| MeterError::unreadable(path, &stat))
}

/// The fields behind the name, which may hold anything in its parentheses; the first is the state.
fn fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

/// cgroup v2's `cpu.stat`, else v1's `cpuacct.usage`.
fn group(dir: &Path) -> Result<f64, MeterError> {
    let stat = dir.join("cpu.stat");
    if let Ok(text) = text(&stat) {
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        if let Some(micros) = usage {
            let micros: u64 = micros.trim().parse().map_err(|_| MeterError::unreadable(&stat, micros))?;
            return Ok(micros as f64 * 1e-6);
        }
    }
    match number(&dir.join("cpuacct.usage")) {
        Ok(nanos) => Ok(nanos as f64 * 1e-9),
        Err(MeterError::Missing(_)) => {
            Err(MeterError::Missing(format!("{}/{{cpu.stat,cpuacct.usage}}", dir.display())))
        }
        Err(error) => Err(error),
    }
}

/// A group may be named by its directory, or by its path below the mount.
fn group_dir(root: &Root, path: &Path) -> PathBuf {
    if path.starts_with("/sys/fs/cgroup") {
        return root.join(path);
    }
    let below = path.strip_prefix("/").unwrap_or(path);
    let candidates =
        ["/sys/fs/cgroup", "/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"];
    let dirs = candidates.iter().map(|mount| root.join(mount).join(below));
    dirs.into_iter().find(|dir| group(dir).is_ok()).unwrap_or_else(|| root.join("/sys/fs/cgroup").join(below))
}

/// Seconds of the kernel's clock ticks: 100 a second on every Linux since 2.6 (USER_HZ).
fn in_seconds(ticks: u64) -> f64 {
    ticks as f64 / 100.0
}
