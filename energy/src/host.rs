//! What machine this is, as far as it says.

use serde::{Deserialize, Serialize};

use crate::load::MachineTime;
use crate::root::{Root, text};

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Such as `inf2.xlarge`.
    pub instance_type: Option<String>,
    /// The processor's name.
    pub cpu: Option<String>,
    /// CPUs that the system sees.
    pub vcpus: Option<u32>,
    /// Memory in GiB that the system sees.
    pub memory_gib: Option<f64>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// Whether there is a hypervisor.
    #[serde(rename = "virtual")]
    pub is_virtual: Option<bool>,
}

impl Host {
    /// The machine below `root`.
    pub fn read(root: &Root) -> Host {
        let line = |path: &str| text(&root.join(path)).ok().filter(|text| !text.is_empty());
        let cpuinfo = line("/proc/cpuinfo");
        let field = |key: &str| {
            let line = cpuinfo.as_deref()?.lines().find(|l| l.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let amazon = line("/sys/devices/virtual/dmi/id/sys_vendor").is_some_and(|vendor| vendor == "Amazon EC2");
        let memory = line("/proc/meminfo").and_then(|text| {
            let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
            Some(total.trim().parse::<u64>().ok()? as f64 / f64::from(1 << 20))
        });
        Host {
            instance_type: line("/sys/devices/virtual/dmi/id/product_name").filter(|_| amazon),
            cpu: field("model name"),
            vcpus: MachineTime::read(root).ok().map(|time| time.vcpus).filter(|n| *n > 0),
            memory_gib: memory,
            kernel: line("/proc/sys/kernel/osrelease"),
            is_virtual: field("flags").map(|flags| flags.split_whitespace().any(|f| f == "hypervisor")),
        }
    }
}
