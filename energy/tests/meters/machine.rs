//! A machine made of files, with a clock that a test turns.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use njoule_energy::clock::{Clock, Now};
use njoule_energy::perf::{PerfCounter, PerfOpen};
use njoule_energy::{Meters, Root, Snapshot, Wanted};

/// A clock whose hands are moved.
#[derive(Clone)]
pub struct Hands(Arc<Mutex<Now>>);

impl Hands {
    pub fn at(unix_s: f64) -> Hands {
        Hands(Arc::new(Mutex::new(Now { mono_ns: 5_000_000_000, unix_s })))
    }

    /// Time passes.
    pub fn pass(&self, seconds: f64) {
        let mut now = self.0.lock().unwrap();
        now.mono_ns += (seconds * 1e9) as u64;
        now.unix_s += seconds;
    }

    /// Somebody sets the wall clock.
    pub fn step(&self, seconds: f64) {
        self.0.lock().unwrap().unix_s += seconds;
    }
}

impl Clock for Hands {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}

/// A tree of files.
pub struct Machine {
    dir: tempfile::TempDir,
    pub hands: Hands,
}

impl Machine {
    pub fn new() -> Machine {
        Machine { dir: tempfile::tempdir().unwrap(), hands: Hands::at(1_726_000_000.0) }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub fn put(&self, path: &str, text: impl AsRef<str>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, text.as_ref()).unwrap();
    }

    pub fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    /// An Intel machine without a hypervisor.
    pub fn intel(self) -> Machine {
        self.put("/proc/cpuinfo", "vendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: fpu sse\n");
        self
    }

    pub fn zone(&self, numbers: &str, name: &str, energy_uj: u64, range_uj: u64) {
        let dir = format!("/sys/class/powercap/intel-rapl:{numbers}");
        self.put(&format!("{dir}/name"), format!("{name}\n"));
        self.put(&format!("{dir}/energy_uj"), format!("{energy_uj}\n"));
        self.put(&format!("{dir}/max_energy_range_uj"), format!("{range_uj}\n"));
    }

    pub fn power_line(&self, device: u32, line: &str) {
        self.put(
            &format!("/sys/devices/virtual/neuron_device/neuron{device}/stats/power/utilization"),
            format!("{line}\n"),
        );
    }

    pub fn stat(&self, cpus: usize, busy_ticks: u64) {
        let mut text = format!("cpu  {busy_ticks} 0 0 9 9 0 0 0 0 0\n");
        (0..cpus).for_each(|i| text += &format!("cpu{i} 0 0 0 0 0 0 0 0 0 0\n"));
        self.put("/proc/stat", text);
    }

    pub fn wanted(&self) -> Wanted {
        Wanted::all(Root::at(self.dir.path()))
    }

    pub fn meters(&self, wanted: &Wanted) -> Meters {
        Meters::open_with(wanted, &NoPerf, Box::new(self.hands.clone()))
    }

    pub fn meters_with(&self, perf: &FakePerf) -> Meters {
        Meters::open_with(&self.wanted(), perf, Box::new(self.hands.clone()))
    }
}

/// A kernel without perf.
pub struct NoPerf;

impl PerfOpen for NoPerf {
    fn open(&self, _: u32, _: u64, _: u32) -> io::Result<Box<dyn PerfCounter>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// What the counter of an event and CPU says, reading by reading.
type Script = ((u64, u32), VecDeque<u64>);

/// A kernel whose counters follow scripts, by event and CPU.
#[derive(Clone, Default)]
pub struct FakePerf {
    pub refuses: Option<i32>,
    pub counters: Rc<RefCell<Vec<Script>>>,
}

impl PerfOpen for FakePerf {
    fn open(&self, kind: u32, config: u64, cpu: u32) -> io::Result<Box<dyn PerfCounter>> {
        if let Some(code) = self.refuses {
            return Err(io::Error::from_raw_os_error(code));
        }
        assert_eq!(kind, 9);
        let counters = self.counters.borrow();
        let script = counters.iter().find(|(key, _)| *key == (config, cpu)).map(|(_, script)| script.clone());
        script.map(|script| Box::new(Scripted(script)) as _).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Gives its values one by one, the last for ever.
struct Scripted(VecDeque<u64>);

impl PerfCounter for Scripted {
    fn read(&mut self) -> io::Result<u64> {
        match self.0.len() {
            0 | 1 => self.0.front().copied().ok_or_else(|| io::ErrorKind::BrokenPipe.into()),
            _ => Ok(self.0.pop_front().unwrap()),
        }
    }
}

/// The reasons of a window between two snapshots.
pub fn window(a: &Snapshot, b: &Snapshot) -> njoule_energy::Window {
    njoule_energy::Window::between(a, b).unwrap()
}

/// Equal but for rounding.
#[track_caller]
pub fn near(value: f64, expected: f64) {
    assert!((value - expected).abs() <= 1e-12 * expected.abs(), "{value} is not {expected}");
}
