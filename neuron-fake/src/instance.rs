//! The instance types that can be stood in for: chips, cores, memory (NEURON facts of AWS's hardware pages and driver).

use njoule_hlo::Target;

/// A generation of chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// Inferentia2.
    Inferentia2,
    /// Trainium1.
    Trainium1,
    /// Trainium2.
    Trainium2,
}

/// An instance type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// As AWS names it.
    pub name: &'static str,
    /// `nrt_instance_info_t.family`.
    pub family: u32,
    /// `nrt_instance_info_t.size`.
    pub size: u32,
    /// Which chips.
    pub chip: Chip,
    /// How many.
    pub chips: u32,
}

impl Instance {
    /// The one of this name.
    pub fn of(name: &str) -> Option<Instance> {
        ALL.into_iter().find(|i| i.name == name)
    }
}

impl Chip {
    /// Physical cores of a chip.
    pub fn cores(self) -> u32 {
        match self {
            Chip::Inferentia2 | Chip::Trainium1 => 2,
            Chip::Trainium2 => 8,
        }
    }

    /// Physical cores in a logical one, unless the environment says otherwise.
    pub fn lnc(self) -> u32 {
        match self {
            Chip::Inferentia2 | Chip::Trainium1 => 1,
            Chip::Trainium2 => 2,
        }
    }

    /// Bytes of device memory of a chip.
    pub fn hbm(self) -> u64 {
        match self {
            Chip::Inferentia2 | Chip::Trainium1 => 32 << 30,
            Chip::Trainium2 => 96 << 30,
        }
    }

    /// The name of its cores, as the library and the driver have it.
    pub fn core_arch(self) -> &'static str {
        match self {
            Chip::Inferentia2 | Chip::Trainium1 => "NCv2",
            Chip::Trainium2 => "NCv3",
        }
    }

    /// `arch_type`, `instance_type`, `device_name` of the driver. (NDv3 for Inferentia2 is no slip.)
    pub fn driver_names(self) -> [&'static str; 3] {
        match self {
            Chip::Inferentia2 => ["NDv3", "Inf2", "Inferentia2"],
            Chip::Trainium1 => ["NDv2", "Trn1", "Trainium1"],
            Chip::Trainium2 => ["NDv3", "Trn2", "Trainium2"],
        }
    }

    /// Whether it runs what was compiled for the target: the cores of Inferentia2 and Trainium1 are the same.
    pub fn runs(self, target: Target) -> bool {
        match target {
            Target::Inf2 | Target::Trn1 => self != Chip::Trainium2,
            Target::Trn2 => self == Chip::Trainium2,
            Target::Xla => false,
        }
    }
}

/// All that are known.
pub const ALL: [Instance; 9] = [
    Instance { name: "inf2.xlarge", family: 4, size: 0, chip: Chip::Inferentia2, chips: 1 },
    Instance { name: "inf2.8xlarge", family: 4, size: 4, chip: Chip::Inferentia2, chips: 1 },
    Instance { name: "inf2.24xlarge", family: 4, size: 5, chip: Chip::Inferentia2, chips: 6 },
    Instance { name: "inf2.48xlarge", family: 4, size: 7, chip: Chip::Inferentia2, chips: 12 },
    Instance { name: "trn1.2xlarge", family: 2, size: 1, chip: Chip::Trainium1, chips: 1 },
    Instance { name: "trn1.32xlarge", family: 2, size: 6, chip: Chip::Trainium1, chips: 16 },
    Instance { name: "trn1n.32xlarge", family: 3, size: 6, chip: Chip::Trainium1, chips: 16 },
    Instance { name: "trn2.3xlarge", family: 5, size: 8, chip: Chip::Trainium2, chips: 1 },
    Instance { name: "trn2.48xlarge", family: 5, size: 7, chip: Chip::Trainium2, chips: 16 },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logical_cores_are_those_of_awss_table() {
        let cores = |name| {
            let i = Instance::of(name).unwrap();
            i.chips * i.chip.cores() / i.chip.lnc()
        };
        assert_eq!(
            ["inf2.xlarge", "inf2.24xlarge", "inf2.48xlarge", "trn1.32xlarge", "trn2.3xlarge", "trn2.48xlarge"]
                .map(cores),
            [2, 12, 24, 32, 4, 64]
        );
    }
}
