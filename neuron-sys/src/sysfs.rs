//! What the Neuron driver tells by files alone: devices, cores, counters, power, memory, without libnrt and without a core.
//!
//! Everything is read below a [`Root`], `/` or what `NJOULE_SYSFS_ROOT` names, so a tree of a stand-in reads like a
//! machine. Each file is a [`Field`]: a value, or in which way there is none. Reading is total: any tree, any bytes, give
//! fields, never a panic or a hang, and no file costs more than [`field::MAX_BYTES`].
//!
//! Invariant: nothing is ever written. A write to a device's `reset` resets it, one to a counter clears it.
//!
//! Places and formats: AWS's neuron-sysfs user guide and the driver's release notes.
//!
//! ```
//! use njoule_neuron_sys::sysfs::Root;
//!
//! for device in Root::from_environment().devices() {
//!     println!("neuron{}: {:?}, power {:?}", device.index(), device.chip(), device.power());
//! }
//! ```

mod chip;
mod core;
mod counter;
mod device;
mod driver;
pub mod field;
mod kernel_log;
mod owner;
mod pci;
mod power;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use self::chip::Chip;
pub use self::core::{CoreDir, PeRow};
pub use self::counter::{Counts, Memory};
pub use self::device::{DeviceDir, DeviceNode};
pub use self::driver::{Driver, DriverVersion, Installed};
pub use self::field::Field;
pub use self::kernel_log::{HwError, KernelLog};
pub use self::owner::{Owner, Owners};
pub use self::pci::PciFunction;
pub use self::power::{Power, PowerStatus};

/// Where `/sys`, `/dev` and `/proc` are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// `NJOULE_SYSFS_ROOT`, or `/`.
    pub fn from_environment() -> Root {
        let named = std::env::var_os(VARIABLE).filter(|root| !root.is_empty());
        Root::at(named.map_or_else(|| PathBuf::from("/"), PathBuf::from))
    }

    /// This directory.
    pub fn at(prefix: impl Into<PathBuf>) -> Root {
        Root(prefix.into())
    }

    /// Whether this is the machine itself, not a tree that stands for one.
    pub fn is_machine(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// The directory.
    pub fn prefix(&self) -> &Path {
        &self.0
    }

    /// An absolute path below it.
    pub fn join(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    /// The devices that the driver shows, by number.
    pub fn devices(&self) -> Vec<DeviceDir> {
        let class = self.join(CLASS);
        field::numbered(&class, "neuron").into_iter().map(|(index, path)| DeviceDir::new(index, path)).collect()
    }

    /// The instance's type, such as `inf2.xlarge`, as the firmware tells it.
    pub fn instance_type(&self) -> Field<String> {
        field::line(&self.join("/sys/devices/virtual/dmi/id/product_name"))
    }

    /// The machine's maker, `Amazon EC2` on an instance.
    pub fn vendor(&self) -> Field<String> {
        field::line(&self.join("/sys/devices/virtual/dmi/id/sys_vendor"))
    }
}

/// Names the directory that stands for `/`.
pub const VARIABLE: &str = "NJOULE_SYSFS_ROOT";
const CLASS: &str = "/sys/devices/virtual/neuron_device";
