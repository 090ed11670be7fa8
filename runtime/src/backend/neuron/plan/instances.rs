//! Which machines there are: chips, memory, bandwidth, peak, price.
//!
//! The built-in table is `instances.json`, with its sources; a file of the same form adds to it or replaces entries by
//! name. Prices change: they are data, and null where nobody publishes one.

use std::collections::BTreeMap;

use njoule_hlo::Target;
use serde::{Deserialize, Serialize};

/// A kind of chip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chip {
    /// Name for `neuronx-cc --target`.
    pub target: String,
    /// Logical cores of a chip.
    pub cores: usize,
    /// Physical cores of a chip.
    pub physical_cores: usize,
    /// Device memory of a chip, GiB.
    pub hbm_gib: f64,
    /// Its bandwidth, 1e9 bytes per second.
    pub bandwidth_gb_s: f64,
    /// Dense peak, 1e12 operations per second.
    pub tflops_bf16: f64,
    /// The same in f32.
    pub tflops_f32: f64,
    /// How chips are connected.
    pub topology: Topology,
    /// Tensor parallel degrees that AWS's own stack offers.
    pub tp: Vec<usize>,
    /// Where these figures are from.
    #[serde(default)]
    pub source: String,
}

/// How chips of an instance are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// Each with two neighbours: collectives go round.
    Ring,
    /// A 2-D torus: small collectives go to everybody at once.
    Torus,
}

/// A kind of machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Instance {
    /// Such as `inf2.xlarge`.
    pub name: String,
    /// What its chips are.
    #[serde(skip)]
    pub chip: Chip,
    /// How many.
    pub chips: usize,
    /// Hardware threads of the host.
    pub vcpus: usize,
    /// Memory of the host, GiB.
    pub ram_gib: f64,
    /// USD per hour; absent where there is no list price.
    pub price_per_hour: Option<f64>,
    /// Physical cores of a logical one, where somebody chose.
    #[serde(skip)]
    pub lnc: Option<u8>,
}

impl Instance {
    /// Logical cores.
    pub fn cores(&self) -> usize {
        self.chip.cores * self.chips
    }

    /// With logical cores of `lnc` physical ones, among which memory, bandwidth and peak are divided; `None` where the chip has no
    /// such cores: only trn2's can be joined.
    pub fn with_lnc(&self, lnc: u8) -> Option<Instance> {
        let (has, chosen) = (has_lnc(self.target(), lnc), Some(lnc));
        let lnc = usize::from(lnc);
        let cores =
            self.chip.physical_cores.checked_div(lnc).filter(|cores| has && cores * lnc == self.chip.physical_cores)?;
        let mut changed = Instance { lnc: chosen, ..self.clone() };
        changed.chip.cores = cores;
        Some(changed)
    }

    /// Compiler target.
    pub fn target(&self) -> Target {
        // The table's reader has checked the name.
        Target::ALL.into_iter().find(|t| t.name() == self.chip.target).unwrap_or(Target::Xla)
    }

    /// Device memory of a logical core, bytes.
    pub fn core_bytes(&self) -> u64 {
        (self.chip.hbm_gib * GIB) as u64 / self.chip.cores as u64
    }

    /// Bandwidth of a logical core, bytes per second.
    pub fn core_bandwidth(&self) -> f64 {
        self.chip.bandwidth_gb_s * 1e9 / self.chip.cores as f64
    }

    /// Peak of a logical core, operations per second.
    pub fn core_flops(&self, f32: bool) -> f64 {
        (if f32 { self.chip.tflops_f32 } else { self.chip.tflops_bf16 }) * 1e12 / self.chip.cores as f64
    }
}

/// Whether chips of `target` have logical cores of so many physical ones: only trn2's can be joined.
pub fn has_lnc(target: Target, lnc: u8) -> bool {
    lnc == 1 || (target == Target::Trn2 && lnc == 2)
}

/// All machines that are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Instances(Vec<Instance>);

/// What is wrong with a table of instances.
#[derive(Debug, thiserror::Error)]
pub enum InstancesError {
    /// Not JSON of the form of the built-in table.
    #[error("not a table of instances: {0}")]
    Form(#[from] serde_json::Error),
    /// A figure that cannot be.
    #[error("{name}: {field} is {value}, which cannot be")]
    Figure {
        /// Chip or instance.
        name: String,
        /// Which figure.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// An instance of a chip that nobody describes.
    #[error("{instance}: chip {chip:?} is not in the table ({known})")]
    Chip {
        /// Instance.
        instance: String,
        /// Its chip.
        chip: String,
        /// Those there are.
        known: String,
    },
}

impl Instances {
    /// The built-in table.
    pub fn built_in() -> Instances {
        // A test reads it.
        Instances::parse(BUILT_IN, &[]).unwrap_or_else(|error| unreachable!("the built-in table: {error}"))
    }

    /// The built-in table, with the entries of `text` added or in place of those of the same name.
    pub fn with(text: &str) -> Result<Instances, InstancesError> {
        Instances::parse(text, &[BUILT_IN])
    }

    /// The instance of this name.
    pub fn find(&self, name: &str) -> Option<&Instance> {
        self.0.iter().find(|i| i.name == name)
    }

    /// All of them, those with the least device memory first.
    pub fn all(&self) -> &[Instance] {
        &self.0
    }

    /// Their names, for messages.
    pub fn names(&self) -> String {
        self.0.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn parse(text: &str, below: &[&str]) -> Result<Instances, InstancesError> {
        let (mut chips, mut rows) = (BTreeMap::new(), Vec::<Row>::new());
        for text in below.iter().chain([&text]) {
            let table: Table = serde_json::from_str(text)?;
            chips.extend(table.chips);
            for row in table.instances {
                rows.retain(|r| r.name != row.name);
                rows.push(row);
            }
        }
        for (name, chip) in &chips {
            chip.check(name)?;
        }
        let known = || chips.keys().cloned().collect::<Vec<_>>().join(", ");
        let mut all = Vec::new();
        for row in rows {
            let Some(chip) = chips.get(&row.chip) else {
                return Err(InstancesError::Chip { instance: row.name, chip: row.chip, known: known() });
            };
            within(&row.name, "chips", row.chips as f64, 1.0, 4096.0)?;
            within(&row.name, "ram_gib", row.ram_gib, 0.0, 1e6)?;
            within(&row.name, "price_per_hour", row.price_per_hour.unwrap_or(0.0), 0.0, 1e6)?;
            let Row { name, chips, vcpus, ram_gib, price_per_hour, .. } = row;
            all.push(Instance { name, chip: chip.clone(), chips, vcpus, ram_gib, price_per_hour, lnc: None });
        }
        all.sort_by(|a, b| {
            let size = |i: &Instance| (i.core_bytes() * i.cores() as u64, i.vcpus);
            size(a).cmp(&size(b)).then_with(|| a.name.cmp(&b.name))
        });
        Ok(Instances(all))
    }
}

impl Chip {
    fn check(&self, name: &str) -> Result<(), InstancesError> {
        let figure = |field, value: String| InstancesError::Figure { name: name.into(), field, value };
        let device = Target::ALL.into_iter().any(|t| t != Target::Xla && t.name() == self.target);
        if !device {
            return Err(figure("target", self.target.clone()));
        }
        within(name, "cores", self.cores as f64, 1.0, 1024.0)?;
        within(name, "physical_cores", self.physical_cores as f64, self.cores as f64, 4096.0)?;
        within(name, "hbm_gib", self.hbm_gib, 0.0, 1e6)?;
        within(name, "bandwidth_gb_s", self.bandwidth_gb_s, 1e-3, 1e9)?;
        within(name, "tflops_bf16", self.tflops_bf16, 1e-3, 1e9)?;
        within(name, "tflops_f32", self.tflops_f32, 1e-3, 1e9)?;
        match self.tp.iter().find(|tp| !(1..=MAX_TP).contains(*tp)) {
            Some(tp) => Err(figure("tp", tp.to_string())),
            None => Ok(()),
        }
    }
}

fn within(name: &str, field: &'static str, value: f64, least: f64, most: f64) -> Result<(), InstancesError> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(InstancesError::Figure { name: name.into(), field, value: value.to_string() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    chips: BTreeMap<String, Chip>,
    #[serde(default, rename = "price_source")]
    _price_source: Option<String>,
    #[serde(default)]
    instances: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    chip: String,
    chips: usize,
    #[serde(default)]
    vcpus: usize,
    #[serde(default)]
    ram_gib: f64,
    #[serde(default)]
    price_per_hour: Option<f64>,
}

/// Cores that may share a model; more is no instance that exists.
pub const MAX_TP: usize = 1024;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const BUILT_IN: &str = include_str!("instances.json");
