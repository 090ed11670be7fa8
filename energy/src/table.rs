//! Published watts of instances: `data/instance_power.csv`, each row with its source.
//!
//! Nothing is averaged. Two families of figures (cloud-carbon-footprint's SPECpower watts per thread; Teads's or Boavizta's
//! shares of a rated power plus memory) differ by a factor of two to three, and that is the uncertainty: every instance that
//! has two of them has an interval, and one that has fewer has none.

use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Watts at 0, 10, 50 and 100 % load.
pub type Curve = [f64; 4];

/// A row of the table.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    watts: [Option<f64>; 4],
    note: String,
}

/// The table.
#[derive(Debug)]
pub struct Table(BTreeMap<(String, String), Vec<Row>>);

/// What is published of an instance's host; accelerators excluded.
#[derive(Clone, Debug, PartialEq)]
pub struct HostWatts {
    /// The instance's type.
    pub instance: String,
    /// Curves with the keys of the rows they come from.
    pub curves: Vec<(String, Curve)>,
}

impl HostWatts {
    /// Lowest and highest watts at a load from 0 to 1.
    pub fn at(&self, load: f64) -> Option<(f64, f64)> {
        let watts = self.curves.iter().map(|(_, curve)| along(curve, load));
        watts.fold(None, |range, w| match range {
            None => Some((w, w)),
            Some((low, high)) => Some((f64::min(low, w), f64::max(high, w))),
        })
    }

    /// The rows, as a profile's name.
    pub fn profile(&self) -> String {
        let keys: Vec<&str> = self.curves.iter().map(|(key, _)| key.as_str()).collect();
        keys.join(" | ")
    }
}

impl Table {
    /// The one that is built in.
    pub fn published() -> &'static Table {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| Table::parse(include_str!("../data/instance_power.csv")))
    }

    fn parse(text: &str) -> Table {
        let mut rows: BTreeMap<_, Vec<Row>> = BTreeMap::new();
        for line in text.lines().skip(1) {
            let [instance, component, idle, ten, fifty, full, _source, note] = &fields(line)[..] else { continue };
            let watts = [idle, ten, fifty, full].map(|w| w.parse().ok());
            rows.entry((instance.clone(), component.clone())).or_default().push(Row { watts, note: note.clone() });
        }
        Table(rows)
    }

    fn rows(&self, instance: &str, component: &str) -> &[Row] {
        self.0.get(&(instance.to_owned(), component.to_owned())).map_or(&[], Vec::as_slice)
    }

    fn curve(&self, instance: &str, component: &str) -> Option<Curve> {
        let row = self.rows(instance, component).first()?;
        let [idle, ten, fifty, full] = row.watts;
        let (idle, full) = (idle?, full?);
        let line = |share: f64| idle + (full - idle) * share;
        Some([idle, ten.unwrap_or(line(0.1)), fifty.unwrap_or(line(0.5)), full])
    }

    /// What is published of `instance`; `Err` says what is missing.
    pub fn host(&self, instance: &str, vcpus: u32, memory_gib: f64) -> Result<HostWatts, String> {
        let mut curves = vec![];
        let known = self.0.keys().any(|(key, _)| key == instance);
        if !known {
            return Err(format!("no watts are published for instance type {instance:?}"));
        }
        let cpu = self.cpu_of(instance);
        let per_thread = self
            .curve(instance, "cpu_per_vcpu")
            .map(|curve| (format!("{instance}/cpu_per_vcpu"), curve))
            .or_else(|| {
                let key = format!("arch:{}", cpu?.arch);
                Some((format!("{key}/cpu_per_vcpu"), self.curve(&key, "cpu_per_vcpu")?))
            });
        if let Some((key, curve)) = per_thread {
            curves.push((key, curve.map(|w| w * f64::from(vcpus))));
        }
        // Without the boards: they have meters of their own.
        let parts = ["cpu", "ram", "platform_delta"].map(|part| self.curve(instance, part));
        if let [Some(cpu), Some(ram), Some(platform)] = parts {
            curves.push((
                format!("{instance}/cpu+ram+platform_delta"),
                std::array::from_fn(|i| cpu[i] + ram[i] + platform[i]),
            ));
        }
        if let Some(curve) = cpu.and_then(|cpu| self.share_of_rated(cpu, vcpus, memory_gib)) {
            curves.push(curve);
        }
        match curves.len() {
            0 | 1 => Err(format!("fewer than two independent figures are published for instance type {instance:?}")),
            _ => Ok(HostWatts { instance: instance.to_owned(), curves }),
        }
    }

    /// The processor that the rows of an instance name.
    fn cpu_of(&self, instance: &str) -> Option<&'static Cpu> {
        let rows = ["cpu_per_vcpu", "cpu"].map(|part| self.rows(instance, part));
        let notes = rows.into_iter().flatten().map(|row| row.note.as_str());
        notes.flat_map(|note| CPUS.iter().find(|cpu| cpu.words.iter().any(|word| note.contains(word)))).next()
    }

    /// Boavizta: shares of the package's rated power for the threads, and memory by the gigabyte.
    fn share_of_rated(&self, cpu: &Cpu, vcpus: u32, memory_gib: f64) -> Option<(String, Curve)> {
        let threads = cpu.threads?;
        let key = format!("cpu:{}", cpu.name);
        let rated = self.rows(&key, "package_tdp").first()?.watts[3]?;
        let shares = self.curve("any", "tdp_fraction")?;
        let per_gb = self.rows("any", "ram_per_gb").iter().filter_map(|row| row.watts[0]).fold(f64::INFINITY, f64::min);
        let curve = shares.map(|s| s * rated * f64::from(vcpus) / f64::from(threads) + per_gb * memory_gib);
        curve
            .iter()
            .all(|w| w.is_finite())
            .then(|| (format!("{key}/package_tdp × any/tdp_fraction + any/ram_per_gb"), curve))
    }
}

/// A processor: how notes name it, its row of rated power, its architecture's rows, and hardware threads per package.
#[derive(Debug)]
struct Cpu {
    words: &'static [&'static str],
    name: &'static str,
    arch: &'static str,
    /// From the instances that are whole machines (inf2.48xlarge, trn1.32xlarge and trn2.48xlarge have two packages).
    threads: Option<u32>,
}

const CPUS: &[Cpu] = &[
    Cpu { words: &["7R13"], name: "AMD EPYC 7R13", arch: "EPYC 3rd Gen", threads: Some(96) },
    Cpu { words: &["8375C", "Ice Lake"], name: "Intel Xeon Platinum 8375C", arch: "Ice Lake", threads: Some(64) },
    Cpu { words: &["Sapphire Rapids"], name: "Intel Xeon Platinum 8488C", arch: "Sapphire Rapids", threads: Some(96) },
    Cpu { words: &["9R14"], name: "AMD EPYC 9R14", arch: "EPYC 4th Gen", threads: None },
    Cpu { words: &["7R32"], name: "AMD EPYC 7R32", arch: "EPYC 2nd Gen", threads: None },
    Cpu { words: &["8275CL"], name: "Intel Xeon Platinum 8275CL", arch: "Cascade Lake", threads: None },
    Cpu { words: &["8259CL"], name: "Intel Xeon Platinum 8259CL", arch: "Cascade Lake", threads: None },
    Cpu { words: &["8124M", "8175M"], name: "", arch: "Skylake", threads: None },
    Cpu { words: &["E5-2686 v4"], name: "", arch: "Broadwell", threads: None },
    Cpu { words: &["Graviton2"], name: "", arch: "Graviton2", threads: None },
];

/// Linear between the four loads.
fn along(curve: &Curve, load: f64) -> f64 {
    let load = if load.is_finite() { load.clamp(0.0, 1.0) } else { 0.0 };
    let at = [0.0, 0.1, 0.5, 1.0];
    let i = at[1..3].iter().filter(|x| **x <= load).count();
    let share = (load - at[i]) / (at[i + 1] - at[i]);
    curve[i] + (curve[i + 1] - curve[i]) * share
}

/// The fields of a line of CSV; quotes hold commas.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().into_iter().for_each(|field| field.push(c)),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the products of the published numbers, worked out by hand: idle, 10, 50 and 100 %.
    #[test]
    fn hosts_of_neuron_instances_are_what_the_sources_give() {
        let cases = [
            ("inf2.xlarge", 4, 16.0, [1.8, 2.4, 4.8, 7.8], [5.7, 7.5, 11.6, 14.1]),
            ("inf2.48xlarge", 192, 768.0, [87.5, 116.0, 232.0, 376.0], [272.0, 362.0, 556.0, 677.0]),
            ("trn1.2xlarge", 8, 32.0, [6.1, 8.5, 18.1, 30.1], [13.6, 21.1, 37.2, 47.3]),
            ("trn2.48xlarge", 192, 2048.0, [199.0, 259.0, 499.0, 799.0], [674.0, 828.0, 1159.0, 1367.0]),
            ("c6a.48xlarge", 192, 384.0, [87.5, 116.0, 232.0, 376.0], [163.0, 253.0, 447.0, 568.0]),
        ];
        for (instance, vcpus, gib, low, high) in cases {
            let watts = Table::published().host(instance, vcpus, gib).unwrap();
            for (i, load) in [0.0, 0.1, 0.5, 1.0].into_iter().enumerate() {
                let (l, h) = watts.at(load).unwrap();
                assert!((l - low[i]).abs() <= 0.006 * low[i].max(10.0), "{instance} at {load}: {l} for {}", low[i]);
                assert!((h - high[i]).abs() <= 0.006 * high[i].max(10.0), "{instance} at {load}: {h} for {}", high[i]);
            }
        }
    }

    #[test]
    fn two_sources_that_disagree_are_an_interval() {
        // One machine, 8375C: 98 to 481 W by one source, 292 to 1038 W by the other.
        let watts = Table::published().host("m6i.32xlarge", 128, 512.0).unwrap();
        let ((low, _), (_, high)) = (watts.at(0.0).unwrap(), watts.at(1.0).unwrap());
        assert!((low - 98.0).abs() < 1.0 && (high - 1038.3).abs() < 1.0, "{low} {high}");
        // Half way between 10 and 50 %.
        let (low, _) = watts.at(0.3).unwrap();
        assert!((low - 128.0 * (0.766797 + 0.3 * (3.758203 - 0.766797))).abs() < 1e-6, "{low}");
    }

    #[test]
    fn what_is_not_published_is_unknown() {
        let unknown = Table::published().host("x9.huge", 4, 16.0).unwrap_err();
        assert!(unknown.contains("x9.huge"), "{unknown}");
        let single = Table::published().host("c7a.48xlarge", 192, 384.0).unwrap_err();
        assert!(single.contains("fewer than two"), "{single}");
    }
}
