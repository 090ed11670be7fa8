//! Amazon's accelerators on the PCI bus: there whether or not a driver is.

use super::Root;
use std::path::PathBuf;

use super::chip::Chip;
use super::field;

/// A Neuron device on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Such as `0000:00:1f.0`.
    pub address: String,
    /// Its device number.
    pub device: u16,
    /// What that is.
    pub chip: Chip,
    /// The driver that has it, if one has.
    pub driver: Option<String>,
}

impl Root {
    /// Neuron devices on the bus, by address.
    pub fn pci(&self) -> Vec<PciFunction> {
        let bus = self.join("/sys/bus/pci/devices");
        let number = |path: PathBuf| field::text(&path).parse(hexadecimal).ok();
        field::names(&bus)
            .into_iter()
            .filter_map(|address| {
                let dir = bus.join(&address);
                let device = number(dir.join("device"))?;
                let chip = Chip::of_pci(device).filter(|_| number(dir.join("vendor")) == Some(AMAZON))?;
                let driver = std::fs::read_link(dir.join("driver")).ok();
                let driver = driver.and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
                Some(PciFunction { address, device, chip, driver })
            })
            .collect()
    }
}

fn hexadecimal(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

const AMAZON: u16 = 0x1d0f;
