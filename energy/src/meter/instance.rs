//! The host of an instance without a meter: CPU load times published watts, as an interval.
//!
//! An estimate and labelled so. Power at idle belongs to the host's owner as much as to its guests; it is in the figure.

use super::{Meter, MeterError, MeterInfo, Reading, Scope};
use crate::clock::{Now, seconds};
use crate::joules::{Joules, Method};
use crate::load::MachineTime;
use crate::root::Root;
use crate::table::HostWatts;

/// The model of one machine.
pub struct InstanceModel {
    info: MeterInfo,
    root: Root,
    watts: HostWatts,
    last: Option<(MachineTime, u64)>,
    total: Joules,
    holes: u32,
}

impl InstanceModel {
    /// The machine below `root` with these watts.
    pub fn new(root: Root, watts: HostWatts) -> InstanceModel {
        let info = MeterInfo {
            id: "instance-model".into(),
            domain: "host".into(),
            scope: Scope::Host,
            method: Method::Estimated,
            source: format!("/proc/stat × published watts of {}", watts.instance),
            profile: Some(watts.profile()),
            unit_j: None,
            update_period_s: Some(0.01),
            rel_uncertainty: None, // the interval says it
            parent: None,
            counts_in_total: true,
            excluded: None,
        };
        InstanceModel { info, root, watts, last: None, total: Joules::ZERO, holes: 0 }
    }
}

impl Meter for InstanceModel {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn info_mut(&mut self) -> &mut MeterInfo {
        &mut self.info
    }

    fn read(&mut self, now: Now) -> Result<Reading, MeterError> {
        let time = MachineTime::read(&self.root)?;
        let last = self.last.replace((time, now.mono_ns));
        if let Some((before, then)) = last {
            let span = seconds(then, now.mono_ns);
            if time.busy_s < before.busy_s {
                self.holes += 1;
            } else if span > 0.0 && time.vcpus > 0 {
                let load = (time.busy_s - before.busy_s) / (f64::from(time.vcpus) * span);
                let added = self.watts.at(load).and_then(|(low, high)| Joules::between(low * span, high * span));
                let added = added.ok_or_else(|| MeterError::Unsupported(self.info.source.clone()))?;
                self.total = if self.total == Joules::ZERO { added } else { self.total.plus(added) };
            }
        }
        Ok(Reading { at_ns: now.mono_ns, total: self.total, wraps: 0, holes: self.holes, ambiguous: 0 })
    }
}
