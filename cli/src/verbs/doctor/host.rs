//! The machine around the devices: CPU, memory, C library.

use std::path::Path;

use njoule_kernels::isa::Kernels;
use njoule_neuron_sys::sysfs::{Root, field};

use super::software::first_line;

/// A host.
pub struct Host {
    /// The processor's name.
    pub cpu: Option<String>,
    /// Of the features that matter to the CPU backend and to packing weights, those that it has.
    pub features: Vec<&'static str>,
    /// Processors that this process may use.
    pub processors: usize,
    /// Instruction set that the CPU backend takes here.
    pub isa: String,
    /// Bytes of memory in all and available.
    pub memory: Option<(u64, u64)>,
    /// Version of glibc, such as (2, 35).
    pub glibc: Option<(u32, u32)>,
}

impl Host {
    /// Reads `/proc`.
    pub fn read(root: &Root) -> Host {
        let cpu = field::text(&root.join("/proc/cpuinfo")).ok().unwrap_or_default();
        let of = |keys: &[&str]| keys.iter().find_map(|key| value_of(&cpu, key));
        let flags = of(&["flags", "Features"]).unwrap_or_default();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let memory = field::text(&root.join("/proc/meminfo")).ok().unwrap_or_default();
        let kilobytes = |key| value_of(&memory, key)?.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024);
        Host {
            cpu: of(&["model name", "CPU part"]),
            features: FEATURES.into_iter().filter(|feature| flags.contains(feature)).collect(),
            processors: std::thread::available_parallelism().map_or(1, |n| n.get()),
            isa: Kernels::detect().map_or_else(|error| error.to_string(), |kernels| kernels.isa.name().to_owned()),
            memory: kilobytes("MemTotal").zip(kilobytes("MemAvailable")),
            glibc: first_line(Path::new("getconf"), &["GNU_LIBC_VERSION"]).ok().and_then(|line| glibc(&line)),
        }
    }
}

/// `key : value` in lines.
fn value_of(text: &str, key: &str) -> Option<String> {
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

/// `glibc 2.35`.
fn glibc(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.strip_prefix("glibc ")?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

const FEATURES: [&str; 10] =
    ["avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "asimddp"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/cpuinfo"), "model name\t: AMD EPYC\nflags\t: fpu avx2 fma\n").unwrap();
        std::fs::write(dir.path().join("proc/meminfo"), "MemTotal:  2048 kB\nMemAvailable: 1024 kB\n").unwrap();
        let host = Host::read(&Root::at(dir.path()));
        assert_eq!(host.cpu.as_deref(), Some("AMD EPYC"));
        assert_eq!(host.features, ["avx2", "fma"]);
        assert_eq!(host.memory, Some((2 << 20, 1 << 20)));
    }

    #[test]
    fn the_c_librarys_version_is_two_numbers() {
        assert_eq!(glibc("glibc 2.36"), Some((2, 36)));
        assert_eq!(glibc("musl 1.2"), None);
        assert_eq!(glibc("glibc 2"), None);
    }
}
