//! Sensors of `/sys/class/hwmon`: energy counters in microjoules, and power in microwatts, integrated here.
//!
//! What a sensor covers is known for two drivers alone (`power_meter`: the node; `amdgpu`: the board). Any other may
//! overlap with anything, so it is reported and never part of a total. No uncertainty is published, so none is claimed. A
//! sensor that is there and cannot be read is reported with the reason: of a board, whose joules are nowhere else, it makes
//! the total unknown; of the node, the parts that can be read stand in for it.

use std::path::PathBuf;

use super::rapl::reading;
use super::{Meter, MeterError, MeterInfo, Reading, Scope};
use crate::clock::Now;
use crate::counter::Counter;
use crate::integral::PowerIntegral;
use crate::joules::Method;
use crate::root::{Root, number, text};

/// One sensor.
pub struct Hwmon {
    info: MeterInfo,
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Energy(Counter),
    Power(PowerIntegral),
}

/// Opens every sensor.
pub fn open(root: &Root) -> Result<Vec<Hwmon>, MeterError> {
    let mut meters = vec![];
    for device in root.names(CLASS) {
        let dir = format!("{CLASS}/{device}");
        let driver = text(&root.join(&dir).join("name")).unwrap_or_else(|_| "unnamed".into());
        let files = root.names(&dir);
        for file in &files {
            let Some((sensor, energy)) = sensor(file, &files) else { continue };
            let path = root.join(&dir).join(file);
            let refused = match number(&path) {
                // Gone between the listing and now.
                Err(MeterError::Missing(_)) => continue,
                read => read.err(),
            };
            let label = text(&root.join(&dir).join(format!("{sensor}_label"))).unwrap_or_else(|_| sensor.to_owned());
            let (scope, excluded) = match driver.as_str() {
                "power_meter" => (Scope::Node, None),
                "amdgpu" => (Scope::Accelerator, None),
                _ => (Scope::Unknown, Some("the driver does not say what it covers".to_owned())),
            };
            let excluded = match (refused, scope) {
                (Some(error), Scope::Node | Scope::Unknown) => Some(error.to_string()),
                _ => excluded,
            };
            let kind =
                if energy { Kind::Energy(Counter::endless()) } else { Kind::Power(PowerIntegral::new(LONGEST_GAP_S)) };
            let info = MeterInfo {
                id: format!("hwmon-{driver}-{device}-{sensor}"),
                domain: label,
                scope,
                method: Method::Measured,
                source: format!("{dir}/{file}"),
                profile: None,
                unit_j: energy.then_some(1e-6),
                update_period_s: None,
                rel_uncertainty: None,
                parent: None,
                counts_in_total: excluded.is_none(),
                excluded,
            };
            meters.push(Hwmon { info, path, kind });
        }
    }
    match meters.is_empty() {
        true => Err(MeterError::Missing(root.join(CLASS).join("*/{energy,power}*_input").display().to_string())),
        false => Ok(meters),
    }
}

/// The sensor that a file belongs to and whether it counts energy; an average goes before a moment's power.
fn sensor<'a>(file: &'a str, files: &[String]) -> Option<(&'a str, bool)> {
    let numbered = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (sensor, what) = file.rsplit_once('_')?;
    match (sensor.strip_prefix("energy"), sensor.strip_prefix("power"), what) {
        (Some(n), _, "input") if numbered(n) => Some((sensor, true)),
        (_, Some(n), "average") if numbered(n) => Some((sensor, false)),
        (_, Some(n), "input") if numbered(n) && !files.contains(&format!("{sensor}_average")) => Some((sensor, false)),
        _ => None,
    }
}

impl Meter for Hwmon {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn info_mut(&mut self) -> &mut MeterInfo {
        &mut self.info
    }

    fn read(&mut self, now: Now) -> Result<Reading, MeterError> {
        let raw = number(&self.path)?;
        match &mut self.kind {
            Kind::Energy(counter) => {
                counter.advance(raw, now.mono_ns).map_err(|_| MeterError::Reset(self.info.source.clone()))?;
                reading(counter, 1e-6, now)
            }
            Kind::Power(integral) => Ok(integral.add(raw as f64 * 1e-6, now)),
        }
    }
}

const CLASS: &str = "/sys/class/hwmon";

/// Power between two reads further apart than this is unknown.
const LONGEST_GAP_S: f64 = 5.0;
