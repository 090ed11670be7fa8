//! `neuron-fake`: makes what tests and demonstrations need beside the two stand-ins.
//!
//!     neuron-fake sysfs DIR [--instance TYPE] [--power LEAST,MOST,MEAN] [--broken NAME,…] [--follow]
//!     neuron-fake hide LIBRARY OUT FUNCTION…
//!
//! `sysfs` writes a tree for `NJOULE_SYSFS_ROOT`; with `--follow` it stays and writes a power reading each minute. `hide`
//! copies the library without these functions, as older ones lack them; `tier2` and `memory-stats` stand for several.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use neuron_fake::instance::{ALL, Instance};
use neuron_fake::sysfs::{Broken, Tree};
use neuron_fake::variant;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["sysfs", directory, ref rest @ ..] => sysfs(Path::new(directory), rest),
        ["hide", library, out, ref functions @ ..] if !functions.is_empty() => hide(library, out, functions),
        _ => Err(
            "usage: neuron-fake sysfs DIR [--instance TYPE] [--power LEAST,MOST,MEAN] [--broken NAME,…] [--follow] | \
                  neuron-fake hide LIBRARY OUT FUNCTION…"
                .to_owned(),
        ),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("neuron-fake: {error}");
            ExitCode::from(2)
        }
    }
}

fn sysfs(root: &Path, flags: &[&str]) -> Result<(), String> {
    let mut tree = Tree::new(ALL[0]);
    let mut follow = false;
    let mut rest = flags.iter();
    while let Some(&flag) = rest.next() {
        let mut value = || rest.next().copied().ok_or_else(|| format!("{flag} needs a value"));
        match flag {
            "--instance" => {
                let name = value()?;
                tree.instance = Instance::of(name).ok_or_else(|| format!("unknown instance type `{name}`"))?;
            }
            "--power" => {
                let parts: Result<Vec<f64>, _> = value()?.split(',').map(str::parse).collect();
                let parts = parts.map_err(|e| format!("--power: {e}"))?;
                tree.power = parts.try_into().map_err(|_| "--power takes LEAST,MOST,MEAN")?;
            }
            "--broken" => {
                for name in value()?.split(',') {
                    let found = Broken::ALL.iter().find(|(n, _)| *n == name);
                    tree.broken.push(found.ok_or_else(|| format!("nothing is broken by `{name}`"))?.1);
                }
            }
            "--follow" => follow = true,
            other => return Err(format!("unknown flag `{other}`")),
        }
    }
    tree.now = seconds();
    tree.write(root).map_err(|e| format!("{}: {e}", root.display()))?;
    if !follow {
        return Ok(());
    }
    loop {
        // To the next minute: that is when the driver rolls up.
        std::thread::sleep(Duration::from_secs(60 - seconds() % 60));
        tree.now = seconds();
        tree.write_power(root).map_err(|e| format!("{}: {e}", root.display()))?;
    }
}

fn hide(library: &str, out: &str, functions: &[&str]) -> Result<(), String> {
    let named = functions.iter().flat_map(|function| match *function {
        "tier2" => variant::TIER2.to_vec(),
        "memory-stats" => variant::MEMORY_STATS.to_vec(),
        one => vec![one],
    });
    let bytes = std::fs::read(library).map_err(|e| format!("{library}: {e}"))?;
    let changed = variant::without(&bytes, &named.collect::<Vec<_>>()).map_err(|e| format!("{library}: {e}"))?;
    std::fs::write(out, changed).map_err(|e| format!("{out}: {e}"))
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
