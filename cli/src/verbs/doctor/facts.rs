//! All that is looked at, as plain data: what is judged, printed and written as JSON is made of this alone.
//!
//! Invariant: gathering changes nothing on the machine and takes no core unless it is asked to.

use std::path::PathBuf;

use njoule_neuron_sys::sysfs::{
    Chip, DeviceDir, DeviceNode, Driver, Field, KernelLog, Owners, PciFunction, Power, Root, VARIABLE,
};

use super::host::Host;
use super::library::Library;
use super::software::{Collectives, Compiler, Tool};
use super::variables::{self, Judged};
use crate::fetch::Env;

/// A machine.
pub struct Facts {
    /// What is read as `/`.
    pub root: Root,
    /// `NJOULE_SYSFS_ROOT` names no directory.
    pub root_missing: bool,
    /// Type of the instance.
    pub instance_type: Field<String>,
    /// Maker of the machine.
    pub vendor: Field<String>,
    /// Kernel module.
    pub driver: Driver,
    /// libnrt.
    pub library: Library,
    /// neuronx-cc.
    pub compiler: Compiler,
    /// libnccom.
    pub collectives: Collectives,
    /// neuron-ls, ...
    pub tools: Vec<Tool>,
    /// Devices on the bus.
    pub pci: Vec<PciFunction>,
    /// Their nodes.
    pub nodes: Vec<DeviceNode>,
    /// What the driver shows of them.
    pub devices: Vec<Device>,
    /// Who has them open.
    pub owners: Owners,
    /// Hardware errors.
    pub kernel_log: KernelLog,
    /// CPU, memory, C library.
    pub host: Host,
    /// Variables that are set and matter.
    pub variables: Vec<Judged>,
}

/// A device as it was when it was looked at.
pub struct Device {
    /// Where it is read.
    pub dir: DeviceDir,
    /// Its kind.
    pub chip: Field<Chip>,
    /// Its name, understood or not.
    pub name: Field<String>,
    /// Physical cores it says it has.
    pub core_count: Field<u64>,
    /// Links to others.
    pub connected: Field<Vec<u32>>,
    /// Memory errors that are not zero.
    pub ecc: Vec<(String, u64)>,
    /// Health files as they stand there.
    pub health: Vec<(String, Field<String>)>,
    /// The previous minute's power.
    pub power: Field<Power>,
    /// Live power.
    pub power_raw: Field<String>,
    /// Host memory that the driver holds for it, by use.
    pub host_memory: u64,
    /// Its cores.
    pub cores: Vec<Core>,
}

/// A physical core.
pub struct Core {
    /// Its number within the device.
    pub index: u32,
    /// Its kind.
    pub arch: Field<String>,
    /// Statuses other than success that were counted.
    pub failures: Vec<(String, u64)>,
    /// Device memory in use and the most there was.
    pub used: Field<u64>,
    /// The most that was in use.
    pub peak: Field<u64>,
}

impl Facts {
    /// Looks at everything. `init` also starts the runtime, which takes the cores for this process alone meanwhile.
    pub fn gather(env: &Env, init: bool) -> Facts {
        let root = Root::at(env.path(VARIABLE).unwrap_or_else(|| PathBuf::from("/")));
        let devices: Vec<Device> = root.devices().into_iter().map(Device::read).collect();
        let cores: u64 = devices.iter().map(Device::logical_cores).sum();
        let chips: Vec<Chip> = devices.iter().filter_map(|d| d.chip.value().copied()).collect();
        Facts {
            root_missing: !root.prefix().is_dir(),
            instance_type: root.instance_type(),
            vendor: root.vendor(),
            driver: root.driver(),
            library: Library::look(env, init),
            compiler: Compiler::look(env),
            collectives: Collectives::look(&root),
            tools: Tool::look_for_all(&root, env),
            pci: root.pci(),
            nodes: root.nodes(),
            owners: root.owners(),
            kernel_log: root.kernel_log(),
            host: Host::read(&root),
            variables: variables::judge(env, cores, &chips),
            devices,
            root,
        }
    }

    /// Whether there is or should be a Neuron device: on the bus, in `/dev`, from the driver, or by the instance's name.
    pub fn expects_devices(&self) -> bool {
        !self.pci.is_empty() || !self.nodes.is_empty() || !self.devices.is_empty() || self.instance_chip().is_some()
    }

    /// What the instance's type says that it has.
    pub fn instance_chip(&self) -> Option<Chip> {
        Chip::of_instance(self.instance_type.value()?)
    }
}

impl Device {
    fn read(dir: DeviceDir) -> Device {
        let ecc = dir.ecc().into_iter().filter_map(|(name, count)| Some((name, count.ok()?)));
        Device {
            chip: dir.chip(),
            name: dir.device_name(),
            core_count: dir.core_count(),
            connected: dir.connected(),
            ecc: ecc.filter(|(name, count)| name.contains("ecc") && *count > 0).collect(),
            health: dir.health().into_iter().collect(),
            power: dir.power(),
            power_raw: dir.power_raw(),
            host_memory: dir.host_memory().values().filter_map(|m| m.used.value()).fold(0, |a, b| a.saturating_add(*b)),
            cores: dir
                .cores()
                .iter()
                .map(|core| {
                    let memory = core.memory();
                    Core {
                        index: core.index(),
                        arch: core.arch_type(),
                        failures: core.failures().into_iter().collect(),
                        used: memory.used,
                        peak: memory.peak,
                    }
                })
                .collect(),
            dir,
        }
    }

    /// Physical cores: as the driver says, else as its directories show.
    pub fn physical_cores(&self) -> u64 {
        self.core_count.value().copied().unwrap_or(self.cores.len() as u64)
    }

    /// Logical cores unless the environment says otherwise.
    pub fn logical_cores(&self) -> u64 {
        let lnc = self.chip.value().map_or(1, |chip| chip.default_lnc());
        self.physical_cores() / u64::from(lnc)
    }
}
