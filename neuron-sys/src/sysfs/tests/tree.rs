//! Trees as AWS's driver makes them, written into a directory: what tests read instead of a machine.

use std::fs;
use std::path::Path;

/// A machine's tree below a directory.
pub struct Tree<'a>(pub &'a Path);

/// What a kind of machine shows.
pub struct Kind {
    /// product_name.
    pub instance: &'static str,
    /// arch_type, instance_type, device_name.
    pub architecture: [&'static str; 3],
    /// arch_type of a core.
    pub core: &'static str,
    /// PCI device.
    pub pci: &'static str,
    /// Cores per device.
    pub cores: u32,
    /// Whether the status counters have their old names.
    pub old_names: bool,
}

/// inf2.
pub const INF2: Kind = Kind {
    instance: "inf2.xlarge",
    architecture: ["NDv3", "Inf2", "Inferentia2"],
    core: "NCv2",
    pci: "0x7264",
    cores: 2,
    old_names: true,
};
/// trn1.
pub const TRN1: Kind = Kind {
    instance: "trn1.2xlarge",
    architecture: ["NDv2", "Trn1", "Trainium1"],
    core: "NCv2",
    pci: "0x7164",
    cores: 2,
    old_names: false,
};
/// trn2.
pub const TRN2: Kind = Kind {
    instance: "trn2.3xlarge",
    architecture: ["NDv3", "Trn2", "Trainium2"],
    core: "NCv3",
    pci: "0x7364",
    cores: 8,
    old_names: false,
};

impl Tree<'_> {
    /// Writes a file.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A whole machine of this kind whose driver is of this version.
    pub fn machine(&self, kind: &Kind, devices: u32, driver: &str) {
        self.write("sys/devices/virtual/dmi/id/product_name", format!("{}\n", kind.instance));
        self.write("sys/devices/virtual/dmi/id/sys_vendor", "Amazon EC2\n");
        self.write("sys/module/neuron/version", format!("{driver}\n"));
        self.write("proc/modules", "neuron 344064 0 - Live 0x0000000000000000 (O)\n");
        self.write(&format!("usr/src/aws-neuronx-{driver}/dkms.conf"), "");
        for device in 0..devices {
            self.device(kind, device, devices);
        }
    }

    fn device(&self, kind: &Kind, index: u32, devices: u32) {
        let pci = format!("sys/bus/pci/devices/0000:00:{:02x}.0", 0x10 + index);
        self.write(&format!("{pci}/vendor"), "0x1d0f\n");
        self.write(&format!("{pci}/device"), format!("{}\n", kind.pci));
        self.write(&format!("dev/neuron{index}"), "");
        let at = device_dir(index);
        self.write(&format!("{at}/core_count"), kind.cores.to_string()); // no newline, as the driver has it
        let others: Vec<_> = (0..devices).filter(|&other| other != index).map(|other| other.to_string()).collect();
        self.write(&format!("{at}/connected_devices"), others.join(", "));
        self.write(&format!("{at}/reset"), "");
        self.write(&format!("{at}/info/serial_number"), "0123456789abcdef\n");
        self.write(&format!("{at}/info/notify_delay"), "-1\n");
        for (name, value) in ["arch_type", "instance_type", "device_name"].iter().zip(kind.architecture) {
            self.write(&format!("{at}/info/architecture/{name}"), format!("{value}\n"));
        }
        for counter in ["sram_ecc_uncorrected", "mem_ecc_uncorrected", "mem_ecc_repairable_uncorrected"] {
            self.counter(&format!("{at}/stats/hardware/{counter}"), 0);
        }
        for part in ["tensors", "dma_buffers", "driver_memory"] {
            self.memory(&format!("{at}/stats/memory_usage/host_mem/{part}"), 4096, 8192);
        }
        self.write(&format!("{at}/stats/power/utilization"), "POWER_STATUS_VALID,1760000040,1.25,30.50,12.75\n");
        for core in 0..kind.cores {
            self.core(kind, &format!("{at}/neuron_core{core}"));
        }
    }

    fn core(&self, kind: &Kind, at: &str) {
        self.write(&format!("{at}/info/architecture/arch_type"), format!("{}\n", kind.core));
        let prefix = if kind.old_names { "infer" } else { "execute" };
        for (status, count) in [("success", 7), ("failure", 0), ("timeout", 0), ("oob_error", 0)] {
            self.counter(&format!("{at}/stats/status/{status}"), count);
        }
        self.counter(&format!("{at}/stats/status/{prefix}_completed_with_error"), 0);
        self.counter(&format!("{at}/stats/status/{prefix}_failed_to_queue"), 0);
        self.memory(&format!("{at}/stats/memory_usage/device_mem"), 100 << 20, 200 << 20);
        self.memory(&format!("{at}/stats/memory_usage/device_mem/model_code"), 96 << 20, 96 << 20);
        self.memory(&format!("{at}/stats/memory_usage/device_mem/tensors"), 4 << 20, 104 << 20);
        for name in ["model_load_count", "inference_count", "flop_count", "nc_time_in_use"] {
            self.write(&format!("{at}/stats/other_info/{name}"), "3\n"); // no counters, says the guide
        }
        let rows = "xrow_grp,mm_active,wl_active,idle\n0,10,20,70\n1,11,21,68\n";
        self.write(&format!("{at}/stats/tensor_engine/pe_cntrs"), rows);
    }

    /// A counter.
    pub fn counter(&self, path: &str, count: u64) {
        self.write(&format!("{path}/total"), format!("{count}\n"));
        self.write(&format!("{path}/present"), "0\n");
    }

    fn memory(&self, path: &str, used: u64, peak: u64) {
        self.counter(path, used);
        self.write(&format!("{path}/peak"), format!("{peak}\n"));
    }
}

/// A device's directory.
pub fn device_dir(index: u32) -> String {
    format!("sys/devices/virtual/neuron_device/neuron{index}")
}
