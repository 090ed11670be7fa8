//! Kinds of chips. Decided by `device_name` alone: the architecture's number is the same for Inferentia2 and Trainium2.

use std::fmt;

/// A kind of chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chip {
    /// First generation: another runtime, not for us.
    Inferentia1,
    /// inf2.
    Inferentia2,
    /// trn1, trn1n.
    Trainium1,
    /// trn2.
    Trainium2,
    /// trn3.
    Trainium3,
}

impl Chip {
    /// Every kind.
    pub const ALL: [Chip; 5] =
        [Chip::Inferentia1, Chip::Inferentia2, Chip::Trainium1, Chip::Trainium2, Chip::Trainium3];

    /// AWS's name, as the driver's `device_name` has it.
    pub fn name(self) -> &'static str {
        match self {
            Chip::Inferentia1 => "Inferentia",
            Chip::Inferentia2 => "Inferentia2",
            Chip::Trainium1 => "Trainium1",
            Chip::Trainium2 => "Trainium2",
            Chip::Trainium3 => "Trainium3",
        }
    }

    /// The chip of this `device_name`.
    pub fn of_name(name: &str) -> Option<Chip> {
        match name.trim().to_ascii_lowercase().as_str() {
            "inferentia1" => Some(Chip::Inferentia1),
            "trainium" => Some(Chip::Trainium1),
            name => Chip::ALL.into_iter().find(|chip| chip.name().eq_ignore_ascii_case(name)),
        }
    }

    /// The chip of this PCI device number of Amazon.
    pub fn of_pci(device: u16) -> Option<Chip> {
        match device {
            0x7064..=0x7067 => Some(Chip::Inferentia1),
            0x7164 => Some(Chip::Trainium1),
            0x7264 => Some(Chip::Inferentia2),
            0x7364 => Some(Chip::Trainium2),
            _ => None,
        }
    }

    /// What an instance type's name, such as `trn1n.32xlarge`, says that it has.
    pub fn of_instance(instance_type: &str) -> Option<Chip> {
        let family = instance_type.split('.').next()?.to_ascii_lowercase();
        let prefixes = [
            ("inf1", Chip::Inferentia1),
            ("inf2", Chip::Inferentia2),
            ("trn1", Chip::Trainium1),
            ("trn2", Chip::Trainium2),
            ("trn3", Chip::Trainium3),
        ];
        prefixes.into_iter().find(|(prefix, _)| family.starts_with(prefix)).map(|(_, chip)| chip)
    }

    /// neuronx-cc's name of the target; none for what it does not compile for.
    pub fn target(self) -> Option<&'static str> {
        match self {
            Chip::Inferentia1 => None,
            Chip::Inferentia2 => Some("inf2"),
            Chip::Trainium1 => Some("trn1"),
            Chip::Trainium2 => Some("trn2"),
            Chip::Trainium3 => Some("trn3"),
        }
    }

    /// Physical cores.
    pub fn physical_cores(self) -> u32 {
        match self {
            Chip::Inferentia1 => 4,
            Chip::Inferentia2 | Chip::Trainium1 => 2,
            Chip::Trainium2 | Chip::Trainium3 => 8,
        }
    }

    /// Physical cores that make a logical one unless `NEURON_LOGICAL_NC_CONFIG` says otherwise.
    pub fn default_lnc(self) -> u32 {
        match self {
            Chip::Inferentia1 | Chip::Inferentia2 | Chip::Trainium1 => 1,
            Chip::Trainium2 | Chip::Trainium3 => 2,
        }
    }

    /// Device memory in GiB.
    pub fn memory_gib(self) -> u32 {
        match self {
            Chip::Inferentia1 => 8,
            Chip::Inferentia2 | Chip::Trainium1 => 32,
            Chip::Trainium2 => 96,
            Chip::Trainium3 => 144,
        }
    }
}

impl fmt::Display for Chip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
