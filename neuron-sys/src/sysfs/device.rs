//! A device: `/sys/devices/virtual/neuron_device/neuron{N}`, and its node `/dev/neuron{N}`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::chip::Chip;
use super::core::CoreDir;
use super::counter::{self, Counts, Memory};
use super::field::{self, Field};
use super::power::Power;
use super::{Root, counter::total};

/// A device's directory. Each method reads its files anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDir {
    index: u32,
    path: PathBuf,
}

/// A node in `/dev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// The device's number.
    pub index: u32,
    /// The node.
    pub path: PathBuf,
    /// Whether it is a character device, as the driver makes them.
    pub is_device: bool,
    /// Permission bits, owner and group, where the system has them.
    pub access: Option<(u32, u32, u32)>,
}

impl DeviceDir {
    pub(super) fn new(index: u32, path: PathBuf) -> DeviceDir {
        DeviceDir { index, path }
    }

    /// Its number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Physical cores that it says it has; only root may read it before driver 2.28.
    pub fn core_count(&self) -> Field<u64> {
        field::number(&self.path.join("core_count"))
    }

    /// Devices that it has links to; only root may read it before driver 2.28.
    pub fn connected(&self) -> Field<Vec<u32>> {
        field::text(&self.path.join("connected_devices")).parse(|text| {
            let numbers = text.split(',').map(str::trim).filter(|n| !n.is_empty());
            numbers.map(|n| n.parse().ok()).collect()
        })
    }

    /// 16 hexadecimal digits.
    pub fn serial_number(&self) -> Field<String> {
        field::line(&self.path.join("info/serial_number"))
    }

    /// `NDv2`, `NDv3`, ...: not enough to tell the chip.
    pub fn arch_type(&self) -> Field<String> {
        field::line(&self.path.join("info/architecture/arch_type"))
    }

    /// `Inf2`, `Trn1`, ...
    pub fn instance_type(&self) -> Field<String> {
        field::line(&self.path.join("info/architecture/instance_type"))
    }

    /// `Inferentia2`, `Trainium1`, ...
    pub fn device_name(&self) -> Field<String> {
        field::line(&self.path.join("info/architecture/device_name"))
    }

    /// The chip, by its name.
    pub fn chip(&self) -> Field<Chip> {
        self.device_name().parse(Chip::of_name)
    }

    /// Errors of memories: `sram_ecc_uncorrected`, `mem_ecc_uncorrected`, ...
    pub fn ecc(&self) -> Counts {
        counter::totals(&self.path.join("stats/hardware"))
    }

    /// What the firmware says of its health, file by file, as it stands there: the format is not published.
    pub fn health(&self) -> BTreeMap<String, Field<String>> {
        let dir = self.path.join("stats/hardware/health_status");
        field::names(&dir)
            .into_iter()
            .map(|name| {
                let path = dir.join(&name);
                let text = match total(&path) {
                    Field::Value(count) => Field::Value(count.to_string()),
                    _ => field::text(&path),
                };
                (name, text)
            })
            .collect()
    }

    /// Host memory by use.
    pub fn host_memory(&self) -> BTreeMap<String, Memory> {
        counter::memory_parts(&self.path.join("stats/memory_usage/host_mem"))
    }

    /// Power of the previous calendar minute.
    pub fn power(&self) -> Field<Power> {
        field::text(&self.path.join("stats/power/utilization")).parse(|line| line.parse().ok())
    }

    /// Live power figures of driver 2.29 and newer, as they stand there: the format is not published.
    pub fn power_raw(&self) -> Field<String> {
        field::text(&self.path.join("stats/power/utilization_raw"))
    }

    /// Its cores.
    pub fn cores(&self) -> Vec<CoreDir> {
        let found = field::numbered(&self.path, "neuron_core");
        found.into_iter().map(|(index, path)| CoreDir::new(index, path)).collect()
    }
}

impl Root {
    /// The nodes in `/dev`, by number.
    pub fn nodes(&self) -> Vec<DeviceNode> {
        let found = field::numbered(&self.join("/dev"), "neuron");
        found.into_iter().map(|(index, path)| node(index, path)).collect()
    }
}

#[cfg(unix)]
fn node(index: u32, path: PathBuf) -> DeviceNode {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    let found = fs::metadata(&path).ok();
    DeviceNode {
        index,
        is_device: found.as_ref().is_some_and(|m| m.file_type().is_char_device()),
        access: found.map(|m| (m.mode() & 0o7777, m.uid(), m.gid())),
        path,
    }
}

#[cfg(not(unix))]
fn node(index: u32, path: PathBuf) -> DeviceNode {
    let _ = fs::metadata(&path);
    DeviceNode { index, path, is_device: false, access: None }
}
