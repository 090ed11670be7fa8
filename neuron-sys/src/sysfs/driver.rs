//! The kernel module `neuron`: whether it is loaded, and which version is loaded or lies ready.
//!
//! Its directory of devices is there only while it is loaded: that shows it where the module's own files are not to be seen.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::Root;
use super::field::{self, Field};

/// The driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Whether it is loaded.
    pub loaded: bool,
    /// The loaded one's version.
    pub version: Field<DriverVersion>,
    /// Versions whose sources DKMS has: not necessarily the loaded one, until it is reloaded.
    pub installed: Vec<Installed>,
}

/// A version that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Which.
    pub version: DriverVersion,
    /// What shows it.
    pub path: PathBuf,
}

/// A version of the driver, such as 2.24.7.0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion {
    /// First number.
    pub major: u32,
    /// Second: grows by one with each SDK.
    pub minor: u32,
    /// The rest.
    pub rest: Vec<u32>,
}

impl DriverVersion {
    /// First and second number.
    pub fn release(&self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

impl FromStr for DriverVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<DriverVersion, ()> {
        // A package may append a letter or a tag to the last number.
        let text = text.split(['-', '+', '~']).next().unwrap_or_default();
        let numbers: Vec<u32> = text.split('.').take(8).map(str::parse).collect::<Result<_, _>>().map_err(|_| ())?;
        let [major, minor, rest @ ..] = &numbers[..] else { return Err(()) };
        Ok(DriverVersion { major: *major, minor: *minor, rest: rest.to_vec() })
    }
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.rest.iter().try_for_each(|number| write!(f, ".{number}"))
    }
}

impl Root {
    /// The driver.
    pub fn driver(&self) -> Driver {
        let module = self.join("/sys/module/neuron");
        let listed = || {
            let modules = field::text(&self.join("/proc/modules")).ok().unwrap_or_default();
            modules.lines().any(|line| line.split_whitespace().next() == Some("neuron"))
        };
        Driver {
            loaded: module.is_dir() || listed() || !self.devices().is_empty(),
            version: field::line(&module.join("version")).parse(|text| text.parse().ok()),
            installed: self.installed_drivers(),
        }
    }

    /// DKMS keeps sources in `/usr/src/NAME-VERSION` and what it built in `/var/lib/dkms/NAME/VERSION`.
    fn installed_drivers(&self) -> Vec<Installed> {
        let sources = self.join("/usr/src");
        let of_sources = field::names(&sources).into_iter().filter_map(|name| {
            let version = name.strip_prefix("aws-neuronx-")?.parse().ok()?;
            Some(Installed { version, path: sources.join(name) })
        });
        let built = self.join("/var/lib/dkms/aws-neuronx");
        let of_built = field::names(&built)
            .into_iter()
            .filter_map(|name| Some(Installed { version: name.parse().ok()?, path: built.join(name) }));
        let mut all: Vec<Installed> = of_sources.chain(of_built).collect();
        all.sort_by(|a, b| b.version.cmp(&a.version));
        all.dedup_by(|a, b| a.version == b.version);
        all
    }
}
