//! RAPL through powercap's files: `intel-rapl:N[:M]/{name,energy_uj,max_energy_range_uj}`.
//!
//! The counter wraps and nobody extends it: it must be read more often than it can wrap. Some machines show one counter
//! twice (several dies, or the mmio copy): a zone with the name of an earlier one, and a value between two looks at it, is not
//! counted.

use std::path::{Path, PathBuf};

use super::rapl::{Trust, UPDATE_S, place, reading};
use super::{Meter, MeterError, MeterInfo, Reading};
use crate::clock::Now;
use crate::counter::Counter;
use crate::root::{Root, number, text};

/// One zone.
pub struct Powercap {
    info: MeterInfo,
    counter: Counter,
    energy: PathBuf,
}

/// Opens all zones, or says why there is none.
pub fn open(root: &Root) -> Result<Vec<Powercap>, MeterError> {
    let trust = Trust::of(root);
    let mut meters: Vec<Powercap> = vec![];
    let mut seen: Vec<(String, PathBuf)> = vec![];
    for zone in root.names(CLASS) {
        // `intel-rapl-mmio:N` shows the same counters again.
        let Some(numbers) = zone.strip_prefix("intel-rapl:") else { continue };
        let dir = root.join(CLASS).join(&zone);
        let name = text(&dir.join("name"))?;
        let energy = dir.join("energy_uj");
        number(&energy)?;
        let range = number(&dir.join("max_energy_range_uj"))?;
        if range == 0 {
            return Err(MeterError::unreadable(&dir.join("max_energy_range_uj"), "0"));
        }
        let socket = numbers.split(':').next().unwrap_or(numbers);
        let domain = if name.starts_with("package") { "package" } else { name.as_str() };
        let (scope, parent) = place(domain, &format!("powercap-{socket}"));
        let mut alike = seen.iter().filter(|(other, _)| *other == name);
        let twin = alike.any(|(_, other)| shows(&energy, other));
        let twin = twin.then(|| "shows the counter of another zone".to_owned());
        // The whole range is its last value and one step of the 32-bit register behind it.
        let modulus = range.saturating_add(range / u64::from(u32::MAX));
        meters.push(Powercap {
            info: MeterInfo {
                id: format!("powercap-{numbers}"),
                domain: domain.to_owned(),
                scope,
                method: trust.method,
                source: format!("powercap:{zone}"),
                profile: None,
                unit_j: Some(1e-6),
                update_period_s: Some(UPDATE_S),
                rel_uncertainty: Some(trust.rel_uncertainty),
                parent,
                counts_in_total: twin.is_none(),
                excluded: twin,
            },
            counter: Counter::wrapping(modulus, range as f64 * 1e-6 / MOST_WATTS),
            energy: energy.clone(),
        });
        seen.push((name, energy));
    }
    match meters.is_empty() {
        true => Err(MeterError::Missing(root.join(CLASS).join("intel-rapl:*").display().to_string())),
        false => Ok(meters),
    }
}

/// Whether a file shows the counter behind another. It counts on while it is read, so that equal values would be chance.
fn shows(file: &Path, other: &Path) -> bool {
    match (number(other), number(file), number(other)) {
        (Ok(before), Ok(value), Ok(after)) => before <= value && value <= after,
        _ => false,
    }
}

impl Meter for Powercap {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn info_mut(&mut self) -> &mut MeterInfo {
        &mut self.info
    }

    fn read(&mut self, now: Now) -> Result<Reading, MeterError> {
        let raw = number(&self.energy)?;
        self.counter.advance(raw, now.mono_ns).map_err(|_| MeterError::Reset(self.info.source.clone()))?;
        reading(&self.counter, 1e-6, now)
    }
}

const CLASS: &str = "/sys/class/powercap";

/// More than a package draws: how fast a counter may wrap.
const MOST_WATTS: f64 = 1000.0;
