//! The driver's files, written under a directory for `NJOULE_SYSFS_ROOT`: what a program reads without libnrt.
//!
//! Names and contents are those of the driver (2.30) and of AWS's sysfs guide, for each of [`crate::instance::ALL`].
//! [`Broken`] leaves out or spoils what a reader must survive. Nothing here is a measurement.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::instance::{Chip, Instance};

/// What to write.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Of which instance.
    pub instance: Instance,
    /// Percent of the unpublished maximum that each device's minute shows: least, most, mean.
    pub power: [f64; 3],
    /// Seconds since 1970 at which the power reading was made; it is of the minute before.
    pub now: u64,
    /// What is wrong with it.
    pub broken: Vec<Broken>,
}

/// What can be wrong with a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// No directory of devices: the driver is not loaded.
    NoDriver,
    /// No `device_name`.
    NoDeviceName,
    /// No `core_count`: before driver 2.28 only root reads it.
    NoCoreCount,
    /// No `stats/power`: before driver 2.21.37.
    NoPower,
    /// No `utilization_raw`: before driver 2.29.
    NoRawPower,
    /// Firmware that gives nothing: `POWER_STATUS_NO_DATA`.
    PowerNoData,
    /// `POWER_STATUS_INVALID`.
    PowerInvalid,
    /// A line that ends too early.
    PowerCut,
    /// Bytes that are no text.
    PowerGarbage,
    /// Counters by their older names, `infer_*`.
    OldStatusNames,
    /// A counter that is no number.
    CounterGarbage,
}

impl Broken {
    /// Every one, with its name on the command line.
    pub const ALL: [(&str, Broken); 11] = [
        ("no-driver", Broken::NoDriver),
        ("no-device-name", Broken::NoDeviceName),
        ("no-core-count", Broken::NoCoreCount),
        ("no-power", Broken::NoPower),
        ("no-raw-power", Broken::NoRawPower),
        ("power-no-data", Broken::PowerNoData),
        ("power-invalid", Broken::PowerInvalid),
        ("power-cut", Broken::PowerCut),
        ("power-garbage", Broken::PowerGarbage),
        ("old-status-names", Broken::OldStatusNames),
        ("counter-garbage", Broken::CounterGarbage),
    ];
}

impl Tree {
    /// A whole tree of an idle instance.
    pub fn new(instance: Instance) -> Tree {
        Tree { instance, power: [0.0; 3], now: 1_800_000_000, broken: vec![] }
    }

    /// Writes all of it under `root`.
    pub fn write(&self, root: &Path) -> io::Result<()> {
        let put = |path: PathBuf, content: &[u8]| {
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, content))
        };
        let dmi = root.join("sys/devices/virtual/dmi/id");
        put(dmi.join("product_name"), format!("{}\n", self.instance.name).as_bytes())?;
        put(dmi.join("sys_vendor"), b"Amazon EC2\n")?;
        if self.is(Broken::NoDriver) {
            return Ok(());
        }
        for device in 0..self.instance.chips {
            put(root.join(format!("dev/neuron{device}")), b"")?;
            let at = directory(root, device);
            for (name, content) in self.device(device) {
                put(at.join(name), content.as_bytes())?;
            }
            for core in 0..self.instance.chip.cores() {
                let at = at.join(format!("neuron_core{core}"));
                for (name, content) in self.core() {
                    put(at.join(name), content.as_bytes())?;
                }
            }
        }
        self.write_power(root)
    }

    /// Writes the power readings alone: the tree as it is a minute later, with another `now` and `power`.
    pub fn write_power(&self, root: &Path) -> io::Result<()> {
        if self.is(Broken::NoPower) {
            return Ok(());
        }
        for device in 0..self.instance.chips {
            let at = directory(root, device).join("stats/power");
            fs::create_dir_all(&at)?;
            replace(&at.join("utilization"), &self.power_line())?;
            if !self.is(Broken::NoRawPower) {
                // The real format is not public: a reader takes it as it is.
                let [_, _, mean] = self.power;
                replace(&at.join("utilization_raw"), format!("{mean:.2}\n").as_bytes())?;
            }
        }
        Ok(())
    }

    fn is(&self, broken: Broken) -> bool {
        self.broken.contains(&broken)
    }

    /// Rolled up when the wall clock's minute changes: the stamp is that moment.
    fn power_line(&self) -> Vec<u8> {
        let [least, most, mean] = self.power;
        let minute = self.now / 60 * 60;
        let status = match () {
            () if self.is(Broken::PowerNoData) => "POWER_STATUS_NO_DATA",
            () if self.is(Broken::PowerInvalid) => "POWER_STATUS_INVALID",
            () => "POWER_STATUS_VALID",
        };
        let [least, most, mean] = if status == "POWER_STATUS_VALID" { [least, most, mean] } else { [0.0; 3] };
        let line = format!("{status},{minute},{least:.2},{most:.2},{mean:.2}\n");
        if self.is(Broken::PowerCut) {
            line.as_bytes()[..line.len() / 2].to_vec()
        } else if self.is(Broken::PowerGarbage) {
            vec![0xFF, 0x00, 0xFE, b'\n']
        } else {
            line.into_bytes()
        }
    }

    fn device(&self, device: u32) -> Vec<(String, String)> {
        let chip = self.instance.chip;
        let [arch, family, name] = chip.driver_names();
        let mut files = vec![
            ("connected_devices".to_owned(), self.neighbours(device)),
            ("reset".to_owned(), String::new()),
            ("info/serial_number".to_owned(), format!("{:016x}\n", 0xFA4E_0000_0000_0000u64 + u64::from(device))),
            ("info/notify_delay".to_owned(), "-1\n".to_owned()),
            ("info/architecture/arch_type".to_owned(), format!("{arch}\n")),
            ("info/architecture/instance_type".to_owned(), format!("{family}\n")),
        ];
        if !self.is(Broken::NoCoreCount) {
            files.push(("core_count".to_owned(), chip.cores().to_string())); // no newline
        }
        if !self.is(Broken::NoDeviceName) {
            files.push(("info/architecture/device_name".to_owned(), format!("{name}\n")));
        }
        let ecc = ["sram_ecc_uncorrected", "mem_ecc_uncorrected", "mem_ecc_repairable_uncorrected"];
        files.extend(ecc.map(|n| (format!("stats/hardware/{n}"), self.number(0))));
        files.extend(ECC_CORRECTED.map(|n| (format!("stats/hardware/{n}"), self.number(0))));
        for kind in HOST_MEMORY {
            for part in ["total", "present", "peak"] {
                files.push((format!("stats/memory_usage/host_mem/{kind}/{part}"), self.number(0)));
            }
        }
        files
    }

    fn core(&self) -> Vec<(String, String)> {
        let mut files =
            vec![("info/architecture/arch_type".to_owned(), format!("{}\n", self.instance.chip.core_arch()))];
        for status in STATUSES {
            let name = match status.strip_prefix("execute_") {
                Some(rest) if self.is(Broken::OldStatusNames) => format!("infer_{rest}"),
                _ => status.to_owned(),
            };
            for part in ["total", "present"] {
                files.push((format!("stats/status/{name}/{part}"), self.number(0)));
            }
        }
        for part in ["total", "present", "peak"] {
            files.push((format!("stats/memory_usage/device_mem/{part}"), self.number(MICROCODE)));
            for kind in DEVICE_MEMORY {
                let used = if kind == "runtime_memory" { MICROCODE } else { 0 };
                files.push((format!("stats/memory_usage/device_mem/{kind}/{part}"), self.number(used)));
            }
        }
        files.extend(OTHER.map(|n| (format!("stats/other_info/{n}/total"), self.number(0))));
        let groups: String = (0..4).map(|group| format!("{group},0,0,0\n")).collect();
        files.push(("stats/tensor_engine/pe_cntrs".to_owned(), format!("xrow_grp,mm_active,wl_active,idle\n{groups}")));
        files
    }

    fn number(&self, value: u64) -> String {
        if self.is(Broken::CounterGarbage) { "n/a\n".to_owned() } else { format!("{value}\n") }
    }

    /// A ring of Inferentia2, a square torus of the Trainiums.
    fn neighbours(&self, device: u32) -> String {
        let n = self.instance.chips;
        let around = |by: u32| (device + by) % n;
        let list = match (self.instance.chip, n) {
            (_, 1) => vec![],
            (Chip::Inferentia2, _) | (_, ..16) => vec![around(n - 1), around(1)],
            _ => {
                let (row, column) = (device / 4 * 4, device % 4);
                vec![around(n - 4), row + (column + 3) % 4, row + (column + 1) % 4, around(4)]
            }
        };
        let list: Vec<String> = list.iter().map(u32::to_string).collect();
        format!("{}\n", list.join(", "))
    }
}

fn directory(root: &Path, device: u32) -> PathBuf {
    root.join(format!("sys/devices/virtual/neuron_device/neuron{device}"))
}

/// As a kernel's file changes: a reader sees the old content or the new one, whole.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)?;
    fs::rename(&new, path)
}

/// What a core's microcode takes.
const MICROCODE: u64 = 96 << 20;

const ECC_CORRECTED: [&str; 2] = ["sram_ecc_corrected", "mem_ecc_corrected"];

const HOST_MEMORY: [&str; 8] = [
    "application_memory",
    "constants",
    "dma_buffers",
    "dma_rings",
    "driver_memory",
    "notifications",
    "tensors",
    "uncategorized",
];

const DEVICE_MEMORY: [&str; 11] = [
    "model_code",
    "tensors",
    "constants",
    "model_shared_scratchpad",
    "nonshared_scratchpad",
    "runtime_memory",
    "driver_memory",
    "collectives",
    "notifications",
    "dma_rings",
    "uncategorized",
];

const OTHER: [&str; 6] =
    ["model_load_count", "inference_count", "flop_count", "nc_time_in_use", "reset_req_count", "reset_fail_count"];

const STATUSES: [&str; 24] = [
    "success",
    "failure",
    "timeout",
    "exec_bad_input",
    "hw_error",
    "execute_completed_with_error",
    "execute_completed_with_num_error",
    "generic_error",
    "resource_error",
    "resource_nc_error",
    "execute_failed_to_queue",
    "invalid_error",
    "unsupported_neff_version",
    "oob_error",
    "hw_collectives_error",
    "hw_hbm_ue_error",
    "hw_nc_ue_error",
    "hw_dma_abort_error",
    "execute_sw_nq_overflow",
    "execute_sw_semaphore_error",
    "execute_sw_event_error",
    "execute_sw_psum_collision",
    "execute_sw_sequencer_fatal",
    "hw_repairable_hbm_ue_error",
];

#[cfg(test)]
mod tests;
