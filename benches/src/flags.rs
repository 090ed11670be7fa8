//! Command lines of benchmarks: `--name value` and nothing else.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// What was given and has not been asked for yet.
#[derive(Debug)]
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Of this process.
    pub fn read() -> Result<Flags> {
        let mut given = BTreeMap::new();
        let mut args = std::env::args().skip(1);
        while let Some(flag) = args.next() {
            let name = flag.strip_prefix("--").with_context(|| format!("unexpected `{flag}`"))?.to_owned();
            given.insert(name, args.next().with_context(|| format!("{flag} needs a value"))?);
        }
        Ok(Flags(given))
    }

    /// The value of `--name`, or what it is else; an error if there is neither.
    pub fn take(&mut self, name: &str, default: Option<&str>) -> Result<String> {
        self.0.remove(name).or(default.map(str::to_owned)).with_context(|| format!("--{name} is missing"))
    }

    /// That nothing else was given.
    pub fn finish(self) -> Result<()> {
        match self.0.into_keys().next() {
            Some(name) => bail!("unknown option --{name}"),
            None => Ok(()),
        }
    }
}
