//! Which processes have a Neuron device open: those that own its cores, as far as this user may look.

use std::collections::BTreeSet;
use std::fs;

use super::Root;
use super::field;

/// A process that has devices open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// The devices.
    pub devices: BTreeSet<u32>,
}

/// All that could be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// By process number.
    pub seen: Vec<Owner>,
    /// Processes whose files this user may not list.
    pub hidden: usize,
}

impl Root {
    /// Processes that have a device open.
    pub fn owners(&self) -> Owners {
        let mut owners = Owners::default();
        for (pid, dir) in field::numbered(&self.join("/proc"), "") {
            let Ok(files) = fs::read_dir(dir.join("fd")) else {
                owners.hidden += usize::from(dir.is_dir());
                continue;
            };
            let opened = files.take(field::MAX_ENTRIES).filter_map(|file| fs::read_link(file.ok()?.path()).ok());
            let devices: BTreeSet<u32> =
                opened.filter_map(|target| target.to_str()?.strip_prefix("/dev/neuron")?.parse().ok()).collect();
            if !devices.is_empty() {
                let name = field::line(&dir.join("comm")).ok().unwrap_or_else(|| "?".to_owned());
                owners.seen.push(Owner { pid, name, devices });
            }
        }
        owners
    }
}
